"""The executor on a tiny DiTPipeline: identity, lifecycle, plans, branches, and outputs recomputed independently."""

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler

import hicache

STEPS = 14
CACHING = [name for name, spec in hicache.METHODS.items() if spec.caches and "scope" not in spec.fixed]
SCOPES = ["modules", "stack", "output"]
PAIRS = [
    (name, scope)
    for name, spec in hicache.METHODS.items()
    for scope in (SCOPES if "scope" in spec.uses else [""])
    if spec.fixed.get("scope") != "deep"
]
"""A method that brings its own scope is one case, unless it is that of U-Nets."""


def make(name, scope="modules", **knobs):
    return hicache.method(
        name, scope=scope or None, **{"interval": 4, "order": 2, "sigma": 0.6, "warmup_steps": 2, **knobs}
    )


def generate(pipe, labels=(1, 207), steps=STEPS, seed=0):
    generators = [torch.Generator().manual_seed(seed + i) for i in range(len(labels))]
    call = {"num_inference_steps": steps, "guidance_scale": 1.5, "output_type": "np"}
    return torch.from_numpy(pipe(class_labels=list(labels), generator=generators, **call).images)


@pytest.fixture(scope="module")
def plain(dit_pipeline):
    return generate(dit_pipeline)


@pytest.mark.matrix
@pytest.mark.parametrize(("name", "scope"), PAIRS)
def test_identity_repeat_and_reset(dit_pipeline, plain, name, scope):
    """Interval 1 is bit-identical; generations agree, also in inference mode, after that and after an aborted one."""
    with hicache.cached(dit_pipeline, make(name, scope, **hicache.METHODS[name].off)) as cache:
        assert torch.equal(generate(dit_pipeline), plain)
        assert cache.report.full_steps == list(range(STEPS))
    eager = {"policy_options": {"threshold": 1.0}} if make(name).policy.probe else {}
    if name == "smoothcache":  # skips nothing without a table
        eager = {"policy_options": {"table": {"attn.img": [0, 2, 5, 9, 13], "mlp.img": [0, 1, 5, 9, 13]}}}
    with hicache.cached(dit_pipeline, make(name, scope, **eager)) as cache:
        with torch.inference_mode():
            first = generate(dit_pipeline)
        assert torch.equal(generate(dit_pipeline), first)
        abort = dit_pipeline.transformer.transformer_blocks[2].register_forward_hook(fail_at(2))
        with pytest.raises(RuntimeError, match="aborted"):
            generate(dit_pipeline)
        abort.remove()
        assert torch.equal(generate(dit_pipeline), first)
        policy = cache.executor.method.policy
        if not (policy.indicator or policy.probe):  # these decide for a batch as a whole
            torch.testing.assert_close(generate(dit_pipeline, [1]), first[:1], rtol=0, atol=1e-4)
        report = cache.report
    if hicache.METHODS[name].caches:
        if "policy" not in hicache.METHODS[name].fixed:
            assert report.full_steps == [0, 1, 5, 9, 13]
        assert sorted(report.full_steps + report.mixed_steps + report.estimated_steps) == list(range(STEPS))
        assert 0 < len(report.seconds_estimated + report.seconds_mixed) == STEPS - len(report.full_steps)
        assert report.cache_bytes > 0
        assert not torch.equal(first, plain)
    else:
        assert torch.equal(first, plain)
    assert torch.equal(generate(dit_pipeline), plain)


def fail_at(count):
    seen = []

    def hook(module, args, output):
        seen.append(1)
        if len(seen) > count:
            raise RuntimeError("aborted")

    return hook


def test_disable_leaves_no_trace(dit_pipeline, plain):
    model, scheduler = dit_pipeline.transformer, dit_pipeline.scheduler
    before = set(vars(model)), set(vars(scheduler)), set(vars(dit_pipeline))
    for scope in SCOPES:
        handle = hicache.enable(dit_pipeline, make("hicache", scope))
        hicache.enable(dit_pipeline, make("fora", scope))
        handle.disable()
        hicache.disable(dit_pipeline)
        hicache.disable(dit_pipeline)
    assert (set(vars(model)), set(vars(scheduler)), set(vars(dit_pipeline))) == before
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in model.modules())
    assert torch.equal(generate(dit_pipeline), plain)


class Recorder:
    """Calls of the un-cached model, replayed to build expectations by hand."""

    def __init__(self, pipe):
        self.model, self.calls = pipe.transformer, []

    def __enter__(self):
        self.hook = self.model.register_forward_pre_hook(
            lambda m, args, kwargs: self.calls.append((args[0].clone(), dict(kwargs))), with_kwargs=True
        )
        return self

    def __exit__(self, *error):
        self.hook.remove()


