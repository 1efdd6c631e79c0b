"""Any denoiser: the scopes of a model of any class, and the tap that reads and plays them."""

from hicache.generic.leaves import Form, flatten, register, unflatten
from hicache.generic.tap import Tap, TapError, scopes_of

__all__ = ["Form", "Tap", "TapError", "flatten", "register", "scopes_of", "unflatten"]
