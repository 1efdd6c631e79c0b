"""What status says: labels as they are, how far and how long a row is, and nothing falls over a torn file."""

import dataclasses
import json
import time

import pytest
from plans import planned, states

from experiments.errors import ConfigError
from experiments.plans import status
from experiments.plans.execute import main as execute
from experiments.plans.manifest import Plan
from experiments.plans.retry import main as retry
from experiments.plans.status import State, state_of
from experiments.runs import runner


@pytest.fixture
def plan(small) -> Plan:
    """A row that has not run, its folder there."""
    made = planned(small, "method=none")
    made.run(made.rows[0]).path.mkdir(parents=True)
    return made


def shown(plan: Plan, capsys) -> str:
    """What the command prints."""
    capsys.readouterr()
    status.main([str(plan.folder)])
    return capsys.readouterr().out


def test_many_rows_are_shown_a_page_at_a_time(plan, capsys):
    line = json.loads((plan.folder / "manifest.jsonl").read_text())
    rows = [json.dumps(line | {"index": index, "label": f"row-{index}."}) for index in range(2 * status.PAGE + 1)]
    (plan.folder / "manifest.jsonl").write_text("\n".join(rows) + "\n")
    for given, first, number in (("1", 0, status.PAGE), ("2", status.PAGE, status.PAGE), ("9", 2 * status.PAGE, 1)):
        capsys.readouterr()
        assert status.main([str(plan.folder), "--page", given]) == 3
        said = capsys.readouterr().out
        assert said.count("row-") == number and f"row-{first}." in said and f"{len(rows)} waiting" in said
    with pytest.raises(ConfigError, match="--page: must be an integer >= 1, got 0"):
        status.main([str(plan.folder), "--page", "0"])


@pytest.mark.parametrize("words", ["[dev] split", "odd [/2] and [bold", "back\\[slash]"])
def test_labels_and_reasons_are_shown_as_they_are(words, plan, capsys):
    plan.rows[0] = dataclasses.replace(plan.rows[0], label=words)
    lines = (plan.folder / "manifest.jsonl").read_text().splitlines()
    (plan.folder / "manifest.jsonl").write_text(json.dumps(json.loads(lines[0]) | {"label": words}) + "\n")
    plan.run(plan.rows[0]).fail(RuntimeError(words))
    said = shown(plan, capsys)
    assert said.count(words) == 2 and "failed" in said


def test_a_running_row_says_how_far_and_how_long(plan, capsys):
    folder = plan.run(plan.rows[0])
    folder.write_status("running", items=3, total=9)
    record = json.loads(folder.status_file.read_text())
    folder.status_file.write_text(json.dumps(record | {"started": time.time() - 600}))
    with folder.lock():
        detail = state_of(plan.results, folder.id).detail
    assert detail.startswith("3/9 items, for 10 min on ")
    folder.write_status("running", items=6)
    assert json.loads(folder.status_file.read_text())["started"] == record["started"]
    assert "6/9 items" in shown(plan, capsys)
    folder.write_status("stopped")
    assert state_of(plan.results, folder.id).detail.startswith("6/9 items, last sign")


def test_the_items_of_all_shards_are_counted(plan):
    for rank, state in enumerate(("shard done", "running")):
        part = plan.run(plan.rows[0], dataclasses.replace(plan.run(plan.rows[0]).shard, rank=rank, world=2))
        part.write_status(state, items=3 - rank, total=9)
    assert state_of(plan.results, plan.rows[0].run).detail.startswith("5/9 items, ")


def test_files_of_earlier_versions_are_read(plan):
    folder = plan.run(plan.rows[0])
    folder.write_status("running", items=3)
    record = json.loads(folder.status_file.read_text())
    folder.status_file.write_text(json.dumps({key: record[key] for key in ("state", "pid", "host", "heartbeat")}))
    with folder.lock():
        found = state_of(plan.results, folder.id)
    assert found.state is State.RUNNING and "items" not in found.detail


def test_a_run_runs_here_while_its_lock_is_held_whoever_has_its_number(plan):
    folder = plan.run(plan.rows[0])
    folder.write_status("running", items=3, total=9)
    record = json.loads(folder.status_file.read_text()) | {"pid": 1, "heartbeat": time.time() - 720 * 3600}
    folder.status_file.write_text(json.dumps(record))
    assert state_of(plan.results, folder.id).state is State.INTERRUPTED
    with folder.lock():
        assert state_of(plan.results, folder.id).state is State.RUNNING


@pytest.mark.parametrize(
    ("seconds", "state"), [(60, "running"), (-60, "running"), (7200, "interrupted"), (-7200, "interrupted")]
)
def test_a_run_of_another_host_runs_while_its_signs_are_fresh(seconds, state, plan):
    folder = plan.run(plan.rows[0])
    folder.write_status("running")
    record = json.loads(folder.status_file.read_text()) | {"host": "elsewhere", "heartbeat": time.time() - seconds}
    folder.status_file.write_text(json.dumps(record))
    assert state_of(plan.results, folder.id).state.value == state


@pytest.mark.parametrize(
    "wrong",
    [{"items": "many"}, {"heartbeat": "now"}, {"started": "x"}, {"pid": -1}, {"total": 1e400}, {"state": "flying"}],
    ids=str,
)
def test_values_of_the_wrong_kind_are_an_interrupted_run(wrong, plan):
    folder = plan.run(plan.rows[0])
    folder.write_status("running")
    folder.status_file.write_text(json.dumps(json.loads(folder.status_file.read_text()) | wrong))
    assert states(plan) == [State.INTERRUPTED]


def test_what_a_terminal_would_obey_is_shown_not_sent(plan, capsys):
    plan.run(plan.rows[0]).fail(RuntimeError("\x1b[31mred\x1b]0;title\x07"))
    said = shown(plan, capsys)
    assert "\x1b" not in said and "\x07" not in said and "x1b[31mred" in said


@pytest.mark.parametrize("name", ["../../../x", "/etc", "a/b", ""])
def test_a_manifest_names_runs_of_its_folder_only(name, plan):
    line = json.loads((plan.folder / "manifest.jsonl").read_text().splitlines()[0])
    (plan.folder / "manifest.jsonl").write_text(json.dumps(line | {"run": name}) + "\n")
    with pytest.raises(ConfigError, match=r"manifest.jsonl:1: run: must be the id of a run"):
        _ = Plan(plan.folder).rows
    with pytest.raises(ConfigError, match="must be the id of a run"):
        state_of(plan.results, name)


@pytest.mark.parametrize("torn", ["", '{"state": "runn', "[]", "{}", "\x00\x00"])
def test_an_unreadable_status_is_interrupted_and_continued(torn, plan, capsys, monkeypatch):
    monkeypatch.setattr(runner, "draw_comparison", lambda *args: None)
    folder = plan.run(plan.rows[0])
    folder.status_file.write_text(torn)
    assert states(plan) == [State.INTERRUPTED] and "cannot be read" in shown(plan, capsys)
    retry([str(plan.folder)])
    assert states(plan) == [State.INTERRUPTED]
    if not torn:
        assert execute([str(plan.folder), "--devices", "cpu"]) == 0
        assert states(plan) == [State.DONE]
