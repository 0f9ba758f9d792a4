"""Training: what the defaults learn, that the paper's algorithm is stable, what stopping keeps."""

import itertools
import operator
import warnings

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal
from sklearn.datasets import make_moons
from sklearn.exceptions import ConvergenceWarning
from small import quick

from sklvebm import LVEBMEstimator, TiltedEnergy, fitting
from sklvebm.energies import LinearEnergy
from sklvebm.reference import MAX_TAIL
from sklvebm.saddle import Saddle
from sklvebm.stage import Run, Stage
from sklvebm.training import Trainer

# Minus the entropy of make_moons(noise=.1), in nats: no density scores above it on average.
CEILING = -1.008


@pytest.fixture
def moons(seed):
    X, _ = make_moons(1500, noise=0.1, random_state=seed)
    return X[:1000], X[1000:]


def gaussian_score(train, test):
    return multivariate_normal(train.mean(0), np.cov(train.T)).logpdf(test).mean()


def test_the_gradient_takes_particles_as_they_are(monkeypatch, rng):
    """θ has placed them, in x above all where p_0 is learned with f; none of that is followed."""
    loss, stages = Saddle._loss, []

    def watched(self, run, *phases):
        for phase in phases:
            assert phase is None or not any(part.requires_grad for part in phase)
        stages.append(run.stage.name)
        return loss(self, run, *phases)

    monkeypatch.setattr(Saddle, "_loss", watched)
    X = rng.standard_normal((100, 3))
    quick(warm_start=True).fit(X).fit(X)
    assert {"reference", "tilt", "joint"} <= set(stages)


def test_defaults_learn_two_moons(moons, seed):
    """In a short fit, a fifth of the way from the Gaussian to the entropy, and never above it."""
    train, test = moons
    model = LVEBMEstimator(2, max_iter=1000, random_state=seed).fit(train)
    scores = model.score_samples(test)
    error = np.hypot(scores.std() / len(test) ** 0.5, model.log_partition_std_)
    start = gaussian_score(train, test)
    assert scores.mean() > start + 0.2 * (CEILING - start)
    assert scores.mean() < CEILING + 6 * error


