"""The two particle systems: a conditional flow for every datum, and the joint negative pool.

A conditional flow keeps something for each datum from visit to visit (particles, a Gaussian, a
point), moves it with ``advance(rows, log_density)`` and answers ``draws(rows)``. The pool keeps
joint configurations in the reference's coordinates v = (a, ε), where the target is
N(v; 0, I) exp(−f).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from .langevin import (
    ACCEPTANCE,
    Info,
    LogDensity,
    Noise,
    Preconditioner,
    State,
    StepSize,
    either,
    gaussian_step,
    independence_step,
    init,
    langevin_step,
    metropolis_test,
    regularised,
    times_normal,
)
from .proposals import Proposal
from .state import Stateful


class Conditional(Stateful, ABC):
    """What every datum has of its own: see :data:`ConditionalFlow`."""

    def advance(self, rows: Tensor, log_density: LogDensity) -> None:
        """Move what ``rows (b,)`` have, and adapt to where it went."""
        self.adapt(self.move(rows, log_density))

    @abstractmethod
    def move(self, rows: Tensor, log_density: LogDensity) -> Tensor | None:
        """Move what ``rows (b,)`` have, by work on tensors alone; what :meth:`adapt` is to know."""

    def adapt(self, found: Tensor | None) -> None:
        """Learn from a move; here nothing."""


class LangevinParticles(Conditional):
    """Persistent particles z_i^p following dz = −∇_z E(x_i, z) dt + √2 dB.

    Parameters
    ----------
    position : Tensor of shape (n, p, k)
    covariance : Tensor of shape (k, k)
        First guess of the posterior covariance of a datum.
    dynamics : {"mala", "ula"}
        MALA is preconditioned by a running estimate of the pooled within-datum covariance; ULA is
        the plain update.
    n_steps : int
        Steps a visit.
    step_size : float or "auto"
    noise : Noise
    """

    STATE = (
        "position",
        "covariance",
        "step_size.log_value",
        "preconditioner",
        "_acceptance",
        "_n_visits",
    )
    ADAPTED = ("covariance", "step_size.log_value", "_acceptance")

    def __init__(
        self,
        position: Tensor,
        covariance: Tensor,
        *,
        dynamics: str,
        n_steps: int,
        step_size: float | str,
        noise: Noise,
    ) -> None:
        self.position = position
        self.covariance = covariance
        self.metropolis = dynamics == "mala"
        self.n_steps = n_steps
        self.noise = noise
        initial = 0.3 if self.metropolis else 0.1 * float(torch.linalg.eigvalsh(covariance)[0])
        self.step_size = StepSize(
            step_size, initial=initial, target=ACCEPTANCE[dynamics], device=position.device
        )
        self.preconditioner = Preconditioner.from_covariance(covariance)
        self._acceptance = torch.tensor(math.nan)
        self._n_visits = 0

    @property
    def acceptance(self) -> float:
        """Mean acceptance of the last step."""
        return float(self._acceptance)

    @property
    def location(self) -> Tensor:
        """Mean of each datum's particles, ``(n, k)``."""
        return self.position.mean(1)

    def draws(self, rows: Tensor | slice) -> Tensor:
        """The particles of ``rows (b,)``, ``(b, p, k)``."""
        return self.position[rows]

    def move(self, rows: Tensor, log_density: LogDensity) -> Tensor | None:
        """Move the particles of ``rows (b,)``; returns their pooled within-datum covariance.

        A lone particle has none to show.
        """
        state = init(self.position[rows], log_density)
        for _ in range(self.n_steps):
            state, info = langevin_step(
                state,
                log_density,
                step_size=self.step_size.value,
                noise=self.noise,
                metropolis=self.metropolis,
                preconditioner=self.preconditioner if self.metropolis else None,
            )
            self.step_size.update(info)
        self.position[rows] = state.position
        self._acceptance = info.acceptance.mean()
        z = state.position
        b, p, k = z.shape
        if p == 1:
            return None
        centred = (z - z.mean(1, keepdim=True)).reshape(-1, k)
        return centred.T @ centred / (b * (p - 1))

    def adapt(self, found: Tensor | None) -> None:
        """Follow the pooled covariance, and now and then shape the steps by it."""
        self._n_visits += 1
        if found is None:
            return
        weight = max(0.02, 1 / (self._n_visits + 10))
        self.covariance = torch.lerp(self.covariance, found, weight)
        if self._n_visits % 20 == 0:
            following = self.preconditioner.followed_by(regularised(self.covariance))
            # In their places, where a recording reads them.
            for mine, new in zip(self.preconditioner, following, strict=True):
                mine.copy_(new)


