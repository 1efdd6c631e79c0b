"""Mixed steps on every model: patches and verified drafts against what they must equal, and their bookkeeping."""

import pytest
import torch

import hicache
from hicache.patch import ClusterPatch, TokenPatch
from hicache.policy import Clock
from hicache.tree import Action, Site
from tests.hicache.models import MODELS, build, denoise, inputs, method

STEPS = 10
PATCHED = {
    "toca": {"patch_options": {"fraction": 0.3}},
    "duca": {"patch_options": {"fraction": 0.3}},
    "clusca": {"patch_options": {"clusters": 4}},
    "hi_clusca": {"patch_options": {"clusters": 4}},
}


def run(model, call, cache_method, steps=STEPS):
    with hicache.cached(model, cache_method) as handle:
        handle.begin(steps)
        outputs = denoise(model, dict(call), steps)[0]
        handle.finish()
    return torch.stack(outputs), handle.report


@pytest.mark.matrix
@pytest.mark.parametrize("model_name", MODELS)
def test_no_rows_is_reuse_and_an_unbothered_draft_is_taylorseer(model_name):
    """Text streams, single blocks and all: the mixed path equals the path that runs no block."""
    model = build(model_name)
    call = inputs(model, model_name, batch=2)
    toca, report = run(model, call, method("toca", patch_options={"fraction": 0.0}))
    fora, _ = run(model, call, method("fora"))
    torch.testing.assert_close(toca, fora, rtol=1e-4, atol=1e-5)
    assert report.mixed_steps and not report.estimated_steps
    options = {"base": 1e9, "min_drafts": 1, "max_drafts": 3}
    speca, report = run(model, call, method("speca", policy_options=options))
    assert report.full_steps == [0, 4, 8]
    taylor, _ = run(model, call, method("taylorseer", policy="mask", mask=[0, 4, 8]))
    torch.testing.assert_close(speca, taylor, rtol=1e-4, atol=1e-4)


