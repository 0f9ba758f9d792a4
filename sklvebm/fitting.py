"""A fit under way: its form, what pilots settle, the file it is kept in, its training.

The estimator has the user's parameters and table; a trainer has rows as the energy sees them. A fit
leads from the one to the other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from numbers import Integral
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import clone

from . import __version__
from ._arrays import to_numpy
from ._callbacks import Screen
from ._parameters import Settled, checked_choice, checked_options
from .checkpoint import Checkpoint, Progress, described, digest
from .distributed import Group
from .energies import EnergySpec, as_spec
from .marginals import MarginalMaps
from .model import Model
from .pilot import Pilots
from .saddle import DivergenceError, Keep, Outcome
from .training import Options, Result, Trainer
from .units import Units

_MARGINALS = ("auto", "gaussian", "mixture")


class Form(NamedTuple):
    """What is to be fitted, its automatic parameters settled, but for what pilots are to say.

    That are "auto" marginals, and the smoothing if ``weighs_smoothing``. The specification is a
    copy: what the user sets on theirs afterwards is for the next fit.
    """

    spec: EnergySpec
    options: Options
    marginals: str
    weighs_smoothing: bool

    @classmethod
    def checked(
        cls,
        parameters: dict[str, Any],
        X: NDArray,
        weight: NDArray,
        *,
        n_samples: float,
        settled: Settled | None = None,
        **overrides: Any,
    ) -> Form:
        """The estimator's parameters for a table of distinct rows ``X (n, d)`` and their weights.

        Parameters
        ----------
        n_samples : float
            Rows that automatic parameters count: those of earlier batches, too.
        settled : Settled, optional
            Where it is known already; pilots are not asked then.
        **overrides
            Options that are given, whatever the parameters say.

        Raises
        ------
        TypeError, ValueError
            If a parameter is of the wrong type or out of range.
        """
        spec = clone(as_spec(parameters["energy"]))
        options = checked_options(
            parameters,
            n_features=X.shape[1],
            n_samples=n_samples,
            share_of_pairs=_share_of_pairs(X, weight),
            is_decayed=spec.is_decayed,
        )
        marginals = checked_choice("marginals", parameters["marginals"], _MARGINALS)
        if marginals == "auto":
            weighs = spec.weighs_marginals(X.shape[1])
            marginals = settled.marginals if settled else "auto" if weighs else "gaussian"
        weighs_smoothing = options["smoothing"] == "auto" and not settled and spec.weighs_smoothing
        if options["smoothing"] == "auto":
            options["smoothing"] = settled.smoothing if settled else 0.0
        return cls(spec, Options(**{**options, **overrides}), marginals, weighs_smoothing)

    def continuing(self, start: Model, marginals: str) -> Form:
        """The same for a fit that goes on from ``start`` and its ``marginals``, and keeps its form.

        Raises
        ------
        ValueError
            If another form is asked for.
        """
        pairs = {
            "energy": (described(start.spec), described(self.spec)),
            "marginals": (marginals, self.marginals),
            "n_components": (start.energy.reference.n_components, self.options.n_components),
            "pool_size": (len(start.pool), self.options.pool_size),
        }
        changed = [f"{k} was {old}, and is {new}" for k, (old, new) in pairs.items() if old != new]
        if changed:
            raise ValueError(
                "a fit that goes on from the fitted model keeps its form, but "
                f"{'; '.join(changed)}. Set it back, or fit anew (warm_start=False, a clone)."
            )
        return self._replace(spec=start.spec)


def _share_of_pairs(X: NDArray, weight: NDArray) -> float:
    """How many of the pairs of entries of a row are both seen, on average."""
    return float(np.average(np.mean(~np.isnan(X), axis=1) ** 2, weights=weight))


class Fit:
    """A fit under way.

    Parameters
    ----------
    X : ndarray of shape (n, d)
        Distinct rows, in the user's units; NaN where an entry is missing.
    weight : ndarray of shape (n,)
        How often each row counts.
    form : Form
    units : Units
        With the maps of ``start``, where it goes on from a model; else they are settled here, as
        the smoothing is.
    random_state : RandomState
        What the fit draws its seeds from. It goes back to where the file says, if there is one.
    seed : int, RandomState instance or None
        What the user seeded that with.
    device : torch.device
    group : Group
    screen : Screen
    start : Model, optional
        The model that it goes on from.
    path : Path, optional
        Of its checkpoint.

    Attributes
    ----------
    form : Form
    units : Units
        Both as they were settled.

    Raises
    ------
    ValueError
        If the file is damaged or of another fit, or another process fits something else.
    """

    def __init__(
        self,
        X: NDArray,
        weight: NDArray,
        form: Form,
        *,
        units: Units,
        random_state: np.random.RandomState,
        seed: Any,
        device: torch.device,
        group: Group,
        screen: Screen,
        start: Model | None = None,
        path: Path | None = None,
    ) -> None:
        self.form, self.units, self.start = form, units, start
        self.device, self.group = device, group
        checkpoint = self._checkpoint(X, weight, seed, path)
        self._progress = Progress(checkpoint, random_state, group)
        if start is None:
            self._settle(X, weight)
            if form.marginals != "gaussian":
                screen.tell(f"marginals: {self.units.marginals}")
            if form.weighs_smoothing:
                screen.tell(f"smoothing: {self.form.options.smoothing:g}")
        x = self.units.to_model(X)
        self._trainer_of = partial(
            Trainer,
            x,
            weight,
            self.form.spec,
            random_state=random_state,
            device=device,
            start=start,
            group=group,
            log_slope=self.units.log_slope(x),
        )
        self._trainer = self._trainer_of(self.form.options)
        self._refits = self.form.options.refit and self._trainer.held_out is not None
        # The last state that the file was given of training with rows held out.
        self._search: dict[str, Any] | None = None

    @property
    def n_evaluations(self) -> int:
        """The most evaluations that there can be."""
        return self._trainer.n_evaluations * (2 if self._refits else 1)

    def run(self, report: Callable[[dict, Callable[[], Result]], bool]) -> Result:
        """Train, and finish the model; ``report`` is as in :meth:`Trainer.run`."""
        try:
            return self._run(report)
        except DivergenceError:
            # Going on from the file would end the same way.
            self.close()
            raise

    def _run(self, report: Callable[[dict, Callable[[], Result]], bool]) -> Result:
        trainer, saved = self._trainer, self._progress.saved
        if not self._refits:
            return trainer.run(report, keep=self._progress.keep, saved=saved)
        # The file holds, beside where training is, where the search ended once it has.
        found = None if saved is None else saved["search"]
        if found is None:
            # Where the file was given the last state of the search already, that is it.
            self._search = saved
            searched = trainer.train(report, keep=self._keep_search, saved=saved)
            kept = self._search and self._search | {"outcome": searched.state_dict()}
            saved = None
        else:
            searched, kept = Outcome(), found
            searched.load_state_dict(found["outcome"])
        if searched.stopped:
            return trainer.result(searched)
        again = self._trainer_of(
            replace(self.form.options, early_stopping=False), searched=searched
        )
        try:
            return again.run(report, keep=self._keep_beside(kept), saved=saved)
        except DivergenceError:
            if found is not None:
                trainer.train(lambda *_: False, saved=found)
            searched.complaints.append(
                "training on all rows (refit) diverged; the model is the one from before, trained "
                "with rows held out. Decrease learning_rate to have it refitted."
            )
            return trainer.result(searched)

    @property
    def _keep_search(self) -> Keep | None:
        keep = self._progress.keep
        if keep is None:
            return None

        def kept(common: dict[str, Any], own: dict[str, Any]) -> None:
            self._search = common | own
            keep(common, own | {"search": None})

        return kept

    def _keep_beside(self, search: dict[str, Any] | None) -> Keep | None:
        keep = self._progress.keep
        return keep and (lambda common, own: keep(common, own | {"search": search}))

    def close(self) -> None:
        """What was found is safe: the file has no more to keep."""
        self._progress.close()

    def _checkpoint(
        self, X: NDArray, weight: NDArray, seed: Any, path: Path | None
    ) -> Checkpoint | None:
        """Where this fit is written to; all processes must be at the same one."""
        form, start, group = self.form, self.start, self.group
        if path is None and group.size == 1:
            return None
        scaler, maps = self.units.scaler, self.units.maps
        tables = [X, weight, scaler.mean_, scaler.scale_]
        if start is not None and maps is not None:
            tables.append(maps.knots)
        identity = asdict(form.options) | {
            "energy": described(form.spec),
            "marginals": form.marginals,
            "weighs smoothing": form.weighs_smoothing,
            "device": self.device.type,
            "sklvebm": __version__,
            "random_state": int(seed) if isinstance(seed, Integral) else "no integer",
            "table": digest(tables),
            "model gone on from": None if start is None else digest(start.arrays()),
            "processes": group.size,
        }
        group.advice = (
            "With a checkpoint the fit could be gone on with; none was given."
            if path is None
            else f"Start all ranks again to go on from the last checkpoint, {path}."
        )
        group.agree(identity)
        return None if path is None else Checkpoint(path, identity)

    def _settle(self, X: NDArray, weight: NDArray) -> None:
        """Take the maps that the marginals want, and the smoothing, asked of pilots if need be."""
        x, form, settled = self.units.standardised(X), self.form, self._progress.settled
        pilots = Pilots(x, weight, form.spec, form.options, self.device)
        knots = settled("knots", lambda: pilots.knots(form.marginals))
        maps = None if knots is None else MarginalMaps(to_numpy(knots))
        self.units = replace(self.units, maps=maps)
        if form.weighs_smoothing:
            width = settled("smoothing", lambda: pilots.smoothing(maps))
            self.form = form._replace(options=replace(form.options, smoothing=width))
