"""
A search with Optuna
====================

The likelihood as the objective, every evaluation reported, poor trials ended early. It needs Optuna
(``pip install optuna``), which nothing else in this package does, and scikit-learn 1.9 or later.
"""

# %%
# A callback tells the trial the held-out log-likelihood of every evaluation. Where the trial lies
# behind the median of the others it raises ``TrialPruned``: the fit ends there, and log Z is not
# computed. That likelihood is in standardised units and only compared with its like.

import warnings

import matplotlib.pyplot as plt
import optuna
from sklearn.datasets import load_wine
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import train_test_split

from sklvebm import LVEBMEstimator, TiltedEnergy

optuna.logging.set_verbosity(optuna.logging.WARNING)
X_train, X_valid = train_test_split(load_wine().data, random_state=0)


class Report:
    """Reports each evaluation to a trial, and ends the fit where the trial should be pruned."""

    def __init__(self, trial):
        self.trial = trial

    def setup(self, estimator, context):
        self.step = None

    def teardown(self, estimator, context):
        pass

    def on_fit_task_begin(self, estimator, context):
        pass

    def on_fit_task_end(self, estimator, context, *, metadata=None):
        if metadata is None or metadata["n_iter"] == self.step:
            return  # the fit as a whole; a stage's start, where the one before ended
        if "log_likelihood" not in metadata:
            return  # a small table is trained on once more, with no row held out
        self.step = metadata["n_iter"]
        self.trial.report(metadata["log_likelihood"], self.step)
        if self.trial.should_prune():
            raise optuna.TrialPruned


# %%
# The objective is the score of rows that no fit has seen: a normalised log-likelihood, so that
# trials of any size and learning rate compare.


def objective(trial):
    width = trial.suggest_categorical("width", [16, 64])
    model = LVEBMEstimator(
        n_components=trial.suggest_int("n_components", 1, 6),
        energy=TiltedEnergy(hidden_layer_sizes=(width, width)),
        learning_rate=trial.suggest_float("learning_rate", 1e-3, 1e-1, log=True),
        max_iter=400,
        random_state=0,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # short fits
        return model.set_callbacks(Report(trial)).fit(X_train).score(X_valid)


study = optuna.create_study(
    direction="maximize",
    sampler=optuna.samplers.TPESampler(seed=0),
    pruner=optuna.pruners.MedianPruner(n_startup_trials=3, n_warmup_steps=60),
)
study.optimize(objective, n_trials=10)
print(f"{study.best_value:.2f} nats per row with {study.best_params}")

# %%
# Each line is a trial; the grey ones were ended early.

_, ax = plt.subplots(figsize=(6, 3.2), layout="constrained")
for trial in study.trials:
    pruned = trial.state == optuna.trial.TrialState.PRUNED
    curve = trial.intermediate_values
    ax.plot(curve.keys(), curve.values(), color="0.75" if pruned else "C0", lw=1, marker=".")
ax.set(xlabel="update", ylabel="held-out log-likelihood, nats per row")
plt.show()