@pytest.mark.matrix
@pytest.mark.parametrize("name", PATCHED)
@pytest.mark.parametrize("model_name", MODELS)
def test_patches_repeat_and_do_not_depend_on_the_batch(model_name, name):
    model = build(model_name)
    call = inputs(model, model_name, batch=2)
    chosen = method(name, **PATCHED[name])
    both, report = run(model, call, chosen)
    again, _ = run(model, call, chosen)
    assert torch.equal(both, again)
    # A batch repeated within itself: every copy has the same image.
    first = {k: v[:1].repeat(2, *[1] * (v.dim() - 1)) if is_row(v) else v for k, v in call.items()}
    twins, _ = run(model, first, chosen)
    torch.testing.assert_close(twins[:, 0], both[:, 0], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(twins[:, 1], both[:, 0], rtol=1e-3, atol=1e-4)
    assert report.full_steps == [0, 1, 5, 9]
    assert sorted(report.mixed_steps + report.estimated_steps) == [2, 3, 4, 6, 7, 8]


def is_row(value):
    return isinstance(value, torch.Tensor) and value.dim() > 0 and value.shape[0] == 2


def test_duca_skips_and_patches_in_turn():
    for model_name, skipped in (("flux", [2, 4, 6, 8]), ("hunyuan_video", [3, 7])):
        model = build(model_name)
        _, report = run(model, inputs(model, model_name), method("duca", **PATCHED["duca"]))
        assert report.estimated_steps == skipped


@torch.no_grad()
def test_all_rows_are_the_mlp_on_stale_attention():
    """ToCa with every row: each MLP equals that of the model on a hidden state whose attention was kept."""
    model = build("dit")
    call = inputs(model, "dit")
    seen = []
    hooks = [b.attn1.register_forward_hook(lambda m, a, o: seen.append(o.clone())) for b in model.transformer_blocks]
    options = {"fraction": 1.0, "profile": "flat", "spread": 0.0}
    outputs, _ = run(model, call, method("toca", interval=3, warmup_steps=1, patch_options=options), 3)
    for hook in hooks:
        hook.remove()
    stale = seen[: len(model.transformer_blocks)]
    _, calls = denoise_like(model, call, outputs)
    saved = [block.attn1.forward for block in model.transformer_blocks]
    for block, value in zip(model.transformer_blocks, stale):
        block.attn1.forward = lambda *a, value=value, **k: value
    expected = model(**calls[2], return_dict=False)[0]
    for block, forward in zip(model.transformer_blocks, saved):
        block.attn1.forward = forward
    torch.testing.assert_close(outputs[2], expected, rtol=1e-5, atol=1e-5)


def denoise_like(model, call, outputs):
    """The calls of a loop that produced these outputs."""
    step = iter(outputs)
    fake = type("Fake", (), {"__call__": lambda self, **now: (next(step),)})()
    return denoise(fake, dict(call), len(outputs))


def test_rows_are_counted_and_aged():
    patch = TokenPatch(fraction=0.1, select="random", age=10.0, spread=0.0, profile="flat", interval=4)
    site, clock = Site(0, "mlp", "img"), Clock(step=3, num_steps=10)
    assert patch.count(site, clock, 64) == 6
    seen = [patch.pick(site, clock, 64, 2, torch.device("cpu")) for _ in range(10)]
    assert all(rows.shape == (2, 6) and torch.equal(rows[0], rows[1]) for rows in seen)
    assert len(torch.cat([rows[0] for rows in seen]).unique()) == 60  # the oldest come first
    assert patch.ages[site].max() == 10
    patch.renew(site)
    assert site not in patch.ages


@pytest.mark.parametrize(
    ("profile", "site", "step", "ratio"),
    [
        ("dit_ddim", Site(27, "mlp"), 49, 2.5 * 0.02 * 3 * 1.2),
        ("dit_ddim", Site(0, "mlp"), 0, 0.0),
        ("dit_ddpm", Site(0, "mlp"), 49, 2.5 * 0.02 * 1.4 * 1.8),
        ("dit_ddpm", Site(27, "mlp"), 9, 2.5 * 0.02 * (1.4 - 0.8 * 40 / 50) * 0.2),
        ("mmdit", Site(3, "mlp"), 5, 0.02 * (1.5 - 3 / 27) * 0.4),
        ("mmdit", Site(30, "fused", "joint"), 5, 0.02 * (1.5 - 11 / 27) * 1.6),
    ],
)
def test_published_ratios(profile, site, step, ratio):
    patch = TokenPatch(fraction=0.02, profile=profile)
    patch.prepare("flux", 28 if profile.startswith("dit") else 57, 19)
    assert patch.ratio(site, Clock(step=step, num_steps=50)) == pytest.approx(ratio)


def test_the_best_token_of_every_tile_gains():
    from hicache.patch.tokens import spread

    score = torch.arange(16.0)[None]
    gained = spread(score, 0.5, 2) - score
    assert gained.nonzero()[:, 1].tolist() == [5, 7, 13, 15]
    assert gained[gained > 0].tolist() == [2.5, 3.5, 6.5, 7.5]  # half of the tile's own best
    for tokens in (15, 9, 8):  # no square, no whole tiles, neither
        with pytest.raises(ValueError, match="spread: needs a square grid"):
            spread(torch.zeros(1, tokens), 0.5, 2)


def test_clusters():
    from hicache.patch.clusters import kmeans, representatives

    torch.manual_seed(0)
    centres = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    truth = torch.arange(30) % 3
    tokens = (centres[truth] + 0.1 * torch.randn(30, 2))[None].repeat(2, 1, 1)
    centroids, labels = kmeans(tokens, tokens[:, :3], 10)
    assert torch.equal(labels, truth.repeat(2, 1))
    torch.testing.assert_close(centroids, centres[None].repeat(2, 1, 1), atol=0.1, rtol=0)
    far = torch.cat([tokens[:, :3], torch.full((2, 1, 2), 1e6)], dim=1)  # a fourth cluster that nobody joins
    centroids, labels = kmeans(tokens, far, 10)
    assert (labels < 3).all() and torch.equal(centroids[:, 3], far[:, 3])
    rows = representatives(labels, 4, torch.rand(30))
    assert torch.equal(labels.gather(1, rows)[:, :3], torch.arange(3).repeat(2, 1))


def test_fresh_rows_are_propagated_to_image_tokens_only():
    patch = ClusterPatch(clusters=2, gamma=0.25)
    patch.labels = {s: torch.tensor([[0, 0, 1, 1]]) for s in ("img", "txt")}
    rows, fresh = torch.tensor([[1, 2]]), torch.tensor([[[8.0], [16.0]]])
    value = torch.zeros(1, 4, 1)
    patch.merge(Site(0, "mlp", "img"), value, rows, fresh)
    assert value.flatten().tolist() == [2.0, 8.0, 16.0, 4.0]
    value = torch.zeros(1, 4, 1)
    patch.merge(Site(0, "mlp", "txt"), value, rows, fresh)
    assert value.flatten().tolist() == [0.0, 8.0, 16.0, 0.0]


def test_extreme_clusters():
    """As many clusters as tokens recompute every row; one cluster that takes everything copies one row to all."""
    model = build("dit")
    call = inputs(model, "dit", batch=2)
    rows = {"fraction": 1.0, "profile": "flat", "spread": 0.0}
    toca, _ = run(model, call, method("toca", patch_options=rows))
    every, _ = run(model, call, method("clusca", basis="reuse", patch_options={"clusters": 16, "gamma": 0.7}))
    torch.testing.assert_close(every, toca, rtol=1e-4, atol=1e-5)
    site, rows, fresh = Site(0, "mlp", "img"), torch.tensor([[2]]), torch.tensor([[[8.0]]])
    for gamma, expected in ((1.0, [8.0] * 4), (0.0, [1.0, 1.0, 8.0, 1.0])):
        patch = ClusterPatch(clusters=1, gamma=gamma)
        patch.see_hidden("img", torch.randn(1, 4, 3))
        value = torch.ones(1, 4, 1)
        patch.merge(site, value, rows, fresh)
        assert value.flatten().tolist() == expected


@pytest.mark.parametrize("masked", [False, True])
def test_attention_scores_are_column_means(masked, monkeypatch):
    import hicache.observe as observe

    torch.manual_seed(0)
    query, key = torch.randn(2, 2, 3, 7, 4)
    mask = torch.ones(2, 1, 1, 7, dtype=torch.bool)
    mask[1, ..., 5:] = not masked
    logits = query @ key.transpose(-1, -2) / 2
    table = logits.masked_fill(~mask, -torch.inf).softmax(-1)
    valid = mask[:, 0, 0].float()
    expected = (table * valid[:, None, :, None]).sum((1, 2)) / (3 * valid.sum(1, keepdim=True))
    for chunk in (1, 2**24):
        monkeypatch.setattr(observe, "CHUNK", chunk)
        got = observe.attention_scores(query, key, key, attn_mask=mask if masked else None)
        torch.testing.assert_close(got, expected)
    torch.testing.assert_close(expected.sum(1), torch.ones(2))


def test_attention_scores_read_the_arguments_as_pytorch_does():
    from hicache.observe import attention_scores

    torch.manual_seed(0)
    query, key = torch.randn(2, 2, 3, 7, 4)
    assert torch.equal(attention_scores(query, key, key, None, 0.0, False), attention_scores(query, key, key))
    for refused in ({"is_causal": True}, {"key": key[:, :1], "enable_gqa": True}):
        with pytest.raises(ValueError, match="select: attention needs full attention"):
            attention_scores(**{"query": query, "key": key, "value": key, **refused})


@pytest.mark.parametrize("select", ["attention", "keys"])
@pytest.mark.parametrize("model_name", MODELS)
def test_scores_reach_every_stream(model_name, select):
    model = build(model_name)
    options = {"fraction": 0.5, "select": select, "profile": "flat", "spread": 0.0}
    with hicache.cached(model, method("toca", patch_options=options)) as handle:
        handle.begin(3)
        call = inputs(model, model_name)
        denoise(model, dict(call), 3)
        patch = handle.executor.generation.branches[""].patch
        adapter = handle.executor.adapter
    for module in adapter.modules():
        if module.site.module != "attn":
            assert (patch.scores[module.site.layer, module.site.stream].std(1) > 0).all()


def test_other_attention_backends_are_refused():
    model = build("dit")
    for block in model.transformer_blocks:
        block.attn1.set_processor(Silent())
    with pytest.raises(ValueError, match="select: attention needs PyTorch's own attention"):
        run(model, inputs(model, "dit"), method("toca"))
    run(model, inputs(model, "dit"), method("toca", patch_options={"select": "keys"}))


class Silent:
    """An attention that never calls PyTorch's."""

    def __call__(self, attn, hidden_states, **kwargs):
        return attn.to_v(hidden_states) + 0 * attn.to_k(hidden_states)


@pytest.mark.parametrize(("place", "dtype"), [("cpu", "feature"), ("device", "bf16")])
def test_places_and_dtypes(place, dtype):
    model = build("flux")
    call = inputs(model, "flux")
    for name, options in PATCHED.items():
        plain, _ = run(model, call, method(name, **options))
        kept, _ = run(model, call, method(name, history_place=place, history_dtype=dtype, **options))
        torch.testing.assert_close(kept, plain, rtol=0, atol=0 if dtype == "feature" else 0.1)


def test_amending_after_the_forecast():
    """Fresh rows replace rows of the forecast, and the history keeps what was computed."""
    model = build("dit")
    call = inputs(model, "dit")
    after = method("dmd", patch="clusters", patch_options={"clusters": 4, "amend": "after"})
    outputs, report = run(model, call, after)
    assert report.mixed_steps and torch.isfinite(outputs).all()
    with pytest.raises(ValueError, match="history: must be differences for a patch that amends before"):
        method("dmd", patch="clusters")


@pytest.mark.parametrize(
    ("name", "knobs", "message"),
    [
        ("hicache", {"scope": "stack", "patch": "tokens"}, "scope: must be modules for a patch with policy Interval"),
        ("hicache", {"scope": "stack", "policy": "verify"}, "scope: must be modules for policy Verify"),
    ],
)
def test_what_cannot_be_decided_module_by_module(name, knobs, message):
    with pytest.raises(ValueError, match=message):
        hicache.enable(build("dit"), method(name, **{"history": "differences", **knobs}))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fraction": 1.5}, "patch_options: fraction: must be between 0 and 1, got 1.5"),
        ({"select": "x"}, "patch_options: select: must be one of attention, keys, random"),
        ({"amend": "x"}, "patch_options: amend: must be before or after"),
        ({"clusters": 3}, "patch_options: must be one of amend, fraction"),
        ({"tile": 0}, "patch_options: tile: must be an integer >= 1"),
    ],
)
def test_bad_patch_options(options, message):
    with pytest.raises(ValueError, match=message):
        method("toca", patch_options=options)