def independent_forward(model, hidden_input, kwargs, values):
    """The DiT's forward with each module's output replaced, written block by block from the model's parts."""
    timestep, labels = kwargs["timestep"], kwargs["class_labels"]
    hidden = model.pos_embed(hidden_input)
    for block, (attn, mlp) in zip(model.transformer_blocks, values):
        _, gate_msa, _, _, gate_mlp = block.norm1(hidden, timestep, labels, hidden_dtype=hidden.dtype)
        hidden = hidden + gate_msa[:, None] * attn
        hidden = hidden + gate_mlp[:, None] * mlp
    emb = model.transformer_blocks[0].norm1.emb(timestep, labels, hidden_dtype=hidden.dtype)
    shift, scale = model.proj_out_1(torch.nn.functional.silu(emb)).chunk(2, dim=1)
    tokens = model.proj_out_2(model.norm_out(hidden) * (1 + scale[:, None]) + shift[:, None])
    side, p = 4, model.patch_size
    return torch.einsum("nhwpqc->nchpwq", tokens.reshape(-1, side, side, p, p, 8)).reshape(-1, 8, 8, 8)


@torch.no_grad()
@pytest.mark.parametrize("name", CACHING)
def test_module_scope_against_an_independent_forward(dit_pipeline, name):
    """The last (estimated) call of a cached run, from module outputs recorded with plain hooks."""
    model, seen = dit_pipeline.transformer, {}
    parts = [part for block in model.transformer_blocks for part in (block.attn1, block.ff)]
    hooks = [
        p.register_forward_hook(lambda m, a, o, i=i: seen.setdefault(i, []).append(o.clone()))
        for i, p in enumerate(parts)
    ]
    method = make(name)
    outputs = []
    with Recorder(dit_pipeline) as recorder, hicache.cached(dit_pipeline, method) as cache:
        keep = model.register_forward_hook(lambda m, a, o: outputs.append(o[0].clone()))
        generate(dit_pipeline, steps=12)
        keep.remove()
        full = cache.report.full_steps
    for hook in hooks:
        hook.remove()
    assert full == [0, 1, 5, 9]
    values = []
    for i in range(len(parts)):
        forecaster = method.build_forecaster()
        for step, value in zip(full, seen[i]):
            forecaster.observe(step, value)
        values.append(forecaster.predict(11))
    expected = independent_forward(model, *recorder.calls[11], list(zip(values[::2], values[1::2])))
    torch.testing.assert_close(outputs[11], expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("scope", ["stack", "output"])
def test_stack_and_output_scope_against_hooks(dit_pipeline, scope):
    model, method, outputs, residuals = dit_pipeline.transformer, make("hicache", scope), [], []
    entry = model.transformer_blocks[0].register_forward_pre_hook(lambda m, a: residuals.append(-a[0]))
    leave = model.transformer_blocks[-1].register_forward_hook(lambda m, a, o: residuals.append(residuals.pop() + o))
    with Recorder(dit_pipeline) as recorder, hicache.cached(dit_pipeline, method) as cache:
        keep = model.register_forward_hook(lambda m, a, o: outputs.append(o[0].clone()))
        generate(dit_pipeline, steps=12)
        full = cache.report.full_steps
    for hook in (entry, leave, keep):
        hook.remove()
    forecaster = method.build_forecaster()
    for i, step in enumerate(full):
        forecaster.observe(step, outputs[step] if scope == "output" else residuals[i])
    expected = forecaster.predict(11)
    if scope == "stack":
        hidden, kwargs = recorder.calls[11]
        expected = stack_forward(model, hidden, kwargs, expected)
    torch.testing.assert_close(outputs[11], expected, rtol=1e-5, atol=1e-5)


def stack_forward(model, hidden_input, kwargs, residual):
    """Embed, add the residual, head: blocks turned off by zero module outputs."""
    zero = torch.zeros_like(residual)
    original = model.pos_embed
    shifted = type("Shifted", (torch.nn.Module,), {"forward": lambda self, x: original(x) + residual})()
    model.pos_embed = shifted
    try:
        return independent_forward(model, hidden_input, kwargs, [(zero, zero)] * 4)
    finally:
        model.pos_embed = original


def test_two_branches_do_not_mix(dit_pipeline):
    """Two interleaved calls per step with different inputs equal two separate runs."""
    model = dit_pipeline.transformer
    inputs = {name: torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(i)) for i, name in enumerate("ab")}

    def call(name, step):
        labels = torch.tensor([3, 4])
        timestep = torch.full((2,), 1000 - 50 * step)
        return model(inputs[name] * (1 + step / 10), timestep=timestep, class_labels=labels, return_dict=False)[0]

    with torch.no_grad(), hicache.cached(model, make("hicache")) as cache:
        alone = {}
        for name in "ab":
            cache.begin(10)
            alone[name] = [call(name, s) for s in range(10)]
        cache.begin(10)
        for step in range(10):
            for name in "ab":
                with cache.branch(name):
                    assert torch.equal(call(name, step), alone[name][step])
        cache.finish()
        assert cache.report.branches == {"a": [0, 1, 5, 9], "b": [0, 1, 5, 9]}
        cache.begin(10)
        with pytest.raises(hicache.PlanError, match="two calls at one timestep, and the next without a step.*branch"):
            for step in range(2):
                call("a", step)
                call("b", step)


