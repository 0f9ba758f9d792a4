"""The outlier detector: scikit-learn's checks, what its offset promises, states kept and lost."""

import pickle

import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_matrix
from sklearn.base import clone
from sklearn.datasets import load_iris
from sklearn.decomposition import PCA
from sklearn.ensemble import IsolationForest
from sklearn.exceptions import NotFittedError
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.neighbors import KernelDensity
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OrdinalEncoder, StandardScaler
from sklearn.utils import estimator_checks, get_tags
from sklearn.utils.estimator_checks import parametrize_with_checks
from statistical import assert_close_to

from sklvebm import LVEBMEstimator, LVEBMOutlierDetector, TiltedEnergy


def linear(**params):
    return LVEBMOutlierDetector(LVEBMEstimator(2, energy="linear"), random_state=0, **params)


def tilted():
    """A tilted density that trains for a moment."""
    energy = TiltedEnergy(hidden_layer_sizes=(4,), n_frequencies=0)
    density = LVEBMEstimator(1, energy=energy, max_iter=5, pool_size=64, learning_rate=1e-4)
    return LVEBMOutlierDetector(density, random_state=0)


@pytest.fixture(scope="module")
def X():
    return load_iris().data


@parametrize_with_checks([LVEBMOutlierDetector(LVEBMEstimator(energy="linear"))])
def test_scikit_learn_checks(estimator, check):
    check(estimator)


# Those in which a tilted density could differ. The others pass too, in minutes of its scoring.
TELLING = (
    "check_fit_idempotent",
    "check_methods_subset_invariance",
    "check_methods_sample_order_invariance",
    "check_dict_unchanged",
    "check_dont_overwrite_parameters",
)


@pytest.mark.parametrize("name", TELLING)
def test_scikit_learn_checks_of_a_tilted_density(name):
    getattr(estimator_checks, name)("LVEBMOutlierDetector", tilted())


class TestAuto:
    """At most one new row in twenty is called an outlier, whatever the density."""

    @pytest.mark.statistical
    @pytest.mark.parametrize(
        ("density", "n", "expected"),
        [
            # ⌊(m + 1)/20⌋/(m + 1) of m rows held out: 80, 19, and half of 20.
            (GaussianMixture(), 400, 4 / 81),
            (GaussianMixture(), 50, 1 / 20),
            (GaussianMixture(), 20, 1 / 11),
            # Scores its own rows far above any other: what they score says nothing.
            (KernelDensity(bandwidth=0.1), 400, 4 / 81),
            (LVEBMEstimator(2, energy="linear", random_state=0), 400, 4 / 81),
        ],
        ids=["mixture", "smallest exact", "few rows", "overfitted", "linear"],
    )
    def test_false_alarms(self, rng, density, n, expected):
        rates = []
        # So many that one rank more or less is seen.
        for _ in range(300):
            detector = LVEBMOutlierDetector(density).fit(rng.standard_normal((n, 3)))
            rates.append((detector.predict(rng.standard_normal((200, 3))) == -1).mean())
        assert_close_to(rates, expected)

    def test_a_fifth_is_held_out(self, X):
        detector = linear().fit(X)
        # Equal rows stay together, so that a few fewer may be held out.
        assert 0 <= detector.density_.n_samples_seen_ - 0.8 * len(X) <= 3

    def test_order_does_not_matter(self, X, rng):
        expected = LVEBMOutlierDetector(GaussianMixture()).fit(X).offset_
        found = LVEBMOutlierDetector(GaussianMixture()).fit(rng.permutation(X)).offset_
        assert found == pytest.approx(expected)

    def test_one_row_many_times(self):
        """No row can be held out: equal rows stay together."""
        X = np.ones((30, 2))
        assert (linear().fit(X).predict(X) == 1).all()

    def test_far_rows_are_found(self, X):
        detector = linear().fit(X)
        assert (detector.predict(X[:10] + 10 * X.std(0)) == -1).all()