class GaussianPosteriors(Conditional):
    r"""A mean-field Gaussian q_i(z) = N(m_i, diag s_i²) for every datum, not amortised.

    Each visit takes natural-gradient steps on the ELBO E_q[log p(x_i, z)] + H(q), by the
    reparametrisation z = m + s ∘ ξ with antithetic ξ:
    m ← m + η s² ∘ ∇_m and log s ← log s + (η/2) ∇_{log s}.
    """

    STATE = ("location", "log_scale")

    acceptance = float("nan")

    def __init__(
        self,
        loc: Tensor,
        covariance: Tensor,
        *,
        n_particles: int,
        n_steps: int,
        step_size: float | str,
        noise: Noise,
    ) -> None:
        self.location = loc
        precision = torch.linalg.inv(covariance)
        self.log_scale = (-0.5 * torch.diagonal(precision).log()).expand_as(loc).clone()
        self.covariance = covariance
        self.n_particles, self.n_steps, self.noise = n_particles, n_steps, noise
        self.step_size = StepSize(0.1 if step_size == "auto" else step_size, initial=1, target=1)

    def _draw(self, loc: Tensor, log_scale: Tensor) -> tuple[Tensor, Tensor]:
        half = self.noise.normal(loc[:, None].expand(-1, -(-self.n_particles // 2), -1))
        xi = torch.cat([half, -half], 1)[:, : max(self.n_particles, 1)]
        return loc[:, None] + log_scale.exp()[:, None] * xi, xi

    def draws(self, rows: Tensor | slice) -> Tensor:
        """Draws from q of ``rows (b,)``, ``(b, p, k)``."""
        return self._draw(self.location[rows], self.log_scale[rows])[0]

    def move(self, rows: Tensor, log_density: LogDensity) -> None:
        """Improve q of ``rows (b,)``."""
        loc, log_scale = self.location[rows], self.log_scale[rows]
        eta = float(self.step_size.value)
        for _ in range(self.n_steps):
            z, xi = self._draw(loc, log_scale)
            gradient = init(z, log_density).gradient
            scale = log_scale.exp()
            # A step moves the mean by at most one posterior standard deviation.
            move = (eta * scale * gradient.mean(1)).clamp(-1.0, 1.0)
            entropy_and_fit = 1 + (gradient * scale[:, None] * xi).mean(1)
            loc = loc + scale * move
            log_scale = log_scale + (0.5 * eta * entropy_and_fit).clamp(-0.5, 0.5)
        self.location[rows], self.log_scale[rows] = loc, log_scale


class PointEstimates(Conditional):
    """The mode of p(z | x_i) for every datum (hard EM): preconditioned gradient ascent.

    Each datum has a step size of its own, halved when a step would lower the density (the step is
    then not taken) and grown by a tenth otherwise.
    """

    STATE = ("location", "steps")

    acceptance = float("nan")

    def __init__(
        self, loc: Tensor, covariance: Tensor, *, n_steps: int, step_size: float | str
    ) -> None:
        self.location = loc
        self.covariance = covariance
        self.n_steps = n_steps
        self.adapts = step_size == "auto"
        self.steps = loc.new_full((len(loc),), 0.5 if self.adapts else float(step_size))

    @property
    def step_size(self) -> StepSize:
        """Median step size over the data."""
        return StepSize(float(self.steps.median()), initial=1, target=1)

    def draws(self, rows: Tensor | slice) -> Tensor:
        """The points of ``rows (b,)``, ``(b, 1, k)``."""
        return self.location[rows][:, None]

    def move(self, rows: Tensor, log_density: LogDensity) -> None:
        """Climb for ``rows (b,)``."""
        state, steps = init(self.location[rows][:, None], log_density), self.steps[rows]
        for _ in range(self.n_steps):
            move = steps[:, None, None] * (state.gradient @ self.covariance)
            proposal = init(state.position + move, log_density)
            better = proposal.log_density >= state.log_density
            state = either(better, proposal, state)
            if self.adapts:
                steps = (steps * torch.where(better[:, 0], 1.1, 0.5)).clamp(1e-6, 2.0)
        self.location[rows], self.steps[rows] = state.position[:, 0], steps


ConditionalFlow = LangevinParticles | GaussianPosteriors | PointEstimates


class JointPool(Stateful):
    """Persistent joint negatives ũ_j, in the reference's coordinates ``v (m, k + d)``.

    With ``dynamics="mala"`` every member meets a fresh draw of ``proposal`` in an independence
    sweep, which jumps between modes, and some take ``n_steps`` Metropolis-adjusted steps, which
    refine. With "ula" these take ``n_steps`` unadjusted steps on E(v) = ½‖v‖² + f, and nothing
    else.

    ``proposal`` is N(0, I) at first. Whoever knows better where the law is sets it: any proposal
    leaves the law invariant.
    """

    STATE = (
        "position",
        "proposal",
        "step_size.log_value",
        "_acceptance",
        "_sweep_acceptance",
    )
    ADAPTED = ("step_size.log_value", "_acceptance", "_sweep_acceptance")

    def __init__(
        self,
        position: Tensor,
        *,
        dynamics: str,
        n_steps: int,
        step_size: float | str,
        noise: Noise,
    ) -> None:
        self.position = position
        self.proposal = Proposal.reference(position)
        self.dynamics = dynamics
        self.n_steps = n_steps
        self.noise = noise
        self.step_size = StepSize(
            step_size, initial=0.1, target=ACCEPTANCE[dynamics], device=position.device
        )
        self._acceptance = self._sweep_acceptance = torch.tensor(math.nan)

    @property
    def acceptance(self) -> float:
        """Mean acceptance of the last Langevin step."""
        return float(self._acceptance)

    @property
    def sweep_acceptance(self) -> float:
        """Mean acceptance of the last independence sweep."""
        return float(self._sweep_acceptance)

    def advance(self, log_tilt: LogDensity, rows: Tensor | slice = slice(None)) -> None:
        """Move the members ``rows`` by Langevin steps, then sweep all members (not under "ula")."""
        moved = None
        if self.n_steps:
            steps = self._adjusted if self.dynamics == "mala" else self._plain
            moved = steps(self.position[rows], log_tilt)
            self.position[rows] = moved.position
        if self.dynamics == "mala":
            self._sweep(log_tilt, rows, moved)

    def settle(self, log_tilt: LogDensity, n_moves: int) -> Tensor:
        """Moves of all members under a tilt that stays: a sweep and an adjusted step each.

        Returns ℓ of each member after each move, ``(m, n_moves)``.
        """
        state, trace = init(self.position, log_tilt), []
        for _ in range(n_moves):
            state = self._stepped(self._swept(state, log_tilt), log_tilt)
            trace.append(state.log_density)
        self.position = state.position
        return torch.stack(trace, 1)

    def _sweep(self, log_tilt: LogDensity, rows: Tensor | slice, known: State | None) -> None:
        """Meet every member with a fresh draw; ``known`` has ℓ of ``rows`` already."""
        v, n = self.position, len(self.position)
        fresh = self.proposal.draw(n, self.noise)
        with torch.no_grad():
            # One call for members and draws: networks of this size cost by the call.
            if known is None:
                value, new = log_tilt(torch.cat([v, fresh])).split(n)
            else:
                # Sorted, rather than selected: how many there are is known without looking.
                moved = torch.zeros(n, dtype=torch.uint8, device=v.device)
                moved[rows] = moved.new_ones(len(known.log_density))
                others = moved.argsort(stable=True)[: n - len(known.log_density)]
                asked, new = log_tilt(torch.cat([v[others], fresh])).split([len(others), n])
                value = v.new_empty(n)
                value[rows], value[others] = known.log_density, asked
            excess = self.proposal.log_excess(torch.cat([v, fresh]))
        self.position, _, info = independence_step(
            v, value + excess[:n], fresh, new + excess[n:], noise=self.noise
        )
        self._sweep_acceptance = info.acceptance.mean()

    def _swept(self, state: State, log_tilt: LogDensity) -> State:
        """:meth:`_sweep` where ℓ and its gradient are carried along."""
        fresh = init(self.proposal.draw(len(state.position), self.noise), log_tilt)
        new, old = (
            part.log_density + self.proposal.log_excess(part.position) for part in (fresh, state)
        )
        state, info = metropolis_test(state, fresh, new - old, self.noise)
        self._sweep_acceptance = info.acceptance.mean()
        return state

    def _adjusted(self, v: Tensor, log_tilt: LogDensity) -> State:
        return self._stepped(init(v, log_tilt), log_tilt)

    def _stepped(self, state: State, log_tilt: LogDensity) -> State:
        for _ in range(self.n_steps):
            state, info = gaussian_step(
                state, log_tilt, step_size=self.step_size.value, noise=self.noise
            )
            self._note(info)
        return state

    def _plain(self, v: Tensor, log_tilt: LogDensity) -> State:
        log_density = times_normal(log_tilt)
        state = init(v, log_density)
        for _ in range(self.n_steps):
            state, info = langevin_step(
                state,
                log_density,
                step_size=self.step_size.value,
                noise=self.noise,
                metropolis=False,
            )
            self._note(info)
        return state

    def _note(self, info: Info) -> None:
        self.step_size.update(info)
        self._acceptance = info.acceptance.mean()
