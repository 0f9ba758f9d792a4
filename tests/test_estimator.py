"""The estimator's contract: scikit-learn's checks, answers, units, dtypes, parameters."""

import pickle
import warnings

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import load_breast_cancer, load_iris, load_wine
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils import get_tags
from sklearn.utils.estimator_checks import parametrize_with_checks
from small import ENERGIES, quick

from sklvebm import CustomEnergy, FreeEnergy, LinearEnergy, LVEBMEstimator, TiltedEnergy
from sklvebm._parameters import default_max_iter, default_weight_decay
from sklvebm.particles import JointPool


@pytest.fixture(scope="module")
def X():
    return load_iris().data


@pytest.fixture(scope="module", params=list(ENERGIES))
def fitted(request, X):
    return quick(energy=request.param, n_components=2).fit(X)


@parametrize_with_checks(
    [
        LVEBMEstimator(energy=ENERGIES["tilted"], max_iter=20, pool_size=256),
        LVEBMEstimator(energy="linear"),
    ]
)
@pytest.mark.slow
def test_scikit_learn_checks(estimator, check):
    check(estimator)


def test_it_is_a_density_to_scikit_learn():
    assert get_tags(LVEBMEstimator()).estimator_type == "density_estimator"


class TestAnswers:
    def test_shapes(self, fitted, X):
        Z = fitted.transform(X)
        assert Z.shape == (150, 2)
        assert fitted.inverse_transform(Z).shape == X.shape
        assert fitted.sample(7).shape == (7, 4)
        assert fitted.sample_posterior(X, 3).shape == (3, 150, 2)
        assert fitted.score_samples(X).shape == (150,)
        assert fitted.score_samples(X).dtype == np.float64
        assert isinstance(fitted.score(X), float)
        assert fitted.joint_energy(X, Z).shape == (150,)

    def test_score_is_minus_free_energy_minus_log_partition(self, fitted, X):
        expected = -fitted.free_energy(X) - fitted.log_partition_
        np.testing.assert_array_equal(fitted.score_samples(X), expected)
        assert fitted.score(X) == fitted.score_samples(X).mean()

    def test_fit_transform_agrees_with_transform(self, fitted, X):
        again = clone(fitted)
        np.testing.assert_array_equal(again.fit_transform(X), fitted.transform(X))

    def test_rows_do_not_depend_on_their_batch(self, fitted, X):
        order = np.random.default_rng(0).permutation(len(X))
        for method in ("transform", "score_samples"):
            answer = getattr(fitted, method)
            whole = answer(X)
            np.testing.assert_allclose(answer(X[order]), whole[order], atol=1e-7)
            alone = np.concatenate([answer(X[i : i + 1]) for i in range(5)])
            np.testing.assert_allclose(alone, whole[:5], atol=1e-7)

    def test_more_rows_than_a_chunk(self, fitted, X):
        long = np.concatenate([X, X + 0.01])
        np.testing.assert_allclose(
            fitted.score_samples(long)[:150], fitted.score_samples(X), atol=1e-7
        )

    def test_density_in_the_users_units(self, X):
        """A change of units y = cx takes Σ log c from the log-density, and nothing else."""
        scale = np.array([1e-8, 1e8, 3.0, 0.1])
        a = quick(n_components=2).fit(X)
        b = quick(n_components=2).fit(X * scale)
        expected = a.score_samples(X) - np.log(scale).sum()
        # Standardised rows differ in their last float64 digits, which float32 training can see.
        np.testing.assert_allclose(b.score_samples(X * scale), expected, atol=0.05)

    def test_inverse_transform_reconstructs(self, fitted, X):
        error = np.square(fitted.inverse_transform(fitted.transform(X)) - X).sum(0)
        assert (error < np.square(X - X.mean(0)).sum(0)).all()

    def test_linear_reconstruction_is_that_of_pca(self, X):
        """Tipping and Bishop (1999), section 3.3: the least-squares one, not the shrunken W t."""
        model = quick(energy="linear", n_components=2).fit(X)
        scaled = StandardScaler().fit(X)
        rows = scaled.transform(X)
        pca = PCA(2).fit(rows)
        expected = scaled.inverse_transform(pca.inverse_transform(pca.transform(rows)))
        found = model.inverse_transform(model.transform(X))
        np.testing.assert_allclose(found, expected, atol=1e-4)
        assert np.square(found - X).sum() < np.square(model.decode(model.transform(X)) - X).sum()

    def test_a_single_feature_is_reconstructed(self, rng):
        X = rng.standard_normal((100, 1))
        model = quick().fit(X)
        assert model.inverse_transform(model.transform(X)).shape == X.shape

    def test_isotropic_noise_has_nothing_mixed(self, X):
        energy = TiltedEnergy(mixing=True, noise="isotropic")
        with pytest.raises(ValueError, match="flexible"):
            quick(energy=energy).fit(X)

    @pytest.mark.slow
    def test_reconstruction_undoes_the_shrinkage(self, rng):
        """Nearly round data: posterior means hardly vary, and E[x | z = mean] says next to nothing.

        Half of the variance can be had back from one coordinate of two.
        """
        X = rng.multivariate_normal(np.zeros(2), [[1.0, 0.1], [0.1, 1.0]], 400)
        model = quick(n_components=1, max_iter=40).fit(X)
        Z = model.transform(X)
        shrunken = np.square(model.decode(Z) - X).mean()
        assert np.square(model.inverse_transform(Z) - X).mean() < 0.7 * shrunken

    @pytest.mark.slow
    def test_isotropic_noise_gives_latents_that_reconstruct(self, seed):
        """Nearer than PCA's do, since g is curved, and than the default's, which noise explains."""
        X = StandardScaler().fit_transform(load_breast_cancer().data[:, :10])

        def error(noise):
            energy = TiltedEnergy((32,), (8,), noise=noise)
            model = quick(
                n_components=3, energy=energy, marginals="gaussian", max_iter=400, random_state=seed
            ).fit(X)
            return np.square(model.inverse_transform(model.transform(X)) - X).mean()

        pca = PCA(3).fit(X)
        of_pca = np.square(pca.inverse_transform(pca.transform(X)) - X).mean()
        assert error("isotropic") < min(of_pca, error("flexible"))

    def test_samples_are_fresh_and_seeded(self, fitted):
        assert not np.array_equal(fitted.sample(5), fitted.sample(5))
        np.testing.assert_array_equal(
            fitted.sample(5, random_state=3), fitted.sample(5, random_state=3)
        )

    def test_sample_stream_is_fixed_by_random_state(self, X):
        a, b = (quick(n_components=2).fit(X) for _ in range(2))
        for _ in range(2):
            np.testing.assert_array_equal(a.sample(4), b.sample(4))

    def test_wrong_latents(self, fitted, X):
        with pytest.raises(ValueError, match="components"):
            fitted.inverse_transform(np.zeros((3, 5)))
        with pytest.raises(ValueError, match="paired"):
            fitted.joint_energy(X, np.zeros((3, 2)))

    def test_float32_stays_float32(self, X):
        model = quick(n_components=2).fit(X.astype(np.float32))
        assert model.transform(X.astype(np.float32)).dtype == np.float32
        assert model.transform(X).dtype == np.float64
        single, double = (
            model.score_samples(rows, return_std=True) for rows in (X.astype(np.float32), X)
        )
        # Rounding moves the proposals a little: as if the draws were others.
        assert (np.abs(single[0] - double[0]) < 6 * np.hypot(single[1], double[1]) + 1e-3).all()


