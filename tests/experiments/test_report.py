"""The page holds every number and picture, loads nothing, and works in a browser."""

import base64
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest
from PIL import Image
from plans import planned

from experiments.config.compose import set_up
from experiments.config.run import Shard
from experiments.plans.tasks import Task
from experiments.plans.worker import Worker
from experiments.reports.gallery import Gallery, order_by_title
from experiments.reports.report import main
from experiments.runs import runner
from experiments.runs.folder import read_values


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


class Parsed(HTMLParser):
    """The tags of a page, and those that were not closed."""

    def __init__(self):
        super().__init__()
        self.tags, self.open = [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag not in ("meta", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def count(self, tag):
        return self.tags.count(tag)


def parsed(text: str) -> Parsed:
    found = Parsed()
    found.feed(text)
    return found


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
    assert text.count("not run") >= 4, "the row that was not run says so"
    data = data_of(text)
    (block,) = data["blocks"]
    assert len(block["rows"]) == 5 and block["qualities"] == ["psnr", "ssim"] == block["metrics"]
    assert len(block["items"]) == 4 and all(len(item["media"]) == 3 for item in block["items"])
    ranked = [row["values"]["psnr"][0] for row in block["rows"] if "psnr" in row["values"]]
    assert ranked == sorted(ranked, reverse=True), "best first"
    assert parsed(text).count("table") == 2 and not parsed(text).open
    metrics = plan.run(plan.rows[1]).metrics()
    assert f"{metrics['psnr']['mean']:.2f}" in text


def test_pictures_are_those_of_the_runs(page):
    plan, out = page
    data = data_of(out.read_text())
    for entry in data["blocks"][0]["items"][0]["media"]:
        values = read_values(
            plan.results / "runs" / data["blocks"][0]["rows"][entry["row"]]["run"] / "values" / "psnr.json"
        )
        assert entry["scores"]["psnr"] == round(values[entry["image"].partition("/")[2]], 4)
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
    (block,) = data["blocks"]
    labels = [row["label"] for row in block["rows"]]
    assert len(set(labels)) == 4 and {"no cache", "HiCache (N=2)", "HiCache (N=4)"} < set(labels)
    assert len(block["items"]) == 2 and block["qualities"] == ["psnr", "ssim"]
    assert any(key.startswith(done[3]) for key in data["images"]), "pictures of a run that lies elsewhere"

    main([str(plan.results), f"results={plan.results}", "items=1"])
    whole = plan.results / "report" / "runs.html"
    assert str(whole) in capsys.readouterr().out
    (block,) = data_of(whole.read_text())["blocks"]
    assert any("psnr" in row["values"] for row in block["rows"])
    assert len(block["rows"]) == len(list(runs.glob("*/config.yaml")))


def test_runs_of_other_items_are_another_block(page, tmp_path, capsys):
    plan, _ = page
    runs = tmp_path / "runs"
    shutil.copytree(plan.results / "runs", runs)
    moved = next(path for path in runs.iterdir() if "fora" in path.name)
    config = moved / "config.yaml"
    config.write_text(config.read_text().replace("num_items: 6", "num_items: 5"))
    main([str(tmp_path), f"results={tmp_path}", f"out={tmp_path / 'two.html'}"])
    blocks = data_of((tmp_path / "two.html").read_text())["blocks"]
    assert sorted(len(block["rows"]) for block in blocks) == [1, 3]


def test_twenty_runs_of_twenty_items_stay_below_five_megabytes(page, tmp_path, monkeypatch):
    """Pictures are made smaller until the page is small enough: here noise, the worst there is, in a smaller page."""
    plan, _ = page
    noise = Image.effect_noise((192, 192), 90).convert("RGB")
    monkeypatch.setattr("experiments.reports.gallery.read_still", lambda path: noise.copy())
    monkeypatch.setattr("experiments.reports.report.LIMIT", 2e5)
    out = tmp_path / "small.html"
    main([f"plan={plan.folder}", "items=6", f"out={out}"])
    assert out.stat().st_size < 2.6e5


def test_items_of_different_titles_come_first():
    assert order_by_title({"a": "1", "b": "1", "c": "2", "d": "2"}) == ["a", "c", "b", "d"]


def test_large_pictures_are_scaled(tmp_path):
    folder = tmp_path / "runs" / "r"
    (folder / "media").mkdir(parents=True)
    Image.new("RGB", (800, 400)).save(folder / "media" / "a.png")
    gallery = Gallery([tmp_path / "runs"])
    gallery.keep_picture("r", {"item": "a", "files": ["a.png"]})
    assert gallery.images(128)["r/a"].startswith("data:image/webp;base64,")
    assert len(gallery.images(128)["r/a"]) < len(gallery.images(384)["r/a"])


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
  const section = document.querySelector(".block"), one = name => section.querySelector("." + name), all = name => [...section.querySelectorAll(name)];
  const table = one("numbers"), heads = [...table.querySelectorAll("th")];
  const column = name => heads.findIndex(head => head.textContent === name);
  const cells = index => [...table.tBodies[0].rows].map(row => row.cells[index].dataset.value);
  const psnr = column("PSNR (dB) ↑"), head = heads[psnr], found = { rows: cells(0).length };
  head.firstChild.click(); found.down = cells(psnr); head.firstChild.click(); found.up = cells(psnr);
  table.querySelector("th button").click(); found.names = cells(0);
  found.sticky = getComputedStyle(table.tBodies[0].rows[0].cells[0]).position;
  const set = (name, value, event) => { one(name).value = value; one(name).dispatchEvent(new Event(event)); };
  const over = () => section.querySelector(".over");
  found.before = getComputedStyle(over()).clipPath; set("cut", 20, "input"); found.after = getComputedStyle(over()).clipPath;
  found.cards = all(".pair").length; found.drawn = all(".pair img").filter(image => image.naturalWidth > 0).length;
  const source = () => over().firstChild.src, first = source();
  set("item", 1, "change"); found.changed = source() !== first;
  one("before").click(); found.back = source() === first; one("after").click(); found.on = source() !== first;
  set("mode", "difference", "change"); found.blend = getComputedStyle(over()).mixBlendMode; found.gainer = one("gainer").hidden;
  set("gain", 9, "input"); found.bright = getComputedStyle(section.querySelector(".pair")).filter;
  set("mode", "flicker", "change"); found.flicker = getComputedStyle(over()).animationName;
  set("mode", "slider", "change");
  set("zoom", 3, "input"); found.zoom = getComputedStyle(over().firstChild).transform;
  const caption = metric => { set("metric", metric, "change"); return section.querySelector("figcaption").textContent; };
  found.metric = [caption("psnr"), caption("ssim")];
  found.points = all(".plot .point").length; found.bars = all(".plot .bar").length;
  set("quality", "ssim", "change"); found.axis = all(".plot text").some(text => text.textContent.startsWith("SSIM"));
  section.querySelector(".point").dispatchEvent(new Event("pointerenter")); found.tip = one("tip").textContent;
  found.csv = csvOf(table).trim().split("\\n").length;
  const filter = document.getElementById("filter"); filter.value = "HICACHE interval=2"; filter.dispatchEvent(new Event("input"));
  found.left = [...table.tBodies[0].rows].filter(row => !row.hidden).map(row => row.cells[0].textContent); found.count = document.getElementById("count").textContent;
  found.few = all(".pair").length; found.dim = all(".point.out").length; found.less = csvOf(table).trim().split("\\n").length;
  filter.value = ""; filter.dispatchEvent(new Event("input"));
  found.folded = !section.querySelector("details").open;
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
@pytest.mark.parametrize("width", [420, 1300])
def test_it_works_in_a_browser(page, width):
    plan, out = page
    probed = out.with_name(f"probed-{width}.html")
    text = out.read_text()
    title = data_of(text)["blocks"][0]["items"][0]["title"]
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
    assert found["cards"] == 3 and found["drawn"] == 6 and found["changed"] and found["back"] and found["on"]
    assert found["blend"] == "difference" and not found["gainer"] and found["bright"] == "brightness(9)"
    assert found["flicker"] == "flick" and found["zoom"].startswith("matrix(3,")
    assert re.search(r" PSNR (\d+\.\d+|∞) dB$", found["metric"][0])
    assert re.search(r" SSIM [01]\.\d+$", found["metric"][1])
    assert found["points"] == 3 == found["bars"] and found["axis"] and found["sticky"] == "sticky"
    assert re.match(r".*: [\d.]+, [\d.]+ \[[\d.]+, [\d.]+\]$", found["tip"]) and found["folded"]
    assert found["csv"] == 6 and found["less"] == 2 and found["count"] == "1 of 5 rows"
    assert len(found["left"]) == 1 and "N=2" in found["left"][0] and found["few"] == 1 and found["dim"] == 2
    assert found["requests"] == [] and found["problems"] == [] and "CONSOLE" not in done.stderr
    assert not found["wide"], "the page must not scroll sideways"
