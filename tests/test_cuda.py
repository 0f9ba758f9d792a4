"""On a CUDA device: what is recorded is what would have been called, and both find one model.

Where there is a device, all other tests that leave ``device="auto"`` fit there too.
"""

from __future__ import annotations

import math
import pickle

import numpy as np
import pytest
import torch
from statistical import Z

from sklvebm import LinearEnergy, LVEBMEstimator, TiltedEnergy
from sklvebm.model import Model
from sklvebm.recording import Recorded
from sklvebm.saddle import DivergenceError

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")

KINDS = {
    "default": {},
    "unadjusted": {"dynamics": "ula"},
    "variational": {"inference": "variational"},
    "map": {"inference": "map"},
    "free": {"energy": "free"},
    "isotropic": {"energy": TiltedEnergy((16,), (16,), noise="isotropic")},
    "sheared": {"energy": TiltedEnergy((16,), (16,), n_frequencies=0, mixing_rank=4)},
    "linear": {"energy": LinearEnergy(init="random")},
    "smoothed": {"smoothing": 0.4},
}


@pytest.fixture
def X(rng):
    """More rows than the batches of a visit hold, for some of its kinds of fit."""
    z = rng.standard_normal((400, 2))
    return np.column_stack([z, z[:, :1] ** 2]) + 0.3 * rng.standard_normal((400, 3))


def fitted(X, **params):
    start = {"energy": TiltedEnergy((16,), (16,)), "max_iter": 120, "pool_size": 256}
    start |= {"n_components": 2, "random_state": 0, "device": "cuda", "batch_size": 32}
    start |= {"smoothing": 0}
    return LVEBMEstimator(**start | params).fit(X)


@pytest.mark.parametrize("n_missing", [0, 40])
@pytest.mark.parametrize("kind", KINDS)
def test_recordings_are_the_calls(kind, n_missing, X, rng, monkeypatch):
    """To the bit: the same noise, and sums in the same order."""
    X[rng.integers(len(X), size=n_missing), rng.integers(3, size=n_missing)] = np.nan
    played, recorded = [], Recorded._record

    def spy(self, args):
        played.append(self.function.func.__name__)
        return recorded(self, args)

    monkeypatch.setattr(Recorded, "_record", spy)
    model = fitted(X, **KINDS[kind], max_iter=40)
    assert {"_moved", "_learned"} <= set(played)

    def call(self, *args):
        return self.function(*map(self._on_device, args))

    monkeypatch.setattr(Recorded, "__call__", call)
    called = fitted(X, **KINDS[kind], max_iter=40)
    np.testing.assert_equal(model.history_, called.history_)
    np.testing.assert_array_equal(model.transform(X), called.transform(X))


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_recorded_waits_for_nothing(kind, X, monkeypatch):
    def strict(self, *args):
        # What the first call makes ready may wait.
        if self._shapes is None:
            self._shapes = []
            return self.function(*args)
        torch.cuda.set_sync_debug_mode("error")
        try:
            return self.function(*args)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(Recorded, "__call__", strict)
    assert math.isfinite(fitted(X, **KINDS[kind], max_iter=30).score(X))


@pytest.mark.statistical
def test_one_model_on_both_devices(X):
    """Answers of other draws differ by their Monte Carlo errors."""
    model = fitted(X)
    x = torch.tensor(model._units.to_model(X[:64]), dtype=torch.float32)
    answers = []
    for device in ("cuda", "cpu"):
        moved = Model.from_arrays(model._model.to_arrays(), torch.device(device))
        parts = list(moved.posterior(x.to(moved.device)))
        answers.append(
            [torch.cat([getattr(p, name) for p in parts]).cpu() for name in ("log_evidence", "std")]
        )
    (one, error), (other, other_error) = answers
    # A standard error of importance weights is an estimate itself.
    assert ((one - other).abs() < Z * (error + other_error) + 1e-3).all()


def test_the_same_seed_is_the_same_fit(X):
    a, b = (fitted(X) for _ in range(2))
    np.testing.assert_array_equal(a.transform(X), b.transform(X))
    assert a.score(X) == b.score(X)


def test_pickles_answer_alike(X):
    model = fitted(X)
    again = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(again.score_samples(X), model.score_samples(X))


@pytest.mark.parametrize("n_bad", [1, 100])
def test_a_divergence_is_seen_after_the_fact(X, n_bad, monkeypatch):
    """By the numbers of several updates, read at once: all after the bad one are taken back."""
    call, count = Recorded.__call__, [0]

    def sometimes_bad(self, *args):
        found = call(self, *args)
        if len(args) == 3:
            count[0] += 1
            if 43 <= count[0] < 43 + n_bad:
                found = found * math.nan
        return found

    monkeypatch.setattr(Recorded, "__call__", sometimes_bad)
    if n_bad == 1:
        with pytest.warns(UserWarning, match="last good state"):
            model = fitted(X, max_iter=60)
        assert model.n_iter_ <= 60
        assert math.isfinite(model.score(X))
    else:
        with (
            pytest.warns(UserWarning, match="last good state"),
            pytest.raises(DivergenceError, match="5 returns"),
        ):
            fitted(X, max_iter=60)