class TestParameters:
    def test_nested_parameters_replace_a_name_by_its_specification(self):
        model = LVEBMEstimator().set_params(energy__hidden_layer_sizes=(16,))
        assert isinstance(model.energy, TiltedEnergy)
        assert model.energy.hidden_layer_sizes == (16,)
        assert clone(model).energy.hidden_layer_sizes == (16,)
        model = LVEBMEstimator().set_params(energy="free", energy__hidden_layer_sizes=(8,))
        assert isinstance(model.energy, FreeEnergy)

    def test_hidden_layers_reach_the_network(self, X):
        model = quick(energy=TiltedEnergy(hidden_layer_sizes=(7, 5))).fit(X)
        net = model._model.energy.reference.net
        assert [layer.out_features for layer in net.first] == [7]
        assert [layer.out_features for layer in net.rest] == [5, 8]

    @pytest.mark.parametrize("inference", ["langevin", "variational", "map"])
    @pytest.mark.parametrize("dynamics", ["mala", "ula"])
    @pytest.mark.slow
    def test_every_flow_trains(self, X, inference, dynamics):
        model = quick(inference=inference, dynamics=dynamics, n_components=2).fit(X)
        assert np.isfinite(model.score(X))
        assert np.isfinite(model.transform(X)).all()

    @pytest.mark.parametrize(
        ("parameter", "value"),
        [
            ("n_components", 0),
            ("energy", "nonsense"),
            ("energy", TiltedEnergy(hidden_layer_sizes=())),
            ("energy", TiltedEnergy(min_scale=-1)),
            ("energy", TiltedEnergy(n_frequencies=-1)),
            ("energy", TiltedEnergy(mixing="yes")),
            ("energy", TiltedEnergy(mixing_rank=-1)),
            ("energy", TiltedEnergy(mixing_rank=True)),
            ("energy", TiltedEnergy(mixing=False, mixing_rank=4)),
            ("energy", TiltedEnergy(tilt_bound=0)),
            ("energy", TiltedEnergy(noise="nonsense")),
            ("energy", TiltedEnergy(noise=None)),
            ("energy", LinearEnergy(init="nonsense")),
            ("inference", "nonsense"),
            ("dynamics", "nonsense"),
            ("max_iter", 0),
            ("batch_size", 0),
            ("n_particles", 0),
            ("n_steps", 0),
            ("pool_size", 1),
            ("step_size", 0.0),
            ("step_size", "nonsense"),
            ("learning_rate", -1.0),
            ("weight_decay", -1.0),
            ("weight_decay", "nonsense"),
            ("smoothing", -0.1),
            ("tol", -1.0),
            ("n_iter_no_change", 0),
            ("validation_fraction", 1.0),
            ("device", "nonsense"),
            *(
                (name, np.nan)
                for name in ("learning_rate", "tol", "step_size", "weight_decay", "smoothing")
            ),
            ("validation_fraction", np.nan),
            ("verbose", -1),
        ],
    )
    def test_invalid_values_are_refused(self, X, parameter, value):
        with pytest.raises(ValueError, match=r"must|device"):
            quick(**{parameter: value}).fit(X)

    @pytest.mark.parametrize(
        ("parameter", "value"),
        [("early_stopping", "no"), ("refit", 1), ("warm_start", 1), ("verbose", "1")],
    )
    def test_wrong_types_are_refused(self, X, parameter, value):
        with pytest.raises(TypeError, match=parameter):
            quick(**{parameter: value}).fit(X)

    def test_numbers_of_numpy_are_numbers(self, X):
        energies = TiltedEnergy(tilt_bound=np.int64(5)), TiltedEnergy(tilt_bound=5.0)
        numpy, plain = (quick(energy=energy, early_stopping=np.True_).fit(X) for energy in energies)
        np.testing.assert_array_equal(numpy.score_samples(X), plain.score_samples(X))

    def test_negative_weights_of_a_score_are_refused(self, X):
        with pytest.raises(ValueError, match=r"[Nn]egative"):
            quick(energy="linear").fit(X).score(X, sample_weight=-np.ones(len(X)))

    @pytest.mark.slow
    def test_auto_weight_decay_follows_the_rows_seen(self, X):
        """400 / n: the number given is the number that "auto" stands for, bit for bit."""
        auto = quick().fit(X)
        assert auto.n_samples_seen_ == len(X)
        given = quick(weight_decay=default_weight_decay(len(X))).fit(X)
        assert np.array_equal(auto.score_samples(X), given.score_samples(X))
        assert default_weight_decay(1000) == pytest.approx(0.4)
        assert (default_weight_decay(2), default_weight_decay(10**6)) == (3.0, 0.03)
        assert default_weight_decay(1000, 0.25) == default_weight_decay(250)
        assert auto.partial_fit(X[:7]).n_samples_seen_ == len(X) + 7

    def test_max_iter_by_rows(self):
        """Three updates a row, within bounds."""
        assert [default_max_iter(n) for n in (2, 600, 10**6)] == [1500, 1800, 3000]
        X = load_iris().data
        params = {"energy": TiltedEnergy(mixing=False), "n_iter_no_change": 1, "tol": 1e9}
        model = quick(n_components=1, max_iter="auto", **params).fit(X)
        # Both stages stop at their second evaluation: a twentieth of the updates each.
        assert model.n_iter_ == 2 * default_max_iter(len(X)) // 20

    @pytest.mark.slow
    def test_every_parameter_changes_something(self, X):
        """No option is accepted and ignored."""
        base = quick(n_components=2).fit(X).score_samples(X)
        changed = {
            "n_components": 3,
            "energy": TiltedEnergy((16,), (8,), min_scale=0.5),
            "inference": "variational",
            "dynamics": "ula",
            "max_iter": 60,
            "batch_size": 32,
            "n_particles": 4,
            "n_steps": 2,
            "pool_size": 300,
            "step_size": 0.01,
            "learning_rate": 1e-3,
            "weight_decay": 0.0,
            "smoothing": 0.2,
            "validation_fraction": 0.3,
            "early_stopping": False,
            "refit": True,
            "random_state": 1,
        }
        for name, value in changed.items():
            other = quick(**{"n_components": 2, name: value}).fit(X).score_samples(X)
            assert not np.array_equal(base, other), name

    @pytest.mark.slow
    def test_stopping_parameters(self, X):
        patient = quick(max_iter=100, tol=0.0, n_iter_no_change=100).fit(X)
        assert patient.n_iter_ == 100
        hasty = quick(max_iter=100, tol=100.0, n_iter_no_change=1).fit(X)
        assert hasty.n_iter_ < 30

    def test_verbose_prints_a_line_an_evaluation(self, X, capsys):
        model = quick(verbose=2).fit(X)
        assert len(capsys.readouterr().out.splitlines()) == len(model.history_)

    def test_default_components(self):
        rng = np.random.default_rng(0)
        for d, k in [(1, 1), (2, 2), (3, 2), (9, 5), (64, 10)]:
            model = LVEBMEstimator(energy="linear").fit(rng.normal(size=(80, d)))
            assert model.transform(rng.normal(size=(4, d))).shape == (4, k)

    @pytest.mark.parametrize("inference", ["langevin", "variational", "map"])
    @pytest.mark.parametrize("step_size", [0.01, 5.0])
    def test_fixed_step_size_is_kept(self, X, inference, step_size):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # nearly all steps are refused
            model = quick(step_size=step_size, inference=inference).fit(X)
        assert model.step_size_ == pytest.approx({"conditional": step_size, "joint": step_size})


