"""``docs/peers.md``, its picture and the README's table, from the results of ``peers.py``.

Run ``python benchmarks/peers_page.py`` (half a minute). Nothing is measured here.
"""

from __future__ import annotations

from functools import cache

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from digits import ROOT, insert
from peers import (
    FINE,
    ISOTROPIC,
    MAPPED,
    REGRESSED,
    SPENT,
    TIMED,
    UNMAPPED,
    load,
    load_rows,
    load_seconds,
)
from scipy import stats
from tables import MANY, PLANAR, TABLES, of_many_rows

OURS = "sklvebm"
FLOWS = ("NSF", "MAF")
DENSITIES = ("GaussianMixture", "VAE", "NSF", "MAF", "VI", "KernelDensity", "PPCA")
LATENTS = ("PPCA", "FactorAnalysis", "BernoulliRBM", "VAE")
AS_OURS = tuple(f"regressed {name}" for name in REGRESSED)
BEHIND_MAPS = tuple(f"mapped {name}" for name in MAPPED)
SAMPLERS = ("GaussianMixture", "VAE", "NSF", "MAF", "flow matching")
# First split that nothing of ours was decided with in view.
_UNSEEN = 3
# Nats beyond which differences are drawn at the edge of the picture.
_EDGE = 50
_COLOURS = {"GaussianMixture": "#0072B2", "VAE": "#D55E00", "NSF": "#009E73", "MAF": "#CC79A7"}
_MARKERS = {"GaussianMixture": "o", "VAE": "s", "NSF": "^", "MAF": "D"}


def of_kind(*kinds, model=OURS):
    """Tables of these kinds for which cells of ``model``, ours, are there."""
    return [n for n, t in TABLES.items() if t.kind in kinds and model in load(n)["cells"]]


def values(table, model, key):
    """The figure ``key`` over the seeds that all models of ``table`` share, an array.

    It is empty where the figure was not measured.
    """
    cells = load(table)["cells"]
    found = sorted(cells.get(model, {}).items())
    shared = [cell for seed, cell in found if all(seed in seeds for seeds in cells.values())]
    return np.array([cell[key] for cell in shared if key in cell])


def mean(table, model, key):
    """Mean over seeds, NaN where there is nothing."""
    found = values(table, model, key)
    return float(found.mean()) if len(found) else np.nan


def number(value, digits=2, sign=""):
    """With so many decimals, or, beyond ten thousand, a power of ten."""
    return f"{value:{sign}.1e}" if abs(value) >= 1e4 else f"{value:{sign}.{digits}f}"


def shown(table, model, key, digits=2):
    """Mean ± standard error over seeds."""
    found = values(table, model, key)
    if not len(found):
        return ""
    error = found.std(ddof=1) / len(found) ** 0.5 if len(found) > 1 else None
    return number(found.mean(), digits) + ("" if error is None else f" ± {number(error, digits)}")


def gain(table, peer, first=0):
    """Our log-likelihood less that of ``peer``, row by row: mean over splits, standard error.

    Splits count from number ``first`` on.

    The error is the larger of two. One is that of the mean over the test rows, for the fits as they
    are. The other is that over splits, where training rows and seeds vary too.
    """
    apart = differences(table, peer, first)
    if not apart:
        return np.nan, np.nan
    means = [d.mean() for d in apart]
    return float(np.mean(means)), max(error_over_rows(apart), error_over_splits(means, table))


def error_over_rows(apart):
    """Standard error of the mean over splits, of fits as they are."""
    return float(np.sqrt(sum(d.var() / len(d) for d in apart)) / len(apart))


def error_over_splits(found, table):
    """Standard error of the mean over splits; zero of a single one.

    Splits of a real table share rows: with the correction of Nadeau and Bengio (2003, Machine
    Learning 52), by the ratio of its test rows to its training rows. Others are drawn anew.
    """
    n = len(found)
    shared = test_share(table) if TABLES[table].kind == "real" else 0.0
    return float(np.std(found, ddof=1) * np.sqrt(1 / n + shared)) if n > 1 else 0.0


@cache
def test_share(table):
    """Test rows for each training row."""
    split = TABLES[table].split(0)
    return len(split.X_test) / len(split.X_train)


