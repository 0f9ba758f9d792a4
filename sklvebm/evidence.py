r"""A row's posterior p(z | x) and its evidence ∫ exp(−E(x, z)) dz, by importance sampling.

Every row gets the effort that it needs: a mixture of Student-t laws about the peaks of its
posterior proposes, and where the weights stay uneven more draws follow, then an annealed path from
the proposal to the posterior. What is done for a row depends on that row alone.

How much is done is decided by pilot draws that do not count: an answer kept because its own draws
look good would be high on average. So the evidence is unbiased whatever the effort, and its
logarithm is low in expectation (Jensen), by about half its squared standard error; so is a row
whose proposal missed a mode. These errors lower the score, never raise it on average. Where only
expectations are asked for, a pilot's draws may count too (:func:`pooled`).

References
----------
O. Cappé, R. Douc, A. Guillin, J.-M. Marin and C. P. Robert (2008), "Adaptive importance sampling in
general mixture classes", Statistics and Computing 18. J.-M. Cornuet, J.-M. Marin, A. Mira and
C. P. Robert (2012), "Adaptive multiple importance sampling", Scandinavian Journal of Statistics 39.
R. M. Neal (2001), "Annealed importance sampling", Statistics and Computing 11.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

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
    init,
    langevin_step,
    values,
)
from .mixtures import Guess, StudentMixture

# Draws of the round that a proposal is fitted by, and of the round that counts, for an evidence;
# the same for rows that want more.
_PILOT, SIZE, _MORE_PILOT, _MORE = 64, 256, 256, 1024
# Standard errors of a pilot, in nats, beyond which a row gets more draws, and the annealed path.
_WANTS_MORE, _WANTS_ANNEALING = 0.3, 0.8
_N_ANNEALED, _N_TEMPERATURES = 128, 32
# Rows at once, of all and of those that want more: what is worked on fits the processor's cache.
# A device is kept busy by more.
CHUNK, _FEW = 32, 4
_ON_DEVICE = 8


def at_once(n: int, device: torch.device) -> int:
    """How many to work on at once where the processor takes ``n``."""
    return n if device.type == "cpu" else _ON_DEVICE * n


class Posterior(NamedTuple):
    """What is known of p(z | x) for each of n rows.

    ``log_evidence (n,)`` is log ∫ exp(−E(x, z)) dz and ``std (n,)`` its standard error in nats;
    ``mean (n, k)`` is E[z | x]; ``draws (n, s, k)`` carry ``weights (n, s)``, one in total per row.
    """

    log_evidence: Tensor
    std: Tensor
    mean: Tensor
    draws: Tensor
    weights: Tensor

    def updated(self, rows: Tensor, other: Posterior) -> Posterior:
        """With the answers that ``other`` begins with for the indices ``rows``."""
        n = len(rows)
        return Posterior(
            *(mine.index_copy(0, rows, new[:n]) for mine, new in zip(self, other, strict=True))
        )

    def thinned(self, size: int) -> Posterior:
        """With ``size`` draws of equal weight a row, by systematic resampling."""
        weights = self.weights
        if weights.shape[1] == size:
            return self
        points = (torch.arange(size, dtype=weights.dtype, device=weights.device) + 0.5) / size
        points = points.expand(len(weights), size).contiguous()
        picks = torch.searchsorted(weights.cumsum(1), points).clamp(max=weights.shape[1] - 1)
        return self._replace(
            draws=self.draws.take_along_dim(picks[..., None], 1),
            weights=weights.new_full(picks.shape, 1 / size),
        )


class Mala:
    """MALA on a density a row, with a step size for each row.

    Parameters
    ----------
    log_density : callable
        Of positions ``(n, p, k)``.
    preconditioner : Preconditioner
    n_rows : int
    initial_step_size : float
    noise : Noise
    """

    def __init__(
        self,
        log_density: LogDensity,
        *,
        preconditioner: Preconditioner,
        n_rows: int,
        initial_step_size: float,
        noise: Noise,
    ) -> None:
        self.log_density, self.preconditioner, self.noise = log_density, preconditioner, noise
        initial = preconditioner.factor.new_full((n_rows,), initial_step_size)
        self.step_size = StepSize("auto", initial=initial, target=ACCEPTANCE["mala"], rate=0.3)

    def adapt(self, start: Tensor, n_steps: int) -> Tensor:
        """Where chains from ``start (n, p, k)`` are after steps that set each row's step size.

        What follows from where a chain went says something of where it is: these chains are near
        the posterior and no draws from it, the less so the fewer a row has.
        """
        state = init(start, self.log_density)
        for _ in range(n_steps):
            state, info = self._stepped(state)
            self.step_size.update(info)
        return state.position

    def walk(self, start: Tensor, n_steps: int, n_keep: int) -> Tensor:
        """Positions after the last ``n_keep`` steps from ``start``, ``(n, n_keep · p, k)``.

        The steps stay as long as they are, which leaves the posterior what it is; the last p
        positions are where the chains stand.
        """
        state, kept = init(start, self.log_density), []
        for i in range(n_steps):
            state, _ = self._stepped(state)
            if i >= n_steps - n_keep:
                kept.append(state.position)
        return torch.cat(kept, 1)

    def _stepped(self, state: State) -> tuple[State, Info]:
        return langevin_step(
            state,
            self.log_density,
            step_size=self.step_size.value[:, None],
            noise=self.noise,
            metropolis=True,
            preconditioner=self.preconditioner,
        )


def _weighted(log_weights: Tensor, draws: Tensor) -> Posterior:
    """The answers that log-weights ``(n, s)`` of ``draws (n, s, k)`` give."""
    # A draw that underflows gets the least finite number, not −∞: a row so far out that all of
    # its draws do keeps equal weights, and scores as low as a float can.
    least = torch.finfo(log_weights.dtype).min
    log_weights = torch.nan_to_num(log_weights, nan=least, neginf=least)
    weights = torch.softmax(log_weights, 1)
    n = weights.shape[1]
    variance = (weights.square().sum(1) - 1 / n).clamp(min=0)
    log_evidence = torch.logsumexp(log_weights, 1) - math.log(n)
    mean = (weights[..., None] * draws).sum(1)
    return Posterior(log_evidence, variance.sqrt(), mean, draws, weights)


def importance(
    log_density: LogDensity,
    guess: Guess,
    *,
    spread: Tensor,
    sizes: tuple[int, ...],
    noise: Noise,
    n_draws: int | None = None,
    n_heavy: int | None = None,
) -> Posterior:
    """Adaptive importance sampling of each row from a mixture of Student-t laws.

    Parameters
    ----------
    log_density : callable
        log p(x, z) for ``z (n, s, k)``.
    guess : Guess
        Components of each row's posterior.
    spread : Tensor of shape (k, k) or (n, k, k)
        A typical posterior covariance.
    sizes : tuple of int
        Draws of each round; a round's proposal is fitted to the round before, the last one counts.
    noise : Noise
    n_draws : int, optional
        Draws that the answer keeps; all of the last round by default.
    n_heavy : int, optional
        Leading coordinates whose proposals have heavy tails; all by default.
    """
    for size in sizes[:-1]:
        _, guess = Round.of(log_density, guess, spread, size, noise, n_heavy).fitted()
    last = Round.of(log_density, guess, spread, sizes[-1], noise, n_heavy)
    return pooled(last).thinned(n_draws or sizes[-1])


class Round(NamedTuple):
    """Draws of each row's proposal, ``(n, s, k)``, and log p(x, z) there, ``(n, s)``."""

    proposal: StudentMixture
    draws: Tensor
    log_density: Tensor

    @classmethod
    @torch.no_grad()
    def of(
        cls,
        log_density: LogDensity,
        guess: Guess,
        spread: Tensor,
        size: int,
        noise: Noise,
        n_heavy: int | None = None,
    ) -> Round:
        """``size`` draws about ``guess``; the parameters are those of :func:`importance`."""
        proposal = StudentMixture(guess, spread, n_heavy)
        draws = proposal.sample(size, noise)
        return cls(proposal, draws, values(log_density, draws))

    def fitted(self) -> tuple[Tensor, Guess]:
        """Standard errors ``(n,)`` that these draws have, and a guess improved by them."""
        pilot = pooled(self)
        return pilot.std, self.proposal.refitted(pilot.draws, pilot.weights)