class Quadratic(torch.nn.Module):
    """½‖x − Wz‖² + ½‖z‖²: a user's energy, with a parameter from the global generator."""

    def __init__(self, n_features, n_components):
        super().__init__()
        self.weight = torch.nn.Parameter(0.1 * torch.randn(n_features, n_components))

    def forward(self, x, z):
        return 0.5 * (x - z @ self.weight.T).square().sum(-1) + 0.5 * z.square().sum(-1)


class TestCustomEnergy:
    @pytest.mark.parametrize("energy", [Quadratic, CustomEnergy(Quadratic)])
    def test_a_module_class_is_an_energy(self, X, energy):
        model = quick(energy=energy, n_components=2).fit(X)
        # −log p = E + log Z, whatever E: normalised here by BAR, exactly by the Gaussian integral.
        exact = 0.5 * (4 + 2) * np.log(2 * np.pi)
        assert abs(model.log_partition_ - exact) < 0.1 + 6 * model.log_partition_std_

    def test_its_weights_come_from_random_state(self, X, monkeypatch):
        def seeded(seed):
            pytest.fail("the generators of all CUDA devices were seeded")

        def states():
            return [torch.get_rng_state(), *torch.cuda.get_rng_state_all()]

        if not torch.cuda.is_initialized():
            monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded)
        before = states()
        fits = [quick(energy=Quadratic, n_components=2, device="cpu").fit(X) for _ in range(2)]
        assert fits[0].score(X) == fits[1].score(X)
        assert all(map(torch.equal, states(), before))

    def test_it_is_answered_from_as_it_is(self, generator):
        """A thin Gaussian that is added and taken away again would cost the last digits."""
        joint = CustomEnergy(Quadratic).build(4, 2, generator=generator)
        with torch.no_grad():
            joint.reference.log_scale.fill_(np.log(1e-3))
        x, z = (torch.randn(50, m, generator=generator) for m in (4, 2))
        torch.testing.assert_close(joint(x, z), joint.tilt.module(x, z))
        torch.testing.assert_close(joint.posterior(x)(z[:, None])[:, 0], -joint.tilt.module(x, z))

    def test_what_is_held_fixed_stays_so(self, X):
        """In fits that go on, too; and what is in evaluation mode stays in it."""

        class Scaled(Quadratic):
            def __init__(self, d, k):
                super().__init__(d, k)
                self.scale = torch.nn.Parameter(torch.ones(d), requires_grad=False)
                self.part = torch.nn.Dropout(0.5).eval()

            def forward(self, x, z):
                assert not self.part.training
                return super().forward(x * self.scale, z)

        model = quick(energy=Scaled, n_components=2, warm_start=True)
        for train in (model.fit, model.fit, model.partial_fit):
            module = train(X)._model.energy.tilt.module
            assert torch.equal(module.scale, torch.ones(4))

    @pytest.mark.parametrize("early_stopping", [True, False])
    @pytest.mark.parametrize("in_place", [True, False])
    def test_its_buffers_are_those_of_training(self, X, early_stopping, in_place):
        class Counted(Quadratic):
            def __init__(self, d, k):
                super().__init__(d, k)
                self.register_buffer("n_calls", torch.zeros(()))
                self.register_buffer("n_judged", torch.zeros(()))

            def forward(self, x, z):
                # Rows held out are judged in evaluation mode, as torch has it.
                if not self.training:
                    self.n_judged.add_(1)
                elif in_place:
                    self.n_calls.add_(1)
                else:
                    self.n_calls = self.n_calls + 1
                return super().forward(x, z)

        model = quick(energy=Counted, n_components=2, early_stopping=early_stopping).fit(X)
        module = model._model.energy.tilt.module
        assert module.n_calls > model.n_iter_

    def test_its_matrices_are_decayed_where_that_is_asked_for(self, X):
        def weight(**params):
            model = quick(energy=Quadratic, n_components=2, **params).fit(X)
            return model._model.energy.tilt.module.weight

        assert torch.equal(weight(), weight(weight_decay=0))
        assert not torch.equal(weight(), weight(weight_decay=1.0))

    def test_a_specification_that_was_not_made_is_refused(self, X):
        with pytest.raises(TypeError, match=r"pass TiltedEnergy\(\.\.\.\)"):
            quick(energy=TiltedEnergy).fit(X)

    def test_an_instance_is_refused(self, X):
        with pytest.raises(TypeError, match="class or a factory"):
            quick(energy=Quadratic(4, 2)).fit(X)

    def test_a_wrong_return_is_refused(self, X):
        with pytest.raises(TypeError, match=r"torch\.nn\.Module"):
            quick(energy=lambda d, k: None).fit(X)

        class Wrong(Quadratic):
            def forward(self, x, z):
                return super().forward(x, z)[:, None]

        with pytest.raises(ValueError, match="one energy per pair"):
            quick(energy=Wrong, n_components=2).fit(X)


