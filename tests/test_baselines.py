"""The peers of the benchmarks: what they say of themselves is what ours is compared with."""

import importlib.util
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.mixture import GaussianMixture
from statistical import assert_close_to
from torch import nn

from sklvebm.ppca import fit_ppca


def _load():
    """The package by its place: on the path its neighbour ``distributed`` would hide dask's."""
    folder = Path(__file__).parents[1] / "benchmarks" / "baselines"
    spec = importlib.util.spec_from_file_location("baselines", folder / "__init__.py")
    sys.modules["baselines"] = package = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(package)
    return package


pytest.importorskip("zuko", reason="the flows are zuko's")
baselines = _load()

SHORT = baselines.Training(n_steps=60, n_evaluations=3, patience=3)
DECODERS = (baselines.VAE, baselines.NonAmortisedVI, baselines.HardEM)


@pytest.fixture
def bent(rng):
    """Rows about a parabola, standardised."""
    t = rng.standard_normal(400)
    X = np.stack([t, t**2], 1) + 0.3 * rng.standard_normal((400, 2))
    return (X - X.mean(0)) / X.std(0)


def linear(kind, X, n_importance=50):
    """A decoder model at its start, where it is probabilistic PCA, and the exact posteriors."""
    model = kind(1, n_importance=n_importance)
    model._start_decoder(torch.tensor(X, dtype=torch.float32))
    model._posterior = lambda x: baselines.NonAmortisedVI._start(model, x).chunk(2, -1)
    return model


def by_quadrature(model, x):
    """log p(x) of a decoder with one latent, and the posterior mean ``(n, 1)``."""
    z = torch.linspace(-12, 12, 8001)
    with torch.no_grad():
        joint = model.decoder_.log_joint(x, z[:, None, None])
    exact = torch.logsumexp(joint.double(), 0) + math.log(z[1] - z[0])
    return exact.numpy(), (torch.softmax(joint, 0) * z[:, None]).sum(0)[:, None]


class TestDecoders:
    @pytest.mark.parametrize("kind", DECODERS)
    def test_linear_models_are_exact(self, bent, kind):
        """At q = p(z | x) all importance weights are p(x): so are likelihood and ELBO."""
        model, ppca = linear(kind, bent), fit_ppca(bent, 1, min_scale=1e-2)
        covariance = ppca.weight @ ppca.weight.T + ppca.scale**2 * np.eye(2)
        left = bent - ppca.loc
        square = (left * np.linalg.solve(covariance, left.T).T).sum(1)
        exact = -0.5 * (square + np.linalg.slogdet(2 * np.pi * covariance)[1])
        np.testing.assert_allclose(model.iwae_samples(bent), exact, atol=1e-4)
        np.testing.assert_allclose(model.elbo_samples(bent), exact, atol=1e-4)

    @pytest.mark.statistical
    @pytest.mark.parametrize("kind", DECODERS)
    def test_likelihoods_are_unbiased(self, bent, kind, seed):
        """exp(score) is a mean of importance weights, of expectation p(x) whatever q is."""
        model = kind(1, training=SHORT, n_importance=100, random_state=seed).fit(bent)
        x = torch.tensor(bent[:40], dtype=torch.float32)
        exact, mean = by_quadrature(model, x)
        # About each row's posterior, and wider than the prior: its weights are bounded, by little.
        model._posterior = lambda x: (mean, torch.full((len(x), 1), 0.3))

        def ratios(random_state):
            model.set_params(random_state=random_state)
            scores = model.score_samples(x), model.iwae_samples(x)
            return [np.exp(score - exact).mean() for score in scores]

        for found in zip(*(ratios(seed + i) for i in range(64)), strict=True):
            assert_close_to(found, 1.0)

    @pytest.mark.statistical
    def test_an_encoder_that_is_lost_does_not_lower_a_score(self, bent, seed):
        """A q far from the posterior leaves the IWAE bound nats below log p(x), not the score."""
        model = baselines.VAE(1, training=SHORT, random_state=seed).fit(bent)
        x = torch.tensor(bent[:40], dtype=torch.float32)
        exact, mean = by_quadrature(model, x)
        model._posterior = lambda x: (mean + 6.0, torch.full((len(x), 1), -2.0))
        assert (model.iwae_samples(x) - exact).mean() < -5

        def ratio(random_state):
            score = model.set_params(random_state=random_state).score_samples(x)
            return np.exp(score - exact).mean()

        assert_close_to([ratio(seed + i) for i in range(32)], 1.0)

    @pytest.mark.parametrize("kind", DECODERS)
    def test_answers(self, bent, kind):
        model = kind(1, training=SHORT).fit(bent)
        Z = model.transform(bent[:20])
        assert Z.shape == (20, 1)
        assert np.isfinite(model.inverse_transform(Z)).all()
        assert np.isfinite(model.sample(20)).all()
        # Jensen's inequality, on the same draws.
        assert model.elbo_samples(bent, model.n_importance).mean() < model.score(bent)