def is_clear(table, peer):
    """Whether ours is above ``peer`` by a t test over splits at 5 %, and by 2 SE over rows."""
    apart = differences(table, peer)
    means = [d.mean() for d in apart]
    quantile = stats.t.ppf(0.975, len(apart) - 1)
    of_splits = quantile * error_over_splits(means, table)
    return np.mean(means) > max(of_splits, 2 * error_over_rows(apart))


def differences(table, peer, first=0):
    """Our log-likelihoods of the test rows less those of ``peer``: an array a split."""
    rows = load_rows(table)
    seeds = [k.split("/")[1] for k in rows if k.startswith(f"{OURS}/")]
    seeds = [s for s in seeds if int(s) >= first]
    return [
        rows[f"{OURS}/{s}"].astype(float) - rows[f"{peer}/{s}"]
        for s in seeds
        if f"{peer}/{s}" in rows
    ]


def markdown(head, lines):
    """A table, without lines and columns in which nothing has been measured."""
    lines = [line for line in lines if any(line[1:])]
    kept = [i for i in range(len(head)) if any(line[i] for line in lines)]
    head, lines = [head[i] for i in kept], [[line[i] for i in kept] for line in lines]
    return "\n".join(
        [
            "| " + " | ".join(head) + " |",
            "|" + "---|" * len(head),
            *("| " + " | ".join(map(str, line)) + " |" for line in lines),
        ]
    )


def grid(tables, models, key, digits=2):
    """One figure, tables down, models across; the best of a line in bold is left to the reader."""
    lines = [[t, *(shown(t, m, key, digits) for m in models)] for t in tables]
    return markdown(["data", *models], lines)


def scaled(tables, models, key):
    """The figure ``key`` of latents as they are, and standardised."""
    ways = [(m, way) for m in models for way in ("as is", "standardised")]
    lines = [
        [t, *(shown(t, m, f"{key}_{way.replace(' ', '_')}", 3) for m, way in ways)] for t in tables
    ]
    return markdown(["data", *(f"{m}, {way}" for m, way in ways)], lines)


def gains(tables, peers, first=0):
    """Our likelihood less theirs, over splits from number ``first`` on."""
    lines = []
    for table in tables:
        cells = (gain(table, peer, first) for peer in peers)
        differences = (
            "" if np.isnan(m) else f"{number(m, sign='+')} ± {number(e)}" for m, e in cells
        )
        lines.append([table, *differences])
    return markdown(["data", *peers], lines)


def count(found, good):
    """``n of m`` of the figures that were measured for which ``good`` holds."""
    measured = [f for f in found if not np.isnan(f).any()]
    return f"{sum(bool(good(f)) for f in measured)} of {len(measured)}"


def against(tables, key, peers, best, model=OURS):
    """The figure of ``model``, ours, less the best of the peers', NaN where any is missing."""
    theirs = [best([mean(table, peer, key) for peer in peers]) for table in tables]
    return [mean(table, model, key) - other for table, other in zip(tables, theirs, strict=True)]


def likelihood_verdicts(real):
    """Against the VAE, the mixture and the flows, and against the same behind our maps."""
    for peer in ("VAE", "GaussianMixture", "mapped VAE", "mapped GaussianMixture"):
        found = {t: np.array(gain(t, peer)) for t in real}
        asked = f"likelihood above {peer}, real tables"
        # The error of a single split is only half of the story.
        known = [t for t in real if len(differences(t, peer)) > 1]
        yield asked, "all", count(found.values(), lambda f: f[0] > 0)
        clear = count([found[t] for t in known], lambda f: f[0] > 2 * f[1])
        yield f"{asked}, by over 2 SE", "three quarters", clear
        tested = f"{sum(is_clear(t, peer) for t in known)} of {len(known)}"
        yield f"{asked}, by 2 SE over rows and a t test over splits at 5 %", "", tested
        medians = against(real, "log_likelihood_median", [peer], np.max)
        yield f"{asked}, by medians over rows", "", count(medians, lambda f: f > 0)
    for kind, flows in (("flows", FLOWS), ("mapped flows", [f"mapped {name}" for name in FLOWS])):
        asked = f"likelihood above the {kind}, real tables"
        found = against(real, "log_likelihood", flows, np.max)
        yield asked, "half", count(found, lambda f: f > 0)
        known = [t for t in real if min(len(differences(t, flow)) for flow in flows) > 1]
        pairs = [np.array([gain(t, flow) for flow in flows]) for t in known]
        yield f"{asked}, by over 2 SE", "", count(pairs, lambda f: (f[:, 0] > 2 * f[:, 1]).all())
        medians = against(real, "log_likelihood_median", flows, np.max)
        yield f"{asked}, by medians over rows", "", count(medians, lambda f: f > 0)


