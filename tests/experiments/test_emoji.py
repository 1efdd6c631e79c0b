"""The emoji model: its world, its prompts, its pipeline, its training, and the judge's verdicts."""

import dataclasses

import numpy as np
import pytest
import torch
from diffusers import FluxTransformer2DModel
from safetensors.torch import save_file

import hicache
from experiments.backends.emoji import backend as backend_module
from experiments.backends.emoji.atlas import OBJECTS, SIZES, sprites
from experiments.backends.emoji.backend import EmojiBackend, digest, folder_of
from experiments.backends.emoji.captions import COLOURS, Scene, draw, held_out, parse, random_scene
from experiments.backends.emoji.judge import EmojiJudge, Verdict, load_judge, targets
from experiments.backends.emoji.pipeline import CHANNELS, EmojiPipeline, pack, scheduler, shift, shift_levels, unpack
from experiments.backends.emoji.text_encoder import LENGTH, TextEncoder, encode, read_words
from experiments.backends.meta_backend import blueprint
from experiments.config.compose import compose
from experiments.errors import ConfigError
from experiments.learning import train_emoji
from experiments.learning.train_emoji_judge import accuracies, ladder, real_pictures
from experiments.runs import runner
from experiments.runs.metrics.evidence import Evidence
from experiments.runs.metrics.measure import RUN_METRICS, applicable
from experiments.runs.runner import execute
from experiments.settings.resolve import resolve

