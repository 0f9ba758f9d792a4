"""Missing entries: exact on Gaussian energies, consistent on others, and never in the way."""

import dataclasses

import numpy as np
import pytest
import torch
from oracles import gaussian_conditional, gaussian_log_prob
from sklearn.datasets import load_iris, make_moons
from statistical import assert_close_to, assert_uniform_ranks, assert_within_errors
from torch import nn

from sklvebm import LVEBMEstimator
from sklvebm._arrays import generator_from_seed, to_numpy, to_tensor
from sklvebm.completion import apart, by_completeness, linear_guess
from sklvebm.ppca import fit_ppca

D, K = 4, 2


def holed(X, rng, share=0.4):
    """``X`` with missing entries, at least one seen in each row but the last, which has none."""
    holes = rng.uniform(size=X.shape) < share
    holes[np.arange(len(X)), rng.integers(0, X.shape[1], len(X))] = False
    holes[-1] = True
    return np.where(holes, np.nan, X)


class Gaussian(nn.Module):
    """½‖x − Wz‖²/σ² + ½‖z‖², fixed: the exact answers, by way of particles."""

    W = torch.tensor([[1.0, 0.0], [0.8, 0.3], [0.0, 0.9], [-0.5, 0.5]])
    scale = 0.6

    def forward(self, x, z):
        square = (x - z @ self.W.to(z).T).square().sum(-1) / self.scale**2
        return 0.5 * (square + z.square().sum(-1))

    @property
    def covariance(self):
        return (self.W @ self.W.T).numpy() + self.scale**2 * np.eye(D)


@pytest.fixture(scope="module")
def linear():
    X = load_iris().data
    return X, LVEBMEstimator(K, energy="linear", random_state=0).fit(X)


@pytest.fixture(scope="module")
def particles():
    X = np.random.default_rng(0).multivariate_normal(np.zeros(D), Gaussian().covariance, 200)
    X = (X - X.mean(0)) / X.std(0)
    return LVEBMEstimator(
        K, energy=lambda d, k: Gaussian(), max_iter=1, pool_size=4096, random_state=0
    ).fit(X)


def law(model):
    """Mean and covariance of x under a linear model, in the user's units."""
    reference, scaler = model._model.cast(torch.float64).energy.reference, model._scaler
    W, loc, log_scale = map(to_numpy, (reference.weight, reference.loc, reference.log_scale))
    covariance = W @ W.T + np.exp(2 * log_scale) * np.eye(len(W))
    return scaler.mean_ + scaler.scale_ * loc, covariance * np.outer(scaler.scale_, scaler.scale_)


class TestLinear:
    """Everything is in closed form."""

    def test_score_and_imputation(self, linear, rng):
        X, model = linear
        mean, covariance = law(model)
        rows = holed(X[:30], rng)
        log_prob, filled = model.score_samples(rows), model.impute(rows)
        for row, value, full in zip(rows[:-1], log_prob, filled, strict=False):
            seen = np.flatnonzero(~np.isnan(row))
            block = np.ix_(seen, seen)
            exact = gaussian_log_prob(row[seen], mean[seen], covariance[block])[0]
            # Parameters are stored in single precision.
            assert value == pytest.approx(exact, abs=1e-4)
            conditional, _ = gaussian_conditional(mean, covariance, seen, row[seen])
            np.testing.assert_allclose(full[np.isnan(row)], conditional, rtol=1e-4, atol=1e-4)
            np.testing.assert_array_equal(full[seen], row[seen])
        assert log_prob[-1] == pytest.approx(0.0, abs=1e-6)
        np.testing.assert_allclose(filled[-1], mean, rtol=1e-5)

    def test_conditional_draws(self, linear, seed):
        X, model = linear
        mean, covariance = law(model)
        row = X[3].copy()
        row[[0, 2]] = np.nan
        draws = model.sample_conditional(row[None], 64 * 64, random_state=seed)[:, 0]
        np.testing.assert_array_equal(draws[:, [1, 3]], np.tile(row[[1, 3]], (len(draws), 1)))
        exact, spread = gaussian_conditional(mean, covariance, np.array([1, 3]), row[[1, 3]])
        missing = draws[:, [0, 2]] - exact
        assert_close_to(missing.reshape(64, 64, 2).mean(1), np.zeros(2), slack=1e-5)
        outer = missing[:, :, None] * missing[:, None]
        assert_close_to(outer.reshape(64, 64, 2, 2).mean(1), spread, slack=1e-5)

    def test_latents(self, linear, rng):
        X, model = linear
        rows = holed(X[:20], rng)
        assert np.isfinite(model.transform(rows)).all()
        np.testing.assert_allclose(model.transform(rows)[-1], np.zeros(K), atol=1e-12)


