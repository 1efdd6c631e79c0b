"""Reading a mesh as its triangles, from one file alone: OBJ, PLY or GLB.

trimesh parses. It is handed the bytes and no place to look for others, so materials, textures and buffers that a file
names elsewhere are never opened; a buffer elsewhere is refused. What a file says of itself is bounded before memory
is asked for: its size, the elements of a PLY header, and all that the JSON of a GLB counts (accessors may have no data
or share it, primitives and nodes may repeat one shape, so that a few bytes could unpack to gigabytes).
"""

from __future__ import annotations

import io
import json
import logging
import struct
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from evaluation.errors import EvaluationError
from evaluation.ply import element_counts

__all__ = ["MAX_FACES", "MESH_SUFFIXES", "has_faces", "read_triangles"]

MESH_SUFFIXES = (".obj", ".glb")
"""Of files that are meshes by name; a `.ply` is one by its header."""

MAX_FACES = 1 << 24
"""Of a mesh with all repetitions: 17 million, 1.2 GB of triangles."""

MAX_FILE = 1 << 29
"""Bytes of a file: 0.5 GB."""

_WIDTHS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4, "MAT2": 4, "MAT3": 9, "MAT4": 16}
_SIZES = {5120: 1, 5121: 1, 5122: 2, 5123: 2, 5125: 4, 5126: 4}
_FLOAT, _FAN, _TRIANGLES = 5126, 6, (4, 5)
_HARMLESS = ("KHR_materials_", "KHR_texture_", "EXT_texture_", "KHR_lights_")
"""Beginnings of glTF extensions that do not change a shape."""


def has_faces(path: Path) -> bool:
    """Whether the header of a PLY file promises faces, so that it is a mesh and no cloud."""
    return element_counts(path).get("face", 0) > 0


def read_triangles(path: Path) -> np.ndarray:
    """Triangles `[F, 3, 3]` as float64, wider polygons cut, every node of a scene in its place.

    Raises:
        EvaluationError: for a file that is too large, damaged, has no faces, or needs what is not in it.
    """
    size = path.stat().st_size
    if size > MAX_FILE:
        raise EvaluationError(f"{path}: a mesh file must have at most {MAX_FILE} bytes, got {size}")
    data, suffix, promised = path.read_bytes(), path.suffix.lower(), 0
    if suffix == ".glb":
        _check_glb(path, data)
    elif suffix == ".ply":
        promised = _check_ply(path, size)
    else:
        data = data.decode("utf-8", errors="replace").encode()  # names may be in any encoding, numbers are ASCII
        if b"\0" in data:
            raise EvaluationError(f"{path}: an .obj file must be text, got bytes that are none")
    triangles = _parse(path, data, suffix)
    if len(triangles) < promised:
        raise EvaluationError(f"{path}: must hold the {promised} faces of its header, got {len(triangles)}")
    if not np.isfinite(triangles).all():
        raise EvaluationError(f"{path}: every coordinate must be finite, got a NaN or infinity")
    return triangles


def _parse(path: Path, data: bytes, suffix: str) -> np.ndarray:
    import trimesh

    logging.getLogger("trimesh").setLevel(logging.CRITICAL)  # what is wrong is said here, in one line
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="string or file could not be read", category=DeprecationWarning)
            scene = trimesh.load_scene(io.BytesIO(data), file_type=suffix[1:], process=False, skip_materials=True)
        pieces = _pieces(path, scene)
    except EvaluationError:
        raise
    except Exception as error:  # a parser fails in every way over a damaged file
        said = (str(error).splitlines() or [""])[0] or type(error).__name__
        raise EvaluationError(f"{path}: must be a readable {suffix} mesh, got: {said}") from error
    if not pieces:
        raise EvaluationError(f"{path}: a mesh must have faces, got none")
    return np.concatenate(pieces)


def _pieces(path: Path, scene: Any) -> list[np.ndarray]:
    """Triangles of each node that has some."""
    from trimesh import Trimesh, transform_points

    shapes = {name: shape for name, shape in scene.geometry.items() if isinstance(shape, Trimesh) and len(shape.faces)}
    placed = [scene.graph[node] for node in scene.graph.nodes_geometry]
    placed = [(matrix, shapes[name]) for matrix, name in placed if name in shapes]
    _bound(path, sum(len(shape.faces) for _, shape in placed))
    pieces = []
    for matrix, shape in placed:
        faces = np.asarray(shape.faces)
        if faces.ndim != 2 or faces.shape[1] != 3 or faces.min() < 0:
            raise ValueError(f"faces {list(faces.shape)} from {faces.min()}")
        pieces.append(transform_points(np.asarray(shape.vertices, np.float64), matrix)[faces])
    return pieces


