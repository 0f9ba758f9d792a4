"""The same fit on the processor and on a CUDA device: seconds, memory, and whether both agree.

Run ``python benchmarks/cuda.py``. Where there is no CUDA device it says that it is skipped, and
``--keep`` writes that into ``docs/scale.md`` instead of the table. Two fits of one seed draw other
noise on another device: their held-out scores are to differ by no more than seeds do, which is
measured beside them.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings

import numpy as np
from digits import ROOT, insert, machine
from fit_profile import rows_of

CASES = {
    "digits": {"n_components": 10},
    "50,000 × 30": {},
    "50,000 × 30 (batches of 1,024)": {"batch_size": 1024, "pool_size": 8192},
}
N_SEEDS, N_HELD_OUT = 3, 500


def measure(name, device, seed):
    """Seconds of every call on ``device``, its peak memory, and the held-out score."""
    import torch

    from sklvebm import LVEBMEstimator

    X = np.random.default_rng(seed).permutation(rows_of(name.split(" (")[0]))
    train, test = X[:-N_HELD_OUT], X[-N_HELD_OUT:]
    options = CASES[name] | {"device": device, "random_state": seed}
    # What a device loads once is not counted.
    LVEBMEstimator(2, max_iter=4, pool_size=64, device=device, random_state=0).fit(train[:100])
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
    found = {}

    def clock(part, call, *args):
        start = time.perf_counter()
        result = call(*args)
        found[part] = time.perf_counter() - start
        return result

    model = clock("fit", LVEBMEstimator(**options).fit, train)
    clock("transform", model.transform, train[:10_000])
    found["score"] = clock("score_s", model.score, test)
    clock("sample", model.sample, 10_000)
    found["mib"] = 0.0 if device == "cpu" else torch.cuda.max_memory_allocated() / 2**20
    return found


def table(results):
    """Markdown: medians of the seconds; the scores' mean and their spread over the seeds."""
    lines = [
        "| data | device | fit, s | transform, s | sample 10,000, s | MiB on the device | "
        "held-out nats ± spread over seeds |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, devices in results.items():
        for device, seeds in devices.items():
            cells = [
                f"{np.median([found[part] for found in seeds]):.1f}"
                for part in ("fit", "transform", "sample")
            ]
            scores = [found["score"] for found in seeds]
            cells += [f"{max(found['mib'] for found in seeds):,.0f}"]
            cells += [f"{np.mean(scores):.2f} ± {np.std(scores, ddof=1):.2f}"]
            lines.append(f"| {name} | {device} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keep", action="store_true", help="write the results and the page")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    import torch

    where = machine()
    if torch.cuda.is_available():
        where["device"] = torch.cuda.get_device_name()
        results = {
            name: {
                device: [measure(name, device, seed) for seed in range(N_SEEDS)]
                for device in ("cpu", "cuda")
            }
            for name in CASES
        }
        text = (
            f"{table(results)}\n\n{where['device']}; {where['threads']} threads of the processor."
        )
        if arguments.keep:
            path = ROOT / "benchmarks" / "results" / "cuda.json"
            path.write_text(json.dumps({"machine": where, "results": results}, indent=1) + "\n")
    else:
        text = "Skipped: `python benchmarks/cuda.py` found no CUDA device."
    print(text)
    if arguments.keep:
        insert(ROOT / "docs" / "scale.md", "cuda", text)


if __name__ == "__main__":
    main()
