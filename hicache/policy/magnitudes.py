"""Curves and limits of MagCache (Zehong-Ma/MagCache, Apache-2.0), measured once per model by its authors.

A curve is `gamma_s = mean ||r_s|| / ||r_{s-1}||` of the residuals of the whole stack, 1 at the first step. Qwen-Image's
are those of the conditional branch; the unconditional one has the same but for one value (1.0625 for 1.07031 at step
20 of Qwen-Image-Edit).
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["LIMITS", "MAGNITUDES", "Limits"]

MAGNITUDES: dict[str, tuple[float, ...]] = {
    "flat": (1.0,),
    "flux": (
        1.0, 1.21094, 1.11719, 1.07812, 1.0625, 1.03906, 1.03125, 1.03906, 1.02344, 1.03125, 1.02344, 0.98047,
        1.01562, 1.00781, 1.0, 1.00781, 1.0, 1.00781, 1.0, 1.0, 0.99609, 0.99609, 0.98047, 0.98828, 0.96484, 0.95703,
        0.93359, 0.89062,
    ),
    "flux_kontext": (
        1.0, 1.19531, 1.07812, 1.02344, 1.03125, 1.00781, 1.02344, 1.01562, 1.01562, 1.0, 1.01562, 1.0, 1.00781, 1.0,
        1.00781, 1.0, 1.00781, 0.99609, 1.01562, 0.99219, 1.0, 0.99219, 0.98438, 0.99609, 0.96484, 0.96094, 0.9375,
        0.93359,
    ),
    "hunyuan_video": (
        1.0, 1.06971, 1.29073, 1.11245, 1.09596, 1.05233, 1.01415, 1.05672, 1.00848, 1.03632, 1.02974, 1.00984,
        1.03028, 1.00681, 1.06614, 1.05022, 1.02592, 1.01776, 1.02985, 1.00726, 1.03727, 1.01502, 1.00992, 1.03371,
        0.9976, 1.02742, 1.0093, 1.01869, 1.00815, 1.01461, 1.01152, 1.03082, 1.0061, 1.02162, 1.01999, 0.99063,
        1.01186, 1.0217, 0.99947, 1.01711, 0.9904, 1.00258, 1.00878, 0.97039, 0.97686, 0.94315, 0.97728, 0.91154,
        0.86139, 0.76592,
    ),
    "hunyuan_video_720p": (
        1.0, 1.0754, 1.27807, 1.11596, 1.09504, 1.05188, 1.00844, 1.05779, 1.00657, 1.04142, 1.03101, 1.00679,
        1.02556, 1.00908, 1.06949, 1.05438, 1.02214, 1.02321, 1.03019, 1.00779, 1.03381, 1.01886, 1.01161, 1.02968,
        1.00544, 1.02822, 1.00689, 1.02119, 1.0105, 1.01044, 1.01572, 1.02972, 1.0094, 1.02368, 1.0226, 0.98965,
        1.01588, 1.02146, 1.0018, 1.01687, 0.99436, 1.00283, 1.01139, 0.97122, 0.98251, 0.94513, 0.97656, 0.90943,
        0.85703, 0.75456,
    ),
    "qwen_image": (
        1.0, 1.64062, 1.45312, 1.1875, 1.17188, 1.05469, 1.21094, 1.10938, 1.11719, 1.13281, 1.11719, 1.07812,
        1.07031, 1.08594, 1.08594, 1.07812, 1.03906, 1.04688, 1.07812, 1.07031, 1.03125, 1.07812, 1.04688, 1.04688,
        1.04688, 1.03906, 1.01562, 1.03125, 1.02344, 1.02344, 1.02344, 1.03906, 1.0, 1.01562, 1.0, 0.99219, 1.00781,
        0.98047, 0.95703, 0.96875, 0.99219, 0.92578, 0.92578, 0.90625, 0.85938, 0.80469, 0.87891, 0.75, 0.60938,
        0.55078,
    ),
    "qwen_image_edit": (
        1.0, 1.41406, 1.09375, 1.3125, 1.20312, 1.0625, 1.125, 1.14062, 1.17969, 1.09375, 1.10938, 1.10938, 1.07031,
        1.04688, 1.09375, 1.03906, 1.0625, 1.04688, 1.0625, 1.04688, 1.07031, 1.03125, 1.03906, 1.03906, 1.02344,
        1.01562, 1.03125, 1.00781, 1.01562, 1.00781, 1.01562, 1.0, 1.0, 0.98828, 0.98047, 0.98047, 0.97266, 0.92578,
        0.94922, 0.98438, 0.89844, 0.91797, 0.92188, 0.84375, 0.82812, 0.78516, 0.87891, 0.71094, 0.56641, 0.50781,
    ),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What the published code sets for a model.

    Attributes:
        threshold: delta, largest accumulated error that is skipped.
        inclusive: whether an error of exactly delta is.
        max_skips: K.
        retention: rho, leading share of the steps that is computed,
        rounding: added to rho T before it is cut to an integer.
        forced: an index that is always computed, and of how many steps.
    """

    threshold: float = 0.24
    inclusive: bool = True
    max_skips: int = 5
    retention: float = 0.1
    rounding: float = 0.5
    forced: tuple[int, int] | None = None


LIMITS: dict[str, Limits] = {
    "flux": Limits(forced=(11, 28)),
    "flux_kontext": Limits(threshold=0.05, max_skips=4, retention=0.2, forced=(11, 28)),
    "hunyuan_video": Limits(max_skips=6, retention=0.2, rounding=0.0),
    "hunyuan_video_720p": Limits(max_skips=6, retention=0.2, rounding=0.0),
    "qwen_image": Limits(threshold=0.06, inclusive=False, max_skips=2, retention=0.2, rounding=0.0),
    "qwen_image_edit": Limits(threshold=0.06, inclusive=False, max_skips=2, retention=0.2, rounding=0.0),
}
"""By the name of the curve; models without a published one have FLUX's, without its forced step (ours)."""
