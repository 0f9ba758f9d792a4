"""Our model beside its peers: every table, every model, several splits, a cell at a time.

Run ``python benchmarks/peers.py``; ``make bench`` does. A cell is one model on one split of one
table, in a process of its own on one thread, two cells at a time. What is done is skipped, so it
can be stopped and resumed; ``--again NAME`` measures the cells of one model anew. Results are in
``benchmarks/results/peers``; ``peers_page.py`` makes the page and the README's table from them.
``--quick`` runs a few cells in five minutes, prints them, and writes nothing. ``--seconds`` times
the models that the page compares by time, side by side on the first split of every table: nothing
else should run beside it (twenty minutes on two cores).
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from typing import Any, NamedTuple

import numpy as np
from digits import ROOT, machine
from tables import MANY, TABLES, Table

RESULTS = ROOT / "benchmarks" / "results" / "peers"
SECONDS = ROOT / "benchmarks" / "results" / "peers-seconds.json"
_N_SAMPLES = 1000
_CV = 3
# Densities that are measured behind our maps of single features too, on tables where fits of ours
# ask whether to take them.
MAPPED = ("GaussianMixture", "VAE", "NSF", "MAF")
# Latent models whose way back from latents is measured with a regression like that of ours too.
REGRESSED = ("VAE", "PPCA")


# Ours for planar densities: edges are as sharp as the Fourier features allow.
FINE = "sklvebm, 256 frequencies"
# Ours for latents that reconstruct.
ISOTROPIC = "sklvebm, isotropic noise"
# Ours for latents that classifiers read: maps of single features are left out.
UNMAPPED = "sklvebm, no maps"


class Peer(NamedTuple):
    """How a model is built for a table and a seed, and the tables that it is run on."""

    build: Callable[[Table, int], Any]
    applies: Callable[[Table], bool] = lambda table: table.kind != MANY


def _ours(marginals="auto", **settings):
    def build(table, seed):
        from sklvebm import LVEBMEstimator, TiltedEnergy

        energy = TiltedEnergy(**settings)
        return LVEBMEstimator(table.k, energy=energy, marginals=marginals, random_state=seed)

    return build


def _mixture(table, seed):
    from sklearn.mixture import GaussianMixture

    grid = {"n_components": (1, 2, 5, 10, 20, 40, 80), "reg_covar": (1e-6, 1e-3, 1e-2, 1e-1)}
    if table.name == "mnist":
        # Eighty full covariances in 663 dimensions cost too much.
        grid = {"n_components": (1, 2, 5, 10), "reg_covar": (1e-2, 1e-1)}
    return _searched(GaussianMixture(max_iter=200, random_state=seed), grid, seed)


def _kernel_density(table, seed):
    from sklearn.neighbors import KernelDensity

    return _searched(KernelDensity(), {"bandwidth": np.logspace(-1.5, 0.5, 13)}, seed)


def _searched(model, grid, seed):
    from sklearn.model_selection import GridSearchCV, KFold

    folds = KFold(_CV, shuffle=True, random_state=seed)
    return GridSearchCV(model, grid, cv=folds, error_score=-np.inf)


def _factors(name):
    def build(table, seed):
        import sklearn.decomposition

        return getattr(sklearn.decomposition, name)(table.k, random_state=seed)

    return build


def _machine(table, seed):
    from sklearn.neural_network import BernoulliRBM
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import MinMaxScaler

    rbm = BernoulliRBM(table.k, learning_rate=0.05, n_iter=100, random_state=seed)
    return make_pipeline(MinMaxScaler(clip=True), rbm)


def _baseline(name, *arguments, **options):
    def build(table, seed):
        import baselines

        first = arguments or (table.k,)
        return getattr(baselines, name)(*first, random_state=seed, **options)

    return build


def _flow_matching(table, seed):
    import baselines

    return baselines.FlowMatching(random_state=seed)


def _mapped(build):
    """The peer of ``build`` behind the maps of single features that our own fits may take."""

    def build_mapped(table, seed):
        import baselines

        return baselines.Mapped(build(table, seed))

    return Peer(build_mapped, lambda table: table.kind == "real" and table.name != "ccpp")


def _regressed(build):
    """The peer of ``build``, its latents regressed on as ours are; reconstruction alone."""

    def build_regressed(table, seed):
        import baselines

        return baselines.Regressed(build(table, seed), random_state=seed)

    return Peer(build_regressed, lambda table: table.kind in ("real", "physical"))


PEERS = {
    "sklvebm": Peer(_ours(), lambda table: True),
    FINE: Peer(_ours(n_frequencies=256), lambda table: table.kind in ("planar", MANY)),
    ISOTROPIC: Peer(_ours(noise="isotropic"), lambda table: table.kind in ("real", "physical")),
    UNMAPPED: Peer(_ours(marginals="gaussian"), lambda table: table.labelled),
    "GaussianMixture": Peer(_mixture),
    "KernelDensity": Peer(_kernel_density),
    "PPCA": Peer(_factors("PCA")),
    "FactorAnalysis": Peer(_factors("FactorAnalysis")),
    "BernoulliRBM": Peer(_machine, lambda table: table.labelled),
    "VAE": Peer(_baseline("VAE")),
    "VI": Peer(_baseline("NonAmortisedVI")),
    "hard EM": Peer(_baseline("HardEM")),
    "NSF": Peer(_baseline("NormalizingFlow", "nsf")),
    "MAF": Peer(_baseline("NormalizingFlow", "maf", n_transforms=5)),
    "flow matching": Peer(_flow_matching),
}
PEERS |= {f"mapped {name}": _mapped(PEERS[name].build) for name in MAPPED}
PEERS |= {f"regressed {name}": _regressed(PEERS[name].build) for name in REGRESSED}


def _timed(action, *arguments):
    start = time.perf_counter()
    result = action(*arguments)
    return result, time.perf_counter() - start


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(table_name: str, model_name: str, seed: int) -> tuple[dict[str, Any], np.ndarray]:
    """Figures of one cell, and the log-density of every test row (empty where there is none)."""
    import torch

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    table = TABLES[table_name]
    split = table.split(seed)
    model = PEERS[model_name].build(table, seed)
    before = _peak_mib()
    _, fit_seconds = _timed(model.fit, split.X_train)
    found: dict[str, Any] = {"fit_s": fit_seconds}
    model = getattr(model, "best_estimator_", model)
    rows = np.empty(0)
    if hasattr(model, "score_samples") and model_name != "BernoulliRBM":
        rows, found["score_s"] = _timed(model.score_samples, split.X_test)
        found |= _likelihood(model, rows, split)
    if hasattr(model, "transform"):
        found |= _latents(model, split)
    if hasattr(model, "sample"):
        found |= _samples(model, split, table.kind in ("planar", MANY))
    found["peak_mib"] = _peak_mib() - before
    return found, np.round(rows, 3).astype(np.float32)


def _likelihood(model, rows, split):
    found = {
        "log_likelihood": float(rows.mean()),
        "log_likelihood_se": float(rows.std() / np.sqrt(len(rows))),
        "log_likelihood_median": float(np.median(rows)),
    }
    if hasattr(model, "elbo_samples"):
        found["elbo"] = float(model.elbo_samples(split.X_test).mean())
        found["iwae"] = float(model.iwae_samples(split.X_test).mean())
    if hasattr(model, "log_partition_std_"):
        found["log_partition_std"] = model.log_partition_std_
    if split.truth is not None:
        short = split.truth - rows
        found["short_of_truth"] = float(short.mean())
        found["short_of_truth_se"] = float(short.std() / np.sqrt(len(rows)))
    return found


def _latents(model, split):
    import metrics

    Z_test, seconds = _timed(model.transform, split.X_test)
    # Of ours the prior variance is not one.
    prior = np.sqrt(getattr(model, "latent_variance_", 1.0))
    found = {"transform_s": seconds, "active_units": metrics.active_units(Z_test / prior)}
    if split.y_train is not None:
        Z_train = model.transform(split.X_train)
        found |= metrics.latent_accuracies(Z_train, Z_test, split.y_train, split.y_test)
    back = getattr(model, "inverse_transform", None)
    if back is not None:
        found |= metrics.reconstruction(split.X_test, back(Z_test))
    elif hasattr(model, "components_"):
        # FactorAnalysis has no inverse_transform; its mean given z is linear.
        found |= metrics.reconstruction(split.X_test, Z_test @ model.components_ + model.mean_)
    return found


def _samples(model, split, is_planar):
    import metrics

    drawn, seconds = _timed(model.sample, _N_SAMPLES)
    drawn = drawn[0] if isinstance(drawn, tuple) else drawn
    # The mixture's draws come ordered by component.
    drawn = np.random.default_rng(0).permutation(drawn)
    floor = metrics.sample_distances(split.X_train, split.X_test)
    found = {f"{name}_floor": value for name, value in floor.items()}
    if is_planar:
        found["least_share"] = metrics.least_share(drawn, split.X_train, split.X_train)
        found["least_share_floor"] = metrics.least_share(split.X_test, split.X_train, split.X_train)
    return found | metrics.sample_distances(drawn, split.X_test) | {"sample_s": seconds}


def path_of(table: str):
    """Results of ``table``: cells as JSON, and beside it the rows' log-densities."""
    return RESULTS / (table.replace(",", "").replace(" ", "-") + ".json")