@pytest.mark.parametrize(("steps", "low", "high"), [(50, 10, 20), (28, 5, 11), (13, 2, 5)])
def test_modulated_schedule(steps, low, high):
    """N = 13: by hand, remaining steps T - 1, T - 2, ..., 0; the bounds of the short interval are cut to integers."""
    full = hicache.method("toca", policy="modulated", interval=13).policy.plan(steps)
    expected, current = [], 13
    for step, left in enumerate(range(steps - 1, -1, -1)):
        if step == 0 or left % current == 0:
            expected.append(step)
            current = 2 if low <= left < high else round(13 / (1.4 - 0.8 * left / steps))
    assert full == expected


def test_modulated_per_layer_computes_the_first_block_at_the_steps_it_leaves_out():
    full = hicache.method("toca", policy="modulated", interval=13).policy.plan(50)
    quirk = hicache.method("toca", policy="modulated", interval=13, policy_options={"per_layer": True}).policy
    whole = quirk.plan(50)
    assert set(whole) < set(full)
    clock = Clock(num_steps=50)
    partly = [s for s in range(50) if at(quirk, clock, s) is Action.MIXED and quirk.partly]
    assert sorted(whole + partly) == full
    assert [quirk.site_action(clock, Site(i, "mlp")) for i in (0, 1)] != [Action.COMPUTE] * 2


