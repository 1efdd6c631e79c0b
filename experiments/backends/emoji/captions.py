"""What a caption says, and the pictures that go with it: the synthetic world of the emoji model.

    flat tiger on yellow  |  two 3d pigs on gray  |  flat beer and apple on blue

A scene is a style, a colour and one object, the same object twice, or two objects. A tenth of all scenes, by the
hash of their caption, is never trained on. Pictures are 32x32 RGB in [-1, 1]: sprites at jittered places, mirrored or
not, over a background whose colour is jittered too.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from experiments.backends.emoji.atlas import OBJECTS, SIZES, STYLES, sprites

__all__ = ["COLOURS", "COUNTS", "SIZE", "Scene", "draw", "held_out", "parse", "plural", "random_scene"]

SIZE = 32
COLOURS: dict[str, tuple[int, int, int]] = {
    "white": (245, 245, 245),
    "black": (20, 20, 24),
    "red": (200, 40, 40),
    "green": (40, 150, 60),
    "blue": (50, 90, 200),
    "yellow": (240, 200, 60),
    "pink": (240, 150, 180),
    "gray": (128, 128, 128),
}
COUNTS = ("one", "two", "pair")
"""One object, the same one twice, two different ones."""
SHARES = (0.70, 0.15, 0.15)
HELD_OUT = 10
"""One scene in so many is held out."""
NAMES = tuple(OBJECTS)
UNCHANGED = {"grapes", "cherries", "fries", "fish", "broccoli", "bread", "popcorn", "corn"}


@dataclass(frozen=True, kw_only=True)
class Scene:
    """What a picture shows."""

    style: str
    colour: str
    objects: tuple[str, ...]
    """One name, or two; the same name twice is "two ..."."""

    @property
    def count(self) -> str:
        """One of `COUNTS`."""
        return "one" if len(self.objects) == 1 else "two" if len(set(self.objects)) == 1 else "pair"

    @property
    def caption(self) -> str:
        """The sentence."""
        first = self.objects[0]
        if self.count == "one":
            return f"{self.style} {first} on {self.colour}"
        if self.count == "two":
            return f"two {self.style} {plural(first)} on {self.colour}"
        return f"{self.style} {first} and {self.objects[1]} on {self.colour}"


def plural(name: str) -> str:
    """The plural of an object's name: foxes, strawberries, fish."""
    if name in UNCHANGED:
        return name
    if name.endswith("y") and name[-2] not in "aeiou":
        return f"{name[:-1]}ies"
    return f"{name}es" if name.endswith(("s", "x", "ch")) else f"{name}s"


def held_out(scene: Scene) -> bool:
    """Whether the scene is kept out of training."""
    return zlib.crc32(scene.caption.encode()) % HELD_OUT == 0


def random_scene(rng: np.random.Generator, *, held: bool | None = False, count: str | None = None) -> Scene:
    """A scene that is trained on (`held=False`), one that is held out (`True`) or any (`None`)."""
    while True:
        chosen = count or COUNTS[int(rng.choice(len(COUNTS), p=SHARES))]
        picks = [NAMES[i] for i in rng.choice(len(NAMES), 2, replace=False)]
        objects = {"one": (picks[0],), "two": (picks[0], picks[0]), "pair": tuple(picks)}[chosen]
        colour = list(COLOURS)[rng.integers(len(COLOURS))]
        scene = Scene(style=STYLES[rng.integers(len(STYLES))], colour=colour, objects=objects)
        if held is None or held_out(scene) == held:
            return scene


def parse(caption: str) -> Scene | None:
    """The scene of a caption in the composer's own form; None for any other text."""
    words = caption.lower().split()
    two = words[:1] == ["two"]
    words = words[two:]
    if len(words) not in (4, 6) or words[-2] != "on" or words[0] not in STYLES or words[-1] not in COLOURS:
        return None
    singular = {plural(name) if two else name: name for name in NAMES}
    found = [singular.get(word) for word in words[1:-2:2]]
    objects = tuple(name for name in found if name is not None)
    if len(objects) != len(found) or (len(found) == 2 and (two or words[2] != "and" or found[0] == found[1])):
        return None
    return Scene(style=words[0], colour=words[-1], objects=objects * 2 if two else objects)


def draw(scene: Scene, rng: np.random.Generator) -> Tensor:
    """A picture of the scene, `[3, 32, 32]` in [-1, 1]."""
    background = np.array(COLOURS[scene.colour], np.float32) / 255 + rng.normal(0, 0.02)
    image = torch.from_numpy(background.astype(np.float32))[:, None, None].repeat(1, SIZE, SIZE)
    size = SIZES[0] if len(scene.objects) == 1 else SIZES[1]
    row = 3 + rng.integers(-2, 3) if len(scene.objects) == 1 else 8 + rng.integers(-3, 4)
    for place, name in enumerate(scene.objects):
        sprite = sprites(size)[NAMES.index(name), STYLES.index(scene.style)]
        if rng.random() < 0.5:
            sprite = sprite.flip(-1)
        top = row + (rng.integers(-1, 2) if place else 0)
        left = 3 + rng.integers(-2, 3) if len(scene.objects) == 1 else 16 * place + rng.integers(0, 2)
        part = image[:, top : top + size, left : left + size]
        part.mul_(1 - sprite[3]).add_(sprite[:3])
    return image.clamp(0, 1) * 2 - 1
