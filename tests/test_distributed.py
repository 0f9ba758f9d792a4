"""Several processes that fit together: one model, the one that a single process would find."""

import math
import re
from types import SimpleNamespace

import numpy as np
import oracles
import pytest
import ranks
import torch
from scipy import stats
from sklearn.preprocessing import StandardScaler
from statistical import ALPHA

from sklvebm import LinearEnergy, LVEBMEstimator, TiltedEnergy
from sklvebm.distributed import Group
from sklvebm.rows import Rows
from sklvebm.training import Trainer

pytestmark = pytest.mark.skipif(
    not (torch.distributed.is_available() and torch.distributed.is_gloo_available()),
    reason="torch without gloo",
)
ENERGY = TiltedEnergy((16,), (8,), n_frequencies=0)
SMALL = {
    "n_components": 1,
    "energy": ENERGY,
    "pool_size": 128,
    "refit": False,
    "smoothing": 0,
    "marginals": "gaussian",
    "random_state": 0,
}
EXACT = {
    "n_components": 2,
    "energy": LinearEnergy(init="random"),
    "early_stopping": False,
    "max_iter": 1500,
    "learning_rate": 3e-2,
    "n_particles": 8,
}


def parabola(rng, n):
    x = rng.standard_normal(n)
    return np.column_stack([x, x**2 + 0.3 * rng.standard_normal(n)])


def plane_in_noise(rng, n, d=5, k=2):
    """Rows near a plane, standardised, of an odd number: no two shards are equal."""
    loadings = 1.3 * np.linalg.qr(rng.standard_normal((d, k)))[0]
    X = rng.standard_normal((n, k)) @ loadings.T + 0.6 * rng.standard_normal((n, d))
    return StandardScaler().fit_transform(X)


def assert_same_model(a, b):
    np.testing.assert_equal(*(dict(m._model_state, spec=None) for m in (a, b)))
    np.testing.assert_equal(a.history_, b.history_)
    np.testing.assert_equal(a.diagnostics_, b.diagnostics_)
    assert a.step_size_ == b.step_size_
    assert a.log_partition_ == b.log_partition_


@pytest.fixture(scope="module")
def tables(request):
    rng = np.random.default_rng(request.config.option.seed)
    weight = rng.integers(0, 4, 301).astype(float)
    return {
        "bent": parabola(rng, 401),
        "fresh": parabola(rng, 1000),
        "flat": plane_in_noise(rng, 301),
        "weight": weight,
    }


@pytest.fixture(scope="module")
def results(tables, tmp_path_factory):
    """What two processes, started once, made of these jobs: a pair each, by name."""
    bent, flat = {"X": tables["bent"]}, {"X": tables["flat"]}
    params = SMALL | {"max_iter": 40}
    jobs = {
        "early stopping": ranks.Job(params, bent),
        "refit": ranks.Job(params | {"refit": True}, bent),
        "pilots": ranks.Job(params | {"marginals": "auto", "smoothing": "auto"}, bent),
        "smoothing": ranks.Job(params | {"smoothing": 0.3}, bent),
        "exact": ranks.Job(EXACT, flat),
        "weighted": ranks.Job(EXACT, flat | {"sample_weight": tables["weight"]}),
        "no seed": ranks.Job(params | {"random_state": None, "max_iter": 10}, bent),
        "other rows": ranks.Job(params, [bent, {"X": tables["bent"] + 1e-9}]),
        "other parameters": ranks.Job([params, params | {"max_iter": 41}], bent),
        "few rows": ranks.Job(params | {"pool_size": 128}, {"X": np.ones((3, 2))}),
        "stop": ranks.Job(params, bent, "report_on_first_rank(stop_at_third)"),
        "failure": ranks.Job(params, bent, "report_on_first_rank(fail_at_third)"),
    }
    folder = tmp_path_factory.mktemp("ranks") / "run"
    found = ranks.run(folder, list(jobs.values()))
    return dict(zip(jobs, zip(*found, strict=True), strict=True))


