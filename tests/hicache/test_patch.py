"""Patches by hand: scores, ages, tiles, clusters and random choices on tensors small enough to check on paper."""

import pytest
import torch

import hicache
from hicache.adapters import adapter_for
from hicache.patch import ClusterPatch, TokenPatch
from hicache.patch.clusters import kmeans
from hicache.policy import Clock
from hicache.tree import Action, Site
from tests.hicache.models import MODELS, build, denoise, inputs, method

CPU = torch.device("cpu")
IMAGE, TEXT = Site(0, "mlp", "img"), Site(0, "mlp", "txt")


def pick(patch, tokens, site=IMAGE, batch=1):
    return patch.pick(site, Clock(step=5, num_steps=10), tokens, batch, CPU)


def scored(scores, count, **options):
    """A patch that has seen these scores and picks so many rows."""
    fraction = (count + 0.5) / len(scores)
    patch = TokenPatch(
        **{"fraction": fraction, "select": "attention", "age": 0.0, "spread": 0.0, "profile": "flat", **options}
    )
    patch.see_scores(0, "img", torch.tensor([scores]))
    return patch


# -- tokens: ToCa and DuCa ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        # s1 = (3, 4, 0, 0) / 5 = (.6, .8, 0, 0). After a pick of row 1, rows 0, 2 and 3 are one step old.
        ({"age": 1.0, "interval": 2}, [1, 0, 1, 2]),  # (1.1, .8, .5, .5), (.6, 1.3, 1, 1), (1.1, .8, 1.5, 1.5)
        ({"age": 2.0, "interval": 4}, [1, 0, 1, 2]),  # the same weight of a step
        ({"age": 1.0, "interval": 8}, [1, 1, 0, 1]),  # (.725, .8, .125, .125), (.85, .8, .25, .25), (.6, .925, ...)
        ({"age": 0.25, "interval": 1}, [1, 0, 1, 0]),  # (.85, .8, .25, .25), (.6, 1.05, .5, .5), (.85, .8, .75, .75)
        ({"age": 0.0, "interval": 2}, [1, 1, 1, 1]),
    ],
)
def test_old_rows_gain_on_normalised_scores(options, expected):
    patch = scored([3.0, 4.0, 0.0, 0.0], 1, **options)
    assert [int(pick(patch, 4)) for _ in expected] == expected


def test_all_rows_are_fresh_after_a_full_step():
    patch = scored([3.0, 4.0, 0.0, 0.0], 1, age=1.0, interval=2)
    assert [int(pick(patch, 4)) for _ in range(2)] == [1, 0]
    patch.renew()
    assert [int(pick(patch, 4)) for _ in range(2)] == [1, 0]
    other = Site(1, "mlp", "img")
    patch.see_scores(1, "img", torch.tensor([[3.0, 4.0, 0.0, 0.0]]))
    assert int(pick(patch, 4, other)) == 1  # every module has its own ages
    patch.renew(IMAGE)
    assert [int(pick(patch, 4)) for _ in range(2)] == [1, 0] and int(pick(patch, 4, other)) == 0


def test_the_executor_clears_ages_at_full_steps(monkeypatch):
    seen, original = {}, TokenPatch.pick

    def spy(self, site, clock, *args):
        if site == IMAGE:
            seen[clock.step] = float(self.ages[site].max()) if site in self.ages else 0.0
        return original(self, site, clock, *args)

    monkeypatch.setattr(TokenPatch, "pick", spy)
    model = build("dit")
    options = {"fraction": 0.25, "profile": "flat"}
    with hicache.cached(model, method("toca", patch_options=options)) as handle:
        handle.begin(9)
        denoise(model, inputs(model, "dit"), 9)
    assert handle.report.full_steps == [0, 1, 5]
    assert seen == {2: 0, 3: 1, 4: 2, 6: 0, 7: 1, 8: 2}


def test_the_bonus_competes_with_the_scores():
    """Rows of a 4 x 4 image. The first tile has .9 and .7; the best of the last has .5, with the bonus .65 or .8."""
    scores = [0.0] * 16
    scores[0], scores[1], scores[15] = 0.9, 0.7, 0.5
    assert set(pick(scored(scores, 2, spread=0.0), 16)[0].tolist()) == {0, 1}
    assert set(pick(scored(scores, 2, spread=0.3), 16)[0].tolist()) == {0, 1}  # .5 + .15 < .7
    assert set(pick(scored(scores, 2, spread=0.6), 16)[0].tolist()) == {0, 15}  # .5 + .3 > .7
    # The bonus is a share of the tile's best score with its age: (.5 / norm + .3) 1.3 > .7 / norm.
    patch = scored(scores, 2, spread=0.3, age=1.0)
    patch.ages[IMAGE] = torch.tensor([[0.0] * 15 + [0.1]])
    assert set(pick(patch, 16)[0].tolist()) == {0, 15}


