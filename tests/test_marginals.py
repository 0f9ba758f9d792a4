"""Marginal maps: a bijection of each feature, and a model behind it that answers in user units."""

import copy
import dataclasses
import pickle

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.datasets import load_iris
from small import interrupted
from statistical import assert_close_to, assert_rejects

from sklvebm import LinearEnergy, LVEBMEstimator, TiltedEnergy
from sklvebm._arrays import to_numpy
from sklvebm.heldout import HeldOut
from sklvebm.marginals import MarginalMaps, _best_mixtures, _parts
from sklvebm.pilot import Gain, Pilots
from sklvebm.rows import distinct_rows
from sklvebm.saddle import DivergenceError

# Variance that every component gains, as a standard deviation, and the least that one has.
WIDENED, NARROWEST = 0.25, 0.01


def spiked(rng, n, d=3):
    """Rows of features that are a spike, a broad hump and a far tail, standardised."""
    kind = rng.uniform(size=(n, d))
    X = np.where(kind < 0.4, 0.02 * rng.standard_normal((n, d)), 2 + rng.standard_normal((n, d)))
    X = np.where(kind > 0.9, rng.exponential(5.0, (n, d)), X)
    return (X - X.mean(0)) / X.std(0)


@pytest.fixture
def table(rng):
    return spiked(rng, 500)


@pytest.fixture
def maps(table):
    return MarginalMaps.fitted(table, np.ones(len(table)))