class TestParticles:
    """The same answers from chains and importance sampling, on a Gaussian that does not say so."""

    def test_score(self, particles, rng):
        rows = holed(particles.sample(20, random_state=1), rng)
        value, std = particles.score_samples(rows, return_std=True)
        covariance = Gaussian().covariance
        for row, found, error in zip(rows, value, std, strict=True):
            seen = np.flatnonzero(~np.isnan(row))
            z = (row - particles._scaler.mean_)[seen] / particles._scaler.scale_[seen]
            exact = gaussian_log_prob(z, np.zeros(len(seen)), covariance[np.ix_(seen, seen)])[0]
            exact -= np.log(particles._scaler.scale_[seen]).sum()
            error = np.hypot(error, particles.log_partition_std_)
            # Jensen: the logarithm is low by about half its variance.
            assert_within_errors(found, error, exact, slack=error**2 + 1e-3)

    def test_imputation_and_draws(self, particles, rng):
        x = particles._units.to_model(particles.sample(1, random_state=2))[0]
        seen, missing = np.array([0, 3]), np.array([1, 2])
        row = to_tensor(x[None], particles._model.device)
        row[:, [1, 2]] = torch.nan
        exact, spread = gaussian_conditional(np.zeros(D), Gaussian().covariance, seen, x[seen])
        model = particles._model.cast(torch.float64)
        means, squares, imputed = [], [], []
        for seed in rng.integers(2**31, size=32):
            again = dataclasses.replace(model, seed=int(seed))
            imputed.append(to_numpy(again.completed_mean(row)[0, missing]))
            generator = generator_from_seed(seed, row.device)
            draws = to_numpy(again.sample_conditional(row, 256, generator)[:, 0, missing])
            means.append(draws.mean(0))
            squares.append((draws - exact).T @ (draws - exact) / len(draws))
        # Self-normalised importance sampling is biased by about one part in its draws.
        assert_close_to(imputed, exact, slack=0.02)
        assert_close_to(means, exact, slack=0.02)
        assert_close_to(squares, spread, slack=0.02)


@pytest.fixture(scope="module")
def moons():
    X = make_moons(400, noise=0.2, random_state=0)[0]
    X[np.random.default_rng(0).uniform(size=X.shape) < 0.1] = np.nan
    return LVEBMEstimator(2, max_iter=100, pool_size=512, refit=False, random_state=0).fit(X)


class TestTilted:
    def test_the_marginal_is_the_integral_of_the_joint(self, moons):
        """exp(score) of one feature is the trapezoid rule over the other."""
        seen = np.array([-0.8, 0.1, 0.6, 1.3])
        grid = np.linspace(-4, 4, 120)
        marginal, std = moons.score_samples(np.c_[seen, np.full(4, np.nan)], return_std=True)
        for x, value, error in zip(seen, marginal, std, strict=True):
            density, errors = moons.score_samples(
                np.c_[np.full_like(grid, x), grid], return_std=True
            )
            exact = np.log(np.trapezoid(np.exp(density), grid))
            error = np.hypot(error, np.average(errors, weights=np.exp(density)))
            assert_within_errors(value, error, exact, slack=error**2 + 0.01)

    @pytest.mark.statistical
    def test_draws_rank_evenly_about_rows_of_the_model(self, moons, rng):
        """Of the model's own rows, what is hidden ranks evenly among draws: intervals cover."""
        X = moons.sample(1500, random_state=int(rng.integers(2**31)))
        hidden = np.arange(len(X)), rng.integers(0, 2, len(X))
        seen = X.copy()
        seen[hidden] = np.nan
        draws = moons.sample_conditional(seen, 19, random_state=int(rng.integers(2**31)))
        ranks = (draws[:, *hidden] < X[hidden]).sum(0)
        assert_uniform_ranks(ranks, 20)

    def test_complete_rows_do_not_notice_the_others(self, moons):
        X = moons.sample(6, random_state=0)
        mixed = X.copy()
        mixed[[1, 4], [0, 1]] = np.nan
        for method in ("transform", "score_samples"):
            answer = getattr(moons, method)
            together = answer(mixed)
            alone = answer(X)[[0, 2, 3, 5]]
            np.testing.assert_allclose(together[[0, 2, 3, 5]], alone, atol=1e-7)
            np.testing.assert_allclose(together[[1]], answer(mixed[[1]]), atol=1e-7)

    def test_what_is_seen_stays(self, moons):
        X = moons.sample(5, random_state=1).astype(np.float32)
        X[[0, 2], [1, 0]] = np.nan
        for filled in (moons.impute(X), *moons.impute(X, n_samples=3, random_state=0)):
            assert filled.dtype == np.float32
            assert np.isfinite(filled).all()
            np.testing.assert_array_equal(filled[~np.isnan(X)], X[~np.isnan(X)])
        np.testing.assert_array_equal(moons.impute(X), moons.impute(X))
        assert moons.sample_posterior(X, 2).shape == (2, 5, 2)

    @pytest.mark.parametrize("inference", ["langevin", "variational", "map"])
    def test_a_single_hole(self, inference, rng):
        """Nearly every batch is then complete, and so are the rows that are held out."""
        X = load_iris().data
        X[rng.integers(len(X)), 0] = np.nan
        model = LVEBMEstimator(
            1, inference=inference, max_iter=20, batch_size=2, pool_size=128, random_state=0
        ).fit(X)
        assert np.isfinite(model.score_samples(X)).all()

    @pytest.mark.parametrize("inference", ["variational", "map"])
    def test_other_inferences(self, inference, rng):
        X = holed(load_iris().data, rng)[:-1]
        model = LVEBMEstimator(
            2, inference=inference, max_iter=20, pool_size=128, random_state=0
        ).fit(X)
        assert np.isfinite(model.score_samples(X)).all()

    def test_going_on(self, rng):
        X = holed(load_iris().data, rng)[:-1]
        model = LVEBMEstimator(2, max_iter=20, pool_size=128, warm_start=True, random_state=0)
        assert np.isfinite(model.fit(X).fit(X).partial_fit(X[:40]).score(X))


