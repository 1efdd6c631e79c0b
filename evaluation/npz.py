"""Sample and statistics archives (`.npz`) in the layout of guided-diffusion's evaluator.

`arr_0` holds samples, uint8 `[N, H, W, 3]`; a reference archive may add `mu, sigma` (2048 pool features) and
`mu_s, sigma_s` (2023 spatial features). Fifty thousand 256x256 samples are 10 GB, so `arr_0` is read and
written in pieces, without ever being in memory as a whole.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy

from evaluation import decoders, media_files
from evaluation.durable_files import replacing
from evaluation.errors import EvaluationError

__all__ = ["read_array", "read_samples", "sample_shape", "write_samples", "write_statistics"]

_STATISTICS = ("mu", "sigma", "mu_s", "sigma_s")
_WIDEST = 4096
"""Features of a statistics array at most; Inception has 2048 and 2023."""


def _open(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile) as error:
        raise EvaluationError(f"{path}: must be an .npz archive, got: {error}") from error


def _shape(path: Path, member: IO[bytes]) -> tuple[int, ...]:
    try:
        shape, fortran, dtype = decoders.header_of(member)
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise EvaluationError(f"{path}: arr_0 must be a numpy array, got: {error}") from error
    if fortran or dtype != np.uint8 or len(shape) != 4 or shape[-1] != 3:
        raise EvaluationError(f"{path}: arr_0 must be uint8 [N, H, W, 3] in C order, got {dtype} {list(shape)}")
    if shape[1] * shape[2] > decoders.MAX_PIXELS:
        raise EvaluationError(f"{path}: arr_0 must have at most {decoders.MAX_PIXELS} pixels each, got {list(shape)}")
    return shape


def sample_shape(path: Path) -> tuple[int, ...] | None:
    """Shape of `arr_0`; None when the archive has statistics only."""
    with _open(path) as archive:
        if "arr_0.npy" not in archive.namelist():
            return None
        with archive.open("arr_0.npy") as member:
            return _shape(path, member)


def read_samples(path: Path, batch_size: int, start: int = 0) -> Iterator[np.ndarray]:
    """Consecutive batches `[B, H, W, 3]` of `arr_0` from sample `start` on."""
    with _open(path) as archive:
        if "arr_0.npy" not in archive.namelist():
            raise EvaluationError(f"{path}: must hold the samples arr_0, got {', '.join(archive.namelist())}")
        with archive.open("arr_0.npy") as member:
            shape = _shape(path, member)
            one = int(np.prod(shape[1:]))
            _take(path, member, one * start, keep=False)
            for begin in range(start, shape[0], batch_size):
                count = min(batch_size, shape[0] - begin)
                data = _take(path, member, one * count, keep=True)
                yield np.frombuffer(data, dtype=np.uint8).reshape(count, *shape[1:]).copy()


def _take(path: Path, member: IO[bytes], size: int, keep: bool) -> bytes:
    pieces: list[bytes] = []
    left = size
    while left:
        try:
            piece = member.read(min(left, 1 << 24))
        except (zipfile.BadZipFile, OSError, EOFError, zlib.error) as error:
            raise EvaluationError(f"{path}: arr_0 must be readable, got: {error}") from error
        if not piece:
            raise EvaluationError(f"{path}: arr_0 must be complete, got {left} bytes too few")
        left -= len(piece)
        if keep:
            pieces.append(piece)
    return b"".join(pieces)


def read_array(path: Path, name: str) -> np.ndarray | None:
    """A statistics array of an archive, float64; None when it is not in there."""
    with _open(path) as archive:
        if f"{name}.npy" not in archive.namelist():
            return None
        try:
            with archive.open(f"{name}.npy") as member:  # the header first: a few bytes may unpack to gigabytes
                shape, _, dtype = decoders.header_of(member)
            if len(shape) > 2 or any(not 0 < length <= _WIDEST for length in shape) or dtype.kind not in "fiu":
                rule = f"must be numbers [d] or [d, d] with d <= {_WIDEST}"
                raise EvaluationError(f"{path}: {name} {rule}, got {dtype} {list(shape)}")
            with archive.open(f"{name}.npy") as member:
                return npy.read_array(member, allow_pickle=False).astype(np.float64)
        except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            if isinstance(error, EvaluationError):
                raise
            raise EvaluationError(f"{path}: {name} must be a plain array, got: {error}") from error


def write_samples(images: Path, out: Path) -> int:
    """Write a folder of equally large images as `arr_0`; returns their number."""
    kind, files = media_files.list_media(images)
    if kind != "image":
        raise EvaluationError(f"{images}: an .npz of samples is made of images, got {kind} files")
    if bad := decoders.survey(files):
        raise EvaluationError("\n".join(bad))
    first = media_files.read_image(files[0])
    out.parent.mkdir(parents=True, exist_ok=True)
    header = {"descr": "|u1", "fortran_order": False, "shape": (len(files), *first.shape)}
    with (
        replacing(out) as partial,
        zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED, allowZip64=True) as archive,
        archive.open("arr_0.npy", "w", force_zip64=True) as member,
    ):
        npy.write_array_header_1_0(member, header)
        for path in files:
            image = media_files.read_image(path)
            if image.shape != first.shape:
                raise EvaluationError(
                    f"{path}: must have the size of {files[0].name} {list(first.shape[:2])}, "
                    f"got {list(image.shape[:2])}"
                )
            member.write(image.tobytes())
    return len(files)


def write_statistics(out: Path, statistics: dict[str, np.ndarray]) -> None:
    """Write `mu, sigma, mu_s, sigma_s`, readable by guided-diffusion's evaluator."""
    unknown = set(statistics) - set(_STATISTICS)
    if unknown:
        raise EvaluationError(f"{out}: statistics must be among {_STATISTICS}, got {sorted(unknown)}")
    out.parent.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, Any] = {name: np.asarray(value) for name, value in statistics.items()}
    with replacing(out) as partial, partial.open("wb") as file:
        np.savez(file, **arrays)
