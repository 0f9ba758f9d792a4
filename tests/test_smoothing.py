"""Windows about the rows: what they draw, what they leave alone, and what a fit makes of them."""

from __future__ import annotations

import numpy as np
import oracles
import pytest
import torch
from sklearn.datasets import load_breast_cancer, load_wine
from small import interrupted, quick
from statistical import assert_close_to

from sklvebm import LinearEnergy, TiltedEnergy
from sklvebm.pilot import Pilots, _Judged
from sklvebm.rows import Rows
from sklvebm.saddle import DivergenceError
from sklvebm.smoothing import ParzenWindows

N_NEIGHBORS = 10


def rows(x, weight=None):
    x = torch.as_tensor(x, dtype=torch.float32)
    return Rows.weighted(x, torch.ones(len(x)) if weight is None else torch.as_tensor(weight))


def local_covariance(x, weight, i):
    """S_i, by sorting all distances."""
    away = np.delete(x - x[i], i, axis=0)
    weight = np.delete(weight, i)
    nearest = np.argsort((away**2).sum(1))[:N_NEIGHBORS]
    share = weight[nearest] / weight[nearest].sum()
    return np.einsum("j,ja,jb->ab", share, away[nearest], away[nearest])


def moments(draws):
    """Of each replicate ``(R, n, d)``: its mean and its second moments, in a row."""
    second = np.einsum("rna,rnb->rab", draws, draws) / draws.shape[1]
    return np.concatenate([draws.mean(1), second.reshape(len(draws), -1)], axis=1)


def test_draws_have_the_covariance_of_the_neighbours(rng, generator):
    x, weight = rng.standard_normal((40, 3)), rng.integers(1, 5, 40).astype(float)
    windows, i = ParzenWindows.of(rows(x, weight), 0.5), 7
    draws = windows.draw(torch.full((64 * 500,), i), generator).numpy().astype(float) - x[i]
    exact = np.append(np.zeros(3), 0.25 * local_covariance(x, weight, i))
    assert_close_to(moments(draws.reshape(64, 500, 3)), exact, slack=1e-6)


def test_a_thin_sheet_stays_thin(rng, generator):
    x = rng.standard_normal((50, 1)) @ np.array([[3.0, 4.0]])
    windows = ParzenWindows.of(rows(x), 1.0)
    drawn = windows.draw(torch.arange(50), generator).numpy()
    assert np.abs(drawn @ [0.8, -0.6]).max() < 1e-5
    assert np.abs(drawn - x).max() > 0.01


def test_what_is_missing_has_no_width(rng, generator):
    """A missing entry stays so, and a feature that no neighbour shows stays as it is."""
    x = rng.standard_normal((30, 3))
    x[:10, 0] = np.nan
    x[1:, 2] = np.nan
    windows = ParzenWindows.of(rows(x), 1.0)
    drawn = windows.draw(torch.arange(30), generator).numpy()
    np.testing.assert_array_equal(np.isnan(drawn), np.isnan(x))
    assert drawn[0, 2] == np.float32(x[0, 2])
    assert (drawn[:, 1] != x[:, 1].astype(np.float32)).all()


@pytest.mark.parametrize("n", [1, 2, 5])
def test_few_rows(rng, generator, n):
    """There are no more neighbours than other rows, and one row alone has no width."""
    x = rng.standard_normal((n, 2))
    drawn = ParzenWindows.of(rows(x), 1.0).draw(torch.arange(n), generator).numpy()
    moved = (drawn != x.astype(np.float32)).any(1)
    assert moved.all() if n > 1 else not moved.any()


def test_another_process_may_have_the_neighbours(rng):
    x = rng.standard_normal((40, 3))
    whole = ParzenWindows.of(rows(x), 0.5)
    part = whole.sharded(lambda tensor: tensor[1::2].clone())
    ours, theirs = (torch.Generator().manual_seed(0) for _ in range(2))
    torch.testing.assert_close(
        part.draw(torch.arange(20), ours), whole.draw(torch.arange(1, 40, 2), theirs)
    )


