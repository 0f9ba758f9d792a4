"""
Two moons as an energy landscape
================================

The free energy F(x) = −log ∫ exp(−E(x, z)) dz over the plane, beside the true one.
"""

# %%
# :mod:`sklvebm.datasets` has densities that are known exactly, so that a score can be held against
# the best one possible. ``max_iter`` is well below the default.

import warnings

import matplotlib.pyplot as plt
import numpy as np

from sklvebm import LVEBMEstimator
from sklvebm.datasets import Moons

# Fits are short here. In code of your own, leave this line out.
warnings.filterwarnings("ignore", "the held-out log-likelihood was still rising")

moons = Moons()
X, X_test = moons.sample(600, random_state=0), moons.sample(200, random_state=1)
model = LVEBMEstimator(n_components=2, max_iter=400, random_state=0).fit(X)
print(model.score_report(X_test, n_worst=0))
print(f"mean true log-density of the same rows: {moons.log_prob(X_test).mean():.3f} nats")

# %%
# The free energy less its offset log Z is minus the log-density: low where rows are.

side = 30
horizontal = np.linspace(X[:, 0].min() - 0.5, X[:, 0].max() + 0.5, side)
vertical = np.linspace(X[:, 1].min() - 0.5, X[:, 1].max() + 0.5, side)
grid = np.stack(np.meshgrid(horizontal, vertical), -1).reshape(-1, 2)
energy = model.free_energy(grid) + model.log_partition_
truth = -moons.log_prob(grid)

fig, axes = plt.subplots(1, 2, figsize=(8, 3.2), sharey=True, layout="constrained")
levels = np.linspace(0, 10, 21)
for ax, title, values in zip(axes, ["fitted", "true"], [energy, truth], strict=True):
    landscape = ax.contourf(
        horizontal, vertical, values.reshape(side, side), levels, cmap="viridis_r", extend="both"
    )
    ax.plot(*X_test.T, ".", color="white", markersize=2)
    ax.set_title(title)
fig.colorbar(landscape, ax=axes, label="−log p(x), nats")
plt.show()

# %%
# A density integrates to one. The grid is coarse and ends somewhere, so its sum is near one only.

cell = (horizontal[1] - horizontal[0]) * (vertical[1] - vertical[0])
print(f"sum of the density over the grid: {np.exp(-energy).sum() * cell:.3f}")

# %%
# A mixture of Gaussians does about as well in two dimensions, in a fraction of the time:
# :doc:`/guide/limits` says when not to use an energy-based model.
