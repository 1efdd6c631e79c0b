"""Knobs: the free choices of a method, checked in one place, and the parts that are built from them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any

import torch

from hicache.checks import check_integer
from hicache.forecast import BASES, HISTORIES, SIGMA_SCHEDULES, Basis, LadderBasis, SigmaSchedule
from hicache.patch import PATCHES, Patch
from hicache.policy import POLICIES, Policy
from hicache.tree import SCOPES

__all__ = ["DTYPES", "MAX_ORDER", "TIMES", "Knobs", "lookup", "read_by"]

MAX_ORDER = 6
"""Beyond it the differences are rounding noise."""

TIMES = ("index", "sigma", "log_snr")

DTYPES: dict[str, torch.dtype | None] = {"feature": None, "fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True)
class Knobs:
    """The free choices of a method.

    Attributes:
        scope: where values are cached, a key of `SCOPES`.
        interval: N, distance of full steps after the warm-up.
        budget: K, number of full steps, for policies that are given one (`even`, `late`, `placed`); of each model,
            where several follow on one another.
        order: m, highest derivative of the forecast, 0 to 6.
        sigma: contraction factor (base value of the schedule), > 0.
        warmup_steps: w, leading full steps; the ladder of differences starts at step w - 1.
        sigma_schedule: `constant`, `adaptive`, `horizon` or `linear`.
        sigma_options: further parameters of the schedule (`alpha`, `beta`, `c`, `sigma_end`, ...).
        policy: when to compute, a key of `POLICIES`.
        policy_options: further parameters of the policy (`window`, `alpha`).
        mask: the full steps of policy `mask`.
        time: the variable that the basis extrapolates in: `index` of the step, noise level `sigma`, or `log_snr`; the
            last two from the scheduler of the pipeline, scaled so that the mean step is 1.
        basis: overrides the basis of the method.
        basis_options: parameters of the basis (`variant`, `degree`, `ridge`, `mix`, `rank`, `holdout`, ...).
        history: `snapshots`, or `differences` in the feature dtype.
        gate: the published warm-up gate of the ladder; False builds differences from the first pair; None leaves it to
            the basis (`Basis.gated`).
        numerics: `clean`, or `reference` for the in-dtype arithmetic of the published code.
        history_dtype: `feature`, `fp32` or `bf16`.
        history_place: `device`, or `cpu` for pinned host memory: every estimate brings the frames back, site by site,
            which saves memory and costs time (what it gains is not measured).
        patch: `none`, `tokens` (ToCa) or `clusters` (ClusCa): which rows are recomputed inside an estimate.
        patch_options: parameters of the patch (`fraction`, `select`, `clusters`, `gamma`, `amend`, ...).
        front: blocks before the span of scope `span`, always run; for a policy that probes, of those behind a model's
            refiners and controls, which run as well.
        back: blocks after it, always run.
        depth: where scope `deep` splits a U-Net: so many of its layers on the way up run beside the last one.
    """

    scope: str = "modules"
    interval: int = 5
    budget: int = 8
    order: int = 2
    sigma: float = 0.5
    warmup_steps: int = 3
    sigma_schedule: str = "constant"
    sigma_options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    policy: str = "interval"
    policy_options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    mask: Sequence[int] | None = None
    time: str = "index"
    basis: str = "reuse"
    basis_options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    history: str = "snapshots"
    gate: bool | None = None
    numerics: str = "clean"
    history_dtype: str = "feature"
    history_place: str = "device"
    patch: str = "none"
    patch_options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    front: int = 1
    back: int = 0
    depth: int = 0

    def __post_init__(self) -> None:
        lookup("scope", self.scope, SCOPES)
        lookup("sigma_schedule", self.sigma_schedule, SIGMA_SCHEDULES)
        lookup("policy", self.policy, POLICIES)
        lookup("time", self.time, TIMES)
        lookup("basis", self.basis, BASES)
        lookup("history", self.history, HISTORIES)
        lookup("patch", self.patch, PATCHES)
        lookup("numerics", self.numerics, ("clean", "reference"))
        lookup("history_dtype", self.history_dtype, DTYPES)
        lookup("history_place", self.history_place, ("device", "cpu"))
        for key in ("interval", "budget", "warmup_steps", "order", "front", "back", "depth"):
            value, low = getattr(self, key), int(key in ("interval", "budget", "warmup_steps"))
            check_integer(key, value, low)
        if self.order > MAX_ORDER:
            raise ValueError(f"order: must be between 0 and {MAX_ORDER}, got {self.order}")
        if (self.policy == "mask") != (self.mask is not None):
            raise ValueError(f"mask: must be given exactly when policy is mask, got {self.mask}")
        if not isinstance(self.mask, list | tuple | range | None):
            raise ValueError(f"mask: must be a list of steps, got {self.mask!r}")
        if self.gate and not POLICIES[self.policy].gated:
            raise ValueError(f"gate: must be left open for policy {self.policy}, which has no warm-up, got True")
        if self.numerics == "reference" and self.history != "differences":
            raise ValueError(f"history: must be differences with numerics=reference, got {self.history!r}")
        if self.history == "differences" and not isinstance(BASES[self.basis], LadderBasis):
            raise ValueError(
                f"history: {self.basis} has no ladder of differences, must be snapshots, got 'differences'"
            )
        self.build_sigma()
        self.build_patch()
        if self.build_basis().counts_steps() and self.time != "index":
            raise ValueError(f"time: must be index for basis {self.basis}, which counts steps, got {self.time!r}")

    @property
    def gated(self) -> bool:
        """Whether differences start at the last step of the warm-up."""
        return POLICIES[self.policy].gated and (BASES[self.basis].gated if self.gate is None else self.gate)

    def build_sigma(self) -> SigmaSchedule:
        """A fresh sigma schedule."""
        schedule = SIGMA_SCHEDULES[self.sigma_schedule]
        known = [f.name for f in fields(schedule) if f.init and f.name != "sigma"]
        check_options("sigma_options", f"sigma_schedule {self.sigma_schedule}", self.sigma_options, known)
        return schedule(sigma=self.sigma, **self.sigma_options)

    def build_policy(self) -> Policy:
        """The policy."""
        kind: Any = POLICIES[self.policy]
        shared = {key: getattr(self, key) for key in ("interval", "budget", "warmup_steps")}
        shared["steps"] = tuple(self.mask or ())
        names = [f.name for f in fields(kind) if f.init]
        check_options("policy_options", self.policy, self.policy_options, [n for n in names if n not in shared])
        check_text("policy_options", kind, self.policy_options)
        given = {n: shared[n] for n in names if n in shared} | dict(self.policy_options)
        try:
            return kind(**given)
        except TypeError as error:
            raise ValueError(f"policy_options: {error}") from error

    def build_patch(self) -> Patch | None:
        """The patch with its options."""
        kind: Any = PATCHES[self.patch]
        names = [] if kind is None else [f.name for f in fields(kind) if f.init]
        check_options("patch_options", f"patch {self.patch}", self.patch_options, [n for n in names if n != "interval"])
        if kind is None:
            return None
        check_text("patch_options", kind, self.patch_options)
        try:
            patch = kind(**({"interval": self.interval} if "interval" in names else {}), **self.patch_options)
        except (TypeError, ValueError) as error:
            raise ValueError(f"patch_options: {error}") from error
        if patch.amend == "before" and self.history != "differences" and self.basis != "reuse":
            raise ValueError(
                "history: must be differences for a patch that amends before the forecast "
                f"(or patch_options={{amend: after}}), got {self.history!r}"
            )
        return patch

    def build_basis(self) -> Basis:
        """The basis with its options."""
        basis = BASES[self.basis]
        kind = type(basis)
        names = [f.name for f in fields(kind)] if is_dataclass(kind) else []
        check_options("basis_options", self.basis, self.basis_options, names)
        check_text("basis_options", kind, self.basis_options)
        shared = {"interval": self.interval} if "interval" in names and self.policy == "interval" else {}
        try:
            return replace(basis, **{**shared, **self.basis_options}) if names and is_dataclass(basis) else basis
        except TypeError as error:
            raise ValueError(f"basis_options: {error}") from error


def read_by(policy: str, basis: str, patch: str) -> frozenset[str]:
    """The knobs of a run that these parts read: interval, budget, warmup_steps, order, sigma, sigma_schedule, time."""
    rule = BASES[lookup("basis", basis, BASES)]
    kinds: list[Any] = [POLICIES[lookup("policy", policy, POLICIES)], PATCHES[lookup("patch", patch, PATCHES)]]
    named = {f.name for kind in kinds if kind is not None for f in fields(kind) if f.init}
    keys = named & {"interval", "budget", "warmup_steps"}
    if rule.uses_order:
        keys |= {"order", "warmup_steps"} if rule.gated and POLICIES[policy].gated else {"order"}
    if rule.uses_sigma:
        keys |= {"sigma", "sigma_schedule"}
    return frozenset(keys if basis == "reuse" else keys | {"time"})


def check_options(key: str, owner: str, options: Mapping[str, Any], known: Sequence[str]) -> None:
    """Raise a `ValueError` for the first option that `owner` does not have."""
    if not isinstance(options, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ValueError(f"{key}: must be names and values, got {options!r}")
    for name in options:
        if not known:
            raise ValueError(f"{key}: {owner} has none, got {name!r}")
        lookup(key, name, known)


def check_text(key: str, kind: Any, options: Mapping[str, Any]) -> None:
    """Raise a `ValueError` for the first option that is text and should not be; `kind` checks the rest."""
    for f in fields(kind) if options else ():
        if isinstance(options.get(f.name), str) and "str" not in str(f.type):
            raise ValueError(f"{key}: {f.name} must be of type {f.type}, got {options[f.name]!r}")


def lookup(key: str, value: str, known: Iterable[str]) -> str:
    """`value` if it is known.

    Raises:
        ValueError: naming the key, the nearest known name and all of them.
    """
    names = list(known)
    if value in names:
        return value
    near = difflib.get_close_matches(str(value), names, n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    raise ValueError(f"{key}: must be one of {', '.join(names)}, got {value!r}{hint}")
