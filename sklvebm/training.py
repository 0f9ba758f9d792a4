"""From a standardised table to a trained model: the stages, the held-out likelihood, the finish."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ._arrays import draw_seed, generator_from_seed, to_numpy, to_tensor
from .diagnostics import gap_statistics
from .energies import EnergySpec, LinearEnergy
from .energies._joint import JointEnergy
from .evidence import explore, importance, moments
from .finishing import finish
from .langevin import Noise, Preconditioner, regularised
from .model import Model
from .particles import (
    ConditionalFlow,
    GaussianPosteriors,
    JointPool,
    LangevinParticles,
    PointEstimates,
)
from .partition import direct_log_partition, excess_tilt
from .reference import PPCA, fit_ppca
from .saddle import Evaluation, Outcome, Saddle, Schedule, Stage

# The tilt plays against the pool, which must keep up: it learns at a fifth of the rate, and where
# no independence sweep renews the pool, at a hundredth.
_TILT_RATE = {"mala": 1 / 5, "ula": 1 / 100}
_JOINT_RATE = 1 / 10
# Updates in which the whole pool takes a Langevin step once. All of it is swept at every update:
# members that lag behind the tilt bias its gradient.
_POOL_VISITS = 2
# Evaluations in max_iter updates, and the fewest updates between two.
_N_EVALUATIONS, _MIN_BETWEEN = 20, 5
_MAX_HELD_OUT = 256
_N_CHAINS, _N_BURN, _N_KEEP = 8, 4, 6
# Batches whose latents move together, since a few steps of many rows at once cost far less than a
# step of a few rows at each update. Between two visits of a row the energy moves on, the further
# the more rows there are, and latents that lag bias the gradient. The paper's algorithm moves the
# rows of an update alone.
_N_BATCHES = {"mala": 8, "ula": 1}
_POOL_STEPS = 1


@dataclass(frozen=True)
class Options:
    """The estimator's validated parameters that training reads, under the same names."""

    n_components: int
    inference: str
    dynamics: str
    max_iter: int
    batch_size: int
    n_particles: int
    n_steps: int
    pool_size: int
    step_size: float | str
    learning_rate: float
    weight_decay: float
    tol: float
    n_iter_no_change: int
    validation_fraction: float
    early_stopping: bool


