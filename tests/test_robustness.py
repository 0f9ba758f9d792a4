"""What must not happen: touched globals, lost state, half-fitted answers, NaN, hangs."""

import copy
import pickle
import re
import subprocess
import sys
import warnings
from functools import partial

import joblib
import numpy as np
import pytest
import small
import torch
from sklearn.base import clone
from sklearn.datasets import load_iris
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sklvebm import LVEBMEstimator
from sklvebm.saddle import DivergenceError, Saddle

quick = partial(small.quick, max_iter=40)


def closed_form():
    return LVEBMEstimator(2, energy="linear", random_state=0)


def run_python(code: str, *args: str) -> str:
    """Run ``code`` in a fresh interpreter; returns what it printed."""
    command = [sys.executable, "-W", "ignore", "-c", code, *args]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope="module")
def X():
    return load_iris().data


class TestGlobals:
    def test_global_state_is_untouched(self, X):
        torch.manual_seed(7)
        np.random.seed(7)  # noqa: NPY002
        before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
        settings = torch.get_num_threads(), torch.get_default_dtype()
        for random_state in (0, None):
            model = quick(random_state=random_state).fit(X)
            model.transform(X), model.sample(3), model.score(X), model.sample_posterior(X)
        assert torch.equal(before[0], torch.get_rng_state())
        assert np.array_equal(before[1], np.random.get_state()[1])  # noqa: NPY002
        assert settings == (torch.get_num_threads(), torch.get_default_dtype())

    def test_a_fit_loads_no_compiler(self):
        """Torch's compiler and its computer algebra take longer to load than a small fit takes."""
        code = """
import sys
from sklearn.datasets import load_iris
from sklvebm import LVEBMEstimator
LVEBMEstimator(2, max_iter=4, pool_size=64, random_state=0).fit(load_iris().data)
print([name for name in ("torch._dynamo", "sympy") if name in sys.modules])
"""
        assert run_python(code).strip() == "[]"

    def test_one_seed_fixes_everything(self, X):
        a, b = (quick().fit(X) for _ in range(2))
        np.testing.assert_array_equal(a.score_samples(X), b.score_samples(X))
        np.testing.assert_array_equal(a.transform(X), b.transform(X))
        np.testing.assert_array_equal(a.sample(3), b.sample(3))
        c = quick(random_state=np.random.RandomState(0)).fit(X)
        assert np.isfinite(c.score(X))

    def test_import_and_unfitted_use_load_no_torch(self):
        code = """
import sys, pickle
import sklvebm
assert "torch" not in sys.modules, "import sklvebm"
from sklvebm import LVEBMEstimator, TiltedEnergy
from sklearn.base import clone
model = clone(LVEBMEstimator(energy=TiltedEnergy(hidden_layer_sizes=(4,))))
model.set_params(energy__mixing=True)
repr(model), model._repr_html_(), pickle.loads(pickle.dumps(model))
print("torch" in sys.modules)
"""
        assert run_python(code).strip() == "False"


