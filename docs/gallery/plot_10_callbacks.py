"""
Callbacks and progress
======================

scikit-learn's callbacks (1.9 and later): progress bars, records, and a stop of your own.
"""

# %%
# Each evaluation of a fit, twenty or so, is a task. A callback sees its row of the history as
# ``metadata``: stage, update, energy gap, acceptances and, where rows are held out, their
# log-likelihood.

import time
import warnings

import matplotlib.pyplot as plt
from sklearn.datasets import load_wine

from sklvebm import LVEBMEstimator

# Fits are short here. In code of your own, leave this line out.
warnings.filterwarnings("ignore", "the held-out log-likelihood was still rising")
X = load_wine().data


class StopAfter:
    """Asks to stop once a fit has taken ``seconds``; keeps what it sees."""

    def __init__(self, seconds):
        self.seconds = seconds

    def setup(self, estimator, context):
        self.started, self.rows = time.perf_counter(), []

    def teardown(self, estimator, context):
        pass

    def on_fit_task_begin(self, estimator, context):
        pass

    def on_fit_task_end(self, estimator, context, *, metadata=None):
        if metadata is None:  # the fit as a whole
            return False
        self.rows.append(metadata)
        return time.perf_counter() - self.started > self.seconds


budget = StopAfter(seconds=5)
model = LVEBMEstimator(n_components=3, random_state=0).set_callbacks(budget).fit(X)

# %%
# Training has stopped, and the best state so far is kept: the model answers as any other.

print(f"updates: {model.n_iter_}, evaluations: {len(budget.rows)}")
print(f"score: {model.score(X):.2f} nats per row")

# %%

judged = [row for row in budget.rows if "log_likelihood" in row]
fig, ax = plt.subplots(figsize=(5.5, 3), layout="constrained")
ax.plot([row["n_iter"] for row in judged], [row["log_likelihood"] for row in judged], ".-")
ax.set(xlabel="update", ylabel="held-out log-likelihood, nats per row")
plt.show()

# %%
# For a progress bar (it needs rich), also below a grid search:
#
# .. code-block:: python
#
#    from sklearn.callback import ProgressBar
#
#    model.set_callbacks(ProgressBar()).fit(X)
#    search.set_callbacks(ProgressBar(max_propagation_depth=None)).fit(X)
#
# Without callbacks, ``verbose=1`` prints a line per stage and ``verbose=2`` a line per evaluation.

LVEBMEstimator(n_components=3, max_iter=60, verbose=2, random_state=0).fit(X)
