"""Operators: how a computed step computes. A layer below the cache, which decides when.

`hicache.enable(pipe, method, operators=Chipmunk())` runs the attention and the MLPs of every computed step as sparse
corrections of what they gave before; a step that the method estimates runs neither.
"""

from hicache.operators.chipmunk import Chipmunk
from hicache.operators.install import Operators

__all__ = ["Chipmunk", "Operators"]
