"""A newcomer's path, timed: clone, install, and the README's script on a table of their own.

Run ``python benchmarks/newcomer.py`` (minutes; it downloads what the install needs). Clones the
last commit, runs ``make install`` there and then, word for word, the README's ``my_table.py``. It
prints the table, writes ``benchmarks/results/newcomer.json`` and puts the table into ``README.md``.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import tempfile
import time
from pathlib import Path

from digits import ROOT, insert, machine
from sklearn.datasets import load_wine


def script():
    """The README's block that reads ``my_table.csv``."""
    blocks = re.findall(r"(?ms)^```python\n(.*?)^```", (ROOT / "README.md").read_text())
    (found,) = (block for block in blocks if "my_table.csv" in block)
    return found


def timed(*command, cwd):
    """Seconds of a command, and what it printed; the caller's environment is not passed on."""
    passed = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    start = time.perf_counter()
    done = subprocess.run(
        command, cwd=cwd, env=passed, check=True, stdout=subprocess.PIPE, text=True
    )
    return time.perf_counter() - start, done.stdout


def megabytes(folder):
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6


def measure(folder):
    """Seconds of each step, what the script printed, and what the environment weighs."""
    steps = {}
    steps["git clone"], _ = timed("git", "clone", "-q", f"file://{ROOT}", "sklvebm", cwd=folder)
    checkout = folder / "sklvebm"
    steps["make install"], _ = timed("make", "install", cwd=checkout)
    load_wine(as_frame=True).frame.to_csv(checkout / "my_table.csv", index=False)
    (checkout / "my_table.py").write_text(script())
    steps["my_table.py"], printed = timed(".venv/bin/python", "my_table.py", cwd=checkout)
    return steps, printed, megabytes(checkout / ".venv")


def table(steps, printed, weight, where):
    notes = {
        "git clone": "from a local disk",
        "make install": f"from packages that were at hand; {weight:.0f} MB when unpacked",
        "my_table.py": "the table of wines: 178 rows, 13 columns; two fits",
    }
    lines = ["| step | seconds | |", "|---|---|---|"]
    lines += [f"| `{name}` | {seconds:.1f} | {notes[name]} |" for name, seconds in steps.items()]
    lines += [
        f"| from nothing to the answer | {sum(steps.values()):.0f} | |",
        "",
        f"Python {where['python']}, torch {where['torch']}, scikit-learn "
        f"{where['scikit-learn']}, torch threads: {where['threads']}, {where['processor']}; "
        f"{where['load']:.1f} other processes at work on {where['cores']} cores. With the build of "
        "torch for the processor alone; the one for CUDA weighs several times as much.",
        "",
        "What the script prints:",
        "",
        f"```\n{printed.strip()}\n```",
    ]
    return "\n".join(lines)


def main():
    load = {"load": os.getloadavg()[0], "cores": os.cpu_count()}
    with tempfile.TemporaryDirectory() as folder:
        steps, printed, weight = measure(Path(folder))
    print(printed)
    where = machine() | load
    text = table(steps, printed, weight, where)
    print(text)
    (ROOT / "benchmarks" / "results" / "newcomer.json").write_text(
        json.dumps(
            {"machine": where, "seconds": steps, "megabytes": weight, "printed": printed}, indent=1
        )
        + "\n"
    )
    insert(ROOT / "README.md", "newcomer", text)


if __name__ == "__main__":
    main()
