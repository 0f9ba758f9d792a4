"""The one training loop of the baselines: AdamW, cosine decay, the best validation state kept."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import torch
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


def train(
    module: nn.Module,
    loss: Callable[[Tensor], Tensor],
    n_rows: int,
    *,
    validate: Callable[[], float],
    n_steps: int,
    batch_size: int,
    learning_rate: float,
    weight_decay: float,
    n_evaluations: int,
    patience: int,
    generator: torch.Generator,
    extra: torch.optim.Optimizer | None = None,
) -> int:
    """Minimise ``loss(rows)`` over batches of row indices; keep the state that validates best.

    ``extra`` is a second optimiser for parameters that belong to single rows. Stops after
    ``patience`` evaluations without improvement. Returns the steps taken.
    """
    matrices = [p for p in module.parameters() if p.ndim >= 2]
    rest = [p for p in module.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": weight_decay},
            {"params": rest, "weight_decay": 0.0},
        ],
        lr=learning_rate,
    )
    optimizers = [optimizer] if extra is None else [optimizer, extra]
    decay = [
        torch.optim.lr_scheduler.LambdaLR(
            o, lambda t: 0.5 * (1 + math.cos(math.pi * min(t / n_steps, 1.0)))
        )
        for o in optimizers
    ]
    best, best_state, stale = math.inf, copy.deepcopy(module.state_dict()), 0
    every = max(1, n_steps // n_evaluations)
    rows = batches(n_rows, batch_size, generator)
    for step in range(1, n_steps + 1):
        for o in optimizers:
            o.zero_grad(set_to_none=True)
        value = loss(next(rows))
        value.backward()
        norm = nn.utils.clip_grad_norm_(module.parameters(), MAX_NORM)
        if math.isfinite(float(norm)):
            for o in optimizers:
                o.step()
        for d in decay:
            d.step()
        if step % every == 0:
            value = validate()
            stale = 0 if value < best else stale + 1
            if value < best:
                best, best_state = value, copy.deepcopy(module.state_dict())
            if stale >= patience:
                break
    module.load_state_dict(best_state)
    return step
