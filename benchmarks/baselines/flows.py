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

from ._training import TorchModel, Training

_KINDS = {"nsf": zuko.flows.NSF, "maf": zuko.flows.MAF}


class NormalizingFlow(TorchModel):
    """A flow trained by maximum likelihood, stopped by held-out likelihood."""

    _training = Training(n_steps=6000, patience=15)

    def __init__(
        self,
        kind="nsf",
        *,
        n_transforms=3,
        hidden_layer_sizes=(128, 128),
        training=None,
        random_state=0,
    ):
        self.kind = kind
        self.n_transforms = n_transforms
        self.hidden_layer_sizes = hidden_layer_sizes
        self.training = training
        self.random_state = random_state

    def _fit(self, fit, held_out, generator):
        self.flow_ = _KINDS[self.kind](
            fit.shape[1],
            transforms=self.n_transforms,
            hidden_features=self.hidden_layer_sizes,
            randperm=True,
        )

        def loss(picks):
            return -self.flow_().log_prob(fit[picks]).mean()

        @torch.no_grad()
        def validate():
            return -float(self.flow_().log_prob(held_out).mean())

        return self.training_.run(
            self.flow_, loss, len(fit), validate=validate, generator=generator
        )

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