SHIPPED = backend_module.WEIGHTS_FOLDER


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A small random model in the layout of experiments/assets/emoji."""
    folder = tmp_path_factory.mktemp("emoji")
    torch.manual_seed(0)
    text = TextEncoder(width=16)
    model = FluxTransformer2DModel(
        patch_size=1,
        in_channels=CHANNELS,
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        pooled_projection_dim=16,
        guidance_embeds=False,
        axes_dims_rope=(4, 6, 6),
    )
    model.save_pretrained(folder / "transformer")
    text.save_pretrained(folder / "text_encoder")
    save_file(EmojiJudge().state_dict(), folder / "judge.safetensors")
    return folder


@pytest.fixture
def small(weights, tmp_path):
    return [
        "backend=emoji",
        f"backend.path={weights}",
        f"results={tmp_path / 'results'}",
        "num_items=4",
        "batch_size=2",
        "num_steps=6",
        "metrics=none",
        "metrics.latency_repeats=1",
        "metrics.latency_warmup=0",
        "metrics.latency_batch=1",
    ]


# The composer's world


def test_captions_say_what_scenes_are():
    rng = np.random.default_rng(0)
    for _ in range(500):
        scene = random_scene(rng, held=None)
        assert parse(scene.caption) == scene, scene.caption
    assert parse("two flat foxes on gray") == Scene(style="flat", colour="gray", objects=("fox", "fox"))
    for other in ("", "a fox", "flat fox on", "flat fox and fox on red", "flat foxes on red", "two flat fox on purple"):
        assert parse(other) is None, other


def test_a_tenth_of_the_scenes_is_held_out_whatever_the_seed():
    scenes = [
        Scene(style=style, colour=colour, objects=(name,))
        for style in ("flat", "3d")
        for colour in COLOURS
        for name in OBJECTS
    ]
    assert 0.07 < np.mean([held_out(scene) for scene in scenes]) < 0.13
    rng = np.random.default_rng(1)
    assert not any(held_out(random_scene(rng)) for _ in range(100))
    assert all(held_out(random_scene(rng, held=True)) for _ in range(100))


def test_pictures_are_those_of_their_seed_and_show_the_sprite():
    scene = Scene(style="flat", colour="black", objects=("lemon",))
    first, again, other = (draw(scene, np.random.default_rng(seed)) for seed in (3, 3, 4))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert first.shape == (3, 32, 32) and first.min() >= -1 and first.max() <= 1
    assert first[0].max() > 0.8 > -0.7 > first[:, 0, 0].max(), "a yellow lemon on black"


def test_the_atlas_has_every_object_in_both_styles_and_sizes():
    for size in SIZES:
        found = sprites(size)
        assert found.shape == (48, 2, 4, size, size)
        assert (found[:, :, 3].mean((2, 3)) > 0.15).all(), "a cell is nearly empty"
        assert (found[:, :, :3] <= found[:, :, 3:] + 1e-6).all(), "not premultiplied"
    flat = sprites(SIZES[0]).flatten(0, 1).flatten(1)
    assert (torch.cdist(flat, flat) + 9 * torch.eye(96)).min() > 1, "two sprites are the same"


# Prompts


def test_words_that_are_unknown_or_too_many_are_said_once(capsys):
    backend_module.notice.cache_clear()
    for _ in range(2):
        backend_module.notice("a purple dragon and a fox")
        backend_module.notice("flat fox and pig on red and cat and dog and frog")
        backend_module.notice("two flat foxes on grey")
    said = capsys.readouterr().err.splitlines()
    assert said == [
        "prompt 'a purple dragon and a fox': unknown words are left out: purple, dragon",
        f"prompt 'flat fox and pig on red and cat and dog and frog': only the first {LENGTH} known words are read, "
        "without: and dog and frog",
    ]


def test_empty_and_unknown_prompts_are_the_empty_caption():
    assert read_words("").tokens == read_words("purple dragon").tokens == (1,)
    assert encode(["", "two pigs"]).shape == (2, LENGTH)
    assert encode(["Two PIGS, on grey"]).tolist() == encode(["two pig on gray"]).tolist()


def test_any_prompt_gives_a_picture(small, tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("flat fox on blue\na purple dragon\n" + "fox " * 40 + "\n")
    made = execute(resolve(compose([*small, "method=none", f"backend.prompts={path}", "num_items=3"])))
    written = [line.strip() for line in path.read_text().splitlines()]
    assert [record["prompt"] for record in made.folder.records().values()] == written


def test_bad_settings_are_one_line(small, tmp_path):
    path = tmp_path / "p.txt"
    path.write_text("flat fox on blue\n")
    wrong = {
        "backend.guidance=0.5": "backend.guidance: must be >= 1",
        f"backend.prompts={path}": "num_items: must be at most the 1 prompts, got 4",
        "backend.prompts=nowhere.txt": "backend.prompts: must be a .txt",
        "backend.path=/nowhere": "backend.path: must be a folder with transformer/",
    }
    for words, line in wrong.items():
        with pytest.raises(ConfigError, match=line) as error:
            runner.check(resolve(compose([*small, words])))
        assert "\n" not in str(error.value)
    assert not (tmp_path / "results").exists()


def test_other_seeds_have_other_captions_and_fewer_items_the_same():
    config = compose(["backend=emoji"]).backend
    five, three, other = (EmojiBackend.items(config, n, seed) for n, seed in ((5, 0), (3, 0), (3, 1)))
    assert five[:3] == three and [item.title for item in three] != [item.title for item in other]
    assert all(held_out(scene) for item in five if (scene := parse(item.title)))


# Pipeline


def test_packing_is_lossless():
    images = torch.randn(2, 3, 32, 32)
    packed = pack(images)
    assert packed.shape == (2, 64, 48) and torch.equal(unpack(packed), images)
    patch = images[0, :, 4:8, 8:12].reshape(-1)
    assert torch.equal(packed[0, 8 + 2], patch), "token 10 is the patch in row 1, column 2"


def test_training_and_sampling_shift_the_noise_levels_alike():
    solver = scheduler()
    solver.set_timesteps(sigmas=np.linspace(1.0, 0.1, 10), mu=shift())
    assert torch.allclose(solver.sigmas[:-1], shift_levels(torch.linspace(1.0, 0.1, 10)), atol=1e-6)


def test_guidance_one_is_one_prediction_and_noise_can_be_given(weights):
    pipe = EmojiPipeline(
        FluxTransformer2DModel.from_pretrained(weights / "transformer"),
        TextEncoder.from_pretrained(weights / "text_encoder"),
        scheduler(),
    )
    pipe.set_progress_bar_config(disable=True)
    rows = []
    pipe.transformer.register_forward_pre_hook(
        lambda model, args, kwargs: rows.append(len(kwargs["hidden_states"])), with_kwargs=True
    )
    noise = torch.randn(2, 3, 32, 32)
    for guidance in (1.0, 2.0):
        pipe(["flat fox on blue"] * 2, guidance_scale=guidance, num_inference_steps=2, latents=noise, output_type="pt")
    assert rows == [2, 2, 4, 4]
    with pytest.raises(ValueError, match="latents: must have shape"):
        pipe("flat fox on blue", latents=noise)


@pytest.mark.matrix
@pytest.mark.parametrize("scope", ["modules", "stack", "output"])
def test_interval_one_is_the_plain_model(scope, small):
    plain, cached = (
        execute(resolve(compose([*small, *words])))
        for words in (["method=none"], ["method=hicache", "interval=1", f"scope={scope}"])
    )
    assert cached.metrics["num_full_steps"] == 6
    ours, theirs = (
        {name: record["sha256"] for name, record in made.folder.records().items()} for made in (cached, plain)
    )
    assert ours == theirs and len(set(ours.values())) == 4


def test_a_cached_run_differs_and_its_cost_is_counted(small):
    made = execute(resolve(compose([*small, "method=hicache", "interval=3", "warmup_steps=1", "order=1"])))
    assert made.metrics["num_full_steps"] == 2 and made.metrics["flops_speedup"] > 1.5


# Training


def test_an_interrupted_training_continues_to_the_same_weights(tmp_path):
    def run(training, until):
        while training.update < until:
            training.step(0, 2, 1e-3)
        return training

    whole = run(train_emoji.start(0, 1e-3), 3)
    train_emoji.save_state(run(train_emoji.start(0, 1e-3), 2), tmp_path / "state.pt")
    resumed = train_emoji.start(5, 1e-3)
    train_emoji.load_state(resumed, tmp_path / "state.pt")
    run(resumed, 3)
    for a, b in zip(whole.average, resumed.average, strict=True):
        assert torch.equal(a, b)
    train_emoji.write(resumed, tmp_path, {"seed": 0})
    assert digest(tmp_path) != digest(SHIPPED) if (SHIPPED / "transformer" / backend_module.WEIGHTS).is_file() else True
    assert EmojiBackend(dataclasses.replace(compose(["backend=emoji"]).backend, path=str(tmp_path))).pipe is not None


def test_the_rate_warms_up_and_falls_to_nothing():
    rates = [train_emoji.rate_at(update, 1000, 1.0) for update in (0, 99, 500, 825, 999)]
    assert rates == pytest.approx([0.01, 1, 1, 0.5, 1 / 350])


# The judge


def test_two_objects_are_found_in_any_order():
    scenes = [
        Scene(style="flat", colour="red", objects=("apple", "banana")),
        Scene(style="flat", colour="red", objects=("banana", "apple")),
        Scene(style="flat", colour="red", objects=("apple", "lemon")),
        Scene(style="flat", colour="red", objects=("banana",)),
    ]
    seen = targets(scenes)
    assert seen["object"].sum(1).tolist() == [1, 1, 1, 1]
    logits = {name: torch.nn.functional.one_hot(seen[name], 8).float() for name in ("colour", "count", "style")}
    one = torch.zeros(1, len(OBJECTS))
    one[0, 0], one[0, 1] = 2.0, 3.0
    verdict = Verdict(features=one, embedding=one, logits={"object": one.expand(4, -1), **logits})
    found = verdict.correct(scenes)
    assert found["object"].tolist() == [True, True, False, True]
    assert all(found[name].all() for name in ("colour", "count", "style"))


def evidence_of(images, tmp_path, words=()):
    """The composer's pictures as if they had been generated."""
    settings = resolve(compose(["backend=emoji", f"num_items={len(images)}", *words]))
    items = EmojiBackend.items(settings.backend, len(images), 0)
    folder = tmp_path / "run" / "media"
    folder.mkdir(parents=True)
    for item, image in zip(items, images, strict=True):
        EmojiBackend.save(image / 2 + 0.5, folder, item)
    return Evidence(backend=EmojiBackend, settings=settings, items=items, media=folder, reference=folder)


