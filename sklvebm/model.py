"""A trained model in standardised units, and what it answers.

The estimator above speaks numpy and the user's units; everything here and below speaks tensors.
Every answer about a row uses noise that all rows share, drawn anew from one seed at each call, so
that a row's answer does not depend on its batch, order or neighbours.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from numpy.typing import NDArray
from torch import Tensor

from ._arrays import generator_from_seed, load_arrays, state_to_arrays, to_numpy
from ._threads import in_order
from .axes import Axes
from .completion import apart, by_completeness, linear_guess
from .decoding import Back, conditional_mean
from .energies import EnergySpec
from .energies._joint import JointEnergy
from .evidence import CHUNK, SIZE, Mala, Posterior, at_once, filled, row_posterior
from .langevin import Noise, Preconditioner, regularised
from .laplace import laplace, starts
from .mixtures import Guess
from .particles import JointPool
from .partition import LogPartition
from .quasirandom import SharedRows
from .reconstruction import Remainder, affordable, fit_remainder

# Rows whose posteriors are found at once: bounds memory. They are filled up to this number, or to a
# multiple of CHUNK: single precision rounds alike only in arrays of the same shape, and an answer
# must not depend on its neighbours to the last bit. Several times as many on a device.
_MANY, _MANY_OF_WIDE, _WIDE = 256, 16, 64
# Steps of a climb at most, and the distance to a peak, in standard deviations, at which it ends.
_N_CLIMB, _NEAR = 20, 0.01
# Draws that a posterior mean is taken of, those of the pilot among them: it needs fewer than an
# evidence does.
_N_MEAN = 160
# Starts where posteriors have several peaks; draws of the prior among which they are chosen.
MANY_STARTS, _N_CANDIDATES = 4, 64
_N_CHAINS, _N_BURN, _N_KEEP, _N_MOVES = 8, 20, 20, 20
# Moves of a draw of the pool, and draws that move at once: what is worked on fits the cache.
_MIN_MOVES, _MAX_MOVES, _MOVED = 5, 25, 1024
# Probability that the sweeps of a draw's moves may leave it where it was.
_STAYS = 0.01
# A prime: the seeds of a row's rounds are this far apart.
_STREAM = 15485863
# Draws of the model that its reconstructions are learned from at most, where it has no rows.
_MOST_DRAWN = 2048


class Evidence(NamedTuple):
    """log ∫ exp(−E(x, z)) dz of n rows, ``value (n,)``, in nats.

    ``std (n,)`` is each row's standard error, ``mean_std`` that of their mean. The rows share their
    draws, so their errors are correlated: to first order the error of a row is the mean over the
    draws of its weights less one, and that of the mean is taken draw by draw.
    """

    value: Tensor
    std: Tensor
    mean_std: float


class Moves(NamedTuple):
    """How draws from the pool are moved: fixed by the fit, since moves that follow from where a
    chain went would not leave its law alone.

    ``acceptance`` is that of sweeps from the reference.
    """

    step_size: float = 0.1
    acceptance: float = 1.0

    @property
    def number(self) -> int:
        """As many as part two copies of a member.

        A copy stays where it is by sweeps alone with probability (1 − acceptance)^n.
        """
        stays = math.log(max(1 - self.acceptance, 1e-9))
        n = min(max(math.log(_STAYS) / min(stays, -1e-9), _MIN_MOVES), _MAX_MOVES)
        return math.ceil(n)


@dataclass
class Model:
    """A joint energy and what is needed to answer from it.

    Parameters
    ----------
    spec : EnergySpec
        What ``energy`` was built from.
    energy : JointEnergy
    start : Tensor of shape (d + 1, k)
        Linear guess of E[z | x], where the chains of a row start.
    covariance : Tensor of shape (k, k)
        Pooled posterior covariance of a row, which shapes their steps.
    pool : Tensor of shape (m, k + d)
        Joint negatives in equilibrium, in the reference's coordinates.
    log_partition : LogPartition
    axes : Axes
        Coordinates that latents are told in.
    seed : int
        Of every deterministic answer.
    n_starts : int
        Points from which the peaks of a row's posterior are sought.
    moves : Moves
    rows : Tensor of shape (m, d), optional
        Rows that were trained on, which miss nothing; None where they were too few to learn from,
        or the energy is Gaussian.
    """

    spec: EnergySpec
    energy: JointEnergy
    start: Tensor
    covariance: Tensor
    pool: Tensor
    log_partition: LogPartition
    axes: Axes
    seed: int
    n_starts: int = 1
    moves: Moves = field(default_factory=Moves)
    rows: Tensor | None = None
    _casts: dict[torch.dtype, Model] = field(default_factory=dict, repr=False)
    _remainder: Remainder | None = field(default=None, repr=False)

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return self.pool.device

    def cast(self, dtype: torch.dtype) -> Model:
        """The same model with its arithmetic in ``dtype``; kept for the next call."""
        if self.pool.dtype == dtype:
            return self
        if dtype not in self._casts:
            self._casts[dtype] = Model(
                self.spec,
                copy.deepcopy(self.energy).to(dtype),
                self.start.to(dtype),
                self.covariance.to(dtype),
                self.pool.to(dtype),
                self.log_partition,
                self.axes,
                self.seed,
                self.n_starts,
                self.moves,
            )
        return self._casts[dtype]

    def guess(self, x: Tensor) -> Tensor:
        """Linear guess of E[z | x], ``(n, k)``, within ten prior standard deviations."""
        # A row beyond single precision has no guess.
        return torch.nan_to_num(x @ self.start[:-1] + self.start[-1]).clamp(-10.0, 10.0)

    def _guess(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Where the chains of each row start, ``(n, m)``, and the covariance of their steps.

        Of complete rows: the latents, m = k, and one ``(k, k)`` for all. Of rows that miss
        entries: m = k + d, and ``(n, m, m)``.
        """
        if not bool(torch.isnan(x).any()):
            return self.guess(x), self.covariance
        with torch.no_grad():
            joint = torch.cat(self.energy.reference.split(self.pool)[::-1], 1)
        return linear_guess(x, joint.mean(0), torch.cov(joint.T), self.covariance)

    def explore(self, x: Tensor, *, noise: Noise, n_keep: int = _N_KEEP) -> Tensor:
        """Particles ``(n, p, m)`` of the posterior of each row of ``x (n, d)``, by MALA.

        The coordinates are those that ``energy.posterior`` reads; the rows are all complete, or
        all of them miss entries.
        """
        centre, covariance = self._guess(x)
        chains = self._chains(x, covariance, noise)
        centre = centre[:, None].expand(-1, _N_CHAINS, -1)
        start = centre + noise.normal(centre) @ chains.preconditioner.factor.transpose(-1, -2)
        return chains.walk(chains.adapt(start, _N_BURN), n_keep, n_keep)

    def _chains(self, x: Tensor, covariance: Tensor, noise: Noise) -> Mala:
        return Mala(
            self.energy.posterior(x),
            preconditioner=Preconditioner.from_covariance(regularised(covariance)),
            n_rows=len(x),
            initial_step_size=0.3,
            noise=noise,
        )

    def posterior(self, x: Tensor, *, for_mean: bool = False) -> Iterator[Posterior]:
        """Posteriors of the rows of ``x (n, d)``, a number of rows at a time; deterministic.

        The rows are all complete, or all of them miss entries. ``for_mean`` spares draws where no
        evidence is asked for.
        """

        width = self.energy.reference.n_components
        if bool(torch.isnan(x).any()):
            width += x.shape[1]
        size = at_once(_MANY if width <= _WIDE else _MANY_OF_WIDE, self.device)

        def answer(rows: Tensor) -> Posterior:
            return self._posterior(filled(rows, size), len(rows), width, for_mean)

        few = x.split(size)
        return in_order(answer, few) if self.device.type == "cpu" else map(answer, few)

    def _posterior(self, x: Tensor, n: int, width: int, for_mean: bool) -> Posterior:
        """Of the first ``n`` rows of ``x``, in ``width`` coordinates."""

        def noise(i: int) -> Noise:
            # Streams of their own, so that no round's proposals depend on the next one's draws.
            return SharedRows((self.seed + i * _STREAM) % 2**31, self.device)

        k = self.energy.reference.n_components
        centre, spread = self._guess(x)
        guess = self._peaks(x, centre, spread, noise(0))
        size = at_once(CHUNK, self.device)
        used = slice(-(-n // size) * size)
        found = row_posterior(
            self.energy.posterior,
            x[used],
            guess.at(used),
            spread=spread.expand(len(x), width, width)[used],
            noise=noise,
            n_draws=_N_MEAN if for_mean else SIZE,
            n_heavy=k if width > k else None,
            pools=for_mean,
        )
        return Posterior(*(part[:n] for part in found))

    def _peaks(self, x: Tensor, centre: Tensor, spread: Tensor, noise: Noise) -> Guess:
        density = self.energy.posterior(x)
        like = centre.new_empty(1, 1, 1).expand(1, _N_CANDIDATES, centre.shape[1])
        candidates = noise.normal(like)[0]
        # What one feature says of another often has several peaks.
        n_starts = self.n_starts if centre.shape[1] == self.start.shape[1] else MANY_STARTS
        begun = starts(centre, spread, candidates, density, n_starts)
        return laplace(begun, spread, density, n_steps=_N_CLIMB, tol=_NEAR)

    @by_completeness
    def posterior_mean(self, x: Tensor) -> Tensor:
        """E[z | x], ``(n, k)``: in closed form where the energy has one."""
        if self.energy.is_gaussian:
            return self.energy.reference.linear_posterior(x)[0]
        k = self.energy.reference.n_components
        return torch.cat([part.mean[:, :k] for part in self.posterior(x, for_mean=True)])

    @by_completeness
    def completed_mean(self, x: Tensor, back: Back | None = None) -> Tensor:
        """``back(x) (n, d)`` with E[back(x_m) | x_o] for what is missing."""
        seen = x.clone() if back is None else back(x)
        if not bool(torch.isnan(x).any()):
            return seen
        if self.energy.is_gaussian and back is None:
            return torch.where(
                torch.isnan(x), self.energy.reference.mean(self.posterior_mean(x)), x
            )
        means, start = [], 0
        for posterior in self.posterior(x):
            size = at_once(CHUNK, self.device)
            for draws, weights in zip(
                posterior.draws.split(size), posterior.weights.split(size), strict=True
            ):
                with torch.no_grad():
                    completed, _ = self.energy.complete(x[start : start + len(draws)], draws)
                if back is not None:
                    completed = back(completed)
                means.append((weights[..., None] * completed).sum(1))
                start += len(draws)
        return torch.where(torch.isnan(x), torch.cat(means), seen)

    def log_evidence(self, x: Tensor) -> Evidence:
        """−F(x) = log ∫ exp(−E(x, z)) dz of each row, and its errors.

        Of a row that misses entries, the integral is over these too.
        """
        parts = [(rows, self._log_evidence(x[rows])) for rows in apart(x)]
        value, std = x.new_empty(len(x)), x.new_empty(len(x))
        for rows, part in parts:
            value[rows], std[rows] = part.value, part.std
        squares = [(len(rows) / len(x) * part.mean_std) ** 2 for rows, part in parts]
        return Evidence(value, std, sum(squares) ** 0.5)

    def _log_evidence(self, x: Tensor) -> Evidence:
        if self.energy.is_gaussian:
            exact = self.energy.reference.linear_log_prob(x)
            return Evidence(exact, torch.zeros_like(exact), 0.0)
        values, errors, weights, alone = [], [], [], 0.0
        for posterior in self.posterior(x):
            values.append(posterior.log_evidence)
            errors.append(posterior.std)
            weights.append(posterior.weights.double().sum(0))
            # Rows that took other draws have equal weights here: their errors count in full.
            alone += float(posterior.std[posterior.weights.std(1) == 0].sum())
        shared = torch.stack(weights).sum(0) * len(weights[0]) / len(x)
        mean_std = float(shared.std() / len(shared) ** 0.5) + alone / len(x)
        return Evidence(torch.cat(values), torch.cat(errors), mean_std)

    @by_completeness
    def sample_posterior(self, x: Tensor, n_samples: int, generator: torch.Generator) -> Tensor:
        """Draws of z given each row, ``(n_samples, n, k)``: resampled, then moved by MALA."""
        if self.energy.is_gaussian:
            return self._gaussian_draws(x, n_samples, Noise(generator))
        return self._draws(x, n_samples, Noise(generator))[
            ..., : self.energy.reference.n_components
        ]

    @by_completeness
    def sample_conditional(self, x: Tensor, n_samples: int, generator: torch.Generator) -> Tensor:
        """Draws of the whole row given what is seen of it, ``(n_samples, n, d)``."""
        noise = Noise(generator)
        if not bool(torch.isnan(x).any()):
            return x.expand(n_samples, *x.shape)
        if self.energy.is_gaussian:
            z = self._gaussian_draws(x, n_samples, noise)
            like = x.expand(n_samples, *x.shape)
            return torch.where(
                torch.isnan(x), self.energy.reference.from_noise(noise.normal(like), z), like
            )
        u = self._draws(x, n_samples, noise).transpose(0, 1)
        with torch.no_grad():
            return self.energy.complete(x, u)[0].transpose(0, 1)

    def _gaussian_draws(self, x: Tensor, n_samples: int, noise: Noise) -> Tensor:
        mean, covariance = self.energy.reference.linear_posterior(x)
        normal = noise.normal(mean.expand(n_samples, *mean.shape))
        factor = torch.linalg.cholesky(covariance)
        return mean + (factor @ normal[..., None])[..., 0]

    def _draws(self, x: Tensor, n_samples: int, noise: Noise) -> Tensor:
        """Draws ``(n_samples, n, m)`` of the coordinates that ``energy.posterior`` reads."""
        drawn, start = [], 0
        for posterior in self.posterior(x):
            rows = x[start : start + len(posterior.mean)]
            drawn.append(self._resample(rows, posterior, n_samples, noise))
            start += len(rows)
        return torch.cat(drawn, dim=1)

    def _resample(self, x: Tensor, posterior: Posterior, n: int, noise: Noise) -> Tensor:
        """Draws ``(n, rows, m)``: weighted draws picked at random, then moved apart by MALA.

        The steps are those that suit others: a draw that moved by what it met would no longer be
        one from the posterior.
        """
        picks = torch.multinomial(posterior.weights, _N_CHAINS + n, True, generator=noise.generator)
        u = posterior.draws.take_along_dim(picks[..., None], 1)
        chains = self._chains(x, self._guess(x)[1], noise)
        chains.adapt(u[:, :_N_CHAINS], _N_BURN)
        return chains.walk(u[:, _N_CHAINS:], _N_MOVES, 1).transpose(0, 1)

    def sample(self, n_samples: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Joint draws ``x (n, d)`` and ``z (n, k)``.

        Without a tilt they are exact. With one, members of the pool are picked at random and moved
        on, by independence sweeps from the reference and Metropolis-adjusted Langevin steps.
        """
        noise, width = Noise(generator), self.pool.shape[1]
        if self.energy.tilt is None:
            v = noise.normal(self.pool[:1].expand(n_samples, width))
        else:
            picks = torch.randint(
                len(self.pool), (n_samples,), generator=generator, device=self.device
            )
            size = at_once(_MOVED, self.device)
            v = torch.cat([self._moved(self.pool[few], noise) for few in picks.split(size)])
        with torch.no_grad():
            return self.energy.reference.split(v)

    def _moved(self, v: Tensor, noise: Noise) -> Tensor:
        """Members of the pool, moved on until copies of one have parted."""
        step_size, n_moves = self.moves.step_size, self.moves.number
        pool = JointPool(v, dynamics="mala", n_steps=1, step_size=step_size, noise=noise)
        pool.settle(self.energy.log_tilt, n_moves)
        return pool.position

    def reconstruction(self, t: Tensor, back: Back | None = None) -> Tensor:
        """E[back(x) | E[z | x] = t], ``(n, d)``, for ``t (n, k)``.

        See :mod:`sklvebm.reconstruction`. What is learned is kept: a model has one way ``back``.
        """
        if self.energy.is_gaussian and back is None:
            return self.cast(t.dtype).energy.reference.linear_reconstruction(t)
        if self._remainder is None:
            self._remainder = self._fit_remainder(back)
        decoded = self.decoded(t, back)
        return decoded + torch.as_tensor(self._remainder.predict(to_numpy(t))).to(decoded)

    def decoded(self, z: Tensor, back: Back | None = None) -> Tensor:
        """E[back(x) | z], ``(n, d)``, in the precision of ``z (n, k)``.

        See :mod:`sklvebm.decoding`.
        """
        energy = self.cast(z.dtype).energy
        return conditional_mean(energy, z, back, noise=lambda: SharedRows(self.seed, self.device))

    def _fit_remainder(self, back: Back | None) -> Remainder:
        x = self._drawn() if self.rows is None else self.rows
        t = self.posterior_mean(x)
        left = (x if back is None else back(x)) - self.decoded(t, back)
        parts = (to_numpy(part).astype(float) for part in (t, left))
        return fit_remainder(*parts, seed=self.seed % 2**31)

    def _drawn(self) -> Tensor:
        """Rows of the model's own."""
        n_rows = affordable(self.energy.reference.n_features, _MOST_DRAWN)
        return self.sample(n_rows, generator_from_seed(self.seed, self.device))[0]

    def arrays(self) -> list[NDArray]:
        """All its arrays, in an order that is always the same."""
        state = self.to_arrays()
        names = ("start", "covariance", "pool", "axes")
        return [*state["parameters"].values(), *(state[name] for name in names)]

    def to_arrays(self) -> dict[str, Any]:
        """Everything as plain numpy arrays and numbers, for pickles that outlive the device."""
        return {
            "spec": self.spec,
            "shape": (self.energy.reference.n_features, self.energy.reference.n_components),
            "parameters": state_to_arrays(self.energy),
            "start": to_numpy(self.start),
            "covariance": to_numpy(self.covariance),
            "pool": to_numpy(self.pool),
            "log_partition": tuple(self.log_partition),
            "axes": self.axes.matrix,
            "seed": self.seed,
            "n_starts": self.n_starts,
            "moves": tuple(self.moves),
            "rows": None if self.rows is None else to_numpy(self.rows),
        }

    @classmethod
    def from_arrays(cls, arrays: dict[str, Any], device: torch.device) -> Model:
        """Rebuild from :meth:`to_arrays` on ``device``."""
        generator = generator_from_seed(0, torch.device("cpu"))
        energy = arrays["spec"].build(*arrays["shape"], generator=generator)
        load_arrays(energy, arrays["parameters"])

        def tensor(name: str) -> Tensor:
            return torch.tensor(arrays[name], device=device)

        rows = None if arrays["rows"] is None else tensor("rows")

        return cls(
            arrays["spec"],
            # As training left it: in another mode torch takes other paths, which round otherwise.
            energy.to(device).eval().requires_grad_(False),
            tensor("start"),
            tensor("covariance"),
            tensor("pool"),
            LogPartition(*arrays["log_partition"]),
            Axes(arrays["axes"]),
            arrays["seed"],
            arrays["n_starts"],
            Moves(*arrays["moves"]),
            rows,
        )
