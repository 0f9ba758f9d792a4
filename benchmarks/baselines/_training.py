"""What the baselines share: a split, and a loop of AdamW that keeps the best validation state."""

from __future__ import annotations

import copy
import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.base import BaseEstimator
from torch import Tensor, nn

MAX_NORM = 10.0


def split(X: Tensor, fraction: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Training and validation rows."""
    order = torch.randperm(len(X), generator=generator)
    n = max(1, round(fraction * len(X)))
    return X[order[n:]], X[order[:n]]


def batches(n: int, size: int, generator: torch.Generator):
    """Endless passes over a random order of the rows."""
    size = min(size, n)
    while True:
        order = torch.randperm(n, generator=generator)
        for start in range(0, n - size + 1, size):
            yield order[start : start + size]


@dataclass(frozen=True)
class Training:
    """How a baseline is trained: cosine decay to zero over ``n_steps``, which ends after
    ``patience`` of ``n_evaluations`` without improvement."""

    n_steps: int = 12_000
    batch_size: int = 128
    learning_rate: float = 1e-3
    weight_decay: float = 0.1
    n_evaluations: int = 60
    patience: int = 60
    validation_fraction: float = 0.1

    def run(
        self,
        module: nn.Module,
        loss: Callable[[Tensor], Tensor],
        n_rows: int,
        *,
        validate: Callable[[], float],
        generator: torch.Generator,
        extra: torch.optim.Optimizer | None = None,
    ) -> int:
        """Minimise ``loss(rows)`` over batches of row indices; returns the steps taken.

        ``extra`` is a second optimiser, for parameters that belong to single rows.
        """
        optimizers = [self._optimizer(module), *([] if extra is None else [extra])]
        decay = [torch.optim.lr_scheduler.LambdaLR(o, self._cosine) for o in optimizers]
        best, best_state, stale = math.inf, copy.deepcopy(module.state_dict()), 0
        every = max(1, self.n_steps // self.n_evaluations)
        rows = batches(n_rows, self.batch_size, generator)
        for step in range(1, self.n_steps + 1):
            for o in optimizers:
                o.zero_grad(set_to_none=True)
            loss(next(rows)).backward()
            if math.isfinite(float(nn.utils.clip_grad_norm_(module.parameters(), MAX_NORM))):
                for o in optimizers:
                    o.step()
            for d in decay:
                d.step()
            if step % every == 0:
                value = validate()
                stale = 0 if value < best else stale + 1
                if value < best:
                    best, best_state = value, copy.deepcopy(module.state_dict())
                if stale >= self.patience:
                    break
        module.load_state_dict(best_state)
        return step

    def _optimizer(self, module: nn.Module) -> torch.optim.Optimizer:
        matrices = [p for p in module.parameters() if p.ndim >= 2]
        rest = [p for p in module.parameters() if p.ndim < 2]
        decayed = {"params": matrices, "weight_decay": self.weight_decay}
        return torch.optim.AdamW(
            [decayed, {"params": rest, "weight_decay": 0.0}], lr=self.learning_rate
        )

    def _cosine(self, step: int) -> float:
        return 0.5 * (1 + math.cos(math.pi * min(step / self.n_steps, 1.0)))


class TorchModel(BaseEstimator):
    """A torch module fitted as a scikit-learn estimator.

    Subclasses have the parameters ``training`` (None takes their ``_training``) and
    ``random_state``.
    """

    _training = Training()

    def fit(self, X, y=None):
        """Train; the global torch generator is restored afterwards."""
        self.training_ = self.training or self._training
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.random_state)
            generator = torch.Generator().manual_seed(self.random_state)
            rows = torch.tensor(np.asarray(X), dtype=torch.float32)
            self.n_features_in_ = rows.shape[1]
            fit, held_out = split(rows, self.training_.validation_fraction, generator)
            self.n_iter_ = self._fit(fit, held_out, generator)
        return self

    @abstractmethod
    def _fit(self, fit: Tensor, held_out: Tensor, generator: torch.Generator) -> int:
        """Make the module and train it; returns the steps taken."""
