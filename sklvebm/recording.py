"""CUDA graphs: the operations of an update, handed to the device all at once.

They are many and small, and a device that is told each of them by itself waits for the processor
most of the time. So they are recorded once, with the places in memory that they read and write, and
played again with other numbers in the same places. The numbers are those that the same calls would
have found, random ones among them.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from .state import Stateful

_RECORDING = Lock()


class Recorded:
    """A function that is recorded where it can be, and else called.

    The first call runs as it is, since torch makes ready what it needs then. The second one of the
    same shapes is recorded, and played; so are those after it.

    Parameters
    ----------
    function : callable
        Of tensors, numbers and None, to a tensor or None. It waits for no number of the device's,
        draws from ``generator`` alone, and what it does beside the device is done by its first two
        calls.
    owner : Stateful
        The tensors of its state may be replaced by the function; they stay where the recording
        found them, and change there. All others that the function reads stay where they are, or
        :meth:`forget` is called.
    generator : torch.Generator
    active : bool
        Whether to record.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        owner: Stateful,
        generator: torch.Generator,
        *,
        active: bool,
    ) -> None:
        self.function, self.owner, self.generator = function, owner, generator
        self.active = active
        self.forget()

    def forget(self) -> None:
        """Record anew: what the function reads lies elsewhere now."""
        self._graph: torch.cuda.CUDAGraph | None = None
        self._shapes: list[torch.Size | None] | None = None
        self._inputs: list[Tensor | None] = []
        self._state: dict[str, Tensor] = {}
        self._output: Tensor | None = None

    def __call__(self, *args: Tensor | float | None) -> Any:
        """``function(*args)``; what it returns is the caller's."""
        if not self.active:
            return self.function(*args)
        # Numbers as a recording has them, so that all calls round alike.
        given = [self._on_device(arg) for arg in args]
        shapes = [None if arg is None else arg.shape for arg in given]
        if shapes != self._shapes:
            self.forget()
            self._shapes = shapes
            return self.function(*given)
        if self._graph is None:
            self._graph = self._record(given)
        self._fill(given)
        self._graph.replay()
        return None if self._output is None else self._output.clone()

    def _on_device(self, arg: Tensor | float | None) -> Tensor | None:
        if isinstance(arg, float):
            return torch.full((), arg, device=self.generator.device)
        return arg

    def _record(self, args: Sequence[Tensor | None]) -> torch.cuda.CUDAGraph:
        device = self.generator.device
        self._inputs = [None if arg is None else torch.empty_like(arg) for arg in args]
        self._state = self.owner.tensors()
        graph = torch.cuda.CUDAGraph()
        graph.register_generator_state(self.generator)
        before, beside = torch.cuda.current_stream(device), _beside(device)
        beside.wait_stream(before)
        with _RECORDING, _without_collection(), torch.cuda.stream(beside):
            # Other threads may use the device meanwhile.
            graph.capture_begin(capture_error_mode="thread_local")
            try:
                self._output = self.function(*self._inputs)
                for name, value in self.owner.tensors().items():
                    if value is not self._state[name]:
                        self._state[name].copy_(value)
            finally:
                self.owner.replace(self._state)
                graph.capture_end()
        before.wait_stream(beside)
        return graph

    def _fill(self, args: Sequence[Tensor | None]) -> None:
        """Put ``args``, and what of the owner's was replaced since, where the graph reads it."""
        for place, arg in zip(self._inputs, args, strict=True):
            if place is not None and arg is not None:
                place.copy_(arg)
        for name, value in self.owner.tensors().items():
            if value is not self._state[name]:
                self._state[name].copy_(value)
        self.owner.replace(self._state)


@contextmanager
def _without_collection() -> Iterator[None]:
    """No garbage is collected: a graph that is thrown away would end the recording of another."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@cache
def _beside(device: torch.device) -> torch.cuda.Stream:
    """The stream of all recordings: each one that is used keeps a workspace for products."""
    return torch.cuda.Stream(device)
