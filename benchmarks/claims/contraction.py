"""Contraction of the flows in KL and W2: the rate of many chains against the theory's.

Where the energy is strongly convex with constant λ, the law at time t of the Langevin flow obeys
KL_t ≤ e^{−2λt} KL_0 and W2_t ≤ e^{−λt} W2_0. Three flows start from a Gaussian: the conditional and
the joint one of a linear-Gaussian energy (Gaussian at every time, so that moments give both
distances, and the closed form of the Ornstein-Uhlenbeck process is known), and the conditional one
of an energy with log-cosh residuals, whose posterior is skewed. The Gaussian ones start off along
their slowest direction, where the bounds are tightest.
"""

from __future__ import annotations

import math
import sys
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import ot
import torch
from digits import ROOT
from scipy.special import logsumexp

from sklvebm.langevin import LogDensity, Noise, init, langevin_step

from .common import BLUE, GREY, ORANGE, markdown, n_seeds, run, selected, shown

sys.path.insert(0, str(ROOT / "tests"))

import oracles
from targets import LinearGaussian

CAPTION = "KL and W2 against time for three flows: chains, closed form, and the theory's bound."
FULL = {"seeds": range(3), "n_chains": 50_000, "step": 0.02}
QUICK = {"seeds": range(1), "n_chains": 5000, "step": 0.05}
# Until λt = 3, read off at this many times. Rates are fitted from λt = 1/2 on and down to e⁻⁵ of
# the first KL and e^{−5/2} of the first W2, far above what is left of n chains' sampling error.
HORIZON, N_TIMES, FROM, DOWN_TO = 3.0, 30, 0.5, {"kl": -5.0, "w2": -2.5}
WEIGHT, BIAS, SIGMA = np.array([[1.0, 0.2], [0.3, 0.6], [0.0, 0.4]]), np.zeros(3), 0.8
ROW = np.array([[1.0, -0.5, 0.5]])
SLOPES, SKEWED_ROW = np.array([1.5, 1.0, 0.5]), np.array([3.0, -1.0, 0.5])
DISTANCES = ("kl", "w2")
# Every flow starts this far off, and with this standard deviation in each coordinate.
OFFSET, START_STD = 2.0, 0.5
GRID = np.linspace(-6, 8, 14_001)
_BINS = GRID[::200]


class Flow(NamedTuple):
    """A flow in R^m: its target, the bounds λ ≤ Hessian of the energy ≤ L, and where it starts."""

    log_density: LogDensity
    convexity: float
    smoothness: float
    start: np.ndarray
    mean: np.ndarray | None = None
    covariance: np.ndarray | None = None


# -- the three flows -------------------------------------------------------------------------------


def _gaussian(log_density, mean, covariance) -> Flow:
    values, vectors = np.linalg.eigh(covariance)
    start = mean + OFFSET * vectors[:, -1]
    return Flow(log_density, 1 / values[-1], 1 / values[0], start, mean, covariance)


def conditional_flow() -> Flow:
    energy = LinearGaussian(WEIGHT, BIAS, SIGMA)
    mean, covariance = oracles.linear_posterior(ROW, WEIGHT, BIAS, SIGMA)
    x = torch.from_numpy(ROW)
    return _gaussian(lambda z: -energy(x, z), mean[0], covariance)


def joint_flow() -> Flow:
    energy = LinearGaussian(WEIGHT, BIAS, SIGMA)
    k = WEIGHT.shape[1]
    moments = oracles.linear_joint(WEIGHT, BIAS, SIGMA)
    return _gaussian(lambda u: -energy(u[:, k:], u[:, :k]), *moments)


def _skewed_log_density(z, xp):
    residual = xp.asarray(SKEWED_ROW) - z[..., None] * xp.asarray(SLOPES)
    return -0.5 * z**2 - xp.log(xp.cosh(residual)).sum(-1)


def skewed_flow() -> Flow:
    """E = z²/2 + Σ log cosh(x_j − w_j z): the second derivative lies in (1, 1 + Σ w_j²]."""
    return Flow(
        lambda z: _skewed_log_density(z[:, 0], torch),
        1.0,
        1 + float((SLOPES**2).sum()),
        _skewed_quantiles(np.array([0.5])) + OFFSET,
    )


FLOWS = {
    "posterior, Gaussian": conditional_flow,
    "joint, Gaussian": joint_flow,
    "posterior, skewed": skewed_flow,
}


def _skewed_masses() -> np.ndarray:
    """Probabilities of the cells of the grid."""
    middles = (GRID[1:] + GRID[:-1]) / 2
    log_p = _skewed_log_density(middles, np)
    return np.exp(log_p - logsumexp(log_p))


def _skewed_quantiles(u: np.ndarray) -> np.ndarray:
    return np.interp(u, np.concatenate([[0], _skewed_masses().cumsum()]), GRID)


# -- distances -------------------------------------------------------------------------------------


def gaussian_distances(flow: Flow, mean, covariance) -> tuple[float, float]:
    """KL and W2 of a Gaussian law to the flow's."""
    kl = oracles.gaussian_kl(mean, covariance, flow.mean, flow.covariance)
    args = mean, flow.mean, covariance, flow.covariance
    return kl, float(ot.gaussian.bures_wasserstein_distance(*args))


def skewed_distances(z: np.ndarray) -> tuple[float, float]:
    """KL over bins, which is at most the true one, and exact W2 between quantiles."""
    counts = np.histogram(z, _BINS)[0] / len(z)
    masses = _skewed_masses().reshape(len(_BINS) - 1, -1).sum(1)
    some = counts > 0
    kl = float((counts[some] * np.log(counts[some] / masses[some])).sum())
    quantiles = _skewed_quantiles((np.arange(len(z)) + 0.5) / len(z))
    return kl, math.sqrt(ot.wasserstein_1d(z, quantiles, p=2))


