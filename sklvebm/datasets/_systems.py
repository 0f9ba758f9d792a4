r"""Physical systems: two with an exact stationary density, and four that are integrated.

Each integrated system has identities that its stationary distribution obeys exactly, whatever its
shape: the mean of every time derivative is zero.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from functools import cached_property

import numpy as np

from ._base import LOG_2PI, Array, Drawn, KnownDensity


class _OnGrid(KnownDensity):
    """p ∝ exp(−U/kT) on a box that holds all but nothing of it, normalised on a fine grid.

    Draws pick a cell and spread evenly over it.
    """

    _axes: tuple[Array, ...]

    @abstractmethod
    def potential(self, X) -> Array:
        """U/kT of each row of ``X (n, d)``."""

    @cached_property
    def _cells(self) -> tuple[Array, Array, float]:
        mesh = np.meshgrid(*self._axes, indexing="ij")
        points = np.stack([axis.ravel() for axis in mesh], 1)
        energy = self.potential(points)
        mass = np.exp(energy.min() - energy)
        volume = math.prod(axis[1] - axis[0] for axis in self._axes)
        log_z = math.log(mass.sum() * volume) - float(energy.min())
        return points, mass / mass.sum(), log_z

    @property
    def log_partition(self) -> float:
        """log ∫ exp(−U/kT), by the midpoint rule."""
        return self._cells[2]

    def _draw(self, n, rng):
        points, mass, _ = self._cells
        picks = rng.choice(len(points), n, p=mass)
        steps = np.array([axis[1] - axis[0] for axis in self._axes])
        return points[picks] + steps * (rng.uniform(size=(n, len(steps))) - 0.5)

    def log_prob(self, X):
        return -self.potential(np.asarray(X, float)) - self.log_partition


class _DuffingPosition(_OnGrid):
    n_features = 1
    _axes = (np.linspace(-6, 6, 6001),)

    def potential(self, X):
        return X[:, 0] ** 4 / 4 - X[:, 0] ** 2 / 2


class Duffing(KnownDensity):
    r"""Position and momentum of a noisy Duffing oscillator in equilibrium.

    p(x, p) ∝ exp(−p²/2 − x⁴/4 + x²/2): two wells, at unit temperature.
    """

    n_features = 2

    def __init__(self) -> None:
        self._position = _DuffingPosition()

    @property
    def log_partition(self) -> float:
        """log Z of both coordinates; that of x alone is log 3.905137."""
        return self._position.log_partition + 0.5 * LOG_2PI

    def _draw(self, n, rng):
        return np.concatenate([self._position._draw(n, rng), rng.standard_normal((n, 1))], 1)

    def log_prob(self, X):
        X = np.asarray(X, float)
        return self._position.log_prob(X[:, :1]) - 0.5 * X[:, 1] ** 2 - 0.5 * LOG_2PI


class MuellerBrown(_OnGrid):
    """The Müller–Brown potential at temperature ``kT``: three curved wells.

    Parameters
    ----------
    kT : float, default=15.0

    References
    ----------
    K. Müller and L. D. Brown (1979), "Location of saddle points and minimum energy paths by a
    constrained simplex optimization procedure", Theoret. Chim. Acta 53.
    """

    n_features = 2
    _axes = (np.linspace(-2.8, 2.2, 1001), np.linspace(-1.5, 3.5, 1001))
    # A, a, b, c, x0, y0 of A exp(a Δx² + b Δx Δy + c Δy²).
    _TERMS = (
        (-200.0, -1.0, 0.0, -10.0, 1.0, 0.0),
        (-100.0, -1.0, 0.0, -10.0, 0.0, 0.5),
        (-170.0, -6.5, 11.0, -6.5, -0.5, 1.5),
        (15.0, 0.7, 0.6, 0.7, -1.0, 1.0),
    )

    def __init__(self, kT: float = 15.0) -> None:
        self.kT = kT

    def potential(self, X):
        total = 0.0
        for height, a, b, c, x0, y0 in self._TERMS:
            x, y = X[:, 0] - x0, X[:, 1] - y0
            total = total + height * np.exp(a * x**2 + b * x * y + c * y**2)
        return total / self.kT


class DynamicalSystem(Drawn):
    """States of a system, drawn independently from its long-run distribution.

    Every row is the end of a trajectory of its own, so that rows are independent; it ends at a time
    uniform between half of ``duration`` and all of it, so that no phase is preferred.
    """

    # Longest time step of the integrator, and longest time that a trajectory runs.
    step: float
    duration: float

    @abstractmethod
    def velocity(self, X: Array) -> Array:
        """Time derivative of the states ``X (n, d)``, without noise."""

    @abstractmethod
    def _start(self, n: int, rng: np.random.RandomState) -> Array: ...

    def advance(self, X: Array, step: float | Array) -> Array:
        """One Runge–Kutta step of fourth order; ``step`` may be one per row, ``(n, 1)``."""
        f = self.velocity
        k1 = f(X)
        k2 = f(X + 0.5 * step * k1)
        k3 = f(X + 0.5 * step * k2)
        k4 = f(X + step * k3)
        return X + step / 6 * (k1 + 2 * k2 + 2 * k3 + k4)

    def _advance(self, X: Array, step: Array, rng: np.random.RandomState) -> Array:
        return self.advance(X, step)

    def _draw(self, n, rng):
        X = self._start(n, rng)
        step = self.step * rng.uniform(0.5, 1.0, (n, 1))
        for _ in range(round(self.duration / self.step)):
            X = self._advance(X, step, rng)
        return X


class Lorenz63(DynamicalSystem):
    """The Lorenz attractor at its classical parameters (σ, ρ, β) = (10, 28, 8/3).

    In the long run E[x²] = E[xy] = β E[z] exactly.
    """

    n_features, step, duration = 3, 0.01, 30.0
    sigma, rho, beta = 10.0, 28.0, 8.0 / 3.0

    def velocity(self, X):
        x, y, z = X.T
        parts = self.sigma * (y - x), x * (self.rho - z) - y, x * y - self.beta * z
        return np.stack(parts, 1)

    def _start(self, n, rng):
        return np.array([0.0, 0.0, 25.0]) + 5 * rng.standard_normal((n, 3))


class LotkaVolterra(DynamicalSystem):
    """Predator and prey on closed orbits of random size, at a random moment.

    ẋ = αx − βxy, ẏ = δxy − γy. V = δx − γ log x + βy − α log y stays what it is along an orbit, and
    the mean over time is (γ/δ, α/β) on every orbit.

    Parameters
    ----------
    spread : float, default=0.5
        Standard deviation of the log of the starting populations about their equilibrium.
    """

    n_features, step, duration = 2, 0.02, 80.0
    alpha, beta, gamma, delta = 1.0, 0.5, 1.0, 0.5

    def __init__(self, spread: float = 0.5) -> None:
        self.spread = spread

    @property
    def equilibrium(self) -> Array:
        """(γ/δ, α/β)."""
        return np.array([self.gamma / self.delta, self.alpha / self.beta])

    def velocity(self, X):
        x, y = X.T
        return np.stack(
            [self.alpha * x - self.beta * x * y, self.delta * x * y - self.gamma * y], 1
        )

    def invariant(self, X) -> Array:
        """V of each row."""
        x, y = np.asarray(X, float).T
        return self.delta * x - self.gamma * np.log(x) + self.beta * y - self.alpha * np.log(y)

    def _start(self, n, rng):
        return self.equilibrium * np.exp(self.spread * rng.standard_normal((n, 2)))


class FitzHughNagumo(DynamicalSystem):
    """A neuron's voltage v and recovery w under noise.

    dv = (v − v³/3 − w + I) dt + s dB, dw = ε(v + a − b w) dt. In the long run
    E[w] = (E[v] + a)/b and E[v − v³/3] = E[w] − I.

    Parameters
    ----------
    noise : float, default=0.2
        s.
    """

    n_features, step, duration = 2, 0.02, 100.0
    current, epsilon, a, b = 0.5, 0.08, 0.7, 0.8

    def __init__(self, noise: float = 0.2) -> None:
        self.noise = noise

    def velocity(self, X):
        v, w = X.T
        # Powers beyond the square are slow in numpy.
        cubic = v - v * v * v / 3
        return np.stack([cubic - w + self.current, self.epsilon * (v + self.a - self.b * w)], 1)

    def _start(self, n, rng):
        return rng.uniform(-2, 2, (n, 2))

    def _advance(self, X, step, rng):
        X = self.advance(X, step)
        X[:, 0] += self.noise * np.sqrt(step[:, 0]) * rng.standard_normal(len(X))
        return X


class DoublePendulum(DynamicalSystem):
    """Two equal pendulums in a row, released at rest: angles θ₁, θ₂ and angular velocities.

    Unit masses, lengths and gravity. The total energy stays what it is; angles are not wrapped.

    Parameters
    ----------
    reach : float, default=1.0
        Released at angles uniform on ±``reach`` radians.
    """

    n_features, step, duration = 4, 0.02, 80.0

    def __init__(self, reach: float = 1.0) -> None:
        self.reach = reach

    def velocity(self, X):
        a, b, p, q = X.T
        sin, cos = np.sin(a - b), np.cos(a - b)
        # 2 ṗ + cos q̇ = −sin q² − 2 sin a  and  cos ṗ + q̇ = sin p² − sin b.
        first = -sin * q**2 - 2 * np.sin(a)
        second = sin * p**2 - np.sin(b)
        det = 2 - cos**2
        return np.stack([p, q, (first - cos * second) / det, (2 * second - cos * first) / det], 1)

    def energy(self, X) -> Array:
        """Kinetic plus potential energy of each row."""
        a, b, p, q = np.asarray(X, float).T
        kinetic = p**2 + 0.5 * q**2 + p * q * np.cos(a - b)
        return kinetic - 2 * np.cos(a) - np.cos(b)

    def _start(self, n, rng):
        angles = rng.uniform(-self.reach, self.reach, (n, 2))
        return np.concatenate([angles, np.zeros((n, 2))], 1)
