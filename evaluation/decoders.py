"""The one place where files of pictures, videos and arrays are opened: what they may be, and how large.

A picture is PNG, JPEG, WEBP, BMP or TIFF by its content, whatever its name. Anything else is refused by name before a
decoder sees it: some decoders start programs (PostScript starts Ghostscript) or open further files. Sizes are read from
headers and bounded before memory is asked for: a picture by its pixels, an array by the bytes that its file has.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

import numpy as np
from numpy.lib import format as npy
from PIL import Image, ImageSequence, UnidentifiedImageError

from evaluation.errors import EvaluationError

__all__ = [
    "FORMATS",
    "MAX_PIXELS",
    "PictureError",
    "array_shape",
    "open_picture",
    "picture_size",
    "read_array",
    "read_frames",
    "read_picture",
    "survey",
]

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF")

MAX_PIXELS = 1 << 27
"""Of a picture, or of a frame: 134 million, 0.4 GB of 8-bit RGB."""

MAX_BYTES = 1 << 34
"""Of a decoded video, or of an array: 17 GB."""

_RULE = "must be a readable image (PNG, JPEG, WEBP, BMP or TIFF)"

_OTHERS: tuple[tuple[bytes, str], ...] = (
    (b"%!", "PostScript"),
    (b"\xc5\xd0\xd3\xc6", "PostScript"),
    (b"%PDF", "PDF"),
    (b"<svg", "SVG"),
    (b"<?xml", "XML"),
    (b"<", "HTML or SVG"),
    (b"GIF8", "GIF"),
    (b"\xd7\xcd\xc6\x9a", "WMF"),
    (b"\x01\x00\x00\x00", "EMF"),
    (b"8BPS", "Photoshop"),
    (b"PK\x03\x04", "a zip archive"),
    (b"\x80\x04\x95", "a pickle"),
    (b"\x93NUMPY", "a numpy array"),
    (b"#EXTM3U", "a playlist"),
)
"""How files begin that are no pictures, or such as are not opened; the first that fits."""

warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # MAX_PIXELS decides, in one line


class PictureError(EvaluationError):
    """A file that cannot be opened as what it is to be; one line that names it."""


def _first(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0] or type(error).__name__


def _kind(begin: bytes) -> str:
    stripped = begin.lstrip(b"\xef\xbb\xbf \t\r\n")
    if not begin:
        return "an empty file"
    return next((name for magic, name in _OTHERS if stripped.startswith(magic)), "something else")


def open_picture(path: Path) -> Image.Image:
    """The decoded picture, in the mode of its file.

    Raises:
        PictureError: for another format, too many pixels, or a damaged file.
    """
    with _opened(path) as image:
        image.load()
        return image.copy()


def picture_size(path: Path) -> tuple[int, int]:
    """Width and height, from the header alone; what is no picture is refused as by `open_picture`."""
    with _opened(path) as image:
        return image.size


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    begin = b""
    try:
        with open(path, "rb") as file:
            begin = file.read(64)
            file.seek(0)
            with Image.open(file, formats=FORMATS) as image:
                width, height = image.size
                if width * height > MAX_PIXELS:
                    raise PictureError(f"{path}: must have at most {MAX_PIXELS} pixels, got {width} x {height}")
                yield image
    except PictureError:
        raise
    except UnidentifiedImageError:
        raise PictureError(f"{path}: {_RULE}, got {_kind(begin)}") from None
    except Image.DecompressionBombError as error:
        raise PictureError(f"{path}: must have at most {MAX_PIXELS} pixels, got: {_first(error)}") from error
    except (OSError, SyntaxError, ValueError, MemoryError) as error:
        raise PictureError(f"{path}: must be a readable image, got: {_first(error)}") from error


def read_picture(path: Path) -> np.ndarray:
    """8-bit RGB `[H, W, 3]`; transparency and more than 8 bits are refused, grey is repeated."""
    image = open_picture(path)
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        raise PictureError(f"{path}: must be opaque, got mode {image.mode} with transparency")
    if image.mode not in ("RGB", "L", "P", "1"):
        raise PictureError(f"{path}: must be 8-bit RGB or grey, got mode {image.mode}")
    return np.asarray(image.convert("RGB"))


def read_frames(path: Path) -> np.ndarray:
    """8-bit RGB frames `[T, H, W, 3]` of a video file or an animated GIF."""
    try:
        with open(path, "rb") as file:
            begin = file.read(64)
    except OSError as error:
        raise PictureError(f"{path}: must be a readable video, got: {_first(error)}") from error
    if begin.startswith(b"GIF8"):
        return _gif(path)
    # ffmpeg guesses from the content too, and a playlist would open further files.
    known = begin[4:8] in (b"ftyp", b"moov", b"mdat", b"free", b"wide", b"skip")
    known = known or begin.startswith(b"\x1aE\xdf\xa3") or (begin[:4] == b"RIFF" and begin[8:12] == b"AVI ")
    if not known:
        raise PictureError(f"{path}: must be a readable video (mp4, mov, mkv, webm, avi, gif), got {_kind(begin)}")
    import imageio.v3 as iio

    try:
        frames = _bounded(path, (np.asarray(frame)[..., :3] for frame in iio.imiter(path, plugin="FFMPEG")))
    except (OSError, ValueError, RuntimeError, IndexError, StopIteration) as error:
        if isinstance(error, PictureError):
            raise
        raise PictureError(f"{path}: must be a readable video, got: {_first(error)}") from error
    return frames


def _gif(path: Path) -> np.ndarray:
    try:
        with open(path, "rb") as file, Image.open(file, formats=("GIF",)) as image:
            if image.width * image.height > MAX_PIXELS:
                raise PictureError(f"{path}: must have at most {MAX_PIXELS} pixels, got {image.width} x {image.height}")
            return _bounded(path, (np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(image)))
    except PictureError:
        raise
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise PictureError(f"{path}: must be a readable video, got: {_first(error)}") from error


def _bounded(path: Path, frames: Iterable[np.ndarray]) -> np.ndarray:
    kept: list[np.ndarray] = []
    size = 0
    for frame in frames:
        size += frame.nbytes
        if size > MAX_BYTES:
            raise PictureError(f"{path}: must have at most {MAX_BYTES} bytes of frames, got more")
        kept.append(frame)
    if not kept:
        raise PictureError(f"{path}: must hold at least one frame, got none")
    return np.stack(kept)


def header_of(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, whether in Fortran's order, and type of the array that follows; pickled objects are a `ValueError`."""
    version = npy.read_magic(file)
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, fortran, dtype = read(file)
    if dtype.hasobject:
        raise ValueError("pickled objects")
    return shape, fortran, dtype