class TestContinuing:
    @pytest.mark.slow
    def test_partial_fit_learns(self):
        X = StandardScaler().fit_transform(load_wine().data)
        model = quick(n_components=3)
        assert model.partial_fit(X) is model
        n, first = model.n_iter_, model.score(X)
        for _ in range(7):
            model.partial_fit(X)
        assert model.n_iter_ == 8 * n
        assert model.score(X) > first

    def test_partial_fit_checks_features(self, X):
        model = quick().partial_fit(X)
        with pytest.raises(ValueError, match="features"):
            model.partial_fit(X[:, :2])

    def test_partial_fit_moves_the_linear_energy(self, X):
        model = quick(energy="linear", n_components=2).partial_fit(X[:50])
        before = model.score(X)
        for _ in range(30):
            model.partial_fit(X)
        assert model.score(X) > before

    @pytest.mark.slow
    def test_warm_start_goes_on(self):
        X = StandardScaler().fit_transform(load_wine().data)
        model = quick(n_components=3, warm_start=True, early_stopping=False).fit(X)
        parameters = model._model.energy.reference.loc.clone()
        first = model.score(X)
        model.set_params(max_iter=60).fit(X)
        assert not torch.equal(parameters, model._model.energy.reference.loc)
        assert model.score(X) > first - 0.5

    @pytest.mark.slow
    def test_without_warm_start_a_fit_starts_anew(self, X):
        model = quick().fit(X)
        first = model.score(X)
        assert model.fit(X).score(X) == first