class TestTwoProcesses:
    @pytest.mark.parametrize(
        "job", ["early stopping", "refit", "pilots", "smoothing", "exact", "weighted", "no seed"]
    )
    def test_the_ranks_end_with_the_same_model(self, results, tables, job):
        first, second = results[job]
        assert first.error == second.error == ""
        # Each rank trained to these weights itself, before the finished model was sent around.
        assert first.trained == second.trained != ""
        assert_same_model(first.model, second.model)
        table = tables["bent" if first.model.n_features_in_ == 2 else "flat"]
        for method in ("score_samples", "transform"):
            a, b = (getattr(result.model, method)(table) for result in (first, second))
            np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(first.model.sample(4), second.model.sample(4))

    def test_all_stages_were_trained(self, results):
        history = results["early stopping"][0].model.history_
        assert {row["stage"] for row in history} == {"reference", "mixing", "tilt"}
        assert all(np.isfinite(row["log_likelihood"]) for row in history)
        assert history[-1]["log_likelihood"] > history[0]["log_likelihood"]

    @pytest.mark.parametrize("job", ["exact", "weighted"])
    def test_they_find_the_optimum_of_all_rows(self, results, tables, job):
        """The closed form of PPCA, from random weights, as closely as one process does.

        With eight particles a row their noise is far below what is allowed. Half of the rows have
        an optimum of their own, whose likelihood on all rows is lower by about as many half
        parameters as there are rows, n_parameters / 2n.
        """
        X, n, d, k = tables["flat"], len(tables["flat"]), 5, 2
        weight = tables["weight"].astype(int) if job == "weighted" else np.ones(n, int)
        X = X.repeat(weight, axis=0)
        model = results[job][0].model
        # PPCA's noise is the same in all features in standard deviations, not in these units.
        scaler = StandardScaler().fit(X)
        _, _, variance, best = oracles.ppca(scaler.transform(X), k)
        n_parameters = d * k - k * (k - 1) // 2 + d + 1
        gap = best - (model.score(X) + np.log(scaler.scale_).sum())
        assert -1e-5 < gap < 0.1 * n_parameters / (2 * len(X))
        found = np.exp(2 * model._model_state["parameters"]["reference.log_scale"]).item()
        assert abs(found / variance - 1) < 0.5 * math.sqrt(2 / (len(X) * (d - k)))

    def test_a_stop_is_everyones(self, results):
        for result in results["stop"]:
            assert result.error == ""
            assert result.model.n_iter_ == 10
            assert not result.model.converged_

    def test_a_failing_callback_ends_all(self, results):
        first, second = results["failure"]
        assert first.error == "OSError: no space for the log"
        assert "rank 0 ended the fit" in second.error
        assert "no space for the log" in second.error
        assert second.seconds < 30

    @pytest.mark.parametrize(
        ("job", "named"),
        [
            ("other rows", "every rank must fit the same table.*table is"),
            ("other parameters", "max_iter is 40 on rank 0 and 41 on rank 1"),
            ("few rows", "cannot be shared by 2 processes"),
        ],
    )
    def test_errors_are_everyones(self, results, job, named):
        for result in results[job]:
            assert result.error.startswith("ValueError")
            assert re.search(named, result.error)


@pytest.mark.statistical
def test_the_score_is_that_of_one_process(rng, tmp_path):
    """Fits by two processes score on fresh rows as fits by one do, over seeds.

    By ranks, since a log Z that is raised now and then makes the scores' law one with outliers: 15
    fits of each that are all on one side of the others have a probability of 2 / C(30, 15), less
    than ALPHA. And the fits of both gain over a Gaussian, or nothing would be shown.
    """
    X, fresh = parabola(rng, 401), parabola(rng, 500)
    params = SMALL | {"early_stopping": False, "max_iter": 60, "learning_rate": 0.03}
    seeds = rng.integers(2**31, size=15).tolist()
    one = [LVEBMEstimator(**params | {"random_state": s}).fit(X).score(fresh) for s in seeds]
    jobs = [ranks.Job(params | {"random_state": 1 + s}, {"X": X}) for s in seeds]
    two = [result.model.score(fresh) for result in ranks.run(tmp_path / "run", jobs)[0]]
    gaussian = LVEBMEstimator(1, energy="linear", random_state=0).fit(X).score(fresh)
    assert min(np.median(one), np.median(two)) > gaussian
    assert stats.mannwhitneyu(one, two, method="exact").pvalue > ALPHA


