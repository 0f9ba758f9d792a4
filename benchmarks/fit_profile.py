"""Where the seconds of fit, transform, score_samples and sample go, at default settings.

Run ``python benchmarks/fit_profile.py`` (some minutes, all cores, and once more on one thread).
``--before PATH`` takes the same figures from another checkout, in turn with this one, so that both
meet the same machine. It prints the table; ``--keep`` writes
``benchmarks/results/fit_profile.json`` and puts it into ``docs/scale.md``.
"""

from __future__ import annotations

import argparse
import importlib
import json
import time
import warnings
from collections import defaultdict
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
TABLES = ("wine", "digits", "50,000 × 30")
PARTS = ("pilots", "latents", "pool", "gradient", "evaluations", "finish")


def rows_of(name: str) -> np.ndarray:
    """The training rows."""
    from sklearn import datasets

    rng = np.random.default_rng(0)
    if name == "wine":
        return datasets.load_wine().data
    if name == "digits":
        pixels = datasets.load_digits().data
        return pixels + rng.uniform(size=pixels.shape)
    latents = np.tanh(rng.standard_normal((50_000, 10)))
    return latents @ rng.standard_normal((10, 30)) + 0.3 * rng.standard_normal((50_000, 30))


def timed_parts() -> dict[str, float]:
    """Seconds by part, counted from now on in this process.

    A second belongs to the innermost part that it is spent in; those of the pilots, which are fits
    too, all to the pilots.
    """
    import sklvebm
    from sklvebm import training
    from sklvebm.particles import JointPool, LangevinParticles
    from sklvebm.saddle import Saddle

    seconds: dict[str, float] = defaultdict(float)
    under_way: list[str] = []

    def count(owner, name: str, part: str) -> None:
        call = getattr(owner, name)

        def counted(*args, **kwargs):
            if "pilots" in under_way:
                return call(*args, **kwargs)
            under_way.append(part)
            start = time.perf_counter()
            try:
                return call(*args, **kwargs)
            finally:
                spent = time.perf_counter() - start
                under_way.pop()
                seconds[part] += spent
                if under_way:
                    seconds[under_way[-1]] -= spent

        setattr(owner, name, counted)

    # Not in the code of before, where an editable install would find this one's.
    if (Path(sklvebm.__file__).parent / "pilot.py").exists():
        pilots = importlib.import_module("sklvebm.pilot").Pilots
        for question in ("knots", "smoothing"):
            if hasattr(pilots, question):
                count(pilots, question, "pilots")
    # In the code of before, a visit was one call.
    visit = "move" if hasattr(LangevinParticles, "move") else "advance"
    count(LangevinParticles, visit, "latents")
    count(JointPool, "advance", "pool")
    count(Saddle, "update", "gradient")
    count(training.Trainer, "_evaluate", "evaluations")
    count(training, "finish", "finish")
    return seconds


def measure(name: str) -> dict[str, float]:
    """Seconds of each call in this process, and of the parts of fit."""
    from sklvebm import LVEBMEstimator

    warnings.simplefilter("ignore")
    X, seconds = rows_of(name), timed_parts()
    model = LVEBMEstimator(10 if name == "digits" else None, random_state=0)

    def clock(call, *args) -> float:
        start = time.perf_counter()
        call(*args)
        return time.perf_counter() - start

    found = {"fit": clock(model.fit, X), "updates": model.n_iter_}
    found |= {part: seconds[part] for part in PARTS}
    # What a transform of its own loads and lays out once is not counted.
    model.transform(X[:10])
    found["transform 10,000"] = clock(model.transform, X[:10_000]) * 10_000 / len(X[:10_000])
    found["score 1,000"] = clock(model.score_samples, X[:1000]) * 1000 / len(X[:1000])
    found["sample 10,000"] = clock(model.sample, 10_000)
    return found


def table(results: list[dict], where: dict) -> str:
    """Markdown, seconds."""
    columns = ["fit", *PARTS, "transform 10,000", "score 1,000", "sample 10,000"]
    lines = [
        "| data | code | updates | " + " | ".join(columns) + " |",
        "|" + "---|" * (len(columns) + 3),
    ]
    for row in results:
        seconds = " | ".join(f"{row['seconds'][name]:.1f}" for name in columns)
        lines.append(f"| {row['data']} | {row['code']} | {row['seconds']['updates']} | {seconds} |")
    return "\n".join(
        [
            *lines,
            "",
            f"Seconds; {where['processor']}, {where['threads']} threads but where one is named.",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--before", type=Path, help="another checkout to compare with")
    parser.add_argument("--keep", action="store_true", help="write the results and the page")
    parser.add_argument("--measure", choices=TABLES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.measure)))
        return
    from digits import insert, last_line_of, machine

    codes: dict[str, dict[str, str]] = {}
    if arguments.before:
        codes["before"] = {"PYTHONPATH": str(arguments.before.resolve())}
    here = {"PYTHONPATH": str(ROOT)}
    codes |= {"now, one thread": here | {"OMP_NUM_THREADS": "1"}, "now": here}
    results = []
    for data in TABLES:
        for code, environment in codes.items():
            seconds = last_line_of(__file__, "--measure", data, **environment)
            results.append({"data": data, "code": code, "seconds": seconds})
            print(results[-1], flush=True)
    where = machine()
    text = table(results, where)
    print(text)
    if arguments.keep:
        path = ROOT / "benchmarks" / "results" / "fit_profile.json"
        path.write_text(json.dumps({"machine": where, "results": results}, indent=1) + "\n")
        insert(ROOT / "docs" / "scale.md", "profile", text)


if __name__ == "__main__":
    main()
