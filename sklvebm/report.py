"""What stands behind a score: its error in three parts, its bounds, the worst rows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

# Nats. The error of a row that is estimated from its draws reaches one at most, where a single
# draw has all the weight.
_UNCERTAIN = 0.5
# Where all draws of a row underflow its score is about the least number in single precision.
_UNDERFLOWN = -1e37


@dataclass(frozen=True, eq=False)
class ScoreReport:
    r"""A mean held-out log-likelihood, and how far it can be trusted. All in nats.

    .. math:: \mathrm{SE}^2 = \mathrm{Var}(\log p)/n + \mathrm{SE}_{rows}^2
        + \mathrm{SE}(\log \hat Z)^2

    Attributes
    ----------
    mean : float
        What ``score`` returns.
    std_error : float
        Standard error of ``mean`` as an estimate of E[log p(x)]: the three parts in square.
    std_sampling : float
        From the finite number of rows; falls as 1/√n.
    std_rows : float
        From the Monte Carlo estimates of the rows' evidence. Their noise is shared, so it does not
        fall as 1/√n; it is estimated from the shared draws themselves.
    std_partition : float
        Of log Z; shared by all rows, so it does not fall with n at all.
    bounds : tuple of float
        The mean under the high (reverse) and the low (forward) estimate of log Z: one-sided in
        expectation, the reverse one where the pool is in equilibrium. Both are noisy and may cross.
    raised_by : dict of str to float
        What made ``score`` use a log Z above the joint estimate, and by how many nats; empty where
        the estimates agree.
    worst_rows : ndarray of shape (n_worst,)
        Rows of the lowest log-density, the lowest first.
    log_prob, row_std : ndarray of shape (n,)
        log p of each row and its standard error. The latter comes from the weights of the row's
        draws and cannot exceed one nat: near that, one draw has all the weight, and the row may be
        far likelier than its score says.
    diagnostics : dict
        The estimator's ``diagnostics_``.
    """

    mean: float
    std_error: float
    std_sampling: float
    std_rows: float
    std_partition: float
    bounds: tuple[float, float]
    raised_by: Mapping[str, float]
    worst_rows: NDArray
    log_prob: NDArray = field(repr=False)
    row_std: NDArray = field(repr=False)
    diagnostics: Mapping[str, float] = field(repr=False)

    def __str__(self) -> str:
        lines = [
            f"log-likelihood {self.mean:.3f} ± {self.std_error:.3f} nats per row "
            f"({len(self.log_prob)} rows)",
            f"  error: rows' spread {self.std_sampling:.3f}, rows' evidence {self.std_rows:.3f}, "
            f"log Z {self.std_partition:.3f}",
            f"  bounds from log Z: {self.bounds[0]:.3f} to {self.bounds[1]:.3f}",
        ]
        lines += [f"  log Z raised: {why}, {by:.2f} nats" for why, by in self.raised_by.items()]
        uncertain = int(((self.row_std > _UNCERTAIN) | (self.log_prob < _UNDERFLOWN)).sum())
        if uncertain:
            lines.append(
                f"  uncertain: {uncertain} row{'s' * (uncertain > 1)} whose log-density may be far "
                f"too low (own error above {_UNCERTAIN} nats)"
            )
        if len(self.worst_rows):
            worst = ", ".join(f"row {i}: {self.log_prob[i]:.1f}" for i in self.worst_rows)
            lines.append(f"  lowest: {worst}")
        return "\n".join(lines)


def score_report(
    log_prob: NDArray,
    row_std: NDArray,
    *,
    std_rows: float,
    log_partition: float,
    std_partition: float,
    bounds: tuple[float, float],
    raised_by: Mapping[str, float],
    n_worst: int,
    diagnostics: Mapping[str, float],
) -> ScoreReport:
    """Put a :class:`ScoreReport` together; ``bounds`` are the low and the high log Z."""
    mean, n = float(log_prob.mean()), len(log_prob)
    # One row says nothing of the spread of rows.
    std_sampling = float(log_prob.std(ddof=1)) / math.sqrt(n) if n > 1 else math.nan
    return ScoreReport(
        mean=mean,
        std_error=math.sqrt(std_sampling**2 + std_rows**2 + std_partition**2),
        std_sampling=std_sampling,
        std_rows=std_rows,
        std_partition=std_partition,
        bounds=(mean + log_partition - bounds[1], mean + log_partition - bounds[0]),
        raised_by=dict(raised_by),
        worst_rows=np.argsort(log_prob, kind="stable")[:n_worst],
        log_prob=log_prob,
        row_std=row_std,
        diagnostics=dict(diagnostics),
    )