def distances(flow: Flow, position: torch.Tensor) -> tuple[float, float]:
    """KL (nats) and W2 of the law of the chains ``(n, m)`` to the target."""
    u = position.numpy()
    if flow.mean is None:
        return skewed_distances(u[:, 0])
    return gaussian_distances(flow, u.mean(0), np.cov(u, rowvar=False))


def closed_form(flow: Flow, t: float) -> tuple[float, float]:
    """KL and W2 of the Ornstein-Uhlenbeck process at time t."""
    values, vectors = np.linalg.eigh(np.linalg.inv(flow.covariance))
    decay = vectors @ np.diag(np.exp(-values * t)) @ vectors.T
    first = START_STD**2 * np.eye(len(flow.mean))
    covariance = flow.covariance + decay @ (first - flow.covariance) @ decay
    return gaussian_distances(flow, flow.mean + decay @ (flow.start - flow.mean), covariance)


# -- measurement -----------------------------------------------------------------------------------


def compared(name, times, values, rate) -> dict[str, float]:
    """Decay rate of a distance, by least squares on logs, and its largest ratio to the bound."""
    logs = np.log(values / values[0])
    used = (times * rate >= FROM) & (logs >= DOWN_TO[name])
    return {
        f"rate_{name}": -float(np.polyfit(times[used], logs[used], 1)[0]),
        f"largest_{name}": float((values[1:] / values[0] / theory(name, times[1:], rate)).max()),
    }


def theory(name, times, rate):
    """Bound on the distance over its first value."""
    return np.exp(-{"kl": 2, "w2": 1}[name] * rate * times)


def measure_flow(*, flow: str, seed: int, n_chains: int, step: float) -> dict:
    """Distances along the flow, by unadjusted chains of step ``step`` / L."""
    target = FLOWS[flow]()
    noise = Noise(torch.Generator().manual_seed(seed))
    start = torch.from_numpy(target.start).expand(n_chains, -1)
    state = init(start + START_STD * noise.normal(start), target.log_density)
    eta = step / target.smoothness
    every = max(1, round(HORIZON / target.convexity / eta / N_TIMES))
    found = [distances(target, state.position)]
    for _ in range(N_TIMES):
        for _ in range(every):
            state, _info = langevin_step(
                state, target.log_density, step_size=eta, noise=noise, metropolis=False
            )
        found.append(distances(target, state.position))
    times = np.arange(N_TIMES + 1) * every * eta
    series = dict(zip(DISTANCES, np.array(found).T, strict=True))
    out = {"convexity": target.convexity, "times": times.tolist()}
    out["exact"] = [] if target.mean is None else [closed_form(target, t) for t in times]
    for name, values in series.items():
        out |= {name: values.tolist()} | compared(name, times, values, target.convexity)
    return out


def measure(*, seeds, n_chains, step, n_jobs):
    cells = [
        {"flow": flow, "seed": seed, "n_chains": n_chains, "step": step}
        for flow in FLOWS
        for seed in seeds
    ]
    return run(measure_flow, cells, n_jobs)


def table(rows):
    lines = []
    for name in FLOWS:
        mine = selected(rows, flow=name)
        rate = mine[0]["convexity"]
        kl, w2 = (shown([row[f"rate_{d}"] for row in mine], 3) for d in DISTANCES)
        largest = shown([max(row[f"largest_{d}"] for d in DISTANCES) for row in mine], 3)
        lines.append([name, f"{2 * rate:.3f}", kl, f"{rate:.3f}", w2, largest])
    header = [
        "flow",
        "KL rate: 2λ",
        "measured",
        "W2 rate: λ",
        "measured",
        "largest share of the bound",
    ]
    note = (
        f"{rows[0]['n_chains']:,} chains, {n_seeds(rows)}, steps of "
        f"{rows[0]['step']} over the largest curvature."
    )
    return markdown(header, lines, note)


def picture(rows, path):
    figure, axes = plt.subplots(2, len(FLOWS), figsize=(12, 6), layout="constrained", sharex="col")
    units = {"kl": "KL to the target, nats", "w2": "W2 to the target, units of (x, z)"}
    for column, name in zip(axes.T, FLOWS, strict=True):
        mine = selected(rows, flow=name)
        for i, (axis, key) in enumerate(zip(column, units, strict=True)):
            _panel(axis, mine, key, i)
        column[0].set_title(f"{name}, λ = {mine[0]['convexity']:.2f}", fontsize=10)
        column[1].set_xlabel("time t")
    for axis, label in zip(axes[:, 0], units.values(), strict=True):
        axis.set_ylabel(label)
    axes[0, 0].legend(fontsize=8)
    figure.savefig(path, dpi=110)


def _panel(axis, rows, key, i):
    times = np.array(rows[0]["times"])
    for n, row in enumerate(rows):
        label = "chains, each seed" if n == 0 else None
        axis.plot(times, row[key], "o", markersize=3, color=BLUE, label=label)
    if rows[0]["exact"]:
        axis.plot(times, np.array(rows[0]["exact"])[:, i], color=GREY, label="closed form")
    bound = rows[0][key][0] * theory(key, times, rows[0]["convexity"])
    label = "theory's bound" if i == 0 else None
    axis.plot(times, bound, "--", color=ORANGE, label=label)
    axis.set_yscale("log")
