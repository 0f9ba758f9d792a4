r"""Principal axes of the latents: what ``transform`` gives, rotated and scaled by what it explains.

Latents z ∼ N(0, I) are known up to a rotation, and all have the same variance, whether or not x
follows them. How fast the mean g(z) of x moves along a direction w is, in the mean square,
wᵀGw with G = E[∂g/∂zᵀ ∂g/∂z]; the eigenvectors of G are an active subspace of g (Constantine, Dow
and Wang 2014, "Active subspace methods in theory and practice", SIAM J. Sci. Comput. 36(4)). With
G = VΛVᵀ the coordinates u = Λ^½ Vᵀz come in the order of what they move, and distances between
them are those between means of x, to first order. Where g is linear, Λ is the variance that each
explains, and E[u | x] are the scores of PCA, shrunk (Tipping and Bishop 1999).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ._arrays import generator_from_seed, to_numpy
from .energies._joint import JointEnergy
from .langevin import Noise
from .reference import Reference

# Draws of z that G is the mean over.
_N_DRAWS = 512
# Step of the differences that stand for slopes.
_STEP = 1e-4
# Slopes that are held at once.
_MOST_ENTRIES = 2**22
# Smallest standard deviation of a coordinate: one that moves nothing keeps its way back.
_SMALLEST = 1e-6


@dataclass(frozen=True)
class Axes:
    """Coordinates u = zT of latents ``z (..., k)``, where T is a rotation times a scale a column.

    Parameters
    ----------
    matrix : ndarray of shape (k, k)
        T.
    """

    matrix: NDArray

    @property
    def variance(self) -> NDArray:
        """That of each coordinate under the prior N(0, I) of z, ``(k,)``."""
        return np.square(self.matrix).sum(0)

    @property
    def whitened(self) -> Axes:
        """The same rotation, each coordinate of prior variance one."""
        return Axes(self.matrix / np.sqrt(self.variance))

    @property
    def log_det(self) -> float:
        r"""log \|det T\|: what the density of the latents loses in these coordinates."""
        return 0.5 * float(np.log(self.variance).sum())

    def from_model(self, z: NDArray) -> NDArray:
        """u of ``z (..., k)``."""
        return _product(z, self.matrix)

    def to_model(self, u: NDArray) -> NDArray:
        """Undo :meth:`from_model`."""
        return _product(u / self.variance, self.matrix.T)


def _product(rows: NDArray, matrix: NDArray) -> NDArray:
    """``rows @ matrix``, which rounds alike in any batch: BLAS does not."""
    return sum(rows[..., i, None] * row for i, row in enumerate(matrix))


def principal_axes(energy: JointEnergy, *, seed: int) -> Axes:
    """Those of p_0, by decreasing variance; of a user's module, the coordinates that it has.

    Largest entries of the mean slopes are positive, as scikit-learn's PCA has those of its
    components.
    """
    reference = energy.reference
    k = reference.n_components
    if not energy.is_ours:
        return Axes(np.eye(k))
    second, mean = np.zeros((k, k)), np.zeros((k, reference.n_features))
    for slopes in _slopes(reference, seed):
        second += np.tensordot(slopes, slopes, ((1, 2), (1, 2))) / _N_DRAWS
        mean += slopes.sum(1) / _N_DRAWS
    variance, vectors = np.linalg.eigh(second)
    scale = np.sqrt(np.maximum(variance, 0.0))[::-1].clip(_SMALLEST)
    vectors = vectors[:, ::-1]
    loadings = mean.T @ vectors
    signs = np.sign(loadings[np.abs(loadings).argmax(0), np.arange(k)])
    return Axes(vectors * np.where(signs == 0, 1.0, signs) * scale)


@torch.no_grad()
def _slopes(reference: Reference, seed: int) -> Iterator[NDArray]:
    """∂g/∂z_a at draws of z, ``(k, n, d)`` for some at a time: central differences.

    In double precision they are exact to about 1e-8; on the CPU, since not every device has that.
    Torch's forward mode takes seconds to be loaded.
    """
    reference = copy.deepcopy(reference).cpu().double()
    noise = Noise(generator_from_seed(seed, torch.device("cpu")))
    z = noise.normal(reference.weight.new_empty(_N_DRAWS, reference.n_components))
    ahead = _STEP * torch.eye(z.shape[1], dtype=z.dtype)
    for some in z.split(max(1, _MOST_ENTRIES // reference.weight.numel())):
        differences = [reference.mean(some + h) - reference.mean(some - h) for h in ahead]
        yield to_numpy(torch.stack(differences)) / (2 * _STEP)
