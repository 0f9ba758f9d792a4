"""
An energy of your own
=====================

Any ``torch.nn.Module`` that maps ``(x, z)`` to one energy per row can be the model.
"""

# %%
# The class (not an instance) is the parameter, called as ``Energy(n_features, n_components)`` at
# each fit. Rows arrive standardised, energies are in nats, and exp(−E) must be integrable: keep a
# quadratic term. To pickle the model, define the class in a module that can be imported.

import warnings

import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning

from sklvebm import LVEBMEstimator


class Ring(torch.nn.Module):
    """Rows lie about a circle; the latent moves them across it, and every angle is alike."""

    def __init__(self, n_features, n_components):
        super().__init__()
        self.radius = torch.nn.Parameter(torch.tensor(1.0))
        self.spread = torch.nn.Parameter(torch.tensor(0.3))
        self.log_width = torch.nn.Parameter(torch.tensor(-1.0))

    def forward(self, x, z):
        distance = x.norm(dim=-1) - self.radius - self.spread * z[..., 0]
        return 0.5 * (distance / self.log_width.exp()).square() + 0.5 * z.square().sum(-1)


# %%
# Made-up rows whose density is known. Three parameters learn faster at a larger learning rate than
# the networks that the default is meant for.


def draw(n_rows, seed):
    """A circle of radius three, blurred across."""
    rng = np.random.default_rng(seed)
    radius, angle = 3 + 0.3 * rng.standard_normal(n_rows), rng.uniform(0, 2 * np.pi, n_rows)
    return np.column_stack([radius * np.cos(angle), radius * np.sin(angle)])


def true_log_prob(X):
    """Normal in the radius, uniform in the angle, and the area element of polar coordinates."""
    radius = np.linalg.norm(X, axis=1)
    across = -0.5 * ((radius - 3) / 0.3) ** 2 - np.log(0.3 * np.sqrt(2 * np.pi))
    return across - np.log(2 * np.pi * radius)


X, X_test = draw(600, 0), draw(300, 1)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always", ConvergenceWarning)
    model = LVEBMEstimator(1, energy=Ring, max_iter=600, learning_rate=5e-2, random_state=0).fit(X)
print(model.score_report(X_test, n_worst=0))

# %%
# The closed-form linear energy is the yardstick: what a Gaussian makes of the same rows.

linear = LVEBMEstimator(1, energy="linear").fit(X)
print(f"linear energy:    {linear.score(X_test):.3f} nats per row")
print(f"true log-density: {true_log_prob(X_test).mean():.3f} nats per row")

# %%
# Nothing bounds an energy of your own, so log Z rests on the pool of particles alone. Read the
# warnings, the bounds and the diagnostics before you believe a score.

print("\n".join(f"* {message.message}" for message in caught) or "no warnings")
print("log Z: forward {:.2f}, reverse {:.2f}".format(*model.log_partition_bounds_))

# %%

drawn = model.sample(600, random_state=0)
fig, axes = plt.subplots(1, 2, figsize=(7, 3.5), sharex=True, sharey=True, layout="constrained")
for ax, title, rows in zip(axes, ["training rows", "samples"], [X, drawn], strict=True):
    ax.plot(*rows.T, ".", markersize=2)
    ax.set(title=title, aspect="equal")
plt.show()

# %%
# A function serves as well as a class, where the module has arguments of its own:
# ``energy=lambda d, k: Ring(d, k)`` (which does not pickle), or a specification with a floor for
# the noise of the proposals, ``CustomEnergy(Ring, min_scale=1e-2)``.
