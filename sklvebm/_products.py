"""Matrix products by whichever of torch's two libraries is the faster on this processor.

On a processor torch multiplies by MKL, which keeps its AVX-512 kernels to Intel's. On AMD's,
oneDNN, which torch brings along too, takes less time once a product is large enough to pay for the
call, and rounds each row of it alike wherever the row stands. Torch's own way to it is an
undocumented operator, the one that ``torch.compile`` calls: where there is none, MKL answers.
"""

from __future__ import annotations

import platform
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

# Multiplications above which oneDNN is ahead; MKL takes as long for fewer columns as for this many,
# but for a single one.
_LARGE, _NARROW = 2**20, 32
# The same where autograd keeps a record, which costs more of a function of ours than of torch's.
_LARGE_RECORDED = 2**22
# Between numbers of rows that oneDNN is asked for.
_LEAST_STEP = 32
_CPUINFO = Path("/proc/cpuinfo")


def affine(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x (..., k)`` times the transpose of ``weight (n, k)``, plus ``bias (n,)``: ``(..., n)``."""
    if not _is_for_onednn(x, weight.shape[0]):
        return nn.functional.linear(x, weight, bias)
    needed = (t.requires_grad for t in (x, weight, bias) if t is not None)
    if not (torch.is_grad_enabled() and any(needed)):
        return _by_onednn(x, weight, bias)
    if x.numel() * weight.shape[0] > _LARGE_RECORDED:
        return _Affine.apply(x, weight, bias)
    return nn.functional.linear(x, weight, bias)


def times(x: Tensor, matrix: Tensor) -> Tensor:
    """``x (..., k)`` times ``matrix (k, n)``: ``(..., n)``."""
    return affine(x, matrix.T) if _is_for_onednn(x, matrix.shape[1]) else x @ matrix


def _is_for_onednn(x: Tensor, n: int) -> bool:
    """Whether oneDNN takes less time for ``x`` and a matrix of ``n`` columns."""
    return (
        x.numel() * max(n, _NARROW) > _LARGE
        and n > 1
        and x.is_cpu
        and x.dtype is torch.float32
        and bool(torch.backends.mkldnn.enabled)
        and _onednn() is not None
    )


@cache
def _onednn() -> Any | None:
    """The operator, where it is the faster one."""
    backends = torch.backends
    if not (backends.mkl.is_available() and backends.mkldnn.is_available()):
        return None
    if not backends.cpu.get_cpu_capability().startswith("AVX512") or not _is_amd():
        return None
    operator = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
    return operator and operator.default


def _is_amd() -> bool:
    """Whether the processor names AMD as its maker."""
    named = _CPUINFO.read_text() if _CPUINFO.exists() else platform.processor()
    return "AuthenticAMD" in named


def _by_onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Rows are filled up with zeros: oneDNN compiles and keeps a kernel for each number of them."""
    operator = _onednn()
    assert operator is not None
    n = x.numel() // x.shape[-1]
    missing = _filled(n) - n
    if not missing:
        return operator(x, weight, bias, "none", [], "")
    rows = nn.functional.pad(x.reshape(n, -1), (0, 0, 0, missing))
    return operator(rows, weight, bias, "none", [], "")[:n].reshape(*x.shape[:-1], -1)


def _filled(n: int) -> int:
    """The next number of rows at ``n`` or above that is in use: eight in each octave."""
    step = max(_LEAST_STEP, 1 << max(0, (n - 1).bit_length() - 4))
    return -(-n // step) * step


class _Affine(torch.autograd.Function):
    """:func:`affine`, which the operator does not know the gradient of."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _by_onednn(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        by_x, by_weight, by_bias = ctx.needs_input_grad
        flat = gradient.flatten(0, -2)
        return (
            times(gradient, weight) if by_x else None,
            affine(flat.T, x.flatten(0, -2).T) if by_weight else None,
            flat.sum(0) if by_bias else None,
        )
