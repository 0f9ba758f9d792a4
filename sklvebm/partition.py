r"""log Z: reference draws and the joint pool, joined, and what is believed when they disagree.

References
----------
C. H. Bennett (1976), "Efficient estimation of free energy differences from Monte Carlo data",
J. Comput. Phys. 22. M. R. Shirts and J. D. Chodera (2008), "Statistically optimal analysis of
samples from multiple equilibrium states", J. Chem. Phys. 129 (its error). P. V. Klimovich,
M. R. Shirts and D. L. Mobley (2015), "Guidelines for the analysis of free energy calculations",
J. Comput. Aided Mol. Des. 29 (overlap, and forward against reverse, as checks).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import expit, logsumexp
from torch import Tensor

from .annealing import DIRECT, Path, adapted_path, walk
from .energies._joint import JointEnergy
from .evidence import Posterior
from .langevin import ACCEPTANCE, LogDensity, Noise, StepSize, gaussian_step, init
from .proposals import Proposal

# Estimates this many standard errors apart disagree, unless by less than anyone minds (nats).
_N_ERRORS = 4.0
_NEGLIGIBLE = 0.03
# A standard error of log Z beyond this (nats) is no error to publish: two of them are added.
_LARGE_STD = 0.25
# Overlap below which, and errors (nats) beyond which the forward and the reverse estimate are too
# poor to check the joint one: the path is then annealed, by steps that keep half of their particles
# effective, and refined.
_MIN_OVERLAP, _MAX_STD = 0.4, 0.1
_PATH_CESS = 0.5
_MAX_REFINEMENTS = 3
_N_WALKS = 2048
# Draws are doubled from few on until the error is this small (the integral of exp(score_samples) is
# then within a hundredth of one), or until there are so many for each member of the pool.
_FEW_DRAWS, _DRAWS_A_MEMBER, _GOOD_STD = 8192, 128, 0.005
# Components that may be added where members sit alone, and the chains that explore there.
_MAX_ADDED, _N_LOCAL, _N_LOCAL_STEPS = 8, 256, 100


class Bennett(NamedTuple):
    """log Z, its standard error, and the overlap of the two samples (0 apart, 1 the same law)."""

    value: float
    std: float
    overlap: float


class Influence(NamedTuple):
    """What each draw adds to the error of an estimate, to first order: ``(n₀,)`` and ``(n₁,)``.

    Estimates from the same draws have errors that go together. That of their difference is the root
    of the summed squares of the differences, draw by draw.
    """

    forward: NDArray
    reverse: NDArray

    def std_of_difference(self, other: Influence) -> float:
        """Standard error of this estimate less ``other``."""
        squares = (
            ((a - b) ** 2).sum()
            for a, b in ((self.forward, other.forward), (self.reverse, other.reverse))
        )
        return math.sqrt(sum(squares))


class LogPartition(NamedTuple):
    """log Z in nats: the joint estimate, its standard error, and what else bears on it.

    ``forward``, from fresh draws alone, is low in expectation; ``reverse``, from the pool alone, is
    high if the pool is in equilibrium; each has its own standard error. ``overlap`` is Bennett's,
    ``n_temperatures`` the number of intermediate temperatures that it took. ``apart`` is the
    highest estimate from fresh draws and a part of the pool (members that started elsewhere).
    ``forward_gap_std`` and ``apart_gap_std`` are the standard errors of these two less ``value``,
    with which they share draws. ``excess`` is what :func:`excess_tilt` found.
    """

    value: float
    std: float
    forward: float
    reverse: float
    forward_std: float = 0.0
    reverse_std: float = 0.0
    overlap: float = 1.0
    n_temperatures: int = 0
    apart: float = -math.inf
    forward_gap_std: float = 0.0
    apart_gap_std: float = 0.0
    excess: float = 0.0

    @property
    def is_sharp(self) -> bool:
        """Whether the draws overlap the pool enough, and the forward estimate can check the joint.

        The reverse one is not asked to be sharp: its weights are unbounded where draws are wide.
        """
        return self.overlap >= _MIN_OVERLAP and max(self.std, self.forward_std) <= _MAX_STD

    @property
    def raises(self) -> dict[str, float]:
        """Nats by which each piece of evidence says that ``value`` is too low.

        Too low a log Z makes every score too high. Fresh draws that find a well which the pool
        never visits push ``forward``, low in expectation, above the joint estimate; a part of the
        pool that sits elsewhere pushes ``apart``; data in a well that neither visits show in
        ``excess``. ``reverse`` accuses nobody: where the draws are wider than the pool its bias
        exceeds its error.
        """
        raises = {}
        for name, value, gap_std in (
            ("fresh draws alone", self.forward, self.forward_gap_std),
            ("chains that started apart", self.apart, self.apart_gap_std),
        ):
            if value > self.value + max(_N_ERRORS * gap_std, _NEGLIGIBLE):
                raises[name] = value - self.value
        if self.std > _LARGE_STD:
            raises["two of its own standard errors"] = 2 * self.std
        if self.excess > 0:
            raises["data deeper in the tilt than the pool explains"] = self.excess
        return raises

    @property
    def conservative(self) -> float:
        """``value``, raised where the evidence says that it is too low."""
        others = [v for name, v in self.raises.items() if not name.startswith("data")]
        return self.value + max(others, default=0.0) + self.excess

    @property
    def disagrees(self) -> bool:
        """Whether ``value`` is too low by the other evidence, beyond errors."""
        return bool(self.raises)


def bennett(forward: NDArray, reverse: NDArray) -> Bennett:
    r"""log Z by Bennett's acceptance ratio.

    Parameters
    ----------
    forward, reverse : ndarray
        Log-weights of walks from the reference and of walks from the tilted law (ℓ = −f at the
        draws themselves, where the path is direct). log Z is the root of
        Σ σ(W − log Z + log(n₁/n₀)) = n₁ over both.
    """
    both = np.concatenate([forward, reverse]).astype(np.float64)
    n0, n1 = len(forward), len(reverse)
    offset = math.log(n1 / n0)

    def excess(log_z: float) -> float:
        return float(expit(both - log_z + offset).sum() - n1)

    if both.min() == both.max():
        return Bennett(float(both[0]), 0.0, 1.0)
    finite = both[np.isfinite(both)]
    value = brentq(excess, finite.min() - 50.0, finite.max() + 50.0, xtol=1e-10, maxiter=500)
    p = expit(both - value + offset)
    shared = max(float((p * (1 - p)).sum()), 1e-300)
    variance = 1 / shared - 1 / n0 - 1 / n1
    return Bennett(float(value), math.sqrt(max(variance, 0.0)), shared * (n0 + n1) / (n0 * n1))


def joined(forward: NDArray, reverse: NDArray, *, groups: Sequence[slice] = ()) -> LogPartition:
    """The estimates from log-weights of both directions; ``groups`` are parts of ``reverse``."""
    value, std, overlap = bennett(forward, reverse)
    own = _influence(forward, reverse, value, slice(None))
    parts = [(bennett(forward, reverse[group]).value, group) for group in groups]
    apart, group = max(parts, key=lambda part: part[0], default=(-math.inf, slice(None)))
    of_forward = _of_mean(forward)
    return LogPartition(
        value,
        std,
        float(logsumexp(forward) - math.log(len(forward))),
        float(math.log(len(reverse)) - logsumexp(-reverse)),
        forward_std=float(np.linalg.norm(of_forward)),
        reverse_std=float(np.linalg.norm(_of_mean(-reverse))),
        overlap=overlap,
        apart=apart,
        forward_gap_std=own.std_of_difference(Influence(of_forward, np.zeros(len(reverse)))),
        apart_gap_std=own.std_of_difference(_influence(forward, reverse, apart, group))
        if groups
        else 0.0,
    )


def _of_mean(log_weights: NDArray) -> NDArray:
    """What each draw adds to the error of log mean exp, by the delta method."""
    weights = np.exp(log_weights - log_weights.max())
    return (weights / weights.mean() - 1) / len(weights)


def _influence(forward: NDArray, reverse: NDArray, value: float, group: slice) -> Influence:
    """That on Bennett's estimate ``value`` from ``forward`` and ``reverse[group]``.

    The estimate is the root of Σ p = n₁ over both, p = σ(W − log Z + log(n₁/n₀)), whose slope is
    Σ p(1 − p): a draw moves it by p less the mean of its sample, over that slope.
    """
    part = reverse[group]
    offset = math.log(len(part) / len(forward)) - value
    p, q = expit(forward + offset), expit(part + offset)
    slope = max(float((p * (1 - p)).sum() + (q * (1 - q)).sum()), 1e-300)
    of_reverse = np.zeros(len(reverse))
    of_reverse[group] = (q - q.mean()) / slope
    return Influence((p - p.mean()) / slope, of_reverse)


def direct_log_partition(
    energy: JointEnergy, members: Tensor, *, proposal: Proposal, n_draws: int, noise: Noise
) -> LogPartition:
    """log Z from ``n_draws`` draws of ``proposal`` and the pool's ``members (m, k + d)``."""
    if energy.tilt is None:
        return LogPartition(0.0, 0.0, 0.0, 0.0)
    forward = proposal.log_weights(proposal.draw(n_draws, noise), energy.log_tilt)
    return joined(forward, proposal.log_weights(members, energy.log_tilt))


