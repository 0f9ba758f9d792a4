"""Seconds and memory of a fit against rows, features, latents and particles, up to 1,000,000 × 50.

Run ``python benchmarks/scale.py`` (ten minutes, all cores; ``--largest 200000`` stops earlier).
Each cell is a process of its own that fits a memory-mapped table; its peak memory is counted above
that of the same process after a fit of a few rows. The preset for large tables is the default with
300 updates of 1,024 rows; a table of the size of MNIST is fitted with the default itself. It prints
the table; ``--keep`` writes ``benchmarks/results/scale.json``, the picture, and the table into
``docs/scale.md``; ``--redraw`` the latter two from the results.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
BASE = {"rows": 50_000, "features": 50, "latents": 10, "particles": 2}
AXES = {
    "rows": (10_000, 50_000, 200_000, 1_000_000),
    "features": (10, 50, 200, 784),
    "latents": (2, 10, 50),
    "particles": (1, 2, 8),
}
PRESET = {"max_iter": 300, "batch_size": 1024}
IMAGES = {"rows": 70_000, "features": 784, "latents": 10, "particles": 2}
_AT_ONCE = 50_000


def write_table(path: Path, n: int, d: int) -> None:
    """Rows of a curved ten-dimensional signal and noise, float32, a part at a time."""
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((10, d)).astype(np.float32)
    rows = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(n, d))
    for start in range(0, n, _AT_ONCE):
        stop = min(n, start + _AT_ONCE)
        signal = np.tanh(rng.standard_normal((stop - start, 10), dtype=np.float32)) @ weight
        noise = rng.standard_normal((stop - start, d), dtype=np.float32)
        rows[start:stop] = signal + 0.3 * noise
    rows.flush()


def peak_mib() -> float:
    """Peak resident memory of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def preset(cell: dict[str, int]) -> dict[str, int]:
    """The parameters that are not default."""
    return {} if cell == IMAGES else PRESET


def measure(cell: dict[str, int]) -> dict[str, float]:
    """Fit in this process: seconds, MiB above the interpreter, held-out nats per row."""
    rows, features, latents, particles = (cell[name] for name in BASE)
    from sklvebm import LVEBMEstimator

    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.npy"
        write_table(path, rows + 500, features)
        X = np.load(path, mmap_mode="r")
        LVEBMEstimator(2, max_iter=2, pool_size=32, random_state=0).fit(X[:100])
        before, start = peak_mib(), time.perf_counter()
        model = LVEBMEstimator(latents, n_particles=particles, random_state=0, **preset(cell))
        model.fit(X[:rows])
        seconds = time.perf_counter() - start
        peak = peak_mib() - before
        return {"seconds": seconds, "mib": peak, "held_out_nats": model.score(X[rows:])}


# What is drawn, and its ticks.
_TICKS = {"seconds": (10, 30, 100), "mib": (100, 300, 1000, 3000)}


def cells(largest: int) -> list[dict[str, int]]:
    """One axis at a time about ``BASE``, and ``IMAGES``."""
    found = [BASE | {axis: value} for axis, values in AXES.items() for value in values]
    unique = list({tuple(cell.items()): cell for cell in [*found, IMAGES]}.values())
    return [cell for cell in unique if cell["rows"] <= largest]


def table(results: list[dict], where: dict) -> str:
    """Markdown."""
    lines = [
        "| rows | features | latents | particles | settings | fit, s | MiB above the interpreter |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in results:
        sizes = " | ".join(f"{row['cell'][name]:,}" for name in BASE)
        settings = "preset" if preset(row["cell"]) else "defaults"
        lines.append(f"| {sizes} | {settings} | {row['seconds']:.0f} | {row['mib']:,.0f} |")
    given = ", ".join(f"`{name}={value}`" for name, value in PRESET.items())
    lines += ["", f"Preset: {given}; {where['processor']}, {where['threads']} threads."]
    return "\n".join(lines)


def picture(results: list[dict], path: Path) -> None:
    """Seconds above, memory below, against each axis."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import EngFormatter, NullFormatter

    fig, axes = plt.subplots(2, len(AXES), figsize=(11, 5), sharey="row", layout="constrained")
    axes[0, 0].set_ylabel("fit, s")
    axes[1, 0].set_ylabel("MiB above the interpreter")
    for column, axis in zip(axes.T, AXES, strict=True):
        others = {name: value for name, value in BASE.items() if name != axis}
        chosen = [r for r in results if {n: r["cell"][n] for n in others} == others]
        chosen.sort(key=lambda row: row["cell"][axis])
        sizes = [row["cell"][axis] for row in chosen]
        for ax, name, ticks in zip(column, _TICKS, _TICKS.values(), strict=True):
            ax.loglog(sizes, [row[name] for row in chosen], "o-", color="#0072B2")
            ax.set_xlabel(axis)
            ax.set_xticks(sizes, [EngFormatter(sep="")(size) for size in sizes])
            ax.xaxis.set_minor_formatter(NullFormatter())
            ax.set_yticks(ticks, [f"{tick:,}" for tick in ticks])
            ax.yaxis.set_minor_formatter(NullFormatter())
            ax.grid(alpha=0.3)
    fig.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--largest", type=int, default=1_000_000, help="most rows")
    parser.add_argument("--keep", action="store_true", help="write the results and the page")
    parser.add_argument("--redraw", action="store_true", help="write the page from the results")
    parser.add_argument("--measure", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.measure)))
        return
    from digits import insert, last_line_of, machine

    path = ROOT / "benchmarks" / "results" / "scale.json"
    if arguments.redraw:
        content = json.loads(path.read_text())
    else:
        content = {"machine": machine(), "results": []}
        for cell in cells(arguments.largest):
            found = last_line_of(__file__, "--measure", json.dumps(cell))
            content["results"].append({"cell": cell} | found)
            print(content["results"][-1], flush=True)
    text = table(content["results"], content["machine"])
    print(text)
    if arguments.keep or arguments.redraw:
        path.write_text(json.dumps(content, indent=1) + "\n")
        picture(content["results"], ROOT / "docs" / "scale.png")
        shown = "![Seconds and memory against rows, features, latents and particles.](scale.png)"
        insert(ROOT / "docs" / "scale.md", "scale", f"{text}\n\n{shown}")


if __name__ == "__main__":
    main()