def reconstruction_verdicts(model, noise):
    """Reconstruction and samples of ``model``, ours, which has such ``noise``."""
    physical, real = of_kind("physical", model=model), of_kind("real", model=model)
    for tables, wanted, kind in ((physical, "all", "physical"), (real, "three quarters", "real")):
        for peers, regressed in ((REGRESSED, ""), (AS_OURS, ", regressed as ours")):
            found = against(tables, "mse", peers, np.min, model)
            asked = f"reconstruction at or below the VAE's and PCA's{regressed}, {kind}{noise}"
            yield asked, wanted, count(found, lambda f: f <= 0)
    for tables, wanted, kind in ((physical, "all", "physical"), (real, "", "real")):
        ratios = [over_floor(table, model) for table in tables]
        asked = f"sliced W2 of samples at most 1.5 × the floor, {kind}{noise}"
        yield asked, wanted, count(ratios, lambda r: r <= 1.5)


def latent_verdicts(labelled, key, model, preset):
    """The accuracy ``key`` on latents of ``model``, ours: against the best peer, and each."""
    found = against(labelled, key, LATENTS, np.max, model)
    yield f"{key} accuracy at or above all peers{preset}", "all", count(found, lambda f: f >= 0)
    lags = [_lag(table, model, peer, key) for table in labelled for peer in LATENTS]
    lags = [lag for lag in lags if lag is not None]
    behind = sum(short > 2 * error for short, error in lags)
    shown = f"{behind} of {len(lags)} (2 SE: {2 * np.median([e for _, e in lags]):.3f} by median)"
    asked = f"{key} accuracy of a peer higher by over 2 SE, tables × peers{preset}"
    yield asked, "none", shown


def _lag(table, model, peer, key):
    """By how much ``model`` falls short of ``peer``, and its error; None of a single split."""
    ours, theirs = (load(table)["cells"].get(name, {}) for name in (model, peer))
    seeds = [s for s in ours if key in ours[s] and key in theirs.get(s, {})]
    short = np.array([theirs[s][key] - ours[s][key] for s in seeds])
    return (short.mean(), error_over_splits(short, table)) if len(seeds) > 1 else None


def verdicts():
    """What was asked, and what the results say; one line each."""
    real = of_kind("real")
    labelled = [t for t in real if TABLES[t].labelled]
    lines = list(likelihood_verdicts(real))
    for kind, rows in (("planar", ""), (MANY, ", of 20,000 rows")):
        for model, preset in ((OURS, ""), (FINE, ", 256 frequencies")):
            short = [mean(t, model, "short_of_truth") for t in of_kind(kind, model=model)]
            asked = f"planar: within .05 nats of the truth{rows}{preset}"
            lines.append((asked, "all", count(short, lambda s: s <= 0.05)))
    for model, preset in ((OURS, ""), (FINE, ", 256 frequencies")):
        shares = [mean(t, model, "least_share") for t in of_kind("planar", model=model)]
        asked = f"planar: every cell has a third of its share of samples, no lost mode{preset}"
        lines.append((asked, "all", count(shares, lambda s: s >= 1 / 3)))
    for model, noise in ((OURS, ""), (ISOTROPIC, ", isotropic noise")):
        lines += reconstruction_verdicts(model, noise)
    for model, preset in ((OURS, ""), (UNMAPPED, ", no maps")):
        for key in ("logistic", "knn"):
            lines += latent_verdicts(labelled, key, model, preset)
    both = [c for c in load_seconds()["cells"].values() if {OURS, "VAE"} <= c.keys()]
    ratios = [cell[OURS]["fit_s"] / cell["VAE"]["fit_s"] for cell in both]
    times = f"{count(ratios, lambda r: r <= 3)} (median {np.nanmedian(ratios):.1f} ×)"
    lines.append(("fit time within 3 × the VAE's", "all", times))
    return markdown(["asked", "of", "found"], lines)


def over_floor(table, model):
    """Sliced W2 of samples over that of equally many training rows."""
    return mean(table, model, "sliced_w2") / mean(table, OURS, "sliced_w2_floor")