def log_partition(
    energy: JointEnergy,
    members: Tensor,
    *,
    n_apart: int = 0,
    data: Tensor | None = None,
    noise: Noise,
) -> LogPartition:
    """log Z from fresh draws and ``members (m, k + d)`` of a pool in equilibrium.

    The draws come from a mixture of the reference and of Gaussians fitted to half of the pool,
    widened to cover all of it, as many as make the error small. Where the overlap stays poor,
    the reference and the pool are joined along an annealed path whose temperatures a pilot run
    sets, refined until the forward and the reverse estimate are sharp or the budget is spent; their
    errors then say what they are worth. How many draws it takes, and which path, is found by draws
    that do not count: draws that miss what weighs most give a low estimate and a small error.

    Parameters
    ----------
    energy : JointEnergy
    members : Tensor of shape (m, k + d)
    n_apart : int
        The last ``n_apart`` members started elsewhere than the others: each part also gives an
        estimate of its own.
    data : Tensor of shape (n, k + d), optional
        Where the data are, in the pool's coordinates: the draws are widened to cover them too, so
        that a well at some of the data is found whether or not the pool visits it.
    noise : Noise
    """
    log_tilt = energy.log_tilt
    fitted, judged = members[::2], members[1::2]
    most = max(_FEW_DRAWS, _DRAWS_A_MEMBER * len(members))
    proposal = Proposal.fitted(fitted, noise, full=True)
    # In turn: many rows that sit alone do not end the search among the members.
    for points in (members,) if data is None else (members, data):
        proposal = covering(proposal, log_tilt, points, n_draws=most, noise=noise)
    reverse = proposal.log_weights(judged, log_tilt)
    groups = _parts(len(judged), n_apart // 2)

    def forward(n: int) -> NDArray:
        return proposal.log_weights(proposal.draw(n, noise), log_tilt)

    draws = forward(_FEW_DRAWS)
    pilot = joined(draws, reverse)
    while pilot.std > _GOOD_STD and len(draws) < most:
        draws = np.concatenate([draws, forward(len(draws))])
        pilot = joined(draws, reverse)
    estimate = joined(forward(len(draws)), reverse, groups=groups)
    if pilot.is_sharp:
        return estimate
    path = adapted_path(log_tilt, members.shape[1], cess=_PATH_CESS, like=members, noise=noise)
    for _ in range(_MAX_REFINEMENTS):
        if _annealed(log_tilt, members, path, (), noise).is_sharp:
            break
        path = path.refined()
    walked = _annealed(log_tilt, members, path, _parts(len(members), n_apart), noise)
    # Walks start from the reference: what only the pool knows they may miss, and the draws not.
    error = _N_ERRORS * math.hypot(walked.std, estimate.forward_std)
    return estimate if estimate.forward > walked.value + error else walked


def _parts(n: int, n_apart: int) -> tuple[slice, ...]:
    return (slice(0, n - n_apart), slice(n - n_apart, n)) if 0 < n_apart < n else ()


def covering(
    proposal: Proposal, log_tilt: LogDensity, points: Tensor, *, n_draws: int, noise: Noise
) -> Proposal:
    """``proposal`` with a component wherever a point sits that its draws would all but never find.

    Such a point's weight is so far above the average that a region of its kind gets fewer than
    about five hundred of ``n_draws`` whatever its share of Z. Chains started from it show how far
    the region reaches, and a Gaussian fitted to them joins the mixture.
    """
    threshold = math.log(n_draws / 500)
    n_before: float = math.inf
    for _ in range(_MAX_ADDED):
        forward = proposal.log_weights(proposal.draw(_FEW_DRAWS, noise), log_tilt)
        weights = proposal.log_weights(points, log_tilt)
        alone = weights >= logsumexp(forward) - math.log(_FEW_DRAWS) + threshold
        # At the pace of the last component those to come would not reach them all: the weights of
        # such points are spread out, and no few regions hold what the draws miss.
        if not alone.any() or n_before - alone.sum() < n_before / _MAX_ADDED:
            break
        n_before = int(alone.sum())
        state = init(points[int(weights.argmax())].expand(_N_LOCAL, -1), log_tilt)
        step_size = StepSize(
            "auto", initial=0.01, target=ACCEPTANCE["mala"], rate=0.2, device=points.device
        )
        for _ in range(_N_LOCAL_STEPS):
            state, info = gaussian_step(state, log_tilt, step_size=step_size.value, noise=noise)
            step_size.update(info)
        proposal = proposal.with_component(state.position)
    return proposal


def _annealed(
    log_tilt: LogDensity, members: Tensor, path: Path, groups: Sequence[slice], noise: Noise
) -> LogPartition:
    fresh = noise.normal(members[:1].expand(_N_WALKS, members.shape[1]))
    forward, reverse = (
        walk(v, log_tilt, path, forward=way, n_moves=1, noise=noise).double().cpu().numpy()
        for v, way in ((fresh, True), (members, False))
    )
    found = joined(np.nan_to_num(forward, nan=-math.inf), reverse, groups=groups)
    return found._replace(n_temperatures=len(path.betas) - len(DIRECT.betas))


@torch.no_grad()
def excess_tilt(energy: JointEnergy, x: Tensor, posterior: Posterior, pool: Tensor) -> float:
    r"""How far E[−f] over data exceeds E[−f] over the pool, beyond what can be believed, in nats.

    The gain of the model over its reference is E_data[−f] − log Z on the data and E_p[−f] − log Z
    on its own samples, so log Z drops out of the difference. Data that lie far deeper in the tilt
    than the model's own samples are the mark of wells that the pool has not found. A rule of
    thumb, and no bound on the error of log Z: two standard deviations of f over the pool and two
    nats are let pass, and what exceeds these is what is believed to be missing.
    """
    if energy.tilt is None:
        return 0.0
    over_pool = energy.log_tilt(pool)
    over_data = (posterior.weights * -energy.tilt(*energy.complete(x, posterior.draws))).sum(1)
    margin = 2 + 2 * float(over_pool.std())
    return max(0.0, float(over_data.mean()) - float(over_pool.mean()) - margin)
