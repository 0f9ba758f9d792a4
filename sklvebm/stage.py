"""One stage of training: what it learns, and the state of being part of the way through it."""

from __future__ import annotations

import copy
import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .energies._joint import JointEnergy
from .optimizer import AdamW
from .state import Stateful

# The likelihood of the reference is exact, and has turned where it turns; that of the tilt has the
# noise of log Z and of a pool, and gets more evaluations before it is given up.
_PATIENCE_WITHOUT_POOL = 1 / 4
# γ of the average of the parameters: it remembers about the last quarter of a stage's updates.
_AVERAGING = 3.0


class Stage(NamedTuple):
    """What one part of training learns: ``name``, its ``parameters``, how long and how fast.

    ``rate`` multiplies the learning rate; ``uses_pool`` says whether there is a negative phase.
    Without one f ≡ 0. ``at_modes`` says that latents are followed by their modes: where they end is
    where the next stage starts, however likely that is. ``stop`` ends the stage after so many
    updates, at the rates that it would have had.
    """

    name: str
    parameters: list[nn.Parameter]
    n_updates: int
    rate: float
    uses_pool: bool
    at_modes: bool = False
    stop: int | None = None

    @property
    def length(self) -> int:
        """The most updates that it has."""
        return self.n_updates if self.stop is None else min(self.stop, self.n_updates)


class Keeper(Stateful):
    """The best averaged state so far by held-out log-likelihood; the current one without it.

    Parameters
    ----------
    average : JointEnergy
    tol : float
        Gain over the last improvement that counts as another: a slow climb adds up.
    patience : int
        Evaluations without improvement after which to stop.
    """

    STATE = ("best", "best_state", "best_step", "improved", "n_stale")

    def __init__(self, average: JointEnergy, *, tol: float, patience: int) -> None:
        self.average, self.tol, self.patience = average, tol, patience
        self.best = self.improved = -math.inf
        self.best_state: dict[str, Tensor] | None = None
        self.best_step = self.n_stale = 0

    def note(self, value: float, step: int) -> None:
        """Compare the average after ``step`` updates, which scores ``value``, with the best."""
        first = self.best_state is None
        if value > self.improved + self.tol or first:
            self.improved, self.n_stale = value, 0
        else:
            self.n_stale += 1
        if value > self.best or first:
            self.best, self.best_step = value, step
            self.best_state = copy.deepcopy(self.average.state_dict())

    @property
    def is_stale(self) -> bool:
        """Whether improvements have been missing for long enough to stop."""
        return self.n_stale >= self.patience

    @property
    def is_settled(self) -> bool:
        """Whether the last evaluation was no improvement; true where nothing is evaluated."""
        return self.best_state is None or self.n_stale > 0

    @property
    def state(self) -> dict[str, Tensor]:
        """Parameters to keep."""
        return self.average.state_dict() if self.best_state is None else self.best_state


class Run(Stateful):
    """How far a stage is: its optimizer, the average of its parameters, the best one, its counts.

    Parameters
    ----------
    stage : Stage
    energy : JointEnergy
        Trained by the stage.
    learning_rate, weight_decay : float
    tol : float
    patience : int
        As in :class:`Keeper`; a quarter of it for a stage without a pool.
    """

    STATE = ("average", "optimizer", "keeper", "step", "last", "recoveries")

    def __init__(
        self,
        stage: Stage,
        energy: JointEnergy,
        *,
        learning_rate: float,
        weight_decay: float,
        tol: float,
        patience: int,
    ) -> None:
        self.stage = stage
        self._trained = energy
        self.average = copy.deepcopy(energy).eval().requires_grad_(False)
        # What of the energy, and of its average, is not zero in this stage.
        self.energy, self.shown = (
            e if stage.uses_pool else e.without_tilt() for e in (energy, self.average)
        )
        self.optimizer = AdamW(
            stage.parameters,
            energy.decayed_parameters(),
            rate=stage.rate * learning_rate,
            weight_decay=weight_decay,
        )
        self._pairs: tuple[list[Tensor], list[Tensor]] = (
            list(self.average.parameters()),
            list(energy.parameters()),
        )
        if not stage.uses_pool:
            patience = max(1, round(_PATIENCE_WITHOUT_POOL * patience))
        self.keeper = Keeper(self.average, tol=tol, patience=patience)
        # Updates made, updates at the last evaluation, returns to the last good state.
        self.step = self.last = self.recoveries = 0

    @property
    def is_over(self) -> bool:
        """Whether all updates are made, or improvements have been missing for too long."""
        is_stale = self.keeper.is_stale and not self.stage.at_modes
        return self.step >= self.stage.length or is_stale

    @property
    def is_settled(self) -> bool:
        """Whether the stage has ended where more of it would not help."""
        return self.stage.at_modes or self.keeper.is_settled

    @property
    def state(self) -> dict[str, Tensor]:
        """Parameters to go on with."""
        return self.average.state_dict() if self.stage.at_modes else self.keeper.state

    @property
    def _is_judged(self) -> bool:
        """Whether held-out rows choose the state to go on with."""
        return self.keeper.best_state is not None and not self.stage.at_modes

    @property
    def found(self) -> float | None:
        """Held-out log-likelihood of :attr:`state`; None where nobody has asked."""
        return self.keeper.best if self._is_judged else None

    @property
    def kept(self) -> int:
        """Updates that led to :attr:`state`."""
        return self.keeper.best_step if self._is_judged else self.step

    @property
    def rate(self) -> float:
        """Learning rate of the coming update: the optimizer's at first, by a cosine to zero."""
        share = 0.5 * (1 + math.cos(math.pi * self.step / self.stage.n_updates))
        return share * self.optimizer.rate

    def cool(self) -> float:
        """Forget the optimizer's moments, go on at a third of the learning rate; returns that."""
        self.optimizer.forget()
        self.optimizer.rate /= 3
        self.shown.load_state_dict(self.energy.state_dict())
        return self.optimizer.rate

    @torch.no_grad()
    def count(self) -> None:
        """An update was made; enter it into the average.

        Polynomial-decay average of the parameters (Shamir and Zhang 2013, ICML 28(1)). Its memory
        grows with the number of updates, so that it suits stages of any length.
        """
        self.step += 1
        weight = (_AVERAGING + 1) / (_AVERAGING + self.step)
        torch._foreach_lerp_(*self._pairs, weight)
        # A user's module may change buffers, or put others in their place, whenever it is called.
        pairs = zip(self.average.tilt_buffers(), self._trained.tilt_buffers(), strict=True)
        for of_average, now in pairs:
            of_average.copy_(now)