class TestPersistence:
    @pytest.mark.parametrize("energy", ["tilted", "free", "linear"])
    def test_bit_identical_in_a_fresh_process(self, X, energy, tmp_path):
        model = quick(energy=energy, n_components=2).fit(X)
        joblib.dump(model, tmp_path / "model.joblib")
        (tmp_path / "model.pickle").write_bytes(pickle.dumps(model))
        np.save(tmp_path / "X.npy", X)
        code = """
import sys, pickle, joblib, numpy as np, torch
folder, threads = sys.argv[1:]
torch.set_num_threads(int(threads))
X = np.load(folder + "/X.npy")
for i, model in enumerate((
    joblib.load(folder + "/model.joblib"), pickle.load(open(folder + "/model.pickle", "rb"))
)):
    Z = model.transform(X)
    np.savez(
        f"{folder}/{i}.npz", Z=Z, p=model.score_samples(X), x=model.inverse_transform(Z),
        s=model.sample(5), q=model.sample_posterior(X, 2),
    )
"""
        run_python(code, str(tmp_path), str(torch.get_num_threads()))
        Z = model.transform(X)
        expected = {
            "Z": Z,
            "p": model.score_samples(X),
            "x": model.inverse_transform(Z),
            "s": model.sample(5),
            "q": model.sample_posterior(X, 2),
        }
        for i in range(2):
            loaded = np.load(tmp_path / f"{i}.npz")
            for name, value in expected.items():
                np.testing.assert_array_equal(loaded[name], value, err_msg=name)

    def test_deepcopy_is_independent(self, X):
        model = quick().fit(X)
        twin = copy.deepcopy(model)
        np.testing.assert_array_equal(twin.transform(X), model.transform(X))
        np.testing.assert_array_equal(twin.sample(3), model.sample(3))
        before = model.score(X)
        twin.fit(X[:60])
        assert model.score(X) == before

    def test_pickle_holds_no_tensor(self, X):
        blob = pickle.dumps(quick().fit(X))
        assert b"torch" not in blob

    @pytest.mark.parametrize("energy", ["tilted", "free", "linear"])
    def test_the_loaded_module_is_frozen(self, X, energy):
        """As the fitted one: no gradients, no layer in training."""
        loaded = in_pickle(quick(energy=energy).fit(X))
        module = loaded._model.energy
        assert not any(parameter.requires_grad for parameter in module.parameters())
        assert not any(part.training for part in module.modules())

    @pytest.mark.parametrize("device", ["cuda", "cuda:7", "mps"])
    def test_a_model_of_an_absent_device_answers_on_the_cpu(self, X, device):
        model = closed_form().fit(X)
        expected = model.score_samples(X)
        model.device_ = device
        loaded = pickle.loads(pickle.dumps(model))
        if loaded._model.device.type != "cpu":
            pytest.skip(f"{device} is here")
        np.testing.assert_allclose(loaded.score_samples(X), expected, atol=1e-5)
        assert np.isfinite(loaded.sample(3)).all()


def in_pickle(estimator):
    return pickle.loads(pickle.dumps(estimator))


def in_skops(estimator):
    sio = pytest.importorskip("skops.io")
    blob = sio.dumps(estimator)
    return sio.loads(blob, trusted=sio.get_untrusted_types(data=blob))


@pytest.mark.parametrize("saved", [in_pickle, in_skops])
class TestOtherVersions:
    def test_the_same_format_loads_and_says_who_saved_it(self, X, saved, monkeypatch):
        model = closed_form().fit(X)
        monkeypatch.setattr("sklvebm._format.__version__", "0.0.9")
        state = model.__getstate__()
        monkeypatch.undo()
        monkeypatch.setattr(LVEBMEstimator, "__getstate__", lambda self: state)
        with pytest.warns(UserWarning, match=r"saved by sklvebm 0\.0\.9 and loaded by"):
            loaded = saved(model)
        np.testing.assert_array_equal(loaded.score_samples(X), model.score_samples(X))

    @pytest.mark.parametrize("stamp", [{"version": "9.9", "format": 99}, None])
    def test_another_format_is_refused(self, X, saved, stamp, monkeypatch):
        """Of a later version, or of one before there were stamps."""
        model = closed_form().fit(X)
        state = model.__getstate__() | {"_saved_by": stamp}
        if stamp is None:
            del state["_saved_by"]
        monkeypatch.setattr(LVEBMEstimator, "__getstate__", lambda self: state)
        version = "9.9" if stamp else "(unknown)"
        with pytest.raises(ValueError, match=re.escape(f"saved by sklvebm {version}")):
            saved(make_pipeline(StandardScaler(), model))

    def test_a_parameter_of_later_takes_its_default(self, X, saved, monkeypatch):
        model = closed_form().fit(X)
        state = model.__getstate__()
        del state["weight_decay"]
        monkeypatch.setattr(LVEBMEstimator, "__getstate__", lambda self: state)
        loaded = saved(model)
        assert loaded.get_params()["weight_decay"] == "auto"
        np.testing.assert_array_equal(loaded.transform(X), model.transform(X))

    def test_within_a_version_nothing_is_said(self, X, saved):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            loaded = saved(closed_form().fit(X))
        assert "_saved_by" not in vars(loaded)


