"""Energies: a hyper-parameter specification each, found by name."""

from __future__ import annotations

from ._spec import EnergySpec
from .custom import CustomEnergy
from .free import FreeEnergy
from .linear import LinearEnergy
from .tilted import TiltedEnergy

ENERGIES: dict[str, type[EnergySpec]] = {
    "tilted": TiltedEnergy,
    "free": FreeEnergy,
    "linear": LinearEnergy,
}

__all__ = ["CustomEnergy", "EnergySpec", "FreeEnergy", "LinearEnergy", "TiltedEnergy", "as_spec"]


def as_spec(energy) -> EnergySpec:
    """The specification that ``energy`` (a name, a specification, a class or factory) stands for.

    Raises
    ------
    ValueError
        If the name is unknown.
    TypeError
        If it is none of these; an instance of a module cannot be cloned as unfitted.
    """
    if isinstance(energy, EnergySpec):
        return energy
    if isinstance(energy, str):
        if energy not in ENERGIES:
            raise ValueError(f"energy must be one of {sorted(ENERGIES)}, got {energy!r}.")
        return ENERGIES[energy]()
    if hasattr(energy, "state_dict") and not isinstance(energy, type):
        raise TypeError(
            "energy must be a torch.nn.Module class or a factory, not an instance: every fit "
            "starts from a new module. Pass the class, or a function that returns a new module."
        )
    if isinstance(energy, type) and issubclass(energy, EnergySpec):
        name = energy.__name__
        raise TypeError(f"energy must be an instance of {name}, not the class: pass {name}(...).")
    if callable(energy):
        return CustomEnergy(energy)
    raise TypeError(
        "energy must be a name, an energy specification, or a torch.nn.Module class or factory, "
        f"got {type(energy).__name__}."
    )
