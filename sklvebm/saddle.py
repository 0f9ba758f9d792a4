r"""Stochastic ascent on θ between the two flows: the only place that knows both.

One update moves the conditional particles of a batch and the joint pool, then follows

.. math:: g(θ) = −\,\mathrm{mean}_{i,p} ∇_θ E_θ(x_i, z_i^p) + \mathrm{mean}_j ∇_θ E_θ(ũ_j).

While f ≡ 0 and only the reference is learned the energy is normalised, the expected negative phase
is exactly zero, and it is skipped (particle maximum likelihood, Kuntz, Lim and Johansen 2023).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .distributed import Group
from .energies._joint import JointEnergy
from .particles import ConditionalFlow, JointPool
from .proposals import Proposal
from .recording import Recorded
from .rows import Rows
from .smoothing import ParzenWindows
from .stage import Run, Stage
from .state import Stateful

# Gradients of log-likelihoods a row beyond this norm are rare outliers, not directions.
_MAX_GRADIENT_NORM = 10.0
_MAX_RECOVERIES = 5
# Data this many nats below the negatives: the pool has lost the model. An equilibrated pool has a
# gap near zero, and one that lags does not catch up while the energy keeps falling at the data.
_MAX_GAP = 20.0
_MAX_PROPOSED = 4096


Keep = Callable[[dict[str, Any], dict[str, Any]], None]
"""Takes the state of training: in a part that all ranks share, and one that is this rank's."""


class DivergenceError(RuntimeError):
    """Training left the finite numbers and did not recover from the last good state."""


class Evaluation(NamedTuple):
    """Held-out mean log-likelihood of a state (nats per row), and the log Z used."""

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
class Outcome(Stateful):
    """What a run of stages did; ``gaps`` are the energy gaps of the last stage with a pool.

    ``kept`` are the updates of each stage up to the state that was kept. ``stopped`` says whether
    whoever is reported to asked to stop. ``complaints`` are what the user is to be warned of.
    """

    STATE = ("n_iter", "converged", "stopped", "history", "gaps", "kept", "complaints")

    n_iter: int = 0
    converged: bool = True
    stopped: bool = False
    history: list[dict[str, float | int | str]] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)
    kept: dict[str, int] = field(default_factory=dict)
    complaints: list[str] = field(default_factory=list)