def floors(tables):
    """Sliced W2 over that of equally many training rows."""
    models, lines = (OURS, ISOTROPIC, *SAMPLERS), []
    for table in tables:
        floor = mean(table, OURS, "sliced_w2_floor")
        ratios = (over_floor(table, model) for model in models)
        lines.append([table, f"{floor:.3f}", *("" if np.isnan(r) else f"{r:.2f}" for r in ratios)])
    return markdown(["data", "floor", *models], lines)


def data(tables):
    """What the tables are, and their sizes."""
    lines = []
    for name in tables:
        split = TABLES[name].split(0)
        sizes = (len(split.X_train), len(split.X_test), split.X_train.shape[1], TABLES[name].k)
        lines.append([name, TABLES[name].about, *(f"{size:,}" for size in sizes)])
    return markdown(["data", "what it is", "rows to train on", "to test", "features", "k"], lines)


def cells(tables):
    """Least share of samples in a cell of the plane over that of the data."""
    lines = []
    for table in tables:
        found = (shown(table, model, "least_share") for model in (OURS, *SAMPLERS))
        lines.append([table, *found, shown(table, OURS, "least_share_floor")])
    return markdown(["data", OURS, *SAMPLERS, "held-out rows"], lines)


def isotropic(tables):
    """What isotropic noise brings and costs: errors of the median row, and likelihood."""
    models = (OURS, ISOTROPIC, "VAE", "PPCA")
    lines = [
        [
            table,
            *(shown(table, model, "mse_median", 4) for model in models),
            *(shown(table, model, "log_likelihood") for model in models),
        ]
        for table in tables
    ]
    names = ("", ", isotropic", ", VAE", ", PPCA")
    figures = [f"{figure}{name}" for figure in ("error", "log-likelihood") for name in names]
    return markdown(["data", *figures], lines)


def many_rows():
    """Nats short of the truth from 5,000 rows and from 20,000, and how long the latter take."""
    lines = []
    for name in PLANAR:
        many = of_many_rows(name)
        lines.append(
            [
                name,
                shown(name, OURS, "short_of_truth", 3),
                shown(name, FINE, "short_of_truth", 3),
                shown(many, OURS, "short_of_truth", 3),
                shown(many, FINE, "short_of_truth", 3),
                shown(name, FINE, "least_share"),
                shown(many, FINE, "least_share"),
                shown(many, OURS, "fit_s", 0),
                shown(many, FINE, "fit_s", 0),
            ]
        )
    settings = [f"{n} rows, {how}" for n in ("5,000", "20,000") for how in ("defaults", "256")]
    shares = [f"least share, {n} rows, 256" for n in ("5,000", "20,000")]
    seconds = [f"fit, s, 20,000 rows, {how}" for how in ("defaults", "256")]
    return markdown(["data", *settings, *shares, *seconds], lines)


def costs(tables, key, digits=0):
    """What a cell costs, on the first split, all models in one run."""
    cells = load_seconds()["cells"]
    lines = []
    for table in tables:
        found = (cells.get(table, {}).get(model, {}).get(key) for model in TIMED)
        lines.append([table, *("" if value is None else number(value, digits) for value in found)])
    return markdown(["data", *TIMED], lines)


def timed_where():
    """The machine of the seconds."""
    machine = load_seconds()["machine"]
    return f"{machine['processor']}, torch {machine['torch']}; one thread per cell."


def bounds(tables):
    """What proposals of the models' own say of their likelihoods, and what is compared here."""
    keys = {"ELBO": "elbo", "IWAE": "iwae", "likelihood": "log_likelihood"}
    pairs = [(model, name) for model in ("VAE", "VI") for name in keys]
    lines = [[t, *(shown(t, model, keys[name]) for model, name in pairs)] for t in tables]
    return markdown(["data", *(f"{model}: {name}" for model, name in pairs)], lines)


def where():
    """Machines and seeds."""
    names = of_kind("real", "physical", "planar") + of_kind(MANY, model=FINE)
    machines = [load(name)["machine"] for name in names]
    machine = machines[0]
    processors = ", ".join(sorted({m["processor"] for m in machines}))
    seeds = {len(v) for n in names for v in load(n)["cells"].values()}
    spent = [
        sum(value for key, value in cell.items() if key in SPENT)
        for name in names
        for model in load(name)["cells"].values()
        for cell in model.values()
    ]
    splits = " to ".join(str(n) for n in sorted({min(seeds), max(seeds)}))
    return (
        f"{len(spent)} cells, {sum(spent) / 3600:.1f} hours of fitting, scoring, transforming and "
        f"sampling. Splits per cell: {splits}; a thread per cell, two cells at a time, "
        f"{processors}, Python {machine['python']}, torch {machine['torch']}, "
        f"scikit-learn {machine['scikit-learn']}."
    )


