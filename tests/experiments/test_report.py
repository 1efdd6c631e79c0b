"""The page holds every number and picture, loads nothing, and works in a browser."""

import base64
import json
import re
import shutil
import subprocess

import pytest
from PIL import Image
from plans import planned

from experiments.config.compose import set_up
from experiments.config.run import Shard
from experiments.plans.tasks import Task
from experiments.plans.worker import Worker
from experiments.reports.gallery import Gallery, varied
from experiments.reports.report import main
from experiments.runs import runner


@pytest.fixture(scope="module")
def page(tiny, tmp_path_factory):
    """The page of a plan of four runs, two of them of one failed or waiting state."""
    results = tmp_path_factory.mktemp("report") / "results"
    small = [
        f"backend.path={tiny}",
        f"results={results}",
        *("num_items=6", "batch_size=3", "num_steps=8", "metrics.names=[psnr,ssim]", "metrics.latency_repeats=1"),
        *("metrics.latency_warmup=0", "metrics.latency_batch=1"),
    ]
    set_up()
    plan = planned(small, "method=hicache,fora", "interval=2,4")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "draw_comparison", lambda *args: None)
        Worker(plan, "cpu", 1).run([Task(row, Shard()) for row in plan.rows[:4]])
    out = results / "page.html"
    main([f"plan={plan.folder}", "items=4", f"out={out}"])
    return plan, out


def data_of(text: str) -> dict:
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)[1])


def test_the_page_is_complete_and_loads_nothing(page):
    plan, out = page
    text = out.read_text()
    assert (
        not re.search(r'(src|href|url)\s*[=(]\s*["\']?(https?:)?//', text)
        and "@import" not in text
        and "fetch(" not in text
    )
    for row in plan.rows:
        assert row.label in text
    assert text.count("not run") >= 5, "the row that was not run says so"
    data = data_of(text)
    assert len(data["points"]) == 5 and data["qualities"] == ["psnr", "ssim"]
    assert len(data["items"]) == 4 and all(len(item["media"]) == 3 for item in data["items"])
    metrics = plan.run(plan.rows[1]).metrics()
    assert f"{metrics['psnr']['mean']:.2f}" in text


def test_pictures_are_those_of_the_runs(page):
    plan, out = page
    data = data_of(out.read_text())
    for entry in data["items"][0]["media"]:
        for key in (entry["reference"], entry["image"]):
            run, _, item = key.partition("/")
            raw = base64.b64decode(data["images"][key].partition(",")[2])
            path = plan.results / "runs" / run / "media" / f"{item}.png"
            copy = out.parent / "copy.png"
            copy.write_bytes(raw)
            assert list(Image.open(copy).getdata()) == list(Image.open(path).convert("RGB").getdata())


def test_any_runs_make_a_page(page, tmp_path, capsys):
    """Folders in two places, a name and the beginning of an identity; the whole folder; a label tells runs apart."""
    plan, out = page
    done = [row.run for row in plan.rows[:4]]
    runs = plan.results / "runs"
    elsewhere = tmp_path / "runs" / done[3]
    shutil.copytree(runs / done[3], elsewhere)
    words = [str(runs / done[0]), done[1], done[2].rpartition("-")[2][:8], str(elsewhere)]
    main([*words, f"results={plan.results}", "items=2", f"out={tmp_path / 'some.html'}"])
    data = data_of((tmp_path / "some.html").read_text())
    labels = [point["label"] for point in data["points"]]
    assert len(set(labels)) == 4 and labels[0] == "no cache" and "HiCache (interval=2)" in labels
    assert len(data["items"]) == 2 and data["qualities"] == ["psnr", "ssim"]
    assert any(key.startswith(done[3]) for key in data["images"]), "pictures of a run that lies elsewhere"

    main([str(plan.results), f"results={plan.results}", "items=1"])
    whole = plan.results / "report" / "runs.html"
    assert str(whole) in capsys.readouterr().out
    assert [point["psnr"] for point in data_of(whole.read_text())["points"] if point.get("psnr")] != []
    assert len(data_of(whole.read_text())["points"]) == len(list(runs.glob("*/config.yaml")))


def test_items_of_different_titles_come_first():
    assert varied({"a": "1", "b": "1", "c": "2", "d": "2"}) == ["a", "c", "b", "d"]


