"""What is known of our methods beside their authors' programs: settings that make them equal, and what differs.

`LINES` are settings at which a run computes what another program does; `golden` names the stored tensors that a
test compares with (`tests/golden`). `METHODS` says for each method with which program it was compared, how
close it is, and where it differs on purpose.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["LINES", "METHODS", "Compared", "PeerSetting"]

ROUNDING = "equal to rounding"


@dataclass(frozen=True, kw_only=True)
class PeerSetting:
    """To compare with `peer`, set `overrides` on a command line with `backend`."""

    peer: str
    backend: str
    overrides: tuple[str, ...]
    golden: str = ""
    """`family|setting` of the stored tensors."""
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Compared:
    """A method and its authors' program."""

    program: str
    found: str
    purpose: str = ""
    """Where ours differs on purpose, or what the published settings are."""


DIFFUSERS_STEPS = "method.mask=[0,1,2,4,9,14,19,24]"

LINES: tuple[PeerSetting, ...] = (
    PeerSetting(
        peer="DiT's own sampler",
        backend="dit",
        overrides=("method=none",),
        golden="dit|plain|T=50",
        note="`backend.sampler=official`, which is the default, sets `backend.time_embedding=published` too.",
    ),
    PeerSetting(
        peer="TaylorSeer on DiT",
        backend="dit",
        overrides=("method=taylorseer", "interval=6", "order=4", "warmup_steps=2"),
        golden="dit|taylorseer|T=50|N=6|order=4",
    ),
    PeerSetting(
        peer="TaylorSeer on FLUX (Cache4Diffusion)",
        backend="flux",
        overrides=("num_steps=50", "method=taylorseer", "interval=5", "order=2", "warmup_steps=3"),
        golden="flux|taylorseer|T=50|N=5|order=2|w=3",
        note="With bfloat16 features also `method.numerics=reference method.history=differences`: equal bit for bit.",
    ),
    PeerSetting(
        peer="diffusers `TaylorSeerCacheConfig(use_lite_mode=True)`",
        backend="flux",
        overrides=("num_steps=28", "method=taylorseer", "scope=output", "policy=mask", DIFFUSERS_STEPS, "order=1")
        + ("warmup_steps=3", "method.gate=false"),
        golden="flux|taylorseer_diffusers_lite|T=28|N=5|order=1|w=3",
        note="Its full steps are 0..w-1 and w+1+jN. Differences from the first step on: at order 2 the published "
        "warm-up gate would move the outputs by .05 to .6.",
    ),
    PeerSetting(
        peer="diffusers `TaylorSeerCacheConfig`",
        backend="flux",
        overrides=("num_steps=28", "method=taylorseer", "policy=mask", DIFFUSERS_STEPS, "order=1")
        + ("warmup_steps=3", "method.gate=false"),
        note="As in lite mode, at the modules.",
    ),
    PeerSetting(
        peer="FORA on DiT",
        backend="dit",
        overrides=("method=fora", "policy=uniform", "interval=5"),
        golden="dit|fora|T=50|N=5",
        note="Full at step 0 and where the remaining steps are a multiple of N. The tables of HiCache's paper are of "
        "the interval with warm-up, the default.",
    ),
    PeerSetting(
        peer="ToCa on DiT",
        backend="dit",
        overrides=("method=toca", "interval=3", "policy=modulated", "method.policy_options={per_layer:true}")
        + ("method.patch_options={fraction:0.07}",),
        golden="dit|toca|T=50|N=3|fraction=0.07",
        note="The fraction is the default on DiT.",
    ),
    PeerSetting(
        peer="DuCa on DiT",
        backend="dit",
        overrides=("method=duca", "interval=3", "method.policy_options={modulated:true,per_layer:true}")
        + ("method.patch_options={fraction:0.07}",),
        golden="dit|duca|T=50|N=3|fraction=0.07",
        note="Its default fraction is 0.05.",
    ),
    PeerSetting(
        peer="ClusCa on DiT",
        backend="dit",
        overrides=("method=clusca", "interval=6", "order=4", "warmup_steps=2", "method.patch_options={clusters:4}"),
        golden="dit|clusca|T=50|N=6|order=4|gamma=0.005|clusters=4",
        note="Equal as long as no cluster is empty and for the same random choices.",
    ),
    PeerSetting(
        peer="SpeCa on DiT",
        backend="dit",
        overrides=("method=speca", "order=4", "warmup_steps=3"),
        note="Base, decay, floor, drafts and the compared state are the published ones of the family.",
    ),
    PeerSetting(
        peer="SpeCa on FLUX",
        backend="flux",
        overrides=("num_steps=50", "method=speca", "order=2", "warmup_steps=3"),
        note="As on DiT; FLUX compares module outputs.",
    ),
    PeerSetting(
        peer="TeaCache on FLUX",
        backend="flux",
        overrides=("num_steps=28", "method=teacache", "method.policy_options={threshold:0.4}"),
        golden="flux|teacache|T=28|threshold=0.4",
    ),
    PeerSetting(
        peer="MagCache on FLUX",
        backend="flux",
        overrides=("num_steps=28", "method=magcache")
        + ("method.policy_options={threshold:0.24,max_skips:5,retention:0.1}",),
        golden="flux|magcache|T=28|threshold=0.24|max_skips=5|retention=0.1",
        note="These are the defaults. diffusers' `MagCacheConfig` has no forced step: `forced:false`.",
    ),
    PeerSetting(
        peer="MagCache on FLUX Kontext",
        backend="flux",
        overrides=("num_steps=28", "method=magcache", "method.policy_options={curve:flux_kontext}"),
        note="The curve brings its limits along; on HunyuanVideo at 720 lines `curve:hunyuan_video_720p`.",
    ),
    PeerSetting(
        peer="diffusers `FirstBlockCacheConfig`, ParaAttention",
        backend="flux",
        overrides=("num_steps=28", "method=fbcache", "method.policy_options={threshold:0.2}"),
        golden="flux|fbcache|T=28|threshold=0.2",
    ),
    PeerSetting(
        peer="cache-dit DBCache",
        backend="flux",
        overrides=("num_steps=28", "method=dbcache", "method.front=2", "method.back=3", "warmup_steps=3")
        + ("method.policy_options={threshold:0.3,max_continuous:-1,max_cached:-1}",),
        golden="flux|dbcache|T=28|F=2|B=3|W=3|threshold=0.3|max_continuous=-1|max_cached=-1",
        note="Its context spans double and single blocks on FLUX. On HunyuanVideo 1.0 it keeps one for each list of "
        "blocks: F blocks in front and B behind run in either, each probes and remembers for itself, and either may be "
        "computed while the other is not. Here F double blocks run in front of one span and B single ones behind it; "
        "no setting makes the two equal there.",
    ),
    PeerSetting(
        peer="cache-dit DBCache with its TaylorSeer calibrator",
        backend="flux",
        overrides=("num_steps=28", "method=dbcache", "forecaster=taylor", "order=1", "method.gate=false"),
        note="Without the gate equal to rounding; with it .12 to 1.2 apart. cache-dit 1.5.3 starts the state one step "
        "late in the first generation, and its DMD calibrator takes a difference before it shifts the previous one: "
        "faults that are not adopted.",
    ),
    PeerSetting(
        peer="cache-dit FoCa calibrator",
        backend="flux",
        overrides=("num_steps=28", "method=dbcache", "forecaster=foca", "method.basis_options={variant:anchored}"),
        note="All anchors are kept; a history of 6 truncates its recursion by 5.7e-3.",
    ),
    PeerSetting(
        peer="diffusers `PyramidAttentionBroadcastConfig`",
        backend="flux",
        overrides=("num_steps=28", "method=pab", "method.policy_options={range:2,low:0.1,high:0.8}"),
        golden="flux|pab|T=28|range=2|window=100,800",
        note="These are the defaults.",
    ),
    PeerSetting(
        peer="Spectrum on FLUX",
        backend="flux",
        overrides=("num_steps=50", "method=spectrum"),
        golden="flux|spectrum|T=50|w=1.0|M=4|lam=0.1|warmup=5|window=2|flex=0.75",
        note="Its fit is float32, its buffers bfloat16; ours are float64 and the features'.",
    ),
    PeerSetting(
        peer="hicache-pp, DMD",
        backend="flux",
        overrides=("num_steps=28", "method=dmd", "scope=output", "interval=3", "order=2", "warmup_steps=2")
        + ("sigma=0.5", "method.basis_options={history:5}"),
        golden="flux|hicache_pp_dmd|T=28|N=3|order=2|w=2|sigma=0.5|history=5",
        note="It keeps 5 snapshots unless told otherwise; its state is the prediction after guidance.",
    ),
    PeerSetting(
        peer="hicache-pp, auto",
        backend="flux",
        overrides=("num_steps=28", "method=auto", "scope=output", "interval=3", "order=2", "warmup_steps=2")
        + ("sigma=0.5", "method.basis_options={history:5,holdout:1step}"),
        golden="flux|hicache_pp_auto|T=28|N=3|order=2|w=2|sigma=0.5|history=5|holdout=1step",
    ),
    PeerSetting(
        peer="hicache-pp, Hermite",
        backend="flux",
        overrides=("num_steps=28", "method=hicache", "scope=output", "interval=3", "order=2", "warmup_steps=2")
        + ("sigma=0.5", "method.gate=false"),
        golden="flux|hicache_pp_hermite|T=28|N=3|order=2|w=2|sigma=0.5|history=5",
        note="It builds differences from the first pair; with the gate .01 to .78 apart.",
    ),
)