def at(policy, clock, step):
    clock.step = step
    return policy.decide(clock)


def test_speca_computes_after_a_bad_draft():
    model = build("flux")
    call = inputs(model, "flux")
    options = {"base": 0.0, "floor": 0.0, "min_drafts": 1}
    _, report = run(model, call, method("speca", warmup_steps=1, policy_options=options))
    assert report.full_steps == [0, 3, 6, 9]  # a draft, a verified draft, a full step


def test_broadcast_computes_attention_only_now_and_then():
    model = build("qwen_image")
    call, count = inputs(model, "qwen_image"), [0, 0]
    block = model.transformer_blocks[1]
    hooks = [
        module.register_forward_pre_hook(lambda m, a, i=i: count.__setitem__(i, count[i] + 1))
        for i, module in enumerate((block.attn.to_q, block.img_mlp))
    ]
    _, report = run(model, call, method("pab", policy_options={"range": 3, "low": 0.25, "high": 0.85}))
    for hook in hooks:
        hook.remove()
    # Timesteps 1.0, .9 above the window, .2 and .1 below; inside, steps 3 and 6 are multiples of 3.
    assert report.mixed_steps == [2, 4, 5, 7]
    assert count == [6, 10]


@pytest.mark.matrix
@pytest.mark.parametrize("model_name", ["dit", "flux", "hunyuan_video"])
def test_cost_of_patched_rows_is_what_runs(model_name, monkeypatch):
    """The cost model adds rows to a bare step; the executor under the FLOP counter agrees.

    How often K-means iterates depends on the data; one iteration is counted. The proof of a step is not.
    """
    monkeypatch.setattr("hicache.executor.disprove", lambda *args: "")
    from torch.utils.flop_counter import FlopCounterMode

    from tests.hicache.models import SHAPES

    model = build(model_name)
    shape = SHAPES.get(model_name, {"height": 64, "width": 64, "text": 6} if model_name != "dit" else {})
    for name, options in PATCHED.items():
        chosen = method(name, **options)
        counted = 0
        with hicache.cached(model, chosen) as handle:
            handle.begin(STEPS)
            with FlopCounterMode(display=False) as counter:
                denoise(model, inputs(model, model_name), STEPS)
            counted = counter.get_total_flops()
        assert hicache.cost.measure(model, chosen, STEPS, **shape).total == pytest.approx(
            counted, rel=1e-2 if "clusca" in name else 1e-9
        )


@pytest.mark.slow
def test_compiled_blocks_give_what_eager_ones_give():
    model = build("flux")
    call = inputs(model, "flux")
    chosen = [method(name, **options) for name, options in PATCHED.items()]
    chosen += [method("speca"), method("pab", policy_options={"range": 3})]
    eager = [run(model, call, one)[0] for one in chosen]
    for block in (*model.transformer_blocks, *model.single_transformer_blocks):
        block.compile(backend="eager")
    for one, expected in zip(chosen, eager):
        torch.testing.assert_close(run(model, call, one)[0], expected, rtol=1e-5, atol=1e-6)
    for block in (*model.transformer_blocks, *model.single_transformer_blocks):
        assert block._compiled_call_impl is not None
