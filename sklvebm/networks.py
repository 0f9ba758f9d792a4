"""Multilayer perceptrons whose weights come from an explicit generator.

``torch.nn.Linear()`` draws from the global generator; every layer here is left empty at first and
then filled from the ``generator`` it is given, so that building a model never touches global state.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from ._products import affine, times


class _Empty(nn.Linear):
    """An affine layer that does not draw its own parameters.

    ``torch.nn.utils.skip_init`` does the same by way of the meta device, which imports a computer
    algebra system.
    """

    def reset_parameters(self) -> None:
        """Leave that to whoever builds the layer."""

    def forward(self, input: Tensor) -> Tensor:
        return affine(input, self.weight, self.bias)


def linear(
    n_in: int,
    n_out: int,
    *,
    generator: torch.Generator,
    bias: bool = True,
    bound: float | None = None,
) -> nn.Linear:
    """An affine layer with parameters uniform on ±``bound``, 1/√n_in (torch's own) by default."""
    layer = _Empty(n_in, n_out, bias=bias)
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
        and the first block is computed once per row.
    hidden_layer_sizes : sequence of int
    n_output : int

    Attributes
    ----------
    width : int
        Of the widest layer, the output among them.
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
        self.width = max(sizes)
        self.first = nn.ModuleList(
            linear(n, sizes[0], generator=generator, bias=i == 0, bound=total**-0.5)
            for i, n in enumerate(n_inputs)
        )
        self.rest = nn.ModuleList(
            linear(a, b, generator=generator) for a, b in itertools.pairwise(sizes)
        )
        for parameter in self.last.parameters():
            nn.init.zeros_(parameter)

    @property
    def last(self) -> nn.Linear:
        """The layer that gives the output."""
        return self._linear(self.rest)[-1]

    @staticmethod
    def _linear(layers: nn.ModuleList) -> list[nn.Linear]:
        return cast(list[nn.Linear], list(layers))

    def enter(self, *inputs: Tensor, start: int = 0) -> Tensor:
        """What the first hidden layer receives from ``inputs``, each ``(..., n_i)``.

        ``start`` is the first of them, where it is not all.
        """
        blocks = self._linear(self.first)[start : start + len(inputs)]
        received = [block(value) for block, value in zip(blocks, inputs, strict=True)]
        return sum(received[1:], start=received[0])

    def leave(self, gradient: Tensor, i: int) -> Tensor:
        """The gradient by input i ``(..., n_i)``, from that by what the first layer receives."""
        return times(gradient, self._linear(self.first)[i].weight)

    def vjp(self, received: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """The output for what the first hidden layer receives, and the way back.

        That takes a gradient by the output ``(..., n_output)`` to one by ``received``: a
        vector–Jacobian product without autograd's records.
        """
        before, layers = [], self._linear(self.rest)
        for layer in layers:
            before.append(received)
            received = layer(nn.functional.silu(received))

        def pull(gradient: Tensor) -> Tensor:
            for layer, at in zip(reversed(layers), reversed(before), strict=True):
                gradient = torch.ops.aten.silu_backward(times(gradient, layer.weight), at)
            return gradient

        return received, pull

    def forward(self, *inputs: Tensor) -> Tensor:
        """Evaluate at ``inputs``, each ``(..., n_i)``; returns ``(..., n_output)``."""
        return self.vjp(self.enter(*inputs))[0]