class Saddle:
    """The training loop.

    Parameters
    ----------
    energy : JointEnergy
        Trained in place.
    rows : Rows
        What is trained on.
    flow_of : callable
        ``flow_of(stage) -> ConditionalFlow`` follows the latents of ``rows`` in a stage.
    pool : JointPool
    schedule : Schedule
    generator : torch.Generator
    evaluate : callable or None
        ``evaluate(energy, uses_pool) -> Evaluation`` on held-out rows. None: no early stopping,
        and the last averaged state is kept.
    report : callable
        ``report(row, energy)`` receives every history row as it is made, and the averaged energy;
        returns whether to stop training.
    keep : callable or None
        ``keep(common, own)`` receives, after every evaluation, all that :meth:`train` needs to go
        on from there: what is the same on all ranks, and what is this one's.
    group : Group, optional
        The processes that train together: ``rows`` and ``pool`` are this one's.
    shares : tuple of float
        Shares of the weight of all rows, and of all negatives, that are this process's.
    outcome : Outcome, optional
        Of what was trained before, which is gone on with.
    windows : ParzenWindows, optional
        Kernels about ``rows``: what is trained on is drawn anew from them whenever a row's latents
        move. None trains on the rows themselves.
    """

    def __init__(
        self,
        energy: JointEnergy,
        rows: Rows,
        flow_of: Callable[[Stage], ConditionalFlow],
        pool: JointPool,
        *,
        schedule: Schedule,
        generator: torch.Generator,
        evaluate: Callable[[JointEnergy, bool], Evaluation] | None,
        report: Callable[[dict, JointEnergy], bool],
        keep: Keep | None = None,
        group: Group | None = None,
        shares: tuple[float, float] = (1.0, 1.0),
        outcome: Outcome | None = None,
        windows: ParzenWindows | None = None,
    ) -> None:
        self.energy, self.rows, self.windows = energy, rows, windows
        # What is trained on for now.
        self._shown = rows.x if windows is None else rows.x.clone()
        self.flow_of, self.pool = flow_of, pool
        self.schedule, self.generator = schedule, generator
        self.evaluate, self.report, self.keep = evaluate, report, keep
        self.group = Group() if group is None else group
        self.shares = shares
        self.outcome = Outcome() if outcome is None else outcome
        self._batch_size = min(schedule.batch_size, len(rows))
        self._passes = rows.batches(schedule.n_batches * self._batch_size, generator)
        # Batches whose latents have moved, and that no update was made from yet.
        self._waiting: list[Tensor] = []
        members = Rows(pool.position, pool.position.new_ones(len(pool.position)))
        self._members = members.batches(schedule.negative_size, generator)
        # Of the updates since numbers were last read from the device.
        self._unread: list[Tensor] = []
        # What launches operations on a device: nobody knows what a user's module does beside that,
        # and not every backend's collectives can be recorded.
        on_device = rows.x.device.type == "cuda"
        self._records = on_device and energy.is_ours and self.group.size == 1
        self._read_every = schedule.n_batches if self._records else 1
        self._is_complete = not bool(torch.isnan(rows.x).any())
        # The last good state, and the stage that is trained: of no meaning before one begins.
        self._good: dict[str, Any] = {}
        self._index = 0
        # Of the state that the last stage left: held-out rows need not be asked about it again.
        self._found: float | None = None

    def _recorded(self, function: Callable[..., Any], run: Run, owner: Stateful) -> Recorded:
        return Recorded(partial(function, run), owner, self.generator, active=self._records)

    def _visit(self) -> Tensor:
        """The rows ``(b,)`` of an update, whose latents have moved."""
        if not self._waiting:
            picks = next(self._passes)
            # A row of large weight, or of a small table, is picked more than once, and moves once.
            moving = picks.unique()
            if self.windows is not None:
                self._shown[moving] = self.windows.draw(moving, self.generator)
            self.conditional.adapt(self._move(moving))
            # What is left over at the end, if less than half a batch, would be noise.
            batches = picks.split(self._batch_size)
            self._waiting = [b.clone() for b in batches if 2 * len(b) >= self._batch_size]
        return self._waiting.pop(0)

    def _moved(self, run: Run, moving: Tensor) -> Tensor | None:
        density = run.energy.posterior(self._shown[moving], complete=self._is_complete)
        return self.conditional.move(moving, density)

    @torch.no_grad()
    def _completed(self, picks: Tensor | slice) -> tuple[Tensor, Tensor]:
        """Completed rows and their latents, ``(b, p or 1, d)``, ``(b, p, k)``."""
        return self.energy.complete(self._shown[picks], self.conditional.draws(picks))

    def update(self, run: Run) -> Tensor:
        """Move both flows, then θ.

        Returns ``(2,)``, on the device: the energy gap, data minus negatives, in nats, and the norm
        of the gradient.
        """
        picks = self._visit()
        members = next(self._members) if run.stage.uses_pool else None
        return self._learn(picks, members, run.rate)

    def _learned(
        self, run: Run, picks: Tensor, members: Tensor | None, rate: float | Tensor
    ) -> Tensor:
        stage, optimizer = run.stage, run.optimizer
        positives, negatives = self._completed(picks), None
        if members is not None:
            self.pool.advance(self.energy.log_tilt, members)
            with torch.no_grad():
                negatives = self.energy.reference.split(self.pool.position)
        loss = self._loss(run, positives, negatives)
        optimizer.clear()
        loss.backward()
        loss = self._summed(stage, loss.detach())
        norm = nn.utils.clip_grad_norm_(stage.parameters, _MAX_GRADIENT_NORM)
        optimizer.step(rate)
        self.energy.reference.project_()
        return torch.stack([loss, norm.to(loss)])

    def _loss(
        self, run: Run, positives: tuple[Tensor, Tensor], negatives: tuple[Tensor, Tensor] | None
    ) -> Tensor:
        """Mean energy of the rows, less that of the pool."""
        of_rows, of_pool = self.shares
        x, z = positives
        if negatives is None:
            return of_rows * self._energy(run, x, z).mean()
        # One call for both: networks of this size cost by the call.
        x = x.expand(*z.shape[:-1], -1)
        x, z = (
            torch.cat([ours.flatten(0, -2), theirs])
            for ours, theirs in zip((x, z), negatives, strict=True)
        )
        energy = self._energy(run, x, z)
        n = len(energy) - len(negatives[0])
        return of_rows * energy[:n].mean() - of_pool * energy[n:].mean()

    def _summed(self, stage: Stage, loss: Tensor) -> Tensor:
        """The loss, and the gradients, of all ranks together."""
        gradients = [p.grad for p in stage.parameters if p.grad is not None]
        self.group.sum_([loss, *gradients])
        return loss

    @torch.no_grad()
    def _propose_from_data(self) -> None:
        """Let the pool jump to where the data are, in the coordinates that it moves in.

        Fresh reference draws alone never fall into the wells that the tilt digs at the data of many
        dimensions, however much mass these have.
        """
        picks = slice(_MAX_PROPOSED // self.group.size)
        x, z = (part[:, 0] for part in self._completed(picks))
        v = self.energy.reference.join(x, z)
        # Each rank fits a mixture of its own: any proposal leaves the law invariant.
        self.pool.proposal = Proposal.fitted(self.group.gather(v), self.pool.noise)
        self._learn.forget()

    def _energy(self, run: Run, x: Tensor, z: Tensor) -> Tensor:
        """The part of E that the stage's parameters enter."""
        if run.stage.name == "tilt" and run.energy.tilt is not None:
            return run.energy.tilt(x, z)
        return run.energy(x, z)

    def train(self, stages: list[Stage], saved: dict[str, Any] | None = None) -> None:
        """Train the stages in turn, from the start or from where ``saved`` was kept."""
        first = 0 if saved is None else saved["stage"]
        for self._index in range(first, len(stages)):
            self.run(stages[self._index], saved if self._index == first else None)

    def run(self, stage: Stage, saved: dict[str, Any] | None = None) -> None:
        """Train one stage and leave the energy at its best (or last) averaged state."""
        if stage.length == 0 or not stage.parameters or self.outcome.stopped:
            return
        self.conditional = self.flow_of(stage)
        self.energy.requires_grad_(False)
        for parameter in stage.parameters:
            parameter.requires_grad_(True)
        run = self._new_run(stage)
        self._move = self._recorded(self._moved, run, self.conditional)
        self._learn = self._recorded(self._learned, run, self.pool)
        if saved is None:
            self._begin(run)
        else:
            self._load(run, saved)
        try:
            self._updates(run)
        finally:
            # Their memory is given back, and an interrupted stage goes on from what is kept.
            self._unread = []
            self._move.forget()
            self._learn.forget()
        self.energy.load_state_dict(run.state)
        self._found = run.found
        self.outcome.kept[stage.name] = run.kept
        self.outcome.converged &= run.is_settled and not self.outcome.stopped

    def _updates(self, run: Run) -> None:
        while not (run.is_over or self.outcome.stopped):
            self._unread.append(self.update(run))
            run.count()
            self.outcome.n_iter += 1
            due = run.step - run.last == self.schedule.evaluate_every
            due |= run.step == run.stage.length
            if due or len(self._unread) == self._read_every:
                gap = self._read(run)
                if gap is not None and due:
                    self._take_stock(run, gap)

    def _new_run(self, stage: Stage) -> Run:
        schedule = self.schedule
        return Run(
            stage,
            self.energy,
            learning_rate=schedule.learning_rate,
            weight_decay=schedule.weight_decay,
            tol=schedule.tol,
            patience=schedule.n_iter_no_change,
        )

    def _read(self, run: Run) -> float | None:
        """Enter the gaps of the updates since the last time, and return the last one.

        All that updates read back from their device. None if one of them went wrong: then it and
        those after it are taken back.
        """
        uses_pool, read = run.stage.uses_pool, torch.stack(self._unread).tolist()
        self._unread = []
        for i, (gap, size) in enumerate(read):
            is_finite = math.isfinite(gap) and math.isfinite(size)
            if not is_finite or (uses_pool and gap < -_MAX_GAP):
                lost = len(read) - i
                run.step, self.outcome.n_iter = run.step - lost, self.outcome.n_iter - lost
                self._recover(run, gap if is_finite else math.nan)
                return None
            if uses_pool:
                self.outcome.gaps.append(gap)
        return gap

    def _begin(self, run: Run) -> None:
        self._good = self._changing()
        # Where a stage follows another f is zero.
        known = None if self._found is None else Evaluation(self._found, 0.0)
        self._assess(run, math.nan, known)
        self.outcome.gaps = []
        if run.stage.uses_pool:
            self._propose_from_data()
        self._keep(run)

    def _take_stock(self, run: Run, gap: float) -> None:
        """Evaluate, keep the state if it is sound, and show the pool where the data are now."""
        run.last = run.step
        uses_pool = run.stage.uses_pool
        self._assess(run, gap if uses_pool else math.nan)
        if not uses_pool or gap > -_MAX_GAP / 4:
            self._good = self._changing()
        if uses_pool:
            self._propose_from_data()
        self._keep(run)

    def _stateful(self, run: Run) -> tuple[dict[str, Any], dict[str, Any]]:
        """Everything that moves on in training and knows its state: of all ranks, and of this."""
        common = {"energy": self.energy, "run": run, "outcome": self.outcome}
        flows = {"conditional": self.conditional, "pool": self.pool}
        return common, flows | {"passes": self._passes, "members": self._members}

    def _keep(self, run: Run) -> None:
        if self.keep is None:
            return
        common, own = (
            {name: part.state_dict() for name, part in parts.items()}
            for parts in self._stateful(run)
        )
        rest = {
            "waiting": self._waiting,
            "good": self._good,
            "generator": self.generator.get_state(),
        }
        if self.windows is not None:
            rest["shown"] = self._shown
        self.keep(common | {"stage": self._index}, own | rest)

    def _load(self, run: Run, saved: dict[str, Any]) -> None:
        common, own = self._stateful(run)
        for name, part in (common | own).items():
            part.load_state_dict(saved[name])
        self._waiting = [picks.to(self.rows.x.device) for picks in saved["waiting"]]
        self._good = saved["good"]
        if self.windows is not None:
            self._shown.copy_(saved["shown"])
        self.generator.set_state(saved["generator"])

    def _assess(self, run: Run, gap: float, evaluation: Evaluation | None = None) -> None:
        """Evaluate the average, where there are held-out rows, and enter it into the history.

        ``evaluation`` is what is known of it already.
        """
        if self.group.size > 1:
            # Between evaluations each rank adapts to its own rows. Metropolis-adjusted chains are
            # exact with any steps; unadjusted ones must share a bias, and all are to be efficient.
            self.conditional.align(self.group.mean)
            self.pool.align(self.group.mean)
        if evaluation is None and self.evaluate is not None:
            evaluation = self.evaluate(run.shown, run.stage.uses_pool)
        if evaluation is not None:
            run.keeper.note(evaluation.log_likelihood, run.step)
        self._record(run.stage, gap, evaluation, run.average)

    def _parts(self) -> dict[str, Any]:
        """What an update changes, and what can be brought back after a bad one."""
        return {"energy": self.energy, "conditional": self.conditional, "pool": self.pool}

    def _changing(self) -> dict[str, Any]:
        return {name: copy.deepcopy(part.state_dict()) for name, part in self._parts().items()}

    def _recover(self, run: Run, gap: float) -> None:
        """Return to the last good state with a third of the learning rate, or give up."""
        name, step = run.stage.name, run.step
        run.recoveries += 1
        if run.recoveries > _MAX_RECOVERIES:
            lr = run.optimizer.rate
            raise DivergenceError(
                f"training diverged in the {name} stage at update {step}: the energy gap was "
                f"{gap}, after {_MAX_RECOVERIES} returns to the last good state, the last at "
                f"a learning rate of {lr:.2g}. Try a smaller learning_rate or step_size, "
                "dynamics='mala', or data without extreme values."
            )
        for part, state in self._good.items():
            self._parts()[part].load_state_dict(state)
        self._move.forget()
        self._learn.forget()
        lr = run.cool()
        self.outcome.complaints.append(
            f"the {name} stage diverged at update {step} (energy gap {gap:.3g} nats); it "
            f"continued from the last good state at a learning rate of {lr:.2g}. If more of these "
            "come, decrease learning_rate, or look for extreme values in X."
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
