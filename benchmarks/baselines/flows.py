"""Normalising flows of the library zuko: a neural spline flow and a masked autoregressive flow.

References
----------
C. Durkan et al. (2019), "Neural spline flows", NeurIPS. G. Papamakarios, T. Pavlakou and I. Murray
(2017), "Masked autoregressive flow for density estimation", NeurIPS.
"""

from __future__ import annotations

import numpy as np
import torch
import zuko
from sklearn.base import BaseEstimator

from ._training import split, train

_KINDS = {"nsf": zuko.flows.NSF, "maf": zuko.flows.MAF}


class NormalizingFlow(BaseEstimator):
    """A flow trained by maximum likelihood, stopped by held-out likelihood."""

    def __init__(
        self,
        kind="nsf",
        *,
        n_transforms=3,
        hidden_layer_sizes=(128, 128),
        n_steps=6000,
        batch_size=128,
        learning_rate=1e-3,
        weight_decay=0.1,
        n_evaluations=60,
        patience=15,
        validation_fraction=0.1,
        random_state=0,
    ):
        self.kind = kind
        self.n_transforms = n_transforms
        self.hidden_layer_sizes = hidden_layer_sizes
        self.n_steps = n_steps
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.n_evaluations = n_evaluations
        self.patience = patience
        self.validation_fraction = validation_fraction
        self.random_state = random_state

    def fit(self, X, y=None):
        """Train; the global torch generator is restored afterwards."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.random_state)
            generator = torch.Generator().manual_seed(self.random_state)
            rows = torch.tensor(np.asarray(X), dtype=torch.float32)
            fit, held_out = split(rows, self.validation_fraction, generator)
            self.flow_ = _KINDS[self.kind](
                rows.shape[1],
                transforms=self.n_transforms,
                hidden_features=self.hidden_layer_sizes,
                randperm=True,
            )

            def loss(picks):
                return -self.flow_().log_prob(fit[picks]).mean()

            @torch.no_grad()
            def validate():
                return -float(self.flow_().log_prob(held_out).mean())

            self.n_iter_ = train(
                self.flow_,
                loss,
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
    def score_samples(self, X):
        """log p(x), exact."""
        x = torch.tensor(np.asarray(X), dtype=torch.float32)
        parts = [self.flow_().log_prob(part) for part in x.split(1000)]
        return torch.cat(parts).double().numpy()

    @torch.no_grad()
    def sample(self, n_samples=1, random_state=0):
        """Draws of x."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(random_state)
            return self.flow_().sample((n_samples,)).numpy()