class TestGoingOn:
    @pytest.mark.parametrize(
        "changed", [{"energy": "linear"}, {"n_components": 1}, {"pool_size": 128}]
    )
    def test_another_form_is_an_error(self, X, changed):
        """What goes on cannot change its form, and nothing is taken and ignored."""
        model = quick(n_components=2, warm_start=True).fit(X)
        expected = model.score(X)
        model.set_params(**changed)
        for method in (model.fit, model.partial_fit):
            with pytest.raises(ValueError, match=f"{next(iter(changed))} was"):
                method(X)
        assert model.score(X) == expected

    def test_the_same_form_in_other_words(self, X):
        model, twin = (quick(n_components=2, energy="linear").fit(X) for _ in range(2))
        model.set_params(n_components=None, energy=LinearEnergy()).partial_fit(X)
        np.testing.assert_array_equal(model.score_samples(X), twin.partial_fit(X).score_samples(X))

    def test_an_interrupted_fit_leaves_the_random_stream_alone(self, X, monkeypatch):
        model, twin = (quick(n_components=2).fit(X) for _ in range(2))

        def stop(*_, **__):
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr("sklvebm.training.Trainer.run", stop)
            with pytest.raises(KeyboardInterrupt):
                model.partial_fit(X)
        np.testing.assert_array_equal(model.sample(3), twin.sample(3))

    def test_an_empty_batch_size_is_refused(self, X):
        with pytest.raises(ValueError, match="batch_size"):
            quick(batch_size=0).partial_fit(X)


