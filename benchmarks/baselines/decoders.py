r"""Decoder models p(z) p(x | z): the VAE, variational inference without amortisation, hard EM.

All three share a Gaussian decoder, x = Wz + μ + g(z) + s(z) ∘ ε, of the size of our reference's
network and with its linear part, started at probabilistic PCA. They differ in what
stands for the posterior in training: an encoder; a Gaussian for each row; a point for each row.

References
----------
D. P. Kingma and M. Welling (2014), "Auto-encoding variational Bayes", ICLR. Y. Burda, R. Grosse and
R. Salakhutdinov (2016), "Importance weighted autoencoders", ICLR (``iwae_samples``). E. Veach and
L. J. Guibas (1995), "Optimally combining sampling techniques for Monte Carlo rendering", SIGGRAPH
(the balance heuristic of ``score_samples``).
"""

from __future__ import annotations

import math

import numpy as np
import torch
from sklearn.base import TransformerMixin
from torch import Tensor, nn

from sklvebm.ppca import fit_ppca

from ._training import TorchModel, Training

LOG_2PI = math.log(2 * math.pi)
_MIN_LOG_SCALE = math.log(1e-3)
_CHUNK = 100
# Degrees of freedom of the Student t about a row's mode, and the least eigenvalue of its precision:
# the prior's is one.
_FREEDOM, _LEAST_PRECISION = 5.0, 0.25
_MODE_STEPS, _MODE_RATE = 300, 5e-2


def mlp(
    n_in: int, hidden: tuple[int, ...], n_out: int, *, zero_last: bool = False
) -> nn.Sequential:
    """SiLU perceptron."""
    layers: list[nn.Module] = []
    for size in hidden:
        layers += [nn.Linear(n_in, size), nn.SiLU()]
        n_in = size
    last = nn.Linear(n_in, n_out)
    if zero_last:
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
    return nn.Sequential(*layers, last)


