"""Sample weights: a row of weight w and w equal rows are the same table."""

import numpy as np
import pytest
import sklearn
import torch
from sklearn.datasets import load_iris
from sklearn.model_selection import GridSearchCV
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_sample_weight_equivalence_on_dense_data
from small import quick

from sklvebm.heldout import which_held_out
from sklvebm.rows import Rows, _lexicographic_order, distinct_rows


@pytest.fixture(scope="module")
def X():
    return load_iris().data


@pytest.mark.parametrize("energy", ["tilted", "linear", "free"])
class TestRepeats:
    def test_integer_weights_are_repeated_rows_in_any_order(self, X, rng, energy):
        weight = rng.integers(0, 4, len(X))
        weighted = quick(energy=energy).fit(X, sample_weight=weight)
        repeated = quick(energy=energy).fit(rng.permutation(X.repeat(weight, axis=0)))
        np.testing.assert_array_equal(weighted.score_samples(X), repeated.score_samples(X))
        np.testing.assert_array_equal(weighted.transform(X), repeated.transform(X))
        assert weighted.n_samples_seen_ == repeated.n_samples_seen_ == weight.sum()

    def test_unit_weights_change_nothing(self, X, energy):
        plain, unit = quick(energy=energy).fit(X), quick(energy=energy)
        unit.fit(X, sample_weight=np.ones(len(X)))
        np.testing.assert_array_equal(plain.score_samples(X), unit.score_samples(X))

    def test_scikit_learns_equivalence(self, energy):
        check_sample_weight_equivalence_on_dense_data("LVEBMEstimator", quick(energy=energy))


def test_a_row_that_is_most_of_the_table_is_trained_on():
    """Held out are the first rows that together are no more than their share of the weight."""
    weight = np.ones(200)
    assert which_held_out(weight, 0.1) == list(range(20))
    weight[[0, 5]] = 1000.0
    held_out = which_held_out(weight, 0.1)
    assert held_out == [row for row in range(22) if row not in (0, 5)]
    assert which_held_out(np.array([1.0, 2.0]), 0.1) == []
    rising = np.arange(1.0, 201.0)
    assert rising[which_held_out(rising, 0.2)].sum() <= 0.2 * rising.sum()


def test_missing_entries_can_be_repeated_too(X, rng):
    X = np.where(rng.uniform(size=X.shape) < 0.2, np.nan, X)
    X = X[~np.isnan(X).all(1)]
    weight = rng.integers(1, 3, len(X))
    weighted = quick().fit(X, sample_weight=weight)
    repeated = quick().fit(rng.permutation(X.repeat(weight, axis=0)))
    np.testing.assert_array_equal(weighted.score_samples(X), repeated.score_samples(X))


def test_fractional_weights(X, rng):
    """The linear energy is in closed form: its mean is the weighted mean."""
    weight = rng.uniform(size=len(X))
    model = quick(energy="linear").fit(X, sample_weight=weight)
    np.testing.assert_allclose(
        model.inverse_transform(np.zeros((1, 2)))[0],
        np.average(X, axis=0, weights=weight),
        rtol=1e-5,
    )
    assert model.n_samples_seen_ == pytest.approx(weight.sum())


def test_partial_fit_takes_weights(X, rng):
    weight = rng.integers(0, 3, len(X))
    weighted = quick().partial_fit(X, sample_weight=weight)
    repeated = quick().partial_fit(X.repeat(weight, axis=0))
    assert weighted.n_samples_seen_ == repeated.n_samples_seen_ == weight.sum()
    assert np.isfinite(weighted.score(X))


def test_score_is_a_weighted_mean(X, rng):
    model = quick(energy="linear").fit(X)
    weight = rng.uniform(size=len(X))
    expected = np.average(model.score_samples(X), weights=weight)
    assert model.score(X, sample_weight=weight) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("weight", "message"),
    [(np.zeros(150), "zero"), (-np.ones(150), "[Nn]egative"), (np.ones(3), "150")],
)
def test_wrong_weights(X, weight, message):
    model = quick(energy="linear").fit(X)
    before = model.score(X)
    with pytest.raises(ValueError, match=message):
        model.fit(X, sample_weight=weight)
    assert model.score(X) == before


def test_metadata_routing(X):
    weight = np.arange(150.0) % 3
    with sklearn.config_context(enable_metadata_routing=True):
        model = quick(energy="linear").set_fit_request(sample_weight=True)
        model.set_score_request(sample_weight=True)
        search = GridSearchCV(model, {"n_components": [1, 2]}, cv=2)
        search.fit(X, sample_weight=weight)
    expected = quick(energy="linear", n_components=search.best_params_["n_components"])
    expected.fit(X, sample_weight=weight)
    assert search.best_estimator_.score(X) == expected.score(X)


class TestRows:
    @pytest.mark.parametrize("n_values", [1, 2, 4, 10**6])
    def test_rows_are_sorted_as_numpy_sorts_them(self, rng, n_values):
        for d in range(1, 6):
            X = rng.integers(0, n_values, (60, d)).astype(float)
            X[rng.uniform(size=X.shape) < rng.choice([0.0, 0.3])] = np.nan
            np.testing.assert_array_equal(_lexicographic_order(X), np.lexsort(X.T[::-1]))

    def test_distinct_rows(self):
        X = np.array([[0.0, np.nan], [1.0, 2.0], [-0.0, np.nan], [1.0, 2.0], [3.0, 3.0]])
        rows, weight = distinct_rows(X, np.array([1, 1, 2, 0.5, 0]))
        found = {tuple(np.nan_to_num(row, nan=-1)): w for row, w in zip(rows, weight, strict=True)}
        assert found == {(0.0, -1.0): 3.0, (1.0, 2.0): 1.5}

    def test_the_order_of_rows_says_nothing(self, rng):
        X = rng.normal(size=(50, 3))
        for a, b in zip(distinct_rows(X), distinct_rows(rng.permutation(X)), strict=True):
            np.testing.assert_array_equal(a, b)

    def test_picks_follow_the_weights(self, rng, generator):
        """Systematic resampling: every row is picked its expected number of times, rounded."""
        weight = torch.tensor(rng.uniform(0.01, 5, 200))
        rows = Rows.weighted(torch.zeros(200, 1), weight)
        for _ in range(20):
            counts = rows.order(generator).bincount(minlength=200)
            assert (counts - rows.weight).abs().max() < 1

    def test_equal_weights_are_a_permutation(self, generator):
        rows = Rows.weighted(torch.zeros(1000, 1), torch.full((1000,), 0.3))
        for _ in range(20):
            assert rows.order(generator).sort()[0].tolist() == list(range(1000))


def test_the_scaler_weighs_too(X, rng):
    weight = rng.integers(0, 5, len(X))
    model = quick(energy="linear").fit(X, sample_weight=weight)
    expected = StandardScaler().fit(X.repeat(weight, axis=0))
    np.testing.assert_allclose(model._scaler.scale_, expected.scale_, rtol=1e-10)