def right_pictures(number):
    rng = np.random.default_rng(9)
    items = EmojiBackend.items(compose(["backend=emoji"]).backend, number, 0)
    return torch.stack([draw(scene, rng) for item in items if (scene := parse(item.title))])


@pytest.mark.slow
def test_too_few_items_give_no_value_and_a_reason(weights, tmp_path):
    evidence = evidence_of(right_pictures(6), tmp_path, [f"backend.path={weights}"])
    found = RUN_METRICS["emoji_frechet"].value(evidence)
    assert found["mean"] is None and found["n"] == 6
    assert found["why"] == "needs 65 items"


def test_prompts_of_another_form_have_no_known_answer(weights, tmp_path):
    path = tmp_path / "p.txt"
    path.write_text("a nice fox\nsome food\n")
    evidence = evidence_of(right_pictures(2), tmp_path, [f"backend.path={weights}", f"backend.prompts={path}"])
    for name in ("emoji_object", "emoji_count"):
        assert (
            RUN_METRICS[name].value(evidence)["mean"] is None
            and "composer's form" in RUN_METRICS[name].value(evidence)["why"]
        )
    assert RUN_METRICS["emoji_alignment"].value(evidence)["n"] == 2


def test_a_reference_is_not_compared_with_itself():
    assert "emoji_distance" not in applicable(resolve(compose(["backend=emoji", "method=none"])))
    assert "emoji_distance" in applicable(resolve(compose(["backend=emoji"])))