PUBLISHED = {
    ("toca", "dit"): (0.07, "attention", 0.25, 0.6, "dit_ddim"),
    ("duca", "dit"): (0.05, "attention", 0.25, 0.8, "dit_ddim"),
    ("toca", "flux"): (0.1, "attention", 0.0, 0.0, "mmdit"),
    ("duca", "flux"): (0.1, "attention", 0.0, 0.0, "mmdit"),
    ("toca", "qwen_image"): (0.1, "attention", 0.0, 0.0, "mmdit"),
    ("toca", "hunyuan_video"): (0.1, "random", 0.0, 0.0, "mmdit"),
    ("duca", "hunyuan_video"): (0.1, "random", 0.0, 0.0, "mmdit"),
}
KEYS = ("fraction", "select", "age", "spread", "profile")


@pytest.mark.parametrize(("recipe", "family"), PUBLISHED)
def test_published_choices_of_token_patches(recipe, family):
    patch = TokenPatch(recipe=recipe)
    patch.prepare(family, 28, 28)
    assert tuple(getattr(patch, key) for key in KEYS) == PUBLISHED[recipe, family]
    given = dict(zip(KEYS, (0.3, "keys", 0.5, 0.7, "flat")))
    patch = TokenPatch(recipe=recipe, **given)
    patch.prepare(family, 28, 28)
    assert {key: getattr(patch, key) for key in KEYS} == given
    with pytest.raises(ValueError, match="recipe: must be one of toca, duca, got 'x'"):
        TokenPatch(recipe="x")


def test_duca_on_dit_patches_odd_steps():
    """N = 4 of 10: the steps that remain are 9..0, full at 9, 6, 4 and 0 (n = 6, 4, 4); the others by t mod n."""
    policy, clock = hicache.method("duca", interval=4, policy_options={"modulated": True}).policy, Clock(num_steps=10)
    found = []
    for clock.step in range(10):
        found.append(policy.decide(clock))
    short = {Action.COMPUTE: "F", Action.MIXED: "p", Action.ESTIMATE: "s"}
    #        t = 9  8: 8%6=2  7: 1  6  5: 1  4  3: 3%4  2: 2%4  1: 1%4  0
    assert "".join(short[action] for action in found) == "FspFpFpspF"


def test_duca_leaves_the_later_blocks_out_where_only_the_first_is_full():
    """N = 3 of 12, per layer: 10 mod 4 and 8 mod 3 are even, at steps 1 and 3; at step 8 3 mod 2 is odd."""
    options = {"modulated": True, "per_layer": True}
    chosen = hicache.method("duca", interval=3, policy_options=options, patch_options={"fraction": 0.3})
    policy, clock, found = chosen.policy, Clock(num_steps=12), {}
    for clock.step in range(12):
        if policy.decide(clock) is Action.MIXED:
            found[clock.step] = [policy.site_action(clock, Site(layer, "mlp")).value for layer in (0, 1)]
    assert [step for step, actions in found.items() if actions == ["compute", "skip"]] == [1, 3]
    assert [step for step, actions in found.items() if actions == ["compute", "estimate"]] == [8]
    model, ran = build("dit"), {}
    with hicache.cached(model, chosen) as handle:
        for layer, block in enumerate(model.transformer_blocks):
            block.ff.register_forward_hook(lambda *_, layer=layer: ran.setdefault(step_of(handle), []).append(layer))
        handle.begin(12)
        denoise(model, inputs(model, "dit"), 12)
    assert ran.pop(1) == ran.pop(3) == [0] and all(layers == [0, 1, 2] for layers in ran.values())
    assert {1, 3, 8} <= set(handle.report.mixed_steps)


def step_of(handle):
    return handle.executor.generation.branches[""].clock.step


