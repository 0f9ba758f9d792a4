"""The one boundary between numpy and torch: arrays, dtypes, devices, random states."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.utils import check_random_state
from torch import Tensor, nn

_TORCH_DTYPE = {np.dtype(np.float32): torch.float32, np.dtype(np.float64): torch.float64}


def resolve_device(device: Any) -> torch.device:
    """``"auto"`` (CUDA where present, else the CPU), or anything that ``torch.device`` takes.

    Raises
    ------
    ValueError
        If the device is unknown or not available here.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
        # Chains keep their clocks in double precision, which some devices have not.
        torch.empty(0, device=resolved, dtype=torch.float64)
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:
        raise ValueError(f"device={device!r} cannot be used here: {error}") from error
    return resolved


def device_or_cpu(device: str) -> torch.device:
    """The device that a model was fitted on where there is such a one, else the CPU."""
    try:
        return resolve_device(device)
    except ValueError:
        return torch.device("cpu")


def to_tensor(array: NDArray, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """A tensor copy of ``array`` (which may be read-only)."""
    if dtype is None:
        dtype = _TORCH_DTYPE[array.dtype]
    return torch.tensor(np.ascontiguousarray(array), dtype=dtype, device=device)


def to_numpy(tensor: Tensor) -> NDArray:
    """A numpy array that shares nothing with the graph."""
    return tensor.detach().cpu().numpy()


def on_tensors(function: Callable[[NDArray], NDArray]) -> Callable[[Tensor], Tensor]:
    """``function`` of arrays as one of tensors, on their device and in their precision."""
    return lambda tensor: torch.from_numpy(function(to_numpy(tensor))).to(tensor)


def generator_from_seed(seed: int, device: torch.device) -> torch.Generator:
    """A generator on ``device``; the global one is not touched."""
    return torch.Generator(device=device).manual_seed(int(seed))


def draw_seed(random_state: Any) -> int:
    """A seed from an int, a ``RandomState``, or, for None, from the operating system.

    scikit-learn's convention for None is numpy's global generator; that would be advanced by the
    call, and nothing here touches global state.
    """
    if random_state is None:
        return int(np.random.SeedSequence().generate_state(1)[0])
    return int(check_random_state(random_state).randint(np.iinfo(np.int32).max))


def state_to_arrays(module: nn.Module) -> dict[str, NDArray]:
    """The parameters and buffers of ``module`` as plain numpy arrays."""
    return {name: to_numpy(value).copy() for name, value in module.state_dict().items()}


def load_arrays(module: nn.Module, arrays: dict[str, NDArray]) -> None:
    """Fill ``module`` from :func:`state_to_arrays`."""
    module.load_state_dict({name: torch.tensor(np.array(v)) for name, v in arrays.items()})