class TestBadInput:
    @pytest.mark.parametrize("bad", [np.inf, -np.inf])
    def test_infinite(self, X, bad):
        broken = X.copy()
        broken[3, 1] = bad
        with pytest.raises(ValueError, match="infinity"):
            quick().fit(broken)
        model = quick().fit(X)
        for method in ("transform", "score_samples", "sample_posterior", "free_energy"):
            with pytest.raises(ValueError, match="infinity"):
                getattr(model, method)(broken)

    @pytest.mark.parametrize(
        ("rows", "message"),
        [
            (np.zeros((0, 4)), "0 sample"),
            (np.zeros((1, 4)), "1 sample"),
            (np.zeros((5, 0)), "0 feature"),
            (np.zeros(5), "2D array"),
            (np.array([["a", "b"], ["c", "d"]]), "could not convert"),
        ],
    )
    def test_unusable_tables(self, rows, message):
        with pytest.raises(ValueError, match=message):
            quick().fit(rows)

    def test_wrong_features_and_names(self, X):
        pd = pytest.importorskip("pandas")
        frame = pd.DataFrame(X, columns=list("abcd"))
        model = quick().fit(frame)
        with pytest.raises(ValueError, match="features"):
            model.transform(X[:, :3])
        with pytest.raises(ValueError, match="feature names"):
            model.transform(frame.rename(columns={"a": "z"}))

    @pytest.mark.parametrize("energy", ["tilted", "free", "linear"])
    @pytest.mark.parametrize(
        "make",
        [
            lambda X: np.c_[X, np.full(len(X), 3.0)],
            lambda X: np.c_[X, X[:, 0]],
            lambda X: np.c_[X, X @ np.ones(4)],
            lambda X: X * np.array([1e-8, 1e8, 1.0, 1.0]),
            lambda X: X[:2],
            lambda X: X[:3],
            lambda X: np.repeat(X[:1], 20, axis=0),
            lambda X: np.ones((10, 3)),
            lambda X: X + 1e9,
            lambda X: X[:, :1],
        ],
        ids=[
            "constant column",
            "duplicated column",
            "collinear columns",
            "scales 1e-8 and 1e8",
            "two rows",
            "fewer rows than components",
            "one row repeated",
            "all constant",
            "far from zero",
            "one feature",
        ],
    )
    @pytest.mark.slow
    def test_awkward_tables_fit_finitely(self, X, make, energy):
        data = make(X)
        model = quick(energy=energy, n_components=3).fit(data)
        assert np.isfinite(model.score_samples(data)).all()
        Z = model.transform(data)
        assert np.isfinite(Z).all()
        assert np.isfinite(model.inverse_transform(Z)).all()
        assert np.isfinite(model.sample(20)).all()
        for name, value in vars(model).items():
            if name.endswith("_") and isinstance(value, float):
                assert np.isfinite(value), name

    @pytest.mark.parametrize(("unit", "beyond"), [(1e200, "overflows"), (1e-200, "underflows")])
    def test_a_column_whose_variance_is_no_float_is_refused(self, X, unit, beyond):
        """Unless it is refused, what underflows passes for constant, in a unit of one."""
        X = X * np.r_[1.0, unit, np.ones(X.shape[1] - 2)]
        with pytest.raises(ValueError, match=rf"variance of features \[1\] {beyond}"):
            quick().fit(X)

    @pytest.mark.slow
    def test_a_row_beyond_all_bounds_scores_low_and_harms_no_other(self, X):
        model = quick().fit(X)
        beyond = np.full((2, 4), [[1e12], [1e200]])
        together = model.score_samples(np.r_[X, beyond])
        assert (together[-2:] < -1e2).all()
        assert not np.isnan(together).any()
        assert np.isfinite(model.transform(beyond)).all()
        np.testing.assert_allclose(together[:-2], model.score_samples(X), atol=1e-7)

    def test_far_outlier_scores_low_and_finite(self, X):
        model = quick().fit(X)
        far = X[:1] + 20 * X.std(0)
        together = model.score_samples(np.r_[X, far])
        assert np.isfinite(together[-1])
        assert together[-1] < together[:-1].min()
        np.testing.assert_allclose(together[:-1], model.score_samples(X), atol=1e-7)


