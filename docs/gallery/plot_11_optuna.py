"""
A search with Optuna
====================

The likelihood as the objective, each evaluation reported, poor trials pruned. Not run here: it
needs Optuna (``pip install optuna``), which nothing else in this package does.
"""

# %%
# A callback reports the held-out log-likelihood of each evaluation to the trial, and asks to stop
# where the trial lies behind the median of the others. That likelihood is in standardised units;
# all trials see the same rows, so that it can be compared between them.

import numpy as np
import optuna
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from sklvebm import LVEBMEstimator, TiltedEnergy

X = load_digits().data + np.random.RandomState(0).uniform(size=(1797, 64))  # no density on a grid
X, X_test = train_test_split(X, random_state=0)


class Report:
    """Reports to a trial, and stops the fit where the trial should be pruned."""

    def __init__(self, trial):
        self.trial = trial

    def setup(self, estimator, context):
        self.n_reports, self.pruned = 0, False

    def teardown(self, estimator, context):
        pass

    def on_fit_task_begin(self, estimator, context):
        pass

    def on_fit_task_end(self, estimator, context, *, metadata=None):
        if context.parent is None:
            return False
        self.trial.report(metadata["log_likelihood"], self.n_reports)
        self.n_reports += 1
        self.pruned = self.trial.should_prune()
        return self.pruned


def objective(trial):
    width = trial.suggest_categorical("width", [64, 128, 256])
    model = LVEBMEstimator(
        n_components=trial.suggest_int("n_components", 4, 16),
        energy=TiltedEnergy(hidden_layer_sizes=(width, width)),
        learning_rate=trial.suggest_float("learning_rate", 3e-3, 3e-2, log=True),
        random_state=0,
    )
    report = Report(trial)
    model.set_callbacks(report).fit(X)
    if report.pruned:
        raise optuna.TrialPruned
    return model.score(X_test)


study = optuna.create_study(direction="maximize", pruner=optuna.pruners.MedianPruner())
study.optimize(objective, n_trials=20)
print(study.best_params)
