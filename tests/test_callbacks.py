"""Callbacks, progress and lines of text: they see the fit, can stop it, and never change it."""

import numpy as np
import pytest
from sklearn.datasets import load_iris
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from small import quick

from sklvebm._callbacks import NoContext, Reporter, Screen

try:
    from sklearn import callback
except ImportError:
    callback = None

with_protocol = pytest.mark.skipif(callback is None, reason="scikit-learn before 1.9")


@pytest.fixture(scope="module")
def X():
    return load_iris().data


class Recorder:
    """Keeps what it is told; asks to stop after ``stop_at`` evaluations, or fails there."""

    def __init__(self, stop_at=np.inf, fail=False):
        self.stop_at, self.fail = stop_at, fail
        self.rows, self.events = [], []

    def setup(self, estimator, context):
        self.events.append("setup")
        self.max_subtasks = context.max_subtasks

    def teardown(self, estimator, context):
        self.events.append("teardown")

    def on_fit_task_begin(self, estimator, context, *, X=None):
        if context.parent is None:
            self.events.append("begin")
            self.n_rows = len(X)

    def on_fit_task_end(self, estimator, context, *, metadata=None):
        if context.parent is None:
            self.events.append("end")
            return False
        self.rows.append(metadata)
        if self.fail and len(self.rows) >= self.stop_at:
            raise RuntimeError("told to fail")
        return len(self.rows) >= self.stop_at


class Scorer(Recorder):
    """Asks for a fitted estimator at every evaluation."""

    def __init__(self):
        super().__init__()
        self.scores, self.lengths = [], []

    def on_fit_task_end(self, estimator, context, *, X=None, fitted_estimator=None):
        if context.parent is not None:
            self.scores.append(fitted_estimator.score(X[:20]))
            self.lengths.append(len(fitted_estimator.history_))
            assert "energy_gap" in fitted_estimator.score_report(X[:20]).diagnostics
            fitted_estimator.sample()


@with_protocol
def test_callbacks_see_the_history(X):
    recorder = Recorder()
    model = quick().set_callbacks(recorder).fit(X)
    assert recorder.events == ["setup", "begin", "end", "teardown"]
    assert recorder.rows == model.history_
    assert recorder.n_rows == len(np.unique(X, axis=0))
    assert len(model.history_) <= recorder.max_subtasks
    assert {row["stage"] for row in recorder.rows} == {"reference", "mixing", "tilt"}
    assert all(np.isfinite(row["log_likelihood"]) for row in recorder.rows)


@with_protocol
def test_callbacks_do_not_change_the_fit(X):
    plain = quick(max_iter=10).fit(X)
    watched = quick(max_iter=10).set_callbacks(scorer := Scorer(), Recorder()).fit(X)
    np.testing.assert_array_equal(plain.score_samples(X), watched.score_samples(X))
    np.testing.assert_array_equal(plain.sample(3), watched.sample(3))
    assert scorer.lengths == list(range(1, len(watched.history_) + 1))
    before = len(watched.history_)
    watched.partial_fit(X)
    assert scorer.lengths[before:] == list(range(before + 1, len(watched.history_) + 1))
    assert np.isfinite(scorer.scores).all()


@with_protocol
@pytest.mark.parametrize("refit", [False, True])
@pytest.mark.parametrize("stop_at", [2, 4])
def test_a_callback_stops_training(X, stop_at, refit):
    model = quick(refit=refit).set_callbacks(Recorder(stop_at)).fit(X)
    assert len(model.history_) == stop_at
    assert model.n_iter_ < 20
    assert not model.converged_
    assert np.isfinite(model.score(X))


@with_protocol
def test_a_callback_that_fails_leaves_the_last_good_state(X):
    model = quick().fit(X)
    before = model.score_samples(X)
    model.set_callbacks(recorder := Recorder(2, fail=True))
    with pytest.raises(RuntimeError, match="told to fail"):
        model.fit(X)
    assert recorder.events[-1] == "teardown"
    assert not hasattr(model, "_callback_fit_ctx")
    np.testing.assert_array_equal(model.score_samples(X), before)


@with_protocol
def test_progress_under_a_search(X, capfd):
    pytest.importorskip("rich")
    search = GridSearchCV(
        make_pipeline(StandardScaler(), quick(max_iter=10)),
        {"lvebmestimator__n_components": [1, 2]},
        cv=2,
    )
    search.set_callbacks(callback.ProgressBar(max_propagation_depth=None))
    search.fit(X)
    text = capfd.readouterr().out
    assert "GridSearchCV" in text
    assert "LVEBMEstimator" in text


@with_protocol
def test_scoring_monitor(X):
    """scikit-learn's own monitor takes fitted estimators along the way."""
    monitor = callback.ScoringMonitor(scoring=lambda estimator, X, y: estimator.score(X[:20]))
    model = quick().set_callbacks(monitor)
    model.fit(X, np.zeros(len(X)))
    assert np.isfinite(model.score(X))


def test_lines_of_text(X, capsys):
    quick(verbose=1).fit(X)
    lines = capsys.readouterr().out.splitlines()
    stages = [line.split(",")[0].removeprefix("[sklvebm] ") for line in lines]
    assert stages == ["reference", "mixing", "tilt"]
    assert all("held-out log-likelihood" in line for line in lines)
    model = quick(verbose=2).fit(X)
    assert len(capsys.readouterr().out.splitlines()) == len(model.history_)


@pytest.mark.parametrize(("marginals", "told"), [("mixture", True), ("gaussian", False)])
def test_marginals_that_take_time_are_told(X, capsys, marginals, told):
    quick(verbose=1, marginals=marginals).fit(X)
    first = capsys.readouterr().out.splitlines()[0]
    assert first.startswith(f"[sklvebm] marginals: {marginals} (") == told


def test_without_the_protocol():
    """Before scikit-learn 1.9 nobody listens."""
    reporter = Reporter(None, NoContext(), np.zeros((1, 1)), screen=Screen(0), attributes=dict)
    row = {"stage": "reference", "n_iter": 1, "energy_gap": np.nan}
    assert reporter(row, lambda: pytest.fail("nobody asked for a model")) is False
    reporter.close()