class TestMaps:
    def test_there_and_back(self, maps, table, rng):
        far = np.concatenate([table, 1e6 * rng.standard_normal((50, 3))])
        np.testing.assert_allclose(maps.inverse(maps.forward(far)), far, rtol=1e-9, atol=1e-12)
        Y = 8 * rng.standard_normal((200, 3))
        np.testing.assert_allclose(maps.forward(maps.inverse(Y)), Y, rtol=1e-9, atol=1e-9)
        one = maps.inverse(Y[:, None])
        np.testing.assert_array_equal(one[:, 0], maps.inverse(Y))

    def test_features_are_shared_out_among_threads(self, maps, table, monkeypatch):
        monkeypatch.setattr("sklvebm.marginals._AT_ONCE", 1)
        before = torch.get_num_threads()
        try:
            for n_threads in (1, 3):
                torch.set_num_threads(n_threads)
                apart = MarginalMaps.fitted(table, np.ones(len(table)))
                np.testing.assert_array_equal(apart.knots, maps.knots)
        finally:
            torch.set_num_threads(before)

    def test_slope_is_the_derivative(self, maps):
        # In the middle of a piece, so that both sides lie within it; and beyond the pieces.
        edges = maps.knots[1].T
        Y = np.concatenate([(edges[1:] + edges[:-1]) / 2, edges[:1] - 3, edges[-1:] + 3])
        step = 1e-3 * np.diff(edges, axis=0).min()
        rise = maps.inverse(Y + step) - maps.inverse(Y - step)
        np.testing.assert_allclose(maps.log_slope(Y), np.log(2 * step / rise), atol=1e-4)

    def test_the_map_takes_a_mixture_to_the_widened_one(self):
        """Equal quantiles: F(x) = C(y) = Φ(u) at the knots, by distribution functions of scipy."""
        spike, hump = (stats.norm.ppf((np.arange(n) + 0.5) / n) for n in (400, 600))
        column = np.concatenate([0.1 * spike, 6 + hump])
        column = (column - column.mean()) / column.std()
        table, weight = column[:, None], np.ones(1000)
        share, mean, scale = (part[0] for part in _best_mixtures(_parts(table, weight)))
        used = share > 0
        # The background, which counts as a row, and two components, less what it takes of them.
        np.testing.assert_allclose(share[used], [1 / 1001, 0.4, 0.6], atol=2e-3)
        groups = column[:400], column[400:]
        np.testing.assert_allclose(mean[used], [0.0, *map(np.mean, groups)], atol=5e-3)
        np.testing.assert_allclose(scale[used], [1.5, *map(np.std, groups)], rtol=0.05)
        wide = np.r_[1.5, np.sqrt(scale[used][1:] ** 2 + WIDENED**2)]
        maps = MarginalMaps.fitted(table, weight)
        wanted = stats.norm.cdf(np.linspace(-5, 5, 257))
        for points, scales in zip(maps.knots[:, 0], (scale[used], wide), strict=True):
            found = stats.norm.cdf(points[:, None], mean[used], scales) @ share[used]
            np.testing.assert_allclose(found, wanted, atol=1e-12)

    def test_a_normal_feature_is_only_stretched(self, rng):
        """BIC picks one normal, and a component of variance s² becomes one of s² + .25²."""
        X = rng.standard_normal((2000, 1))
        maps = MarginalMaps.fitted(X, np.ones(2000))
        Y = np.linspace(-2, 2, 9)[:, None]
        slope, shift = np.polyfit(Y[:, 0], maps.inverse(Y)[:, 0], 1)
        # 2,000 rows tell the mean and, by less than that, the stretch to a few hundredths.
        assert abs(shift) < 8 / 2000**0.5
        assert abs(slope - 1 / np.hypot(1, WIDENED)) < 8 / 4000**0.5

    def test_weights_are_repeats_in_any_order(self, table, rng):
        weight = rng.integers(0, 4, len(table)).astype(float)
        some, counts = distinct_rows(table, weight)
        repeated = rng.permutation(table.repeat(weight.astype(int), axis=0))
        again, repeats = distinct_rows(repeated)
        a, b = MarginalMaps.fitted(some, counts), MarginalMaps.fitted(again, repeats)
        np.testing.assert_array_equal(a.knots, b.knots)

    def test_missing_entries_are_left_out(self, table, rng):
        holes = rng.uniform(size=table.shape) < 0.3
        X = np.where(holes, np.nan, table)
        maps = MarginalMaps.fitted(X, np.ones(len(X)))
        for j, column in enumerate(X.T):
            seen = column[~np.isnan(column)][:, None]
            alone = MarginalMaps.fitted(seen, np.ones(len(seen)))
            np.testing.assert_allclose(maps.knots[:, j], alone.knots[:, 0], rtol=1e-9, atol=1e-9)
        Y = maps.forward(X)
        for found in (Y, maps.inverse(Y), maps.log_slope(Y)):
            np.testing.assert_array_equal(np.isnan(found), holes)

    @pytest.mark.parametrize(
        "column",
        [np.zeros(50), np.r_[np.zeros(499), 300.0], np.arange(2.0), np.repeat([-1.0, 1.0], 40)],
        ids=["constant", "one far value", "two rows", "two values"],
    )
    def test_degenerate_features(self, column):
        column = (column - column.mean()) / (column.std() or 1.0)
        maps = MarginalMaps.fitted(column[:, None], np.ones(len(column)))
        assert (np.diff(maps.knots) > 0).all()
        Y = maps.forward(column[:, None])
        assert np.abs(Y[:, 0] - column).max() < 4 * WIDENED
        # The least width of a component bounds the slope, but for the share of the background.
        assert maps.log_slope(Y).max() < np.log(np.hypot(NARROWEST, WIDENED) / NARROWEST) + 0.1

    def test_a_feature_of_many_values_is_summarised(self, rng):
        """In parts that keep weight, mean and variance, and the extremes."""
        X, weight = spiked(rng, 20_000, d=2), rng.uniform(0.5, 2, 20_000)
        parts = _parts(X, weight)
        assert parts.mean.shape[1] < 300
        np.testing.assert_allclose(parts.weight.sum(1), weight.sum())
        np.testing.assert_allclose((parts.weight * parts.mean).sum(1), weight @ X, atol=1e-7)
        squares = parts.weight * (parts.mean**2 + parts.variance)
        np.testing.assert_allclose(squares.sum(1), weight @ X**2)
        np.testing.assert_allclose(parts.mean.max(1), X.max(0))


def quadrature(mean, scale, function):
    """E[function(y)] for y ∼ N(mean, scale²), of piecewise smooth functions."""
    t = np.linspace(-9, 9, 40_001)
    density = stats.norm.pdf(t)
    values = function(mean + scale * t[:, None])
    return (values * density[:, None]).sum(0) / density.sum()