class Trainer:
    """Owns what one training run needs, from the start at PPCA to the finished model.

    Parameters
    ----------
    X : ndarray of shape (n, d)
        Standardised rows.
    spec : EnergySpec
    options : Options
    random_state : RandomState or int
    device : torch.device
    report : callable
        Receives every row of the history.
    start : Model, optional
        Continue from this model instead of PPCA.
    """

    def __init__(
        self,
        X: NDArray,
        spec: EnergySpec,
        options: Options,
        *,
        random_state: int | np.random.RandomState | None,
        device: torch.device,
        report: Callable[[dict], None],
        start: Model | None = None,
    ) -> None:
        self.spec, self.options, self.report, self.start = spec, options, report, start
        self.device = device
        self.generator = generator_from_seed(draw_seed(random_state), device)
        self.noise = Noise(self.generator)
        self.X, self.held_out = self._split(X)
        self.energy = self._initial_energy()
        self.conditional = self._conditional_flow()
        self.pool = self._pool()
        self._held_out_particles: Tensor | None = None
        self._evaluation_seed = self._seed()

    def _seed(self) -> int:
        return int(torch.randint(2**31, (1,), generator=self.generator, device=self.device).item())

    def _split(self, X: NDArray) -> tuple[Tensor, Tensor | None]:
        tensor = to_tensor(X, self.device, torch.float32)
        options, n = self.options, len(X)
        if not options.early_stopping or self._closed_form():
            return tensor, None
        # A mean over a handful of rows says little: at least 20 rows, or a quarter of the table.
        # More than a few hundred would cost more than they tell: the same rows are compared from
        # evaluation to evaluation, with the same noise.
        n_held_out = max(int(np.ceil(options.validation_fraction * n)), min(20, n // 4))
        n_held_out = min(n_held_out, _MAX_HELD_OUT)
        if n_held_out == 0 or n - n_held_out < 2:
            return tensor, None
        order = torch.randperm(n, generator=self.generator, device=self.device)
        return tensor[order[n_held_out:]], tensor[order[:n_held_out]]

    def _closed_form(self) -> bool:
        """Whether PPCA's start is already the maximum-likelihood answer."""
        return (
            isinstance(self.spec, LinearEnergy)
            and self.start is None
            and self.spec.init == "ppca"
            and self.options.inference == "langevin"
            and self.options.dynamics == "mala"
        )

    def _initial_energy(self) -> JointEnergy:
        if self.start is not None:
            return copy.deepcopy(self.start.energy).train().requires_grad_(True)
        d, k = self.X.shape[1], self.options.n_components
        energy = self.spec.build(d, k, generator=generator_from_seed(self._seed(), _CPU))
        min_scale = float(np.exp(energy.reference.min_log_scale))
        ppca = fit_ppca(to_numpy(self.X), k, min_scale=min_scale)
        if isinstance(self.spec, LinearEnergy) and self.spec.init == "random":
            ppca = self._random_start(d, k, ppca)
        energy.reference.set_ppca_(ppca)
        return energy.to(self.device)

    def _random_start(self, d: int, k: int, ppca: PPCA) -> PPCA:
        weight = torch.randn(d, k, generator=self.generator, device=self.device) / k**0.5
        return PPCA(to_numpy(weight), ppca.loc, 1.0)

    def _conditional_flow(self) -> ConditionalFlow:
        options = self.options
        with torch.no_grad():
            mean, covariance = self.energy.reference.linear_posterior(self.X)
        if self.start is not None:
            mean = self.start.guess(self.X)
            covariance = self.start.covariance.clone()
        if options.inference == "map":
            return PointEstimates(
                mean, covariance, n_steps=options.n_steps, step_size=options.step_size
            )
        if options.inference == "variational":
            return GaussianPosteriors(
                mean,
                covariance,
                n_particles=options.n_particles,
                n_steps=options.n_steps,
                step_size=options.step_size,
                noise=self.noise,
            )
        factor = torch.linalg.cholesky(regularised(covariance))
        loc = mean[:, None].expand(-1, options.n_particles, -1)
        return LangevinParticles(
            loc + self.noise.normal(loc) @ factor.T,
            covariance,
            dynamics=options.dynamics,
            n_steps=options.n_steps,
            step_size=options.step_size,
            noise=self.noise,
        )

    def _pool(self) -> JointPool:
        options = self.options
        width = self.X.shape[1] + options.n_components
        like = self.X.new_empty(1, 1).expand(options.pool_size, width)
        return JointPool(
            self.noise.normal(like) if self.start is None else self.start.pool.clone(),
            dynamics=options.dynamics,
            n_steps=options.n_steps if options.dynamics == "ula" else _POOL_STEPS,
            step_size=options.step_size,
            noise=self.noise,
        )

    def stages(self) -> list[Stage]:
        """What is trained, in which order, for how many updates."""
        energy, total = self.energy, self.options.max_iter
        reference, tilt = list(energy.reference_parameters()), list(energy.tilt_parameters())
        if self._closed_form():
            return []
        if not tilt:
            return [Stage("reference", reference, total, 1.0, False)]
        if not reference:
            return [Stage("tilt", tilt, total, _TILT_RATE[self.options.dynamics], True)]
        if self.start is not None:
            return [Stage("joint", reference + tilt, total, _JOINT_RATE, True)]
        first = max(1, round(energy.reference_share * total))
        return [
            Stage("reference", reference, first, 1.0, False),
            Stage("tilt", tilt, total - first, _TILT_RATE[self.options.dynamics], True),
        ]

    def run(self) -> tuple[Model, Outcome, dict[str, float]]:
        """Train all stages and finish the model; returns it, what training did, diagnostics."""
        options = self.options
        saddle = Saddle(
            self.energy,
            self.X,
            self.conditional,
            self.pool,
            schedule=Schedule(
                learning_rate=options.learning_rate,
                weight_decay=options.weight_decay,
                batch_size=options.batch_size,
                n_batches=_N_BATCHES[options.dynamics],
                negative_size=max(1, options.pool_size // _POOL_VISITS),
                tol=options.tol,
                n_iter_no_change=options.n_iter_no_change,
                evaluate_every=max(_MIN_BETWEEN, options.max_iter // _N_EVALUATIONS),
            ),
            generator=self.generator,
            evaluate=None if self.held_out is None else self._evaluate,
            report=self.report,
        )
        for stage in self.stages():
            saddle.run(stage)
        model, diagnostics = finish(
            self.spec,
            self.energy,
            self.X,
            self.held_out,
            self.conditional,
            self.pool,
            seed=self._seed(),
            noise=self.noise,
        )
        return model, saddle.outcome, diagnostics | gap_statistics(np.array(saddle.outcome.gaps))

    def _evaluate(self, energy: JointEnergy, uses_pool: bool) -> Evaluation:
        """Mean log p of the held-out rows, by chains that go on from the last evaluation."""
        x = self.held_out
        assert x is not None
        covariance = regularised(self.conditional.covariance)
        preconditioner = Preconditioner.from_covariance(covariance)
        if self._held_out_particles is None:
            with torch.no_grad():
                loc = energy.reference.linear_posterior(x)[0]
            if self.start is not None:
                loc = self.start.guess(x)
            loc = loc[:, None].expand(-1, _N_CHAINS, -1)
            self._held_out_particles = loc + self.noise.normal(loc) @ preconditioner.factor.T
        kept = explore(
            self._held_out_particles,
            energy.posterior(x),
            preconditioner=preconditioner,
            initial_step_size=0.3,
            n_burn=_N_BURN,
            n_keep=_N_KEEP,
            noise=self.noise,
        )
        self._held_out_particles = kept[:, -_N_CHAINS:]
        # The same draws at every evaluation: differences between evaluations are less noisy.
        fixed = Noise(generator_from_seed(self._evaluation_seed, self.device))
        posterior = importance(
            energy.posterior(x), *moments(kept), spread=covariance, sizes=(128,), noise=fixed
        )
        value = 0.0
        if uses_pool:
            members = self.pool.position
            log_z = direct_log_partition(
                energy, members, proposal=self.pool.proposal, n_draws=8192, noise=fixed
            )
            excess = excess_tilt(energy, x, posterior, members)
            value = log_z._replace(excess=excess).conservative
        return Evaluation(float(posterior.log_evidence.mean()) - value, value)


_CPU = torch.device("cpu")
