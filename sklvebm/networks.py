"""Multilayer perceptrons whose weights come from an explicit generator.

``torch.nn.Linear()`` draws from the global generator; every layer here is allocated empty and then
filled from the ``generator`` it is given, so that building a model never touches global state.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn


def linear(
    n_in: int,
    n_out: int,
    *,
    generator: torch.Generator,
    bias: bool = True,
    bound: float | None = None,
) -> nn.Linear:
    """An affine layer with parameters uniform on ±``bound``, 1/√n_in (torch's own) by default."""
    layer = nn.utils.skip_init(nn.Linear, n_in, n_out, bias=bias)
    bound = n_in**-0.5 if bound is None else bound
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.uniform_(-bound, bound, generator=generator)
    return layer


class MLP(nn.Module):
    """SiLU perceptron R^n_in → R^n_out whose last layer starts at zero.

    Parameters
    ----------
    n_inputs : sequence of int
        Sizes of the inputs. Several inputs are concatenated in effect, but each passes through its
        own block of the first layer, so inputs of shapes ``(n, 1, a)`` and ``(n, p, b)`` broadcast
        and the first block is computed once a row.
    hidden_layer_sizes : sequence of int
    n_output : int
    """

    def __init__(
        self,
        n_inputs: Sequence[int],
        hidden_layer_sizes: Sequence[int],
        n_output: int,
        *,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        sizes = [*hidden_layer_sizes, n_output]
        total = sum(n_inputs)
        self.first = nn.ModuleList(
            linear(n, sizes[0], generator=generator, bias=i == 0, bound=total**-0.5)
            for i, n in enumerate(n_inputs)
        )
        self.rest = nn.ModuleList(
            linear(a, b, generator=generator) for a, b in itertools.pairwise(sizes)
        )
        for parameter in self.rest[-1].parameters():
            nn.init.zeros_(parameter)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Evaluate at ``inputs``, each ``(..., n_i)``; returns ``(..., n_output)``."""
        h = self.first[0](inputs[0])
        for block, value in zip(list(self.first)[1:], inputs[1:], strict=True):
            h = h + block(value)
        for layer in self.rest:
            h = layer(nn.functional.silu(h))
        return h
