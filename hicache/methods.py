"""The whole zoo as one table: a method is a scope, a policy and a forecaster.

    method            policy      basis          sigma       paper
    none              -           -              -           the un-cached model
    steps             -           -              -           fewer solver steps, un-cached (the run sets them)
    fora              interval    reuse          -           arXiv 2407.01425
    taylorseer        interval    taylor         -           arXiv 2503.06923
    hi_taylor         interval    scaled_taylor  constant    arXiv 2508.16984, Table 2
    hicache           interval    hermite        constant    arXiv 2508.16984
    hicache_adaptive  interval    hermite        adaptive    arXiv 2508.16984, Table 7
    newton            interval    newton         -           none: the unbiased ladder
    foca, chebyshev, pade, dmd, auto: interval with their own basis
    teacache, magcache: scope stack, their own policy, reuse
    fbcache, dbcache: scope span, policy probe, reuse
    delta_dit: scope front_back, policy stages, reuse
    foca              interval    foca           -           arXiv 2508.16211
    chebyshev         interval    chebyshev      -           Spectrum, arXiv 2603.01623 (its policy: growing)
    pade              interval    pade           -           HiCache++, micro-benchmark
    dmd               interval    dmd            constant    HiCache++
    auto              interval    auto           constant    HiCache++, backend auto
    calibrated        mask        table          -           none: weights and full steps from trajectories
    lesa              interval    lesa           -           arXiv 2602.20497 (a trained predictor)
    l2c               layer_mask  reuse          -           arXiv 2406.01733 (a trained router)

Every entry is a composition, so any knob may be turned: `method("hicache", policy="mask", mask=[0, 1, 5, 20])`,
`method("taylorseer", basis="hermite")`, any scope with any of them.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any

import torch

from hicache.forecast import (
    BASES,
    HISTORIES,
    SIGMA_SCHEDULES,
    Basis,
    Elementwise,
    ElementwiseBasis,
    Forecaster,
    LadderBasis,
    SigmaSchedule,
)
from hicache.patch import PATCHES, Patch
from hicache.policy import POLICIES, Policy
from hicache.tree import SCOPES

__all__ = ["MAX_ORDER", "METHODS", "CacheMethod", "Knobs", "MethodSpec", "lookup", "method"]

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
        order: m, highest derivative of the forecast, 0 to 6.
        sigma: contraction factor (base value of the schedule), > 0.
        warmup_steps: w, leading full steps; the ladder of differences starts at step w - 1.
        sigma_schedule: `constant`, `adaptive`, `horizon` or `linear`.
        sigma_options: further parameters of the schedule (`alpha`, `beta`, `c`, `sigma_end`, ...).
        policy: `interval`, `algorithm1`, `mask`, `growing` or `every`.
        policy_options: further parameters of the policy (`window`, `alpha`).
        mask: the full steps of policy `mask`.
        time: the variable that the basis extrapolates in: `index` of the step, noise level `sigma`, or `log_snr`; the
            last two from the scheduler of the pipeline, scaled so that the mean step is 1.
        basis: overrides the basis of the method.
        basis_options: parameters of the basis (`variant`, `degree`, `ridge`, `mix`, `rank`, `holdout`, ...).
        history: `snapshots`, or `differences` in the feature dtype.
        gate: the published warm-up gate of the ladder; False builds differences from the first pair.
        numerics: `clean`, or `reference` for the in-dtype arithmetic of the published code.
        history_dtype: `feature`, `fp32` or `bf16`.
        history_place: `device`, or `cpu` for pinned host memory.
        patch: `none`, `tokens` (ToCa) or `clusters` (ClusCa): which rows are recomputed inside an estimate.
        patch_options: parameters of the patch (`fraction`, `select`, `clusters`, `gamma`, `amend`, ...).
        front: blocks before the span of scope `span`, always run.
        back: blocks after it, always run.
    """

    scope: str = "modules"
    interval: int = 5
    order: int = 2
    sigma: float = 0.5
    warmup_steps: int = 3
    sigma_schedule: str = "constant"
    sigma_options: Mapping[str, Any] = field(default_factory=dict)
    policy: str = "interval"
    policy_options: Mapping[str, Any] = field(default_factory=dict)
    mask: Sequence[int] | None = None
    time: str = "index"
    basis: str = "reuse"
    basis_options: Mapping[str, Any] = field(default_factory=dict)
    history: str = "snapshots"
    gate: bool = True
    numerics: str = "clean"
    history_dtype: str = "feature"
    history_place: str = "device"
    patch: str = "none"
    patch_options: Mapping[str, Any] = field(default_factory=dict)
    front: int = 1
    back: int = 0

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
        for key in ("interval", "warmup_steps", "order", "front", "back"):
            value, low = getattr(self, key), int(key in ("interval", "warmup_steps"))
            if isinstance(value, bool) or not isinstance(value, int) or value < low:
                raise ValueError(f"{key}: must be an integer >= {low}, got {value!r}")
        if self.order > MAX_ORDER:
            raise ValueError(f"order: must be between 0 and {MAX_ORDER}, got {self.order}")
        if (self.policy == "mask") != (self.mask is not None):
            raise ValueError(f"mask: must be given exactly when policy is mask, got {self.mask}")
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

    def build_sigma(self) -> SigmaSchedule:
        """A fresh sigma schedule."""
        schedule = SIGMA_SCHEDULES[self.sigma_schedule]
        known = [f.name for f in fields(schedule) if f.init and f.name != "sigma"]
        for key in self.sigma_options:
            lookup("sigma_options", key, known)
        return schedule(sigma=self.sigma, **self.sigma_options)

    def build_policy(self) -> Policy:
        """The policy."""
        kind: Any = POLICIES[self.policy]
        shared = {"interval": self.interval, "warmup_steps": self.warmup_steps, "steps": tuple(self.mask or ())}
        names = [f.name for f in fields(kind)]
        check_options("policy_options", self.policy, self.policy_options, [n for n in names if n not in shared])
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
        basis: Any = BASES[self.basis]
        names = [f.name for f in fields(type(basis))] if is_dataclass(type(basis)) else []
        check_options("basis_options", self.basis, self.basis_options, names)
        shared = {"interval": self.interval} if "interval" in names and self.policy == "interval" else {}
        try:
            return replace(basis, **{**shared, **self.basis_options}) if names else basis
        except TypeError as error:
            raise ValueError(f"basis_options: {error}") from error