def test_the_shipped_judge_knows_real_pictures_and_small():
    path = SHIPPED / "judge.safetensors"
    assert path.stat().st_size < 3_000_000
    judge = load_judge(path)
    found = accuracies(judge, *real_pictures(4321, 300, held=True))
    assert found["object"] >= 0.9 and min(found[name] for name in ("colour", "count", "style")) >= 0.97


@pytest.mark.slow
def test_its_scores_fall_with_blur_noise_and_wrong_captions():
    scenes, images = real_pictures(4322, 150, held=True)
    for name, points in ladder(load_judge(SHIPPED / "judge.safetensors"), scenes, images).items():
        scores = [score for _, score in points]
        assert scores == sorted(scores, reverse=True), f"{name}: {scores}"
        assert scores[0] - scores[-1] > 0.1, name


@pytest.mark.slow
def test_metrics_of_right_pictures_are_better_than_of_others(tmp_path):
    images = right_pictures(80)
    right = evidence_of(images, tmp_path)
    mixed = evidence_of(images.roll(1, 0), tmp_path / "mixed")
    for name in ("emoji_alignment", "emoji_object", "emoji_colour"):
        assert RUN_METRICS[name].value(right)["low"] > RUN_METRICS[name].value(mixed)["high"], name
    assert (
        RUN_METRICS["emoji_object"].value(right)["mean"] > 0.85
        and RUN_METRICS["emoji_distance"].value(right)["mean"] == 0
    )
    gray = evidence_of(images * 0.2, tmp_path / "gray")
    assert RUN_METRICS["emoji_frechet"].value(right)["mean"] < RUN_METRICS["emoji_frechet"].value(gray)["mean"]
    assert (tmp_path / "run" / "values" / "emoji_distance.json").is_file()


# What is shipped


def test_the_configured_revision_is_that_of_the_weights():
    EmojiBackend.check(compose(["backend=emoji"]).backend)


def test_the_weights_are_small():
    assert sum(path.stat().st_size for path in SHIPPED.rglob("*") if path.is_file()) < 10_000_000


def test_its_blueprint_costs_what_the_model_does(weights):
    config = compose(["backend=emoji", f"backend.path={weights}"]).backend
    model = blueprint(config).transformer
    assert next(model.parameters()).device.type == "meta"
    assert folder_of(config) == weights
    hicache.enable(model, hicache.method("hicache", scope="modules")).disable()


@pytest.mark.slow
def test_the_judge_finds_the_captioned_objects_in_its_samples(tmp_path):
    words = ["backend=emoji", "method=none", "num_items=40", "batch_size=40", "metrics.latency_batch=1"]
    names = "metrics.names=[emoji_object,emoji_colour,emoji_style]"
    made = execute(resolve(compose([*words, names, f"results={tmp_path}"])))
    assert made.metrics["emoji_object"]["mean"] >= 0.7
    assert min(made.metrics[name]["mean"] for name in ("emoji_colour", "emoji_style")) >= 0.9