class TestSharedSpecification:
    def test_parameters_set_after_a_fit_are_for_the_next(self, X):
        model = quick(energy=LinearEnergy()).fit(X)
        expected = model.score(X)
        model.set_params(energy__min_scale=5.0)
        assert pickle.loads(pickle.dumps(model)).score(X) == model.score(X) == expected

    def test_two_estimators_may_share_one(self, X):
        energy = TiltedEnergy(hidden_layer_sizes=(4,))
        model = quick(energy=energy).fit(X)
        quick(energy=energy).set_params(energy__hidden_layer_sizes=(8,))
        assert pickle.loads(pickle.dumps(model)).score(X) == model.score(X)


class TestWarnings:
    @pytest.fixture(autouse=True)
    def _a_complaint(self, monkeypatch):
        monkeypatch.setattr("sklvebm.estimator.complaints", lambda *_, **__: ["a complaint"])

    def test_they_point_at_the_caller(self, X):
        for call in (quick().fit, quick().partial_fit, make_pipeline(quick()).fit):
            with pytest.warns(ConvergenceWarning, match="a complaint") as found:
                call(X)
            own = call.__self__.__class__ is LVEBMEstimator
            assert (found[-1].filename == __file__) == own

    def test_as_errors_they_keep_the_fit(self, X, tmp_path):
        path = tmp_path / "fit.checkpoint"
        for model, call in ((quick(checkpoint=path), "fit"), (quick(), "partial_fit")):
            with warnings.catch_warnings():
                warnings.simplefilter("error", ConvergenceWarning)
                with pytest.raises(ConvergenceWarning):
                    getattr(model, call)(X)
            assert np.isfinite(model.score(X))
            assert not path.exists()


