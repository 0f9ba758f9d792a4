"""The same fit on the processor and on a CUDA device: seconds, memory, and whether both agree.

Run ``python benchmarks/cuda.py`` (some ten minutes). Where there is no CUDA device it says that it
is skipped, and ``--keep`` writes that into ``docs/scale.md`` instead of the table, unless results
are kept. Otherwise ``--keep`` writes ``benchmarks/results/cuda.json``, cell by cell: a run that was
cut short goes on from there (``--anew`` forgets them).

Two fits of one seed draw other noise on another device: their held-out scores are to differ by no
more than seeds do, which is measured beside them. "called" is the device without CUDA graphs, each
operation called by itself. Fits of the processor, on the threads that torch is given, run side by
side on as many of its cores as there are; one fit at a time is on the device.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from digits import ROOT, insert, last_line_of, machine
from fit_profile import rows_of
from scale import write_table

RESULTS = ROOT / "benchmarks" / "results" / "cuda.json"
IMAGES, _LARGE = "70,000 × 784", ", large batches"
CASES = {
    "digits": {"n_components": 10},
    "50,000 × 30": {},
    "50,000 × 30" + _LARGE: {"batch_size": 1024, "pool_size": 8192},
    IMAGES: {"n_components": 10},
}
DEVICES = ("cpu", "cuda", "called")
N_SEEDS, N_HELD_OUT, N_ANSWERED = 3, 500, 10_000
PARTS = ("fit", "transform", "score", "sample")


def table_of(case: str, seed: int) -> np.ndarray:
    """Rows in random order; the last ``N_HELD_OUT`` are to be held out."""
    if case != IMAGES:
        return np.random.default_rng(seed).permutation(rows_of(case.removesuffix(_LARGE)))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.npy"
        write_table(path, 70_000 + N_HELD_OUT, 784)
        return np.load(path)


def measure(case: str, device: str, seed: int) -> dict:
    """Seconds of every call on ``device``, its peak memory, and the held-out score."""
    import torch

    from sklvebm import LVEBMEstimator
    from sklvebm.recording import Recorded

    warnings.simplefilter("ignore")
    if device == "called":
        setattr(Recorded, "__call__", lambda self, *args: self.function(*args))  # noqa: B010
    on = "cpu" if device == "cpu" else "cuda"
    X = table_of(case, seed)
    train, test = X[:-N_HELD_OUT], X[-N_HELD_OUT:]
    # What a device loads once is not counted.
    LVEBMEstimator(2, max_iter=8, pool_size=64, device=on, random_state=0).fit(train[:100])
    if on == "cuda":
        torch.cuda.reset_peak_memory_stats()
    seconds = {}

    def clock(part, call, *args):
        start = time.perf_counter()
        result = call(*args)
        seconds[part] = time.perf_counter() - start
        return result

    model = LVEBMEstimator(**CASES[case], device=on, random_state=seed)
    clock("fit", model.fit, train)
    clock("transform", model.transform, train[:N_ANSWERED])
    score = clock("score", model.score, test)
    clock("sample", model.sample, N_ANSWERED)
    mib = torch.cuda.max_memory_allocated() / 2**20 if on == "cuda" else 0.0
    return {"seconds": seconds, "nats": score, "mib": mib, "n_iter": model.n_iter_}


def table(cells: list[dict]) -> str:
    """Markdown: medians of the seconds; the scores' mean and their spread over the seeds."""
    lines = [
        "| data | device | updates | fit, s | transform, s | score 500, s | sample 10,000, s | "
        "MiB on the device | held-out nats ± spread over seeds |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for case in CASES:
        for device in DEVICES:
            found = [c for c in cells if (c["case"], c["device"]) == (case, device)]
            if not found:
                continue
            row = [case, device, f"{np.median([c['n_iter'] for c in found]):.0f}"]
            row += [f"{np.median([c['seconds'][part] for c in found]):.1f}" for part in PARTS]
            row.append("" if device == "cpu" else f"{max(c['mib'] for c in found):,.0f}")
            nats = [c["nats"] for c in found]
            spread = f" ± {np.std(nats, ddof=1):.2f}" if len(nats) > 1 else ""
            lines.append("| " + " | ".join([*row, f"{np.mean(nats):.2f}{spread}"]) + " |")
    return "\n".join(lines)


def page(results: dict) -> str:
    """What goes into ``docs/scale.md``."""
    where = results["machine"]
    return (
        f"{table(results['cells'])}\n\nMedians of {N_SEEDS} seeds, of one where each operation is "
        f"called; {where['device']}, torch {where['torch']}; {where['threads']} threads of the "
        "processor per fit, several of them side by side."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keep", action="store_true", help="write the results and the page")
    parser.add_argument("--anew", action="store_true", help="forget what is kept")
    parser.add_argument("--cell", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.cell:
        print(json.dumps(measure(*arguments.cell)))
        return
    import torch

    kept = json.loads(RESULTS.read_text()) if RESULTS.exists() and not arguments.anew else None
    text = page(kept) if kept else "Skipped: `python benchmarks/cuda.py` found no CUDA device."
    if torch.cuda.is_available():
        text = page(run(kept, arguments.keep))
    elif kept:
        print("Skipped: there is no CUDA device. These are the results that are kept.")
    print(text)
    if arguments.keep:
        insert(ROOT / "docs" / "scale.md", "cuda", text)


def run(kept: dict | None, keep: bool) -> dict:
    """Measure what is not in ``kept``."""
    import torch

    where = machine() | {"device": torch.cuda.get_device_name()}
    results = kept or {"machine": where, "cells": []}
    known = {(c["case"], c["device"], c["seed"]) for c in results["cells"]}
    wanted = [(c, d, seed) for seed in range(N_SEEDS) for c in CASES for d in DEVICES[:2]]
    # For what the graphs gain one seed will do.
    wanted += [(c, DEVICES[2], 0) for c in CASES]

    def found(cell: tuple[str, str, int]) -> None:
        told = last_line_of(__file__, "--cell", json.dumps(cell))
        results["cells"].append(dict(zip(("case", "device", "seed"), cell, strict=True)) | told)
        print(cell, told, file=sys.stderr, flush=True)
        if keep:
            RESULTS.write_text(json.dumps(results, indent=1) + "\n")

    threads = torch.get_num_threads()
    cores = len(os.sched_getaffinity(0))
    with (
        ThreadPoolExecutor(max(1, (cores - 2) // threads)) as processor,
        ThreadPoolExecutor(1) as device,
    ):
        todo = [cell for cell in wanted if cell not in known]
        jobs = [(processor if cell[1] == "cpu" else device).submit(found, cell) for cell in todo]
        for job in jobs:
            job.result()
    return results


if __name__ == "__main__":
    main()
