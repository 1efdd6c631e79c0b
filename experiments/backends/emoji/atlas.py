"""The shipped sprites: 48 objects in two styles and two sizes, in one PNG with straight alpha.

Style "flat" is Google's Noto Emoji (Apache-2.0), style "3d" Microsoft's Fluent Emoji (MIT); see the model card.
"""

from __future__ import annotations

import functools

import numpy as np
import torch
from torch import Tensor

from evaluation.decoders import open_picture
from experiments.files import ASSETS

__all__ = ["ATLAS", "OBJECTS", "PER_ROW", "SIZES", "STYLES", "cell_box", "sprites"]

ATLAS = ASSETS / "emoji" / "atlas.png"
STYLES = ("flat", "3d")
SIZES = (26, 15)
"""Pixels of a sprite that stands alone, and of one of two."""
PER_ROW = 8
"""Objects in a row of the atlas, four cells each."""

OBJECTS: dict[str, str] = {
    "apple": "1f34e",
    "banana": "1f34c",
    "lemon": "1f34b",
    "grapes": "1f347",
    "watermelon": "1f349",
    "strawberry": "1f353",
    "cherries": "1f352",
    "pineapple": "1f34d",
    "avocado": "1f951",
    "eggplant": "1f346",
    "carrot": "1f955",
    "corn": "1f33d",
    "broccoli": "1f966",
    "mushroom": "1f344",
    "bread": "1f35e",
    "cheese": "1f9c0",
    "burger": "1f354",
    "pizza": "1f355",
    "fries": "1f35f",
    "donut": "1f369",
    "cookie": "1f36a",
    "cake": "1f370",
    "icecream": "1f366",
    "coffee": "2615",
    "beer": "1f37a",
    "popcorn": "1f37f",
    "cactus": "1f335",
    "tree": "1f332",
    "tulip": "1f337",
    "rose": "1f339",
    "sunflower": "1f33b",
    "cat": "1f431",
    "dog": "1f436",
    "fox": "1f98a",
    "panda": "1f43c",
    "pig": "1f437",
    "frog": "1f438",
    "monkey": "1f435",
    "lion": "1f981",
    "rabbit": "1f430",
    "chick": "1f424",
    "penguin": "1f427",
    "fish": "1f420",
    "octopus": "1f419",
    "crab": "1f980",
    "whale": "1f433",
    "butterfly": "1f98b",
    "ladybug": "1f41e",
}
"""Name in captions -> code point: what is well told apart at 26 pixels."""


def cell_box(index: int, style: int, size: int) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of the sprite of object `index` in the atlas."""
    left = (index % PER_ROW) * 2 * sum(SIZES) + (0 if size == SIZES[0] else 2 * SIZES[0]) + style * size
    top = (index // PER_ROW) * max(SIZES)
    return left, top, left + size, top + size


@functools.cache
def sprites(size: int) -> Tensor:
    """All sprites of one size, `[object, style, RGBA, size, size]` in [0, 1], premultiplied."""
    atlas = np.asarray(open_picture(ATLAS).convert("RGBA")).astype(np.float32) / 255
    cells = []
    for index in range(len(OBJECTS)):
        for style in range(len(STYLES)):
            left, top, right, bottom = cell_box(index, style, size)
            cells.append(atlas[top:bottom, left:right])
    found = np.stack(cells)
    found[..., :3] *= found[..., 3:]
    return torch.from_numpy(found).permute(0, 3, 1, 2).reshape(len(OBJECTS), len(STYLES), 4, size, size).contiguous()