class TestPPCA:
    def test_em_stands_at_a_maximum(self, rng):
        """No direction climbs: the gradient of the likelihood of what is seen is zero."""
        W = rng.normal(size=(5, 2))
        X = rng.normal(size=(300, 2)) @ W.T + 0.5 * rng.normal(size=(300, 5)) + 1.0
        X[rng.uniform(size=X.shape) < 0.3] = np.nan
        X = X[~np.isnan(X).all(1)]
        ppca = fit_ppca(X, 2)

        def log_likelihood(theta):
            weight, loc, log_scale = theta[:10].reshape(5, 2), theta[10:15], theta[15]
            covariance = weight @ weight.T + np.exp(2 * log_scale) * np.eye(5)
            total = 0.0
            for row in X:
                seen = np.flatnonzero(~np.isnan(row))
                block = covariance[np.ix_(seen, seen)]
                total += gaussian_log_prob(row[seen], loc[seen], block)[0]
            return total / len(X)

        theta = np.concatenate([ppca.weight.ravel(), ppca.loc, [np.log(ppca.scale)]])
        step = 1e-4
        for i in range(len(theta)):
            move = step * np.eye(len(theta))[i]
            slope = (log_likelihood(theta + move) - log_likelihood(theta - move)) / (2 * step)
            assert abs(slope) < 1e-3, (i, slope)

    def test_nothing_missing_is_the_closed_form(self, rng):
        X = rng.normal(size=(50, 4))
        almost = np.concatenate([X, [[np.nan] * 4]])
        for a, b in zip(
            fit_ppca(X, 2), fit_ppca(almost, 2, sample_weight=np.r_[np.ones(50), 0]), strict=True
        ):
            np.testing.assert_allclose(a, b, atol=1e-4)


def test_the_linear_guess_is_gaussian_conditioning(rng):
    joint = np.cov(rng.normal(size=(6, 50)))
    mean = rng.normal(size=6)
    x = rng.normal(size=(1, 4))
    x[0, [1, 2]] = np.nan
    tensors = [torch.tensor(v) for v in (x, mean, joint, np.zeros((2, 2)))]
    centre, spread = linear_guess(*tensors)
    observed = np.array([2, 5])
    exact, within = gaussian_conditional(mean, joint, observed, x[0, [0, 3]])
    np.testing.assert_allclose(centre[0, :2], exact[:2], atol=1e-2)
    full = gaussian_conditional(mean, joint, np.arange(2, 6), np.zeros(4))[1]
    np.testing.assert_allclose(spread[0, :2, :2], within[:2, :2] - full, atol=1e-2)


def test_the_linear_guess_survives_features_that_repeat(rng):
    """Hardly anything is lost with one of two that say the same: rounding must not show."""
    z = rng.normal(size=(2, 400))
    x = np.array([[1.0, 0.5], [1.0, 0.5], [0.2, -1.0], [0.2, -1.0]]) @ z
    x += 1e-3 * rng.normal(size=x.shape)
    joint = torch.tensor(np.cov(np.r_[z, x])).float()
    rows = torch.tensor(holed(x.T[:200], rng)).float()
    _, spread = linear_guess(rows, torch.zeros(6), joint, 1e-6 * torch.eye(2))
    assert spread.dtype == torch.float32
    assert float(torch.linalg.eigvalsh(spread.double()).min()) > 0


def test_rows_are_answered_apart_and_put_back():
    x = torch.tensor([[1.0, 2.0], [torch.nan, 3.0], [4.0, 5.0], [6.0, torch.nan]])
    assert [rows.tolist() for rows in apart(x)] == [[0, 2], [1, 3]]
    answer = by_completeness(lambda self, x: torch.nan_to_num(x, nan=-1.0))
    np.testing.assert_array_equal(answer(None, x), torch.nan_to_num(x, nan=-1.0))


class TestErrors:
    def test_a_feature_that_nobody_saw(self):
        X = load_iris().data.copy()
        X[:, 2] = np.nan
        with pytest.raises(ValueError, match=r"features \[2\] have no observed value"):
            LVEBMEstimator(energy="linear").fit(X)

    def test_infinity_is_not_missing(self, linear):
        X, model = linear
        X = X.copy()
        X[0, 0] = np.inf
        with pytest.raises(ValueError, match="infinity"):
            model.score_samples(X)

    def test_the_joint_energy_needs_complete_rows(self, linear):
        X, model = linear
        X = X.copy()
        X[0, 0] = np.nan
        with pytest.raises(ValueError, match="missing"):
            model.joint_energy(X, np.zeros((len(X), K)))
