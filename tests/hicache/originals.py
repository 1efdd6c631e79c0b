"""Runs of the original programs, stored in tests/golden/, and the same runs by ours: tiny models, loops, settings.

A setting's name is `method|key=value|...`, as in `toca|T=50|N=3|fraction=0.07`; see tests/golden/README.md.

    python -m tests.hicache.originals      # every setting: the largest difference, and whether the steps are equal
"""

from __future__ import annotations

import functools
import json
import math
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from diffusers import DiTTransformer2DModel, FluxTransformer2DModel
from diffusers.models import embeddings
from safetensors import safe_open

import hicache
from experiments.backends.dit_sampler import ChainDDIM, guide
from hicache.patch import clusters, tokens

GOLDEN = Path(__file__).parents[1] / "golden"
DIT_TOKENS = 64


class Golden:
    """The tensors of a file and what it says of itself."""

    def __init__(self, family):
        with safe_open(GOLDEN / f"methods_{family}_tiny.safetensors", "pt") as file:
            self.metadata = file.metadata()
            self.tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        self.settings = list(json.loads(self.metadata["settings"]))
        self.arguments = json.loads(self.metadata["model_arguments"])

    def __getitem__(self, key):
        return self.tensors[key]

    def weights(self):
        return {key[8:]: value for key, value in self.tensors.items() if key.startswith("weights.")}


@functools.cache
def golden(family):
    return Golden(family)


def settings(family, *methods):
    return [name for name in golden(family).settings if not methods or name.split("|")[0] in methods]


def read(name):
    """Method and values of a setting's name."""
    method, *rest = name.split("|")
    pairs = dict(part.split("=") for part in rest)
    return method, {key: number(value) for key, value in pairs.items()}


def number(text):
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


@functools.cache
def flux():
    stored = golden("flux")
    model = FluxTransformer2DModel(**stored.arguments).eval().requires_grad_(False)
    model.load_state_dict(stored.weights())
    return model.double()


@functools.cache
def dit():
    """The stored DiT in diffusers' class, its time embedding as it was."""
    stored = golden("dit")
    heads, depth, width = (stored.arguments[key] for key in ("num_heads", "depth", "hidden_size"))
    model = DiTTransformer2DModel(
        sample_size=stored.arguments["input_size"], num_layers=depth, attention_head_dim=width // heads,
        num_attention_heads=heads, patch_size=2, in_channels=4, out_channels=8, attention_bias=True,
        activation_fn="gelu-approximate", num_embeds_ada_norm=10, norm_type="ada_norm_zero",
        norm_elementwise_affine=False, norm_eps=1e-6,
    )  # fmt: skip
    model = model.eval().requires_grad_(False)
    model.load_state_dict(renamed(stored.weights(), depth), strict=False)
    model.pos_embed.pos_embed.copy_(stored["weights.pos_embed"])
    for block in model.transformer_blocks:
        block.norm1.emb.time_proj.downscale_freq_shift = 0
    return model


def renamed(old, depth):
    """Weights under diffusers' names; every block has its own copy of the embedders."""
    new = {}
    for kind in ("weight", "bias"):
        new[f"pos_embed.proj.{kind}"] = old[f"x_embedder.proj.{kind}"]
        new[f"proj_out_1.{kind}"] = old[f"final_layer.adaLN_modulation.1.{kind}"]
        new[f"proj_out_2.{kind}"] = old[f"final_layer.linear.{kind}"]
        for layer in range(depth):
            here, there = f"blocks.{layer}.", f"transformer_blocks.{layer}."
            for part, value in zip("qkv", old[f"{here}attn.qkv.{kind}"].chunk(3), strict=True):
                new[f"{there}attn1.to_{part}.{kind}"] = value
            new[f"{there}attn1.to_out.0.{kind}"] = old[f"{here}attn.proj.{kind}"]
            new[f"{there}ff.net.0.proj.{kind}"] = old[f"{here}mlp.fc1.{kind}"]
            new[f"{there}ff.net.2.{kind}"] = old[f"{here}mlp.fc2.{kind}"]
            new[f"{there}norm1.linear.{kind}"] = old[f"{here}adaLN_modulation.1.{kind}"]
            for mine, theirs in ((1, 0), (2, 2)):
                name = f"{there}norm1.emb.timestep_embedder.linear_{mine}.{kind}"
                new[name] = old[f"t_embedder.mlp.{theirs}.{kind}"]
    for layer in range(depth):
        name = f"transformer_blocks.{layer}.norm1.emb.class_embedder.embedding_table.weight"
        new[name] = old["y_embedder.embedding_table.weight"]
    return new


