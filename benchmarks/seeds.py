"""The statistical tests over many seeds: they must pass whatever the seed.

Run ``python benchmarks/seeds.py --n-seeds 100`` (five to eight minutes a seed and core, one seed a
core). It prints each seed's outcome, appends it to ``benchmarks/results/seeds.json``, so that runs
add up, and writes the totals into ``docs/trust.md``. ``--anew`` sets aside what has been run so
far, where code or tests have changed by more than words: it is counted apart.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor, as_completed

from digits import ROOT, insert

RESULTS = ROOT / "benchmarks" / "results" / "seeds.json"


def run(seed):
    """Outcome of one seed: how many passed, which failed, and the last commit of what ran."""
    log = ["git", "log", "-1", "--format=%h", "--", "sklvebm", "tests"]
    commit = subprocess.run(
        log, cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.strip()
    command = [sys.executable, "-m", "pytest", "-n", "0", "-m", "statistical", f"--seed={seed}"]
    done = subprocess.run(
        command,
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=False,
    )
    failed = re.findall(r"^FAILED (\S+)", done.stdout, re.MULTILINE)
    passed = re.search(r"(\d+) passed", done.stdout)
    if passed is None or (done.returncode != 0 and not failed):
        raise RuntimeError(f"pytest did not run: {done.stdout[-2000:]}{done.stderr[-2000:]}")
    return {"seed": seed, "passed": int(passed[1]), "failed": failed, "commit": commit}


def keep(outcomes):
    RESULTS.write_text(json.dumps(outcomes, indent=1) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n-seeds", type=int, default=100)
    parser.add_argument("--n-jobs", type=int, default=os.cpu_count())
    parser.add_argument("--anew", action="store_true", help="set aside what has been run")
    arguments = parser.parse_args()
    outcomes = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    if arguments.anew:
        outcomes = [outcome | {"earlier": True} for outcome in outcomes]
        keep(outcomes)
    done = {outcome["seed"] for outcome in outcomes if not outcome.get("earlier")}
    due = [seed for seed in range(arguments.n_seeds) if seed not in done]
    with ThreadPoolExecutor(arguments.n_jobs) as pool:
        for future in as_completed([pool.submit(run, seed) for seed in due]):
            outcomes.append(future.result())
            print(json.dumps(outcomes[-1]), flush=True)
            keep(outcomes)
    lines = ["| version | seeds | tests in all | failures |", "|---|---|---|---|"]
    for version, earlier in (("this one", False), ("earlier ones", True)):
        some = [outcome for outcome in outcomes if outcome.get("earlier", False) == earlier]
        failed = [name for outcome in some for name in outcome["failed"]]
        tests = sum(outcome["passed"] for outcome in some) + len(failed)
        shown = ", ".join([str(len(failed)), *(f"`{name}`" for name in sorted(set(failed)))])
        lines.append(f"| {version} | {len(some)} | {tests:,} | {shown} |")
    text = "\n".join(lines)
    print(text)
    insert(ROOT / "docs" / "trust.md", "seeds", text)


if __name__ == "__main__":
    main()