def test_a_killed_rank_ends_the_other_and_the_checkpoint_goes_on(rng, tmp_path):
    """Rank 1 dies in the tilt stage; both started again end as if it had not."""
    X = parabola(rng, 201)
    path = tmp_path / "fit.checkpoint"
    params = SMALL | {"max_iter": 30, "checkpoint": path}
    job = ranks.Job(params, {"X": X})
    killed = job._replace(patch="kill_second_rank_at_update(28)")
    first, second = ranks.run(tmp_path / "killed", [killed])
    assert second == []
    assert first[0].error.startswith("LostRankError: rank 0 of 2 lost the others")
    assert f"Start all ranks again to go on from the last checkpoint, {path}." in first[0].error
    assert first[0].seconds < 30
    assert path.exists()
    content = path.read_bytes()
    with pytest.raises(ValueError, match="processes is 2 there and 1 here"):
        LVEBMEstimator(**params).fit(X)
    assert path.read_bytes() == content
    uninterrupted = ranks.Job(params | {"checkpoint": None}, {"X": X})
    for found, expected in ranks.run(tmp_path / "again", [job, uninterrupted]):
        assert found.error == expected.error == ""
        assert found.trained == expected.trained
        assert_same_model(found.model, expected.model)
    assert not path.exists()


# -- shards, in one process ----------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_shards_are_all_rows_once(size):
    rows = torch.arange(23)
    groups = [Group(rank, size) for rank in range(size)]
    shards = [group.shard(rows) for group in groups]
    assert sorted(torch.cat(shards).tolist()) == rows.tolist()
    assert [len(shard) for shard in shards] == [group.share(23) for group in groups]
    assert max(map(len, shards)) - min(map(len, shards)) <= 1


def test_shares_of_the_weight_make_the_mean_of_all(rng):
    """Σ_r share_r · (weighted mean over shard r) is the weighted mean over all rows."""
    weight, values = (torch.tensor(rng.uniform(0.1, 3, 23)) for _ in range(2))
    whole = Rows.weighted(values[:, None], weight)
    total = 0.0
    for rank in range(3):
        trainer = SimpleNamespace(group=Group(rank, 3), options=SimpleNamespace(pool_size=9))
        shard, share = Trainer._share_out(trainer, whole)
        total += share * shard.mean(shard.x[:, 0])
    assert total == pytest.approx(whole.mean(values), rel=1e-12)


def test_ranks_draw_from_streams_of_their_own():
    def draws(rank, size):
        common = torch.Generator().manual_seed(5)
        return torch.rand(100, generator=Group(rank, size).generator(common)).tolist()

    alone = torch.rand(100, generator=torch.Generator().manual_seed(5)).tolist()
    assert draws(0, 1) == alone
    streams = [draws(rank, 3) for rank in range(3)]
    assert streams == [draws(rank, 3) for rank in range(3)]
    assert len({number for stream in [*streams, alone] for number in stream}) == 400


def test_one_process_is_a_group_that_does_nothing():
    group, tensor = Group.found(), torch.ones(3)
    assert (group.rank, group.size) == (0, 1)
    assert group.gather(tensor) is group.shard(tensor) is tensor
    group.sum_([tensor])
    group.agree({"rows": 3})
    assert tensor.tolist() == [1, 1, 1]
    assert group.from_first(lambda: 4) == 4
    with pytest.raises(KeyError):
        group.from_first(lambda: {}["missing"])
