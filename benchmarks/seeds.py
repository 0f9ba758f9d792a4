"""The statistical tests over many seeds: they must pass whatever the seed.

Run ``python benchmarks/seeds.py --n-seeds 100`` (about four minutes a seed and core, one seed a
core). It prints each seed's outcome, appends it to ``benchmarks/results/seeds.json``, so that runs
add up, and writes the total into ``docs/trust.md``.
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


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n-seeds", type=int, default=100)
    parser.add_argument("--n-jobs", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    outcomes = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    done = {outcome["seed"] for outcome in outcomes}
    due = [seed for seed in range(arguments.n_seeds) if seed not in done]
    with ThreadPoolExecutor(arguments.n_jobs) as pool:
        for future in as_completed([pool.submit(run, seed) for seed in due]):
            outcomes.append(future.result())
            print(json.dumps(outcomes[-1]), flush=True)
            RESULTS.write_text(json.dumps(outcomes, indent=1) + "\n")
    failures = sum(len(outcome["failed"]) for outcome in outcomes)
    tests = sum(outcome["passed"] for outcome in outcomes) + failures
    text = f"{len(outcomes)} seeds so far, {tests:,} tests in all, {failures} failures."
    print(text)
    insert(ROOT / "docs" / "trust.md", "seeds", text)


if __name__ == "__main__":
    main()
