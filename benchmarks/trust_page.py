"""Fill ``docs/trust.md`` and draw its plot from ``benchmarks/results/trust.json``."""

from __future__ import annotations

import json

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from digits import ROOT, insert
from trust import MAX_ITER, N_TEST, N_TRAIN, RESULTS

COLOURS = {
    "tilted": "#0072B2",
    "isotropic": "#009E73",
    "free": "#D55E00",
    "linear": "#7F7F7F",
}


def by_density(cells):
    """Cells of one density and energy, in the order they first appear."""
    groups = {}
    for cell in cells:
        groups.setdefault((cell["density"], cell["energy"]), []).append(cell)
    return groups


def table(cells):
    lines = [
        "| density | energy | score − true log-density, nats | largest, in standard errors | "
        "∫ exp(score), lowest to highest | log ∫ exp(score) by Bennett | overlap | log Z raised |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for (density, energy), group in by_density(cells).items():
        excess = np.mean([c["excess"] for c in group])
        largest = max(c["excess"] / c["error"] for c in group)
        integrals = [c["integral"] for c in group if c["integral"] is not None]
        shown = f"{min(integrals):.3f} to {max(integrals):.3f}" if integrals else ""
        mass = np.mean([c["log_mass"] for c in group])
        error = np.linalg.norm([c["log_mass_error"] for c in group]) / len(group)
        overlap = np.mean([c["overlap"] for c in group])
        raised = sum(bool(c["raised_by"]) for c in group)
        lines.append(
            f"| {density} | {energy} | {excess:.3f} | {largest:+.1f} | {shown} | "
            f"{mass:+.3f} ± {error:.3f} | {overlap:.2f} | {raised} of {len(group)} |"
        )
    return "\n".join(lines)


def summary(content):
    cells = content["cells"]
    integrals = np.array([c["integral"] for c in cells if c["integral"] is not None])
    largest = max(c["excess"] / c["error"] for c in cells)
    masses = [c["log_mass"] / c["log_mass_error"] for c in cells]
    where = content["machine"]
    return (
        f"{len(cells)} fits ({len({c['seed'] for c in cells})} seeds, {N_TRAIN:,} rows each, "
        f"max_iter={MAX_ITER}). Less the mean true log-density, the mean score on {N_TEST:,} fresh "
        f"rows is at most {largest:+.1f} of its standard errors. "
        f"{int((np.abs(integrals - 1) <= 0.02).sum())} of {len(integrals)} integrals lie within "
        f".02 of one; the farthest is {integrals[np.abs(integrals - 1).argmax()]:.3f}. "
        f"log ∫ exp(score) by Bennett lies between {min(masses):.1f} and {max(masses):+.1f} of its "
        f"standard errors from zero, in all dimensions, in {np.mean(np.abs(masses) < 2):.0%} of "
        "the fits within two. "
        f"Python {where['python']}, torch {where['torch']}, scikit-learn {where['scikit-learn']}."
    )


def picture(cells, path):
    """Every fit: how far below the truth it scores, and what its density integrates to."""
    names = list(dict.fromkeys(c["density"] for c in cells))
    planar = list(dict.fromkeys(c["density"] for c in cells if c["integral"]))
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 5.2), layout="constrained")
    for i, (energy, colour) in enumerate(COLOURS.items()):
        offset = 0.18 * (i - (len(COLOURS) - 1) / 2)
        mine = [c for c in cells if c["energy"] == energy]
        y = [names.index(c["density"]) + offset for c in mine]
        left.errorbar(
            [c["excess"] for c in mine],
            y,
            xerr=[4 * c["error"] for c in mine],
            fmt="o",
            markersize=3.5,
            linewidth=1,
            color=colour,
            label=energy,
        )
        some = [(c["integral"], planar.index(c["density"]) + offset) for c in mine if c["integral"]]
        right.plot(*zip(*some, strict=True), "o", markersize=4, color=colour, label=energy)
    left.axvline(0, color="black", linewidth=1)
    left.set_yticks(range(len(names)), labels=names)
    left.invert_yaxis()
    left.set_xscale("symlog", linthresh=0.1)
    left.set_xlabel("mean score − mean true log-density on fresh rows, nats (bars: 4 SE)")
    figure.legend(*left.get_legend_handles_labels(), loc="outside upper center", ncols=4)
    right.axvline(1, color="black", linewidth=1)
    right.axvspan(0.98, 1.02, color="black", alpha=0.08, linewidth=0)
    right.set_yticks(range(len(planar)), labels=planar)
    right.invert_yaxis()
    right.set_xlabel("∫ exp(score_samples) dx (band: 1 ± .02)")
    figure.savefig(path, dpi=110)


def main():
    content = json.loads(RESULTS.read_text())
    page = ROOT / "docs" / "trust.md"
    insert(page, "summary", summary(content))
    insert(page, "trust", table(content["cells"]))
    picture(content["cells"], ROOT / "docs" / "trust.png")


if __name__ == "__main__":
    main()