def _bound(path: Path, faces: int) -> None:
    if faces > MAX_FACES:
        raise EvaluationError(f"{path}: a mesh must have at most {MAX_FACES} faces, got {faces}")


def _check_ply(path: Path, size: int) -> int:
    """Faces that the header promises, which the size of the file allows."""
    counts = element_counts(path)
    _bound(path, counts.get("face", 0))
    if sum(counts.values()) > size:  # every element has a byte at least
        raise EvaluationError(f"{path}: must hold the {sum(counts.values())} elements of its header, got {size} bytes")
    return counts.get("face", 0)


def _check_glb(path: Path, data: bytes) -> None:
    """A binary glTF 2 whose shapes are whole, in this file, plain, and not more than `MAX_FACES` triangles."""
    header = _header(path, data)
    try:
        needs = [name for name in header.get("extensionsRequired", []) if not name.startswith(_HARMLESS)]
        if needs:
            raise EvaluationError(f"{path}: must need no extension of glTF, got {', '.join(map(str, needs))}")
        for buffer in header.get("buffers", []):
            if "uri" in buffer:
                raise EvaluationError(f"{path}: must hold its data itself, got the address {buffer['uri'][:60]!r}")
        views, accessors = header.get("bufferViews", []), header.get("accessors", [])
        if any("bufferView" not in one or "sparse" in one for one in accessors):
            raise EvaluationError(f"{path}: must hold its numbers plainly, got sparse or compressed ones")
        counted = sum(_whole(one["count"]) * _WIDTHS[one["type"]] * _SIZES[one["componentType"]] for one in accessors)
        shared = sum(_whole(view["byteLength"]) for view in views)
        if max(counted, shared) > 4 * len(data):
            raise EvaluationError(f"{path}: must hold what it counts, got {len(data)} bytes for {max(counted, shared)}")
        primitives = [one for mesh in header.get("meshes", []) for one in mesh["primitives"]]
        _bound(path, sum(_check_primitive(path, one, accessors) for one in primitives))
    except EvaluationError:
        raise
    except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
        raise EvaluationError(f"{path}: must be a valid binary glTF 2, got: {type(error).__name__} {error}") from error


def _header(path: Path, data: bytes) -> dict[str, Any]:
    """The JSON of a GLB, its first chunk."""
    if len(data) < 20 or data[:4] != b"glTF":
        raise EvaluationError(f"{path}: must be a binary glTF 2 (.glb), got another file")
    _, version, total, length, kind = struct.unpack("<4sIII4s", data[:20])
    if version != 2 or kind != b"JSON" or total != len(data):
        said = f"version {version}, {total} bytes, first chunk {kind!r}"
        raise EvaluationError(f"{path}: must be a binary glTF 2 of {len(data)} bytes with JSON first, got {said}")
    try:
        header = json.loads(data[20 : 20 + length])
    except (ValueError, RecursionError) as error:
        raise EvaluationError(f"{path}: must have a header of JSON, got: {error}") from error
    if not isinstance(header, dict):
        raise EvaluationError(f"{path}: must have a header of JSON keys, got {type(header).__name__}")
    return header


def _whole(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{value!r} where a count belongs")
    return value


def _check_primitive(path: Path, primitive: dict[str, Any], accessors: list[dict[str, Any]]) -> int:
    """Upper bound of its triangles, and of its vertices thirds; lines and points are none."""
    mode = primitive.get("mode", _TRIANGLES[0])
    if mode == _FAN:
        raise EvaluationError(f"{path}: a surface must be triangles or strips of them, got a fan")
    if mode not in _TRIANGLES:
        return 0
    places = accessors[_whole(primitive["attributes"]["POSITION"])]
    if (places["type"], places["componentType"]) != ("VEC3", _FLOAT):
        raise EvaluationError(f"{path}: positions must be three 32-bit floats, got {places['type']} of another type")
    corners = accessors[_whole(primitive["indices"])]["count"] if "indices" in primitive else places["count"]
    faces = corners // 3 if mode == _TRIANGLES[0] else max(corners - 2, 0)
    return max(faces, places["count"] // 3)