class TestContamination:
    @pytest.mark.parametrize("share", [0.02, 0.1, 0.5])
    def test_that_share_of_the_training_rows_is_flagged(self, rng, share):
        X = rng.standard_normal((250, 3))
        labels = linear(contamination=share).fit_predict(X)
        assert (labels == -1).sum() == round(share * 250)

    def test_all_rows_are_fitted(self, X):
        detector = linear(contamination=0.1).fit(X)
        alone = LVEBMEstimator(2, energy="linear", random_state=0).fit(X)
        np.testing.assert_array_equal(detector.score_samples(X), alone.score_samples(X))
        assert detector.offset_ == np.percentile(alone.score_samples(X), 10)

    @pytest.mark.parametrize("bad", [0, -0.1, 0.6, 1, "nonsense", np.nan, None, [0.1]])
    def test_out_of_range(self, X, bad):
        with pytest.raises((ValueError, TypeError), match="contamination"):
            linear(contamination=bad).fit(X)


class TestAnswers:
    def test_translation_and_sign(self, X):
        detector = linear().fit(X)
        scores, decision = detector.score_samples(X), detector.decision_function(X)
        np.testing.assert_array_equal(scores, detector.density_.score_samples(X))
        np.testing.assert_array_equal(decision, scores - detector.offset_)
        np.testing.assert_array_equal(detector.predict(X) == -1, decision < 0)
        assert {-1, 1} == set(detector.predict(X))

    def test_units_move_score_and_offset_alike(self, X):
        scale = np.array([10.0, 0.1, 3.0, 1.0])
        a, b = (linear(contamination=0.1).fit(rows) for rows in (X, X * scale))
        assert b.offset_ == pytest.approx(a.offset_ - np.log(scale).sum(), abs=1e-6)
        np.testing.assert_allclose(
            b.decision_function(X * scale), a.decision_function(X), atol=1e-6
        )

    def test_unfitted_says_so(self, X):
        assert not hasattr(linear(), "n_features_in_")
        for method in ("predict", "decision_function", "score_samples"):
            with pytest.raises(NotFittedError):
                getattr(linear(), method)(X)


class TestDensity:
    @pytest.mark.parametrize("density", [KernelDensity(), GaussianMixture(3), PCA(2)])
    @pytest.mark.parametrize("contamination", ["auto", 0.1])
    def test_any_density(self, X, density, contamination):
        detector = LVEBMOutlierDetector(density, contamination=contamination, random_state=0)
        assert (detector.fit_predict(X) == -1).mean() == pytest.approx(0.1, abs=0.1)
        assert not hasattr(density, "n_features_in_")

    @pytest.mark.parametrize("density", [StandardScaler(), "nonsense"])
    def test_what_is_none_is_refused(self, X, density):
        with pytest.raises(TypeError):
            LVEBMOutlierDetector(density).fit(X)

    def test_nested_parameters_replace_none(self, X):
        detector = LVEBMOutlierDetector().set_params(density__energy="linear")
        assert isinstance(detector.density, LVEBMEstimator)
        detector.set_params(density__n_components=1, contamination=0.1)
        assert clone(detector).density.get_params()["n_components"] == 1
        assert detector.fit(X).density_.n_components_ == 1
        with pytest.raises(ValueError, match="Invalid parameter"):
            LVEBMOutlierDetector().set_params(density__nonsense=1)

    def test_a_seed_of_its_own_is_kept(self, X):
        for own, expected in ((None, 5), (3, 3)):
            detector = LVEBMOutlierDetector(GaussianMixture(random_state=own), random_state=5)
            assert detector.fit(X).density_.random_state == expected
        assert LVEBMOutlierDetector(GaussianMixture()).fit(X).density_.random_state is None

    def test_nan_scores_are_refused(self, X):
        class Broken(GaussianMixture):
            def score_samples(self, X):
                return np.full(len(X), np.nan)

        for contamination in ("auto", 0.1):
            with pytest.raises(ValueError, match="NaN"):
                LVEBMOutlierDetector(Broken(), contamination=contamination).fit(X)

    @pytest.mark.parametrize("allowed", [True, False])
    def test_missing_values_are_for_the_density_to_allow(self, X, allowed):
        class Marginal(GaussianMixture):
            def __sklearn_tags__(self):
                tags = super().__sklearn_tags__()
                tags.input_tags.allow_nan = allowed
                return tags

            def fit(self, X, y=None):
                return super().fit(X[:, :1])

            def score_samples(self, X):
                return super().score_samples(X[:, :1])

        detector = LVEBMOutlierDetector(Marginal())
        assert get_tags(detector).input_tags.allow_nan is allowed
        broken = X.copy()
        broken[:5, 3] = np.nan
        assert set(detector.fit(broken).predict(broken)) == {-1, 1}

    def test_names(self, X):
        pd = pytest.importorskip("pandas")
        frame = pd.DataFrame(X, columns=list("abcd"))
        detector = linear().fit(frame)
        assert list(detector.feature_names_in_) == list("abcd")
        assert detector.n_features_in_ == 4
        with pytest.raises(ValueError, match="feature names"):
            detector.predict(frame.rename(columns={"a": "z"}))
        assert not hasattr(detector.fit(X), "feature_names_in_")


