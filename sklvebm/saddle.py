r"""Stochastic ascent on θ between the two flows: the only place that knows both.

One update moves the conditional particles of a batch and the joint pool, then follows

.. math:: g(θ) = −\,\mathrm{mean}_{i,p} ∇_θ E_θ(x_i, z_i^p) + \mathrm{mean}_j ∇_θ E_θ(ũ_j).

While f ≡ 0 and only the reference is learned the energy is normalised, the expected negative phase
is exactly zero, and it is skipped (particle maximum likelihood, Kuntz, Lim and Johansen 2023).
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor, nn

from .energies._joint import JointEnergy
from .particles import ConditionalFlow, JointPool
from .proposals import Proposal
from .rows import Rows

# Gradients of log-likelihoods a row beyond this norm are rare outliers, not directions.
_MAX_GRADIENT_NORM = 10.0
# γ of the average of the parameters: it remembers about the last quarter of a stage's updates.
_AVERAGING = 3.0
_MAX_RECOVERIES = 5
# Data this many nats below the negatives: the pool has lost the model. An equilibrated pool has a
# gap near zero, and one that lags does not catch up while the energy keeps falling at the data.
_MAX_GAP = 20.0
_MAX_PROPOSED = 4096


class DivergenceError(RuntimeError):
    """Training left the finite numbers and did not recover from the last good state."""


class Stage(NamedTuple):
    """What one part of training learns: ``name``, its ``parameters``, how long and how fast.

    ``rate`` multiplies the learning rate; ``uses_pool`` says whether there is a negative phase.
    """

    name: str
    parameters: list[nn.Parameter]
    n_updates: int
    rate: float
    uses_pool: bool


class Evaluation(NamedTuple):
    """Held-out mean log-likelihood of a state (nats a row), and the log Z used."""

    log_likelihood: float
    log_partition: float


@dataclass
class Schedule:
    """How training is paced; the estimator's parameters of the same names.

    The latents of ``n_batches`` batches move together, before an update is made from each; then
    ``negative_size`` members of the pool take Langevin steps at every update.
    """

    learning_rate: float
    weight_decay: float
    batch_size: int
    n_batches: int
    negative_size: int
    tol: float
    n_iter_no_change: int
    evaluate_every: int


@dataclass
class Outcome:
    """What a run of stages did; ``gaps`` are the energy gaps of the last stage with a pool.

    ``stopped`` says whether whoever is reported to asked to stop.
    """

    n_iter: int = 0
    converged: bool = True
    stopped: bool = False
    history: list[dict[str, float | int | str]] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)


class _Snapshot:
    """A copy of everything an update changes, to return to when one goes wrong."""

    def __init__(self, energy: nn.Module, flows: list[ConditionalFlow | JointPool]) -> None:
        self.state = copy.deepcopy(energy.state_dict())
        self.flows = [copy.deepcopy(_tensors_of(flow)) for flow in flows]

    def restore(self, energy: nn.Module, flows: list[ConditionalFlow | JointPool]) -> None:
        energy.load_state_dict(self.state)
        for flow, tensors in zip(flows, self.flows, strict=True):
            vars(flow).update(copy.deepcopy(tensors))


def _tensors_of(flow: ConditionalFlow | JointPool) -> dict[str, object]:
    return {name: value for name, value in vars(flow).items() if name != "noise"}


class _Keeper:
    """The best averaged state so far by held-out log-likelihood; the current one without it."""

    def __init__(self, average: JointEnergy, schedule: Schedule) -> None:
        self.average, self.schedule = average, schedule
        self.best = -math.inf
        self.best_state: dict[str, Tensor] | None = None
        self.n_stale = 0

    def note(self, value: float) -> None:
        """Compare the current average, which scores ``value``, with the best."""
        first = self.best_state is None
        improved = value > self.best + self.schedule.tol
        self.n_stale = 0 if improved or first else self.n_stale + 1
        if value > self.best or first:
            self.best, self.best_state = value, copy.deepcopy(self.average.state_dict())

    @property
    def is_stale(self) -> bool:
        """Whether improvements have been missing for long enough to stop."""
        return self.n_stale >= self.schedule.n_iter_no_change

    @property
    def is_settled(self) -> bool:
        """Whether the last evaluation was no improvement; true where nothing is evaluated."""
        return self.best_state is None or self.n_stale > 0

    @property
    def state(self) -> dict[str, Tensor]:
        """Parameters to keep."""
        return self.average.state_dict() if self.best_state is None else self.best_state


class Saddle:
    """The training loop.

    Parameters
    ----------
    energy : JointEnergy
        Trained in place.
    rows : Rows
        What is trained on.
    conditional : ConditionalFlow
    pool : JointPool
    schedule : Schedule
    generator : torch.Generator
    evaluate : callable or None
        ``evaluate(energy, uses_pool) -> Evaluation`` on held-out rows. None: no early stopping,
        and the last averaged state is kept.
    report : callable
        ``report(row, energy)`` receives every history row as it is made, and the averaged energy;
        returns whether to stop training.
    """

    def __init__(
        self,
        energy: JointEnergy,
        rows: Rows,
        conditional: ConditionalFlow,
        pool: JointPool,
        *,
        schedule: Schedule,
        generator: torch.Generator,
        evaluate: Callable[[JointEnergy, bool], Evaluation] | None,
        report: Callable[[dict, JointEnergy], bool],
    ) -> None:
        self.energy, self.rows = energy, rows
        self.conditional, self.pool = conditional, pool
        self.schedule, self.generator = schedule, generator
        self.evaluate, self.report = evaluate, report
        self.outcome = Outcome()
        self._data = self._visits()
        members = Rows(pool.position, pool.position.new_ones(len(pool.position)))
        self._members = members.batches(schedule.negative_size, generator)

    def _visits(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The completed rows and the latents of each update, ``(b, p or 1, d)``, ``(b, p, k)``."""
        n, size = len(self.rows), self.schedule.batch_size
        for picks in self.rows.batches(self.schedule.n_batches * size, self.generator):
            # A row of large weight is picked more than once, and moves once.
            moving = picks.unique()
            self.conditional.advance(moving, self.energy.posterior(self.rows.x[moving]))
            for batch in picks.split(size):
                # What is left over at the end, if less than half a batch, would be noise.
                if 2 * len(batch) >= min(size, n):
                    yield self._completed(batch)

    @torch.no_grad()
    def _completed(self, picks: Tensor | slice) -> tuple[Tensor, Tensor]:
        return self.energy.complete(self.rows.x[picks], self.conditional.draws(picks))

    def update(self, stage: Stage, optimizer: torch.optim.Optimizer) -> float:
        """Move both flows, then θ. Returns the energy gap, data minus negatives, in nats."""
        # The flows differentiate by positions alone.
        self.energy.requires_grad_(False)
        x, z = next(self._data)
        if stage.uses_pool:
            self.pool.advance(self.energy.log_tilt, next(self._members))
            negatives = self.energy.reference.split(self.pool.position)
        for parameter in stage.parameters:
            parameter.requires_grad_(True)
        loss = self._energy(stage, x, z).mean()
        if stage.uses_pool:
            loss = loss - self._energy(stage, *negatives).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(stage.parameters, _MAX_GRADIENT_NORM)
        if not (math.isfinite(float(loss.detach())) and math.isfinite(float(norm))):
            return math.nan
        optimizer.step()
        return float(loss.detach())

    @torch.no_grad()
    def _propose_from_data(self) -> None:
        """Let the pool jump to where the data are, in the coordinates that it moves in.

        Fresh reference draws alone never fall into the wells that the tilt digs at the data of many
        dimensions, however much mass these have.
        """
        x, z = (part[:, 0] for part in self._completed(slice(_MAX_PROPOSED)))
        v = torch.cat([z, self.energy.reference.to_noise(x, z)[0]], -1)
        self.pool.proposal = Proposal.fitted(v, self.pool.noise)

    def _energy(self, stage: Stage, x: Tensor, z: Tensor) -> Tensor:
        """The part of E that the stage's parameters enter."""
        if stage.name == "tilt" and self.energy.tilt is not None:
            return self.energy.tilt(x, z)
        return self.energy(x, z)

    def run(self, stage: Stage) -> None:
        """Train one stage and leave the energy at its best (or last) averaged state."""
        if stage.n_updates == 0 or not stage.parameters or self.outcome.stopped:
            return
        average, optimizer = copy.deepcopy(self.energy), self._optimizer(stage)
        keeper, good = _Keeper(average, self.schedule), self._snapshot()
        self._assess(stage, keeper, math.nan)
        self.outcome.gaps = []
        if stage.uses_pool:
            self._propose_from_data()
        step = last = recoveries = 0
        while step < stage.n_updates and not (keeper.is_stale or self.outcome.stopped):
            for group in optimizer.param_groups:
                group["lr"] = group["base_lr"] * _cosine(step / stage.n_updates)
            gap = self.update(stage, optimizer)
            if not math.isfinite(gap) or (stage.uses_pool and gap < -_MAX_GAP):
                recoveries += 1
                self._recover(stage, good, optimizer, recoveries, step, gap)
                average.load_state_dict(self.energy.state_dict())
                continue
            step += 1
            self.outcome.n_iter += 1
            if stage.uses_pool:
                self.outcome.gaps.append(gap)
            _average(average, self.energy, step)
            if step - last == self.schedule.evaluate_every or step == stage.n_updates:
                last = step
                self._assess(stage, keeper, gap if stage.uses_pool else math.nan)
                if not stage.uses_pool or gap > -_MAX_GAP / 4:
                    good = self._snapshot()
                if stage.uses_pool:
                    self._propose_from_data()
        self.energy.load_state_dict(keeper.state)
        self.outcome.converged &= keeper.is_settled and not self.outcome.stopped

    def _assess(self, stage: Stage, keeper: _Keeper, gap: float) -> None:
        """Evaluate the average, where there are held-out rows, and enter it into the history."""
        evaluation = None
        if self.evaluate is not None:
            evaluation = self.evaluate(keeper.average, stage.uses_pool)
            keeper.note(evaluation.log_likelihood)
        self._record(stage, gap, evaluation, keeper.average)

    def _optimizer(self, stage: Stage) -> torch.optim.Optimizer:
        matrices = {id(p) for p in self.energy.decayed_parameters()}
        decayed = [p for p in stage.parameters if id(p) in matrices]
        free = [p for p in stage.parameters if id(p) not in matrices]
        lr = stage.rate * self.schedule.learning_rate
        groups = [
            {"params": decayed, "weight_decay": self.schedule.weight_decay, "base_lr": lr},
            {"params": free, "weight_decay": 0.0, "base_lr": lr},
        ]
        return torch.optim.AdamW([g for g in groups if g["params"]], lr=lr, fused=True)

    def _snapshot(self) -> _Snapshot:
        return _Snapshot(self.energy, [self.conditional, self.pool])

    def _recover(self, stage, good, optimizer, recoveries, step, gap) -> None:
        """Return to the last good state with a third of the learning rate, or give up."""
        lr = optimizer.param_groups[0]["base_lr"]
        if recoveries > _MAX_RECOVERIES:
            raise DivergenceError(
                f"training diverged in the {stage.name} stage at update {step}: the energy gap was "
                f"{gap}, after {_MAX_RECOVERIES} returns to the last good state, the last at "
                f"a learning rate of {lr:.2g}. Try a smaller learning_rate or step_size, "
                "dynamics='mala', or data without extreme values."
            )
        good.restore(self.energy, [self.conditional, self.pool])
        optimizer.state.clear()
        for group in optimizer.param_groups:
            group["base_lr"] /= 3
        warnings.warn(
            f"the {stage.name} stage diverged at update {step} (energy gap {gap:.3g} nats); it "
            f"continues from the last good state at a learning rate of {lr / 3:.2g}.",
            ConvergenceWarning,
            stacklevel=2,
        )

    def _record(
        self, stage: Stage, gap: float, evaluation: Evaluation | None, average: JointEnergy
    ) -> None:
        row: dict[str, float | int | str] = {
            "stage": stage.name,
            "n_iter": self.outcome.n_iter,
            "energy_gap": gap,
            "acceptance_conditional": self.conditional.acceptance,
            "acceptance_joint": self.pool.acceptance,
            "acceptance_sweep": self.pool.sweep_acceptance,
        }
        if evaluation is not None:
            row["log_likelihood"] = evaluation.log_likelihood
            row["log_partition"] = evaluation.log_partition
        self.outcome.history.append(row)
        self.outcome.stopped |= bool(self.report(row, average))


def _cosine(fraction: float) -> float:
    """From one to zero."""
    return 0.5 * (1 + math.cos(math.pi * fraction))


@torch.no_grad()
def _average(average: nn.Module, current: nn.Module, step: int) -> None:
    """Polynomial-decay average of the parameters (Shamir and Zhang 2013, ICML 28(1)).

    Its memory grows with the number of updates, so that it suits stages of any length.
    """
    weight = (_AVERAGING + 1) / (_AVERAGING + step)
    torch._foreach_lerp_(list(average.parameters()), list(current.parameters()), weight)
