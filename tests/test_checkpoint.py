"""Checkpoints: a fit that goes on is the fit that was never interrupted, and no other's."""

import copy
import operator
import os
import pickle
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_iris
from sklearn.exceptions import ConvergenceWarning

from sklvebm import LinearEnergy, LVEBMEstimator, TiltedEnergy
from sklvebm._callbacks import Reporter
from sklvebm.checkpoint import Checkpoint, described, digest
from sklvebm.saddle import DivergenceError, Saddle
from sklvebm.training import Trainer


def quick(**params):
    energy = TiltedEnergy((8,), (8,), n_frequencies=0, mixing_rank=4)
    # Batches far smaller than the table: an interruption falls within a pass over it.
    small = {"n_components": 1, "energy": energy, "max_iter": 30, "pool_size": 64, "batch_size": 2}
    # No pilots before it, which test_marginals.py interrupts, and no second training after it.
    alone = {"marginals": "gaussian", "smoothing": 0, "refit": False}
    return LVEBMEstimator(**small | alone | {"random_state": 0} | params)


@pytest.fixture(scope="module")
def X():
    return load_iris().data[::2, :3]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "fit.checkpoint"


def interrupt(monkeypatch, owner, name, after):
    """Let ``owner.name`` run ``after`` times, then raise KeyboardInterrupt, once."""
    original, calls = getattr(owner, name), []

    def counted(*args, **kwargs):
        calls.append(name)
        if len(calls) == after + 1:
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, counted)


def assert_same_fit(model, expected, X):
    for method in ("score_samples", "transform"):
        np.testing.assert_array_equal(getattr(model, method)(X), getattr(expected, method)(X))
    # Of copies: a draw without a seed moves the estimator's own random stream on.
    draws = [copy.deepcopy(fitted).sample(5) for fitted in (model, expected)]
    np.testing.assert_array_equal(*draws)
    np.testing.assert_equal(model.history_, expected.history_)
    np.testing.assert_equal(model.diagnostics_, expected.diagnostics_)
    for name in ("n_iter_", "converged_", "step_size_", "log_partition_"):
        assert getattr(model, name) == getattr(expected, name), name


def interrupted(model, X, **fit_params):
    with pytest.raises(KeyboardInterrupt):
        model.fit(X, **fit_params)
    assert Path(model.checkpoint).exists()
    return model


@pytest.fixture(scope="module")
def uninterrupted(X):
    return quick().fit(X)


def test_writing_checkpoints_changes_nothing(X, path, uninterrupted):
    model = quick(checkpoint=path).fit(X)
    assert_same_fit(model, uninterrupted, X)
    # The fit is over: nothing is left to go on from, and nothing half written.
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize("after", [1, 4, 5, 6, 8, 9])
def test_interrupted_at_an_evaluation(X, path, uninterrupted, monkeypatch, after):
    """All stages: their first evaluations, and later ones."""
    stages = [row["stage"] for row in uninterrupted.history_]
    wanted = [name for name in ("reference", "mixing", "tilt") for _ in range(2)]
    assert [stages[i] for i in (1, 4, 5, 6, 8, 9)] == wanted
    interrupt(monkeypatch, Reporter, "__call__", after)
    model = interrupted(quick(checkpoint=path), X)
    assert_same_fit(model.fit(X), uninterrupted, X)
    assert not path.exists()


@pytest.mark.parametrize("after", [1, 2, 3])
def test_interrupted_at_the_modes_or_after_them(X, path, monkeypatch, after):
    """Latents are followed by other means in the first stage than in the second."""

    def isotropic(**params):
        return quick(energy=TiltedEnergy((8,), (8,), noise="isotropic"), **params)

    expected = isotropic().fit(X)
    stages = [row["stage"] for row in expected.history_]
    assert stages[:4] == ["start", "start", "reference", "reference"]
    interrupt(monkeypatch, Reporter, "__call__", after)
    model = interrupted(isotropic(checkpoint=path), X)
    assert_same_fit(model.fit(X), expected, X)


