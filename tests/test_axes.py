"""Principal axes: what the latents of ``transform`` are told along."""

from __future__ import annotations

import copy
import math

import numpy as np
import oracles
import pytest
import torch
from scipy.spatial.distance import pdist
from sklearn.base import clone
from sklearn.datasets import load_wine
from sklearn.decomposition import PCA
from small import quick
from statistical import assert_close_to
from torch import nn

from sklvebm import LVEBMEstimator
from sklvebm.axes import Axes, principal_axes
from sklvebm.energies import LinearEnergy, TiltedEnergy


def matrix(rng, k=3):
    rotation = np.linalg.qr(rng.standard_normal((k, k)))[0]
    return rotation * rng.uniform(0.1, 3.0, k)


def built(spec, d, k, generator):
    """An energy whose networks are not at zero, where training would start."""
    energy = spec.build(d, k, generator=generator)
    with torch.no_grad():
        for parameter in energy.reference.parameters():
            parameter.add_(0.5 * torch.randn(parameter.shape, generator=generator))
    return energy


@pytest.fixture(scope="module")
def X():
    rng = np.random.default_rng(0)
    return rng.standard_normal((60, 2)) @ rng.standard_normal((2, 5)) * [1, 9, 1, 1, 0.1]


@pytest.fixture(scope="module", params=["tilted", "free", "linear"])
def model(request, X):
    return quick(request.param, n_components=2).fit(X)


class TestCoordinates:
    def test_there_and_back(self, rng):
        axes, z = Axes(matrix(rng)), rng.standard_normal((5, 4, 3))
        np.testing.assert_allclose(axes.to_model(axes.from_model(z)), z, atol=1e-12)
        np.testing.assert_allclose(axes.from_model(z), z @ axes.matrix, atol=1e-12)

    def test_variance_and_volume(self, rng):
        axes = Axes(matrix(rng))
        exact = np.diag(axes.matrix.T @ axes.matrix)
        np.testing.assert_allclose(axes.variance, exact)
        assert axes.log_det == pytest.approx(np.linalg.slogdet(axes.matrix)[1])
        np.testing.assert_allclose(axes.whitened.variance, np.ones(3))
        np.testing.assert_allclose(axes.whitened.matrix * np.sqrt(exact), axes.matrix)

    def test_a_row_is_rounded_alike_in_any_batch(self, rng):
        axes, z = Axes(matrix(rng, 7)), rng.standard_normal((1000, 7))
        for there in (axes.from_model, axes.to_model):
            alone = np.concatenate([there(row[None]) for row in z])
            np.testing.assert_array_equal(there(z), alone)


class TestPrincipalAxes:
    def test_of_a_linear_mean_they_are_its_singular_vectors(self, rng, generator):
        energy = built(LinearEnergy(), 5, 3, generator)
        weight = energy.reference.weight.detach().numpy().astype(float)
        axes = principal_axes(energy, seed=0)
        left, values, _ = np.linalg.svd(weight, full_matrices=False)
        np.testing.assert_allclose(axes.variance, values**2, rtol=1e-5)
        # Moving by one along a coordinate moves x by one, along a singular vector.
        loadings = weight @ axes.to_model(np.eye(3)).T
        np.testing.assert_allclose(np.abs(np.sum(loadings * left, axis=0)), 1, rtol=1e-5)
        assert (loadings[np.abs(loadings).argmax(0), np.arange(3)] > 0).all()

    @pytest.mark.statistical
    @pytest.mark.parametrize("noise", ["flexible", "isotropic"])
    def test_of_a_curved_mean_they_diagonalise_its_squared_slopes(self, noise, generator, rng):
        energy = built(TiltedEnergy((16,), noise=noise), 4, 3, generator)
        reference = energy.reference.double()
        axes = principal_axes(energy, seed=int(rng.integers(2**31)))
        z = torch.randn(64 * 50, 3, dtype=torch.float64, generator=generator)

        def total(z):
            return reference.mean(z).sum(0)

        slopes = torch.autograd.functional.jacobian(total, z).permute(1, 0, 2).numpy()
        back = axes.to_model(np.eye(3))
        second = np.einsum("ndi,ndj->nij", slopes @ back.T, slopes @ back.T)
        # Of the 512 draws that the axes were taken of, and as many groups of 50 of our own.
        slack = 6 * second.std(0).ravel() / math.sqrt(512)
        assert_close_to(second.reshape(64, 50, 9).mean(1), np.eye(3).ravel(), slack=slack)

    def test_they_do_not_depend_on_how_the_latents_are_turned(self, rng, generator):
        """Their variances are far apart: the parameters are kept in float32."""
        weight = np.linalg.qr(rng.standard_normal((5, 3)))[0] * [3.0, 2.0, 1.0]
        turn = np.linalg.qr(rng.standard_normal((3, 3)))[0]
        z, told = rng.standard_normal((10, 3)), []
        for by in (np.eye(3), turn):
            energy = LinearEnergy().build(5, 3, generator=generator)
            with torch.no_grad():
                energy.reference.weight.copy_(torch.tensor(weight @ by))
            told.append(principal_axes(energy, seed=0).from_model(z @ by))
        np.testing.assert_allclose(told[1], told[0], atol=1e-4)

    def test_a_latent_that_x_follows_evenly_counts(self, generator):
        """Its mean slope is zero: a regression of x on z would not see it."""
        energy = TiltedEnergy((2,), mixing=False).build(1, 1, generator=generator)
        first, last = (m for m in energy.reference.net.modules() if isinstance(m, nn.Linear))
        with torch.no_grad():
            first.weight.copy_(torch.tensor([[1.0], [-1.0]]))
            first.bias.zero_()
            last.weight[0].fill_(1.0)
            left, middle, right = energy.reference.mean(torch.tensor([[-2.0], [0.0], [2.0]]))
        torch.testing.assert_close(left, right)
        assert (left - middle).abs() > 1
        assert principal_axes(energy, seed=0).variance[0] > 0.5

    def test_a_latent_that_moves_nothing_keeps_its_way_back(self, generator):
        energy = LinearEnergy().build(4, 2, generator=generator)
        with torch.no_grad():
            energy.reference.weight[0, 0] = 1.0
        axes = principal_axes(energy, seed=0)
        np.testing.assert_allclose(axes.variance, [1.0, 1e-12], rtol=1e-6)
        z = np.array([[1.0, -2.0]])
        np.testing.assert_allclose(axes.to_model(axes.from_model(z)), z, rtol=1e-9)


