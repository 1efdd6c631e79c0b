"""The whole zoo as one table: a method is a scope, a policy, a forecaster and perhaps a patch.

`python -m experiments methods` prints it with what each entry needs and where it runs. Every entry is a
composition, so any knob may be turned: `method("hicache", policy="mask", mask=[0, 1, 5, 20])`,
`method("taylorseer", basis="hermite")`, `method("clusca", basis="hermite")`; `custom` reads every one of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, cast

from hicache.forecast import HISTORIES, Elementwise, ElementwiseBasis, Forecaster
from hicache.knobs import DTYPES, MAX_ORDER, TIMES, Knobs, lookup, read_by
from hicache.patch import Patch
from hicache.policy import Policy

__all__ = ["MAX_ORDER", "METHODS", "TIMES", "CacheMethod", "Knobs", "MethodSpec", "lookup", "method", "reads"]


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
        warmup = knobs.warmup_steps if knobs.gated else None
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
    fixed: Mapping[str, Any] = field(default_factory=dict[str, Any])
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
    "foca": MethodSpec(title="FoCa", paper="arXiv 2508.16211", uses=_TIMED, fixed={"basis": "foca"}),
    "spectrum": MethodSpec(
        title="Spectrum",
        paper="arXiv 2603.01623",
        uses=frozenset({"warmup_steps", "scope"}),
        fixed={
            "scope": "final_hidden",
            "policy": "growing",
            "policy_options": {"window": 2, "alpha": 0.75},
            "warmup_steps": 5,
            "basis": "chebyshev",
            "basis_options": {"penalise_constant": True, "history": 100},
        },
        off={"policy_options": {"window": 1, "alpha": 0.0}},
    ),
    "chebyshev": MethodSpec(
        title="Chebyshev ridge", paper="Spectrum's basis, arXiv 2603.01623", uses=_TIMED, fixed={"basis": "chebyshev"}
    ),
    "pade": MethodSpec(title="Padé", paper="HiCache++, micro-benchmark", uses=_TIMED, fixed={"basis": "pade"}),
    "dmd": MethodSpec(title="HiCache++ (DMD)", paper="HiCache++", uses=_SCALED, fixed={"basis": "dmd"}),
    "auto": MethodSpec(title="HiCache++ (auto)", paper="HiCache++", uses=_SCALED, fixed={"basis": "auto"}),
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
    "deepcache": MethodSpec(
        title="DeepCache",
        paper="arXiv 2312.00858",
        uses=frozenset({"interval"}),
        fixed={"scope": "deep", "basis": "reuse", "order": 0, "warmup_steps": 1},
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
        fixed={
            "scope": "final_hidden",
            "policy": "alternate",
            "patch": "tokens",
            "patch_options": {"recipe": "duca"},
            "basis": "reuse",
            "order": 0,
        },
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
    "custom": MethodSpec(
        title="composition",
        paper="",
        uses=_SCALED,
        fixed={"basis": "hermite"},
    ),
    "calibrated": MethodSpec(
        title="calibrated plan (ours)", paper="", uses=frozenset({"scope"}), fixed={"basis": "table"}
    ),
    "l2c": MethodSpec(
        title="Learning-to-Cache",
        paper="arXiv 2406.01733",
        uses=frozenset(),
        fixed={"scope": "modules", "policy": "layer_mask", "basis": "reuse", "order": 0},
        off={"policy_options": {"threshold": 0.0}},
    ),
    "lesa": MethodSpec(title="LESA", paper="arXiv 2602.20497", uses=_POLICY, fixed={"basis": "lesa"}),
}
"""Every method by its name in `method=`. Adding one: a line here."""


OWNED = {
    "policy": ("policy_options", "warmup_steps"),
    "basis": ("basis_options", "order"),
    "patch": ("patch_options",),
}
"""What a method fixes for the sake of one of its parts."""


def exchanged(spec: MethodSpec, part: str, value: str | None) -> bool:
    """Whether `value` is another policy, basis or patch than the method's own."""
    return value is not None and value != spec.fixed.get(part, getattr(Knobs, part))


def reads(name: str, policy: str | None = None, basis: str | None = None, patch: str | None = None) -> frozenset[str]:
    """The keys of a run that a method reads, with the parts that were exchanged (None = its own).

    >>> sorted(reads("fora", basis="hermite") - reads("fora"))
    ['order', 'sigma', 'sigma_schedule', 'time']
    """
    spec, given = METHODS[lookup("method", name, METHODS)], {"policy": policy, "basis": basis, "patch": patch}
    if not spec.caches or not any(exchanged(spec, part, value) for part, value in given.items()):
        return spec.uses
    parts = {part: value or spec.fixed.get(part, getattr(Knobs, part)) for part, value in given.items()}
    return (read_by(**parts) - ({"sigma_schedule"} & spec.fixed.keys())) | (spec.uses & {"scope"})


def plain(value: Any) -> Any:
    """A knob with Python's own numbers in the place of NumPy's."""
    kind: Any = value.__class__
    if isinstance(value, Mapping):
        return {key: plain(each) for key, each in cast("Mapping[Any, Any]", value).items()}
    if isinstance(value, list | tuple):
        return kind(plain(each) for each in cast("Iterable[Any]", value))
    is_number = kind.__module__ == "numpy" and getattr(value, "ndim", 1) == 0
    return value.item() if is_number else value


def method(name: str, **knobs: Any) -> CacheMethod:
    """Compose a method by its name.

    Args:
        name: a key of `METHODS`.
        **knobs: fields of `Knobs`. Those the method fixes may be overridden; a part that is exchanged takes along what
            was fixed for it, and options are added to those fixed. What no part reads (`reads`) has no effect.

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
    given = {key: plain(value) for key, value in knobs.items() if value is not None}
    fixed = dict(spec.fixed)
    for part, owned in OWNED.items():
        if exchanged(spec, part, given.get(part)):
            fixed = {key: value for key, value in fixed.items() if key not in owned}
        elif f"{part}_options" in fixed and isinstance(own := given.get(f"{part}_options"), Mapping):
            given[f"{part}_options"] = {**fixed[f"{part}_options"], **own}
    chosen = replace(Knobs(), **{**fixed, **given})
    return CacheMethod(
        name=name,
        scope=chosen.scope,
        policy=chosen.build_policy(),
        knobs=chosen,
        patch=chosen.build_patch(),
        caches=spec.caches,
    )
