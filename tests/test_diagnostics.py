"""What a person is told: mixing of the chains, complaints, and the report of a score."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.datasets import load_iris
from statistical import assert_at_most
from test_exact_answers import reseeded

from sklvebm import LVEBMEstimator
from sklvebm.diagnostics import complaints, conditional_mixing, gap_statistics, joint_mixing
from sklvebm.report import score_report

HEALTHY = {
    "rhat_joint": 1.001,
    "ess_joint": 4000.0,
    "acceptance_conditional": 0.6,
    "acceptance_joint": 0.6,
    "energy_gap_mean": -0.5,
}


def test_chains_of_one_law_mix(rng):
    found = joint_mixing(rng.standard_normal((800, 50)), 200)
    assert found["rhat_joint"] < 1.01
    # 40,000 independent draws, of which 20,000 are looked at.
    assert found["ess_joint"] == pytest.approx(40_000, rel=0.3)


def test_chains_that_started_apart_and_stayed_there_do_not(rng):
    trace = rng.standard_normal((800, 50))
    trace[-200:] += 1.0
    assert joint_mixing(trace, 200)["rhat_joint"] > 1.1
    # They are told from the others by where they started, not by where they stand.
    assert joint_mixing(trace[::-1], 200)["rhat_joint"] > 1.1
    assert joint_mixing(np.random.default_rng(0).permutation(trace), 200)["rhat_joint"] < 1.05


def test_sticky_chains_are_worth_less(rng):
    trace = np.repeat(rng.standard_normal((400, 5)), 10, axis=1)
    assert joint_mixing(trace, 100)["ess_joint"] < 0.3 * trace.size


def test_a_constant_tilt_mixes():
    assert joint_mixing(np.zeros((10, 5)), 2)["rhat_joint"] == 1.0


def test_rows_are_judged_by_their_worst_component(rng):
    draws = rng.standard_normal((6, 8, 100, 3))
    healthy = conditional_mixing(draws)
    assert healthy["rhat_conditional"] < 1.05
    draws[..., 1] += 3 * rng.standard_normal((6, 8, 1))
    stuck = conditional_mixing(draws)
    assert stuck["rhat_conditional"] > 1.5
    assert stuck["ess_conditional"] < 0.2 * healthy["ess_conditional"]


def test_gap_statistics_are_of_the_second_half(rng):
    late = 2.0 + 0.1 * rng.standard_normal(400)
    found = gap_statistics(np.r_[np.full(400, 50.0), late])
    assert found["energy_gap_mean"] == pytest.approx(late.mean())
    drift = gap_statistics(np.linspace(0, 1, 400))
    assert drift["energy_gap_autocorrelation"] > 0.9
    assert math.isnan(gap_statistics(np.array([]))["energy_gap_mean"])


@pytest.mark.parametrize(
    ("name", "value", "fixed", "advice"),
    [
        ("rhat_joint", 1.02, False, "does not reach every mode"),
        ("ess_joint", 100.0, False, "increase pool_size"),
        ("acceptance_joint", 0.01, False, "Decrease step_size"),
        ("acceptance_conditional", 0.01, False, "Decrease step_size"),
        ("acceptance_conditional", 0.999, True, "Increase step_size"),
        ("energy_gap_mean", -9.0, False, "does not keep up"),
    ],
)
def test_each_complaint_says_what_to_change(name, value, fixed, advice):
    (found,) = complaints({**HEALTHY, name: value}, fixed_step_size=fixed)
    assert advice in found


def test_healthy_chains_earn_no_complaint():
    assert complaints(HEALTHY, fixed_step_size=False) == []
    # What was not measured, a missing flow or a stage that was not run, is no fault.
    assert complaints({"acceptance_joint": math.nan}, fixed_step_size=True) == []


@pytest.fixture(scope="module")
def fitted():
    X = load_iris().data
    model = LVEBMEstimator(2, max_iter=100, pool_size=512, refit=False, random_state=0)
    return model.fit(X), X


def test_the_report_is_the_score_and_its_parts(fitted):
    model, X = fitted
    report = model.score_report(X, n_worst=3)
    scores, std = model.score_samples(X, return_std=True)
    assert report.mean == model.score(X)
    np.testing.assert_array_equal(report.log_prob, scores)
    np.testing.assert_array_equal(report.row_std, std)
    assert (std > 0).all()
    parts = report.std_sampling, report.std_rows, report.std_partition
    assert report.std_error == pytest.approx(np.linalg.norm(parts))
    assert report.std_sampling == pytest.approx(scores.std(ddof=1) / len(X) ** 0.5)
    assert report.std_partition == model.log_partition_std_
    assert list(report.worst_rows) == list(np.argsort(scores)[:3])
    forward, reverse = model.log_partition_bounds_
    shifts = np.array(report.bounds) - report.mean
    np.testing.assert_allclose(shifts, model.log_partition_ - np.array([reverse, forward]))
    assert f"{report.mean:.3f} ± {report.std_error:.3f}" in str(report)


def test_the_report_of_one_row_does_not_pretend_to_know_the_spread(fitted):
    model, X = fitted
    assert math.isnan(model.score_report(X[:1]).std_sampling)


@pytest.mark.parametrize(("n", "line"), [(0, None), (1, "1 row whose"), (3, "3 rows whose")])
def test_the_report_counts_rows_that_are_not_known(n, line):
    row_std = np.r_[np.full(7, 0.1), np.full(n, 0.9)]
    log_prob = -np.arange(len(row_std), dtype=float)
    if n > 1:
        # All of its draws underflow.
        row_std[-1], log_prob[-1] = 0.0, -3.4e38
    report = score_report(
        log_prob,
        row_std,
        std_rows=0.1,
        log_partition=0.0,
        std_partition=0.01,
        bounds=(0.0, 0.0),
        raised_by={},
        n_worst=2,
        diagnostics={},
    )
    found = [text for text in str(report).splitlines() if "uncertain" in text]
    assert len(found) == (line is not None)
    assert all(line in text for text in found)


@pytest.mark.statistical
def test_the_rows_error_covers_what_reseeding_changes(fitted, rng):
    """Sobol points make the true error smaller than the reported one, never larger."""
    model, X = fitted
    reports = [m.score_report(X) for m in reseeded(model, rng.integers(2**31, size=32))]
    values = np.array([report.mean for report in reports])
    reported = np.array([report.std_rows for report in reports])
    assert_at_most((values - values.mean()) ** 2 * 32 / 31, np.mean(reported**2))
    by_row = np.array([report.log_prob for report in reports])
    errors = np.array([report.row_std for report in reports])
    assert_at_most((by_row - by_row.mean(0)) ** 2 * 32 / 31, np.mean(errors**2, 0))


def test_what_fit_leaves_behind(fitted):
    model, _ = fitted
    wanted = {"rhat_joint", "ess_joint", "rhat_conditional", "ess_conditional"}
    wanted |= {"energy_gap_mean", "energy_gap_autocorrelation", "acceptance_sweep"}
    assert type(model.diagnostics_) is dict
    assert wanted <= set(model.diagnostics_)
    assert all(type(value) is float for value in model.diagnostics_.values())