@dataclass(frozen=True, kw_only=True)
class CacheMethod:
    """A method ready to be enabled on a model."""

    name: str
    scope: str
    policy: Policy
    knobs: Knobs
    patch: Patch | None = None
    caches: bool = True
    clock: Callable[[], Sequence[float]] | None = field(default=None, compare=False)
    """Times of the steps of the generation that begins; the handle gives it where `knobs.time` needs one."""

    @property
    def mixes(self) -> bool:
        """Whether there are steps at which every module has an action of its own."""
        return self.patch is not None or self.policy.mixes

    def build_forecaster(self, lead: int = 1, channel: int = -1) -> Forecaster:
        """A fresh forecaster; `lead` and `channel` as in `Forecaster`."""
        knobs = self.knobs
        warmup = knobs.warmup_steps if knobs.gate else None
        basis, dtype = knobs.build_basis(), DTYPES[knobs.history_dtype]
        kind = Elementwise if isinstance(basis, ElementwiseBasis) else HISTORIES[knobs.history]
        history = kind(basis, knobs.order, warmup, dtype, knobs.history_place, lead)
        return Forecaster(history, knobs.build_sigma(), knobs.numerics, lead, channel, self.clock)


@dataclass(frozen=True, kw_only=True)
class MethodSpec:
    """An entry of the zoo: fixed choices, the run-level keys it reads, and knobs (`off`) that compute every step."""

    title: str
    paper: str
    uses: frozenset[str]
    fixed: Mapping[str, Any] = field(default_factory=dict)
    caches: bool = True
    off: Mapping[str, Any] = field(default_factory=lambda: {"interval": 1})


_NEVER = {"policy_options": {"threshold": 0.0}}
_POLICY = frozenset({"interval", "warmup_steps", "scope"})
_TIMED = _POLICY | {"time"}
_LADDER = _TIMED | {"order"}
_SCALED = _LADDER | {"sigma", "sigma_schedule"}

