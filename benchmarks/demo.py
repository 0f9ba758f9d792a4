"""Digits, end to end: a pipeline, a grid search by likelihood, a comparison, a picture."""

from __future__ import annotations

import time
import warnings
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from digits import latent_accuracy, load_pixels
from rich.console import Console
from rich.table import Table
from sklearn.decomposition import PCA, FactorAnalysis
from sklearn.linear_model import LogisticRegression
from sklearn.manifold import TSNE
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import GridSearchCV, ShuffleSplit
from sklearn.neural_network import BernoulliRBM
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler, StandardScaler

from sklvebm import LVEBMEstimator

console = Console()
_TILES = (5, 5)
GRID = {"n_components": [5, 10], "energy__hidden_layer_sizes": [(64,), (128, 128)]}


class Responsibilities(GaussianMixture):
    """A mixture whose latents are its components' posterior probabilities."""

    def transform(self, X):
        return self.predict_proba(X)


def search(X):
    """Choose the size by held-out log-likelihood, one split, short fits."""
    searcher = GridSearchCV(
        LVEBMEstimator(max_iter=600, random_state=0),
        GRID,
        cv=ShuffleSplit(1, test_size=0.2, random_state=0),
        n_jobs=2,
        refit=False,
        verbose=3,
    )
    searcher.fit(X)
    shown = Table("n_components", "hidden layers", "held-out nats", title="Grid search")
    for params, score in zip(
        searcher.cv_results_["params"], searcher.cv_results_["mean_test_score"], strict=True
    ):
        values = (params["n_components"], params["energy__hidden_layer_sizes"], f"{score:.2f}")
        shown.add_row(*map(str, values))
    console.print(shown)
    return searcher.best_params_


def neighbours(k):
    """What the model is compared with, under a name; the mixture's size is the best of five."""
    yield f"PCA({k})", PCA(k)
    yield f"FactorAnalysis({k})", FactorAnalysis(k)
    for n in (1, 5, 10, 20, 40):
        mixture = Responsibilities(n, reg_covar=0.05, random_state=0)
        yield f"GaussianMixture({n}, reg_covar=.05)", mixture
    rbm = BernoulliRBM(k, learning_rate=0.05, n_iter=30, random_state=0)
    yield f"BernoulliRBM({k})", make_pipeline(MinMaxScaler(clip=True), rbm)


def compare(model, seconds, data):
    """Print the table; the mixtures are cut to the best by held-out likelihood."""
    X_train, X_test = data[:2]
    rows = [("LVEBMEstimator, whole pipeline", model, seconds)]
    for name, other in neighbours(model.n_components_):
        start = time.perf_counter()
        other.fit(X_train)
        rows.append((name, other, time.perf_counter() - start))
    mixtures = [row for row in rows if row[0].startswith("Gaussian")]
    best = max(mixtures, key=lambda row: row[1].score(X_test))
    shown = Table(
        "model", "held-out nats", "logistic accuracy", "fit, s", title="Digits, standardised pixels"
    )
    for name, other, spent in rows:
        if name.startswith("Gaussian") and name != best[0]:
            continue
        # BernoulliRBM's score is a pseudo-likelihood of binary data: not comparable.
        nats = "-" if "RBM" in name else f"{other.score(X_test):.1f}"
        shown.add_row(name, nats, f"{latent_accuracy(other, *data):.3f}", f"{spent:.1f}")
    console.print(shown)


def picture(pipe, X_test, y_test, path):
    """Data, samples, and the latents of the held-out rows, in pixels."""
    scaler, model = pipe[0], pipe[1]
    rng = np.random.default_rng(0)
    shown = X_test[rng.choice(len(X_test), np.prod(_TILES), replace=False)]
    # The model lives behind the scaler: its samples come back through it.
    samples = scaler.inverse_transform(model.sample(np.prod(_TILES), random_state=0))
    figure = plt.figure(figsize=(13, 4.6), layout="constrained")
    left, middle, right = figure.subplots(1, 3, width_ratios=[1, 1, 1.25])
    for axis, rows, title in (
        (left, shown, "held-out digits"),
        (middle, samples, "samples from the model"),
    ):
        # A white border about each image, or neighbours run into one another.
        framed = np.pad(rows.reshape(*_TILES, 8, 8), ((0, 0), (0, 0), (1, 1), (1, 1)))
        axis.imshow(np.block([list(line) for line in framed]), cmap="gray_r", vmin=0, vmax=17)
        axis.set(xticks=[], yticks=[])
        axis.set_title(title)
    flat = TSNE(random_state=0, init="pca").fit_transform(pipe[:-1].transform(X_test))
    for digit in range(10):
        mine = flat[y_test == digit]
        colour = plt.get_cmap("tab10")(digit)
        right.scatter(*mine.T, s=10, color=colour)
        # Where most of a digit's rows are near, which the middle of several groups is not.
        squares = np.square(mine[:, None] - mine).sum(-1)
        right.annotate(
            str(digit),
            mine[np.exp(-squares / np.median(squares)).sum(0).argmax()],
            fontsize=14,
            weight="bold",
            color=colour,
            bbox={"boxstyle": "round,pad=0.15", "fc": "white", "ec": colour, "alpha": 0.85},
        )
    right.set(xticks=[], yticks=[], xlabel="t-SNE 1", ylabel="t-SNE 2")
    right.set_title(f"latents of held-out rows, {model.n_components_} to 2 dimensions")
    figure.savefig(path, dpi=110)


def main():
    warnings.simplefilter("ignore")
    start = time.perf_counter()
    X_train, X_test, y_train, y_test = load_pixels(0)
    scaler = StandardScaler().fit(X_train)
    data = scaler.transform(X_train), scaler.transform(X_test), y_train, y_test
    console.rule("1 of 4: grid search by held-out log-likelihood")
    best = search(data[0])
    console.rule("2 of 4: scaler -> LVEBMEstimator -> LogisticRegression")
    pipe = make_pipeline(
        StandardScaler(),
        LVEBMEstimator(random_state=0, verbose=1).set_params(**best),
        LogisticRegression(max_iter=5000),
    )
    fit_start = time.perf_counter()
    pipe.fit(X_train, y_train)
    seconds = time.perf_counter() - fit_start
    console.print(f"pipeline accuracy on held-out rows: {pipe.score(X_test, y_test):.3f}")
    console.rule("3 of 4: comparison")
    compare(pipe["lvebmestimator"], seconds, data)
    console.rule("4 of 4: picture")
    path = Path("demo.png")
    picture(pipe, X_test, y_test, path)
    console.print(f"wrote {path.resolve()} after {time.perf_counter() - start:.0f} s in all")


if __name__ == "__main__":
    main()
