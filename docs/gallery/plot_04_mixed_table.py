"""
A table of mixed columns
========================

Real columns through the estimator, categories beside it, by a ``ColumnTransformer``.
"""

# %%
# The model is one of real-valued columns. Categories, flags and counts of few values have no
# density on the real line: encode them beside it, rather than pushing them through.

import warnings

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from sklearn.compose import ColumnTransformer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from sklvebm import LVEBMEstimator

# Fits are short here. In code of your own, leave this line out.
warnings.filterwarnings("ignore", "the held-out log-likelihood was still rising")

# %%
# A made-up table: six sensor readings that lie near a curve, and the site that they come from.

rng = np.random.default_rng(0)
angle = rng.uniform(0, np.pi, 500)
curve = np.column_stack([np.cos(k * angle) for k in range(1, 7)])
table = pd.DataFrame(
    curve + 0.1 * rng.standard_normal(curve.shape), columns=[f"sensor_{k}" for k in range(1, 7)]
)
table["site"] = rng.choice(["north", "south", "west"], size=len(table))
target = (angle + 0.5 * (table["site"] == "south") > 1.8).astype(int)

sensors = [name for name in table if name.startswith("sensor")]
features = ColumnTransformer(
    [
        ("latents", LVEBMEstimator(n_components=2, max_iter=300, random_state=0), sensors),
        ("site", OneHotEncoder(sparse_output=False), ["site"]),
    ],
    verbose_feature_names_out=False,
).set_output(transform="pandas")
pipeline = make_pipeline(features, StandardScaler(), LogisticRegression())

train, test, y_train, y_test = train_test_split(table, target, random_state=0)
pipeline.fit(train, y_train)
print(f"accuracy on held-out rows: {pipeline.score(test, y_test):.3f}")

# %%
# Names go through: latents are called after the class, in lower case.

encoded = pipeline[0].transform(test)
print(encoded.head(3))

fig, ax = plt.subplots(figsize=(4.5, 3.5), layout="constrained")
ax.scatter(*encoded.iloc[:, :2].to_numpy().T, c=y_test, s=14, cmap="coolwarm")
ax.set(xlabel=encoded.columns[0], ylabel=encoded.columns[1], title="test rows, by target")
plt.show()

# %%
# The fitted estimator inside knows the names that it was given, and refuses a table with others.

model = pipeline[0].named_transformers_["latents"]
print(model.feature_names_in_)
print(model.score_report(test[sensors], n_worst=0))
