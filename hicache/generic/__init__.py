"""Any denoiser: the scopes of a model of any class, and the tap that reads and plays them."""

from hicache.generic.leaves import Form, flatten, register, unflatten
from hicache.generic.structure import Structure, Structures, denoisers, scopes
from hicache.generic.tap import Tap, TapError, scopes_of

__all__ = [
    "Form",
    "Structure",
    "Structures",
    "Tap",
    "TapError",
    "denoisers",
    "flatten",
    "register",
    "scopes",
    "scopes_of",
    "unflatten",
]