def picture(tables, path):
    """Our log-likelihood less that of each peer, ± 2 SE."""
    tables = [t for t in tables if not np.isnan([gain(t, peer)[0] for peer in _COLOURS]).all()]
    figure, axes = plt.subplots(figsize=(7.5, 0.42 * len(tables) + 1.2), layout="constrained")
    for i, (peer, colour) in enumerate(_COLOURS.items()):
        found = np.array([gain(t, peer) for t in tables])
        if np.isnan(found).all():
            continue
        # A density that fails on single rows would take the whole axis: it is put at the edge.
        beyond = np.abs(found[:, 0]) > _EDGE
        found[beyond] = np.c_[np.sign(found[beyond, 0]) * _EDGE, np.zeros(beyond.sum())]
        axes.errorbar(
            found[:, 0],
            np.arange(len(tables)) + 0.15 * (i - 1.5),
            xerr=2 * found[:, 1],
            fmt=_MARKERS[peer],
            color=colour,
            markersize=5,
            label=peer,
        )
    axes.axvline(0, color="0.4", linewidth=1)
    axes.set_xscale("symlog", linthresh=0.1)
    axes.set_yticks(range(len(tables)), tables)
    axes.invert_yaxis()
    axes.set_xlim(-1.2 * _EDGE, 1.2 * _EDGE)
    label = "held-out log-likelihood: sklvebm less the peer, nats per row"
    axes.set_xlabel(f"{label} (± 2 SE; edge: {_EDGE} or more)")
    axes.legend(frameon=False, fontsize=8, ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    figure.savefig(path, dpi=130)
    plt.close(figure)


def blocks():
    """Every generated part of the page."""
    real, physical, planar = of_kind("real"), of_kind("physical"), of_kind("planar")
    everything = [*real, *physical, *planar]
    labelled = [t for t in real if TABLES[t].labelled]
    encoders = (OURS, UNMAPPED, ISOTROPIC, *LATENTS, "mapped VAE")
    decoders = (OURS, ISOTROPIC, "VAE", "VI", "hard EM", "PPCA", "FactorAnalysis")
    return {
        "verdicts": verdicts(),
        "where": where(),
        "data": data(everything),
        "gains": gains(everything, DENSITIES),
        "unseen": gains(real, (*DENSITIES, *BEHIND_MAPS), _UNSEEN),
        "mapped": gains(real, BEHIND_MAPS),
        "likelihood": grid(real + physical, (OURS, *DENSITIES), "log_likelihood"),
        "medians": grid(real, (OURS, *DENSITIES[:4]), "log_likelihood_median"),
        "bounds": bounds(real + physical),
        "planar": grid(
            [t for t in everything if TABLES[t].density is not None],
            (OURS, "GaussianMixture", "KernelDensity", "VAE", "NSF", "MAF"),
            "short_of_truth",
            3,
        ),
        "many": many_rows(),
        "reconstruction": grid(real + physical, decoders, "mse", 4),
        "regressed": grid(real + physical, (OURS, ISOTROPIC, *AS_OURS), "mse", 4),
        "isotropic": isotropic(of_kind("real", "physical", model=ISOTROPIC)),
        "samples": floors(everything),
        "modes": cells(planar),
        "logistic": grid(labelled, encoders, "logistic", 3),
        "knn": grid(labelled, encoders, "knn", 3),
        "scaled": scaled(labelled, (OURS, "PPCA", "VAE"), "knn"),
        "seconds": f"{costs(everything, 'fit_s')}\n\n{timed_where()}",
        "scoring": costs(everything, "score_s", 1),
        "memory": costs(everything, "peak_mib"),
        "active": grid(real + physical, decoders[:5], "active_units", 1),
    }


def main():
    page = ROOT / "docs" / "peers.md"
    found = blocks()
    for name, text in found.items():
        insert(page, name, text)
    table = gains(of_kind("real"), DENSITIES[:4])
    insert(ROOT / "README.md", "peers", f"{table}\n\n{where()}")
    picture(of_kind("real", "physical", "planar"), ROOT / "docs" / "peers.png")
    print(found["verdicts"])


if __name__ == "__main__":
    main()
