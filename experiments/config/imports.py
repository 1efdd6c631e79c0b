"""Libraries of many objects, imported late and out of the garbage collector's sight.

Importing torch and diffusers makes a million objects, all of which stay. The collector would go over them again and
again, during the import and in every full collection after it: a quarter of what reading a finished run takes.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import sys
from typing import Any

__all__ = ["load"]


def load(name: str) -> Any:
    """A module; where it is not imported yet, without collections, and what is there afterwards is never gone over."""
    if name not in sys.modules:
        gc.disable()
        try:
            importlib.import_module(name)
        finally:
            gc.freeze()
            atexit.register(gc.unfreeze)  # at the end libraries look whether all of theirs was freed
            gc.enable()
    return sys.modules[name]
