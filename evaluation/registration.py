"""A cloud moved rigidly onto another by iterative closest points (Besl & McKay 1992).

    repeat: q_i = the point of Q nearest to p_i;  (R, t) = argmin sum |R p_i + t - q_i|^2;  P <- R P + t

From one start, the centroids laid together, this finds the next best pose and no more. From the 24 rotations that map a
cube onto itself, about that centroid, it also finds objects that lie on their side or face another way: any rotation is
at most 63 degrees from one of them. The starts run on few points; the pose of the lowest Chamfer distance is then
refined on all. A weakly determined turn, such as that of a ball with small limbs, takes a hundred iterations or more.
"""

from __future__ import annotations

import hashlib

import numpy as np

__all__ = ["align_clouds"]

_COARSE = 500
"""Points that the starts run on."""
_POSES: dict[tuple[bytes, int], np.ndarray] = {}
"""Poses that were found, by the digest of both clouds and the number of starts: two metrics of a pair search once."""


def align_clouds(a: np.ndarray, b: np.ndarray, rotations: int) -> np.ndarray:
    """Cloud `a` `[N, 3]` moved onto `b` `[M, 3]`, started from 1 or 24 rotations; without scaling or mirroring."""
    key = (hashlib.sha256(a.tobytes() + b.tobytes()).digest(), rotations)
    if key not in _POSES:
        _POSES[key] = find_pose(a, b, rotations)
    return _move(a, _POSES[key])


def find_pose(a: np.ndarray, b: np.ndarray, rotations: int) -> np.ndarray:
    """The pose `[4, 4]` that moves `a` onto `b`."""
    from scipy.spatial import KDTree
    from scipy.spatial.transform import Rotation

    few_a, few_b = _few(a), _few(b)
    tree = KDTree(few_b)
    centre_a, centre_b = a.mean(0), b.mean(0)
    turns = Rotation.create_group("O")
    poses = []
    for turn in turns[turns.magnitude().argsort()][:rotations].as_matrix():  # the least turn is none
        start = np.eye(4)
        start[:3, :3], start[:3, 3] = turn, centre_b - turn @ centre_a
        poses.append(_refine(few_a, few_b, start, iterations=50, tolerance=1e-6))

    def distance(pose: np.ndarray) -> float:
        moved = _move(few_a, pose)
        return np.square(tree.query(moved)[0]).mean() + np.square(KDTree(moved).query(few_b)[0]).mean()

    return _refine(a, b, min(poses, key=distance), iterations=200, tolerance=1e-9)


def _few(points: np.ndarray) -> np.ndarray:
    """At most `_COARSE` of the points, drawn by a fixed seed: those of a file may come in an order."""
    if len(points) <= _COARSE:
        return points
    return points[np.random.default_rng(0).choice(len(points), _COARSE, replace=False)]


def _move(points: np.ndarray, pose: np.ndarray) -> np.ndarray:
    return points @ pose[:3, :3].T + pose[:3, 3]


def _refine(a: np.ndarray, b: np.ndarray, start: np.ndarray, iterations: int, tolerance: float) -> np.ndarray:
    """The pose `[4, 4]` where a step lowers the mean square distance of `a` to `b` by less than a share of its size."""
    from trimesh.registration import icp

    threshold = tolerance * float(np.ptp(b, axis=0).max()) ** 2
    pose, _, _ = icp(a, b, initial=start, threshold=threshold, max_iterations=iterations, reflection=False, scale=False)
    return pose
