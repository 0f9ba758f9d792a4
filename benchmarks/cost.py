"""What a score costs: seconds for log Z, and for scoring and transforming a thousand rows.

Run ``python benchmarks/cost.py`` (about three minutes on two cores). It prints the table, writes
``benchmarks/results/cost.json`` and puts the table into ``docs/trust.md``.
"""

from __future__ import annotations

import json
import time
import warnings

import numpy as np
import torch
from digits import ROOT, insert, load_split, machine
from sklearn.datasets import make_low_rank_matrix

from sklvebm import LVEBMEstimator
from sklvebm._arrays import generator_from_seed
from sklvebm.langevin import Noise
from sklvebm.partition import log_partition

N_REPEATS = 3


def low_rank(d, seed=0):
    """Two thousand rows with a few strong directions and noise, ``(2000, d)``."""
    signal = make_low_rank_matrix(2000, d, effective_rank=5, random_state=seed) * d
    return signal + 0.1 * np.random.default_rng(seed).standard_normal((2000, d))


def median_seconds(call):
    """Median over a few calls after one to warm up."""
    call()
    seconds = []
    for _ in range(N_REPEATS):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return float(np.median(seconds))


def measure(name, X, rows):
    """Costs and errors of a default fit."""
    model = LVEBMEstimator(10, random_state=0).fit(X)
    inner = model._model
    noise = Noise(generator_from_seed(0, inner.device))
    x = torch.as_tensor(model._units.to_model(X), dtype=inner.pool.dtype)
    # What log Z is asked to cover, as at the end of a fit.
    covered = inner.energy.reference.join(x, inner.posterior_mean(x))
    _, std = model.score_samples(rows, return_std=True)
    per_thousand = 1000 / len(rows)
    return {
        "data": name,
        "log_partition_seconds": median_seconds(
            lambda: log_partition(inner.energy, inner.pool, data=covered, noise=noise)
        ),
        "log_partition_std": model.log_partition_std_,
        "score_seconds": per_thousand * median_seconds(lambda: model.score_samples(rows)),
        "row_std_median": float(np.median(std)),
        "transform_seconds": per_thousand * median_seconds(lambda: model.transform(rows)),
        "sample_seconds": median_seconds(lambda: model.sample(1000)),
    }


def table(cells, where):
    lines = [
        "| data | log Z, s | its error, nats | score 1,000 rows, s | median error of a row, nats | "
        "transform 1,000 rows, s | sample 1,000 rows, s |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {c['data']} | {c['log_partition_seconds']:.1f} | {c['log_partition_std']:.3f} | "
        f"{c['score_seconds']:.1f} | {c['row_std_median']:.3f} | "
        f"{c['transform_seconds']:.1f} | {c['sample_seconds']:.1f} |"
        for c in cells
    ]
    lines += [
        "",
        f"k = 10, medians of {N_REPEATS} after one more; {where['threads']} threads, "
        f"torch {where['torch']}.",
    ]
    return "\n".join(lines)


def main():
    warnings.simplefilter("ignore")
    X_train, X_test, *_ = load_split(0)
    digits = np.concatenate([X_train, X_test])
    data = [("digits, d = 64", digits, digits[:1000])]
    # Rows are answered 256 at a time, a thread each.
    data += [(f"low rank, d = {d}", low_rank(d), low_rank(d)[:512]) for d in (10, 784)]
    cells = []
    for name, X, rows in data:
        cells.append(measure(name, X, rows))
        print(json.dumps(cells[-1]), flush=True)
    where = machine() | {"threads": torch.get_num_threads()}
    (ROOT / "benchmarks" / "results" / "cost.json").write_text(
        json.dumps({"machine": where, "cells": cells}, indent=1) + "\n"
    )
    text = table(cells, where)
    print(text)
    insert(ROOT / "docs" / "trust.md", "cost", text)


if __name__ == "__main__":
    main()