@pytest.mark.parametrize(
    ("owner", "name", "after"),
    [(Saddle, "update", 3), (Saddle, "update", 28), (Trainer, "_finish", 0)],
)
def test_interrupted_between_evaluations(X, path, uninterrupted, monkeypatch, owner, name, after):
    interrupt(monkeypatch, owner, name, after)
    model = interrupted(quick(checkpoint=str(path)), X)
    assert_same_fit(model.fit(X), uninterrupted, X)


@pytest.mark.parametrize("again", [None, 1, 2])
@pytest.mark.parametrize("beyond", [0, 1, 3])
def test_interrupted_while_refitting(X, path, monkeypatch, beyond, again):
    """Before, at and after the first evaluations of the fit to all rows; and again after that."""
    expected = quick(refit=True, max_iter=60).fit(X)
    n_searched = sum("log_likelihood" in row for row in expected.history_)
    assert n_searched + 3 + 2 < len(expected.history_)
    model = quick(refit=True, max_iter=60, checkpoint=path)
    for after in (n_searched + beyond, again):
        if after is not None:
            with monkeypatch.context() as patch:
                interrupt(patch, Reporter, "__call__", after)
                interrupted(model, X)
    assert_same_fit(model.fit(X), expected, X)


def test_interrupted_before_the_fit_to_all_rows_diverges(X, path, monkeypatch):
    """The file leads back to what training with rows held out had found."""
    update = Saddle.update

    def bad(self, run):
        return update(self, run) * (torch.nan if self.evaluate is None and run.step > 6 else 1.0)

    monkeypatch.setattr(Saddle, "update", bad)
    with pytest.warns(ConvergenceWarning, match="training on all rows"):
        expected = quick(refit=True).fit(X)
    with monkeypatch.context() as patch:
        interrupt(patch, Reporter, "__call__", len(expected.history_) + 1)
        model = interrupted(quick(refit=True, checkpoint=path), X)
    assert path.exists()
    with pytest.warns(ConvergenceWarning, match="training on all rows"):
        model.fit(X)
    assert_same_fit(model, expected, X)
    assert not path.exists()


def test_interrupted_twice(X, path, uninterrupted, monkeypatch):
    for after in (6, 10):
        with monkeypatch.context() as patch:
            interrupt(patch, Saddle, "update", after)
            model = interrupted(quick(checkpoint=path), X)
    assert_same_fit(model.fit(X), uninterrupted, X)


@pytest.mark.parametrize(
    "params",
    [
        {"inference": "map"},
        {"inference": "variational"},
        {"dynamics": "ula"},
        {"energy": "free"},
        {"energy": LinearEnergy(init="random")},
        {"early_stopping": False},
        {"smoothing": 0.3},
    ],
    ids=str,
)
def test_every_kind_of_fit(X, path, monkeypatch, params):
    expected = quick(**params).fit(X)
    interrupt(monkeypatch, Saddle, "update", 17)
    model = interrupted(quick(checkpoint=path, **params), X)
    assert_same_fit(model.fit(X), expected, X)


def test_weights_and_missing_entries(X, path, monkeypatch, rng):
    X = np.where(rng.uniform(size=X.shape) < 0.1, np.nan, X)
    weight = rng.uniform(size=len(X))
    expected = quick().fit(X, sample_weight=weight)
    interrupt(monkeypatch, Saddle, "update", 12)
    model = interrupted(quick(checkpoint=path), X, sample_weight=weight)
    assert_same_fit(model.fit(X, sample_weight=weight), expected, X)