METHODS: dict[str, MethodSpec] = {
    "none": MethodSpec(
        title="no cache",
        paper="",
        uses=frozenset(),
        fixed={"policy": "every", "scope": "output"},
        caches=False,
    ),
    "steps": MethodSpec(
        title="fewer steps",
        paper="",
        uses=frozenset(),
        fixed={"policy": "every", "scope": "output"},
        caches=False,
    ),
    "fora": MethodSpec(title="FORA", paper="arXiv 2407.01425", uses=_POLICY, fixed={"basis": "reuse", "order": 0}),
    "taylorseer": MethodSpec(title="TaylorSeer", paper="arXiv 2503.06923", uses=_LADDER, fixed={"basis": "taylor"}),
    "hi_taylor": MethodSpec(
        title="Hi-Taylor", paper="arXiv 2508.16984, Table 2", uses=_SCALED, fixed={"basis": "scaled_taylor"}
    ),
    "hicache": MethodSpec(title="HiCache", paper="arXiv 2508.16984", uses=_SCALED, fixed={"basis": "hermite"}),
    "hicache_adaptive": MethodSpec(
        title="HiCache-Adaptive",
        paper="arXiv 2508.16984, Table 7",
        uses=_LADDER | {"sigma"},
        fixed={"basis": "hermite", "sigma_schedule": "adaptive"},
    ),
    "newton": MethodSpec(title="Newton (not published)", paper="", uses=_LADDER, fixed={"basis": "newton"}),
    "foca": MethodSpec(title="FoCa", paper="arXiv 2508.16211", uses=_TIMED, fixed={"basis": "foca", "gate": False}),
    "chebyshev": MethodSpec(
        title="Spectrum", paper="arXiv 2603.01623", uses=_TIMED, fixed={"basis": "chebyshev", "gate": False}
    ),
    "pade": MethodSpec(
        title="Padé", paper="HiCache++, micro-benchmark", uses=_TIMED, fixed={"basis": "pade", "gate": False}
    ),
    "dmd": MethodSpec(title="HiCache++ (DMD)", paper="HiCache++", uses=_SCALED, fixed={"basis": "dmd", "gate": False}),
    "auto": MethodSpec(
        title="HiCache++ (auto)", paper="HiCache++", uses=_SCALED, fixed={"basis": "auto", "gate": False}
    ),
    "teacache": MethodSpec(
        title="TeaCache",
        paper="arXiv 2411.19108",
        uses=frozenset(),
        fixed={"scope": "stack", "policy": "teacache", "basis": "reuse", "order": 0},
        off=_NEVER,
    ),
    "magcache": MethodSpec(
        title="MagCache",
        paper="Zehong-Ma/MagCache",
        uses=frozenset(),
        fixed={"scope": "stack", "policy": "magcache", "basis": "reuse", "order": 0},
        off={"policy_options": {"max_skips": 0}},
    ),
    "fbcache": MethodSpec(
        title="First-Block Cache",
        paper="diffusers, ParaAttention",
        uses=frozenset(),
        fixed={
            "scope": "span",
            "policy": "probe",
            "policy_options": {"threshold": 0.05},
            "warmup_steps": 1,
            "basis": "reuse",
            "order": 0,
        },
        off=_NEVER,
    ),
    "dbcache": MethodSpec(
        title="DBCache",
        paper="vipshop/cache-dit",
        uses=frozenset({"warmup_steps"}),
        fixed={"scope": "span", "policy": "probe", "basis": "reuse", "order": 0},
        off=_NEVER,
    ),
    "delta_dit": MethodSpec(
        title="Delta-DiT",
        paper="arXiv 2406.01125",
        uses=frozenset({"interval"}),
        fixed={"scope": "front_back", "policy": "stages", "basis": "reuse", "order": 0},
    ),
    "toca": MethodSpec(
        title="ToCa",
        paper="arXiv 2410.05317",
        uses=frozenset({"interval", "warmup_steps"}),
        fixed={"scope": "modules", "patch": "tokens", "basis": "reuse", "order": 0},
    ),
    "duca": MethodSpec(
        title="DuCa",
        paper="arXiv 2412.18911",
        uses=frozenset({"interval", "warmup_steps"}),
        fixed={"scope": "final_hidden", "policy": "alternate", "patch": "tokens", "basis": "reuse", "order": 0},
    ),
    "clusca": MethodSpec(
        title="ClusCa",
        paper="arXiv 2509.10312",
        uses=frozenset({"interval", "warmup_steps", "order"}),
        fixed={"scope": "modules", "patch": "clusters", "basis": "taylor", "history": "differences"},
    ),
    "hi_clusca": MethodSpec(
        title="Hi-ClusCa",
        paper="arXiv 2508.16984, Table 3",
        uses=frozenset({"interval", "warmup_steps", "order", "sigma", "sigma_schedule"}),
        fixed={"scope": "modules", "patch": "clusters", "basis": "hermite", "history": "differences"},
    ),
    "speca": MethodSpec(
        title="SpeCa",
        paper="Cache4Diffusion/speca",
        uses=frozenset({"warmup_steps", "order"}),
        fixed={"scope": "modules", "policy": "verify", "basis": "taylor"},
        off={"policy_options": {"max_drafts": 0}},
    ),
    "pab": MethodSpec(
        title="PAB",
        paper="arXiv 2408.12588",
        uses=frozenset(),
        fixed={"scope": "modules", "policy": "broadcast", "basis": "reuse", "order": 0},
        off={"policy_options": {"range": 1}},
    ),
    "smoothcache": MethodSpec(
        title="SmoothCache",
        paper="arXiv 2411.10510",
        uses=frozenset(),
        fixed={"scope": "modules", "policy": "kinds", "basis": "reuse", "order": 0},
        off={"policy_options": {"table": {}}},
    ),
    "calibrated": MethodSpec(
        title="calibrated plan (ours)", paper="", uses=frozenset({"scope"}), fixed={"basis": "table", "gate": False}
    ),
    "l2c": MethodSpec(
        title="Learning-to-Cache",
        paper="arXiv 2406.01733",
        uses=frozenset(),
        fixed={"scope": "modules", "policy": "layer_mask", "basis": "reuse", "order": 0},
        off={"policy_options": {"threshold": 0.0}},
    ),
    "lesa": MethodSpec(title="LESA", paper="arXiv 2602.20497", uses=_POLICY, fixed={"basis": "lesa", "gate": False}),
}
"""Every method by its name in `method=`. Adding one: a line here."""


