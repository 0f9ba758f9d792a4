"""
Missing values and imputation
=============================

NaN entries are modelled: fitted around, scored as the observed part, filled in with their doubt.
"""

# %%
# A fifth of the entries of a table goes missing, at random. Nothing is filled in before the fit.

import warnings

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_iris
from sklearn.impute import SimpleImputer

from sklvebm import LVEBMEstimator

# Fits are short here. In code of your own, leave this line out.
warnings.filterwarnings("ignore", "the held-out log-likelihood was still rising")

rng = np.random.default_rng(0)
complete = load_iris().data
missing = rng.uniform(size=complete.shape) < 0.2
X = np.where(missing, np.nan, complete)

model = LVEBMEstimator(n_components=2, max_iter=300, random_state=0).fit(X)

# %%
# ``impute`` fills in the conditional mean, or as many random completions as asked for: the spread
# of these is the doubt that a single table hides (multiple imputation).

filled = model.impute(X)
completions = model.impute(X, n_samples=50, random_state=0)
print(f"shape of the completions: {completions.shape}")


def error(table):
    """Root mean squared error over the missing entries, in standard deviations of a column."""
    return np.sqrt(np.square((table - complete) / complete.std(axis=0))[missing].mean())


print(f"error, column means:      {error(SimpleImputer().fit_transform(X)):.3f}")
print(f"error, conditional means: {error(filled):.3f}")

low, high = np.quantile(completions, [0.05, 0.95], axis=0, method="weibull")
inside = ((low <= complete) & (complete <= high))[missing].mean()
print(f"share of the missing entries within the middle nine tenths of the draws: {inside:.2f}")

# %%
# A share below nine tenths says that the completions are surer than they should be: the fit is
# short, and the table small.

# %%
# The log-density of a row with gaps is that of what is seen, so that rows with different gaps are
# not on one scale.

print(f"entries seen: {(~missing[:3]).sum(axis=1)}")
print(f"log-density:  {np.round(model.score_samples(X[:3]), 2)}")

# %%
# Conditional draws answer "what if": petals given the sepals of the first row of each kind.

asked = complete[[0, 50, 100]].copy()
asked[:, 2:] = np.nan
draws = model.sample_conditional(asked, n_samples=200, random_state=0)

fig, ax = plt.subplots(figsize=(5.5, 3.8), layout="constrained")
ax.plot(complete[:, 2], complete[:, 3], ".", color="0.8")
for kind in range(3):
    ax.plot(*draws[:, kind, 2:].T, ".", markersize=3, color=f"C{kind}")
    ax.plot(*complete[[0, 50, 100][kind], 2:], "X", markersize=11, mec="black", color=f"C{kind}")
ax.set(xlabel="petal length, cm", ylabel="petal width, cm", title="draws, and what was hidden (x)")
plt.show()

# %%
# Entries are taken to be missing at random: what is missing may depend on what is seen, not on the
# value that is hidden. The model cannot check that.