def test_after_a_divergence(X, path, monkeypatch):
    """The state that a divergence returns to is kept too."""
    update = Saddle.update

    def fit(model, stop_at=None):
        calls = []

        def sometimes_bad(self, run):
            calls.append(update(self, run))
            n_iter = self.outcome.n_iter
            if stop_at == n_iter:
                raise KeyboardInterrupt
            # Bad once, at update 23; the resumed fit starts at update 20.
            is_bad = n_iter == 23 and not any(map(torch.isnan, torch.cat(calls)))
            calls[-1] = calls[-1] * (torch.nan if is_bad else 1.0)
            return calls[-1]

        monkeypatch.setattr(Saddle, "update", sometimes_bad)
        return model.fit(X)

    with pytest.warns(UserWarning, match="last good state"):
        expected = fit(quick())
    model = quick(checkpoint=path)
    with pytest.raises(KeyboardInterrupt):
        fit(model, stop_at=22)
    with pytest.warns(UserWarning, match="last good state"):
        fit(model)
    assert_same_fit(model, expected, X)


def test_a_stop_asked_for_by_a_callback_is_remembered(X, path, monkeypatch):
    monkeypatch.setattr(Reporter, "__call__", lambda self, row, snapshot: row["n_iter"] >= 5)
    expected = quick().fit(X)
    assert expected.n_iter_ == 5
    with monkeypatch.context() as patch:
        interrupt(patch, Trainer, "_finish", 0)
        model = interrupted(quick(checkpoint=path), X)
    assert_same_fit(model.fit(X), expected, X)


def test_warm_start(X, path, monkeypatch):
    def first():
        return quick(warm_start=True).fit(X)

    expected, model = first().fit(X), first().set_params(checkpoint=path)
    interrupt(monkeypatch, Saddle, "update", 12)
    interrupted(model, X)
    assert_same_fit(model.fit(X), expected, X)


def test_warm_start_from_another_model(X, path, monkeypatch):
    model = quick(warm_start=True, checkpoint=path).fit(X)
    with monkeypatch.context() as patch:
        interrupt(patch, Saddle, "update", 12)
        interrupted(model, X)
    with pytest.raises(ValueError, match="model gone on from"):
        quick(warm_start=True).fit(X[:70]).set_params(checkpoint=path).fit(X)


def test_without_a_seed_the_files_seed_goes_on(X, path, monkeypatch):
    with monkeypatch.context() as patch:
        interrupt(patch, Saddle, "update", 12)
        interrupted(quick(random_state=None, checkpoint=path), X)
    kept = path.read_bytes()
    models = []
    for _ in range(2):
        path.write_bytes(kept)
        models.append(quick(random_state=None, checkpoint=path).fit(X))
    assert_same_fit(*models, X)


def test_killed_and_gone_on_with_in_another_process(X, path, uninterrupted):
    """Nothing is left of the first process but the file."""
    code = """
import os, sys, pickle
import torch
from sklearn.datasets import load_iris
from sklvebm import LVEBMEstimator, TiltedEnergy
from sklvebm.saddle import Saddle
torch.set_num_threads(int(sys.argv[3]))
update, calls = Saddle.update, []
def killed(*args):
    calls.append(1)
    if len(calls) == int(sys.argv[2]):
        os._exit(3)
    return update(*args)
Saddle.update = killed
energy = TiltedEnergy((8,), (8,), n_frequencies=0, mixing_rank=4)
model = LVEBMEstimator(
    1,
    energy=energy,
    marginals="gaussian",
    max_iter=30,
    pool_size=64,
    batch_size=2,
    smoothing=0,
    refit=False,
    random_state=0,
    checkpoint=sys.argv[1],
)
pickle.dump(model.fit(load_iris().data[::2, :3]), open(sys.argv[1] + ".pickle", "wb"))
"""

    def run(kill_at):
        arguments = [str(path), str(kill_at), str(torch.get_num_threads())]
        command = [sys.executable, "-W", "ignore", "-c", code, *arguments]
        return subprocess.run(command, check=False).returncode

    assert run(13) == 3
    assert path.exists()
    assert run(-1) == 0
    found = pickle.loads(Path(f"{path}.pickle").read_bytes())
    kept, expected = (model._model_state["parameters"] for model in (found, uninterrupted))
    np.testing.assert_equal(kept, expected)
    assert len(found.history_) == len(uninterrupted.history_)


