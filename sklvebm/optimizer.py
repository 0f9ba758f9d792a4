"""AdamW by torch's own arithmetic, without what ``torch.optim.Optimizer`` brings along.

The first such object of a process imports torch's compiler, which takes longer than the fit of a
small table. ``torch.optim.adamw.adamw`` is the same update as a function.

References
----------
I. Loshchilov and F. Hutter (2019), "Decoupled weight decay regularization", ICLR.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

_BETAS, _EPS = (0.9, 0.999), 1e-8


class AdamW:
    """AdamW over two groups of parameters: what decays, and what does not.

    Parameters
    ----------
    parameters : iterable of nn.Parameter
    decayed : iterable of nn.Parameter
        Those of ``parameters`` that decay; others are ignored.
    rate : float
        Learning rate.
    weight_decay : float
        Decay of a unit of learning rate.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        decayed: Iterable[nn.Parameter],
        *,
        rate: float,
        weight_decay: float,
    ) -> None:
        matrices = {id(p) for p in decayed}
        self.parameters = sorted(parameters, key=lambda p: id(p) not in matrices)
        self._n_decayed = sum(id(p) in matrices for p in self.parameters)
        self.rate, self.weight_decay = rate, weight_decay
        self._moments: list[tuple[Tensor, Tensor, Tensor]] = []
        self.forget()

    def forget(self) -> None:
        """Start anew: no moments, no steps."""
        self._moments = [
            (torch.zeros_like(p), torch.zeros_like(p), torch.zeros((), device=p.device))
            for p in self.parameters
        ]

    def state_dict(self) -> dict[str, Any]:
        """The rate, and copies of the moments."""
        return {"rate": self.rate, "moments": [[m.clone() for m in of] for of in self._moments]}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to ``state``, which may have been kept on another device."""
        self.rate = state["rate"]
        for mine, saved in zip(self._moments, state["moments"], strict=True):
            for moment, value in zip(mine, saved, strict=True):
                moment.copy_(value)

    def clear(self) -> None:
        """Drop the gradients."""
        for parameter in self.parameters:
            parameter.grad = None

    @torch.no_grad()
    def step(self, rate: float | Tensor) -> None:
        """Follow the gradients at this learning rate; a parameter without one stays."""
        groups = ((0, self._n_decayed, self.weight_decay), (self._n_decayed, None, 0.0))
        for start, stop, weight_decay in groups:
            at = slice(start, stop)
            moved = [
                (p, p.grad, *moments)
                for p, moments in zip(self.parameters[at], self._moments[at], strict=True)
                if p.grad is not None
            ]
            if not moved:
                continue
            parameters, gradients, first, second, steps = map(list, zip(*moved, strict=True))
            adamw(
                parameters,
                gradients,
                first,
                second,
                [],
                steps,
                fused=True,
                amsgrad=False,
                beta1=_BETAS[0],
                beta2=_BETAS[1],
                lr=rate,
                weight_decay=weight_decay,
                eps=_EPS,
                maximize=False,
            )