def check_options(key: str, owner: str, options: Mapping[str, Any], known: Sequence[str]) -> None:
    """Raise a `ValueError` for the first option that `owner` does not have."""
    if not isinstance(options, Mapping):
        raise ValueError(f"{key}: must be names and values, got {options!r}")
    for name in options:
        if not known:
            raise ValueError(f"{key}: {owner} has none, got {name!r}")
        lookup(key, name, known)


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


def method(name: str, **knobs: Any) -> CacheMethod:
    """Compose a method by its name.

    Args:
        name: a key of `METHODS`.
        **knobs: fields of `Knobs`; those the method fixes may be overridden, those it does not read are ignored.

    Raises:
        ValueError: for an unknown name, knob or value, in one line.

    >>> method("hicache", interval=7, order=2, sigma=0.5, warmup_steps=3).policy.plan(20)
    [0, 1, 2, 9, 16]
    """
    spec = METHODS[lookup("method", name, METHODS)]
    for key in knobs:
        lookup("knob", key, (f.name for f in fields(Knobs)))
    if not spec.caches:
        knobs = {}
    given = {key: value for key, value in knobs.items() if value is not None}
    fixed = dict(spec.fixed)
    if "order" in fixed and "basis" in given:
        fixed.pop("order")
    for key in ("order", "sigma_schedule", *_POLICY):
        if key in fixed and key not in spec.uses:
            given.pop(key, None)
    chosen = replace(Knobs(), **{**fixed, **given})
    return CacheMethod(
        name=name,
        scope=chosen.scope,
        policy=chosen.build_policy(),
        knobs=chosen,
        patch=chosen.build_patch(),
        caches=spec.caches,
    )