class TestWeights:
    @pytest.mark.parametrize("contamination", ["auto", 0.1])
    def test_a_weight_is_a_repetition(self, X, rng, contamination):
        density = LVEBMEstimator(2, energy="linear", random_state=0)
        detector = LVEBMOutlierDetector(density, contamination=contamination)
        for _ in range(5):
            weight = rng.integers(0, 9, size=len(X))
            weighted = detector.fit(X, sample_weight=weight).offset_
            rows = rng.permutation(np.repeat(X, weight, axis=0))
            for ones in (None, np.ones(len(rows))):
                repeated = detector.fit(rows, sample_weight=ones).offset_
                assert weighted == pytest.approx(repeated, abs=1e-6)

    def test_rows_of_no_weight_do_not_count(self, X):
        weight = np.r_[np.zeros(50), np.ones(100)]
        density = LVEBMEstimator(2, energy="linear", random_state=0)
        without = LVEBMOutlierDetector(density).fit(X[50:])
        assert LVEBMOutlierDetector(density).fit(X, sample_weight=weight).offset_ == without.offset_

    def test_weights_that_sum_to_less_than_a_row(self, X):
        scores = LVEBMOutlierDetector(LVEBMEstimator(2, energy="linear"), contamination=0.1)
        weight = np.full(len(X), 1e-3)
        assert scores.fit(X, sample_weight=weight).offset_ == scores.score_samples(X).min()

    def test_a_density_that_takes_none_is_not_given_any(self, X):
        detector = LVEBMOutlierDetector(GaussianMixture())
        assert np.isfinite(detector.fit(X).offset_)
        with pytest.raises(TypeError, match="sample_weight"):
            detector.fit(X, sample_weight=np.ones(len(X)))

    @pytest.mark.parametrize("weight", [-np.ones(150), np.zeros(150), np.full(150, np.nan)])
    def test_bad_weights(self, X, weight):
        with pytest.raises(ValueError, match=r"(?i)sample.weight"):
            LVEBMOutlierDetector(KernelDensity()).fit(X, sample_weight=weight)


