"""Whether the chains can be believed: R-hat, effective sample size, and what to change if not.

Arrays in, plain numbers and sentences out. R-hat and ESS are arviz-stats'.

References
----------
A. Vehtari, A. Gelman, D. Simpson, B. Carpenter and P.-C. Bürkner (2021), "Rank-normalization,
folding, and localization: an improved R-hat", Bayesian Analysis 16 (R-hat below 1.01, ESS above
400). C. C. Margossian, M. D. Hoffman, P. Sountsov, L. Riou-Durand, A. Vehtari and A. Gelman (2024),
"Nested R-hat: assessing the convergence of Markov chain Monte Carlo when running many short
chains", Bayesian Analysis. G. O. Roberts and J. S. Rosenthal (1998), "Optimal scaling of discrete
approximations to Langevin diffusions", JRSS B 60 (acceptance .574; efficiency falls off slowly
between .4 and .8, and to little outside .15 and .97).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

MAX_RHAT = 1.01
MIN_ESS = 400.0
ACCEPTANCE_RANGE = (0.15, 0.97)
# Nats by which the data may lie off the negatives, on average, before the pool counts as lagging.
MAX_MEAN_GAP = 5.0
_MAX_SUPERCHAIN = 256


def joint_mixing(trace: NDArray, n_apart: int) -> dict[str, float]:
    """R-hat and ESS of the tilt over the joint pool.

    Parameters
    ----------
    trace : ndarray of shape (n_chains, n_draws)
        Log-tilt −f of every member after every move.
    n_apart : int
        The last ``n_apart`` chains started elsewhere than the others. R-hat is nested: these are
        one superchain, as many of the others are the second.

    Returns
    -------
    diagnostics : dict
        ``rhat_joint``, and ``ess_joint``: what the whole trace is worth in independent draws. A
        chain that stands still is worth one.
    """
    if len(trace) < 4 or np.ptp(trace) == 0:
        return {"rhat_joint": 1.0, "ess_joint": float(trace.size)}
    from arviz_stats.base import array_stats

    size = max(2, min(n_apart, len(trace) - n_apart, _MAX_SUPERCHAIN))
    chosen = np.concatenate([trace[:size], trace[-size:]])
    superchains = np.repeat([0, 1], size)
    rhat = array_stats.rhat_nested(chosen, superchain_ids=superchains, chain_axis=0, draw_axis=1)
    ess = array_stats.ess(chosen, chain_axis=0, draw_axis=1)
    # The other members move by the same kernel: each adds as much.
    return {"rhat_joint": float(rhat), "ess_joint": float(ess) * len(trace) / (2 * size)}


def conditional_mixing(draws: NDArray) -> dict[str, float]:
    """R-hat and ESS of the latents of some rows, the typical row's worst component.

    Parameters
    ----------
    draws : ndarray of shape (n_rows, n_chains, n_draws, k)

    Returns
    -------
    diagnostics : dict
        ``rhat_conditional`` and ``ess_conditional``: medians over the rows.
    """
    from arviz_stats.base import array_stats

    rhat = array_stats.rhat(draws, chain_axis=1, draw_axis=2)
    ess = array_stats.ess(draws, chain_axis=1, draw_axis=2)
    return {
        "rhat_conditional": float(np.median(rhat.max(-1))),
        "ess_conditional": float(np.median(ess.min(-1))),
    }


def gap_statistics(gaps: NDArray) -> dict[str, float]:
    """Mean and lag-one autocorrelation of the energy gap over the last half of a stage."""
    late = np.asarray(gaps, dtype=float)[len(gaps) // 2 :]
    if len(late) < 8 or np.ptp(late) == 0:
        return {"energy_gap_mean": math.nan, "energy_gap_autocorrelation": math.nan}
    centred = late - late.mean()
    lagged = float(centred[1:] @ centred[:-1] / (centred @ centred))
    return {"energy_gap_mean": float(late.mean()), "energy_gap_autocorrelation": lagged}


def complaints(diagnostics: Mapping[str, float], *, fixed_step_size: bool) -> list[str]:
    """What is wrong with the chains, each with what to change; empty where nothing is."""
    found = []
    rhat, ess = diagnostics.get("rhat_joint", 1.0), diagnostics.get("ess_joint", math.inf)
    if rhat > MAX_RHAT:
        found.append(
            f"chains of the joint pool that started from data and from the pool disagree (nested "
            f"R-hat of the tilt {rhat:.3f}, above {MAX_RHAT}): the pool does not reach every mode. "
            "Try a smaller learning_rate, more weight_decay, or a larger pool_size."
        )
    if ess < MIN_ESS:
        found.append(
            f"the last moves of the joint pool are worth {ess:.0f} independent draws (fewer than "
            f"{MIN_ESS:.0f}): increase pool_size."
        )
    low, high = ACCEPTANCE_RANGE
    for flow in ("conditional", "joint"):
        acceptance = diagnostics.get(f"acceptance_{flow}", math.nan)
        if acceptance < low:
            found.append(
                f"the {flow} flow accepts {acceptance:.0%} of its steps (below {low:.0%}): it "
                "hardly moves. Decrease step_size, or leave it at 'auto'."
            )
        # Where the tilt is weak the joint proposal is all but exact, whatever its step.
        if acceptance > high and fixed_step_size and flow == "conditional":
            found.append(
                f"the {flow} flow accepts {acceptance:.1%} of its steps (above {high:.0%}): they "
                "are too short to explore. Increase step_size, or leave it at 'auto'."
            )
    gap = diagnostics.get("energy_gap_mean", math.nan)
    if abs(gap) > MAX_MEAN_GAP:
        found.append(
            f"data and negatives differ by {gap:.1f} nats on average (beyond "
            f"{MAX_MEAN_GAP:.0f}): the pool does not keep up with the energy. Decrease "
            "learning_rate, or increase weight_decay."
        )
    return found