@pytest.mark.parametrize("model_name", ["flux", "dit"])
def test_duca_skips_to_the_hidden_state_of_the_last_patched_step(model_name, monkeypatch):
    monkeypatch.setattr("hicache.executor.disprove", lambda *args: "")  # which calls the head once more
    model, seen = build(model_name), []
    hook = model.norm_out.register_forward_pre_hook(lambda m, args: seen.append(args[0].clone()))
    options = {"fraction": 0.5, "profile": "flat", "spread": 0.0}
    with hicache.cached(model, method("duca", interval=5, patch_options=options)) as handle:
        handle.begin(7)
        denoise(model, inputs(model, model_name), 7)
    hook.remove()
    assert handle.report.full_steps == [0, 1, 6] and handle.report.mixed_steps == [3, 5] and len(seen) == 7  # the proof
    assert torch.equal(seen[2], seen[1]) and torch.equal(seen[4], seen[3])
    assert not torch.allclose(seen[3], seen[1]) and not torch.allclose(seen[5], seen[3])


# -- clusters: ClusCa -----------------------------------------------------------------------------------------------


def test_clusters_are_by_l1_distance():
    """(0, 0) is 6 from (3, 3) and 5 from (5, 0); by Euclid it would be 4.2 from the first."""
    tokens = torch.tensor([[[0.0, 0.0], [3.0, 3.0], [5.0, 0.0]]])
    centroids, labels = kmeans(tokens, tokens[:, 1:], 1)
    assert labels.tolist() == [[1, 0, 1]]
    assert centroids.tolist() == [[[3.0, 3.0], [2.5, 0.0]]]


def test_clusters_move_until_they_stay():
    """From centres 0 and 1 on a line: {0} {1, 2, 10, 11} -> 6; {0, 1, 2} {10, 11} -> 1, 10.5, where they stay."""
    tokens = torch.tensor([[[0.0], [1.0], [2.0], [10.0], [11.0]]])
    assert kmeans(tokens, tokens[:, :2], 1)[0].flatten().tolist() == [0.0, 6.0]
    for iterations in (2, 50):
        centroids, labels = kmeans(tokens, tokens[:, :2], iterations)
        assert centroids.flatten().tolist() == [1.0, 10.5] and labels.tolist() == [[0, 0, 0, 1, 1]]


def test_clusters_go_on_from_the_last_centroids():
    patch = ClusterPatch(clusters=2)
    patch.centroids["img"] = torch.tensor([[[1000.0], [5.0]]])
    patch.see_hidden("img", torch.tensor([[[0.0], [2.0], [90.0], [108.0]]]))
    assert patch.labels["img"].tolist() == [[1, 1, 1, 1]] and patch.centroids["img"].tolist() == [[[1000.0], [50.0]]]
    patch.see_hidden("img", torch.tensor([[[900.0], [2.0], [90.0], [108.0]]]))
    assert patch.labels["img"].tolist() == [[0, 1, 1, 1]]
    patch.see_hidden("txt", torch.tensor([[[3.0], [9.0]]]))  # every stream has its own, the first from its own tokens
    assert sorted(patch.centroids["txt"].flatten().tolist()) == [3.0, 9.0]


def test_every_draw_is_new_and_every_generation_the_same():
    def drawn():
        patch, found = ClusterPatch(clusters=1), []
        patch.labels = {"img": torch.zeros(1, 5000, dtype=torch.long), "txt": torch.zeros(1, 5000, dtype=torch.long)}
        for step in range(3):
            for site in (Site(i, "mlp", stream) for i in range(2) for stream in ("img", "txt")):
                found.append(int(patch.pick(site, Clock(step=step, num_steps=9), 5000, 1, CPU)))
        return found

    first = drawn()
    assert len(set(first)) == 12 and drawn() == first


def test_every_member_may_speak_for_its_cluster():
    patch = ClusterPatch(clusters=2)
    patch.labels["img"] = torch.tensor([[0, 1, 0, 1, 1, 0]])
    rows = torch.cat([pick(patch, 6) for _ in range(60)])
    assert set(rows[:, 0].tolist()) == {0, 2, 5} and set(rows[:, 1].tolist()) == {1, 3, 4}


