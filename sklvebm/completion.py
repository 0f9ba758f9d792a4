"""Rows that miss entries (NaN): how they are set apart, and what a linear guess says of them."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from .langevin import regularised


def apart(x: Tensor) -> list[Tensor]:
    """Indices of the complete rows of ``x (n, d)``, and of the others; only what there is."""
    incomplete = torch.isnan(x).any(1)
    return [rows for rows in (torch.where(~incomplete)[0], torch.where(incomplete)[0]) if len(rows)]


def by_completeness(method: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Call ``method(self, x, ...)`` on the complete rows and on the others; join the answers.

    Rows are the last dimension but one of an answer. What is answered of a complete row does not
    depend on whether others miss entries.
    """

    @wraps(method)
    def joined(self: Any, x: Tensor, *args: Any) -> Tensor:
        parts = [(rows, method(self, x[rows], *args)) for rows in apart(x)]
        if len(parts) == 1:
            return parts[0][1]
        order = torch.cat([rows for rows, _ in parts]).argsort()
        return torch.cat([part for _, part in parts], -2).index_select(-2, order)

    return joined


def linear_guess(
    x: Tensor, mean: Tensor, covariance: Tensor, within: Tensor
) -> tuple[Tensor, Tensor]:
    """Mean and covariance of the coordinates (z, y) of rows that miss entries.

    Parameters
    ----------
    x : Tensor of shape (n, d)
    mean, covariance : Tensor of shape (k + d,) and (k + d, k + d)
        Of (z, x) under the model.
    within : Tensor of shape (k, k)
        A typical covariance of z where every feature is seen.

    Returns
    -------
    centre : Tensor of shape (n, k + d)
        The best linear guess of z, and zeros for y.
    spread : Tensor of shape (n, k + d, k + d)
        ``within``, and what the missing features would have told of z were all linear; the
        identity for y.
    """
    n, d = x.shape
    k = len(mean) - d
    dtype = x.dtype
    # What is lost is a difference, which rounding would make indefinite where features repeat.
    x, mean, covariance, within = (part.double() for part in (x, mean, covariance, within))
    missing = torch.isnan(x)
    covariance = regularised(covariance)
    cross, whole = covariance[:k, k:], covariance[k:, k:]
    eye = torch.eye(d, dtype=x.dtype, device=x.device)
    # A missing feature has no covariance with any other, and so no weight.
    pairs = ~missing[:, :, None] & ~missing[:, None]
    weights = cross @ torch.linalg.inv(torch.where(pairs, whole, eye))
    weights = torch.where(missing[:, None], 0.0, weights)
    residual = torch.where(missing, 0.0, x - mean[k:])
    z = mean[:k] + (weights @ residual[..., None])[..., 0]
    lost = (torch.linalg.solve(whole, cross.T).T - weights) @ cross.T
    spread = torch.zeros(n, k + d, k + d, dtype=x.dtype, device=x.device)
    spread[:, :k, :k] = within + 0.5 * (lost + lost.transpose(1, 2))
    spread[:, k:, k:] = eye
    return torch.cat([z, torch.zeros_like(x)], 1).to(dtype), spread.to(dtype)
