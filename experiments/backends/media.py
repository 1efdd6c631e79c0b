"""Files of generated images and videos, and what the metrics read of them.

Images are 8-bit RGB files. A video is an H.264 mp4 (yuv420p, crf 17: plays everywhere, is what VBench reads)
and so not what the model made: chroma is halved and values move by a few levels. Where a run keeps lossless
frames, an 8-bit array `[T, H, W, 3]` lies beside the mp4 and paired metrics read that; else they read the
mp4 of both sides, encoded alike. Audio is a WAV file of 32-bit floats, which is what the model made.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from evaluation import decoders

__all__ = ["SUFFIXES", "read_audio", "read_image", "read_video", "write_audio", "write_image", "write_video"]

SUFFIXES = {"png": ".png", "jpeg95": ".jpg"}


def to_bytes(media: Tensor) -> np.ndarray:
    """8-bit values with the channels last."""
    return (media.float() * 255).round().clamp(0, 255).byte().movedim(-3, -1).contiguous().numpy()


def to_tensor(values: np.ndarray) -> Tensor:
    """Floats in [0, 1] with the channels before the pixels."""
    return torch.from_numpy(values).movedim(-1, -3).float() / 255


def write_image(media: Tensor, folder: Path, name: str, form: str) -> list[Path]:
    """Write `[3, H, W]` as `form`."""
    path = folder / f"{name}{SUFFIXES[form]}"
    options: dict[str, Any] = {"quality": 95} if form == "jpeg95" else {}
    Image.fromarray(to_bytes(media)).save(path, **options)
    return [path]


def read_image(folder: Path, name: str, form: str) -> Tensor:
    """The image as its file holds it."""
    return to_tensor(np.array(decoders.open_picture(folder / f"{name}{SUFFIXES[form]}").convert("RGB")))


def write_video(media: Tensor, folder: Path, name: str, fps: int, lossless: bool) -> list[Path]:
    """Write `[T, 3, H, W]` as an mp4, and its frames as an array if `lossless`."""
    import imageio.v3 as iio

    frames, path = to_bytes(media), folder / f"{name}.mp4"
    options: dict[str, Any] = {"codec": "libx264", "pixelformat": "yuv420p", "macro_block_size": 1, "quality": None}
    iio.imwrite(path, frames, plugin="FFMPEG", fps=fps, output_params=["-crf", "17"], **options)
    if not lossless:
        return [path]
    array = folder / f"{name}.npy"
    np.save(array, frames, allow_pickle=False)
    return [path, array]


def read_video(folder: Path, name: str, lossless: bool) -> Tensor:
    """The frames of the array if the run keeps one, else of the mp4."""
    if lossless:
        return to_tensor(decoders.read_array(folder / f"{name}.npy"))
    return to_tensor(decoders.read_frames(folder / f"{name}.mp4"))


def write_audio(media: Tensor, folder: Path, name: str, rate: int) -> list[Path]:
    """Write `[channels, samples]`, or samples alone, as a WAV file of so many samples per second."""
    from scipy.io import wavfile

    path = folder / f"{name}.wav"
    wavfile.write(path, rate, torch.atleast_2d(media).float().T.contiguous().numpy())
    return [path]


def read_audio(folder: Path, name: str) -> Tensor:
    """The samples of the file, `[channels, samples]`.

    Raises:
        PictureError: if the file is missing or cannot be read.
    """
    from scipy.io import wavfile

    path = folder / f"{name}.wav"
    try:
        _, samples = wavfile.read(path)
    except (OSError, ValueError) as error:
        raise decoders.PictureError(f"{path}: must be a WAV file ({error})") from error
    return torch.from_numpy(np.atleast_2d(np.array(samples, dtype=np.float32).T).copy())
