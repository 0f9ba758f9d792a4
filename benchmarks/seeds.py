"""The statistical tests over many seeds: they must pass whatever the seed.

Run ``python benchmarks/seeds.py --n-seeds 100`` (five to eight minutes a seed and core, one seed a
core). It prints each seed's outcome, appends it to ``benchmarks/results/seeds.json``, so that runs
add up, and writes the totals into ``docs/trust.md``: of the last commit that changed code or tests,
and of those before. Seeds that this commit has been run with are not run again.
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


def last_commit():
    """Hash and date of the last commit that changed what runs."""
    log = ["git", "log", "-1", "--format=%H %cs", "--", "sklvebm", "tests"]
    done = subprocess.run(log, cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.split()


def run(seed):
    """Outcome of one seed: how many passed, which failed, and the last commit of what ran."""
    commit, date = last_commit()
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
    found = {"passed": int(passed[1]), "failed": failed}
    return {"seed": seed, "commit": commit, "date": date} | found


def table(outcomes):
    """Totals of the last commit, and of all those before it."""
    last, _ = last_commit()
    groups: dict[bool, list[dict]] = {True: [], False: []}
    for outcome in outcomes:
        groups[outcome["commit"] == last].append(outcome)
    lines = ["| code and tests | seeds | tests in all | failures |", "|---|---|---|---|"]
    for is_last, some in groups.items():
        if not some:
            continue
        commits = {outcome["commit"] for outcome in some}
        dates = sorted(outcome["date"] for outcome in some)
        span = f"{dates[0]} to {dates[-1]}"
        name = f"the last commit, of {dates[-1]}" if is_last else f"{len(commits)} before, {span}"
        failed = [name for outcome in some for name in outcome["failed"]]
        tests = sum(outcome["passed"] for outcome in some) + len(failed)
        shown = ", ".join([str(len(failed)), *(f"`{name}`" for name in sorted(set(failed)))])
        lines.append(f"| {name} | {len(some)} | {tests:,} | {shown} |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n-seeds", type=int, default=100)
    parser.add_argument("--n-jobs", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    outcomes = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    last, _ = last_commit()
    done = {outcome["seed"] for outcome in outcomes if outcome["commit"] == last}
    due = [seed for seed in range(arguments.n_seeds) if seed not in done]
    with ThreadPoolExecutor(arguments.n_jobs) as pool:
        for future in as_completed([pool.submit(run, seed) for seed in due]):
            outcomes.append(future.result())
            print(json.dumps(outcomes[-1]), flush=True)
            RESULTS.write_text(json.dumps(outcomes, indent=1) + "\n")
    text = table(outcomes)
    print(text)
    insert(ROOT / "docs" / "trust.md", "seeds", text)


if __name__ == "__main__":
    main()
