"""Joint energies in float64 whose partition functions and posteriors are known."""

from __future__ import annotations

import math

import numpy as np
import oracles
import torch
from torch import nn

from sklvebm.energies import CustomEnergy
from sklvebm.langevin import Noise
from sklvebm.particles import JointPool
from sklvebm.ppca import PPCA

UNIT = PPCA(np.zeros((1, 1)), np.zeros(1), 1.0)


def normal(generator, *shape):
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


class LinearGaussian(nn.Module):
    """E = ‖x − Wz − b‖²/2σ² + ‖z‖²/2, not normalised: case 1."""

    def __init__(self, weight, bias, sigma):
        super().__init__()
        self.weight, self.bias, self.sigma = torch.tensor(weight), torch.tensor(bias), sigma

    def forward(self, x, z):
        weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)
        residual = x - z @ weight.T - bias
        return residual.square().sum(-1) / (2 * self.sigma**2) + 0.5 * z.square().sum(-1)


class Banana(nn.Module):
    """d = k = 1: x near sin 2z, z skewed; neither the marginal nor a posterior is Gaussian."""

    def forward(self, x, z):
        x, z = x[..., 0], z[..., 0]
        fit = (x - torch.sin(2 * z)).square() / (2 * 0.4**2)
        return fit + 0.5 * z.square() + 0.7 * torch.tanh(2 * z) + 1.3


class Phi4(nn.Module):
    """S = Σ ½(x_i − x_{i+1})² + (x_i² − 1)², periodic, and an idle normalised latent: case 8."""

    def forward(self, x, z):
        action = 0.5 * (x - x.roll(1, -1)).square() + (x.square() - 1).square()
        idle = 0.5 * z.square() + 0.5 * oracles.LOG_2PI
        return action.sum(-1) + idle.sum(-1)


def build(module, d, k, ppca, generator):
    """The module's joint energy in float64, on the reference ``ppca``."""
    energy = CustomEnergy(lambda *_: module).build(d, k, generator=generator).double()
    energy.reference.set_ppca_(ppca)
    return energy.requires_grad_(False)


def linear_case(rng, generator, scale=1.0):
    """A linear-Gaussian energy on a reference that is near, not equal, to it."""
    weight, bias, sigma = scale * rng.uniform(-1, 1, (3, 2)), rng.standard_normal(3), 0.5
    # The reference's W is off by a tenth of σ at most, its noise a third too wide: the weights
    # then have all the moments needed, whatever the draw of W.
    offset = 0.05 * rng.uniform(-1, 1, (3, 2))
    reference = PPCA(weight + offset, bias + 0.1, 1.3 * sigma)
    energy = build(LinearGaussian(weight, bias, sigma), 3, 2, reference, generator)
    return energy, weight, bias, sigma


def banana_case(generator):
    """The banana on a rough reference, its log-density on points (x, z), and a grid's axes."""
    reference = PPCA(np.array([[0.3]]), np.array([-0.1]), 1.0)
    energy = build(Banana(), 1, 1, reference, generator)
    axes = np.arange(-7, 7, 0.02), np.arange(-8, 8, 0.02)

    def log_density(points):
        points = torch.from_numpy(points)
        return -energy(points[:, :1], points[:, 1:]).numpy()

    return energy, log_density, axes


def phi4_case(n_sites, generator):
    """The chain in float32, on a Gaussian of about its own variance."""
    reference = PPCA(np.zeros((n_sites, 1)), np.zeros(n_sites), math.sqrt(0.67))
    return build(Phi4(), n_sites, 1, reference, generator).float()


def moved(members, energy, generator, *, n_visits, n_steps=1):
    """``members (n, k + d)`` after visits of a JointPool, each a sweep and ``n_steps`` steps."""
    pool = JointPool(
        members.clone(),
        dynamics="mala",
        n_steps=n_steps,
        step_size="auto",
        noise=Noise(generator),
    )
    for _ in range(n_visits):
        pool.advance(energy.log_tilt)
    return pool.position