class TestFlows:
    @pytest.mark.parametrize("kind", ["nsf", "maf"])
    def test_densities_integrate_to_one(self, bent, kind, seed):
        model = baselines.NormalizingFlow(kind, training=SHORT, random_state=seed).fit(bent)
        # Fine in the middle, and far out: where x_1 is unusual, x_2 may be anywhere.
        axis = np.arange(-8, 8, 0.02)
        S = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
        slope = np.cosh(S).prod(1)
        mass = np.exp(model.score_samples(np.sinh(S))) * slope
        assert mass.sum() * 0.02**2 == pytest.approx(1.0, abs=1e-2)

    def test_the_integrator_follows_the_field(self):
        """The straight paths' exact field to N(μ, σ²) carries a start u to μ + σu."""
        loc, scale = 1.5, 0.4

        def velocity(features):
            x, t = features[:, :2], features[:, 18:19].clamp(-1, 1).acos() / math.pi
            variance = (t * scale) ** 2 + (1 - t) ** 2
            return loc + (x - t * loc) * (t * scale**2 - (1 - t)) / variance

        model = baselines.FlowMatching(n_integration=200)
        model.velocity_, model.n_features_in_ = velocity, 2
        start = torch.randn(500, 2, generator=torch.Generator().manual_seed(3)).numpy()
        drawn = model.sample(500, random_state=3)
        np.testing.assert_allclose(drawn, loc + scale * start, atol=1e-3)


class TestMapped:
    def test_densities_integrate_to_one(self, rng):
        """By the trapezoidal rule at the images of equal steps, which are close in the spike."""
        narrow, broad = 0.02 * rng.standard_normal((300, 1)), 3 + rng.standard_normal((300, 1))
        model = baselines.Mapped(GaussianMixture(3, random_state=0))
        model.fit(np.concatenate([narrow, broad]))
        x = model.maps_.inverse(np.linspace(-12, 12, 20_001)[:, None])
        density = np.exp(model.score_samples(x))
        assert np.trapezoid(density, x[:, 0]) == pytest.approx(1.0, abs=1e-3)

    def test_latents_are_those_behind_the_maps(self, bent):
        model = baselines.Mapped(baselines.VAE(1, training=SHORT)).fit(bent)
        behind = model.estimator_.transform(model.maps_.forward(bent))
        np.testing.assert_array_equal(model.transform(bent), behind)
        assert not hasattr(baselines.Mapped(GaussianMixture()), "transform")


class TestRegressed:
    def test_what_bends_about_the_line_comes_back(self, rng):
        u = rng.uniform(-0.5, 1.5, 600)
        X = np.column_stack([u, u**2])
        lines = PCA(1).fit(X)
        model = baselines.Regressed(PCA(1)).fit(X)
        np.testing.assert_array_equal(model.transform(X), lines.transform(X))
        straight, bent = (
            np.square(m.inverse_transform(m.transform(X)) - X).mean() for m in (lines, model)
        )
        assert bent < straight / 10


class TestTraining:
    def test_the_best_state_is_kept(self):
        """Of a parameter that rises at every step, the one with the least validation loss."""
        module, values = nn.Linear(1, 1, bias=False), iter([3.0, 1.0, 2.0, 4.0])
        seen = []

        def validate():
            seen.append(module.weight.item())
            return next(values)

        training = baselines.Training(n_steps=40, n_evaluations=4, patience=4, weight_decay=0.0)
        generator = torch.Generator().manual_seed(0)
        steps = training.run(
            module, lambda picks: -module.weight.sum(), 8, validate=validate, generator=generator
        )
        assert steps == 40
        assert seen == sorted(seen)
        assert module.weight.item() == seen[1]

    def test_patience(self):
        module = nn.Linear(1, 1)
        training = baselines.Training(n_steps=40, n_evaluations=8, patience=2)
        generator = torch.Generator().manual_seed(0)
        steps = training.run(
            module, lambda picks: module.weight.sum(), 8, validate=lambda: 0.0, generator=generator
        )
        assert steps == 15

    def test_the_global_generator_is_left_alone(self, bent):
        before = torch.get_rng_state()
        baselines.VAE(1, training=SHORT).fit(bent)
        assert torch.equal(torch.get_rng_state(), before)
