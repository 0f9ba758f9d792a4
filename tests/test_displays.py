"""The displays: what is drawn is what is stored, what is stored is what the estimator says."""

import subprocess
import sys
import warnings

import matplotlib
import numpy as np
import pytest
from sklearn.datasets import load_iris
from sklearn.decomposition import PCA
from sklearn.exceptions import NotFittedError
from statistical import ALPHA, assert_close_to

from sklvebm import LVEBMEstimator, displays
from sklvebm.displays import (
    CalibrationDisplay,
    EnergyDisplay,
    LatentDisplay,
    SampleDisplay,
    TrainingDisplay,
)
from sklvebm.displays._band import coverage, quantile_band, simultaneous_band, spread_ranks

ALL = [TrainingDisplay, LatentDisplay, SampleDisplay, EnergyDisplay, CalibrationDisplay]


@pytest.fixture(autouse=True)
def _no_window_and_no_figure_left():
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    yield
    plt.close("all")


def quick(n_components=2, **params):
    short = {"max_iter": 40, "pool_size": 128, "random_state": 0}
    once = {"refit": False, "smoothing": 0}
    return LVEBMEstimator(n_components, **short | once | params)


@pytest.fixture(scope="module")
def X():
    """Two columns in units of their own, so that standardised answers stand out."""
    return load_iris().data[:, 2:] * [10.0, 3.0] + [100.0, 0.0]


@pytest.fixture(scope="module")
def model(X):
    return quick().fit(X)


@pytest.fixture(scope="module")
def linear():
    return quick(energy="linear").fit(load_iris().data)


def arguments(display, X):
    return (X[:10],) if display in (LatentDisplay, SampleDisplay, CalibrationDisplay) else ()


class TestAll:
    def test_names_are_exported(self):
        assert set(displays.__all__) == {display.__name__ for display in ALL} <= set(dir(displays))
        with pytest.raises(AttributeError, match="NoDisplay"):
            displays.NoDisplay  # noqa: B018

    def test_rows_with_missing_entries(self, model, X):
        gaps = np.where(np.arange(len(X))[:, None] % 3 == [0, 1], np.nan, X)
        SampleDisplay.from_estimator(model, gaps)
        SampleDisplay.from_estimator(model, gaps, kind="images", image_shape=(1, 2))
        EnergyDisplay.from_estimator(model, X=gaps)
        with pytest.raises(ValueError, match="NaN"):
            CalibrationDisplay.from_estimator(model, gaps)

    @pytest.mark.parametrize("display", ALL)
    def test_needs_a_fitted_estimator_of_ours(self, display, X):
        with pytest.raises(NotFittedError):
            display.from_estimator(quick(), *arguments(display, X))
        with pytest.raises(TypeError, match="must be an LVEBMEstimator, got PCA"):
            display.from_estimator(PCA().fit(X), *arguments(display, X))

    @pytest.mark.parametrize("display", ALL)
    def test_without_matplotlib_the_error_names_it(self, display, model, X, monkeypatch):
        monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
        with pytest.raises(ImportError, match="pip install matplotlib"):
            display.from_estimator(model, *arguments(display, X))

    @pytest.mark.parametrize("code", ["import sklvebm", "import sklvebm.displays"])
    def test_import_loads_neither_torch_nor_matplotlib(self, code):
        code += "; import sys; print({'torch', 'matplotlib'} & set(sys.modules))"
        command = [sys.executable, "-c", code]
        answer = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        assert answer.strip() == "set()"

    def test_global_settings_are_untouched(self, model, X):
        before = dict(matplotlib.rcParams)
        LatentDisplay.from_estimator(model, X[:5])
        assert dict(matplotlib.rcParams) == before


