"""What importing costs beside scikit-learn itself: milliseconds, each in a fresh interpreter.

Run ``python benchmarks/import_time.py`` (a minute). It prints the table, writes
``benchmarks/results/import_time.json`` and puts the table into ``docs/measurements.md``.
"""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
from digits import ROOT, insert, machine

N_REPEATS = 21
STATEMENTS = (
    "import sklvebm",
    "from sklvebm import LVEBMEstimator",
    "from sklvebm import LVEBMOutlierDetector, TiltedEnergy",
)
CODE = """
import sys, time
times = [time.perf_counter()]
import sklearn
times.append(time.perf_counter())
{}
times.append(time.perf_counter())
print(*(1e3 * (b - a) for a, b in zip(times, times[1:])), int("torch" in sys.modules))
"""


def measure(statement):
    """Milliseconds of scikit-learn, of the statement after it, and whether that brought torch."""
    command = [sys.executable, "-c", CODE.format(statement)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return [float(number) for number in done.stdout.split()]


def table(rows, own, where):
    lines = ["| import | ms more than scikit-learn | torch |", "|---|---|---|"]
    lines += [
        f"| `{row['statement']}` | {row['milliseconds']:.0f} | {'yes' if row['torch'] else 'no'} |"
        for row in rows
    ]
    lines += [
        "",
        f"After `import sklearn`, which takes {own:.0f} ms; medians of {N_REPEATS} fresh "
        f"interpreters. Python {where['python']}, scikit-learn {where['scikit-learn']}, "
        f"{where['processor']}.",
    ]
    return "\n".join(lines)


def main():
    for statement in STATEMENTS:
        measure(statement)  # compiles, and fills the caches of files
    # In turn, so that what else the machine does falls on all alike.
    rounds = np.array([[measure(s) for s in STATEMENTS] for _ in range(N_REPEATS)])
    own, *_ = np.median(rounds, axis=(0, 1))
    rows = [
        {"statement": statement, "milliseconds": float(more), "torch": bool(torch)}
        for statement, (_, more, torch) in zip(STATEMENTS, np.median(rounds, axis=0), strict=True)
    ]
    where = machine()
    text = table(rows, own, where)
    print(text)
    (ROOT / "benchmarks" / "results" / "import_time.json").write_text(
        json.dumps({"machine": where, "scikit_learn": float(own), "rows": rows}, indent=1) + "\n"
    )
    insert(ROOT / "docs" / "measurements.md", "import", text)


if __name__ == "__main__":
    main()
