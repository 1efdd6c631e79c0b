"""Make the sprite atlas that ships in `experiments/assets/emoji` from two npm packages.

    npm pack emoji-datasource-google@16.0.0 @lobehub/fluent-emoji-3d@1.1.0      # unpack each into a folder
    python -m experiments train emoji-atlas GOOGLE_FOLDER FLUENT_FOLDER

Noto Emoji (Google, images Apache-2.0) is the style "flat", Fluent Emoji (Microsoft, MIT) the style "3d". Each sprite
is cropped to its alpha, centred in a square and resampled (Lanczos, premultiplied) to 26 and to 15 pixels. Training
needs only the atlas: this program is how it came to be. `--output` is the PNG to write (the shipped one).
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image

from evaluation.decoders import open_picture
from experiments.backends.emoji.atlas import ATLAS, OBJECTS, PER_ROW, SIZES, cell_box
from experiments.cli import Arguments, Exit

__all__ = ["main", "sprite"]


def sprite(path: Path, size: int) -> Image.Image:
    """The picture cropped to what is visible, as a square of `size` pixels with straight alpha."""
    image = open_picture(path).convert("RGBA")
    image = image.crop(image.getchannel("A").getbbox())
    side = max(image.size)
    square = Image.new("RGBA", (side, side))
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    pixels = np.asarray(square).astype(np.float32) / 255
    pixels[..., :3] *= pixels[..., 3:]
    channels = [Image.fromarray(pixels[..., c]).resize((size, size), Image.Resampling.LANCZOS) for c in range(4)]
    small = np.stack([np.asarray(channel) for channel in channels], -1).clip(0, 1)
    small[..., :3] = (small[..., :3] / small[..., 3:].clip(1e-6)).clip(0, 1)
    return Image.fromarray((small * 255).round().astype(np.uint8))


def main(arguments: list[str]) -> None:
    """Read both packages and write the atlas."""
    parser = Arguments(prog="python -m experiments train emoji-atlas")
    parser.add_argument("google", type=Path)
    parser.add_argument("fluent", type=Path)
    parser.add_argument("--output", type=Path, default=ATLAS)
    args = parser.parse_args(arguments)

    rows = -(-len(OBJECTS) // PER_ROW)
    atlas = Image.new("RGBA", (PER_ROW * 2 * sum(SIZES), rows * max(SIZES)))
    for index, code in enumerate(OBJECTS.values()):
        paths = (args.google / f"img/google/64/{code}.png", args.fluent / f"assets/{code}.webp")
        for style, path in enumerate(paths):
            for size in SIZES:
                atlas.paste(sprite(path, size), cell_box(index, style, size)[:2])
    atlas.save(args.output, optimize=True)
    print(f"{args.output}: {len(OBJECTS)} objects, {args.output.stat().st_size} bytes")


if __name__ == "__main__":
    outcome = Exit()
    outcome.guard(lambda: main(sys.argv[1:]))
    sys.exit(outcome.code)