class TestWhoseItIs:
    @pytest.fixture
    def kept(self, X, path, monkeypatch):
        """A checkpoint of a fit of X that was interrupted: its path and content."""
        with monkeypatch.context() as patch:
            interrupt(patch, Saddle, "update", 7)
            interrupted(quick(checkpoint=path), X)
        return path, path.read_bytes()

    @pytest.mark.parametrize(
        ("params", "named"),
        [
            ({"batch_size": 32}, "batch_size is 2 there and 32 here"),
            ({"random_state": 1}, "random_state is 0 there and 1 here"),
            ({"random_state": None}, "random_state"),
            ({"energy": TiltedEnergy((8,), (9,), n_frequencies=0)}, "energy"),
            ({"max_iter": 31}, "max_iter"),
        ],
        ids=str,
    )
    def test_other_parameters(self, X, kept, params, named):
        path, content = kept
        model = quick(checkpoint=path, **params)
        with pytest.raises(ValueError, match=f"another fit.*{named}"):
            model.fit(X)
        assert path.read_bytes() == content
        assert not hasattr(model, "history_")

    def test_other_rows_and_weights(self, X, kept):
        path, content = kept
        other = X.copy()
        other[3, 2] += 1e-9
        with pytest.raises(ValueError, match="table"):
            quick(checkpoint=path).fit(other)
        with pytest.raises(ValueError, match="table"):
            quick(checkpoint=path).fit(X, sample_weight=np.arange(1.0, 76.0))
        assert path.read_bytes() == content

    def test_the_same_fit_in_other_words(self, X, kept, uninterrupted):
        """The order of the rows, how much is printed, and defaults spelled out say nothing."""
        path, _ = kept
        model = quick(checkpoint=path, batch_size=2, weight_decay=3.0)
        assert_same_fit(model.fit(X[::-1]), uninterrupted, X)

    @pytest.mark.parametrize("where", [0.3, 0.6, 0.999])
    def test_a_flipped_bit(self, X, kept, where):
        path, content = kept
        damaged = bytearray(content)
        damaged[int(where * len(content))] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="damaged"):
            quick(checkpoint=path).fit(X)
        assert path.read_bytes() == damaged

    @pytest.mark.parametrize("length", [60, 500, -1])
    def test_a_cut_file(self, X, kept, length):
        path, content = kept
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match="damaged"):
            quick(checkpoint=path).fit(X)

    @pytest.mark.parametrize("content", [b"", b"something else", pickle.dumps({"state": 1})])
    def test_a_file_of_something_else(self, X, path, content):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="no checkpoint"):
            quick(checkpoint=path).fit(X)
        assert path.read_bytes() == content

    def test_no_such_folder(self, X, tmp_path):
        with pytest.raises(ValueError, match="no such folder"):
            quick(checkpoint=tmp_path / "missing" / "file").fit(X)

    def test_not_a_path(self, X):
        with pytest.raises(TypeError, match="checkpoint must be a path"):
            quick(checkpoint=3).fit(X)

    def test_partial_fit_neither_reads_nor_writes(self, X, kept):
        path, content = kept
        quick(checkpoint=path).partial_fit(X)
        assert path.read_bytes() == content


