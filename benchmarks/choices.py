"""What the defaults that are not obvious are worth: each against its alternative, side by side.

Run ``python benchmarks/choices.py`` (about an hour on two cores, a fit on each). It prints
the table, writes ``benchmarks/results/choices.json`` and puts the table into ``docs/choices.md``.
``--only casp`` measures the cells of that name anew, and leaves the others as they are.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from functools import partial

import numpy as np
from digits import ROOT, insert, latent_accuracy, load_split, machine
from joblib import Parallel, delayed
from sklearn.datasets import make_moons
from tables import OTHERS, TABLES

from sklvebm import LVEBMEstimator, TiltedEnergy

RESULTS = ROOT / "benchmarks" / "results" / "choices.json"
# A sample of make_moons(noise=.1) cannot score above minus its entropy, in nats.
MOONS_CEILING = -1.008
_MAX_TEST = 1250


def digits(seed):
    X_train, X_test, *labels = load_split(seed)
    return X_train, X_test, labels


def moons(seed):
    X_train, _ = make_moons(2000, noise=0.1, random_state=seed)
    X_test, _ = make_moons(1000, noise=0.1, random_state=seed + 1000)
    return X_train, X_test, None


def uniform(seed):
    """Twenty rows, uniform on a cube of side 3, and 500 more to test: entropy 3 log 3 = 3.296."""
    rng = np.random.default_rng(seed)
    return 3 * rng.uniform(size=(20, 3)), 3 * rng.uniform(size=(500, 3)), None


def real(name, seed):
    """A split of the table of that name."""
    split = (TABLES | OTHERS)[name].split(seed)
    return split.X_train, split.X_test[:_MAX_TEST], None


DRAWN = {"digits": digits, "moons": moons, "20 uniform rows": uniform}


def marginals(name):
    """What automatic marginals choose between."""
    return [(name, f"marginals='{kind}'", {"marginals": kind}) for kind in ("gaussian", "mixture")]


def ranked(name, rank=0):
    """A map of the residuals that follows the latents in so many directions."""
    return name, f"mixing_rank={rank}", {"energy": TiltedEnergy(mixing_rank=rank)}


CELLS = [
    ("digits", "defaults", {}),
    *marginals("digits"),
    ("digits", "weight_decay=0.05", {"weight_decay": 0.05}),
    ("digits", "weight_decay=2", {"weight_decay": 2.0}),
    ("digits", "mixing=False", {"energy": TiltedEnergy(mixing=False)}),
    ("digits", "n_frequencies=64", {"energy": TiltedEnergy(n_frequencies=64)}),
    ("digits", "learning_rate=3e-3", {"learning_rate": 3e-3}),
    ("digits", "batch_size=128, n_particles=4", {"batch_size": 128, "n_particles": 4}),
    ("digits", "wide: 256, 256", {"energy": TiltedEnergy((256, 256))}),
    ("digits", "dynamics='ula'", {"dynamics": "ula"}),
    ("digits", "pool_size=1024", {"pool_size": 1024}),
    ("digits", "n_steps=4", {"n_steps": 4}),
    ("digits", "refit=True", {"refit": True}),
    ("moons", "defaults", {}),
    ("moons", "n_frequencies=0", {"energy": TiltedEnergy(n_frequencies=0)}),
    ("moons", "dynamics='ula'", {"dynamics": "ula"}),
    ("moons", "energy='free', dynamics='ula'", {"energy": "free", "dynamics": "ula"}),
    ("checkerboard", "defaults", {}),
    (
        "checkerboard",
        "n_frequencies=128",
        {"energy": TiltedEnergy(n_frequencies=128)},
    ),
    (
        "checkerboard",
        "n_frequencies=256",
        {"energy": TiltedEnergy(n_frequencies=256)},
    ),
    ("checkerboard", "pool_size=1024", {"pool_size": 1024}),
    ("checkerboard", "n_steps=4", {"n_steps": 4}),
    *(
        cell
        for name in ("duffing", "mueller-brown")
        for cell in (
            (name, "defaults", {}),
            (name, "n_frequencies=256", {"energy": TiltedEnergy(n_frequencies=256)}),
        )
    ),
    ("rings", "defaults", {}),
    ("rings", "n_frequencies=128", {"energy": TiltedEnergy(n_frequencies=128)}),
    ("casp", "defaults", {}),
    *marginals("casp"),
    ("casp", "n_steps=1", {"n_steps": 1}),
    ("casp", "n_steps=4", {"n_steps": 4}),
    ("casp", "pool_size=1024", {"pool_size": 1024}),
    ("casp", "weight_decay=0.5", {"weight_decay": 0.5}),
    ("casp", "mixing=False", {"energy": TiltedEnergy(mixing=False)}),
    *(ranked("casp", rank) for rank in (0, 4, 16, 64)),
    ("wine", "defaults", {}),
    *marginals("wine"),
    ("wine", "mixing=False", {"energy": TiltedEnergy(mixing=False)}),
    ranked("wine"),
    ("wine", "weight_decay=0.3", {"weight_decay": 0.3}),
    ("wine", "max_iter=750", {"max_iter": 750}),
    ("wine", "pool_size=1024", {"pool_size": 1024}),
    ("wine", "refit=False", {"refit": False}),
    ("diabetes", "defaults", {}),
    *marginals("diabetes"),
    ("diabetes", "mixing=False", {"energy": TiltedEnergy(mixing=False)}),
    ranked("diabetes"),
    ("diabetes", "max_iter=750", {"max_iter": 750}),
    ("diabetes", "refit=False", {"refit": False}),
    ("breast cancer", "defaults", {}),
    *marginals("breast cancer"),
    *marginals("wine red"),
    *marginals("wine white"),
    ranked("wine white"),
    ("breast cancer", "mixing=False", {"energy": TiltedEnergy(mixing=False)}),
    ranked("breast cancer"),
    ("breast cancer", "pool_size=1024", {"pool_size": 1024}),
    ("breast cancer", "refit=False", {"refit": False}),
    *(
        cell
        for name in OTHERS
        for cell in (
            (name, "defaults", {}),
            *marginals(name),
            (name, "mixing=False", {"energy": TiltedEnergy(mixing=False)}),
            *([ranked(name)] if name in ("vehicle", "mortgage") else []),
            (name, "refit=False", {"refit": False}),
        )
    ),
    ("20 uniform rows", "defaults", {}),
    (
        "20 uniform rows",
        "tilt_bound=None",
        {"energy": TiltedEnergy(tilt_bound=None)},
    ),
    *(
        (name, f"smoothing={width}", {"smoothing": width})
        for name in ("wine", "spectf", "diabetes", "breast cancer")
        for width in ((0, 0.2, 0.4, 0.8) if name in ("wine", "spectf") else (0.2, 0.4))
    ),
]

PLANAR = ("moons", "checkerboard", "duffing", "mueller-brown", "rings")
# Latents, where they are not those of the table.
COMPONENTS = {"digits": 10, "moons": 2, "20 uniform rows": 2}


def measure(data, params, seed):
    X_train, X_test, labels = DRAWN.get(data, partial(real, data))(seed)
    k = COMPONENTS.get(data) or (TABLES | OTHERS)[data].k
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = LVEBMEstimator(k, random_state=seed, **params).fit(X_train)
    seconds = time.perf_counter() - start
    gaps = [abs(row["energy_gap"]) for row in model.history_ if row["stage"] == "tilt"]
    return {
        "log_likelihood": model.score(X_test),
        "accuracy": latent_accuracy(model, X_train, X_test, *labels) if labels else None,
        "largest_gap": float(np.nanmax(gaps)),
        "marginals": model.marginals_,
        "smoothing": model.smoothing_,
        "log_partition_bounds": model.log_partition_bounds_,
        "seconds": seconds,
    }


def load():
    """What has been measured of each cell, in their order: data, variant, rows a seed, machine."""
    known = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    order = {(data, name): i for i, (data, name, _) in enumerate(CELLS)}
    return sorted(
        (cell for cell in known if (cell["data"], cell["variant"]) in order),
        key=lambda cell: order[cell["data"], cell["variant"]],
    )


def keep(data, name, rows, where):
    """Replace one cell."""
    cell = {"data": data, "variant": name, "seeds": rows, "machine": where}
    others = [c for c in load() if (c["data"], c["variant"]) != (data, name)]
    RESULTS.write_text(json.dumps([*others, cell], indent=1) + "\n")


def table(cells):
    lines = [
        "| data | variant | marginals | smoothing | held-out nats | latent accuracy | "
        "largest energy gap | fit, s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for cell in cells:
        rows = cell["seeds"]
        mean = {
            key: np.mean([row[key] for row in rows])
            for key in ("log_likelihood", "largest_gap", "seconds")
        }
        right = [row["accuracy"] for row in rows if row["accuracy"] is not None]
        accuracy = f"{np.mean(right):.3f}" if right else ""
        # Densities of the plane are learned to within hundredths of a nat.
        places = 3 if cell["data"] in PLANAR else 2
        likelihood = f"{mean['log_likelihood']:.{places}f}"
        # What a fit of before there was a choice had.
        maps, widths = (
            ", ".join(dict.fromkeys(f"{row.get(name, before)}" for row in rows))
            for name, before in (("marginals", "gaussian"), ("smoothing", 0.0))
        )
        lines.append(
            f"| {cell['data']} | {cell['variant']} | {maps} | {widths} | {likelihood} | "
            f"{accuracy} | {mean['largest_gap']:.1f} | {mean['seconds']:.0f} |"
        )
    n_seeds = sorted({len(cell["seeds"]) for cell in cells})
    torch = sorted({cell["machine"]["torch"] for cell in cells})
    lines += [
        "",
        f"Seeds: {' or '.join(map(str, n_seeds))}; the ceiling on moons is {MOONS_CEILING}, on the "
        f"uniform rows {-3 * np.log(3):.3f}. One thread per fit, torch {', '.join(torch)}.",
    ]
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--only", default="", help="measure cells whose name contains this")
    parser.add_argument("--n-jobs", type=int, default=2, help="fits at a time, a thread each")
    arguments = parser.parse_args()
    cells = [cell for cell in CELLS if arguments.only in f"{cell[0]} {cell[1]}"]
    work = Parallel(arguments.n_jobs, return_as="generator")
    found = work(
        delayed(measure)(data, params, seed)
        for data, _, params in cells
        for seed in arguments.seeds
    )
    where = machine() | {"threads": 1}
    for data, name, _ in cells:
        rows = [next(found) for _ in arguments.seeds]
        keep(data, name, rows, where)
        print(data, name, json.dumps(rows), flush=True)
    text = table(load())
    print(text)
    insert(ROOT / "docs" / "choices.md", "choices", text)


if __name__ == "__main__":
    main()