def bytes_of(shape: tuple[int, ...], dtype: np.dtype) -> int:
    """Bytes of an array, in integers that do not overflow."""
    size = dtype.itemsize
    for length in shape:
        size *= int(length)
    return size


def array_shape(path: Path) -> tuple[int, ...]:
    """Shape of an `.npy` file, whose numbers must all be there."""
    try:
        with open(path, "rb") as file:
            shape, _, dtype = header_of(file)
            needed, there = bytes_of(shape, dtype), path.stat().st_size - file.tell()
    except (OSError, ValueError, EOFError, SyntaxError) as error:
        raise PictureError(f"{path}: must be a plain .npy array, got: {_first(error)}") from error
    if needed > min(there, MAX_BYTES):
        raise PictureError(f"{path}: must be a plain .npy array, got {there} of {needed} bytes")
    return shape


def read_array(path: Path) -> np.ndarray:
    """An `.npy` array of plain numbers."""
    array_shape(path)
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError, MemoryError) as error:
        raise PictureError(f"{path}: must be a plain .npy array, got: {_first(error)}") from error


def survey(paths: Iterable[Path]) -> list[str]:
    """What is wrong with pictures, a line each in their order; empty if all can be read."""

    def line(path: Path) -> str | None:
        try:
            read_picture(path)
        except PictureError as error:
            return str(error)
        return None

    with ThreadPoolExecutor(max_workers=4) as pool:
        return [said for said in pool.map(line, paths) if said is not None]