@torch.no_grad()
def pooled(*rounds: Round) -> Posterior:
    """The answers of all draws, weighted against the mixture of the laws that they came from.

    A law that was fitted to the draws of another round depends on them: of several rounds the
    expectations are consistent, and the evidence is not unbiased (Cornuet et al. 2012).
    """
    draws = torch.cat([part.draws for part in rounds], 1)
    shares = [part.draws.shape[1] / draws.shape[1] for part in rounds]
    laws = [
        part.proposal.log_prob(draws) + math.log(share)
        for part, share in zip(rounds, shares, strict=True)
    ]
    log_law = laws[0] if len(laws) == 1 else torch.logsumexp(torch.stack(laws), 0)
    return _weighted(torch.cat([part.log_density for part in rounds], 1) - log_law, draws)


def annealed(
    log_density: LogDensity,
    guess: Guess,
    *,
    spread: Tensor,
    noise: Noise,
    n_draws: int,
    n_heavy: int | None = None,
) -> Posterior:
    """Annealed importance sampling of each row, from its proposal q along q^{1−β} p^β.

    A first walk with few particles sets the step sizes, one per row and temperature; the walk that
    counts keeps them fixed.
    """
    proposal = StudentMixture(guess, spread, n_heavy)
    shape = proposal.preconditioner
    betas = (torch.arange(_N_TEMPERATURES + 1, dtype=torch.float64) / _N_TEMPERATURES).square()
    adapting = StepSize(
        "auto",
        initial=spread.new_full((len(guess.mean),), 0.3),
        target=ACCEPTANCE["mala"],
        rate=0.5,
    )
    steps: list[Tensor] = []
    for counts in (False, True):
        z = proposal.sample(_N_ANNEALED if counts else 16, noise)
        state = init(z, lambda z: log_density(z) - proposal.log_prob(z))
        log_weights = torch.zeros_like(state.log_density)
        for t, gap in enumerate(betas.diff().tolist()):
            log_weights = log_weights + gap * state.log_density
            beta = float(betas[t + 1])
            step_size = steps[t] if counts else adapting.value
            state, info = _tempered_step(
                state, log_density, proposal, beta, step_size, shape, noise
            )
            if not counts:
                adapting.update(info)
                steps.append(adapting.value)
    return _weighted(log_weights, state.position).thinned(n_draws)


