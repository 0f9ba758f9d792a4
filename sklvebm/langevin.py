r"""Markov kernels on any log-density: ULA, MALA, and moves that know a Gaussian reference.

Every kernel is an ``init`` and a ``step(state, ...) -> (State, Info)``. ``State`` is what the next
step reads; ``Info`` is what a person (or a step-size rule) reads. Positions have shape
``(..., m)``: every leading index is a chain of its own, and all chains move at once. Nothing here
knows of observations, latents or parameters.

References
----------
G. O. Roberts and R. L. Tweedie (1996), "Exponential convergence of Langevin distributions and their
discrete approximations", Bernoulli 2(4) (ULA, MALA). S. L. Cotter, G. O. Roberts, A. M. Stuart and
D. White (2013), "MCMC methods for functions", Statistical Science 28(3) (proposals that leave the
Gaussian reference invariant). L. Tierney (1994), "Markov chains for exploring posterior
distributions", Annals of Statistics 22(4) (independence sampler).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

# Mean acceptance aimed at: .574 is optimal for MALA in high dimensions (Roberts and Rosenthal
# 1998), a little more is safer in low ones. Unadjusted chains get shorter steps, since nothing
# corrects their bias.
ACCEPTANCE = {"mala": 0.6, "ula": 0.9}
# Pairs of a row and a draw whose densities the processor works out at once.
_AT_ONCE = 4096

LogDensity = Callable[[Tensor], Tensor]
"""Maps positions ``(..., m)`` to log-densities ``(...)``, up to a constant, in nats."""


class Differentiated:
    """A log-density that knows its gradient, which spares the kernels autograd.

    Parameters
    ----------
    value : callable
        Positions ``(..., m)`` to log-densities ``(...)``.
    value_and_gradient : callable
        Positions to log-densities and their gradients ``(..., m)``.
    """

    def __init__(
        self, value: LogDensity, value_and_gradient: Callable[[Tensor], tuple[Tensor, Tensor]]
    ) -> None:
        self.value, self.value_and_gradient = value, value_and_gradient

    def __call__(self, position: Tensor) -> Tensor:
        return self.value(position)


def value_and_gradient(log_density: LogDensity, position: Tensor) -> tuple[Tensor, Tensor]:
    """Log-densities ``(...)`` and gradients ``(..., m)``: by autograd where they are not known."""
    if isinstance(log_density, Differentiated):
        with torch.no_grad():
            return log_density.value_and_gradient(position)
    with torch.enable_grad():
        leaf = position.detach().requires_grad_(True)
        value = log_density(leaf)
        (gradient,) = torch.autograd.grad(value.sum(), leaf)
    return value.detach(), gradient.detach()


@torch.no_grad()
def values(log_density: LogDensity, position: Tensor) -> Tensor:
    """Log-densities ``(n, s)`` of ``position (n, s, m)``, on the processor a few draws at a time.

    What is worked on then fits the cache.
    """
    n_draws = position.shape[1]
    if position.device.type == "cpu":
        n_draws = max(1, _AT_ONCE // len(position))
    return torch.cat([log_density(part) for part in position.split(n_draws, 1)], 1)


def tempered(log_density: LogDensity, beta: float) -> Differentiated:
    """β times ``log_density``."""

    def both(position: Tensor) -> tuple[Tensor, Tensor]:
        value, gradient = value_and_gradient(log_density, position)
        return beta * value, beta * gradient

    return Differentiated(lambda position: beta * log_density(position), both)


def times_normal(log_tilt: LogDensity) -> Differentiated:
    """ℓ(v) − ½‖v‖²: the law N(v; 0, I) e^ℓ, up to a constant."""

    def both(v: Tensor) -> tuple[Tensor, Tensor]:
        value, gradient = value_and_gradient(log_tilt, v)
        return value - 0.5 * v.square().sum(-1), gradient - v

    return Differentiated(lambda v: log_tilt(v) - 0.5 * v.square().sum(-1), both)


class Noise:
    """The only source of randomness of a kernel.

    Parameters
    ----------
    generator : torch.Generator
    shared_dims : tuple of int, default=()
        Dimensions along which one draw is shared (drawn once, then broadcast). Rows that share
        their noise get the same answer in any batch, order or subset.
    """

    def __init__(self, generator: torch.Generator, shared_dims: tuple[int, ...] = ()) -> None:
        self.generator = generator
        self.shared_dims = shared_dims

    def _shape(self, shape: torch.Size) -> list[int]:
        return [1 if i in self.shared_dims else n for i, n in enumerate(shape)]

    def normal(self, like: Tensor) -> Tensor:
        """Standard normal draws that broadcast to the shape of ``like``."""
        return torch.randn(
            self._shape(like.shape), generator=self.generator, dtype=like.dtype, device=like.device
        )

    def uniform(self, like: Tensor) -> Tensor:
        """Uniform draws on [0, 1) that broadcast to the shape of ``like``."""
        return torch.rand(
            self._shape(like.shape), generator=self.generator, dtype=like.dtype, device=like.device
        )

    def points(self, like: Tensor) -> Tensor:
        """Uniform draws for an integral over the last dimension of ``like (..., s, w)``."""
        return self.uniform(like)


class State(NamedTuple):
    """Where the chains are: ``position (..., m)``, ``log_density (...)``, ``gradient (..., m)``."""

    position: Tensor
    log_density: Tensor
    gradient: Tensor


class Info:
    """What a step did.

    Parameters
    ----------
    log_ratio : callable
        The logarithm ``(...)`` of the Metropolis ratio, evaluated where somebody asks.
    """

    def __init__(self, log_ratio: Callable[[], Tensor]) -> None:
        self._log_ratio = log_ratio

    @cached_property
    def acceptance(self) -> Tensor:
        """min(1, Metropolis ratio) of the proposal, ``(...)``.

        Unadjusted steps report the ratio they would have been tested with: one minus its mean
        measures the discretisation bias.
        """
        return self._log_ratio().clamp(max=0.0).exp()


class Preconditioner(NamedTuple):
    """A covariance C = L Lᵀ that shapes the steps: L and its inverse, ``(..., m, m)``."""

    factor: Tensor
    inverse_factor: Tensor

    @classmethod
    def from_covariance(cls, covariance: Tensor) -> Preconditioner:
        """Cholesky factor of a symmetric positive definite ``covariance`` ``(..., m, m)``."""
        factor = torch.linalg.cholesky(covariance)
        return cls(factor, _inverse(factor))

    def followed_by(self, covariance: Tensor) -> Preconditioner:
        """That of ``covariance``; this one where it has none, because it is not finite."""
        factor, failed = torch.linalg.cholesky_ex(covariance)
        found = (failed == 0) & torch.isfinite(factor).all()
        factor = torch.where(found, factor, self.factor)
        return Preconditioner(factor, _inverse(factor))


def _inverse(factor: Tensor) -> Tensor:
    eye = torch.eye(factor.shape[-1], dtype=factor.dtype, device=factor.device)
    return torch.linalg.solve_triangular(factor, eye.expand_as(factor), upper=False)


def regularised(covariance: Tensor) -> Tensor:
    """``covariance`` plus a small multiple of its mean variance, to keep Cholesky safe."""
    k = covariance.shape[-1]
    trace = torch.diagonal(covariance, dim1=-2, dim2=-1).sum(-1) / k
    eye = torch.eye(k, dtype=covariance.dtype, device=covariance.device)
    return covariance + (1e-4 * trace + 1e-10)[..., None, None] * eye


def init(position: Tensor, log_density: LogDensity) -> State:
    """Evaluate the log-density and its gradient at ``position``."""
    return State(position.detach(), *value_and_gradient(log_density, position.detach()))


def _apply(matrix: Tensor, vectors: Tensor) -> Tensor:
    """Rows of ``vectors (..., m)`` times ``matrixᵀ``; a batch of matrices goes along."""
    return vectors @ matrix.transpose(-1, -2)


def metropolis_test(
    state: State, proposal: State, log_ratio: Tensor, noise: Noise
) -> tuple[State, Info]:
    """Accept with probability min(1, e^``log_ratio``); never where that is not finite."""
    log_ratio = _finite(log_ratio)
    accepted = noise.uniform(log_ratio).log_() < log_ratio
    return either(accepted, proposal, state), Info(lambda: log_ratio)


def either(accepted: Tensor, new: State, old: State) -> State:
    """``new`` where ``accepted (...)``, else ``old``."""
    wide = accepted[..., None]
    return State(
        torch.where(wide, new.position, old.position),
        torch.where(accepted, new.log_density, old.log_density),
        torch.where(wide, new.gradient, old.gradient),
    )


def _finite(log_ratio: Tensor) -> Tensor:
    """−∞, a certain rejection, where a ratio is not finite."""
    return torch.nan_to_num(log_ratio, nan=-math.inf, posinf=-math.inf, neginf=-math.inf)


def _step(step_size: float | Tensor, like: Tensor) -> float | Tensor:
    """One step size for all chains as a number, which costs no operation on arrays; or theirs.

    One that is on a device stays there: nothing waits for the device to say it.
    """
    if isinstance(step_size, Tensor) and (step_size.ndim or step_size.device.type != "cpu"):
        return step_size.to(like)
    return float(step_size)


def langevin_step(
    state: State,
    log_density: LogDensity,
    *,
    step_size: float | Tensor,
    noise: Noise,
    metropolis: bool,
    preconditioner: Preconditioner | None = None,
) -> tuple[State, Info]:
    r"""One step of ULA (``metropolis=False``) or MALA.

    .. math:: u' = u + η C ∇\log p(u) + \sqrt{2η}\, L ξ, \qquad C = L L^T, \; ξ ∼ N(0, I)

    Unadjusted, the stationary law is off by O(η): for a Gaussian of precision A and C = I its
    covariance is [A(I − ηA/2)]⁻¹.

    Parameters
    ----------
    state : State
    log_density : callable
    step_size : float or Tensor broadcastable to ``(...)``
        η > 0.
    noise : Noise
    metropolis : bool
    preconditioner : Preconditioner, optional
        Identity by default.
    """
    eta = _step(step_size, state.log_density)
    wide = eta if isinstance(eta, float) else eta[..., None]
    xi = noise.normal(state.position)

    def white(gradient: Tensor) -> Tensor:
        return gradient if preconditioner is None else gradient @ preconditioner.factor

    # In whitened coordinates, where u = L w.
    move = wide * white(state.gradient) + (2 * wide) ** 0.5 * xi
    step = move if preconditioner is None else _apply(preconditioner.factor, move)
    proposal = init(state.position + step, log_density)

    def log_ratio() -> Tensor:
        # The residual of the way there is √(2η) ξ; that of the way back is this.
        back = move + wide * white(proposal.gradient)
        return (
            proposal.log_density
            - state.log_density
            + 0.5 * xi.square().sum(-1)
            - back.square_().sum(-1) / (4 * eta)
        )

    if metropolis:
        return metropolis_test(state, proposal, log_ratio(), noise)
    return proposal, Info(lambda: _finite(log_ratio()))


def gaussian_step(
    state: State,
    log_tilt: LogDensity,
    *,
    step_size: float | Tensor,
    noise: Noise,
) -> tuple[State, Info]:
    r"""One Metropolis step of the exponential integrator for N(v; 0, I) exp(ℓ(v)).

    .. math:: v' = e^{-h} v + (1 − e^{-h}) ∇ℓ(v) + \sqrt{1 − e^{-2h}}\, ξ

    Where ℓ is constant the proposal leaves N(0, I) exactly invariant and is always accepted,
    whatever h. ``log_tilt`` is ℓ; ``state`` holds ℓ and its gradient, not the full log-density.
    """
    h = _step(step_size, state.log_density)
    decay: float | Tensor
    scale: float | Tensor
    if isinstance(h, float):
        decay, scale = math.exp(-h), math.sqrt(-math.expm1(-2 * h))
    else:
        decay, scale = torch.exp(-h)[..., None], torch.sqrt(-torch.expm1(-2 * h))[..., None]
    v, xi = state.position, noise.normal(state.position)
    # e⁻ʰ v + (1 − e⁻ʰ) ∇ℓ(v), and the same from the proposal back.
    mean = torch.lerp(state.gradient, v, decay)
    proposal = init(mean + scale * xi, log_tilt)
    w = proposal.position
    back = (torch.lerp(proposal.gradient, w, decay).sub_(v) / scale).square_().sum(-1)
    there = (xi.square() + v.square()).sub_(w.square()).sum(-1)
    log_ratio = proposal.log_density - state.log_density + 0.5 * (there - back)
    return metropolis_test(state, proposal, log_ratio, noise)


def independence_step(
    position: Tensor,
    log_weight: Tensor,
    fresh: Tensor,
    fresh_log_weight: Tensor,
    *,
    noise: Noise,
) -> tuple[Tensor, Tensor, Info]:
    r"""One independence-Metropolis sweep, with ``fresh`` draws from a law q.

    Accepts with probability min(1, w(fresh) / w(position)), w = target / q. For the target
    N(v; 0, I) exp(ℓ(v)) and q = N(0, I), log w is ℓ. Needs no gradient.

    Returns
    -------
    position : Tensor of shape (..., m)
    log_weight : Tensor of shape (...)
    info : Info
    """
    log_ratio = _finite(fresh_log_weight - log_weight)
    accepted = noise.uniform(log_ratio).log_() < log_ratio
    return (
        torch.where(accepted[..., None], fresh, position),
        torch.where(accepted, fresh_log_weight, log_weight),
        Info(lambda: log_ratio),
    )


class StepSize:
    """A step size, fixed or adapted towards a mean acceptance by Robbins–Monro steps on its log.

    Parameters
    ----------
    step_size : float or "auto"
    initial : float or Tensor
        Where "auto" starts; a tensor adapts each of its entries by its own chains.
    target : float
        Mean acceptance aimed at. 0.574 is optimal for MALA in high dimensions (Roberts and
        Rosenthal 1998), a little more is safer in low ones.
    rate : float
        Size of a step on the log.
    device : torch.device, optional
        Where the chains are, if "auto" starts from a number.
    """

    def __init__(
        self,
        step_size: float | str,
        *,
        initial: float | Tensor,
        target: float,
        rate: float = 0.05,
        device: torch.device | None = None,
    ) -> None:
        self.adapts = step_size == "auto"
        self.target, self.rate = target, rate
        start = initial if self.adapts else float(step_size)
        # A fixed one is a number, wherever the chains are.
        where = device if self.adapts else None
        self.log_value = torch.as_tensor(start, dtype=torch.float64, device=where).log()

    @property
    def value(self) -> Tensor:
        """Current step size."""
        return self.log_value.exp()

    def update(self, info: Info) -> None:
        """Move towards the target, given what the last step accepted."""
        if self.adapts:
            acceptance = info.acceptance
            dims = tuple(range(self.log_value.ndim, acceptance.ndim))
            error = acceptance.mean(dims) - self.target if dims else acceptance - self.target
            # Up to e⁻¹⁰ ... e²: past these the chain is broken, and the diagnostics say so.
            self.log_value = (self.log_value + self.rate * error).clamp(-10.0, 2.0)