def test_a_fit_learns_the_smoothed_rows(rng, seed):
    """A linear model is then PPCA of the rows' covariance and the mean of their windows'.

    Training has noise; without the windows it would be off by all that lies between the two.
    """
    n, width = 400, 1.0
    x = rng.standard_normal((n, 1)) @ rng.standard_normal((1, 4)) + rng.standard_normal((n, 4))
    x = (x - x.mean(0)) / x.std(0)
    raw = np.cov(x.T, bias=True)
    smooth = raw + width**2 * np.mean([local_covariance(x, np.ones(n), i) for i in range(n)], 0)
    model = quick(
        LinearEnergy(),
        n_components=1,
        max_iter=600,
        n_particles=8,
        smoothing=width,
        early_stopping=False,
        random_state=seed,
    ).fit(x)
    drawn = model.sample(200_000, random_state=seed)

    def ppca_covariance(covariance):
        values, vectors = np.linalg.eigh(covariance)
        noise = values[:-1].mean()
        return noise * np.eye(4) + (values[-1] - noise) * np.outer(vectors[:, -1], vectors[:, -1])

    learned, zero = np.cov(drawn.T), np.zeros(4)
    off, apart = (
        oracles.gaussian_kl(zero, ppca_covariance(smooth), zero, other)
        for other in (learned, ppca_covariance(raw))
    )
    assert off < apart / 20


def gridded(rng):
    """Corners of a cube."""
    return np.sign(rng.standard_normal((300, 5))) + 0.02 * rng.standard_normal((300, 5))


def automatic(**params):
    return quick(**{"smoothing": "auto"} | params)


def pilots_that_find(monkeypatch, means):
    """Held-out means by width; returns the list of those that are asked for."""
    asked = []

    def tried(self, x, n_updates, smoothing):
        asked.append(smoothing)
        mean = means[smoothing]
        if isinstance(mean, Exception):
            raise mean
        return None if mean is None else Judged(mean)

    monkeypatch.setattr(Pilots, "_tried", tried)
    return asked


class Judged(float):
    learned_by_heart = True

    @property
    def mean_peak(self):
        return float(self)