@pytest.mark.parametrize("energy", ["tilted", "free"])
def test_the_papers_algorithm_is_stable_on_two_moons(moons, seed, energy):
    """Unadjusted, uniform weights, no sweeps: the pool keeps up, and nothing diverges."""
    train, test = moons
    model = LVEBMEstimator(2, dynamics="ula", energy=energy, max_iter=300, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        warnings.filterwarnings("error", "the .* stage diverged", ConvergenceWarning)
        model.fit(train)
    gaps = [row["energy_gap"] for row in model.history_ if row["stage"] == "tilt"]
    # A batch of 128 rows: the gap of two laws that agree is a few tenths.
    assert np.nanmax(np.abs(gaps)) < 5
    assert all(np.isnan(row["acceptance_sweep"]) for row in model.history_)
    assert model.score(test) > gaussian_score(train, test) - 0.1


def test_tails_stay_within_their_bound(seed):
    """Features of κ = 3, with heavier tails than the reference may have."""
    X = np.sinh(3 * np.random.default_rng(seed).standard_normal((600, 3)))
    energy = TiltedEnergy((8,), (8,), n_frequencies=0)
    model = LVEBMEstimator(1, energy=energy, max_iter=200, learning_rate=0.1, random_state=seed)
    parameters = model.fit(X)._model_state["parameters"]
    assert np.exp(parameters["reference.log_tail"]).max() < MAX_TAIL + 1e-6
    assert np.isfinite(model.score(X))


@pytest.mark.parametrize("early_stopping", [True, False])
def test_an_unbounded_tilt_does_not_fool_the_score(seed, early_stopping):
    """Twenty uniform rows, memorised: on fresh rows the score stays below minus the entropy."""
    rng = np.random.default_rng(seed)
    energy = TiltedEnergy((32,), (32, 32), tilt_bound=None)
    model = LVEBMEstimator(
        2, energy=energy, early_stopping=early_stopping, max_iter=800, random_state=seed
    ).fit(3 * rng.uniform(size=(20, 3)))
    scores = model.score_samples(3 * rng.uniform(size=(2000, 3)))
    error = np.hypot(scores.std() / 2000**0.5, model.log_partition_std_)
    assert scores.mean() < -3 * np.log(3) + 6 * error


@pytest.mark.parametrize(
    ("n_components", "settings", "inference", "wanted"),
    [
        (1, {}, "langevin", ["reference", "mixing", "tilt"]),
        (1, {"mixing": False}, "langevin", ["reference", "tilt"]),
        (2, {"mixing": True}, "langevin", ["tilt"]),
        (1, {"noise": "isotropic"}, "langevin", ["start", "reference", "tilt"]),
        (1, {"noise": "isotropic"}, "variational", ["start", "reference", "tilt"]),
        (1, {"noise": "isotropic"}, "map", ["reference", "tilt"]),
        (2, {"noise": "isotropic"}, "langevin", ["tilt"]),
    ],
)
def test_stages_and_history(moons, seed, n_components, settings, inference, wanted):
    """The reference is learned first; as many latents as features leave it where it starts.

    With isotropic noise it starts at the modes of the latents, where they are always at them.
    """
    train, _ = moons
    model = LVEBMEstimator(
        n_components,
        energy=TiltedEnergy(**settings),
        inference=inference,
        max_iter=100,
        random_state=seed,
    ).fit(train)
    stages = [row["stage"] for row in model.history_]
    assert [name for name, _ in itertools.groupby(stages)] == wanted
    assert all(np.isnan(r["energy_gap"]) for r in model.history_ if r["stage"] != "tilt")
    # Particles are accepted or not; modes climb.
    moves = {r["stage"]: r["acceptance_conditional"] for r in model.history_}
    if inference == "langevin":
        assert {name for name, share in moves.items() if np.isnan(share)} == {"start"} & set(wanted)
    # A stage without improvement ends early.
    assert model.history_[-1]["n_iter"] == model.n_iter_ <= 100
    assert {"energy_gap", "acceptance_sweep", "acceptance_conditional"} <= set(model.diagnostics_)


def test_correlation_that_the_latent_leaves_goes_to_the_residuals(rng, seed):
    """A Gaussian of one latent whose noise is correlated: A takes most of what is short without."""
    noise = np.eye(6)
    noise[0, 1] = noise[1, 0] = 0.95
    noise[2, 3] = noise[3, 2] = -0.9
    law = multivariate_normal(np.zeros(6), noise + 9.0)
    X, fresh = (law.rvs(n, random_state=rng) for n in (1000, 4000))
    short = {}
    for mixing in (False, True):
        energy = TiltedEnergy((16,), (16,), mixing=mixing)
        model = LVEBMEstimator(1, energy=energy, max_iter=400, random_state=seed).fit(X)
        short[mixing] = (law.logpdf(fresh) - model.score_samples(fresh)).mean()
    assert short[True] < 0.5 * short[False]


def test_correlation_that_follows_the_latent_goes_to_the_shears(rng, seed):
    """Pairs that move alike at one end of the latent, and against each other at the other.

    p_0 alone: the tilt would learn it too.
    """

    def draw(n):
        z = rng.standard_normal((n, 1))
        e = rng.standard_normal((n, 4))
        pairs = z * e[:, :2] + 0.3 * e[:, 2:]
        X = np.hstack([3 * z + 0.1 * rng.standard_normal((n, 2)), e[:, :2], pairs])
        return X

    X, fresh = draw(2000), draw(2000)
    found = {}
    for rank in (0, "auto"):
        energy = TiltedEnergy((16,), (16,), mixing_rank=rank, tilt_bound=1e-3)
        model = LVEBMEstimator(1, energy=energy, max_iter=1200, random_state=seed).fit(X)
        found[rank] = model.score(fresh)
    # Two pairs, each E ½log(1 + z²/.3²) nats apart when nothing follows z; a quarter and more.
    z = rng.standard_normal(100_000)
    apart = 2 * np.log1p((z / 0.3) ** 2).mean() / 2
    assert found["auto"] - found[0] > 0.25 * apart


def test_the_best_state_is_the_one_kept(moons, seed, monkeypatch):
    """A stage starts from the best state of the one before, not from its last.

    What held-out rows said of it then goes on with it; here they are asked again.
    """
    train, _ = moons
    again, begin = [], Saddle._begin

    def asked(saddle, run):
        begin(saddle, run)
        again.append(saddle.evaluate(run.shown, run.stage.uses_pool).log_likelihood)

    monkeypatch.setattr(Saddle, "_begin", asked)
    model = LVEBMEstimator(1, max_iter=300, learning_rate=0.05, random_state=seed).fit(train)
    found = [
        [r["log_likelihood"] for r in rows]
        for _, rows in itertools.groupby(model.history_, key=operator.itemgetter("stage"))
    ]
    for (before, after), value in zip(itertools.pairwise(found), again[1:], strict=True):
        assert after[0] == max(before)
        # The same state, evaluated twice with chains that moved on in between.
        assert value == pytest.approx(after[0], abs=0.25)


@pytest.mark.parametrize(
    ("params", "wanted"),
    [({}, [4, 4, 2]), ({"n_steps": 3}, [3, 3, 3]), ({"dynamics": "ula"}, [10, 10, 10])],
)
def test_latents_take_fewer_steps_beside_a_pool(moons, seed, monkeypatch, params, wanted):
    """Where nobody says how many, and a Metropolis test keeps them exact."""
    train, _ = moons
    taken, updates = [], Saddle._updates

    def noted(saddle, run):
        taken.append(saddle.conditional.n_steps)
        updates(saddle, run)

    monkeypatch.setattr(Saddle, "_updates", noted)
    LVEBMEstimator(1, max_iter=30, random_state=seed, **params).fit(train)
    assert taken == wanted


def test_the_start_ends_where_its_modes_lead(generator):
    """It has one length, and its last state goes on, whatever its likelihood."""
    energy = LinearEnergy().build(2, 1, generator=generator)
    stage = Stage("start", list(energy.parameters()), 10, 1.0, False, at_modes=True)
    run = Run(stage, energy, learning_rate=0.1, weight_decay=0.0, tol=0.01, patience=1)
    run.keeper.note(0.0, run.step)
    moved = torch.ones(2)
    run.average.reference.loc.data.copy_(moved)
    for _ in range(5):
        run.keeper.note(-1.0, run.step)
    assert not run.is_over
    assert run.is_settled
    torch.testing.assert_close(run.state["reference.loc"], moved)


def test_early_stopping_off_trains_on_every_row_to_the_end(moons, seed):
    train, _ = moons
    model = LVEBMEstimator(2, max_iter=60, early_stopping=False, random_state=seed).fit(train)
    assert model.n_iter_ == 60
    assert model.converged_
    assert all("log_likelihood" not in row for row in model.history_)


class TestRefit:
    @staticmethod
    def runs(monkeypatch, model, X):
        """Of each stage that ``model`` goes through: its name, rows, updates, those of the kept."""
        found, updates = [], Saddle._updates

        def noted(saddle, run):
            updates(saddle, run)
            found.append((run.stage.name, len(saddle.rows), run.step, run.kept))

        with monkeypatch.context() as patch:
            patch.setattr(Saddle, "_updates", noted)
            model.fit(X)
        return found

    @pytest.mark.parametrize("params", [{}, {"energy": TiltedEnergy(noise="isotropic")}])
    def test_all_rows_for_as_long_as_was_best(self, moons, seed, monkeypatch, params):
        train, _ = moons
        model = LVEBMEstimator(1, max_iter=200, refit=True, random_state=seed, **params)
        runs = self.runs(monkeypatch, model, train)
        kept = {name: best for name, n, _, best in runs if n < len(train)}
        again = {name: step for name, n, step, _ in runs if n == len(train)}
        assert again == {name: best for name, best in kept.items() if best}
        assert model.n_iter_ == sum(step for *_, step, _ in runs)
        judged = ["log_likelihood" in row for row in model.history_]
        assert judged == sorted(judged, reverse=True)
        assert len(set(judged)) == 2

    @pytest.mark.parametrize("params", [{"early_stopping": False}, {"energy": "linear"}])
    def test_where_no_row_was_held_out_there_is_nothing_to_do(self, moons, seed, params):
        train, fresh = moons
        scores = [
            LVEBMEstimator(1, max_iter=30, refit=refit, random_state=seed, **params)
            .fit(train)
            .score_samples(fresh)
            for refit in (False, True)
        ]
        np.testing.assert_array_equal(*scores)

    @pytest.mark.parametrize(("n", "small"), [(999, True), (1000, False)])
    def test_auto_is_for_small_tables(self, moons, monkeypatch, n, small):
        train, _ = moons
        stops_early = []

        def noted(x, weight, spec, options, **parts):
            stops_early.append(options.early_stopping)
            return Trainer(x, weight, spec, options, **parts)

        monkeypatch.setattr(fitting, "Trainer", noted)
        LVEBMEstimator(1, max_iter=4, pool_size=64, random_state=0).fit(train[:n])
        assert stops_early == ([True, False] if small else [True])

    def test_rates_are_those_of_the_whole_stage(self, generator):
        """A stage that ends early ends before its rate has fallen."""
        energy = LinearEnergy().build(2, 1, generator=generator)
        whole = Stage("any", list(energy.parameters()), 10, 1.0, False)
        runs = [
            Run(stage, energy, learning_rate=0.1, weight_decay=0.0, tol=0.01, patience=1)
            for stage in (whole, whole._replace(stop=4))
        ]
        for run in runs:
            run.step = 4
        assert [run.is_over for run in runs] == [False, True]
        assert runs[0].rate == runs[1].rate > 0.05


@pytest.mark.parametrize(
    ("patience", "uses_pool", "expected"), [(12, True, 12), (12, False, 3), (1, False, 1)]
)
def test_an_exact_likelihood_is_given_up_sooner(generator, patience, uses_pool, expected):
    """A stage without a pool stops after a quarter as many evaluations without improvement."""
    energy = LinearEnergy().build(2, 1, generator=generator)
    stage = Stage("any", list(energy.parameters()), 10, 1.0, uses_pool)
    run = Run(stage, energy, learning_rate=0.1, weight_decay=0.0, tol=0.01, patience=patience)
    for _ in range(expected):
        run.keeper.note(0.0, run.step)
    assert not run.is_over
    run.keeper.note(0.0, run.step)
    assert run.is_over
