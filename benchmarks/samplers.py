"""The samplers and log Z on constructions with exact answers, drawn: the tests' own, over seeds.

Run ``python benchmarks/samplers.py`` (about two minutes on two cores). It prints two tables, puts
them into ``docs/trust.md`` and draws ``docs/samplers.png``.
"""

from __future__ import annotations

import sys
import warnings

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import torch
from digits import ROOT, insert
from scipy import stats

from sklvebm.langevin import Noise
from sklvebm.partition import log_partition

sys.path.insert(0, str(ROOT / "tests"))

import oracles
import test_annealing as annealing
import test_calibration as calibration
import test_sabotage as sabotage

SEEDS = range(5)
PHI4 = {8: 100, 16: 120, 64: 300}
ASKED = ("first latent", "second latent", "their product", "log p(x, z)")


def generators():
    return [torch.Generator().manual_seed(seed) for seed in SEEDS]


# -- ranks -----------------------------------------------------------------------------------------


def ranks(sampler, generator):
    """Ranks of exact latents among the sampler's draws, ``(n, 4)``."""
    energies = calibration.nonlinear_energies(generator)
    return calibration.ranks_of_all(
        energies, lambda energy, x: sampler(energy, x, generator), generator
    ).numpy()


def adjusted(energy, x, generator):
    return calibration.particles(
        energy, x, generator, n_visits=25, dynamics="mala", step_size="auto"
    )


def unadjusted(energy, x, generator):
    step_size = calibration.LARGE_STEP
    return calibration.particles(
        energy, x, generator, n_visits=10, dynamics="ula", step_size=step_size
    )


def unweighted(energy, x, generator):
    return calibration.weighted_draws(energy, x, generator, even=True)


SAMPLERS = {
    "a row's posterior": calibration.posterior_draws,
    "training particles": adjusted,
    "weights forgotten (wrong)": unweighted,
    "unadjusted, large step (wrong)": unadjusted,
}


def chi2_table(found):
    """χ² of each sampler and question, with its p-value."""
    n_bins = calibration.L + 1
    lines = [
        "| draws | " + " | ".join(f"{name}: χ² (p)" for name in ASKED) + " |",
        "|---|" + "---|" * len(ASKED),
    ]
    for name, values in found.items():
        cells = []
        for column in values.T:
            chi2, p = stats.chisquare(np.bincount(column, minlength=n_bins))
            cells.append(f"{chi2:.0f} ({p:.2f})" if p > 1e-3 else f"{chi2:.0f} (< .001)")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    n = len(next(iter(found.values())))
    lines += ["", f"{n_bins} bins, {n:,} ranks each, {calibration.N_ENERGIES} random energies."]
    return "\n".join(lines)


# -- log Z -----------------------------------------------------------------------------------------


def phi4(n_sites, generator):
    energy, (members,) = annealing.phi4_pools(n_sites, 1, 2048, generator, n_visits=PHI4[n_sites])
    found = log_partition(energy, members, noise=Noise(generator))
    return found, oracles.phi4_log_partition(n_sites)


def stuck(generator):
    energy, members = sabotage.stuck_pool(generator)
    return log_partition(energy, members, noise=Noise(generator)), sabotage.MODES_LOG_Z


def well(generator):
    energy, members = sabotage.pool_with_a_quarter_in_the_well(generator)
    found = log_partition(energy, members, n_apart=512, noise=Noise(generator))
    return found, sabotage.WELL_LOG_Z


CASES = {
    **{f"φ⁴ chain, N = {n}": lambda generator, n=n: phi4(n, generator) for n in PHI4},
    "pool stuck in one of two modes": stuck,
    "a well that the reference never visits": well,
}


def log_z_table(cases):
    lines = [
        "| case | exact log Z | joint estimate less exact, nats, by seed | its standard error, "
        "largest of the seeds | what `score` uses, less exact | doubted |",
        "|---|---|---|---|---|---|",
    ]
    for name, found in cases.items():
        exact = found[0][1]
        off = ", ".join(f"{f.value - exact:+.3f}" for f, _ in found)
        used = ", ".join(f"{f.conservative - exact:+.3f}" for f, _ in found)
        std = max(f.std for f, _ in found)
        doubted = sum(f.disagrees for f, _ in found)
        lines.append(
            f"| {name} | {exact:.4f} | {off} | {std:.3f} | {used} | {doubted} of {len(found)} |"
        )
    return "\n".join(lines)


# -- the picture -----------------------------------------------------------------------------------


def picture(found, cases, path):
    figure = plt.figure(figsize=(12, 6.4), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1.5, 1))
    n_bins = calibration.L + 1
    axes = left.subplots(len(found), len(ASKED), sharex=True)
    for i, (name, values) in enumerate(found.items()):
        expected = len(values) / n_bins
        low, high = stats.binom.ppf([0.005, 0.995], len(values), 1 / n_bins)
        for axis, column, asked in zip(axes[i], values.T, ASKED, strict=True):
            axis.axhspan(low, high, color="black", alpha=0.12, linewidth=0)
            axis.axhline(expected, color="black", linewidth=0.8)
            colour = "#D55E00" if "wrong" in name else "#0072B2"
            axis.stairs(np.bincount(column, minlength=n_bins), color=colour, linewidth=1.5)
            axis.set_yticks([])
            if i == 0:
                axis.set_title(asked, fontsize=9)
            if i == len(found) - 1:
                axis.set_xlabel("rank", fontsize=9)
        axes[i, 0].set_ylabel(name.replace(", ", ",\n").replace(" (", "\n("), fontsize=8)
    left.suptitle("Counts of the ranks of exact latents among draws (band: 99 %)", fontsize=10)
    axis = right.subplots()
    for i, results in enumerate(cases.values()):
        exact = results[0][1]
        for values, colour, marker, label in (
            ([f.reverse for f, _ in results], "#D55E00", "v", "from the pool alone"),
            ([f.value for f, _ in results], "#7F7F7F", "o", "joint estimate"),
            ([f.conservative for f, _ in results], "#0072B2", "D", "used by score"),
        ):
            offset = {"v": -0.2, "o": 0.0, "D": 0.2}[marker]
            axis.plot(
                np.array(values) - exact,
                np.full(len(values), i + offset),
                marker,
                color=colour,
                markersize=5,
                label=label if i == 0 else None,
            )
    axis.axvline(0, color="black", linewidth=1)
    names = [name.replace("one of ", "one\nof ").replace("the ref", "\nthe ref") for name in cases]
    axis.set_yticks(range(len(cases)), labels=names, fontsize=8)
    axis.invert_yaxis()
    axis.set_xlabel("log Z less the exact one, nats\n(too low flatters the score)", fontsize=9)
    axis.legend(fontsize=8)
    right.suptitle("log Z, five seeds", fontsize=10)
    figure.savefig(path, dpi=110)


def main():
    warnings.simplefilter("ignore")
    found = {name: ranks(sampler, generators()[0]) for name, sampler in SAMPLERS.items()}
    cases = {name: [case(g) for g in generators()] for name, case in CASES.items()}
    page = ROOT / "docs" / "trust.md"
    for name, text in (("ranks", chi2_table(found)), ("log-z", log_z_table(cases))):
        print(text, end="\n\n")
        insert(page, name, text)
    picture(found, cases, ROOT / "docs" / "samplers.png")


if __name__ == "__main__":
    main()