class TestWriting:
    @pytest.mark.parametrize("step", ["fsync", "replace"])
    def test_a_failed_write_leaves_the_old_content(self, path, monkeypatch, step):
        checkpoint = Checkpoint(path, {"rows": 3})
        checkpoint.write({"value": torch.ones(3)})
        before = path.read_bytes()

        def fail(*args):
            raise OSError("disk full")

        with monkeypatch.context() as patch:
            patch.setattr(os, step, fail)
            with pytest.raises(OSError, match="disk full"):
                checkpoint.write({"value": torch.zeros(3)})
        assert path.read_bytes() == before
        assert list(path.parent.iterdir()) == [path]
        assert torch.equal(checkpoint.read()["value"], torch.ones(3))

    def test_the_old_content_is_there_until_the_new_one_is_whole(self, path, monkeypatch):
        checkpoint = Checkpoint(path, {})
        checkpoint.write({"value": 1})
        seen, replace = [], os.replace

        def watched(source, target):
            seen.append((checkpoint.read(), Path(source).parent == path.parent))
            replace(source, target)

        monkeypatch.setattr(os, "replace", watched)
        checkpoint.write({"value": 2})
        assert seen == [({"value": 1}, True)]
        assert checkpoint.read() == {"value": 2}


def test_a_folder_is_no_file(X, tmp_path):
    with pytest.raises(ValueError, match="is a folder"):
        quick(checkpoint=tmp_path).fit(X)


def test_a_divergence_takes_the_file_away(X, path, monkeypatch):
    """Going on from it would diverge again."""
    monkeypatch.setattr(Saddle, "update", lambda *_: torch.full((2,), torch.nan))
    with pytest.raises(DivergenceError):
        quick(checkpoint=path).fit(X)
    assert not path.exists()


def test_digests_tell_contents_shapes_and_types_apart():
    a = np.arange(6.0)
    others = [a.reshape(2, 3), a.astype(np.float32), a + 1e-16 + (a == 5) * 1e-15, a[:5], -a]
    assert len({digest([a]), *(digest([other]) for other in others)}) == 6
    assert digest([a]) == digest([np.arange(12.0)[::2] / 2])


class Factory:
    """A callable with a parameter and no name."""

    def __init__(self, width):
        self.width = width

    def __call__(self, n_features, n_components):
        return torch.nn.Linear(n_features, self.width)


class Slotted:
    __slots__ = ("width",)

    def __init__(self, width):
        self.width = width


def adder(n):
    return lambda d: d + n


def recursive():
    def factory(d, k):
        return factory(d - 1, k)

    return partial(factory, act=torch.Tensor.tanh)


def test_descriptions_hold_in_every_process():
    assert described(TiltedEnergy()) == described(TiltedEnergy())
    assert described(TiltedEnergy()) != described(TiltedEnergy(tilt_bound=1.0))
    assert described(torch.nn.Linear) == "torch.nn.modules.linear.Linear"
    assert described(partial(max, 1, key=abs)) == described(partial(max, 1, key=abs))
    assert described(partial(max, 1)) != described(partial(max, 2))
    assert described(Factory(2)) == described(Factory(2)) != described(Factory(3))
    assert "0x" not in described(Factory(2)) + described(partial(Factory(2), 1))
    first, second, again = (adder(n) for n in (1, 2, 1))
    assert described(first) == described(again) != described(second)
    assert described(lambda d: d + 1) != described(lambda d: d + 2)
    one, other = (lambda d: d + 1), (lambda d: d + 1)
    assert described(one) == described(other)
    assert described(lambda d, n=1: d + n) != described(lambda d, n=2: d + n)
    assert described(Factory(2).__call__) != described(Factory(3).__call__)


@pytest.mark.parametrize(
    ("value", "same"),
    [
        (10, 10.0),
        (np.int64(5), 5),
        ([32, 32], (32, 32)),
        ({"b": [torch.tanh], "a": 1}, {"b": (torch.tanh,), "a": 1}),
        (Factory(Factory(1)), Factory(Factory(1))),
        (frozenset("abc"), frozenset("cba")),
        (np.arange(3), np.arange(3)),
    ],
)
def test_equal_things_in_other_words(value, same):
    assert described(value) == described(same)
    assert "0x" not in described(value)


@pytest.mark.parametrize(
    "value", [Slotted(1), operator.methodcaller("sum"), TiltedEnergy, recursive()]
)
def test_everything_has_a_description(value):
    assert described(value)