def test_bare_transformer_begins_when_the_timestep_rises(dit_pipeline):
    model = dit_pipeline.transformer

    def run(steps):
        return [
            model(
                torch.full((1, 4, 8, 8), s / 9),
                timestep=torch.tensor([900 - 50 * s]),
                class_labels=torch.tensor([5]),
            )[0]
            for s in range(steps)
        ]

    with torch.no_grad(), hicache.cached(model, make("taylorseer")) as cache:
        first = run(10)
        run(3)
        again = run(10)
        assert all(torch.equal(a, b) for a, b in zip(first, again))
        assert cache.report.full_steps == [0, 1, 5, 9]


def test_plan_errors(dit_pipeline):
    with hicache.cached(dit_pipeline, make("hicache")) as cache:
        cache.begin(5)
        for s in range(2):
            dit_pipeline.transformer(
                torch.zeros(1, 4, 8, 8), timestep=torch.tensor([900 - s]), class_labels=torch.tensor([5])
            )
        cache.finish()  # fewer steps than announced are no error
        assert "2 full steps of 2 (5 were announced)" in str(cache.report)
        cache.executor.generation.branches[""].clock.anchors.append(3)
        with pytest.raises(hicache.PlanError, match=r"planned full steps not executed \[\], not planned \[3\]"):
            for s in range(2, 5):
                dit_pipeline.transformer(
                    torch.zeros(1, 4, 8, 8), timestep=torch.tensor([900 - s]), class_labels=torch.tensor([5])
                )


def test_a_swapped_scheduler_is_followed(dit_pipeline, plain):
    before = dit_pipeline.scheduler
    with hicache.cached(dit_pipeline, make("hicache")) as cache:
        generate(dit_pipeline)
        dit_pipeline.scheduler = DPMSolverMultistepScheduler.from_config(before.config)
        try:
            generate(dit_pipeline, steps=10)
            assert cache.report.num_steps == 10
            assert cache.report.full_steps == [0, 1, 5, 9]
        finally:
            dit_pipeline.scheduler = before
    assert torch.equal(generate(dit_pipeline), plain)


def test_unknown_models_and_scopes(dit_pipeline):
    with pytest.raises(ValueError, match="scope: Linear has output, got 'modules'"):
        hicache.enable(torch.nn.Linear(2, 2), make("hicache"))
    with pytest.raises(ValueError, match="target: must be a module or have one of"):
        hicache.enable(object(), make("hicache"))


class Stepped(torch.nn.Module):
    """A model without an adapter, whose position in the loop is a plain number."""

    def __init__(self):
        super().__init__()
        self.blocks, self.fails = torch.nn.ModuleList(torch.nn.Linear(8, 8) for _ in range(4)), False

    def forward(self, x, step):
        if self.fails:
            raise RuntimeError("out of memory")
        for block in self.blocks:
            x = x + block(x) * step / 100
        return x


@torch.no_grad()
def test_a_call_that_failed_is_tried_again():
    model, x = Stepped(), torch.ones(1, 3, 8)
    with hicache.cached(model, hicache.method("fora", interval=3, warmup_steps=1, scope="output")) as cache:
        for _ in range(2):
            model.fails = True
            with pytest.raises(RuntimeError, match="out of memory"):
                model(x, 60)
            model.fails = False
            for step in (60, 50, 40, 30, 20):
                model(x, step)
            assert (cache.report.full_steps, cache.report.estimated_steps) == ([0, 3], [1, 2, 4])
