"""
Grid search and successive halving
==================================

Hyper-parameters by held-out likelihood, nested ones included, with ``max_iter`` as the resource.
"""

# %%
# ``score`` is a normalised log-likelihood, so it can be compared across hyper-parameters,
# different energies and numbers of latents included. No ``scoring`` is needed. The budgets here
# are tiny and there is one split: the search shows the mechanics, its winner says little.

import warnings

import matplotlib.pyplot as plt
import pandas as pd
from sklearn.datasets import load_wine
from sklearn.experimental import enable_halving_search_cv  # noqa: F401
from sklearn.model_selection import GridSearchCV, HalvingGridSearchCV, ShuffleSplit

from sklvebm import LVEBMEstimator

# Fits are short here. In code of your own, leave this line out.
warnings.filterwarnings("ignore", "the held-out log-likelihood was still rising")

X = load_wine().data
split = ShuffleSplit(1, test_size=0.3, random_state=0)

# %%
# Parameters of the energy nest: ``energy__hidden_layer_sizes`` works although ``energy`` is a name.

search = GridSearchCV(
    LVEBMEstimator(energy="tilted", max_iter=40, random_state=0),
    {"n_components": [2, 4], "energy__hidden_layer_sizes": [(32,), (64, 64)]},
    cv=split,
    refit=False,
).fit(X)

columns = ["param_n_components", "param_energy__hidden_layer_sizes", "mean_test_score"]
print(pd.DataFrame(search.cv_results_)[columns].to_string(index=False))

# %%
# Successive halving gives every candidate few updates, and the better ones more. The resource is
# ``max_iter`` instead of the number of rows; twenty evaluations per fit come with any budget.

halving = HalvingGridSearchCV(
    LVEBMEstimator(random_state=0),
    {"n_components": [2, 3, 4]},
    resource="max_iter",
    min_resources=30,
    max_resources=90,
    factor=3,
    cv=split,
    random_state=0,
    refit=False,
).fit(X)

columns = ["iter", "n_resources", "param_n_components", "mean_test_score"]
rounds = pd.DataFrame(halving.cv_results_)[columns]
print(rounds.to_string(index=False))

fig, ax = plt.subplots(figsize=(5.5, 3), layout="constrained")
for components, rows in rounds.groupby("param_n_components"):
    ax.plot(rows["n_resources"], rows["mean_test_score"], "o-", label=f"{components} components")
ax.set(xlabel="max_iter", ylabel="held-out score, nats per row")
ax.legend()
plt.show()

# %%
# The score of the winner can fall from one round to the next: every fit is stopped by its own
# held-out rows, and the table is small. With ``n_jobs`` the candidates run in parallel processes,
# each limited to its share of threads by joblib. In earnest: the default ``max_iter``, five folds,
# and no trust in differences below a standard error of the score.
