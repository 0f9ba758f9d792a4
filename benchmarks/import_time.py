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
    "import sklearn",
    "import sklearn; import sklvebm",
    "import sklearn; from sklvebm import LVEBMEstimator",
    "import sklearn; from sklvebm import LVEBMOutlierDetector, TiltedEnergy",
)
CODE = """
import sys, time
start = time.perf_counter()
{}
print(1e3 * (time.perf_counter() - start), "torch" in sys.modules)
"""


def measure(statement):
    """Milliseconds of one import, and whether it brought torch."""
    command = [sys.executable, "-c", CODE.format(statement)]
    milliseconds, torch = subprocess.run(
        command, check=True, capture_output=True, text=True
    ).stdout.split()
    return float(milliseconds), torch == "True"


def table(rows, where):
    lines = ["| import | ms | over scikit-learn | torch |", "|---|---|---|---|"]
    lines += [
        f"| `{row['statement'].removeprefix('import sklearn; ')}` | {row['milliseconds']:.0f} | "
        f"{row['over']:+.0f} | {'yes' if row['torch'] else 'no'} |"
        for row in rows
    ]
    lines += [
        "",
        f"Medians of {N_REPEATS} fresh interpreters; over scikit-learn: of the differences, after "
        f"`import sklearn` in both. Python {where['python']}, scikit-learn "
        f"{where['scikit-learn']}, {where['processor']}.",
    ]
    return "\n".join(lines)


def main():
    for statement in STATEMENTS:
        measure(statement)  # compiles, and fills the caches of files
    # In turn, so that what else the machine does falls on all alike.
    rounds = [[measure(statement) for statement in STATEMENTS] for _ in range(N_REPEATS)]
    seconds = np.array([[milliseconds for milliseconds, _ in row] for row in rounds])
    rows = [
        {
            "statement": statement,
            "milliseconds": float(np.median(seconds[:, i])),
            "over": float(np.median(seconds[:, i] - seconds[:, 0])),
            "torch": rounds[0][i][1],
        }
        for i, statement in enumerate(STATEMENTS)
    ]
    where = machine()
    text = table(rows, where)
    print(text)
    (ROOT / "benchmarks" / "results" / "import_time.json").write_text(
        json.dumps({"machine": where, "rows": rows}, indent=1) + "\n"
    )
    insert(ROOT / "docs" / "measurements.md", "import", text)


if __name__ == "__main__":
    main()
