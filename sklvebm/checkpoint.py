"""The file that a fit goes on from: what is in it, whose it is, how it is written.

It is one line that names the format, one line with the SHA-256 of the rest, and the rest: what
``torch.save`` makes of tensors and plain values, read with ``weights_only=True``. No code is run by
reading it, and a byte that went wrong is noticed.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping
from numbers import Real
from pathlib import Path
from types import CodeType, FunctionType, MethodType
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from .distributed import Group

_FORMAT = b"sklvebm checkpoint 5\n"

T = TypeVar("T")


class Checkpoint:
    """What a fit knows at its last evaluation, in a file.

    Parameters
    ----------
    path : Path
    identity : dict
        What makes the fit this fit and no other: plain values by their names. A file of another
        fit is never gone on from, nor written over.
    """

    def __init__(self, path: Path, identity: dict[str, Any]) -> None:
        self.path, self.identity = path, identity

    def read(self) -> dict[str, Any] | None:
        """The state in the file, on the CPU; None where there is no file.

        Raises
        ------
        ValueError
            If the file is damaged, or of another fit, or could not be written later.
        """
        if not self.path.parent.is_dir():
            raise ValueError(f"checkpoint={str(self.path)!r}: there is no such folder.")
        if self.path.is_dir():
            raise ValueError(f"checkpoint={str(self.path)!r} is a folder; name a file in it.")
        if not self.path.exists():
            return None
        content = _unsealed(self.path)
        differing = _differences(content["identity"], self.identity)
        if differing:
            raise ValueError(
                f"{self.path} is the checkpoint of another fit: {'; '.join(differing)}. It was "
                "left as it is. Fit as it was begun to go on from it; delete it, or choose another "
                "checkpoint, to start anew."
            )
        return content["state"]

    def write(self, state: dict[str, Any]) -> None:
        """Replace what the file holds, all at once: whatever fails, the old content is kept."""
        buffer = io.BytesIO()
        torch.save({"identity": self.identity, "state": state}, buffer)
        payload = buffer.getvalue()
        seal = hashlib.sha256(payload).hexdigest().encode() + b"\n"
        _replace(self.path, [_FORMAT, seal, payload])

    def remove(self) -> None:
        """The fit is over."""
        self.path.unlink(missing_ok=True)


def _unsealed(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        form, seal, payload = file.readline(100), file.readline(100), file.read()
    if form != _FORMAT:
        raise ValueError(
            f"{path} is no checkpoint of this version of sklvebm; it was left as it is."
        )
    if hashlib.sha256(payload).hexdigest().encode() + b"\n" != seal:
        raise ValueError(
            f"the checkpoint {path} is damaged: its content is not what was written. Delete it, or "
            "put an older copy in its place."
        )
    return torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)


def _differences(theirs: dict[str, Any], ours: dict[str, Any]) -> list[str]:
    return [
        f"{name} is {theirs.get(name)!r} there and {ours.get(name)!r} here"
        for name in sorted(theirs.keys() | ours.keys())
        if theirs.get(name) != ours.get(name)
    ]


def _replace(path: Path, parts: Iterable[bytes]) -> None:
    """Write beside the file, to the disk, then rename: a rename within a folder is atomic."""
    handle, name = tempfile.mkstemp(prefix=f"{path.name}.", suffix=".part", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.writelines(parts)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    # The rename is on the disk once its folder is; some systems cannot open one.
    with contextlib.suppress(OSError):
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def digest(arrays: Iterable[NDArray]) -> str:
    """A name for the shapes, types and contents of ``arrays``: equal where these are."""
    total = hashlib.sha256()
    for array in arrays:
        total.update(f"{array.dtype.str}{array.shape}".encode())
        total.update(np.ascontiguousarray(array).data)
    return total.hexdigest()[:16]


def described(value: Any, within: tuple[int, ...] = ()) -> str:
    """``value`` in words that are the same in every process: no addresses, no defaults left out.

    Equal numbers and sequences are described alike, whatever their types; functions without a name
    of their own, by what they do. ``within`` are the ids of what the value is a part of.
    """
    if id(value) in within:
        return "itself"
    inside = (*within, id(value))

    def named(values: Mapping[str, Any]) -> str:
        return ", ".join(f"{name}={described(values[name], inside)}" for name in sorted(values))

    def listed(values: Iterable[Any]) -> str:
        return ", ".join(described(part, inside) for part in values)

    if value is None or isinstance(value, str | bytes | bool | np.bool_):
        return repr(value)
    if isinstance(value, Real):
        number = float(value)
        return str(int(number)) if number.is_integer() else repr(number)
    if isinstance(value, np.ndarray):
        return f"array({digest([value])})"
    if isinstance(value, list | tuple):
        return f"({listed(value)})"
    if isinstance(value, set | frozenset):
        return f"{{{', '.join(sorted(described(part, inside) for part in value))}}}"
    if isinstance(value, Mapping):
        return f"{{{listed(value.items())}}}"
    if isinstance(value, functools.partial):
        return f"partial({listed([value.func, *value.args])}, {named(value.keywords)})"
    if isinstance(value, MethodType):
        return f"{described(value.__self__, inside)}.{value.__name__}"
    name = getattr(value, "__qualname__", None)
    if name is not None:
        name = f"{getattr(value, '__module__', None)}.{name}"
        if "<" not in name or not isinstance(value, FunctionType):
            return name
        captured = [cell.cell_contents for cell in value.__closure__ or ()]
        given = [*captured, value.__defaults__, value.__kwdefaults__]
        return f"{name} {_code_digest(value.__code__)} of ({listed(given)})"
    kind = type(value)
    if hasattr(value, "get_params"):
        return f"{kind.__name__}({named(value.get_params(deep=False))})"
    if kind.__repr__ is object.__repr__:
        # Such an instance is what its class and its attributes are.
        return f"{described(kind)}({named(_attributes(value))})"
    return repr(value)


def _attributes(value: Any) -> dict[str, Any]:
    slots = [name for kind in type(value).__mro__ for name in getattr(kind, "__slots__", ())]
    found = {name: getattr(value, name) for name in slots if hasattr(value, name)}
    return found | getattr(value, "__dict__", {})


def _code_digest(code: CodeType) -> str:
    """A name for what ``code`` does, wherever it was written."""

    def content(code: CodeType) -> list[Any]:
        constants = [
            content(c) if isinstance(c, CodeType) else described(c) for c in code.co_consts
        ]
        return [code.co_code.hex(), code.co_names, code.co_varnames, code.co_freevars, constants]

    return hashlib.sha256(repr(content(code)).encode()).hexdigest()[:16]


class Progress:
    """A fit's way into its file and back: nothing at all where there is none.

    Parameters
    ----------
    checkpoint : Checkpoint or None
    random_state : RandomState
        Of the fit, before its first draw; put back to what it was then when the file was begun,
        and on all ranks to what it is on rank 0.
    group : Group
        The ranks that fit together. Rank 0 reads and writes for all: one file, of one moment.
    """

    def __init__(
        self,
        checkpoint: Checkpoint | None,
        random_state: np.random.RandomState,
        group: Group,
    ) -> None:
        self.checkpoint, self.group = checkpoint, group
        content = None if checkpoint is None else group.from_first(checkpoint.read)
        self.saved: dict[str, Any] | None = None
        if content is not None:
            self.saved = content["common"] | content["own"][group.rank]
            _set_state(random_state, content["random_state"])
        self._settled: dict[str, Any] = {}
        self._random_state = group.from_first(lambda: _state_of(random_state))
        _set_state(random_state, self._random_state)

    def settled(self, name: str, make: Callable[[], T]) -> T:
        """What is decided before training, by ``make()`` on rank 0 or, if it has any, by the file.

        It is kept in the file from then on, so that a fit goes on with what it began with.
        """
        value = self.group.from_first(make) if self.saved is None else self.saved[name]
        self._settled[name] = value
        return value

    @property
    def keep(self) -> Callable[[dict[str, Any], dict[str, Any]], None] | None:
        """Takes the state of training, common and own; None where nobody asks for it."""
        return None if self.checkpoint is None else self._write

    def _write(self, common: dict[str, Any], own: dict[str, Any]) -> None:
        assert self.checkpoint is not None
        state = {
            "random_state": self._random_state,
            "common": common | self._settled,
            "own": self.group.collect(_on_cpu(own)),
        }
        write = self.checkpoint.write
        self.group.from_first(lambda: write(state))

    def close(self) -> None:
        """The fit is over."""
        if self.checkpoint is not None and self.group.rank == 0:
            self.checkpoint.remove()


def _on_cpu(value: Any) -> Any:
    """A state whose tensors can be sent to a process that has not this device."""
    if isinstance(value, dict):
        return {name: _on_cpu(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(_on_cpu, value))
    return value.cpu() if isinstance(value, torch.Tensor) else value


def _state_of(random_state: np.random.RandomState) -> list[Any]:
    """The state of ``random_state`` in plain values."""
    _, key, *rest = random_state.get_state(legacy=True)
    return [np.asarray(key).tolist(), *rest]


def _set_state(random_state: np.random.RandomState, state: list[Any]) -> None:
    random_state.set_state(("MT19937", np.array(state[0], dtype=np.uint32), *state[1:]))