def load(table: str) -> dict[str, Any]:
    """``{"machine": …, "cells": {model: {seed: figures}}}``."""
    path = path_of(table)
    return json.loads(path.read_text()) if path.exists() else {"machine": machine(), "cells": {}}


def load_rows(table: str) -> dict[str, np.ndarray]:
    """Log-density of each test row, by "model/seed"."""
    path = path_of(table).with_suffix(".npz")
    return dict(np.load(path)) if path.exists() else {}


def store(table: str, model: str, seed: int, found: dict[str, Any], rows: np.ndarray) -> None:
    """Add one cell."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    content = load(table)
    content["cells"].setdefault(model, {})[str(seed)] = found
    path_of(table).write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")
    if len(rows):
        np.savez_compressed(
            path_of(table).with_suffix(".npz"), **(load_rows(table) | {f"{model}/{seed}": rows})
        )


# What is timed side by side, and what of a cell is kept of that.
TIMED = ("sklvebm", "VAE", "GaussianMixture", "MAF", "NSF")
SPENT = ("fit_s", "score_s", "transform_s", "sample_s")
COSTS = (*SPENT, "peak_mib")


def load_seconds() -> dict[str, Any]:
    """``{"machine": …, "cells": {table: {model: costs}}}``."""
    return json.loads(SECONDS.read_text()) if SECONDS.exists() else {"cells": {}}


def store_seconds(table: str, model: str, seed: int, found: dict[str, Any], rows) -> None:
    """Add the costs of one cell."""
    content = load_seconds() | {"machine": machine()}
    costs = {name: found[name] for name in COSTS if name in found}
    content["cells"].setdefault(table, {})[model] = costs
    SECONDS.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")


def untimed(tables, models):
    """First splits of ``tables``, of those ``models`` that are timed and have not been."""
    done = load_seconds()["cells"]
    return [
        (table, model, 0)
        for table in tables
        for model in TIMED
        if model in models
        and PEERS[model].applies(TABLES[table])
        and model not in done.get(table, {})
    ]


def cells(tables, models, seeds, again):
    """What is still to be measured; the first seed of every table first.

    ``seeds`` are those of every table, or None for as many as a table has splits.
    """
    done = {name: load(name)["cells"] for name in tables}
    for seed in range(max(TABLES[name].n_splits for name in tables)) if seeds is None else seeds:
        for table in tables:
            if seeds is None and seed >= TABLES[table].n_splits:
                continue
            for model in models:
                known = str(seed) in done[table].get(model, {}) and model not in again
                if PEERS[model].applies(TABLES[table]) and not known:
                    yield table, model, seed


def run(work, n_jobs, keep):
    """Measure the cells of ``work``, ``n_jobs`` at a time, each in a fresh process.

    ``keep``, if any, takes what :func:`store` does.
    """
    os.environ["OMP_NUM_THREADS"] = "1"
    start = time.perf_counter()
    with ProcessPoolExecutor(n_jobs, get_context("spawn"), max_tasks_per_child=1) as pool:
        jobs = {pool.submit(measure, *cell): cell for cell in work}
        for count, job in enumerate(as_completed(jobs), 1):
            cell = jobs[job]
            try:
                found, rows = job.result()
            except Exception as error:  # one failed cell must not end hours of work
                print(f"{cell}: failed, {type(error).__name__}: {error}", flush=True)
                continue
            if keep is not None:
                keep(*cell, found, rows)
            short = {k: round(v, 3) for k, v in found.items() if not k.endswith(("_floor", "_se"))}
            minutes = (time.perf_counter() - start) / 60
            print(f"[{count}/{len(jobs)}, {minutes:.1f} min] {cell} {short}", flush=True)


QUICK = (("wine", "moons"), ("sklvebm", "GaussianMixture", "PPCA", "VAE", "NSF"), (0,))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--tables", nargs="+", default=list(TABLES), choices=list(TABLES))
    parser.add_argument("--models", nargs="+", default=list(PEERS), choices=list(PEERS))
    parser.add_argument("--seeds", type=int, nargs="+", help="default: those of a table's splits")
    parser.add_argument("--again", nargs="+", default=[], help="models to measure anew")
    parser.add_argument("--seconds", action="store_true", help="time, and measure nothing else")
    parser.add_argument("--n-jobs", type=int, default=2)
    arguments = parser.parse_args()
    chosen = (arguments.tables, arguments.models, arguments.seeds)
    if arguments.quick:
        tables, models, seeds = QUICK
        work, keep = [(t, m, s) for t in tables for m in models for s in seeds], None
    elif arguments.seconds:
        work, keep = untimed(arguments.tables, arguments.models), store_seconds
    else:
        work, keep = list(cells(*chosen, arguments.again)), store
    run(work, arguments.n_jobs, keep)


if __name__ == "__main__":
    main()