class Decoder(nn.Module):
    """log p(x, z) with z ∼ N(0, I) and x | z a diagonal Gaussian."""

    def __init__(self, d: int, k: int, hidden: tuple[int, ...], heteroscedastic: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(k, d)
        self.log_scale = nn.Parameter(torch.zeros(d))
        self.heteroscedastic = heteroscedastic
        self.net = mlp(k, hidden, 2 * d if heteroscedastic else d, zero_last=True)

    @torch.no_grad()
    def start_(self, X: np.ndarray) -> None:
        """At probabilistic PCA."""
        ppca = fit_ppca(X, self.linear.in_features, min_scale=1e-2)
        self.linear.weight.copy_(torch.as_tensor(ppca.weight))
        self.linear.bias.copy_(torch.as_tensor(ppca.loc))
        self.log_scale.fill_(math.log(ppca.scale))

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Location and log scale of x given z."""
        if not self.heteroscedastic:
            return self.linear(z) + self.net(z), self.log_scale.clamp(min=_MIN_LOG_SCALE)
        shift, change = self.net(z).chunk(2, -1)
        log_scale = (self.log_scale + 3 * torch.tanh(change / 3)).clamp(min=_MIN_LOG_SCALE)
        return self.linear(z) + shift, log_scale

    def log_likelihood(self, x: Tensor, z: Tensor) -> Tensor:
        """log p(x | z)."""
        loc, log_scale = self(z)
        square = ((x - loc) * torch.exp(-log_scale)).square()
        return -(0.5 * square + log_scale + 0.5 * LOG_2PI).sum(-1)

    def log_joint(self, x: Tensor, z: Tensor) -> Tensor:
        """log p(x, z)."""
        return self.log_likelihood(x, z) + log_normal(z)


def log_normal(z: Tensor) -> Tensor:
    """log N(z; 0, I)."""
    return -0.5 * (z.square() + LOG_2PI).sum(-1)


def _gaussian_draws(loc: Tensor, log_scale: Tensor, n: int, generator: torch.Generator):
    """Draws ``(n, rows, k)`` of a diagonal Gaussian for each row, and its log-density."""
    scale = log_scale.exp()

    def log_density(z: Tensor) -> Tensor:
        return log_normal((z - loc) / scale) - log_scale.sum(-1)

    return loc + scale * torch.randn(n, *loc.shape, generator=generator), log_density


class _DecoderModel(TransformerMixin, TorchModel):
    """What the three models share: parameters, likelihood, latents, reconstruction, samples."""

    _heteroscedastic = True

    def __init__(
        self,
        n_components=2,
        *,
        hidden_layer_sizes=(128, 128),
        training=None,
        n_importance=500,
        random_state=0,
    ):
        self.n_components = n_components
        self.hidden_layer_sizes = hidden_layer_sizes
        self.training = training
        self.n_importance = n_importance
        self.random_state = random_state

    def _start_decoder(self, fit: Tensor) -> None:
        self.decoder_ = Decoder(
            fit.shape[1], self.n_components, self.hidden_layer_sizes, self._heteroscedastic
        )
        self.decoder_.start_(fit.numpy())

    def _elbo(self, x: Tensor, loc: Tensor, log_scale: Tensor, xi: Tensor) -> Tensor:
        """log p(x | z) − KL(q ‖ p) at z = loc + e^log_scale ξ."""
        kl = 0.5 * (loc.square() + (2 * log_scale).exp() - 1 - 2 * log_scale).sum(-1)
        return self.decoder_.log_likelihood(x, loc + log_scale.exp() * xi) - kl

    def posterior(self, X) -> tuple[Tensor, Tensor]:
        """Location and log scale of q(z | x) of each row."""
        return self._posterior(torch.tensor(np.asarray(X), dtype=torch.float32))

    def transform(self, X):
        """Mean of q(z | x)."""
        return self.posterior(X)[0].numpy()

    @torch.no_grad()
    def inverse_transform(self, Z):
        """E[x | z]."""
        return self.decoder_(torch.tensor(np.asarray(Z), dtype=torch.float32))[0].numpy()

    def sample(self, n_samples=1, random_state=0):
        """Draws of x."""
        generator = torch.Generator().manual_seed(random_state)
        with torch.no_grad():
            z = torch.randn(n_samples, self.n_components, generator=generator)
            loc, log_scale = self.decoder_(z)
            return (loc + log_scale.exp() * torch.randn(loc.shape, generator=generator)).numpy()

    def _log_weights(self, X, n: int):
        """log p(x, z) − log q(z | x) for ``n`` draws per row, a few rows at a time."""
        x = torch.tensor(np.asarray(X), dtype=torch.float32)
        loc, log_scale = self._posterior(x)
        generator = torch.Generator().manual_seed(self.random_state)
        for part in torch.arange(len(x)).split(_CHUNK):
            z, log_q = _gaussian_draws(loc[part], log_scale[part], n, generator)
            with torch.no_grad():
                yield self.decoder_.log_joint(x[part], z) - log_q(z)

    def score_samples(self, X):
        """log p(x) by importance sampling, ``n_importance`` draws of each of two proposals.

        One is q(z | x). It is trained to cover no more than it must, and an encoder knows little of
        rows unlike those it has seen. So the other is a Student t about the highest mode of
        p(z | x) that ascent finds from q and from the decoder's linear part, as wide as the
        curvature there says. All draws are weighted against the mixture of both. Low in expectation
        by Jensen's inequality, as any such estimate.
        """
        x = torch.tensor(np.asarray(X), dtype=torch.float32)
        loc, log_scale = self._posterior(x)
        generator = torch.Generator().manual_seed(self.random_state)
        n, found = self.n_importance, []
        for part in torch.arange(len(x)).split(_CHUNK):
            rows = x[part]
            proposals = [
                _gaussian_draws(loc[part], log_scale[part], n, generator),
                self._student_draws(rows, loc[part], n, generator),
            ]
            z = torch.cat([drawn for drawn, _ in proposals])
            log_q = torch.stack([log_density(z) for _, log_density in proposals])
            with torch.no_grad():
                log_weight = self.decoder_.log_joint(rows, z) - torch.logsumexp(log_q, 0)
            found.append(torch.logsumexp(log_weight, 0) - math.log(n))
        return torch.cat(found).double().numpy()

    def _student_draws(self, x: Tensor, guess: Tensor, n: int, generator: torch.Generator):
        """Draws ``(n, rows, k)`` of a Student t about each row's mode, and its log-density."""
        mode = self._modes(x, guess)
        hessian = torch.func.vmap(torch.func.hessian(self.decoder_.log_joint, argnums=1))(x, mode)
        precision, axes = torch.linalg.eigh(-hessian)
        scale = precision.clamp(min=_LEAST_PRECISION).rsqrt()
        k = mode.shape[1]
        xi = torch.randn(n, *mode.shape, generator=generator)
        # Chi-squared of as many degrees of freedom, from as many squared normal numbers.
        squares = torch.randn(n, len(mode), int(_FREEDOM), generator=generator).square().sum(-1)
        along = scale * xi / (squares / _FREEDOM).sqrt()[..., None]
        constant = (
            math.lgamma((_FREEDOM + k) / 2)
            - math.lgamma(_FREEDOM / 2)
            - 0.5 * k * math.log(_FREEDOM * math.pi)
        )

        def log_density(z: Tensor) -> Tensor:
            white = torch.einsum("nrk,rkj->nrj", z - mode, axes) / scale
            tails = -(_FREEDOM + k) / 2 * torch.log1p(white.square().sum(-1) / _FREEDOM)
            return constant - scale.log().sum(-1) + tails

        return mode + torch.einsum("nrj,rkj->nrk", along, axes), log_density

    def _modes(self, x: Tensor, guess: Tensor) -> Tensor:
        """The highest z ``(rows, k)`` that ascent finds from ``guess`` and from the linear part."""
        starts = torch.stack([guess, self._linear_posterior(x)[0]])
        z = starts.clone().requires_grad_(True)
        optimizer = torch.optim.Adam([z], lr=_MODE_RATE)
        for step in range(_MODE_STEPS):
            optimizer.param_groups[0]["lr"] = _MODE_RATE * (1 - step / _MODE_STEPS)
            (z.grad,) = torch.autograd.grad(-self.decoder_.log_joint(x, z).sum(), z)
            optimizer.step()
        with torch.no_grad():
            tried = torch.cat([starts, z])
            best = self.decoder_.log_joint(x, tried).argmax(0)
            return tried[best, torch.arange(len(x))]

    @torch.no_grad()
    def _linear_posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Location and log scale of each row under the linear part of the decoder."""
        weight, variance = self.decoder_.linear.weight, (2 * self.decoder_.log_scale).exp()
        scaled = weight.T / variance
        precision = torch.eye(weight.shape[1]) + scaled @ weight
        loc = torch.linalg.solve(precision, scaled @ (x - self.decoder_.linear.bias).T).T
        return loc, (-0.5 * torch.diagonal(precision).log()).expand_as(loc)

    def iwae_samples(self, X):
        """IWAE bound on log p(x): ``n_importance`` draws of q per row."""
        n = self.n_importance
        parts = [torch.logsumexp(w, 0) - math.log(n) for w in self._log_weights(X, n)]
        return torch.cat(parts).double().numpy()

    def elbo_samples(self, X, n_draws=50):
        """ELBO of each row."""
        parts = [w.mean(0) for w in self._log_weights(X, n_draws)]
        return torch.cat(parts).double().numpy()

    def score(self, X, y=None):
        """Mean of :meth:`score_samples`."""
        return float(self.score_samples(X).mean())


class VAE(_DecoderModel):
    """Variational autoencoder: q(z | x) is a diagonal Gaussian given by an encoder."""

    def _fit(self, fit, held_out, generator):
        self._start_decoder(fit)
        d, k = fit.shape[1], self.n_components
        self.encoder_ = mlp(d, self.hidden_layer_sizes, 2 * k)
        module = nn.ModuleList([self.encoder_, self.decoder_])

        def loss(rows):
            loc, log_scale = self.encoder_(fit[rows]).chunk(2, -1)
            xi = torch.randn(loc.shape, generator=generator)
            return -self._elbo(fit[rows], loc, log_scale, xi).mean()

        fixed = torch.randn(8, len(held_out), k, generator=generator)

        @torch.no_grad()
        def validate():
            return -float(self._elbo(held_out, *self._posterior(held_out), fixed).mean())

        return self.training_.run(module, loss, len(fit), validate=validate, generator=generator)

    @torch.no_grad()
    def _posterior(self, x):
        return self.encoder_(x).chunk(2, -1)


class _PerRow(_DecoderModel):
    """Training with parameters of its own for the posterior of every row.

    A new row gets its posterior by the same ascent, with the decoder held fixed.
    """

    _draws = 4
    _training = Training(n_evaluations=30, patience=30)
    _local_learning_rate, _n_local_steps = 3e-2, 300

    def _start(self, x: Tensor) -> Tensor:
        """(location, log scale) of each row under the linear part of the decoder, ``(n, 2k)``."""
        return torch.cat(self._linear_posterior(x), 1)

    def _fit(self, fit, held_out, generator):
        self._start_decoder(fit)
        table = nn.Embedding.from_pretrained(self._start(fit), freeze=False, sparse=True)
        local = torch.optim.SparseAdam(table.parameters(), lr=self._local_learning_rate)

        def loss(rows):
            return self._objective(fit[rows], table(rows), generator)

        found = [self._start(held_out)]

        def validate():
            # The posteriors of the held-out rows follow the decoder from evaluation to evaluation.
            found[0] = self._ascend(held_out, found[0], 50)
            with torch.no_grad():
                return float(self._objective(held_out, found[0], self._fixed()))

        return self.training_.run(
            self.decoder_, loss, len(fit), validate=validate, generator=generator, extra=local
        )

    def _fixed(self):
        return torch.Generator().manual_seed(self.random_state)

    def _ascend(self, x: Tensor, start: Tensor, n_steps: int) -> Tensor:
        local = start.clone().requires_grad_(True)
        optimizer = torch.optim.Adam([local], lr=self._local_learning_rate)
        generator = self._fixed()
        for step in range(n_steps):
            optimizer.param_groups[0]["lr"] = self._local_learning_rate * (1 - step / n_steps)
            # Rows do not share parameters, so the sum and not the mean: one row's step does not
            # depend on how many there are.
            value = len(x) * self._objective(x, local, generator)
            (local.grad,) = torch.autograd.grad(value, local)
            optimizer.step()
        return local.detach()


class NonAmortisedVI(_PerRow):
    """A diagonal Gaussian q for every row, with parameters of its own."""

    def _objective(self, x, local, generator):
        loc, log_scale = local.chunk(2, -1)
        xi = torch.randn(self._draws, *loc.shape, generator=generator)
        return -self._elbo(x, loc, log_scale, xi).mean()

    def _posterior(self, x):
        return self._ascend(x, self._start(x), self._n_local_steps).chunk(2, -1)


class HardEM(_PerRow):
    """The most likely z of every row (hard EM), with scales s that do not depend on z.

    Where they do, the points move to where the scale is smallest, and the likelihood collapses. It
    has no posterior: likelihoods come from one fitted afterwards, as :class:`NonAmortisedVI` does,
    to the decoder that this has trained.
    """

    _heteroscedastic = False

    def _objective(self, x, local, generator):
        return -self.decoder_.log_joint(x, local.chunk(2, -1)[0]).mean()

    def _posterior(self, x):
        local = self._ascend(x, self._start(x), self._n_local_steps)
        gaussian = NonAmortisedVI(random_state=self.random_state)
        gaussian.decoder_ = self.decoder_
        return gaussian._ascend(x, local, self._n_local_steps).chunk(2, -1)

    def transform(self, X):
        """The most likely z of each row."""
        x = torch.tensor(np.asarray(X), dtype=torch.float32)
        return self._ascend(x, self._start(x), self._n_local_steps)[:, : self.n_components].numpy()