class TestWhatTheDensityTakes:
    """What may be given is for the density to say, however the offset is found."""

    def test_sparse_rows(self, X):
        detectors = [LVEBMOutlierDetector(IsolationForest(random_state=0)) for _ in range(2)]
        for detector, rows in zip(detectors, (X, csr_matrix(X)), strict=True):
            detector.fit(rows)
        assert detectors[0].offset_ == detectors[1].offset_

    def test_words(self, X):
        words = pd.DataFrame(np.where(np.median(X, 0) < X, "high", "low"))
        density = make_pipeline(OrdinalEncoder(), KernelDensity())
        assert set(LVEBMOutlierDetector(density).fit(words).predict(words)) <= {-1, 1}

    @pytest.mark.parametrize("contamination", ["auto", 0.1])
    def test_weights_of_another_length(self, X, contamination):
        detector = LVEBMOutlierDetector(KernelDensity(), contamination=contamination)
        with pytest.raises(ValueError, match="sample_weight"):
            detector.fit(X, sample_weight=np.ones(3))


class TestSeeds:
    def test_parts_of_a_density_are_seeded(self, X):
        pipeline = make_pipeline(PCA(2), GaussianMixture(3, init_params="random"))
        detector = LVEBMOutlierDetector(pipeline, random_state=0).fit(X)
        assert [part.random_state for _, part in detector.density_.steps] == [0, 0]
        again = LVEBMOutlierDetector(pipeline, random_state=0).fit(X)
        np.testing.assert_array_equal(detector.score_samples(X), again.score_samples(X))

    def test_seeds_that_are_there_stay(self, X):
        pipeline = make_pipeline(PCA(2), GaussianMixture(random_state=7))
        detector = LVEBMOutlierDetector(pipeline, random_state=0).fit(X)
        assert [part.random_state for _, part in detector.density_.steps] == [0, 7]


class TestStates:
    @pytest.mark.parametrize("n", [1, 2])
    def test_too_few_rows(self, X, n):
        with pytest.raises(ValueError, match=rf"{n} sample.*minimum of"):
            LVEBMOutlierDetector().fit(X[:n])

    def test_a_density_of_zero_leaves_no_offset(self, X):
        detector = LVEBMOutlierDetector(KernelDensity(kernel="tophat", bandwidth=1e-3))
        with pytest.raises(ValueError, match="density of zero"):
            detector.fit(X)
        assert not hasattr(detector, "offset_")

    def test_a_refit_starts_anew(self, X):
        again = linear().fit(X[:80, :2]).fit(X)
        fresh = linear().fit(X)
        np.testing.assert_array_equal(again.decision_function(X), fresh.decision_function(X))
        assert again.n_features_in_ == 4

    @pytest.mark.parametrize("step", ["fit", "score_samples"])
    def test_a_failed_refit_keeps_the_last_good_state(self, X, monkeypatch, step):
        detector = linear().fit(X)
        expected = detector.decision_function(X)

        def stop(*_, **__):
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(LVEBMEstimator, step, stop)
            with pytest.raises(KeyboardInterrupt):
                detector.fit(X[:, :2])
        np.testing.assert_array_equal(detector.decision_function(X), expected)
        assert detector.n_features_in_ == 4

    def test_a_failed_first_fit_leaves_it_unfitted(self, X):
        detector = linear()
        before = dict(vars(detector))
        with pytest.raises(ValueError, match="infinity"):
            detector.fit(np.where(X > 7, np.inf, X))
        assert vars(detector) == before

    def test_pickle_and_clone(self, X):
        detector = linear().fit(X)
        loaded = pickle.loads(pickle.dumps(detector))
        np.testing.assert_array_equal(loaded.decision_function(X), detector.decision_function(X))
        assert not hasattr(clone(detector), "offset_")

    def test_pipeline_and_search(self, X):
        pipe = make_pipeline(StandardScaler(), linear())
        assert set(pipe.fit(X).predict(X)) == {-1, 1}
        far = np.r_[X, X[:15] + 10 * X.std(0)]
        y = np.r_[np.ones(150), -np.ones(15)]
        grid = {"lvebmoutlierdetector__density__n_components": [1, 2]}
        search = GridSearchCV(
            pipe, grid, cv=StratifiedKFold(3), scoring="roc_auc", error_score="raise"
        )
        assert np.isfinite(search.fit(far, y).cv_results_["mean_test_score"]).all()