@pytest.mark.parametrize(
    ("family", "clusters", "gamma", "iterations"),
    [("flux", 16, 0.005, 10), ("dit", 16, 0.005, 100), ("qwen_image", 16, 0.005, 10), ("hunyuan_video", 32, 0.01, 10)],
)
def test_published_choices_of_cluster_patches(family, clusters, gamma, iterations):
    patch = ClusterPatch()
    patch.prepare(family, 57, 19)
    assert (patch.clusters, patch.gamma, patch.iterations) == (clusters, gamma, iterations)
    assert patch.count(IMAGE, Clock(), 4096) == clusters and patch.count(TEXT, Clock(), 7) == 7
    given = ClusterPatch(clusters=4, gamma=0.0, iterations=3)
    given.prepare(family, 57, 19)
    assert (given.clusters, given.gamma, given.iterations) == (4, 0.0, 3)
    for key, value in (("clusters", 0), ("iterations", 0), ("iterations", True)):
        with pytest.raises(ValueError, match=f"{key}: must be an integer >= 1, got {value}"):
            ClusterPatch(**{key: value})


@pytest.mark.parametrize("model_name", MODELS)
def test_clusters_are_of_the_last_block_that_keeps_streams_apart(model_name, monkeypatch):
    model, after, shown = build(model_name), [], []
    adapter = adapter_for(model)
    blocks = model.transformer_blocks
    hook = blocks[-1].register_forward_hook(lambda m, args, result: after.append(adapter.unpack(result)[0].clone()))
    original = ClusterPatch.see_hidden

    def spy(self, stream, hidden):
        if stream == "img":
            shown.append(hidden.clone())
        original(self, stream, hidden)

    monkeypatch.setattr(ClusterPatch, "see_hidden", spy)
    with hicache.cached(model, method("clusca")) as handle:
        handle.begin(2)
        denoise(model, inputs(model, model_name), 2)
    hook.remove()
    assert len(blocks) > 1 and len(shown) == len(after) == 2
    assert all(torch.equal(a, b) for a, b in zip(shown, after))


# -- padding ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", ["txt", "joint"])
def test_draws_do_not_see_padding(stream):
    """Five tokens alone, with three of padding after them, and with padding in between; then the image's."""
    places = {"none": [0, 1, 2, 3, 4], "after": [0, 1, 2, 3, 4], "between": [0, 1, 4, 6, 7]}
    found = []
    for kind, place in places.items():
        patch, tokens = TokenPatch(select="random"), 5 if kind == "none" else 8
        if kind != "none":
            valid = torch.zeros(2, 8, dtype=torch.bool)
            valid[0, place], valid[1] = True, True
            patch.valid = {stream: valid}
        numbers = patch.draw(stream, 2, tokens, CPU)
        assert numbers.shape == (2, tokens) and (numbers[0] >= 0).sum() == 5
        assert torch.equal(numbers[1, :5], numbers[0, place])  # shared by the batch
        found.append(torch.cat([numbers[0, place], patch.draw("img", 1, 6, CPU)[0]]))
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


@pytest.mark.parametrize("name", ["clusca", "hi_clusca"])
@pytest.mark.parametrize("options", [{"gamma": 0.0}, {"clusters": 4, "gamma": 0.5}, {"clusters": 7, "gamma": 0.5}])
def test_an_image_does_not_depend_on_the_text_of_its_companion(name, options):
    """Qwen-Image with texts of 5 tokens, alone and beside a text of 8, to whose length it is padded."""
    model = build("qwen_image")
    both = inputs(model, "qwen_image", batch=2, text=8)
    both["encoder_hidden_states_mask"] = torch.arange(8) < torch.tensor([[5], [8]])
    alone = {
        key: value[:1] if isinstance(value, torch.Tensor) and value.dim() and len(value) == 2 else value
        for key, value in both.items()
    }
    alone["encoder_hidden_states"] = alone["encoder_hidden_states"][:, :5]
    alone["encoder_hidden_states_mask"] = alone["encoder_hidden_states_mask"][:, :5]
    images = []
    for call in (alone, both):
        with hicache.cached(model, method(name, patch_options=options)) as handle:
            handle.begin(9)
            images.append(torch.stack(denoise(model, dict(call), 9)[0])[:, 0])
        assert handle.report.mixed_steps
    torch.testing.assert_close(*images, rtol=1e-3, atol=1e-4)


def test_ratios_over_the_steps_need_their_number():
    for profile in ("dit_ddim", "dit_ddpm"):
        patch = TokenPatch(profile=profile)
        patch.prepare("dit", 28, 0)
        with pytest.raises(ValueError, match=f"num_steps: profile {profile} counts steps from the end"):
            patch.count(IMAGE, Clock(step=3), 16)
