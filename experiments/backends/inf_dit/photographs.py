"""Photographs that scikit-image and scikit-learn ship, from which the small model learns and by which it is judged.

Held-out photographs are used for nothing but the final numbers. What was chosen while training was chosen on the lowest
rows of the training photographs, which are not trained on. Licences, as the packages state them:

    astronaut          NASA, public domain            train
    camera             CC0, Lav Varshney              train
    brick, grass,      CC0, cc0textures.com           train
      gravel
    coins              no known restrictions          train
    hubble_deep_field  NASA, public domain            train
    retina             CC0                            train
    ihc                no known restrictions          train
    china, flower      CC BY 2.0, danielbuechele,     train
                       vultilion (flickr)
    chelsea            CC0, Stefan van der Walt       held out
    coffee             CC0, Rachel Michetti           held out
    rocket             SpaceX, public domain          held out
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from evaluation.decoders import open_picture
from experiments.errors import ConfigError

__all__ = ["HELD_OUT", "TRAIN", "VALIDATION_ROWS", "held_out_crops", "photograph"]

TRAIN: dict[str, int] = {
    "astronaut.png": 3,
    "china.jpg": 3,
    "flower.jpg": 3,
    "camera.png": 2,
    "brick.png": 1,
    "grass.png": 1,
    "gravel.png": 1,
    "coins.png": 1,
    "hubble_deep_field.jpg": 1,
    "retina.jpg": 1,
    "ihc.png": 1,
}
"""Training photographs and how often they are drawn from."""

HELD_OUT = ("chelsea.png", "coffee.png", "rocket.jpg")

VALIDATION_ROWS = 128
"""Lowest rows of the training photographs that are not trained on."""

CROP = 128
"""Side of the crops of the held-out photographs."""


def folders() -> list[Path]:
    """Where the packages keep their photographs.

    Raises:
        ConfigError: if a package is not installed.
    """
    found = []
    for package, inside in (("skimage", "data"), ("sklearn", "datasets/images")):
        spec = find_spec(package)
        if spec is None or spec.origin is None:
            raise ConfigError(f"photographs: need {package}, which is not installed (pip install '.[eval]')")
        found.append(Path(spec.origin).parent / inside)
    return found


def photograph(name: str) -> Tensor:
    """A photograph `[1, 3, H, W]` in [-1, 1], its sides cut to multiples of 8."""
    path = next(folder / name for folder in folders() if (folder / name).is_file())
    values = np.array(open_picture(path).convert("RGB"))
    height, width = (side // 8 * 8 for side in values.shape[:2])
    return torch.from_numpy(values[:height, :width]).permute(2, 0, 1)[None].float() / 127.5 - 1


def held_out_crops(name: str, number: int) -> list[Tensor]:
    """`number` crops `[3, 128, 128]` of a held-out photograph, evenly chosen from the centred grid of them."""
    image = photograph(name)[0]
    rows, columns = image.shape[1] // CROP, image.shape[2] // CROP
    top, left = (image.shape[1] - rows * CROP) // 2, (image.shape[2] - columns * CROP) // 2
    crops = [
        image[:, top + r * CROP : top + (r + 1) * CROP, left + c * CROP : left + (c + 1) * CROP]
        for r in range(rows)
        for c in range(columns)
    ]
    return [crops[i * len(crops) // number] for i in range(number)]
