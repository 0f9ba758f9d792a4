"""``LVEBMEstimator``: validate, convert, delegate, store. No mathematics."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from sklearn.base import (
    BaseEstimator,
    ClassNamePrefixFeaturesOutMixin,
    DensityMixin,
    TransformerMixin,
)
from sklearn.utils.validation import (
    _check_sample_weight,
    check_array,
    check_is_fitted,
    check_scalar,
    validate_data,
)

from ._callbacks import (
    BOOKKEEPING,
    CallbackSupportMixin,
    NoContext,
    Reporter,
    Screen,
    with_callbacks,
)
from ._format import checked, stamped
from ._links import DocumentedMixin
from ._parameters import Settled, checked_path
from ._warnings import warn_of
from .diagnostics import complaints
from .energies import EnergySpec, as_spec
from .report import score_report

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .axes import Axes
    from .distributed import Group
    from .marginals import MarginalMaps
    from .model import Model
    from .training import Result
    from .units import Units

_FLOATS = (np.float64, np.float32)


def _count(weight: NDArray) -> int | float:
    """Rows that a table of these weights stands for: a whole number where it is one."""
    total = float(weight.sum())
    return int(total) if total.is_integer() else total


class _Before(NamedTuple):
    """Updates and history of the fits that this one goes on from."""

    n_iter: int = 0
    history: tuple[dict[str, Any], ...] = ()


_NOTHING = _Before()


def _attributes(result: Result, before: _Before) -> dict[str, Any]:
    """What a training run found, as fitted attributes."""
    model, outcome = result.model, result.outcome
    rows = (row | {"n_iter": int(row["n_iter"]) + before.n_iter} for row in outcome.history)
    last = outcome.history[-1] if outcome.history else {}
    shown = {k: float(v) for k, v in last.items() if k.startswith(("acceptance", "energy_gap"))}
    return {
        "_model_cache": model,
        "_model_state": model.to_arrays(),
        "log_partition_": model.log_partition.conservative,
        "log_partition_std_": model.log_partition.std,
        "latent_variance_": model.axes.variance,
        "log_partition_bounds_": (model.log_partition.forward, model.log_partition.reverse),
        "n_iter_": before.n_iter + max(outcome.n_iter, 1),
        "converged_": outcome.converged,
        "history_": [*before.history, *rows],
        "step_size_": result.step_sizes,
        "diagnostics_": shown | result.diagnostics,
    }


class LVEBMEstimator(
    DocumentedMixin,
    CallbackSupportMixin,
    ClassNamePrefixFeaturesOutMixin,
    TransformerMixin,
    DensityMixin,
    BaseEstimator,
):
    r"""Latent-variable energy-based model: a density and a transformer for real-valued tables.

    One joint energy E(x, z) of a row x and its latent vector z is fitted by maximum likelihood
    [1]_. The fitted model scores rows (``score_samples``), draws them (``sample``), gives their
    latents (``transform``) and rows back from these (``inverse_transform``), and fills in missing
    values (``impute``). Features are standardised inside; likelihoods are in the units of ``X``.

    Usually ``n_components``, ``energy``, ``max_iter``, ``random_state`` and ``verbose`` are all
    that is set. The other defaults were chosen by measurement (docs/choices.md).

    Parameters
    ----------
    n_components : int or None, default=None
        Number k of latents. None is half of the features, at least 2 and at most 10 (1 for a single
        feature).
    energy : str, EnergySpec, or torch.nn.Module class or factory, default="tilted"
        - "tilted": a learned normalised reference, started at probabilistic PCA, plus a free joint
          tilt; see :class:`~sklvebm.energies.TiltedEnergy`.
        - "free": a free joint network on a frozen Gaussian, the form of [1]_; see
          :class:`~sklvebm.energies.FreeEnergy`.
        - "linear": linear-Gaussian, all in closed form; see
          :class:`~sklvebm.energies.LinearEnergy`.
        - a callable ``(n_features, n_components) -> torch.nn.Module`` whose module maps
          ``x (n, d)`` (standardised, and mapped where ``marginals_`` is "mixture") and ``z (n, k)``
          to energies ``(n,)`` in nats.

        Hyper-parameters nest: ``set_params(energy__hidden_layer_sizes=(64,))`` also works when
        ``energy`` is a name, and replaces the name by its specification.
    marginals : {"auto", "gaussian", "mixture"}, default="auto"
        How each feature is modelled by itself, before the energy sees it.

        - "gaussian": it is standardised.
        - "mixture": a mixture of one to eight normals is fitted to it, and a monotone map widens
          these, so that spikes become bumps. Answers stay in the user's units; means of
          observations are taken over draws.
        - "auto": short trial fits of the reference compare both on held-out rows, and "mixture" is
          taken if it is better by two standard errors. The choice does not depend on
          ``random_state``. Only ``fit`` with the tilted energy compares, and only with noise that
          is not isotropic and no Fourier features (more than four features); otherwise
          "gaussian".
    whiten : bool, default=False
        Scale of the latents. False: rotated to principal axes and scaled like the scores of
        scikit-learn's PCA: largest first, in standard deviations of the features, so that distances
        between latents are about those between the means of rows. True: the same axes, with prior
        variance one. The model is the same; the parameter may be changed after ``fit``. Each
        ``fit`` or ``partial_fit`` finds axes of its own. The latents of a user's module are left
        as they are.
    inference : {"langevin", "variational", "map"}, default="langevin"
        How the latents of training rows are inferred during training: persistent Langevin particles
        (an unrestricted posterior), a Gaussian with diagonal covariance for each row, or the mode
        (hard EM). It does not change how a fitted model answers.
    dynamics : {"mala", "ula"}, default="mala"
        "mala": Metropolis-adjusted Langevin steps, and for the pool also independence sweeps, which
        propose from the reference and from Gaussians fitted to the data. "ula": the unadjusted
        Langevin steps of [1]_ and nothing else, with a bias of O(step size).
    max_iter : int or "auto", default="auto"
        Maximum number of parameter updates, over all stages (start, reference, mixing, tilt; see
        :class:`~sklvebm.energies.TiltedEnergy`). "auto" is three per row, at least 1,500 and at
        most 3,000. ``refit`` adds up to as many again.
    batch_size : int, default=64
        Rows per update.
    n_particles : int, default=2
        Latent particles per row. ``inference="map"`` has one point whatever this says.
    n_steps : int or None, default=None
        Langevin steps of a row's latents before each update that uses it. None is 10 for "ula", and
        for "mala" 4, or 2 while the tilt is learned. With "ula" the pool takes as many per update,
        else one and an independence sweep.
    pool_size : int, default=512
        Number of joint negatives: particles that follow the distribution of the model.
    step_size : float or "auto", default="auto"
        Step size of all Langevin steps, in the coordinates that they move in (latents,
        preconditioned for "mala"; the reference's coordinates). "auto" adapts it to an acceptance
        of 0.6, or, for "ula", to the 0.9 that its steps would have been accepted with.
    learning_rate : float, default=1e-2
        Initial learning rate of the reference. The tilt learns at a fifth of it (with "ula" at a
        hundredth). Where reference and tilt are trained together, in ``partial_fit`` after the
        first and in ``warm_start``, both learn at a tenth.
    weight_decay : float or "auto", default="auto"
        Decoupled decay of the networks' matrices, in units of the learning rate (AdamW). "auto" is
        400 divided by the number of rows seen, at least .03 and at most 3; 0 for a module of yours,
        whose matrices are decayed only where a number is given. Where entries are missing, a row
        counts by the share of its pairs of entries that are both seen.
    smoothing : float or "auto", default="auto"
        Noise that is added to training rows, which keeps small tables from being memorised: a row
        is drawn anew from N(x, h² S) whenever it is used, where S is the covariance, about x, of
        its ten nearest neighbours in the units that the model learns in, and h is this number
        (manifold Parzen windows [2]_). 0: none. "auto": where a short trial fit learns rows by
        heart, so that held-out rows lose again before it ends, more of them compare 0, .2 and .4
        on those; each must gain more than ``tol`` over the last. Only ``fit`` of fewer than 1,000
        rows with the tilted energy compares; otherwise 0. Rows held out, and those that are scored,
        stay as they are. To find neighbours takes time quadratic in the rows where there are many
        features or missing entries.
    tol : float, default=1e-2
        Gain in held-out log-likelihood, in nats per row, that counts as an improvement.
    n_iter_no_change : int, default=12
        Evaluations without improvement after which the tilt stage stops. The stages before it,
        whose likelihood has no noise of log Z, stop after a quarter as many. There are twenty
        evaluations in ``max_iter`` updates, at least five updates apart.
    validation_fraction : float, default=0.1
        Fraction of the distinct rows that is held out for early stopping: at least the smaller of
        20 rows and a quarter of them, at most 256 rows, and never a larger share of the weight
        than of the rows.
    early_stopping : bool, default=True
        Stop by the held-out log-likelihood and keep the best state, or ``refit``. False trains on
        all rows for ``max_iter`` updates.
    refit : bool or "auto", default="auto"
        Train once more, on all rows, each stage for as many updates as were best for the rows held
        out, and keep that model. "auto" is True for fewer than 1,000 rows, which gain most. Without
        early stopping all rows are trained on anyway.
    warm_start : bool, default=False
        Go on from the fitted model, training reference and tilt together, instead of starting anew.
        ``energy``, ``n_components`` and ``pool_size`` must be what they were; the units and
        ``marginals_`` stay, and so does ``smoothing_`` where "auto".
    random_state : int, RandomState instance or None, default=None
        Seeds the initial weights, the validation split, the batches, all Langevin steps, log Z, and
        the noise of every later answer. None takes a fresh seed from the operating system; the
        global generators of numpy and torch are never used.
    device : str or torch.device, default="auto"
        "auto" is CUDA where present, else the CPU.
    checkpoint : str, path-like or None, default=None
        File to which ``fit`` writes its state at every evaluation, atomically, and which it removes
        when it is done. If the file exists, ``fit`` goes on from it, and ends as it would have
        without the interruption, to the bit on the same machine with the same number of threads.
        Table, weights and parameters must be the same; where ``random_state`` is no integer, the
        seed is that of the file. One file serves one fit at a time: give none in a search.
        ``partial_fit`` writes none.
    verbose : int, default=0
        1 prints a line per stage, 2 a line per evaluation; both say which marginals and smoothing
        trial fits have chosen.

    Attributes
    ----------
    n_components_ : int
    n_samples_seen_ : int or float
        Rows (sum of the sample weights) of the last ``fit``, and of every ``partial_fit`` since.
    n_iter_ : int
        Parameter updates run; 1 where the closed form was taken.
    converged_ : bool
        False where the held-out likelihood was still rising when ``max_iter`` was reached, or a
        callback asked to stop.
    history_ : list of dict
        One entry per evaluation, with keys "stage", "n_iter" (the update), "energy_gap" (nats, of
        the last update; NaN where there was none, and in stages without a pool),
        "acceptance_conditional", "acceptance_joint", "acceptance_sweep", and, where rows are held
        out, "log_likelihood" (of these, nats per row, in standardised units) and "log_partition".
        With ``refit`` the entries of the training on all rows come after the others. Where
        marginals are mapped, the maps are those of all rows, held-out ones included.
    marginals_ : {"gaussian", "mixture"}
        How the features are modelled.
    smoothing_ : float
        Width h of the noise that was added to training rows.
    latent_variance_ : ndarray of shape (n_components_,)
        Prior variance of the latents along their principal axes, decreasing, in squared standard
        deviations of the features, whatever ``whiten`` says: the mean square of how far the mean of
        x moves with each (the variance that it explains beyond the noise, where the energy is
        linear). Ones for a user's module.
    log_partition_ : float
        log Z in nats: what ``score_samples`` subtracts.
    log_partition_std_ : float
        Its standard error.
    log_partition_bounds_ : tuple of float
        Estimates that are low (forward, from fresh draws alone) and high (reverse, from the pool
        alone, if that is in equilibrium) in expectation. Both are noisy, and may cross.
    step_size_ : dict
        Final step sizes, "conditional" and "joint".
    diagnostics_ : dict
        Final figures. In brackets the limits beyond which ``fit`` warns: "acceptance_conditional",
        "acceptance_joint" (.15; of the first also .97, with a fixed ``step_size``),
        "acceptance_sweep", "energy_gap", "energy_gap_mean" (5 nats) and
        "energy_gap_autocorrelation" (lag one) over the last half of the tilt stage, if the last
        training had one, "rhat_joint" (1.01), "ess_joint" (400), and "rhat_conditional" and
        "ess_conditional", of a few short chains per row. Empty for a closed form.
    device_ : str
    n_features_in_ : int
    feature_names_in_ : ndarray of shape (n_features_in_,)

    Notes
    -----
    Training is a saddle problem: Langevin particles follow the conditional distribution of z given
    each row and the joint distribution of (x, z), and the parameters ascend the difference of the
    energies [1]_. A fit of most tables takes 10 to 20 seconds on two cores (docs/scale.md).

    ``transform`` and ``score_samples`` are Monte Carlo answers whose noise is shared by all rows
    and fixed by ``fit``: the same row gets the same answer in any batch.

    Where a process group of ``torch.distributed`` is initialised, its processes fit one model: each
    must call ``fit`` with the same table and parameters, and all end with the same model. Rows and
    pool are shared out; ``batch_size`` and ``pool_size`` are those of all processes together.

    References
    ----------
    .. [1] Tang et al., "Particle Dynamics for Latent-Variable Energy-Based Models",
       arXiv:2510.15447.
    .. [2] Vincent and Bengio (2003), "Manifold Parzen windows", NIPS 15, 849-856.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklvebm import LVEBMEstimator
    >>> X, _ = load_iris(return_X_y=True)
    >>> model = LVEBMEstimator(n_components=2, energy="linear", random_state=0).fit(X)
    >>> model.transform(X).shape
    (150, 2)
    >>> model.sample(3, random_state=0).shape
    (3, 4)
    """

    n_components_: int
    n_samples_seen_: int | float
    n_iter_: int
    history_: list[dict[str, Any]]
    marginals_: str
    smoothing_: float
    _random_state: np.random.RandomState

    def __init__(
        self,
        n_components=None,
        *,
        energy="tilted",
        marginals="auto",
        whiten=False,
        inference="langevin",
        dynamics="mala",
        max_iter="auto",
        batch_size=64,
        n_particles=2,
        n_steps=None,
        pool_size=512,
        step_size="auto",
        learning_rate=1e-2,
        weight_decay="auto",
        smoothing="auto",
        tol=1e-2,
        n_iter_no_change=12,
        validation_fraction=0.1,
        early_stopping=True,
        refit="auto",
        warm_start=False,
        random_state=None,
        device="auto",
        checkpoint=None,
        verbose=0,
    ):
        self.n_components = n_components
        self.energy = energy
        self.marginals = marginals
        self.whiten = whiten
        self.inference = inference
        self.dynamics = dynamics
        self.max_iter = max_iter
        self.batch_size = batch_size
        self.n_particles = n_particles
        self.n_steps = n_steps
        self.pool_size = pool_size
        self.step_size = step_size
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.smoothing = smoothing
        self.tol = tol
        self.n_iter_no_change = n_iter_no_change
        self.validation_fraction = validation_fraction
        self.early_stopping = early_stopping
        self.refit = refit
        self.warm_start = warm_start
        self.random_state = random_state
        self.device = device
        self.checkpoint = checkpoint
        self.verbose = verbose

    # -- parameters ------------------------------------------------------------------------------

    def set_params(self, **params):
        """Set parameters, nested ones (``energy__...``) included.

        Parameters
        ----------
        **params : dict

        Returns
        -------
        self : LVEBMEstimator
        """
        if any(name.startswith("energy__") for name in params):
            energy = params.get("energy", self.energy)
            if not isinstance(energy, EnergySpec):
                # A name has no hyper-parameters of its own to set: its specification has.
                params = {**params, "energy": as_spec(energy)}
        return super().set_params(**params)

    # -- fitting ---------------------------------------------------------------------------------

    @with_callbacks
    def fit(self, X, y=None, sample_weight=None):
        """Fit the model.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            At least two rows of real numbers; NaN where an entry is missing. The likelihood is then
            that of what is seen, and what is missing is sampled along with the latents. Integer or
            rounded columns need uniform noise first where likelihoods are compared.
        y : None
            Ignored.
        sample_weight : array-like of shape (n_samples,), default=None
            How often each row counts; None is once each. A row of weight w and w equal rows give
            the same fit, to the bit, as does any order of the rows.

        Returns
        -------
        self : LVEBMEstimator

        Raises
        ------
        TypeError, ValueError
            If ``X`` or a parameter is invalid, or ``checkpoint`` is damaged or of another fit.
        DivergenceError
            If training left the finite numbers and did not recover. As after an interrupt, the
            estimator is then what it was before the call.
        LostRankError
            A RuntimeError: of the processes that fit together, another one ended.

        Warns
        -----
        ConvergenceWarning
            If the fit was still improving at ``max_iter``, training had to recover from a
            divergence, chains hardly move or disagree, or estimates of log Z do. The text says what
            to change.
        """
        with self._all_or_nothing():
            continued = self.warm_start and hasattr(self, "_model_state")
            X, weight = self._table(X, sample_weight, ensure_min_samples=2, reset=not continued)
            if not continued:
                self._start_anew(X, weight)
            self.n_samples_seen_ = _count(weight)
            found = self._train(
                X,
                weight,
                start=self._model if continued else None,
                settled=self._settled if continued else None,
                path=checked_path("checkpoint", self.checkpoint),
            )
        # Where warnings are errors, they come after a fit that is there to stay.
        warn_of(found)
        return self

    @with_callbacks
    def partial_fit(self, X, y=None, sample_weight=None):
        """Go on training with one pass over a batch; the first call starts the model.

        The first batch sets the units (standardised where ``marginals`` is "auto"; "auto" smoothing
        is 0), starts at probabilistic PCA and trains in stages, as :meth:`fit` does; later ones
        train reference and tilt together. No rows are held out. A pass is as many updates
        as batches of ``batch_size`` make up the sum of the weights: let these average to one.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
        y : None
            Ignored.
        sample_weight : array-like of shape (n_samples,), default=None
            As in :meth:`fit`.

        Returns
        -------
        self : LVEBMEstimator

        Raises
        ------
        TypeError, ValueError
            If ``X`` or a parameter is invalid, features are not those of the first batch, or
            ``energy``, ``n_components`` or ``pool_size`` are no longer what they were.
        DivergenceError, LostRankError
            As in :meth:`fit`.
        """
        with self._all_or_nothing():
            first = not hasattr(self, "_model_state")
            X, weight = self._table(
                X, sample_weight, ensure_min_samples=2 if first else 1, reset=first
            )
            if first:
                self._start_anew(X, weight)
            batch_size = check_scalar(self.batch_size, "batch_size", Integral, min_val=1)
            n_updates = max(1, math.ceil(_count(weight) / batch_size))
            before = _NOTHING if first else _Before(self.n_iter_, tuple(self.history_))
            self.n_samples_seen_ = _count(weight) + (0 if first else self.n_samples_seen_)
            found = self._train(
                X,
                weight,
                start=None if first else self._model,
                settled=Settled("gaussian", 0.0) if first else self._settled,
                before=before,
                max_iter=n_updates,
                early_stopping=False,
            )
        warn_of(found)
        return self

    @contextmanager
    def _all_or_nothing(self) -> Iterator[None]:
        """Whatever ends the block early, an interrupt too, the estimator is as it was before."""
        before = dict(self.__dict__)
        if "_random_state" in before:
            # The block draws from a stream of its own, which is left where it ends.
            self._random_state = copy.deepcopy(before["_random_state"])
        try:
            yield
        except BaseException:
            kept = {name: self.__dict__[name] for name in BOOKKEEPING if name in self.__dict__}
            self.__dict__.clear()
            self.__dict__.update(before | kept)
            raise

    def _table(
        self, X: Any, sample_weight: Any, *, ensure_min_samples: int, reset: bool
    ) -> tuple[NDArray, NDArray]:
        """Validated distinct rows, and the weight of each."""
        from .rows import distinct_rows

        X = validate_data(
            self,
            X,
            dtype=_FLOATS,
            ensure_all_finite="allow-nan",
            ensure_min_samples=ensure_min_samples,
            reset=reset,
        )
        if sample_weight is not None:
            sample_weight = _check_sample_weight(
                sample_weight, X, dtype=np.float64, ensure_non_negative=True
            )
            if not sample_weight.any():
                raise ValueError("all sample weights are zero.")
        return distinct_rows(X, sample_weight)

    def _start_anew(self, X: NDArray, weight: NDArray) -> None:
        """Set what lasts from fit to fit: the units, and the estimator's own random stream.

        Fits and unseeded draws take their seeds from that stream.
        """
        from ._arrays import draw_seed
        from .units import fitted_scaler

        self._scaler = fitted_scaler(X, weight)
        self._maps: MarginalMaps | None = None
        self._random_state = np.random.RandomState(draw_seed(self.random_state))

    def _train(
        self,
        X: NDArray,
        weight: NDArray,
        *,
        start: Model | None,
        settled: Settled | None,
        path: Path | None = None,
        before: _Before = _NOTHING,
        **overrides: Any,
    ) -> list[str]:
        """Train, and keep what is found. Returns what is to be warned of."""
        from ._arrays import resolve_device
        from .distributed import Group
        from .fitting import Fit, Form

        form = Form.checked(
            self.get_params(deep=False),
            X,
            weight,
            n_samples=self.n_samples_seen_,
            settled=settled,
            **overrides,
        )
        if start is not None:
            form = form.continuing(start, self.marginals_)
        device, group = resolve_device(self.device), Group.found()
        screen = Screen(self.verbose if group.rank == 0 else 0)
        fit = Fit(
            X,
            weight,
            form,
            units=self._units,
            random_state=self._random_state,
            seed=self.random_state,
            device=device,
            group=group,
            screen=screen,
            start=start,
            path=path,
        )
        self._maps, self.marginals_ = fit.units.maps, fit.units.marginals
        self.smoothing_ = fit.form.options.smoothing
        self.device_ = str(device)
        self.n_components_ = self._n_features_out = form.options.n_components
        report = self._reporter(X, fit.n_evaluations, group, screen, before)
        result = fit.run(report)
        report.close()
        self.__dict__.update(_attributes(result, before))
        fit.close()
        return result.outcome.complaints + self._complaints(result.outcome.stopped)

    @property
    def _settled(self) -> Settled:
        """What a fit that goes on from this one takes for "auto"."""
        return Settled(self.marginals_, self.smoothing_)

    def _reporter(
        self, X: NDArray, n_evaluations: int, group: Group, screen: Screen, before: _Before
    ) -> Reporter:
        """Of several processes, the first alone tells and asks."""
        context = NoContext()
        if group.rank == 0:
            context = self._init_callback_context(max_subtasks=n_evaluations)
        context.call_on_fit_task_begin(estimator=self, X=X)

        def attributes(result: Result) -> dict[str, Any]:
            # Draws from what a callback is handed leave the stream of this fit alone.
            stream = {"_random_state": copy.deepcopy(self._random_state)}
            return _attributes(result, before) | stream

        return Reporter(self, context, X, screen=screen, attributes=attributes)

    def _complaints(self, stopped: bool) -> list[str]:
        """What the fitted model is to be warned of."""
        found = []
        if not self.converged_ and not stopped:
            found.append(
                "the held-out log-likelihood was still rising when training ended, after "
                f"{self.n_iter_} updates; increase max_iter."
            )
        estimate = self._model.log_partition
        if estimate.disagrees:
            reasons = ", ".join(f"{by:.2f} nats by {why}" for why, by in estimate.raises.items())
            found.append(
                f"log Z = {estimate.value:.2f} ± {estimate.std:.2f}, from pool and reference "
                f"together, is too low by other evidence: {reasons}. score uses "
                f"{estimate.conservative:.2f}, which makes it lower. A smaller learning_rate, a "
                "larger pool_size or more weight_decay usually helps."
            )
        return found + complaints(self.diagnostics_, fixed_step_size=self.step_size != "auto")

    # -- the model, and its portable form --------------------------------------------------------

    @property
    def _model(self) -> Model:
        """The torch model, rebuilt from arrays when first needed after loading."""
        if not hasattr(self, "_model_cache"):
            from ._arrays import device_or_cpu
            from .model import Model

            device = device_or_cpu(self.device_)
            self._model_cache = Model.from_arrays(self._model_state, device)
            self.device_ = str(device)
        return self._model_cache

    def __getstate__(self):
        state = dict(super().__getstate__())
        state.pop("_model_cache", None)
        return stamped(state) if "_model_state" in state else state

    def __setstate__(self, state):
        super().__setstate__(checked(state, type(self)))

    def __sklearn_is_fitted__(self):
        return hasattr(self, "_model_state")

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags

    @property
    def _units(self) -> Units:
        from .units import Units

        return Units(self._scaler, self._maps)

    def _rows(self, X: Any, *, exact: bool = False):
        """Validated rows in the model's units, a model in their precision, the dtype of X.

        What has a closed form is answered in the precision of X; Monte Carlo answers, whose own
        errors are far larger, in single precision unless ``exact``.
        """
        check_is_fitted(self)
        from ._arrays import to_tensor

        X = validate_data(self, X, dtype=_FLOATS, ensure_all_finite="allow-nan", reset=False)
        model = self._model
        tensor = to_tensor(self._units.to_model(X).astype(X.dtype), model.device)
        if not (exact or model.energy.is_gaussian):
            tensor = tensor.to(model.pool.dtype)
        return tensor, model.cast(tensor.dtype), X.dtype

    @property
    def _axes(self) -> Axes:
        """What the user's latents are told along."""
        axes = self._model.axes
        return axes.whitened if self.whiten else axes

    def _latents(self, Z: Any, n_rows: int | None = None) -> NDArray:
        """Validated latents of the user, in the coordinates of the model."""
        Z = check_array(Z, dtype=_FLOATS, input_name="Z")
        if Z.shape[1] != self.n_components_:
            raise ValueError(
                f"Z has {Z.shape[1]} components, but {type(self).__name__} has "
                f"n_components_={self.n_components_}."
            )
        if n_rows is not None and len(Z) != n_rows:
            raise ValueError(f"X has {n_rows} rows and Z has {len(Z)}; they must be paired.")
        return self._axes.to_model(Z).astype(Z.dtype)

    def _generator(self, random_state: Any):
        from ._arrays import draw_seed, generator_from_seed

        source = self._random_state if random_state is None else random_state
        return generator_from_seed(draw_seed(source), self._model.device)

    # -- answers ---------------------------------------------------------------------------------

    def transform(self, X):
        """Posterior mean of the latents, E[z | x].

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)

        Returns
        -------
        Z : ndarray of shape (n_samples, n_components)
            Along the principal axes, in standard deviations of the features; in those of the prior
            where ``whiten``. The same row gets the same latents in any batch.
        """
        from ._arrays import to_numpy

        x, model, dtype = self._rows(X)
        return self._axes.from_model(to_numpy(model.posterior_mean(x))).astype(dtype)

    def inverse_transform(self, Z):
        """Rows back from what :meth:`transform` says of them, by least squares.

        The mean of x over rows whose posterior mean is Z, E[x | E[z | x] = Z]. For the mean of x
        given latents as such, E[x | z = Z], see :meth:`decode`. The first call learns the map, in
        some seconds: from rows without missing entries that were trained on, of which ``fit`` keeps
        up to 4,096 (fewer of many features), or from draws of the model where there are fewer than
        512 or the energy is linear, which keeps none.

        Parameters
        ----------
        Z : array-like of shape (n_samples, n_components)

        Returns
        -------
        X : ndarray of shape (n_samples, n_features)
            In the user's units.
        """
        return self._observations(Z, "reconstruction")

    def decode(self, Z):
        """Mean of the observation given its latents, E[x | z].

        Parameters
        ----------
        Z : array-like of shape (n_samples, n_components)
            Latents as :meth:`transform` gives them: draws of :meth:`sample_posterior`, or of the
            reference's prior N(0, diag(``latent_variance_``)) (N(0, I) where ``whiten``).

        Returns
        -------
        X : ndarray of shape (n_samples, n_features)
            In the user's units.
        """
        return self._observations(Z, "decoded")

    def _observations(self, Z: Any, answer: str) -> NDArray:
        check_is_fitted(self)
        from ._arrays import to_numpy, to_tensor

        Z = self._latents(Z)
        z = to_tensor(Z, self._model.device)
        X = to_numpy(getattr(self._model, answer)(z, self._units.back))
        return self._units.from_standardised(X).astype(Z.dtype)

    def sample(self, n_samples=1, random_state=None):
        """Draw observations from the model.

        Parameters
        ----------
        n_samples : int, default=1
        random_state : int, RandomState instance or None, default=None
            None draws anew at each call, in a sequence that the estimator's ``random_state``
            fixes; an int gives the same draw each time.

        Returns
        -------
        X : ndarray of shape (n_samples, n_features)
            In the user's units. Markov chains started from the joint pool.
        """
        check_is_fitted(self)
        from ._arrays import to_numpy

        n_samples = check_scalar(n_samples, "n_samples", Integral, min_val=1)
        x, _ = self._model.sample(n_samples, self._generator(random_state))
        return self._units.from_model(to_numpy(x).astype(np.float64))

    def sample_posterior(self, X, n_samples=1, random_state=None):
        """Draw latents given each row.

        Parameters
        ----------
        X : array-like of shape (n_samples_X, n_features)
        n_samples : int, default=1
            Number of draws per row.
        random_state : int, RandomState instance or None, default=None
            As in :meth:`sample`.

        Returns
        -------
        Z : ndarray of shape (n_samples, n_samples_X, n_components)
            As :meth:`transform` has them.
        """
        from ._arrays import to_numpy

        x, model, dtype = self._rows(X)
        n_samples = check_scalar(n_samples, "n_samples", Integral, min_val=1)
        drawn = model.sample_posterior(x, n_samples, self._generator(random_state))
        return self._axes.from_model(to_numpy(drawn)).astype(dtype)

    def impute(self, X, n_samples=None, random_state=None):
        """Fill in what is missing.

        Parameters
        ----------
        X : array-like of shape (n_samples_X, n_features)
            NaN where an entry is missing.
        n_samples : int, default=None
            None fills in the conditional mean, of least mean squared error. An int gives as many
            random completions of the table, for multiple imputation (Rubin 1987).
        random_state : int, RandomState instance or None, default=None
            As in :meth:`sample`; the conditional mean needs none.

        Returns
        -------
        X : ndarray of shape (n_samples_X, n_features) or (n_samples, n_samples_X, n_features)
            In the user's units; what is seen stays as it is. A row without any value gets the means
            of the model. Takes some tens of milliseconds per incomplete row.
        """
        if n_samples is not None:
            return self.sample_conditional(X, n_samples, random_state)
        from ._arrays import to_numpy

        x, model, dtype = self._rows(X)
        found = to_numpy(model.completed_mean(x, self._units.back))
        return self._filled(X, dtype, self._units.from_standardised(found))

    def sample_conditional(self, X, n_samples=1, random_state=None):
        """Draw what is missing of each row, given what is seen.

        Parameters
        ----------
        X : array-like of shape (n_samples_X, n_features)
            NaN where an entry is to be drawn.
        n_samples : int, default=1
            Number of draws per row.
        random_state : int, RandomState instance or None, default=None
            As in :meth:`sample`.

        Returns
        -------
        X : ndarray of shape (n_samples, n_samples_X, n_features)
            In the user's units; what is seen stays as it is.
        """
        from ._arrays import to_numpy

        x, model, dtype = self._rows(X)
        n_samples = check_scalar(n_samples, "n_samples", Integral, min_val=1)
        drawn = model.sample_conditional(x, n_samples, self._generator(random_state))
        return self._filled(X, dtype, self._units.from_model(to_numpy(drawn)))

    def _filled(self, X: Any, dtype: Any, completed: NDArray) -> NDArray:
        """``X`` with its missing entries from ``completed (..., n, d)``."""
        X = check_array(X, dtype=dtype, ensure_all_finite="allow-nan")
        return np.where(np.isnan(X), completed.astype(dtype), X)

    def score_samples(self, X, return_std=False):
        """Normalised log-density of each row.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
        return_std : bool, default=False
            Also return the Monte Carlo error of each row's free energy. The error of log Z,
            ``log_partition_std_``, is shared by all rows and not part of it.

        Returns
        -------
        log_prob : ndarray of shape (n_samples,)
            log p(x) in nats, in the user's units, float64; where entries are missing, that of what
            is seen.
        std : ndarray of shape (n_samples,)
            Standard errors in nats. Only where ``return_std`` is True. Near one, its largest value,
            it says that the row's density may be far higher than estimated.
        """
        value, std, _ = self._log_evidence(X)
        log_prob = value - self.log_partition_
        return (log_prob, std) if return_std else log_prob

    def score(self, X, y=None, sample_weight=None):
        """Mean normalised log-density.

        Any two fits can be compared by it on the same rows in the same units.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
        y : None
            Ignored.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights of the mean.

        Returns
        -------
        log_likelihood : float
            In nats per row, in the user's units.
        """
        log_prob = self.score_samples(X)
        if sample_weight is not None:
            sample_weight = _check_sample_weight(
                sample_weight, log_prob, dtype=np.float64, ensure_non_negative=True
            )
        return float(np.average(log_prob, weights=sample_weight))

    def score_report(self, X, n_worst=5):
        """The score with everything that stands behind it.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
        n_worst : int, default=5
            Rows of the lowest log-density to list.

        Returns
        -------
        report : ScoreReport
            Mean, standard error in its three parts, bounds, and the rows of the lowest log-density
            by their positions in ``X``; prints as text. The two bounds are noisy and may cross.

        Examples
        --------
        >>> from sklearn.datasets import load_iris
        >>> from sklvebm import LVEBMEstimator
        >>> X = load_iris().data
        >>> report = LVEBMEstimator(2, energy="linear", random_state=0).fit(X).score_report(X)
        >>> print(report)
        log-likelihood -2.951 ± 0.125 nats per row (150 rows)
          error: rows' spread 0.125, rows' evidence 0.000, log Z 0.000
          bounds from log Z: -2.951 to -2.951
          lowest: row 106: -8.2, row 100: -8.0, row 114: -7.9, row 131: -7.4, row 136: -7.4
        """
        value, std, mean_std = self._log_evidence(X)
        n_worst = check_scalar(n_worst, "n_worst", Integral, min_val=0)
        return score_report(
            value - self.log_partition_,
            std,
            std_rows=mean_std,
            log_partition=self.log_partition_,
            std_partition=self.log_partition_std_,
            bounds=self.log_partition_bounds_,
            raised_by=self._model.log_partition.raises,
            n_worst=n_worst,
            diagnostics=self.diagnostics_,
        )

    def _log_evidence(self, X) -> tuple[NDArray, NDArray, float]:
        """−F(x) in the user's units, its standard errors, and that of their mean."""
        from ._arrays import to_numpy

        x, model, _ = self._rows(X)
        value, std, mean_std = model.log_evidence(x)
        value, std = (to_numpy(part).astype(np.float64) for part in (value, std))
        return value - self._units.log_jacobian(to_numpy(x)), std, mean_std

    def free_energy(self, X):
        """Free energy F(x) = −log ∫ exp(−E(x, z)) dz.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)

        Returns
        -------
        F : ndarray of shape (n_samples,)
            In nats, float64; −F(x) − ``log_partition_`` is log p(x) in the user's units.
        """
        return -self._log_evidence(X)[0]

    def joint_energy(self, X, Z):
        """Joint energy E(x, z) of paired rows.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
        Z : array-like of shape (n_samples, n_components)

        Returns
        -------
        E : ndarray of shape (n_samples,)
            In nats, float64; exp(−E − ``log_partition_``) is the joint density of x, in the user's
            units, and z.

        Raises
        ------
        ValueError
            If entries of ``X`` are missing.
        """
        import torch

        from ._arrays import to_numpy, to_tensor

        x, model, dtype = self._rows(X, exact=True)
        if torch.isnan(x).any():
            raise ValueError("X has missing entries; the joint energy is one of complete rows.")
        z = to_tensor(self._latents(Z, len(x)).astype(dtype), model.device)
        with torch.no_grad():
            energy = to_numpy(model.energy(x, z)).astype(np.float64)
        return energy + self._units.log_jacobian(to_numpy(x)) + self._axes.log_det
