"""Conditional flow matching: a velocity field that carries N(0, I) to the data; samples only.

References
----------
Y. Lipman et al. (2023), "Flow matching for generative modeling", ICLR (the straight paths).
"""

from __future__ import annotations

import numpy as np
import torch

from ._training import TorchModel, Training
from .decoders import mlp

_N_FREQUENCIES = 16


def _features(x, t):
    """x beside sines and cosines of the time."""
    angles = np.pi * t * torch.arange(1, _N_FREQUENCIES + 1)
    return torch.cat([x, angles.sin(), angles.cos()], -1)


class FlowMatching(TorchModel):
    """Flow matching on straight paths, sampled by Heun's method."""

    _training = Training(
        n_steps=10_000, batch_size=256, weight_decay=0.01, n_evaluations=50, patience=50
    )

    def __init__(
        self, *, hidden_layer_sizes=(256, 256, 256), training=None, n_integration=50, random_state=0
    ):
        self.hidden_layer_sizes = hidden_layer_sizes
        self.training = training
        self.n_integration = n_integration
        self.random_state = random_state

    def _fit(self, fit, held_out, generator):
        d = fit.shape[1]
        self.velocity_ = mlp(d + 2 * _N_FREQUENCIES, self.hidden_layer_sizes, d)

        def loss_of(x, source):
            start = torch.randn(x.shape, generator=source)
            t = torch.rand(len(x), 1, generator=source)
            velocity = self.velocity_(_features(torch.lerp(start, x, t), t))
            return (velocity - (x - start)).square().mean()

        @torch.no_grad()
        def validate():
            fixed = torch.Generator().manual_seed(self.random_state)
            return float(np.mean([float(loss_of(held_out, fixed)) for _ in range(16)]))

        return self.training_.run(
            self.velocity_,
            lambda picks: loss_of(fit[picks], generator),
            len(fit),
            validate=validate,
            generator=generator,
        )

    @torch.no_grad()
    def sample(self, n_samples=1, random_state=0):
        """Draws of x."""
        generator = torch.Generator().manual_seed(random_state)
        x = torch.randn(n_samples, self.n_features_in_, generator=generator)
        h = 1 / self.n_integration
        for i in range(self.n_integration):
            now = self.velocity_(_features(x, torch.full((n_samples, 1), i * h)))
            then = self.velocity_(_features(x + h * now, torch.full((n_samples, 1), (i + 1) * h)))
            x = x + 0.5 * h * (now + then)
        return x.numpy()
