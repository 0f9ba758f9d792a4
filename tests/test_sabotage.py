"""Deliberate sabotage: each is caught by a warning, and the score errs on the low side."""

from __future__ import annotations

import math
import warnings

import numpy as np
import oracles
import pytest
import torch
from sklearn.exceptions import ConvergenceWarning
from statistical import Z
from torch import nn

from sklvebm import LVEBMEstimator
from sklvebm.energies import CustomEnergy
from sklvebm.langevin import Noise
from sklvebm.partition import log_partition
from sklvebm.ppca import PPCA

AXIS = np.arange(-12, 12, 0.02)


class Modes(nn.Module):
    """x in one of two modes, at −3 and 3, of widths .3 and .6; z ∼ N(0, 1)."""

    def forward(self, x, z):
        left = -0.5 * ((x[..., 0] + 3) / 0.3).square()
        right = -0.5 * ((x[..., 0] - 3) / 0.6).square()
        return 0.5 * z.square().sum(-1) - torch.logaddexp(left, right)


MODES_LOG_Z = oracles.LOG_2PI + math.log(0.9)


class DeepWell(nn.Module):
    """A standard normal, and at 9 a well that holds nine tenths of the mass."""

    def forward(self, x, z):
        well = math.log(9) - 0.5 * ((x[..., 0] - 9) / 0.2).square() - math.log(0.2)
        plain = -0.5 * x[..., 0].square()
        return 0.5 * z.square().sum(-1) - torch.logaddexp(plain, well)


WELL_LOG_Z = oracles.LOG_2PI + math.log(10)


def built(module, scale):
    """The module's energy on a reference x ∼ N(0, scale²)."""
    generator = torch.Generator().manual_seed(0)
    energy = CustomEnergy(lambda *_: module).build(1, 1, generator=generator).double()
    energy.reference.set_ppca_(PPCA(np.zeros((1, 1)), np.zeros(1), scale))
    return energy.requires_grad_(False)


def members(energy, x, generator):
    """Pool members at ``x (n,)``, their latents from the prior."""
    z = torch.randn(len(x), 1, generator=generator, dtype=torch.float64)
    return energy.reference.join(x[:, None], z)


def stuck_pool(generator):
    """Two modes, and members in the right one alone."""
    energy = built(Modes(), 3.0)
    x = 3 + 0.6 * torch.randn(2048, generator=generator, dtype=torch.float64)
    return energy, members(energy, x, generator)


def pool_with_a_quarter_in_the_well(generator):
    """The deep well, and the last 512 members in it, as if started from data there."""
    energy = built(DeepWell(), 1.0)
    x = torch.randn(2048, generator=generator, dtype=torch.float64)
    x[-512:] = 9 + 0.2 * x[-512:]
    return energy, members(energy, x, generator)


def caught(model, X):
    """The messages of the warnings of a fit."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always", ConvergenceWarning)
        model.fit(X)
    return " ".join(str(w.message) for w in found)


def test_a_pool_stuck_in_one_mode(generator):
    """Fresh draws see the other mode: what is used is no lower than they say, up to .03 nats.

    A pool's own estimate would be log 2/3 too low.
    """
    energy, v = stuck_pool(generator)
    found = log_partition(energy, v, noise=Noise(generator))
    assert found.conservative > MODES_LOG_Z - 0.03 - Z * found.forward_std


def test_a_pool_in_both_modes_is_not_accused(generator):
    energy = built(Modes(), 3.0)
    left = torch.rand(2048, generator=generator, dtype=torch.float64) < 1 / 3
    unit = torch.randn(2048, generator=generator, dtype=torch.float64)
    x = torch.where(left, -3 + 0.3 * unit, 3 + 0.6 * unit)
    found = log_partition(
        energy, members(energy, x, generator), n_apart=512, noise=Noise(generator)
    )
    assert not found.disagrees
    assert found.value == pytest.approx(MODES_LOG_Z, abs=Z * found.std)


def test_a_deep_well_that_the_reference_never_visits(generator):
    """Members that started from data there are enough, though a hundred times too few."""
    energy, v = pool_with_a_quarter_in_the_well(generator)
    found = log_partition(energy, v, n_apart=512, noise=Noise(generator))
    blind = log_partition(energy, v[:-512], noise=Noise(generator))
    # Without them nothing could tell: the test shows what the data-started members are for.
    assert blind.conservative == pytest.approx(oracles.LOG_2PI, abs=0.2)
    assert found.conservative > WELL_LOG_Z - 0.2 - Z * found.std


@pytest.mark.parametrize("told_by", ["members", "data"])
def test_a_well_of_two_points(generator, told_by):
    """Two points in the deep well are enough, members of the pool or data that no member is near.

    A mixture fitted to the pool puts a spike on one of them, so that neither seems to be missed.
    """
    energy = built(DeepWell(), 1.0)
    x = torch.randn(2048, generator=generator, dtype=torch.float64)
    v, z = members(energy, x, generator), torch.zeros(2, 1, dtype=torch.float64)
    wells = energy.reference.join(torch.tensor([[9.3], [9.3001]], dtype=torch.float64), z)
    data = wells if told_by == "data" else None
    if told_by == "members":
        v[:2] = wells
    found = log_partition(energy, v, data=data, noise=Noise(generator))
    assert found.conservative > WELL_LOG_Z - 0.2 - Z * found.std


def test_a_well_at_some_of_the_data_through_the_estimator(rng, seed):
    """One row in fifty sits in the well; the fitted score is no higher than the truth allows."""
    X = np.r_[rng.standard_normal(980), 9 + 0.2 * rng.standard_normal(20)][:, None]
    model = LVEBMEstimator(1, energy=lambda d, k: Standardised(X), max_iter=20, random_state=seed)
    message = caught(model, X)
    exact = WELL_LOG_Z - math.log(X.std())
    assert model.log_partition_ > exact - 0.2 - Z * model.log_partition_std_
    close = abs(model._model.log_partition.value - exact) < 0.2 + Z * model.log_partition_std_
    assert close or "is too low by other evidence" in message


class Standardised(DeepWell):
    """The well in the user's units, as a function of standardised x."""

    def __init__(self, X):
        super().__init__()
        self.loc, self.scale = float(X.mean()), float(X.std())

    def forward(self, x, z):
        return super().forward(x * self.scale + self.loc, z)


@pytest.fixture
def clusters(rng):
    return 0.5 * rng.standard_normal((300, 2)) + 2 * rng.integers(2, size=(300, 1))


def test_too_few_particles(clusters, seed):
    """A pool of eight: its error is said, and held against the score."""
    model = LVEBMEstimator(1, n_particles=1, pool_size=8, max_iter=60, random_state=seed)
    assert "increase pool_size" in caught(model, clusters)


@pytest.mark.parametrize(
    ("step_size", "complaint"), [(1e3, "Decrease step_size"), (1e-7, "Increase step_size")]
)
def test_a_step_size_far_off(clusters, seed, step_size, complaint):
    """The chains of training are useless; those of the score adapt, and the score stays honest."""
    params = {"max_iter": 60, "refit": False, "random_state": seed}
    model = LVEBMEstimator(1, step_size=step_size, **params)
    assert complaint in caught(model, clusters)
    honest = LVEBMEstimator(1, **params).fit(clusters)
    assert model.score(clusters) < honest.score(clusters) + 0.3
