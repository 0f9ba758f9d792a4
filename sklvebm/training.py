"""From a standardised table to a trained model: the stages, the held-out likelihood, the finish."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ._arrays import (
    draw_seed,
    generator_from_seed,
    load_arrays,
    state_to_arrays,
    to_numpy,
    to_tensor,
)
from .diagnostics import gap_statistics
from .distributed import Group
from .energies import EnergySpec, LinearEnergy
from .energies._joint import JointEnergy
from .finishing import Guesses, finish
from .heldout import HeldOut, random_split
from .langevin import Noise, regularised
from .model import Model
from .particles import (
    ConditionalFlow,
    GaussianPosteriors,
    JointPool,
    LangevinParticles,
    PointEstimates,
)
from .ppca import PPCA, fit_ppca
from .rows import Rows
from .saddle import Evaluation, Keep, Outcome, Saddle, Schedule
from .smoothing import ParzenWindows
from .stage import Stage

# The tilt plays against the pool, which must keep up: it learns at a fifth of the rate, and where
# no independence sweep renews the pool, at a hundredth.
_TILT_RATE = {"mala": 1 / 5, "ula": 1 / 100}
_JOINT_RATE = 1 / 10
# Share of the reference's updates that learn A, when the rest of it is learned and held: learned
# along with it, A explains what could pass through the latents. It is soon learned; that which
# follows the latents takes longer.
_MIXING_SHARE, _SHARE_BY_LATENTS = 1 / 15, 1 / 4
# Share of the reference's updates in which the latents of each row are at their mode: twice as many
# are no better.
_START_SHARE = 1 / 15
# Updates in which the whole pool takes a Langevin step once. All of it is swept at every update:
# members that lag behind the tilt bias its gradient.
_POOL_VISITS = 2
# Evaluations in max_iter updates, and the fewest updates between two.
_N_EVALUATIONS, _MIN_BETWEEN = 20, 5
# Batches whose latents move together, since a few steps of many rows at once cost far less than a
# step of a few rows at each update. Between two visits of a row the energy moves on, the further
# the more rows there are, and latents that lag bias the gradient. The paper's algorithm moves the
# rows of an update alone.
_N_BATCHES = {"mala": 8, "ula": 1}
_POOL_STEPS = 1


@dataclass(frozen=True)
class Options:
    """The estimator's validated parameters that training reads, under the same names.

    ``n_steps_beside_pool`` is ``n_steps`` where a stage has a pool.
    """

    n_components: int
    inference: str
    dynamics: str
    max_iter: int
    batch_size: int
    n_particles: int
    n_steps: int
    n_steps_beside_pool: int
    pool_size: int
    step_size: float | str
    learning_rate: float
    weight_decay: float
    smoothing: float
    tol: float
    n_iter_no_change: int
    validation_fraction: float
    early_stopping: bool
    refit: bool


class Trained(NamedTuple):
    """What a model is made of beside its energy."""

    rows: Rows
    guesses: Guesses
    pool: JointPool


class Result(NamedTuple):
    """What a training run found: the model, what training did, diagnostics, final step sizes."""

    model: Model
    outcome: Outcome
    diagnostics: dict[str, float]
    step_sizes: dict[str, float]


class Trainer:
    """Owns what one training run needs, from the start at PPCA to the finished model.

    Parameters
    ----------
    X : ndarray of shape (n, d)
        Distinct rows, standardised; NaN where an entry is missing.
    weight : ndarray of shape (n,)
        How often each row counts.
    spec : EnergySpec
    options : Options
    random_state : RandomState or int
    device : torch.device
    start : Model, optional
        Continue from this model instead of PPCA.
    group : Group, optional
        The processes that train together, each of which is given the whole table.
    max_evaluations : int
        How often the held-out rows are asked in ``options.max_iter`` updates, and at the start of a
        stage.
    log_slope : ndarray of shape (n,), optional
        What log p of each row gains on the way back to standardised units, where ``X`` is mapped:
        held-out likelihoods are in these.
    searched : Outcome, optional
        Of a run that held rows out. This one goes on with its history, and ends every stage after
        as many updates as led to the state that was kept.
    """

    def __init__(
        self,
        X: NDArray,
        weight: NDArray,
        spec: EnergySpec,
        options: Options,
        *,
        random_state: int | np.random.RandomState | None,
        device: torch.device,
        start: Model | None = None,
        group: Group | None = None,
        max_evaluations: int = _N_EVALUATIONS,
        log_slope: NDArray | None = None,
        searched: Outcome | None = None,
    ) -> None:
        self.max_evaluations, self.searched = max_evaluations, searched
        # What the held-out likelihood gains on the way back to standardised units.
        self._gain_of_units = 0.0
        if start is not None and start.device != torch.empty(0, device=device).device:
            start = Model.from_arrays(start.to_arrays(), device)
        self.spec, self.options, self.start = spec, options, start
        self.device = device
        self.group = Group() if group is None else group
        # The same on all ranks until the rows are shared out; the noise is each rank's own.
        self.generator = generator_from_seed(draw_seed(random_state), device)
        self.rows, held_out = self._split(X, weight, log_slope)
        self._is_complete = not np.isnan(X).any()
        self.energy = self._initial_energy()
        if self.group.size > 1:
            # Another machine's linear algebra may have rounded the start otherwise.
            load_arrays(self.energy, self.group.from_first(lambda: state_to_arrays(self.energy)))
        self.noise = Noise(self.group.generator(self.generator))
        self.windows = self._windows()
        self.rows, self._row_share = self._share_out(self.rows)
        self.conditional = self._conditional_flow(at_modes=self._starts_at_modes)
        self.pool = self._pool()
        self._evaluation_seed = self._seed()
        self.held_out = None if held_out is None else self._followed(held_out)

    def _seed(self) -> int:
        return int(torch.randint(2**31, (1,), generator=self.generator, device=self.device).item())

    def _split(
        self, X: NDArray, weight: NDArray, log_slope: NDArray | None
    ) -> tuple[Rows, Rows | None]:
        """What is trained on, in random order, and what is held out."""
        order, held_out = random_split(weight, self.options.validation_fraction, self.generator)
        x, w = (to_tensor(part, self.device, torch.float32)[order] for part in (X, weight))
        asked = self.options.early_stopping and not self._closed_form()
        if not asked or not held_out.any():
            return Rows.weighted(x, w), None
        kept = ~held_out
        if log_slope is not None:
            judged = to_numpy(order[held_out])
            self._gain_of_units = float(np.average(log_slope[judged], weights=weight[judged]))
        return Rows.weighted(x[kept], w[kept]), Rows.weighted(x[held_out], w[held_out])

    def _followed(self, rows: Rows) -> HeldOut:
        return HeldOut(
            rows,
            self._first_guess(rows.x)[0],
            n_heavy=None if self._is_complete else self.options.n_components,
            seed=self._evaluation_seed,
            noise=self.noise,
        )

    def _share_out(self, rows: Rows) -> tuple[Rows, float]:
        """This rank's rows, and their share of the weight of all."""
        group = self.group
        if group.size == 1:
            return rows, 1.0
        if min(len(rows), self.options.pool_size) < group.size:
            raise ValueError(
                f"{len(rows)} distinct rows to train on and pool_size={self.options.pool_size} "
                f"cannot be shared by {group.size} processes; start fewer of them."
            )
        weight = group.shard(rows.weight)
        return Rows.weighted(group.shard(rows.x), weight), float(weight.sum() / rows.weight.sum())

    def _windows(self) -> ParzenWindows | None:
        """Kernels about this rank's rows, whose neighbours are among those of all ranks."""
        width = self.options.smoothing
        if width == 0:
            return None
        return ParzenWindows.of(self.rows, width).sharded(self.group.shard)

    def _closed_form(self) -> bool:
        """Whether PPCA's start is already the maximum-likelihood answer."""
        return (
            isinstance(self.spec, LinearEnergy)
            and self.start is None
            and self.spec.init == "ppca"
            and self.options.inference == "langevin"
            and self.options.dynamics == "mala"
            and self.options.smoothing == 0
        )

    def _initial_energy(self) -> JointEnergy:
        x = self.rows.x
        d, k = x.shape[1], self.options.n_components
        energy = self.spec.build(d, k, generator=generator_from_seed(self._seed(), _CPU))
        if self.start is not None:
            # Into one as it is built: what is held fixed of a user's module, or in evaluation mode,
            # stays so.
            load_arrays(energy, state_to_arrays(self.start.energy))
            return energy.to(self.device)
        ppca = fit_ppca(
            to_numpy(x),
            k,
            sample_weight=to_numpy(self.rows.weight),
            min_scale=float(np.exp(energy.reference.min_log_scale)),
        )
        if isinstance(self.spec, LinearEnergy) and self.spec.init == "random":
            ppca = self._random_start(d, k, ppca)
        energy.reference.set_ppca_(ppca)
        return energy.to(self.device)

    def _random_start(self, d: int, k: int, ppca: PPCA) -> PPCA:
        weight = torch.randn(d, k, generator=self.generator, device=self.device) / k**0.5
        return PPCA(to_numpy(weight), ppca.loc, 1.0)

    @property
    def _starts_at_modes(self) -> bool:
        """Whether there is a stage with latents at their modes before those that were asked for."""
        asked = self.options.inference != "map"
        return asked and self.start is None and self.energy.starts_at_modes

    def _flow_of(self, stage: Stage) -> ConditionalFlow:
        """What follows the latents in ``stage``: after the modes, what was asked for."""
        options = self.options
        begins = self._starts_at_modes and isinstance(self.conditional, PointEstimates)
        if begins and not stage.at_modes:
            self.conditional = self._conditional_flow(at_modes=False)
        n_steps = options.n_steps_beside_pool if stage.uses_pool else options.n_steps
        self.conditional.n_steps = n_steps
        return self.conditional

    def _conditional_flow(self, *, at_modes: bool) -> ConditionalFlow:
        """Latents of all rows at a first guess, and what moves them from there."""
        options = self.options
        mean, covariance = self._first_guess(self.rows.x)
        if at_modes or options.inference == "map":
            step_size = "auto" if at_modes else options.step_size
            return PointEstimates(mean, covariance, n_steps=options.n_steps, step_size=step_size)
        if options.inference == "variational":
            return GaussianPosteriors(
                mean,
                covariance,
                n_particles=options.n_particles,
                n_steps=options.n_steps,
                step_size=options.step_size,
                noise=self.noise,
            )
        factor = torch.linalg.cholesky(regularised(covariance))
        loc = mean[:, None].expand(-1, options.n_particles, -1)
        return LangevinParticles(
            loc + self.noise.normal(loc) @ factor.T,
            covariance,
            dynamics=options.dynamics,
            n_steps=options.n_steps,
            step_size=options.step_size,
            noise=self.noise,
        )

    @torch.no_grad()
    def _first_guess(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean ``(n, m)`` and covariance ``(m, m)`` of what is not seen of each row."""
        mean, covariance = self.energy.first_guess(x, complete=self._is_complete)
        if self.start is not None:
            k = self.options.n_components
            mean[:, :k] = self.start.guess(
                torch.where(torch.isnan(x), self.energy.reference.loc, x)
            )
            covariance[:k, :k] = self.start.covariance
        return mean, covariance

    def _pool(self) -> JointPool:
        options = self.options
        width = self.rows.x.shape[1] + options.n_components
        like = self.rows.x.new_empty(1, 1).expand(self.group.share(options.pool_size), width)
        return JointPool(
            self.noise.normal(like)
            if self.start is None
            else self.group.shard(self.start.pool).clone(),
            dynamics=options.dynamics,
            n_steps=options.n_steps if options.dynamics == "ula" else _POOL_STEPS,
            step_size=options.step_size,
            noise=self.noise,
        )

    def stages(self) -> list[Stage]:
        """What is trained, in which order, for how many updates."""
        if self.searched is None:
            return self._planned()
        kept = self.searched.kept
        return [stage._replace(stop=kept.get(stage.name, 0)) for stage in self._planned()]

    def _planned(self) -> list[Stage]:
        energy, total = self.energy, self.options.max_iter
        reference, mixing, tilt = (
            list(parameters)
            for parameters in (
                energy.reference_parameters(),
                energy.mixing_parameters(),
                energy.tilt_parameters(),
            )
        )
        if self._closed_form():
            return []
        if not reference:
            return [Stage("tilt", tilt, total, _TILT_RATE[self.options.dynamics], True)]
        if self.start is not None and tilt:
            return [Stage("joint", reference + mixing + tilt, total, _JOINT_RATE, True)]
        first = max(1, round(energy.reference_share * total)) if tilt else total
        # The shortest fits, too, learn all there is to learn.
        share = _MIXING_SHARE if energy.reference.shears is None else _SHARE_BY_LATENTS
        last = max(1, round(share * first)) if mixing and first > 1 else 0
        start = round(_START_SHARE * first) if self._starts_at_modes else 0
        stages = [
            Stage("start", reference, start, 1.0, False, at_modes=True),
            Stage("reference", reference, first - start - last, 1.0, False),
            Stage("mixing", mixing, last, 1.0, False),
            Stage("tilt", tilt, total - first, _TILT_RATE[self.options.dynamics], True),
        ]
        return [stage for stage in stages if stage.n_updates]

    @property
    def _evaluate_every(self) -> int:
        return max(_MIN_BETWEEN, self.options.max_iter // self.max_evaluations)

    @property
    def n_evaluations(self) -> int:
        """The most evaluations that there can be: at the start of a stage, and during it."""
        return sum(1 - (-stage.length // self._evaluate_every) for stage in self.stages())

    def run(
        self,
        report: Callable[[dict, Callable[[], Result]], bool],
        *,
        keep: Keep | None = None,
        saved: dict[str, Any] | None = None,
    ) -> Result:
        """Train all stages and finish the model.

        ``report(row, snapshot)`` receives every row of the history, and a way to the result of that
        moment; returns whether to stop training. ``keep(common, own)`` receives the state of
        training at every evaluation, in a part that all ranks share and one that is this rank's; a
        trainer of the same fit that is given both as ``saved`` goes on from there as if nothing had
        happened. Only rank 0 reports; all return the same.
        """
        return self.result(self.train(report, keep=keep, saved=saved))

    def result(self, outcome: Outcome) -> Result:
        """The model that training has led to, as :meth:`run` returns it."""
        model, diagnostics = self._finished()
        step_sizes = self.group.from_first(self._step_sizes)
        return _result(model, outcome, diagnostics, step_sizes)

    def train(
        self,
        report: Callable[[dict, Callable[[], Result]], bool],
        *,
        keep: Keep | None = None,
        saved: dict[str, Any] | None = None,
    ) -> Outcome:
        """Train all stages, and leave the energy as it is: see :meth:`run`."""
        options, group = self.options, self.group
        n_negatives = options.pool_size if self.start is None else len(self.start.pool)
        saddle = Saddle(
            self.energy,
            self.rows,
            self._flow_of,
            self.pool,
            schedule=Schedule(
                learning_rate=options.learning_rate,
                weight_decay=options.weight_decay,
                batch_size=max(1, group.share(options.batch_size)),
                n_batches=_N_BATCHES[options.dynamics],
                negative_size=max(1, len(self.pool.position) // _POOL_VISITS),
                tol=options.tol,
                n_iter_no_change=options.n_iter_no_change,
                evaluate_every=self._evaluate_every,
            ),
            generator=self.noise.generator,
            evaluate=None if self.held_out is None else self._evaluate,
            report=lambda row, energy: group.from_first(
                lambda: report(row, lambda: self._snapshot(energy, saddle.outcome))
            ),
            keep=keep and (lambda common, own: keep(common, own | self._held_out_state())),
            group=group,
            shares=(self._row_share, len(self.pool.position) / n_negatives),
            # Of the gaps those of this run count, if it has any.
            outcome=self.searched and replace(copy.deepcopy(self.searched), gaps=[]),
            windows=self.windows,
        )
        if saved is not None and self.held_out is not None:
            self.held_out.load_state_dict(saved["held_out"])
        saddle.train(self.stages(), saved)
        return saddle.outcome

    def _finished(self) -> tuple[Model, dict[str, float]]:
        """The model that rank 0 makes of what all ranks have."""
        group, seed = self.group, self._seed()
        if group.size == 1:
            return self._finish(self.energy, seed, self.noise, self._trained())
        trained = self._gathered()

        def make() -> tuple[dict[str, Any], dict[str, float]]:
            model, diagnostics = self._finish(self.energy, seed, self.noise, trained)
            # All but the specification, which every rank has, and which need not pickle.
            return model.to_arrays() | {"spec": None}, diagnostics

        arrays, diagnostics = group.from_first(make)
        return Model.from_arrays(arrays | {"spec": self.spec}, self.device), diagnostics

    def _trained(self) -> Trained:
        location, covariance = self.conditional.location, self.conditional.covariance
        return Trained(self.rows, Guesses(location, covariance), self.pool)

    def _gathered(self) -> Trained:
        gather, rows = self.group.gather, self.rows
        weight = rows.weight * (self._row_share / len(rows))
        pool = copy.copy(self.pool)
        pool.position = gather(pool.position)
        return Trained(
            Rows.weighted(gather(rows.x), gather(weight)),
            Guesses(gather(self.conditional.location), self.conditional.covariance),
            pool,
        )

    def _finish(
        self, energy: JointEnergy, seed: int, noise: Noise, trained: Trained
    ) -> tuple[Model, dict[str, float]]:
        rows, guesses, pool = trained
        judged = None if self.held_out is None else self.held_out.rows
        return finish(self.spec, energy, rows, judged, guesses, pool, seed=seed, noise=noise)

    def _snapshot(self, energy: JointEnergy, outcome: Outcome) -> Result:
        """The result of this moment; training goes on as if it had not been taken.

        It is asked for on rank 0 alone, and made from what that rank has.
        """
        noise = Noise(generator_from_seed(self._evaluation_seed, self.device))
        model, diagnostics = self._finish(
            copy.deepcopy(energy), self._evaluation_seed, noise, self._trained()
        )
        so_far = replace(copy.deepcopy(outcome), converged=False)
        return _result(model, so_far, diagnostics, self._step_sizes())

    def _step_sizes(self) -> dict[str, float]:
        flows = {"conditional": self.conditional, "joint": self.pool}
        return {name: float(flow.step_size.value) for name, flow in flows.items()}

    def _held_out_state(self) -> dict[str, Any]:
        return {} if self.held_out is None else {"held_out": self.held_out.state_dict()}

    def _evaluate(self, energy: JointEnergy, uses_pool: bool) -> Evaluation:
        """Mean log p of the held-out rows as rank 0 finds it, with the pool of all ranks."""
        held_out, pool = self.held_out, self.pool
        assert held_out is not None
        covariance = self.conditional.covariance
        members = self.group.gather(pool.position) if uses_pool else None
        found = self.group.from_first(lambda: held_out.evaluate(energy, covariance, members, pool))
        return found._replace(log_likelihood=found.log_likelihood + self._gain_of_units)


def _result(
    model: Model, outcome: Outcome, diagnostics: dict[str, float], step_sizes: dict[str, float]
) -> Result:
    gaps = gap_statistics(np.array(outcome.gaps)) if outcome.gaps else {}
    return Result(model, outcome, diagnostics | gaps, step_sizes)


_CPU = torch.device("cpu")