class TestEstimator:
    def test_linear_latents_are_the_scores_of_pca_shrunk(self):
        """Signs and order included. The parameters are kept in float32: 1e-7 each."""
        X = load_wine().data
        x = (X - X.mean(0)) / X.std(0)
        model = LVEBMEstimator(3, energy="linear", random_state=0).fit(X)
        pca = PCA(3).fit(x)
        noise = oracles.ppca(x, 3)[2]
        total = pca.explained_variance_ * 177 / 178
        shrunken = pca.transform(x) * (total - noise) / total
        np.testing.assert_allclose(model.transform(X), shrunken, atol=1e-4)
        np.testing.assert_allclose(model.latent_variance_, total - noise, rtol=1e-4)
        whitened = clone(model).set_params(whiten=True).fit(X).transform(X)
        np.testing.assert_allclose(
            whitened * np.sqrt(model.latent_variance_), model.transform(X), atol=1e-6
        )

    def test_every_answer_is_told_along_the_same_axes(self, model, X):
        latents, scale = model.transform(X), np.sqrt(model.latent_variance_)
        assert (np.diff(scale) <= 0).all()
        white = copy.copy(model).set_params(whiten=True)
        np.testing.assert_allclose(white.transform(X) * scale, latents, rtol=1e-5, atol=1e-6)
        for answer in ("decode", "inverse_transform"):
            np.testing.assert_allclose(
                getattr(white, answer)(latents / scale),
                getattr(model, answer)(latents),
                rtol=1e-3,
                atol=1e-3 * X.std(),
            )
        draws = [m.sample_posterior(X, 3, random_state=0) for m in (white, model)]
        np.testing.assert_allclose(draws[0] * scale, draws[1], rtol=1e-5, atol=1e-6)
        # Densities of the latents differ by the volume.
        energies = [m.joint_energy(X, Z) for m, Z in ((white, latents / scale), (model, latents))]
        np.testing.assert_allclose(
            energies[1] - energies[0], np.log(scale).sum(), rtol=1e-3, atol=1e-3
        )

    def test_a_users_module_keeps_its_latents(self, X):
        class Shifted(nn.Module):
            def forward(self, x, z):
                return 0.5 * (x.square().sum(-1) + (z - 3.0).square().sum(-1))

        model = quick(lambda d, k: Shifted(), n_components=2).fit(X)
        np.testing.assert_array_equal(model.latent_variance_, np.ones(2))
        np.testing.assert_allclose(model.transform(X), np.full((60, 2), 3.0), atol=0.5)

    def test_distances_are_those_between_means_of_rows(self):
        X = load_wine().data
        model = LVEBMEstimator(3, energy="linear", random_state=0).fit(X)
        Z = model.transform(X)
        np.testing.assert_allclose(pdist(model.decode(Z) / X.std(0)), pdist(Z), rtol=1e-3)

    def test_whiten_is_checked(self, X):
        with pytest.raises(TypeError, match="whiten must be True or False"):
            quick("linear", whiten="yes").fit(X)
