"""What a fit tells while it runs: scikit-learn's callbacks (1.9 and later), and lines of text."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray


class NoContext:
    """A callback context that nobody listens to."""

    def subcontext(self, **task: Any) -> NoContext:
        """A task below this one."""
        return self

    def call_on_fit_task_begin(self, **task: Any) -> NoContext:
        """Tell nobody."""
        return self

    def call_on_fit_task_end(self, **task: Any) -> bool:
        """Tell nobody; nobody asks to stop."""
        return False


try:
    from sklearn.callback import CallbackSupportMixin, with_callbacks
except ImportError:  # scikit-learn before 1.9

    class CallbackSupportMixin:  # type: ignore[no-redef]
        """An estimator without callbacks."""

        def _init_callback_context(self, **task: Any) -> NoContext:
            return NoContext()

    def with_callbacks(method: Callable) -> Callable:
        """No callbacks to tear down."""
        return method


# What scikit-learn keeps on an estimator during a fit, and takes away after it.
BOOKKEEPING = ("_callback_fit_ctx", "_skl_callbacks_to_teardown")


class Screen:
    """Lines of text about a fit; its seconds count from here on.

    Parameters
    ----------
    verbose : int
        1 prints a line per stage, 2 a line per evaluation.
    """

    def __init__(self, verbose: int) -> None:
        self.verbose = verbose
        self._last: dict[str, Any] = {}
        self._started = time.perf_counter()

    def tell(self, text: str) -> None:
        """What was found before training."""
        if self.verbose:
            self._print_over(text)

    def show(self, row: dict[str, Any]) -> None:
        """An evaluation: itself, or the last one of the stage that it ends."""
        if self.verbose > 1:
            print(f"[sklvebm] {_line(row)}", flush=True)
        elif self._last and self._last["stage"] != row["stage"]:
            self.end_stage()
        self._last = row

    def end_stage(self) -> None:
        """The stage of the last evaluation is over."""
        if self.verbose == 1 and self._last:
            self._print_over(_line(self._last))

    def _print_over(self, text: str) -> None:
        print(f"[sklvebm] {text} ({time.perf_counter() - self._started:.1f} s)", flush=True)


class Reporter:
    """Passes each evaluation on: to the callbacks as a task of the fit, and to the screen.

    Parameters
    ----------
    estimator : LVEBMEstimator
    context : CallbackContext or NoContext
        Of the whole fit.
    X : ndarray
        The training rows, in the user's units.
    screen : Screen
    attributes : callable
        ``attributes(result)`` are the attributes of an estimator that found this result.
    """

    def __init__(
        self,
        estimator: Any,
        context: Any,
        X: NDArray,
        *,
        screen: Screen,
        attributes: Callable[[Any], dict[str, Any]],
    ) -> None:
        self.estimator, self.context, self.X = estimator, context, X
        self.screen, self.attributes = screen, attributes

    def __call__(self, row: dict[str, Any], snapshot: Callable[[], Any]) -> bool:
        """Report a row of the history; returns whether a callback asks to stop.

        ``snapshot()`` finishes the state of this moment to a result whose model answers: it is only
        taken where a callback wants a fitted estimator.
        """
        self.screen.show(row)
        task = self.context.subcontext(task_name=row["stage"])
        task.call_on_fit_task_begin(estimator=self.estimator, X=self.X, metadata=dict(row))
        return task.call_on_fit_task_end(
            estimator=self.estimator,
            X=self.X,
            metadata=dict(row),
            reconstruction_attributes=lambda: self.attributes(snapshot()),
        )

    def close(self) -> None:
        """The last stage is over."""
        self.screen.end_stage()
        self.context.call_on_fit_task_end(estimator=self.estimator, X=self.X)


def _line(row: dict[str, Any]) -> str:
    parts = [f"{row['stage']}, update {row['n_iter']}"]
    if math.isfinite(row["energy_gap"]):
        parts.append(f"energy gap {row['energy_gap']:.2f}")
    if "log_likelihood" in row:
        parts.append(f"held-out log-likelihood {row['log_likelihood']:.3f} nats per row")
    return ", ".join(parts)
