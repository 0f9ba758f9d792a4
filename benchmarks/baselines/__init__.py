"""The peers of the benchmarks as scikit-learn estimators: deep latent-variable models and flows."""

from ._training import Training
from .decoders import VAE, HardEM, NonAmortisedVI
from .flow_matching import FlowMatching
from .flows import NormalizingFlow
from .mapped import Mapped
from .regressed import Regressed

__all__ = [
    "VAE",
    "FlowMatching",
    "HardEM",
    "Mapped",
    "NonAmortisedVI",
    "NormalizingFlow",
    "Regressed",
    "Training",
]
