"""Conditional flow matching: a velocity field that carries N(0, I) to the data; samples only.

References
----------
Y. Lipman et al. (2023), "Flow matching for generative modeling", ICLR (the straight paths).
"""

from __future__ import annotations

import numpy as np
import torch
from sklearn.base import BaseEstimator

from ._training import split, train
from .decoders import mlp

_N_FREQUENCIES = 16


def _features(x, t):
    """x beside sines and cosines of the time."""
    angles = np.pi * t * torch.arange(1, _N_FREQUENCIES + 1)
    return torch.cat([x, angles.sin(), angles.cos()], -1)


class FlowMatching(BaseEstimator):
    """Flow matching on straight paths, sampled by Heun's method."""

    def __init__(
        self,
        *,
        hidden_layer_sizes=(256, 256, 256),
        n_steps=10_000,
        batch_size=256,
        learning_rate=1e-3,
        weight_decay=0.01,
        n_evaluations=50,
        patience=50,
        validation_fraction=0.1,
        n_integration=50,
        random_state=0,
    ):
        self.hidden_layer_sizes = hidden_layer_sizes
        self.n_steps = n_steps
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.n_evaluations = n_evaluations
        self.patience = patience
        self.validation_fraction = validation_fraction
        self.n_integration = n_integration
        self.random_state = random_state

    def fit(self, X, y=None):
        """Train; the global torch generator is restored afterwards."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.random_state)
            generator = torch.Generator().manual_seed(self.random_state)
            rows = torch.tensor(np.asarray(X), dtype=torch.float32)
            fit, held_out = split(rows, self.validation_fraction, generator)
            d = self.n_features_in_ = rows.shape[1]
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

            self.n_iter_ = train(
                self.velocity_,
                lambda picks: loss_of(fit[picks], generator),
                len(fit),
                validate=validate,
                n_steps=self.n_steps,
                batch_size=self.batch_size,
                learning_rate=self.learning_rate,
                weight_decay=self.weight_decay,
                n_evaluations=self.n_evaluations,
                patience=self.patience,
                generator=generator,
            )
        return self

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
