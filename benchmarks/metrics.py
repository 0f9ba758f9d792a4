"""What a fitted model is measured by, beside its likelihood: samples, latents, reconstructions.

References
----------
A. Gretton et al. (2012), "A kernel two-sample test", JMLR 13. N. Bonneel et al. (2015), "Sliced and
Radon Wasserstein barycenters of measures", J. Math. Imaging Vis. 51; both optimal-transport
distances by POT (R. Flamary et al. 2021, JMLR 22). Y. Burda, R. Grosse and R. Salakhutdinov (2016),
"Importance weighted autoencoders", ICLR (active units).
"""

from __future__ import annotations

import numpy as np
import ot
from scipy.spatial.distance import cdist, pdist
from sklearn.cluster import KMeans
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

N_COMPARED, _N_PROJECTIONS = 1000, 500
# Cells that a planar density is divided into: more than any of them has modes.
_N_CELLS = 25
# A latent whose posterior mean varies less than this over the data carries nothing.
_ACTIVE = 0.01


def squared_mmd(X, Y) -> float:
    """Unbiased squared MMD under a Gaussian kernel whose width is the median distance in ``Y``."""
    width = np.median(pdist(Y, "sqeuclidean"))
    xx, yy = (np.exp(-pdist(A, "sqeuclidean") / width).mean() for A in (X, Y))
    return float(xx + yy - 2 * np.exp(-cdist(X, Y, "sqeuclidean") / width).mean())


def sample_distances(X, Y) -> dict[str, float]:
    """Distances between samples ``X`` and held-out rows ``Y``, equally many: W2, sliced W2, MMD."""
    n = min(len(X), len(Y), N_COMPARED)
    X, Y = np.asarray(X, float)[:n], np.asarray(Y, float)[:n]
    weights = np.full(n, 1 / n)
    return {
        "w2": float(np.sqrt(ot.emd2(weights, weights, ot.dist(X, Y), numItermax=1_000_000))),
        "sliced_w2": float(
            ot.sliced_wasserstein_distance(X, Y, n_projections=_N_PROJECTIONS, seed=0)
        ),
        "squared_mmd": squared_mmd(X, Y),
    }


def least_share(X, Y, where) -> float:
    """Least, over cells of the plane, of the share of ``X`` in a cell over that of ``Y``.

    The cells are those of k-means on the rows ``where``: near zero where a mode is lost, and about
    .7 to .8 for a thousand draws of the same law.
    """
    cells = KMeans(_N_CELLS, random_state=0).fit(np.asarray(where, float))
    shares = [
        np.bincount(cells.predict(np.asarray(A, float)), minlength=_N_CELLS) / len(A)
        for A in (X, Y)
    ]
    return float((shares[0] / shares[1]).min())


def latent_accuracies(Z_train, Z_test, y_train, y_test) -> dict[str, float]:
    """Accuracy of logistic regression and of ten nearest neighbours on the latents.

    As they are, standardised, and whichever of the two five-fold cross-validation of the training
    rows prefers.
    """
    classifiers = {
        "logistic": LogisticRegression(max_iter=5000),
        "knn": KNeighborsClassifier(10),
    }
    found: dict[str, float] = {}
    for name, classifier in classifiers.items():
        ways = {
            f"{name}_as_is": make_pipeline(classifier),
            f"{name}_standardised": make_pipeline(StandardScaler(), classifier),
        }
        found |= {
            way: pipe.fit(Z_train, y_train).score(Z_test, y_test) for way, pipe in ways.items()
        }
        preferred = {
            way: cross_val_score(pipe, Z_train, y_train).mean() for way, pipe in ways.items()
        }
        found[name] = found[max(preferred, key=preferred.__getitem__)]
    return found


def active_units(Z) -> int:
    """Latents whose posterior mean has a variance above .01 over the rows."""
    return int((np.var(Z, axis=0) > _ACTIVE).sum())


def reconstruction(X, X_back) -> dict[str, float]:
    """Squared error per feature: mean over rows, and the median row."""
    errors = np.square(np.asarray(X) - X_back).mean(1)
    return {"mse": float(errors.mean()), "mse_median": float(np.median(errors))}