UNREAD = "its program was not run"
METHODS: dict[str, Compared] = {
    "fora": Compared(
        program="prathebaselva/FORA",
        found="equal to rounding on DiT with `policy=uniform`",
        purpose="The default schedule is the interval with warm-up of the tables of HiCache's paper.",
    ),
    "taylorseer": Compared(program="Shenyi-Z/TaylorSeer, Cache4Diffusion", found="equal to rounding on DiT and FLUX"),
    "hicache": Compared(
        program="TaylorSeer's loop with the paper's Equation 5; hicache-pp's Hermite", found="equal to rounding"
    ),
    "spectrum": Compared(
        program="hanjq17/Spectrum",
        found="equal to the float32 of its fit on FLUX",
        purpose="Its rounding to bfloat16 is not done.",
    ),
    "chebyshev": Compared(
        program="hanjq17/Spectrum",
        found="ours: Spectrum's basis on any plan and site",
        purpose="The ridge leaves the constant free, so that features that do not change stay as they are.",
    ),
    "foca": Compared(
        program="vipshop/cache-dit",
        found="`variant=anchored` is its calibrator; the authors' own program is not public",
        purpose="The default is the variable-step form.",
    ),
    "dmd": Compared(program="hicache-pp", found=ROUNDING + " on FLUX"),
    "auto": Compared(program="hicache-pp", found=ROUNDING + " on FLUX"),
    "teacache": Compared(program="ali-vilab/TeaCache", found="bit-equal on FLUX, same rule on HunyuanVideo"),
    "magcache": Compared(
        program="Zehong-Ma/MagCache",
        found="bit-equal on FLUX; same rule and curves on Kontext, HunyuanVideo, Qwen-Image(-Edit)",
        purpose="Qwen-Image's two branches read one curve; theirs differ at one step of Qwen-Image-Edit.",
    ),
    "fbcache": Compared(program="diffusers, ParaAttention", found="bit-equal on FLUX"),
    "dbcache": Compared(
        program="vipshop/cache-dit",
        found="bit-equal on FLUX and Qwen-Image",
        purpose="On HunyuanVideo 1.0 cache-dit has a context for double and one for single blocks; here one span.",
    ),
    "deepcache": Compared(
        program="DeepCache 0.1.1",
        found="bit-equal on a UNet2DConditionModel at every branch and N = 1..5, same non-uniform steps",
    ),
    "delta_dit": Compared(program="none public", found="FLOPs of the published row", purpose="The switch is ours."),
    "toca": Compared(
        program="Shenyi-Z/ToCa",
        found="equal to rounding on DiT, every picked row",
        purpose="Its schedule on DiT is `policy=modulated` with `per_layer: true`.",
    ),
    "duca": Compared(
        program="Shenyi-Z/DuCa",
        found="equal to rounding on DiT, every picked row",
        purpose="Its schedule on DiT is `modulated: true` with `per_layer: true`.",
    ),
    "clusca": Compared(
        program="Cache4Diffusion (clusca)",
        found="equal to rounding on DiT and FLUX, every picked row",
        purpose="Lost centroids stay and empty clusters draw any token; theirs become zero and take token 0. First "
        "tokens are drawn without replacement.",
    ),
    "hi_clusca": Compared(program="none public", found="ClusCa with HiCache's basis"),
    "speca": Compared(
        program="Cache4Diffusion (speca)",
        found="same rule of steps, warm-up, thresholds and error on DiT and FLUX",
    ),
    "pab": Compared(program="diffusers", found="bit-equal on FLUX"),
    "smoothcache": Compared(
        program="Roblox/SmoothCache",
        found="equal to rounding on DiT at given schedules; same greedy schedule",
        purpose="An error of exactly alpha is not accepted, so that alpha 0 computes everything.",
    ),
    "l2c": Compared(program="horseee/learning-to-cache", found="equal to rounding on DiT"),
    "lesa": Compared(program="none public", found="written after the paper"),
    "pade": Compared(program="hicache-pp's micro-benchmark", found=UNREAD),
    "hicache_adaptive": Compared(program="none public", found="Equations 41 and 42 by hand"),
    "hi_taylor": Compared(program="none public", found="HiCache's scaling on Taylor's basis"),
    "newton": Compared(program="", found="ours"),
    "calibrated": Compared(program="", found="ours"),
    "custom": Compared(program="", found="whatever is composed"),
    "none": Compared(program="diffusers", found="the pipeline itself, bit-equal"),
    "steps": Compared(program="diffusers", found="its solvers"),
}