def test_large_pictures_are_scaled(tmp_path):
    folder = tmp_path / "runs" / "r"
    (folder / "media").mkdir(parents=True)
    Image.new("RGB", (800, 400)).save(folder / "media" / "a.png")
    images: dict[str, str] = {}
    Gallery([tmp_path / "runs"], 128).put("r", {"item": "a", "files": ["a.png"]}, images)
    assert images["r/a"].startswith("data:image/webp;base64,")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([], "table: must be given, or plan, or runs"),
        (["table=digits", "results"], "table: must be given, or plan, or runs, and only one"),
        (["nowhere"], "run: must be one of .*got 'nowhere'"),
        (["table=digits", "items=0"], "items: must be an integer >= 1, got '0'"),
        (["table=6", "seed=0,1"], "seed: must be one value here"),
        (["table=6", "out=/proc/x/y.html"], "out: must be a file that can be written, got '/proc/x/y.html'"),
        (["plan=x", "seed=1"], "argument: must not stand beside plan="),
    ],
)
def test_wrong_arguments_are_said_in_one_line(arguments, line):
    with pytest.raises(ValueError, match=line):
        main(arguments)


PROBE = """
<script>
const problems = []; window.addEventListener("error", event => problems.push(event.message));
document.addEventListener("securitypolicyviolation", event => problems.push(event.blockedURI));
window.addEventListener("load", () => {
  const column = name => [...document.querySelectorAll("th")].findIndex(head => head.textContent === name);
  const cells = index => [...document.querySelectorAll("tbody tr")].map(row => row.cells[index].dataset.value);
  const psnr = column("PSNR (dB) ↑"), head = document.querySelectorAll("th")[psnr], found = { rows: cells(0).length };
  head.firstChild.click(); found.down = cells(psnr); head.firstChild.click(); found.up = cells(psnr);
  document.querySelector("th button").click(); found.names = cells(0);
  const cut = document.getElementById("cut"), over = document.querySelector(".over");
  found.before = getComputedStyle(over).clipPath; cut.value = 20; cut.dispatchEvent(new Event("input"));
  found.after = getComputedStyle(over).clipPath;
  found.cards = document.querySelectorAll(".pair").length;
  found.drawn = [...document.querySelectorAll(".pair img")].filter(image => image.naturalWidth > 0).length;
  const item = document.getElementById("item"), first = over.src; item.value = 1; item.dispatchEvent(new Event("change"));
  found.changed = document.querySelector(".over").src !== first;
  found.circles = document.querySelectorAll("svg circle").length;
  const quality = document.getElementById("quality"); quality.value = "ssim"; quality.dispatchEvent(new Event("change"));
  found.axis = [...document.querySelectorAll("svg text")].some(text => text.textContent.startsWith("SSIM"));
  found.requests = performance.getEntriesByType("resource").filter(entry => !entry.name.startsWith("data:")).map(entry => entry.name);
  found.wide = document.documentElement.scrollWidth > window.innerWidth; found.problems = problems;
  const out = document.createElement("pre"); out.id = "probe"; out.textContent = JSON.stringify(found); document.body.append(out);
});
</script>
"""


def browse(out, *options: str) -> subprocess.CompletedProcess:
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=3000", "--no-first-run"]
    flags += [f"--user-data-dir={out.parent / 'profile'}", "--enable-logging=stderr", "--disable-background-networking"]
    command = ["chromium", *flags, *options, f"file://{out}"]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.mark.browser
@pytest.mark.slow
@pytest.mark.parametrize("width", [480, 600, 1400])
def test_it_works_in_a_browser(page, width):
    plan, out = page
    probed = out.with_name(f"probed-{width}.html")
    text = out.read_text()
    title = data_of(text)["items"][0]["title"]
    assert title in text
    text = text.replace(title, "a photograph of " * 20 + "a_very_long_word" * 12)
    probed.write_text(text.replace("<title>", PROBE + "<title>"))
    done = browse(probed, f"--window-size={width},900", "--dump-dom")
    found = json.loads(re.search(r'<pre id="probe">(.*?)</pre>', done.stdout, re.DOTALL)[1].replace("&gt;", ">"))
    values = [float(value) for value in found["down"] if value]
    assert values == sorted(values, reverse=True) and len(values) == 3 and found["down"][-2:] == ["", ""]
    assert [float(value) for value in found["up"] if value] == values[::-1] and found["up"][-2:] == ["", ""]
    assert found["names"] == sorted(found["names"], key=str.lower) and len(found["names"]) == 5
    assert "50%" in found["before"] and "20%" in found["after"]
    assert found["cards"] == 3 and found["drawn"] == 6 and found["changed"]
    assert found["circles"] == 3 and found["axis"]
    assert found["requests"] == [] and found["problems"] == [] and "CONSOLE" not in done.stderr
    assert not found["wide"], "the page must not scroll sideways"