class TestTraining:
    def test_the_history_is_drawn_as_it_is(self, model):
        display = TrainingDisplay.from_estimator(model)
        assert display.plot() is display
        history = model.history_
        np.testing.assert_array_equal(display.n_iter, [row["n_iter"] for row in history])
        expected = [row["log_likelihood"] for row in history]
        np.testing.assert_allclose(display.log_likelihood, expected)
        assert len(display.axes_) == 3
        for ax, values in zip(
            display.axes_, [display.log_likelihood, display.energy_gap], strict=False
        ):
            # A line a stage, of the finite values.
            y = np.concatenate([line.get_ydata() for line in ax.lines if line.get_marker() == "o"])
            finite = values[np.isfinite(values)]
            np.testing.assert_array_equal(y[: len(finite)], finite)

    def test_stages_and_what_they_kept_are_marked(self):
        display = TrainingDisplay(
            n_iter=[0, 5, 10, 10, 15, 20],
            stages=["reference"] * 3 + ["tilt"] * 3,
            log_likelihood=[-9.0, -4.0, -5.0, -4.5, -4.0, -3.0],
            energy_gap=[np.nan] * 4 + [0.1, -0.1],
            acceptances={"conditional": [np.nan, 0.5, 0.6, 0.6, 0.7, 0.6], "joint": [np.nan] * 6},
        ).plot()
        assert [text.get_text() for text in display.axes_[0].texts] == ["reference", "tilt"]
        assert [text.get_position()[0] for text in display.axes_[0].texts] == [5, 15]
        assert [len(ax.patches) for ax in display.axes_] == [1, 1, 1]
        ring = display.axes_[0].lines[-1]
        assert (ring.get_xdata().tolist(), ring.get_ydata().tolist()) == ([5, 20], [-4, -3])
        labels = [text.get_text() for text in display.axes_[2].get_legend().get_texts()]
        assert labels == ["conditional"]

    def test_a_start_has_no_ring(self):
        """Its last state goes on, whatever its likelihood."""
        display = TrainingDisplay(
            n_iter=[0, 5, 5, 10],
            stages=["start"] * 2 + ["reference"] * 2,
            log_likelihood=[-5.0, -8.0, -7.0, -6.0],
            energy_gap=[np.nan] * 4,
            acceptances={},
        ).plot()
        assert [text.get_text() for text in display.axes_[0].texts] == ["start", "reference"]
        assert display.axes_[0].lines[-1].get_xdata().tolist() == [10]

    def test_panels_without_a_value_are_left_out(self, X):
        held_out_only = quick(energy="linear", inference="map", max_iter=10).fit(X)
        display = TrainingDisplay.from_estimator(held_out_only)
        assert [ax.get_ylabel()[:8] for ax in display.axes_] == ["held-out"]
        no_held_out = quick(early_stopping=False, max_iter=10).fit(X)
        display = TrainingDisplay.from_estimator(no_held_out)
        assert [ax.get_ylabel()[:6] for ax in display.axes_] == ["energy", "accept"]

    def test_nothing_to_show(self, linear, X):
        with pytest.raises(ValueError, match="closed form"):
            TrainingDisplay.from_estimator(linear)
        silent = quick(energy="linear", inference="map", early_stopping=False, max_iter=10).fit(X)
        with pytest.raises(ValueError, match="no finite value"):
            TrainingDisplay.from_estimator(silent)

    def test_partial_fit_counts_on(self, X):
        model = quick(batch_size=32)
        for _ in range(2):
            model.partial_fit(X[::2])
        display = TrainingDisplay.from_estimator(model)
        assert (np.diff(display.n_iter) >= 0).all()
        assert display.n_iter[-1] == model.n_iter_ == 6

    def test_axes_of_the_user(self, model):
        _, axes = matplotlib.pyplot.subplots(3)
        display = TrainingDisplay.from_estimator(model, axes=axes)
        assert list(display.axes_) == list(axes)
        assert display.figure_ is axes[0].figure
        with pytest.raises(ValueError, match="3 by 1"):
            display.plot(axes[:2])