def _tempered_step(state, log_density, proposal, beta, step_size, shape, noise):
    """A MALA step on q^{1−β} p^β; the state carries log p/q, what the weights need."""

    def tempered(z: Tensor) -> Tensor:
        log_q = proposal.log_prob(z)
        return log_q + beta * (log_density(z) - log_q)

    moved, info = langevin_step(
        init(state.position, tempered),
        tempered,
        step_size=step_size[:, None],
        noise=noise,
        metropolis=True,
        preconditioner=shape,
    )
    with torch.no_grad():
        ratio = log_density(moved.position) - proposal.log_prob(moved.position)
    return State(moved.position, ratio, moved.gradient), info


def row_posterior(
    density_of: Callable[[Tensor], LogDensity],
    x: Tensor,
    guess: Guess,
    *,
    spread: Tensor,
    noise: Callable[[int], Noise],
    n_draws: int = SIZE,
    n_heavy: int | None = None,
    pools: bool = False,
) -> Posterior:
    """The posterior of each row of ``x (n, d)``, with the effort that each one needs.

    Parameters
    ----------
    density_of : callable
        ``density_of(x)`` is log p(x, z) as a function of ``z (n, s, k)``.
    x : Tensor of shape (n, d)
        Taken ``CHUNK`` at a time, or more on a device.
    guess : Guess
        Components of each row's posterior.
    spread : Tensor of shape (k, k) or (n, k, k)
        A typical posterior covariance.
    noise : callable
        ``noise(i)`` is the noise of round i, anew at each call: a row's answer then does not
        depend on which other rows need that round.
    n_draws : int
        Draws per row that count and are kept; rows that want more have more that count.
    n_heavy : int, optional
        Leading coordinates whose proposals have heavy tails; all by default.
    pools : bool
        Whether the first pilot's draws are among the ``n_draws``: for expectations, see
        :func:`pooled`.
    """
    spread = spread.expand(len(x), *spread.shape[-2:])

    def a_round(i: int, rows: Tensor | slice, size: int) -> Round:
        density, some = density_of(x[rows]), guess.at(rows)
        return Round.of(density, some, spread[rows], size, noise(i), n_heavy)

    size = at_once(CHUNK, x.device)
    chunks = [slice(start, start + size) for start in range(0, len(x), size)]
    pilots = [a_round(1, few, _PILOT) for few in chunks]
    errors, guesses = zip(*(pilot.fitted() for pilot in pilots), strict=True)
    error, guess = torch.cat(errors), Guess(*map(torch.cat, zip(*guesses, strict=True)))
    answers = [
        pooled(pilot, a_round(2, few, n_draws - _PILOT))
        if pools
        else pooled(a_round(2, few, n_draws))
        for few, pilot in zip(chunks, pilots, strict=True)
    ]
    found = Posterior(*map(torch.cat, zip(*answers, strict=True)))
    hard = torch.zeros_like(error, dtype=torch.bool)
    for rows, n in _few(error > _WANTS_MORE):
        still, improved = a_round(3, rows, _MORE_PILOT).fitted()
        guess, hard[rows] = guess.updated(rows, improved), still > _WANTS_ANNEALING
        more = pooled(a_round(4, rows, _MORE)).thinned(n_draws)
        found = found.updated(rows[:n], more)
    for rows, n in _few(hard):
        walked = annealed(
            density_of(x[rows]),
            guess.at(rows),
            spread=spread[rows],
            noise=noise(5),
            n_draws=n_draws,
            n_heavy=n_heavy,
        )
        found = found.updated(rows[:n], walked)
    return found


def _few(mask: Tensor) -> Iterator[tuple[Tensor, int]]:
    """Indices of the rows of ``mask`` and their number, a few at a time.

    These rounds take much memory a row. The indices are filled up to the same number each time, for
    the same arithmetic whichever other rows need the round.
    """
    size = at_once(_FEW, mask.device)
    for rows in torch.nonzero(mask)[:, 0].split(size):
        if len(rows):
            yield filled(rows, size), len(rows)


def filled(rows: Tensor, size: int) -> Tensor:
    """``rows (n, ...)`` with the first one repeated at the end, ``(size, ...)``."""
    return torch.cat([rows, rows[:1].expand(size - len(rows), *rows.shape[1:])])