class TestAuto:
    def test_rows_that_would_be_learned_by_heart(self):
        table = load_wine().data
        X, fresh = table[::2], table[1::2]
        params = {"energy": TiltedEnergy((32,), (8,)), "max_iter": 200, "marginals": "gaussian"}
        auto, none = automatic(**params).fit(X), quick(**params).fit(X)
        assert auto.smoothing_ > 0
        assert auto.score(fresh) > none.score(fresh)
        assert automatic(**params, random_state=5).fit(X).smoothing_ == auto.smoothing_
        given = quick(**params, smoothing=auto.smoothing_).fit(X)
        np.testing.assert_array_equal(given.score_samples(fresh), auto.score_samples(fresh))

    def test_rows_that_kernels_blur(self):
        """Area and radius, for instance, lie on a thin curve."""
        params = {"energy": TiltedEnergy((32,), (8,)), "max_iter": 200, "marginals": "gaussian"}
        X = load_breast_cancer().data[::2]
        auto, none = automatic(**params).fit(X), quick(**params).fit(X)
        assert auto.smoothing_ == 0
        np.testing.assert_array_equal(none.score_samples(X), auto.score_samples(X))

    @pytest.mark.parametrize(
        ("means", "taken"),
        [
            ({0.0: 0.0, 0.2: -0.1}, 0.0),
            ({0.0: 0.0, 0.2: 0.1, 0.4: 0.1}, 0.2),
            # A hundredth of a nat is no gain.
            ({0.0: 0.0, 0.2: 0.009}, 0.0),
            ({0.0: 0.0, 0.2: 0.1, 0.4: 0.3}, 0.4),
            # Pilots that fail, and tables too small to hold rows out of.
            ({0.0: 0.0, 0.2: DivergenceError("no")}, 0.0),
            ({0.0: DivergenceError("no")}, 0.0),
            ({0.0: None}, 0.0),
        ],
    )
    def test_widths_are_tried_while_held_out_rows_gain(self, rng, monkeypatch, means, taken):
        asked = pilots_that_find(monkeypatch, means)
        model = automatic(max_iter=3, marginals="gaussian").fit(rng.standard_normal((40, 5)))
        assert model.smoothing_ == taken
        assert asked == list(means)

    def test_rows_that_are_not_learned_by_heart(self, rng, monkeypatch):
        """What kernels would do for a short fit says nothing of a long one."""
        asked = pilots_that_find(monkeypatch, {0.0: 0.0, 0.2: 1.0})
        monkeypatch.setattr(Judged, "learned_by_heart", False)
        model = automatic(max_iter=3, marginals="gaussian").fit(rng.standard_normal((40, 5)))
        assert model.smoothing_ == 0.0
        assert asked == [0.0]

    @pytest.mark.parametrize(
        ("lost", "by_heart"),
        [
            (np.zeros(50), False),
            (np.linspace(-0.5, 1.5, 50), True),
            # One row that is suddenly impossible, while others gain; and the reverse.
            (np.r_[100.0, np.full(49, -0.1)], False),
            (np.r_[-100.0, np.full(49, 0.1)], True),
        ],
    )
    def test_rows_are_learned_by_heart_where_most_lose(self, lost, by_heart):
        nothing = np.zeros(50)
        judged = _Judged(np.zeros((50, 2)), np.ones(50), nothing, nothing, nothing - lost)
        assert judged.learned_by_heart == by_heart

    @pytest.mark.parametrize(("load", "by_heart"), [(load_wine, True), (load_breast_cancer, False)])
    def test_a_pilot_says_what_is_lost_since_its_best(self, monkeypatch, load, by_heart):
        found, tried = {}, Pilots._tried

        def kept(self, x, n_updates, smoothing):
            found[smoothing] = tried(self, x, n_updates, smoothing)
            return found[smoothing]

        monkeypatch.setattr(Pilots, "_tried", kept)
        energy = TiltedEnergy((32,), (8,))
        model = automatic(energy=energy, max_iter=200, marginals="gaussian").fit(load().data[::2])
        lost = found[0.0].peak - found[0.0].end
        assert lost.any() == by_heart
        assert (model.smoothing_ > 0) == (len(found) > 1) == by_heart

    @pytest.mark.parametrize(
        ("n", "params", "taken"),
        [
            (1000, {}, 0.0),
            (40, {"energy": "linear"}, 0.0),
            (40, {"energy": "free"}, 0.0),
            # The tilt alone is learned.
            (40, {"n_components": 3}, 0.0),
            (40, {"smoothing": 0.3}, 0.3),
            (40, {"smoothing": 0}, 0.0),
        ],
    )
    def test_where_nothing_is_asked(self, rng, monkeypatch, n, params, taken):
        monkeypatch.setattr(Pilots, "_tried", None)
        model = automatic(**{"max_iter": 3, "marginals": "gaussian"} | params)
        assert model.fit(rng.standard_normal((n, 3))).smoothing_ == taken

    @pytest.mark.parametrize("maps", [True, False])
    def test_pilots_are_shared_with_the_marginals(self, rng, monkeypatch, capsys, maps):
        calls, tried = [], Pilots._tried

        def counted(self, x, n_updates, smoothing):
            calls.append((n_updates, smoothing))
            return tried(self, x, n_updates, smoothing)

        monkeypatch.setattr(Pilots, "_tried", counted)
        prefer = Pilots.prefer_maps
        monkeypatch.setattr(Pilots, "prefer_maps", lambda pilots: (prefer(pilots), maps)[1])
        monkeypatch.setattr(_Judged, "learned_by_heart", True)
        # Three quarters of the updates are the reference's.
        model = automatic(max_iter=80, verbose=1, marginals="auto").fit(gridded(rng))
        assert calls[:4] == [(15, 0.0)] * 2 + [(60, 0.0)] * 2
        # Widths are judged under the maps of the fit, which rows that judge maps have shaped.
        assert calls[4 : 6 if maps else 5] == ([(60, 0.0)] if maps else []) + [(60, 0.2)]
        assert model.marginals_ == ("mixture" if maps else "gaussian")
        told = capsys.readouterr().out
        assert f"marginals: {model.marginals_}" in told
        assert f"smoothing: {model.smoothing_:g}" in told

    def test_a_fit_that_goes_on_keeps_its_width(self, rng, monkeypatch):
        X = rng.standard_normal((40, 5))
        pilots_that_find(monkeypatch, {0.0: 0.0, 0.2: 1.0, 0.4: 0.5})
        model = automatic(max_iter=3, marginals="gaussian", warm_start=True).fit(X)
        monkeypatch.setattr(Pilots, "smoothing", None)
        assert model.fit(X).smoothing_ == 0.2
        assert model.partial_fit(X[:10]).smoothing_ == 0.2
        assert model.set_params(smoothing=0.5).fit(X).smoothing_ == 0.5
        # The first batch is not asked.
        assert automatic(max_iter=3).partial_fit(X).smoothing_ == 0.0

    def test_an_interrupted_fit_does_not_ask_again(self, rng, monkeypatch, tmp_path):
        X = rng.standard_normal((60, 5))
        pilots_that_find(monkeypatch, {0.0: 0.0, 0.2: 1.0, 0.4: 0.5})
        params = {"max_iter": 40, "marginals": "gaussian"}
        expected = automatic(**params).fit(X)
        path = tmp_path / "fit"
        model = automatic(**params, checkpoint=path)
        with interrupted(monkeypatch, "tilt", 8):
            model.fit(X)
        assert path.exists()
        monkeypatch.setattr(Pilots, "smoothing", None)
        assert model.fit(X).smoothing_ == expected.smoothing_ == 0.2
        np.testing.assert_array_equal(model.score_samples(X), expected.score_samples(X))
