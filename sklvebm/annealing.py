r"""Annealed paths between N(v; 0, I) and the tilted law N(v; 0, I) exp(ℓ(v)) / Z, walked both ways.

At inverse temperature β the law is π_β ∝ N(v; 0, I) exp(βℓ(v)). A walk 0 = β_0 < … < β_K = 1 that
moves by kernels which leave π_β invariant gathers the log-weight

.. math:: W = \sum_{t=1}^{K} (β_t − β_{t−1})\, ℓ(v_{t−1}).

Forward, from v_0 ∼ N(0, I), E[e^W] = Z; backward, from v_{K−1} ∼ π_1, E[e^{−W}] = 1/Z. Both are
exact for any path and any number of moves, and the densities of W under the two are in the ratio
e^W/Z, so that Bennett's acceptance ratio joins them. The path (0, 1) takes no move at all.

References
----------
R. M. Neal (2001), "Annealed importance sampling", Statistics and Computing 11. G. E. Crooks (2000),
"Path-ensemble averages in systems driven far from equilibrium", Phys. Rev. E 61 (the ratio). Y.
Zhou, A. M. Johansen and J. A. D. Aston (2016), "Toward automatic model comparison: an adaptive
sequential Monte Carlo approach", J. Comput. Graph. Stat. 25 (temperatures by the conditional ESS).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .langevin import (
    ACCEPTANCE,
    Info,
    LogDensity,
    Noise,
    State,
    StepSize,
    gaussian_step,
    independence_step,
    init,
    tempered,
)

_N_PILOT = 512
_MAX_TEMPERATURES = 256


class Path(NamedTuple):
    """Inverse temperatures 0 = β_0 < … < β_K = 1, and the step sizes of the moves at β_1 … β_K."""

    betas: tuple[float, ...]
    step_sizes: tuple[float, ...]

    def refined(self) -> Path:
        """The same path with a temperature more in the middle of every gap."""
        betas, steps = [self.betas[0]], []
        for low, high, step in zip(self.betas[:-1], self.betas[1:], self.step_sizes, strict=True):
            betas += [0.5 * (low + high), high]
            steps += [step, step]
        return Path(tuple(betas), tuple(steps))


DIRECT = Path((0.0, 1.0), (math.nan,))


def adapted_path(
    log_tilt: LogDensity, width: int, *, cess: float, like: Tensor, noise: Noise
) -> Path:
    """Temperatures whose conditional effective sample size is ``cess`` a step, by a pilot run.

    Parameters
    ----------
    log_tilt : callable
        ℓ.
    width : int
        Dimension of v.
    cess : float
        Share in (0, 1) of the pilot's particles that a step of the path keeps effective.
    like : Tensor
        Its device and dtype are used.
    noise : Noise
    """
    state = init(noise.normal(like.new_empty(1, 1).expand(_N_PILOT, width)), log_tilt)
    betas, steps = [0.0], []
    step_size = StepSize(
        "auto", initial=0.3, target=ACCEPTANCE["mala"], rate=0.3, device=like.device
    )
    while betas[-1] < 1:
        rest = 1 - betas[-1]
        gap = rest if len(betas) >= _MAX_TEMPERATURES else _gap(state.log_density, cess, rest)
        betas.append(1.0 if gap >= rest else betas[-1] + gap)
        state = _resampled(state, gap, noise)
        for _ in range(5):
            state, info = _move(
                state, log_tilt, betas[-1], step_size=step_size.value, forward=True, noise=noise
            )
            step_size.update(info)
        steps.append(float(step_size.value))
    return Path(tuple(betas), tuple(steps))


def walk(
    position: Tensor, log_tilt: LogDensity, path: Path, *, forward: bool, n_moves: int, noise: Noise
) -> Tensor:
    """Log-weights W ``(n,)`` of walks along ``path`` that start at ``position (n, m)``.

    Forward, ``position`` must come from N(0, I) and E[e^W] = Z; backward, from the tilted law, and
    E[e^{−W}] = 1/Z.
    """
    betas = torch.tensor(path.betas, dtype=torch.float64)
    gaps = betas.diff().tolist()
    stops = list(range(len(gaps)))
    if not forward:
        stops.reverse()
    with torch.no_grad():
        state = State(position, log_tilt(position), torch.zeros_like(position))
    total = torch.zeros_like(state.log_density)
    for count, t in enumerate(stops):
        total = total + gaps[t] * state.log_density
        if count + 1 == len(stops):
            break
        # Forward, W's next term is taken at β_{t+1}; backward, at β_t.
        level = t + 1 if forward else t
        for _ in range(n_moves):
            state, _ = _move(
                state,
                log_tilt,
                path.betas[level],
                step_size=path.step_sizes[level - 1],
                forward=forward,
                noise=noise,
            )
    return total


def _move(
    state: State,
    log_tilt: LogDensity,
    beta: float,
    *,
    step_size: float | Tensor,
    forward: bool,
    noise: Noise,
) -> tuple[State, Info]:
    """A sweep of fresh draws and a Langevin step at ``beta``; backward in the opposite order.

    The order matters: the reversal of a composition of reversible kernels composes them backward.
    """
    warm = tempered(log_tilt, beta)

    def swept(position: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        fresh = noise.normal(position).expand_as(position)
        with torch.no_grad():
            return independence_step(position, value, fresh, warm(fresh), noise=noise)[:2]

    position, value = state.position, beta * state.log_density
    if forward:
        position, value = swept(position, value)
    local, info = gaussian_step(init(position, warm), warm, step_size=step_size, noise=noise)
    position, value = local.position, local.log_density
    if not forward:
        position, value = swept(position, value)
    return State(position, value / beta, state.gradient), info


def _gap(values: Tensor, cess: float, rest: float) -> float:
    """The largest δ ≤ ``rest`` whose weights e^{δℓ} keep a share ``cess`` of the particles."""

    def share(gap: float) -> float:
        log_weights = gap * values.double()
        log_weights = torch.where(torch.isfinite(log_weights), log_weights, -math.inf)
        twice = 2 * torch.logsumexp(log_weights, 0) - torch.logsumexp(2 * log_weights, 0)
        return float(torch.exp(twice)) / len(values)

    if share(rest) >= cess:
        return rest
    low, high = 0.0, rest
    for _ in range(40):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if share(middle) >= cess else (low, middle)
    return max(low, 1e-6 * rest)


def _resampled(state: State, gap: float, noise: Noise) -> State:
    """Systematic resampling of the particles by the weights e^{gap ℓ}."""
    log_weights = torch.nan_to_num(gap * state.log_density.double(), nan=-math.inf)
    cumulative = torch.softmax(log_weights, 0).cumsum(0)
    n = len(cumulative)
    offset = noise.uniform(cumulative[:1])
    points = (torch.arange(n, dtype=cumulative.dtype, device=cumulative.device) + offset) / n
    picks = torch.searchsorted(cumulative, points).clamp(max=n - 1)
    return State(*(part[picks] for part in state))
