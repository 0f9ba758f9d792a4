"""
Latents before a classifier, with calibrated probabilities
==========================================================

``CalibratedClassifierCV`` around a pipeline, and whether its probabilities hold what they say.
"""

# %%
# The estimator is a transformer like any other, so that a calibrated classifier can be wrapped
# around the pipeline or, as here to save fits, around the classifier alone. For the latter the
# latents are computed once from training rows: the labels play no part in them.

import warnings

import matplotlib.pyplot as plt
from sklearn.calibration import CalibratedClassifierCV, CalibrationDisplay
from sklearn.datasets import load_breast_cancer
from sklearn.metrics import brier_score_loss
from sklearn.model_selection import train_test_split
from sklearn.naive_bayes import GaussianNB

from sklvebm import LVEBMEstimator

# Fits are short here. In code of your own, leave this line out.
warnings.filterwarnings("ignore", "the held-out log-likelihood was still rising")

X, y = load_breast_cancer(return_X_y=True)
X_train, X_test, y_train, y_test = train_test_split(X, y, test_size=0.4, random_state=0)

latents = LVEBMEstimator(n_components=6, max_iter=200, random_state=0).fit(X_train)
Z_train, Z_test = latents.transform(X_train), latents.transform(X_test)

# %%
# Naive Bayes is known for probabilities near zero and one.

plain = GaussianNB().fit(Z_train, y_train)
calibrated = CalibratedClassifierCV(GaussianNB(), method="isotonic", cv=5).fit(Z_train, y_train)

fig, ax = plt.subplots(figsize=(5, 4.2), layout="constrained")
for name, classifier in [("naive Bayes", plain), ("calibrated", calibrated)]:
    probability = classifier.predict_proba(Z_test)[:, 1]
    loss = brier_score_loss(y_test, probability)
    print(f"{name:12s} accuracy {classifier.score(Z_test, y_test):.3f}, Brier score {loss:.3f}")
    CalibrationDisplay.from_predictions(
        y_test, probability, n_bins=6, strategy="quantile", ax=ax, name=name
    )
plt.show()

# %%
# Uncertain latents can be passed on: classify draws from the posterior of each row and average the
# probabilities. A row whose latents are uncertain then gets a milder answer.

draws = latents.sample_posterior(X_test, n_samples=20, random_state=0)
averaged = sum(calibrated.predict_proba(Z)[:, 1] for Z in draws) / len(draws)
print(f"averaged over posterior draws: Brier score {brier_score_loss(y_test, averaged):.3f}")
