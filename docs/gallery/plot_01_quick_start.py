"""
Quick start: digits, in a pipeline with a classifier
====================================================

A density and a transformer in one: score, sample, reconstruct, and classify from the latents.
"""

# %%
# Pixels are integers from 0 to 16. A density on a grid has no finite likelihood, so each pixel gets
# uniform noise of the grid's width. :class:`~sklvebm.LVEBMEstimator` standardises inside.
#
# ``max_iter`` is a small part of the default here, and a ``ConvergenceWarning`` would say so; it is
# silenced for that reason alone.

import warnings

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline

from sklvebm import LVEBMEstimator

# Fits are short here. In code of your own, leave this line out.
warnings.filterwarnings("ignore", "the held-out log-likelihood was still rising")

X, y = load_digits(return_X_y=True)
X = X + np.random.RandomState(0).uniform(size=X.shape)
X_train, X_test, y_train, y_test = train_test_split(
    X, y, train_size=500, test_size=200, random_state=0
)

model = LVEBMEstimator(n_components=10, max_iter=300, random_state=0).fit(X_train)

# %%
# The score is a mean normalised log-density, in nats per row and in the units of ``X``; the report
# says how sure it is.

print(model.score_report(X_test))

# %%
# ``transform`` gives the posterior mean of the latents, ``inverse_transform`` leads back to pixels,
# and ``sample`` draws new rows from the joint.

Z = model.transform(X_test)
back = model.inverse_transform(Z[:8])
drawn = model.sample(8, random_state=0)

fig, axes = plt.subplots(3, 8, figsize=(8, 3.4), layout="constrained")
for row, (title, images) in enumerate(
    [("test rows", X_test[:8]), ("and back", back), ("samples", drawn)]
):
    for ax, image in zip(axes[row], images, strict=True):
        ax.imshow(image.reshape(8, 8), cmap="gray_r", vmin=0, vmax=17)
        ax.set(xticks=[], yticks=[])
    axes[row, 0].set_ylabel(title)
plt.show()

# %%
# The latents feed a classifier. Fitting the whole as a pipeline would look like this:

pipeline = make_pipeline(
    LVEBMEstimator(n_components=10, max_iter=300, random_state=0),
    LogisticRegression(max_iter=1000),
)
pipeline

# %%
# The estimator above is fitted already, so only the classifier is fitted here, on the latents of
# the training rows.

classifier = LogisticRegression(max_iter=1000).fit(model.transform(X_train), y_train)
print(f"accuracy on held-out rows, from ten latents: {classifier.score(Z, y_test):.3f}")