def sines(timesteps, embedding_dim, flip_sin_to_cos=False, downscale_freq_shift=1, scale=1, max_period=10000):
    """diffusers' time embedding with float32 exponentials and sines that are correctly rounded, as no processor's are.

    The last digit of a frequency, at angles up to 1000, is otherwise half of the difference to the stored runs.
    """
    half = embedding_dim // 2
    exponents = -math.log(max_period) * torch.arange(half, dtype=torch.float32) / (half - downscale_freq_shift)
    angles = (scale * (timesteps[:, None].float() * exponents.double().exp().float())).double()
    parts = angles.sin().float(), angles.cos().float()
    return torch.cat(parts[::-1] if flip_sin_to_cos else parts, dim=-1)


@torch.no_grad()
def run_flux(num_steps, method):
    """The model's outputs `[T, n, C]` in a closed loop of float64, and the report."""
    stored, model = golden("flux"), flux()
    inputs = {key: stored[f"inputs|{key}"].double() for key in ("x", "txt", "pooled", "img_ids", "txt_ids")}
    sigmas, sample, outputs = stored[f"sigmas|T={num_steps}"], inputs["x"], []
    with nullcontext() if method is None else hicache.cached(model, method) as handle:
        if handle:
            handle.begin(num_steps)
        for here, there in zip(sigmas, sigmas[1:], strict=False):
            velocity = model(
                hidden_states=sample, encoder_hidden_states=inputs["txt"], pooled_projections=inputs["pooled"],
                timestep=here.expand(1), img_ids=inputs["img_ids"], txt_ids=inputs["txt_ids"],
                guidance=torch.full((1,), 3.5, dtype=torch.float64), return_dict=False,
            )[0]  # fmt: skip
            outputs.append(velocity)
            sample = sample + (there - here) * velocity
    return torch.cat(outputs), handle and handle.report


@torch.no_grad()
def run_dit(num_steps, method):
    """The latents `[T, B, C, H, W]` after every step of the official chain, and the report."""
    stored, model = golden("dit"), dit()
    labels = stored["inputs|labels"].long()
    labels = torch.cat([labels, torch.full_like(labels, 10)])
    scheduler, sample, outputs = ChainDDIM(), stored["inputs|noise"], []
    scheduler.set_timesteps(num_steps)
    with nullcontext() if method is None else hicache.cached(model, method) as handle:
        if handle:
            handle.begin(num_steps)
        for t in scheduler.timesteps:
            both = torch.cat([sample, sample])
            noise = model(both, timestep=t.expand(len(both)), class_labels=labels, return_dict=False)[0][:, :4]
            sample = scheduler.step(guide(*noise.chunk(2), 1.5, 3), t, sample)[0]
            outputs.append(sample)
    return torch.stack(outputs), handle and handle.report


def difference(found, wanted):
    """The largest relative difference of a step: max |a - b| / max |b|."""
    wanted = wanted.to(found)
    return float(((found - wanted).abs().flatten(1).amax(1) / wanted.abs().flatten(1).amax(1)).max())


def hicache_pp_method(kind, values):
    """A setting of hicache-pp."""
    options = {} if kind == "hermite" else {"history": values["history"]}
    if kind == "auto":
        options["holdout"] = values["holdout"]
    return hicache.method(
        {"hermite": "hicache"}.get(kind, kind), scope="output", interval=values["N"], order=values["order"],
        warmup_steps=values["w"], sigma=values["sigma"], gate=False if kind == "hermite" else None,
        basis_options=options,
    )  # fmt: skip


def flux_method(name):
    """Our method at a setting of the FLUX file."""
    kind, v = read(name)
    if kind.startswith("hicache_pp_"):
        return hicache_pp_method(kind.removeprefix("hicache_pp_"), v)
    keys = {"teacache": ("threshold",), "magcache": ("threshold", "max_skips", "retention"), "fbcache": ("threshold",)}
    if kind in keys:
        return hicache.method(kind, policy_options={key: v[key] for key in keys[kind]})
    if kind == "pab":
        return hicache.method(kind, policy_options={"range": v["range"], "low": 0.1, "high": 0.8})
    if kind == "dbcache":
        options = {key: v[key] for key in ("threshold", "max_continuous", "max_cached")}
        return hicache.method(kind, front=v["F"], back=v["B"], warmup_steps=v["W"], policy_options=options)
    if kind == "spectrum":
        return hicache.method(
            kind, warmup_steps=v["warmup"], policy_options={"window": float(v["window"]), "alpha": v["flex"]},
            basis_options={"degree": v["M"], "ridge": v["lam"], "mix": v["w"]},
        )  # fmt: skip
    if kind == "taylorseer":
        return hicache.method(kind, interval=v["N"], order=v["order"], warmup_steps=v["w"])
    assert kind == "taylorseer_diffusers_lite"
    full = [*range(v["w"]), *range(v["w"] + 1, v["T"], v["N"])]
    return hicache.method(
        "taylorseer", scope="output", policy="mask", mask=full, order=v["order"], warmup_steps=v["w"], gate=False
    )