class TestDraws:
    @pytest.mark.parametrize("n_samples", [1, 3, 1025])
    def test_moves_are_those_of_the_model(self, X, n_samples, monkeypatch):
        """How far a draw moves does not follow from where it went: that would bend its law."""
        model, seen = quick().fit(X), []
        settle = JointPool.settle

        def watched(pool, log_tilt, n_moves):
            seen.append((float(pool.step_size.value), pool.step_size.adapts, n_moves))
            return settle(pool, log_tilt, n_moves)

        monkeypatch.setattr(JointPool, "settle", watched)
        assert model.sample(n_samples).shape == (n_samples, 4)
        moves = model._model.moves
        assert len(seen) == -(-n_samples // 1024)
        assert seen == [(pytest.approx(moves.step_size), False, moves.number)] * len(seen)
        assert 5 <= moves.number <= 25


class TestSearches:
    def test_pipeline(self):
        X, y = load_wine(return_X_y=True)
        pipe = make_pipeline(StandardScaler(), quick(n_components=3), LogisticRegression())
        assert pipe.fit(X, y).score(X, y) > 0.8

    @pytest.mark.slow
    def test_grid_search_is_the_same_on_two_workers(self, X, one_thread):
        grid = {"n_components": [1, 2], "energy__hidden_layer_sizes": [(8,), (16, 16)]}
        scores = [
            GridSearchCV(quick(), grid, cv=2, n_jobs=n_jobs).fit(X).cv_results_["mean_test_score"]
            for n_jobs in (1, 2)
        ]
        np.testing.assert_array_equal(*scores)

    @pytest.mark.slow
    def test_cross_val_score_is_the_same_on_two_workers(self, X, one_thread):
        scores = [cross_val_score(quick(n_components=2), X, cv=3, n_jobs=n) for n in (1, 2)]
        np.testing.assert_array_equal(*scores)

    def test_workers_do_not_oversubscribe(self):
        from joblib import Parallel, cpu_count, delayed

        threads = Parallel(n_jobs=2)(delayed(_threads_after_a_fit)() for _ in range(2))
        assert max(threads) * 2 <= max(2, cpu_count())

    def test_set_output_and_names(self, X):
        model = quick(n_components=2).set_output(transform="pandas").fit(X)
        frame = model.transform(X)
        assert list(frame.columns) == ["lvebmestimator0", "lvebmestimator1"]


def _threads_after_a_fit():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quick(max_iter=2).fit(load_iris().data)
    return torch.get_num_threads()


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
