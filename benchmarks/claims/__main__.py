"""The claims of Tang et al., "Particle Dynamics for Latent-Variable Energy-Based Models", measured.

Run ``python benchmarks/claims`` for all of them, or name some: ``python benchmarks/claims
contraction elbo``. Each claim writes ``benchmarks/results/claims-<name>.json``, draws
``docs/claims-<name>.png`` and puts its table into ``docs/claims.md``. ``--redraw`` makes tables
and pictures anew from the results. ``--quick`` runs everything in the small, for development, and
writes to ``build/claims`` alone.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
import warnings
from importlib import import_module
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from digits import ROOT, insert, machine

NAMES = ("training", "contraction", "elbo", "sensitivity", "ablation", "convergence")
SCRATCH = ROOT / "build" / "claims"


def results_path(name, quick):
    folder = SCRATCH if quick else ROOT / "benchmarks" / "results"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"claims-{name}.json"


def measured(name, module, arguments):
    """Run a claim and keep its rows; what is not finite becomes null, which JSON has."""
    settings = module.QUICK if arguments.quick else module.FULL
    start = time.perf_counter()
    rows = module.measure(**settings, n_jobs=arguments.n_jobs)
    content = {
        "machine": machine() | {"threads": 1},
        "seconds": time.perf_counter() - start,
        "rows": _plain(rows),
    }
    path = results_path(name, arguments.quick)
    path.write_text(json.dumps(content, allow_nan=False) + "\n")


def _plain(value):
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def drawn(name, module, quick):
    """Table and picture of a claim from its results."""
    content = json.loads(results_path(name, quick).read_text())
    where = content["machine"]
    text = module.table(content["rows"]) + (
        f"\n\nMeasured in {content['seconds'] / 60:.1f} minutes; a thread per fit, torch "
        f"{where['torch']}, {where['processor']}."
    )
    print(f"{text}\n", flush=True)
    folder = SCRATCH if quick else ROOT / "docs"
    module.picture(content["rows"], folder / f"claims-{name}.png")
    if not quick:
        text += f"\n\n![{module.CAPTION}](claims-{name}.png)"
        insert(ROOT / "docs" / "claims.md", name, text)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="claim", help=f"of {', '.join(NAMES)}")
    parser.add_argument("--quick", action="store_true", help="small runs, kept out of the docs")
    parser.add_argument("--redraw", action="store_true", help="from the results, without running")
    parser.add_argument("--n-jobs", type=int, default=2, help="fits at a time, a thread each")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(NAMES):
        parser.error(f"no such claim: {', '.join(sorted(unknown))}")
    warnings.simplefilter("ignore")
    for name in arguments.names or NAMES:
        module = import_module(f"claims.{name}")
        if not arguments.redraw:
            measured(name, module, arguments)
        drawn(name, module, arguments.quick)


if __name__ == "__main__":
    main()