@pytest.fixture(scope="module")
def linear():
    """A linear model behind bent maps: all that they change can be worked out."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((300, 1)) + rng.standard_normal((300, 3))
    # Half of each feature is a spike.
    X = 10 + np.where(X < 0, 0.02 * X, 1 + X)
    model = LVEBMEstimator(1, energy="linear", marginals="mixture", random_state=0).fit(X)
    return X, model


def law(model):
    reference = model._model.energy.reference
    W, loc, log_scale = (
        to_numpy(p).astype(float) for p in (reference.weight, reference.loc, reference.log_scale)
    )
    return W, loc, np.exp(log_scale[0])


class TestLinear:
    def test_score_is_the_normal_density_times_the_slope(self, linear):
        X, model = linear
        W, loc, scale = law(model)
        covariance = W @ W.T + scale**2 * np.eye(3)
        Y = model._units.to_model(X)
        # Where no edge of a piece lies between.
        step = 1e-7
        rise = (model._units.to_model(X + step) - model._units.to_model(X - step)) / (2 * step)
        within = np.abs(Y[..., None] - model._maps.knots[1]).min((1, 2)) > 1e-5
        exact = stats.multivariate_normal(loc, covariance).logpdf(Y) + np.log(rise).sum(1)
        np.testing.assert_allclose(model.score_samples(X)[within], exact[within], atol=1e-3)
        assert within.sum() > 200

    def test_missing_entries_are_integrated_out(self, linear):
        X, model = linear
        W, loc, scale = law(model)
        rows = X[:20].copy()
        rows[:, 1] = np.nan
        covariance = (W @ W.T + scale**2 * np.eye(3))[np.ix_([0, 2], [0, 2])]
        Y = model._units.to_model(X[:20])
        slope = model._maps.log_slope(Y) - np.log(model._scaler.scale_)
        exact = stats.multivariate_normal(loc[[0, 2]], covariance).logpdf(Y[:, [0, 2]])
        exact += slope[:, [0, 2]].sum(1)
        np.testing.assert_allclose(model.score_samples(rows), exact, atol=1e-3)

    def test_density_integrates_to_one(self, linear):
        X = linear[0][:, :1]
        model = LVEBMEstimator(1, energy="linear", marginals="mixture").fit(X)
        edges = np.r_[-12.0, model._maps.knots[1, 0], 12.0][:, None]
        ends = model._units.from_model(edges)
        nodes, weights = np.polynomial.legendre.leggauss(20)
        half = np.diff(ends[:, 0]) / 2
        points = (ends[:-1, 0] + half)[:, None] + half[:, None] * nodes
        density = np.exp(model.score_samples(points.reshape(-1, 1))).reshape(points.shape)
        assert (half[:, None] * weights * density).sum() == pytest.approx(1, abs=1e-5)

    def test_the_joint_energy_is_that_of_user_units(self, linear):
        X, model = linear
        Z = np.linspace(-9, 9, 4001)[:, None]
        for row in X[:3]:
            energy = model.joint_energy(np.tile(row, (len(Z), 1)), Z)
            total = np.trapezoid(np.exp(-energy), Z[:, 0])
            assert -np.log(total) == pytest.approx(model.free_energy(row[None])[0], abs=1e-4)

    def test_samples_have_the_law_behind_the_maps(self, linear, seed):
        model = linear[1]
        W, loc, scale = law(model)
        Y = model._units.to_model(model.sample(64 * 64, random_state=seed))
        assert_close_to(Y.reshape(64, 64, 3).mean(1), loc, slack=1e-5)
        squares = ((Y - loc)[:, :, None] * (Y - loc)[:, None]).reshape(64, 64, 3, 3).mean(1)
        assert_close_to(squares, W @ W.T + scale**2 * np.eye(3), slack=1e-4)

    def test_decode_is_the_mean_of_what_comes_back(self, linear, rng):
        model = linear[1]
        W, loc, scale = law(model)
        z = np.array([[-1.5], [0.0], [2.0]])
        exact = [quadrature(W @ row + loc, scale, model._maps.inverse) for row in z]
        found = [
            to_numpy(
                dataclasses.replace(model._model, seed=int(seed)).decoded(
                    model._model.start.new_tensor(z), model._units.back
                )
            )
            for seed in rng.integers(2**31, size=32)
        ]
        assert_close_to(found, exact, slack=1e-5)
        straight = model._maps.inverse(z @ W.T + loc)
        assert_rejects(found, straight)
        expected = model._units.from_standardised(np.mean(found, 0))
        np.testing.assert_allclose(model.decode(model._axes.from_model(z)), expected, rtol=0.02)

    def test_imputed_means(self, linear, rng):
        X, model = linear
        W, loc, scale = law(model)
        row = X[:1].copy()
        row[0, 2] = np.nan
        y = model._units.to_model(row)[0, :2]
        covariance = W @ W.T + scale**2 * np.eye(3)
        gain = covariance[2, :2] @ np.linalg.inv(covariance[:2, :2])
        mean = loc[2] + gain @ (y - loc[:2])
        spread = np.sqrt(covariance[2, 2] - gain @ covariance[:2, 2])
        one = MarginalMaps(model._maps.knots[:, 2:])
        exact = quadrature(np.array([mean]), spread, one.inverse)[0]
        y = model._rows(row)[0]
        found = [
            to_numpy(
                dataclasses.replace(model._model, seed=int(seed)).completed_mean(
                    y.float(), model._units.back
                )[0, 2]
            )
            for seed in rng.integers(2**31, size=32)
        ]
        # Self-normalised importance sampling is biased by about one part in its draws.
        assert_close_to(np.array(found), exact, slack=0.02)
        filled = model.impute(row)
        np.testing.assert_array_equal(filled[0, :2], row[0, :2])
        assert filled[0, 2] == pytest.approx(
            model._units.from_standardised(np.array([0.0, 0.0, exact]))[2], rel=0.05
        )
        drawn = model.sample_conditional(row, 64 * 32, random_state=int(rng.integers(2**31)))[:, 0]
        user = exact * model._scaler.scale_[2] + model._scaler.mean_[2]
        assert_close_to(drawn[:, 2].reshape(64, 32).mean(1), user, slack=1e-4)

    def test_inverse_transform_predicts_rows(self, linear, seed):
        """Better than the decoded posterior mean, which varies too little."""
        model = linear[1]
        X = model.sample(64 * 64, random_state=seed)
        T = model.transform(X)
        errors = [((X - back(T)) ** 2).sum(1) for back in (model.decode, model.inverse_transform)]
        gain = (errors[0] - errors[1]).reshape(64, 64).mean(1)
        assert_rejects(gain, 0.0)
        assert gain.mean() > 0


def bimodal(rng, n, d=5):
    """Independent features that no short fit learns by itself."""
    return np.sign(rng.standard_normal((n, d))) + 0.02 * rng.standard_normal((n, d))


def quick(**params):
    energy = TiltedEnergy((8,), (8,))
    small = {"n_components": 2, "energy": energy, "max_iter": 60, "pool_size": 64}
    return LVEBMEstimator(**small | {"refit": False, "smoothing": 0, "random_state": 0} | params)


class TestChoice:
    def test_maps_are_taken_where_they_help(self, rng):
        X, fresh = bimodal(rng, 300), bimodal(rng, 300)
        auto, gaussian = quick().fit(X), quick(marginals="gaussian").fit(X)
        assert (auto.marginals_, gaussian.marginals_) == ("mixture", "gaussian")
        # Each feature has two spikes fifty times as narrow as the normal that is not told.
        assert auto.score(fresh) > gaussian.score(fresh) + 1
        other = quick(random_state=7).fit(X)
        np.testing.assert_array_equal(other._maps.knots, auto._maps.knots)
        always = quick(marginals="mixture").fit(X)
        np.testing.assert_array_equal(always.score_samples(fresh), auto.score_samples(fresh))

    @pytest.mark.parametrize(
        ("early", "late", "wanted"),
        [(3.0, 2.8, True), (3.0, 1.0, False), (0.0, -1.0, False), (-2.0, 2.0, True)],
    )
    def test_gains_are_carried_on_to_the_length_of_the_fit(
        self, monkeypatch, rng, early, late, wanted
    ):
        """1,600 updates are three doublings of a fourfold away from 200: 1.5 differences."""
        spread = rng.standard_normal(100)
        spread -= spread.mean()

        def gain(self, n_updates):
            assert n_updates in (50, 200)
            value = (late if n_updates == 200 else early) + 0.01 * spread
            return Gain(value, np.ones(100))

        monkeypatch.setattr(Pilots, "gain", gain)
        X = bimodal(rng, 300)
        # Three quarters of the updates are the reference's.
        options = {"energy": TiltedEnergy((8,), (8,)), "max_iter": 2133}
        assert late + 1.5 * (late - early) > 0 if wanted else late + 1.5 * (late - early) < 0
        assert self.choice(monkeypatch, X, **options) == wanted

    @staticmethod
    def choice(monkeypatch, X, **params):
        """What ``fit`` decides; it then stops."""
        found = []
        original = Pilots.knots

        def spy(*args):
            found.append(original(*args))
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(Pilots, "knots", spy)
            with pytest.raises(KeyboardInterrupt):
                quick(**params).fit(X)
        return found[0] is not None

    def test_rows_that_judge_maps_have_not_shaped_them(self, monkeypatch, rng):
        X = bimodal(rng, 300)
        shaped_by, judged = [], []
        fitted, init = MarginalMaps.fitted.__func__, HeldOut.__init__

        def spy(cls, X, weight):
            shaped_by.append(X)
            return fitted(cls, X, weight)

        def held(self, rows, *args, **kwargs):
            judged.append(rows.x.numpy())
            init(self, rows, *args, **kwargs)

        monkeypatch.setattr(MarginalMaps, "fitted", classmethod(spy))
        monkeypatch.setattr(HeldOut, "__init__", held)
        self.choice(monkeypatch, X)
        pilot, final = shaped_by
        assert len(final) == 300
        # A short and a long fit, each to the features as they are, and mapped.
        assert len(judged) == 4
        together = np.concatenate([pilot, judged[0]])[:, 0].astype(np.float32)
        np.testing.assert_array_equal(np.sort(together), np.sort(final[:, 0].astype(np.float32)))
        maps = MarginalMaps.fitted(pilot, np.ones(len(pilot)))
        np.testing.assert_allclose(maps.inverse(judged[1].astype(np.float64)), judged[0], atol=1e-3)

    def test_a_feature_that_no_row_shows(self, rng):
        """Among the rows of a pilot, say: its map is that of the background."""
        X = rng.standard_normal((50, 3))
        X[:, 1] = np.nan
        with np.errstate(divide="raise", invalid="raise"):
            maps = MarginalMaps.fitted(X, np.ones(50))
        assert np.isfinite(maps.knots).all()
        assert (np.diff(maps.knots, axis=2) > 0).all()

    def test_a_gain_must_be_sure(self, monkeypatch, rng):
        value = np.tile([9.0, -8.9], 50)
        monkeypatch.setattr(Pilots, "gain", lambda *args: Gain(value, np.ones(100)))
        assert not self.choice(monkeypatch, bimodal(rng, 300))
        monkeypatch.setattr(Pilots, "gain", lambda *args: Gain(value + 9, np.ones(100)))
        assert self.choice(monkeypatch, bimodal(rng, 300))

    def test_one_row_makes_no_gain_less_sure(self, monkeypatch, rng):
        value = np.r_[1 + 0.1 * rng.standard_normal(99), 500.0]
        assert value.mean() < 2 * value.std() / 10
        monkeypatch.setattr(Pilots, "gain", lambda *args: Gain(value, np.ones(100)))
        assert self.choice(monkeypatch, bimodal(rng, 300))

    def test_pilots_that_fail_choose_nothing(self, monkeypatch, rng):
        def diverge(*args):
            raise DivergenceError("no")

        monkeypatch.setattr(Pilots, "_judged", diverge)
        assert not self.choice(monkeypatch, bimodal(rng, 300))
        monkeypatch.setattr(Pilots, "_judged", lambda *args: None)
        assert not self.choice(monkeypatch, bimodal(rng, 300))

    @pytest.mark.parametrize(
        ("params", "n_features"),
        [
            ({}, 4),
            ({"energy": "linear"}, 5),
            ({"energy": "free"}, 5),
            ({"energy": TiltedEnergy((8,), (8,), n_frequencies=4)}, 5),
            ({"marginals": "gaussian"}, 5),
        ],
    )
    def test_where_nothing_is_asked(self, monkeypatch, rng, params, n_features):
        monkeypatch.setattr(Pilots, "prefer_maps", None)
        model = quick(**{"max_iter": 2} | params).fit(bimodal(rng, 60, n_features))
        assert model.marginals_ == "gaussian"

    def test_many_rows_are_thinned(self, monkeypatch, rng):
        seen = []

        def gain(self, *args):
            seen.append((len(self.X), len(self.weight)))
            return Gain(np.array([1.0, 1.1]), np.ones(2))

        monkeypatch.setattr(Pilots, "gain", gain)
        assert self.choice(monkeypatch, bimodal(rng, 5000))
        assert seen == [(4096, 4096)] * 2

    def test_unknown(self):
        with pytest.raises(ValueError, match="marginals must be one of"):
            quick(marginals="normal").fit(load_iris().data)


class TestContinuing:
    @pytest.fixture
    def X(self, rng):
        return bimodal(rng, 60)

    def test_the_maps_stay(self, X):
        model = quick(marginals="mixture", max_iter=5, warm_start=True).fit(X)
        knots = model._maps.knots.copy()
        model.fit(X + 0.5)
        np.testing.assert_array_equal(model._maps.knots, knots)
        model.partial_fit(X[:20])
        np.testing.assert_array_equal(model._maps.knots, knots)
        with pytest.raises(ValueError, match="marginals was mixture, and is gaussian"):
            model.set_params(marginals="gaussian").fit(X)
        assert np.isfinite(model.set_params(marginals="auto").fit(X).score(X))
        assert model.marginals_ == "mixture"

    def test_the_first_batch_is_not_asked(self, X, monkeypatch):
        monkeypatch.setattr(Pilots, "prefer_maps", None)
        assert quick().partial_fit(X).marginals_ == "gaussian"
        assert quick(marginals="mixture").partial_fit(X).marginals_ == "mixture"

    def test_a_fit_that_goes_on_does_not_ask_again(self, X, tmp_path, monkeypatch):
        expected = quick().fit(X)
        path = tmp_path / "fit"
        model = quick(checkpoint=path)
        with interrupted(monkeypatch, "tilt", 9):
            model.fit(X)
        assert path.exists()
        monkeypatch.setattr(Pilots, "prefer_maps", None)
        model.fit(X)
        assert model.marginals_ == expected.marginals_ == "mixture"
        np.testing.assert_array_equal(model.score_samples(X), expected.score_samples(X))

    def test_pickles(self, X):
        model = quick(marginals="mixture", max_iter=5).fit(X)
        loaded = pickle.loads(pickle.dumps(model))
        np.testing.assert_array_equal(loaded.score_samples(X), model.score_samples(X))
        np.testing.assert_array_equal(
            loaded.inverse_transform(loaded.transform(X)),
            model.inverse_transform(model.transform(X)),
        )
        np.testing.assert_array_equal(loaded.sample(3), copy.deepcopy(model).sample(3))

    def test_the_history_is_in_standardised_units(self, X, monkeypatch):
        evaluate, seen = HeldOut.evaluate, []

        def spy(self, *args):
            found = evaluate(self, *args)
            seen.append((found.log_likelihood, self.rows))
            return found

        monkeypatch.setattr(HeldOut, "evaluate", spy)
        weight = np.linspace(0.5, 2, len(X))
        model = quick(marginals="mixture", max_iter=5).fit(X, sample_weight=weight)
        # A stage starts from a state that has been judged, but for the first one.
        stages = [None, *(row["stage"] for row in model.history_)]
        asked = [
            row
            for row, before in zip(model.history_, stages, strict=False)
            if before in (None, row["stage"])
        ]
        for row, (value, rows) in zip(asked, seen, strict=True):
            slope = model._maps.log_slope(to_numpy(rows.x).astype(float)).sum(1)
            gain = np.average(slope, weights=to_numpy(rows.weight))
            assert row["log_likelihood"] == pytest.approx(value + gain, abs=1e-4)
            assert abs(gain) > 1

    def test_units_do_not_matter(self, X):
        a = quick(marginals="mixture", max_iter=5).fit(X)
        b = quick(marginals="mixture", max_iter=5).fit(1000 * X - 7)
        np.testing.assert_allclose(
            a.score_samples(X), b.score_samples(1000 * X - 7) + 5 * np.log(1000), atol=0.05
        )


def test_other_energies_can_have_maps(rng):
    X = bimodal(rng, 60)
    model = LVEBMEstimator(
        2, energy="free", marginals="mixture", max_iter=5, pool_size=64, random_state=0
    ).fit(X)
    assert np.isfinite(model.score(X))
    assert LinearEnergy().weighs_marginals(9) is False