class TestLatent:
    def test_the_latents_are_drawn(self, linear):
        X = load_iris().data
        display = LatentDisplay.from_estimator(linear, X, components=(1, 0))
        np.testing.assert_array_equal(display.latents, linear.transform(X)[:, [1, 0]])
        np.testing.assert_array_equal(display.ax_.collections[0].get_offsets(), display.latents)
        assert display.ax_.get_xlabel() == "latent 1"
        assert display.legend_ is display.colorbar_ is None

    def test_classes_differ_in_colour_and_marker(self):
        y = np.repeat(np.arange(20), 2)
        display = LatentDisplay(latents=np.arange(80.0).reshape(40, 2), y=y).plot()
        assert [text.get_text() for text in display.legend_.get_texts()] == list(
            map(str, range(20))
        )
        looks = set()
        for points, name in zip(display.ax_.collections, range(20), strict=True):
            np.testing.assert_array_equal(points.get_offsets(), display.latents[y == name])
            looks.add((*points.get_facecolor()[0], points.get_paths()[0].vertices.tobytes()))
        assert len(looks) == 20

    def test_a_quantity_has_a_colour_bar(self):
        y = np.linspace(0, 1, 30)
        display = LatentDisplay(latents=np.zeros((30, 2)), y=y).plot()
        np.testing.assert_array_equal(display.ax_.collections[0].get_array(), y)
        assert display.colorbar_ is not None
        assert display.legend_ is None

    @pytest.mark.parametrize("components", [(0, 2), (0, 0), (0,), (-1, 0), (0.0, 1)])
    def test_wrong_components(self, linear, components):
        with pytest.raises(ValueError, match="two different latents between 0 and 1"):
            LatentDisplay.from_estimator(linear, load_iris().data, components=components)

    def test_y_must_have_a_value_a_row(self, linear):
        with pytest.raises(ValueError, match="inconsistent numbers of samples"):
            LatentDisplay.from_estimator(linear, load_iris().data, np.zeros(3))


class TestSamples:
    def test_pairs(self, linear):
        X = load_iris().data
        display = SampleDisplay.from_estimator(linear, X, features=(3, 0), random_state=1)
        np.testing.assert_array_equal(display.data, X[:, [3, 0]])
        drawn = linear.sample(150, random_state=1)
        np.testing.assert_array_equal(display.samples, drawn[:, [3, 0]])
        data, samples = display.axes_[1, 0].collections
        np.testing.assert_array_equal(data.get_offsets(), display.data)
        np.testing.assert_array_equal(samples.get_offsets(), display.samples)
        assert not display.axes_[0, 1].axison
        assert display.axes_[1, 0].get_ylabel() == "x0"

    def test_histograms_share_their_bins(self, linear):
        display = SampleDisplay.from_estimator(linear, load_iris().data, random_state=0)
        for i, ax in enumerate(display.axes_.diagonal()):
            *bars, outline = ax.patches
            left = [bar.get_x() for bar in bars]
            edges = np.append(left, left[-1] + bars[-1].get_width())
            for rows in (display.data, display.samples):
                assert np.histogram(rows[:, i], edges)[0].sum() == len(rows)
            heights = np.histogram(display.samples[:, i], edges, density=True)[0]
            assert np.isclose(outline.get_xy()[:, 1].max(), heights.max())

    def test_rows_are_picked_like_for_like(self, linear):
        display = SampleDisplay.from_estimator(linear, load_iris().data, n_samples=7)
        assert len(display.data) == len(display.samples) == 7

    def test_features_by_name(self, linear):
        X, names = load_iris().data, ["a", "b", "c", "d"]
        display = SampleDisplay.from_estimator(linear, X, features=["d", 1], feature_names=names)
        assert display.feature_names == ["d", "b"]
        for wrong in (["e"], [4], []):
            with pytest.raises(ValueError, match="names of features"):
                SampleDisplay.from_estimator(linear, X, features=wrong, feature_names=names)
        with pytest.raises(ValueError, match="3 entries"):
            SampleDisplay.from_estimator(linear, X, feature_names=names[:3])

    def test_images(self, rng):
        X = rng.normal(size=(90, 64))
        model = quick(energy="linear").fit(X)
        display = SampleDisplay.from_estimator(model, X, n_samples=13, random_state=0)
        assert (display.kind, display.image_shape) == ("images", (8, 8))
        for ax, rows in zip(display.axes_, (display.data, display.samples), strict=True):
            image = ax.images[0].get_array()
            # Two rows of ten, a pixel apart.
            assert image.shape == (17, 89)
            np.testing.assert_array_equal(image[:8, 9:17], rows[1].reshape(8, 8))
            np.testing.assert_array_equal(image[9:, :8], rows[10].reshape(8, 8))
            assert np.ma.getmaskarray(image)[8].all()
            assert np.ma.getmaskarray(image)[9:, 3 * 9 :].all()
            assert ax.images[0].get_clim() == (display.data.min(), display.data.max())

    def test_wrong_images(self, linear):
        X = load_iris().data
        shown = SampleDisplay.from_estimator(linear, X, image_shape=(4, 1))
        assert (shown.kind, shown.image_shape) == ("images", (4, 1))
        for wrong in ((3, 2), (4,), (-2, -2)):
            with pytest.raises(ValueError, match="4 pixels"):
                SampleDisplay.from_estimator(linear, X, image_shape=wrong)
        with pytest.raises(ValueError, match="belong to kind='pairs'"):
            SampleDisplay.from_estimator(linear, X, kind="images", features=[0])
        with pytest.raises(ValueError, match="kind must be one of"):
            SampleDisplay.from_estimator(linear, X, kind="movie")


