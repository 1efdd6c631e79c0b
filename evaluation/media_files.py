"""Reading folders of media: strict, in a stated order, one kind per folder.

Files are ordered by name with numbers compared as numbers (`img_2` before `img_10`), which is also the
order in which a prompt list belongs to them. A file and its reference pair by name without suffix.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from evaluation import decoders, meshes
from evaluation.errors import EvaluationError
from evaluation.metric import Media, MediaItem

__all__ = ["detect_kind", "list_media", "pair_items", "read_image", "read_points", "read_prompts", "read_video"]

_SUFFIXES: dict[str, Media] = {
    **dict.fromkeys((".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"), "image"),
    **dict.fromkeys((".mp4", ".mov", ".avi", ".mkv", ".webm", ".gif"), "video"),
    **dict.fromkeys((".ply", ".xyz"), "points"),
    **dict.fromkeys(meshes.MESH_SUFFIXES, "mesh"),
}


def _natural(path: Path) -> list[tuple[int, int, str]]:
    parts = re.split(r"(\d+)", path.name)
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts]


def detect_kind(path: Path) -> Media:
    """The kind by suffix; a `.ply` with faces is a mesh, an `.npy` array of two axes points, of four axes a video."""
    suffix = path.suffix.lower()
    if suffix == ".ply" and meshes.has_faces(path):
        return "mesh"
    if suffix != ".npy":
        return _SUFFIXES[suffix]
    axes = len(decoders.array_shape(path))
    if axes not in (2, 4):
        raise EvaluationError(f"{path}: must be points [N, 3] or a video [T, H, W, 3], got {axes} axes")
    return "points" if axes == 2 else "video"


def list_media(folder: Path) -> tuple[Media, list[Path]]:
    """The media files of a folder and their one kind.

    Arrays (`.npy`) count only in a folder without pictures, videos, clouds or meshes: beside them they are raw data.
    """
    if not folder.is_dir():
        raise EvaluationError(f"{folder}: must be a folder of media, got {'a file' if folder.exists() else 'nothing'}")
    entries = sorted((path for path in folder.iterdir() if path.is_file() and path.name[0] != "."), key=_natural)
    named = [path for path in entries if path.suffix.lower() in _SUFFIXES]
    files = named or [path for path in entries if path.suffix.lower() == ".npy"]
    if not files:
        raise EvaluationError(
            f"{folder}: must hold images, videos, point clouds or meshes, got {len(entries)} other files"
        )
    kinds: dict[Path, Media] = {path: detect_kind(path) for path in files}
    first = kinds[files[0]]
    for path in files:
        if kinds[path] != first:
            raise EvaluationError(f"{path}: one folder must hold one kind of media, got {kinds[path]} beside {first}")
    by_stem: dict[str, Path] = {}
    for path in files:
        if path.stem in by_stem:
            raise EvaluationError(f"{path}: names must differ without suffix, got also {by_stem[path.stem].name}")
        by_stem[path.stem] = path
    return first, files


def matching(stem: str, stems: set[str]) -> str:
    """The image that a reference belongs to: of its own name, or with the factor of enlargement, `0901x4` of `0901`."""
    others = (re.sub(r"x[2348]$", "", stem), *(f"{stem}x{factor}" for factor in (2, 3, 4, 8)))
    return stem if stem in stems else next((other for other in others if other in stems), stem)


def pair_items(
    images: Path,
    reference: Path | None,
    prompts: Sequence[str] | Mapping[str, str] | None,
    subset: bool = False,
) -> tuple[Media, list[MediaItem]]:
    """Items of a folder with references and prompts; `subset` allows references that have no image."""
    kind, files = list_media(images)
    partners: dict[str, Path] = {}
    if reference is not None:
        other, found = list_media(reference)
        if other != kind:
            raise EvaluationError(f"{reference}: must hold {kind} files like {images}, got {other} files")
        partners = {path.stem: path for path in found}
        stems = {path.stem for path in files}
        partners = {matching(stem, stems): path for stem, path in partners.items()}
        for path in files:
            if path.stem not in partners:
                raise EvaluationError(f"{path}: has no partner named {path.stem}.* in {reference}")
        for stem, path in partners.items():
            if stem not in stems and not subset:
                raise EvaluationError(f"{path}: has no partner in {images}; if only a part is meant, say subset=true")
    texts = _texts(files, prompts)
    return kind, [
        MediaItem(name=path.stem, path=path, reference=partners.get(path.stem), prompt=texts.get(path.stem))
        for path in files
    ]


def _texts(files: list[Path], prompts: Sequence[str] | Mapping[str, str] | None) -> dict[str, str]:
    if prompts is None:
        return {}
    if isinstance(prompts, Mapping):
        for path in files:
            if path.stem not in prompts:
                raise EvaluationError(f"{path}: has no prompt among the {len(prompts)} given by name")
        return {path.stem: prompts[path.stem] for path in files}
    if len(prompts) != len(files):
        raise EvaluationError(f"prompts: must be one per file of {files[0].parent} ({len(files)}), got {len(prompts)}")
    return {path.stem: text for path, text in zip(files, prompts, strict=True)}


def read_prompts(path: Path, unquote: bool = True) -> list[str]:
    """One prompt per line; one pair of enclosing double quotes (a CSV residue) is removed when `unquote`.

    Lines end as on Unix, Windows or an old Mac; empty ones and a byte-order mark are left out.
    """
    if not path.is_file():
        raise EvaluationError(f"{path}: must be a text file with one prompt per line, got nothing there")
    try:
        lines = re.split(r"\r\n|\r|\n", path.read_bytes().decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise EvaluationError(f"{path}: must be UTF-8 text, got byte {error.object[error.start]:#04x}") from error
    lines = [line for line in lines if line.strip()]
    quoted = re.compile(r'^"(.*)"$')
    return [quoted.sub(r"\1", line.strip()) if unquote else line for line in lines]


def read_image(path: Path) -> np.ndarray:
    """8-bit RGB `[H, W, 3]`; transparency and more than 8 bits are refused, grey is repeated."""
    return decoders.read_picture(path)


def read_video(path: Path) -> np.ndarray:
    """8-bit RGB frames `[T, H, W, 3]`; `.npy` holds uint8, or floats in [0, 1] that are rounded to 8 bits."""
    return _array_video(path) if path.suffix.lower() == ".npy" else decoders.read_frames(path)


def _array_video(path: Path) -> np.ndarray:
    array = decoders.read_array(path)
    if array.ndim != 4 or array.shape[-1] != 3 or 0 in array.shape:
        raise EvaluationError(f"{path}: a video array must be [T, H, W, 3], got {list(array.shape)}")
    if array.dtype == np.uint8:
        return array
    if not np.issubdtype(array.dtype, np.floating):
        raise EvaluationError(f"{path}: a video array must be uint8 or float, got {array.dtype}")
    if not np.isfinite(array).all():
        frame = int(np.argwhere(~np.isfinite(array))[0, 0])
        raise EvaluationError(f"{path}: every value must be finite, got a NaN or infinity in frame {frame}")
    if array.min() < 0 or array.max() > 1:
        raise EvaluationError(f"{path}: floats must lie in [0, 1], got {array.min():.4g} to {array.max():.4g}")
    return np.rint(array * 255).astype(np.uint8)


def read_points(path: Path) -> np.ndarray:
    """Points `[N, 3]` as float64 from `.npy`, the vertices of a `.ply`, or `.xyz` text."""
    suffix = path.suffix.lower()
    if suffix == ".npy":
        points = decoders.read_array(path)
    elif suffix == ".ply":
        from evaluation.ply import read_ply

        points = read_ply(path)
    else:
        try:
            points = np.loadtxt(path, ndmin=2, usecols=(0, 1, 2))
        except (OSError, ValueError) as error:
            raise EvaluationError(f"{path}: must be rows of x y z, got: {str(error).splitlines()[0]}") from error
    if points.ndim != 2 or points.shape[1] != 3 or not len(points):
        raise EvaluationError(f"{path}: a point cloud must be [N, 3] with N > 0, got {list(points.shape)}")
    if not np.isfinite(points).all():
        raise EvaluationError(f"{path}: every coordinate must be finite, got a NaN or infinity")
    return points.astype(np.float64)