def dit_method(name):
    """Our method at a setting of the DiT file."""
    kind, v = read(name)
    if kind == "taylorseer":
        return hicache.method(kind, interval=v["N"], order=v["order"], warmup_steps=2)
    if kind == "fora":
        return hicache.method(kind, interval=v["N"], policy="uniform")
    if kind == "toca":
        knobs = {"policy": "modulated", "policy_options": {"per_layer": True}}
        return hicache.method(kind, interval=v["N"], patch_options={"fraction": v["fraction"]}, **knobs)
    if kind == "duca":
        options = {"modulated": True, "per_layer": True}
        patch = {"fraction": v["fraction"]}
        return hicache.method(kind, interval=v["N"], warmup_steps=2, policy_options=options, patch_options=patch)
    if kind == "clusca":
        options = {"gamma": v["gamma"], "clusters": v["clusters"]}
        return hicache.method(kind, interval=v["N"], order=v["order"], warmup_steps=2, patch_options=options)
    if kind == "l2c":
        router, depth = golden("dit")["l2c|T=20|router"], golden("dit").arguments["depth"]
        sites = [f"{layer}.{part}.img" for layer in range(depth) for part in ("attn", "mlp")]
        logits = [router[20 - 2 - 2 * pair].tolist() for pair in range(10)]
        return hicache.method(kind, policy_options={"sites": sites, "logits": logits, "threshold": v["threshold"]})
    assert kind == "smoothcache"
    table = {f"{part}.img": golden("dit")[f"{name}|{part}_steps"].tolist() for part in ("attn", "mlp")}
    return hicache.method(kind, policy_options={"table": table})


def compare(family, name):
    """Largest difference, full steps of ours and of the original, and the rows that ours picked by step and layer."""
    stored, (kind, values) = golden(family), read(name)
    method = None if kind == "plain" else (flux_method if family == "flux" else dit_method)(name)
    picked, output = {}, "v" if family == "flux" else "x"
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(embeddings, "get_timestep_embedding", sines)
        if family == "dit":
            record_rows(patched, picked)
        found, report = (run_flux if family == "flux" else run_dit)(values["T"], method)
    worst = difference(found[stored[f"{name}|{output}_steps"].long()], stored[f"{name}|{output}"])
    steps = range(values["T"]) if report is None else report.full_steps
    theirs = range(values["T"]) if report is None else stored[f"{name}|steps"].tolist()
    return worst, list(steps), list(theirs), picked


def record_rows(patched, picked):
    """Rows by step and layer; ClusCa's two random choices are the stored ones."""
    stored = golden("dit")
    priority = stored["clusca|priority"].float() / DIT_TOKENS
    first = torch.zeros(DIT_TOKENS)
    chosen = stored["clusca|first_tokens"].long()
    first[chosen] = torch.linspace(1, 0.5, len(chosen))
    by_score = tokens.TokenPatch.pick

    def pick_tokens(self, site, clock, *shape):
        picked[clock.step, site.layer] = rows = by_score(self, site, clock, *shape)
        return rows

    def pick_clusters(self, site, clock, count, batch, device):
        order = priority[clock.step, site.layer].expand(batch, -1)
        rows = clusters.representatives(self.labels[site.stream], self.count(site, clock, count), order)
        picked[clock.step, site.layer] = rows
        return rows

    patched.setattr(tokens.TokenPatch, "pick", pick_tokens)
    patched.setattr(clusters.ClusterPatch, "pick", pick_clusters)
    patched.setattr(clusters.ClusterPatch, "draw", lambda self, stream, batch, count, device: first.expand(batch, -1))


if __name__ == "__main__":
    print("| model | method and setting | largest difference | full steps of ours and theirs | equal |")
    print("| --- | --- | --- | --- | --- |")
    for family in ("dit", "flux"):
        for name in settings(family):
            worst, ours, theirs, _ = compare(family, name)
            shown = name.replace("|", " ")
            print(
                f"| {family} | {shown} | {worst:.1e} | {len(ours)}, {len(theirs)} | {'yes' if ours == theirs else 'NO'} |"
            )