class TestEnergy:
    def test_the_landscape(self, model, X):
        display = EnergyDisplay.from_estimator(
            model, X, grid_resolution=9, n_particles=50, feature_names=["a", "b"]
        )
        across, up = display.grid
        # The second feature runs along the first axis, as contourf takes it.
        corner = np.array([[across[7], up[2]]])
        np.testing.assert_allclose(display.energy[2, 7], -model.score_samples(corner)[0])
        assert display.ax_.get_xlim() == (across[0], across[-1])
        low, high = np.transpose([across[[0, -1]], up[[0, -1]]])
        assert (low < X.min(0)).all()
        assert (X.max(0) < high).all()
        particles, rows = display.ax_.collections[-2:]
        np.testing.assert_array_equal(particles.get_offsets(), display.particles)
        np.testing.assert_array_equal(rows.get_offsets(), X)
        assert display.ax_.get_ylabel() == "b"

    def test_particles_are_in_the_users_units(self, rng):
        """A linear energy's pool is exact, so its particles are draws of the fitted Gaussian."""
        X = rng.normal(size=(400, 2)) * [2.0, 0.1] + [50.0, -3.0]
        model = quick(1, energy="linear", pool_size=4096).fit(X)
        display = EnergyDisplay.from_estimator(model, grid_resolution=3, n_particles=4096)
        assert display.X is None
        groups = display.particles.reshape(64, 64, 2).mean(1)
        assert_close_to(groups, X.mean(0), slack=1e-4 * X.std(0))

    def test_two_features_only(self, linear):
        with pytest.raises(ValueError, match="two features, but this one has 4"):
            EnergyDisplay.from_estimator(linear)


class TestBand:
    @pytest.mark.statistical
    @pytest.mark.parametrize(("n_rows", "n_draws"), [(30, 50), (200, 70)])
    def test_coverage_is_exact(self, rng, n_rows, n_draws):
        ranks = spread_ranks(n_draws)
        lower, upper = simultaneous_band(n_rows, n_draws, ranks, 0.8)
        exact = coverage(lower, upper, n_rows, n_draws, ranks)
        assert 0.8 <= exact < 0.83
        inside = np.empty((64, 64))
        for place in np.ndindex(inside.shape):
            draws, rows = np.sort(rng.random(n_draws)), np.sort(rng.random(n_rows))
            counts = np.searchsorted(rows, draws[ranks - 1], side="right")
            inside[place] = np.all((lower <= counts) & (counts <= upper))
        assert_close_to(inside.mean(1), exact)

    @pytest.mark.parametrize(("n_rows", "n_draws"), [(1, 1), (3, 2), (40, 1000)])
    def test_small_and_sure(self, n_rows, n_draws):
        ranks = spread_ranks(n_draws)
        assert ranks[0] == 1
        assert ranks[-1] == n_draws
        lower, upper = simultaneous_band(n_rows, n_draws, ranks, 1 - ALPHA)
        assert (lower >= 0).all()
        assert (lower <= upper).all()
        assert (upper <= n_rows).all()

    def test_the_turned_band_is_the_same_event(self, rng):
        """Some share leaves the band just where some ordered row does."""
        n_rows, n_draws = 40, 60
        ranks = spread_ranks(n_draws)
        lower, upper = simultaneous_band(n_rows, n_draws, ranks, 0.5)
        seen = set()
        for _ in range(200):
            rows, draws = np.sort(rng.random(n_rows)), np.sort(rng.random(n_draws))[ranks - 1]
            counts = np.searchsorted(rows, draws, side="right")
            inside = np.all((lower <= counts) & (counts <= upper))
            low, high = quantile_band(n_rows, draws, lower / n_rows, upper / n_rows)
            assert inside == np.all((low < rows) & (rows <= high))
            seen.add(bool(inside))
        assert seen == {True, False}


