"""What a saved model says of the version that saved it, and what another version makes of that."""

from __future__ import annotations

import inspect
import warnings
from typing import Any

from . import __version__

# One more whenever the arrays of a fitted model, or the specification that they are loaded into,
# change what they are or mean: older files are then refused, or translated in `checked`.
FORMAT = 5
_STAMP = "_saved_by"


def stamped(state: dict[str, Any]) -> dict[str, Any]:
    """``state`` with the version that saves it, and its format."""
    return {**state, _STAMP: {"version": __version__, "format": FORMAT}}


def checked(state: dict[str, Any], cls: type) -> dict[str, Any]:
    """``state`` of a ``cls`` without its stamp, if this version can answer from it.

    Parameters that the saving version did not have yet take their defaults.

    Raises
    ------
    ValueError
        If a fitted model is of another format.

    Warns
    -----
    UserWarning
        If it is of this format, and of another version.
    """
    parameters = inspect.signature(cls).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
    state = defaults | state
    stamp = state.pop(_STAMP, {"version": "(unknown)", "format": 0})
    if "_model_state" not in state:
        return state
    version = stamp["version"]
    if stamp["format"] != FORMAT:
        raise ValueError(
            f"this {cls.__name__} was saved by sklvebm {version}, whose fitted state is of format "
            f"{stamp['format']}; sklvebm {__version__} reads format {FORMAT}. Load it with the "
            "version that saved it, or fit it again with this one."
        )
    if version != __version__:
        warnings.warn(
            f"this {cls.__name__} was saved by sklvebm {version} and loaded by {__version__}: "
            "what it answers may differ a little, as after any change of version.",
            UserWarning,
            stacklevel=3,
        )
    return state
