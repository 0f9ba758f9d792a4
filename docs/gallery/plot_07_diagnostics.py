"""
Reading the score report and the diagnostics
============================================

What a fit says of itself, and what it looks like when something is wrong.
"""

# %%
# Each fit leaves a history of twenty evaluations. With early stopping it holds the held-out
# log-likelihood (nats per row, in standardised units), which decides what is kept.

import warnings

import matplotlib.pyplot as plt
from sklearn.datasets import load_breast_cancer, load_wine
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import train_test_split

from sklvebm import LVEBMEstimator

X, X_test = train_test_split(load_wine().data, random_state=0)


def fitted(X, **parameters):
    """A fitted model, and its warnings as text."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        model = LVEBMEstimator(n_components=3, random_state=0, **parameters).fit(X)
    return model, [str(message.message) for message in caught]


model, messages = fitted(X, max_iter=400)
print("\n".join(messages) or "no warnings")

# %%
# The report: the mean and its error in three parts, the mean under the high and the low estimate of
# log Z, and the rows of the lowest log-density, to be looked at first.

report = model.score_report(X_test)
print(report)

# %%
# The figures behind the warnings. R-hat of the joint chains near one and an ESS of many hundreds
# say that these have mixed; the conditional figures are those of a few short chains per row and are
# not warned of. The energy gap is near zero where the negatives keep up with the energy.

for name, value in sorted(model.diagnostics_.items()):
    print(f"{name:28s} {value:8.3f}")

# %%
# The history of the training with rows held out. A small table is then trained on once more, with
# all rows, each stage for as long as was best.

history = [row for row in model.history_ if "log_likelihood" in row]
fig, axes = plt.subplots(1, 3, figsize=(9, 2.8), layout="constrained")
for ax, name in zip(axes, ["log_likelihood", "energy_gap", "acceptance_conditional"], strict=True):
    for stage in ("reference", "mixing", "tilt"):
        rows = [row for row in history if row["stage"] == stage]
        ax.plot([row["n_iter"] for row in rows], [row[name] for row in rows], ".-", label=stage)
    ax.set(xlabel="update", title=name.replace("_", " "))
axes[0].legend()
plt.show()

# %%
# Now something wrong on purpose: a step size of a thousand. Nearly no step is accepted, and the
# warning says which flow, and what to change.

_, messages = fitted(X, max_iter=100, step_size=1e3)
for message in messages:
    print(f"* {message}")

# %%
# And too few updates, on a larger table: the held-out likelihood was still rising.

_, messages = fitted(load_breast_cancer().data, max_iter=100)
for message in messages:
    print(f"* {message}")

# %%
# :doc:`/guide/diagnostics` goes through every message.