class TestCalibration:
    @pytest.mark.statistical
    def test_a_right_model_stays_in_the_band(self, rng):
        """Fitted to so many rows that its own error is a fraction of the band's."""
        mixing = rng.normal(size=(3, 3))
        X = rng.normal(size=(20_500, 3)) @ mixing
        model = quick(energy="linear").fit(X[500:])
        options = {"confidence": 1 - ALPHA, "random_state": int(rng.integers(2**31))}
        assert CalibrationDisplay.from_estimator(model, X[:500], **options).is_within_band

    @pytest.mark.statistical
    @pytest.mark.parametrize("change", [lambda X: 2 * X, lambda X: X / 2, np.tanh])
    def test_a_wrong_model_leaves_it(self, rng, change):
        X = rng.normal(size=(2000, 3))
        model = quick(energy="linear").fit(X)
        options = {"confidence": 1 - ALPHA, "random_state": int(rng.integers(2**31))}
        display = CalibrationDisplay.from_estimator(model, change(X), **options)
        assert not display.is_within_band

    def test_what_is_stored_is_what_is_drawn(self, linear):
        X = load_iris().data
        display = CalibrationDisplay.from_estimator(linear, X, n_samples=200, random_state=0)
        np.testing.assert_array_equal(display.log_prob, linear.score_samples(X))
        drawn = linear.score_samples(linear.sample(200, random_state=0))
        np.testing.assert_array_equal(display.log_prob_samples, drawn)
        model, rows, worst = display.ax_.lines
        np.testing.assert_array_equal(rows.get_ydata(), np.sort(display.log_prob))
        np.testing.assert_array_equal(model.get_xdata(), model.get_ydata())
        np.testing.assert_array_equal(worst.get_ydata(), display.log_prob[display.worst_rows])
        assert display.worst_rows.tolist() == linear.score_report(X, n_worst=3).worst_rows.tolist()

    def test_shares(self):
        display = CalibrationDisplay.from_log_prob(
            [-9.0, 0.5, 2.5], [0.0, 1.0, 2.0, 3.0], n_worst=1
        )
        np.testing.assert_allclose(display.levels, [0.2, 0.4, 0.6, 0.8])
        np.testing.assert_allclose(display.observed, np.array([1, 2, 2, 3]) / 3)
        np.testing.assert_allclose(display.p_values, [0.2, 0.4, 0.8])
        display.plot(kind="probability")
        np.testing.assert_allclose(display.ax_.lines[1].get_ydata()[1:-1], display.observed)
        labels = [text.get_text() for text in display.ax_.get_legend().get_texts()]
        assert labels == ["95 % band", "model", "rows", "lowest: row 0"]

    def test_log_partition_does_not_enter(self, rng):
        rows, draws = rng.normal(size=50), rng.normal(size=70)
        a = CalibrationDisplay.from_log_prob(rows, draws)
        b = CalibrationDisplay.from_log_prob(rows - 10, draws - 10)
        np.testing.assert_array_equal(a.observed, b.observed)

    @pytest.mark.parametrize(
        ("option", "match"),
        [
            ({"kind": "box"}, "kind must be one of"),
            ({"confidence": 1.0}, "confidence"),
            ({"n_worst": -1}, "n_worst"),
        ],
    )
    def test_wrong_options(self, linear, option, match):
        with pytest.raises(ValueError, match=match):
            CalibrationDisplay.from_estimator(linear, load_iris().data, **option)

    def test_scores_must_be_finite(self):
        with pytest.raises(ValueError, match="log_prob contains NaN"):
            CalibrationDisplay.from_log_prob([0.0, np.nan], [0.0])


def test_named_features(rng):
    """Drawn rows and grid points have no names, which is not worth a warning."""
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame(rng.normal(size=(80, 2)), columns=["height", "width"])
    model = quick(1, energy="linear").fit(frame)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        CalibrationDisplay.from_estimator(model, frame, n_samples=20)
        SampleDisplay.from_estimator(model, frame)
        display = EnergyDisplay.from_estimator(model, frame, grid_resolution=4)
    assert display.ax_.get_xlabel() == "height"