class TestNothingIsLost:
    def test_unfitted_says_so(self, X):
        for method in ("transform", "score_samples", "sample_posterior"):
            with pytest.raises(NotFittedError):
                getattr(quick(), method)(X)
        with pytest.raises(NotFittedError):
            quick().sample()

    @pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
    def test_an_interrupted_fit_leaves_no_half_fitted_estimator(self, X, monkeypatch, error):
        def stop(self, run):
            raise error

        monkeypatch.setattr(Saddle, "update", stop)
        model = quick()
        before = dict(vars(model))
        with pytest.raises(error):
            model.fit(X)
        assert vars(model) == before
        with pytest.raises(NotFittedError):
            model.transform(X)

    def test_a_failed_refit_keeps_the_last_good_state(self, X, monkeypatch):
        model = quick().fit(X)
        expected = model.score_samples(X)

        def stop(self, run):
            raise KeyboardInterrupt

        monkeypatch.setattr(Saddle, "update", stop)
        with pytest.raises(KeyboardInterrupt):
            model.fit(X[:, :2])
        with pytest.raises(KeyboardInterrupt):
            model.partial_fit(X)
        np.testing.assert_array_equal(model.score_samples(X), expected)
        assert model.n_features_in_ == 4

    def test_divergence_is_reported(self, X, monkeypatch):
        monkeypatch.setattr(Saddle, "update", lambda *_: torch.full((2,), torch.nan))
        with pytest.raises(
            DivergenceError, match=r"reference stage at update 0.*nan.*learning_rate"
        ):
            quick().fit(X)

    def test_where_the_fit_to_all_rows_diverges_the_one_before_stays(self, X, monkeypatch):
        expected, update = quick().fit(X), Saddle.update

        def bad(self, run):
            return update(self, run) * (torch.nan if self.evaluate is None else 1.0)

        monkeypatch.setattr(Saddle, "update", bad)
        with pytest.warns(ConvergenceWarning, match="training on all rows"):
            model = quick(refit=True).fit(X)
        np.testing.assert_equal(model.history_, expected.history_)
        assert model.n_iter_ == expected.n_iter_
        np.testing.assert_array_equal(model.score_samples(X), expected.score_samples(X))

    def test_a_warning_that_is_an_error_loses_no_fit(self, X, monkeypatch):
        """Of a state that was recovered from, too, it comes after the fit."""
        update, calls = Saddle.update, []

        def once_bad(self, run):
            calls.append(run.stage.name)
            return update(self, run) * (torch.nan if len(calls) == 7 else 1.0)

        monkeypatch.setattr(Saddle, "update", once_bad)
        model = quick()
        with warnings.catch_warnings():
            warnings.simplefilter("error", ConvergenceWarning)
            with pytest.raises(ConvergenceWarning, match="last good state"):
                model.fit(X)
        assert np.isfinite(model.score(X))

    @pytest.mark.parametrize(("read_every", "n_lost"), [(1, 1), (8, 3)])
    def test_a_single_bad_update_is_recovered_from(self, X, monkeypatch, read_every, n_lost):
        """As soon as its numbers are read, from a device those of several updates at once.

        The seventh is bad; the first stage is evaluated after five updates, and ends after nine.
        """
        self.read_late(monkeypatch, read_every)
        update, calls = Saddle.update, []

        def once_bad(self, run):
            gap = update(self, run)
            calls.append(run.stage.name)
            if len(calls) == 7:
                with torch.no_grad():
                    for parameter in run.stage.parameters:
                        parameter.fill_(float("nan"))
                return gap * float("nan")
            return gap

        monkeypatch.setattr(Saddle, "update", once_bad)
        with pytest.warns(ConvergenceWarning, match="last good state"):
            model = quick().fit(X)
        assert np.isfinite(model.score(X))
        assert calls[:9] == ["reference"] * 9
        assert model.n_iter_ == len(calls) - n_lost

    def test_what_is_read_late_is_the_same(self, X, monkeypatch):
        expected = quick().fit(X)
        self.read_late(monkeypatch, 8)
        model = quick().fit(X)
        np.testing.assert_equal(model.history_, expected.history_)
        np.testing.assert_array_equal(model.score_samples(X), expected.score_samples(X))

    @staticmethod
    def read_late(monkeypatch, read_every):
        start = Saddle.__init__

        def late(self, *args, **kwargs):
            start(self, *args, **kwargs)
            self._read_every = read_every

        monkeypatch.setattr(Saddle, "__init__", late)

    def test_a_huge_learning_rate_does_not_answer_nonsense(self, X):
        """Either it diverges and says so, or what it answers is no better than PPCA can explain."""
        model = quick(learning_rate=1e3, max_iter=100)
        try:
            model.fit(X)
        except DivergenceError:
            pass
        else:
            assert model.score(X) < clone(model).set_params(learning_rate=1e-2).fit(X).score(X) + 1
