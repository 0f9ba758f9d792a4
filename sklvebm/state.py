"""State in torch's manner, ``state_dict`` and ``load_state_dict``, for what is no torch module.

One mechanism serves the return from a divergence and the file that a fit goes on from. A state is
made of dicts, lists, tuples, tensors and plain values, which ``torch.load(weights_only=True)``
reads: a file of it runs no code.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor


class Stateful:
    """The state of the attributes named in ``STATE``; dotted names reach into attributes.

    It shares nothing with the object, whose other attributes are its configuration.
    """

    STATE: tuple[str, ...] = ()
    # What adapts to all rows or members, and follows only this process's: see ``align``.
    ADAPTED: tuple[str, ...] = ()

    def state_dict(self) -> dict[str, Any]:
        """A copy of everything that changes."""
        return {name: _packed(attrgetter(name)(self)) for name in self.STATE}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to ``state``, which may have been kept on another device."""
        for name in self.STATE:
            target, last = self._owner(name)
            setattr(target, last, _unpacked(getattr(target, last), state[name]))

    def tensors(self) -> dict[str, Tensor]:
        """What of the state is a tensor, itself and no copy."""
        found = {name: attrgetter(name)(self) for name in self.STATE}
        return {name: value for name, value in found.items() if isinstance(value, Tensor)}

    def replace(self, values: dict[str, Any]) -> None:
        """Make ``values`` part of the state, themselves and no copies."""
        for name, value in values.items():
            target, last = self._owner(name)
            setattr(target, last, value)

    def align(self, mean: Callable[[Tensor], Tensor]) -> None:
        """Replace what adapts by its ``mean`` over several of these."""
        for name in self.ADAPTED:
            value = attrgetter(name)(self)
            is_tensor = isinstance(value, Tensor)
            both = mean(value if is_tensor else torch.tensor(value, dtype=torch.float64))
            self.replace({name: both if is_tensor else float(both)})

    def _owner(self, name: str) -> tuple[Any, str]:
        owner, _, last = name.rpartition(".")
        return (attrgetter(owner)(self) if owner else self), last


def _packed(value: Any) -> Any:
    if hasattr(value, "state_dict"):
        return copy.deepcopy(value.state_dict())
    # A named tuple would need its class to be read again.
    return tuple(map(_packed, value)) if isinstance(value, tuple) else copy.deepcopy(value)


def _unpacked(current: Any, saved: Any) -> Any:
    """``saved`` in the form of ``current``: where that has a state of its own, it is filled."""
    if hasattr(current, "load_state_dict"):
        current.load_state_dict(copy.deepcopy(saved))
        return current
    if isinstance(current, tuple):
        return type(current)(*map(_unpacked, current, saved))
    if isinstance(current, Tensor):
        return saved.to(current.device, copy=True)
    return copy.deepcopy(saved)
