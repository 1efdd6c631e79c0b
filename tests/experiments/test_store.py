"""The run folder under kills, races and bad names."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments import stopping
from experiments.config.run import Shard
from experiments.errors import ConfigError
from experiments.files import ensure_writable, lacks_space, write_json, write_text
from experiments.runs.folder import RunFolder
from tests.programs import Program

ROOT = Path(__file__).parents[2]
HOLD = """
import sys, time
from pathlib import Path
from experiments.config.run import Shard
from experiments.runs.folder import RunFolder
rank, world = map(int, sys.argv[2:])
with RunFolder(Path(sys.argv[1]), "run", Shard(rank=rank, world=world)).lock():
    print("held", flush=True)
    time.sleep(60)
"""


def folder(tmp_path, rank=0, world=1) -> RunFolder:
    return RunFolder(tmp_path, "run", Shard(rank=rank, world=world))


@pytest.fixture
def holder(tmp_path):
    """`holder(rank, world)`: another process that holds the lock; killed at the end."""
    started = []

    def hold(rank=0, world=1):
        process = Program("-c", HOLD, str(tmp_path), str(rank), str(world))
        started.append(process)
        process.until("held")
        return process

    yield hold
    for process in started:
        process.kill()


def test_a_torn_last_line_is_ignored_and_cut_off_by_the_next_writer(tmp_path):
    run = folder(tmp_path)
    with run.lock():
        run.append([{"item": "a"}, {"item": "b"}])
    with open(run.items_file, "a") as handle:
        handle.write('{"item": "c", "seco')
    assert set(run.records()) == {"a", "b"}
    with run.lock():
        run.append([{"item": "c"}])
    assert set(run.records()) == {"a", "b", "c"}
    assert [json.loads(line)["item"] for line in run.items_file.read_text().splitlines()] == ["a", "b", "c"]


def test_a_broken_line_in_the_middle_is_an_error_and_not_skipped(tmp_path):
    run = folder(tmp_path)
    with run.lock():
        run.append([{"item": "a"}])
    run.items_file.write_text('{"item": \n' + run.items_file.read_text())
    with pytest.raises(ConfigError, match=r"run/items.jsonl:1: must be a record with an item \(delete the line"):
        run.records()


def test_records_of_all_shards_are_read_together(tmp_path):
    for rank in range(3):
        run = folder(tmp_path, rank, 3)
        with run.lock():
            run.append([{"item": str(rank)}])
    assert set(folder(tmp_path).records()) == {"0", "1", "2"}
    assert len(list((tmp_path / "runs/run").glob("items-*of3.jsonl"))) == 3


def test_a_second_process_waits_until_the_first_has_ended(tmp_path, holder, capfd):
    first = holder()
    started = time.monotonic()
    subprocess.Popen([sys.executable, "-c", f"import time, os; time.sleep(1); os.kill({first.pid}, {signal.SIGKILL})"])
    with folder(tmp_path).lock():
        assert time.monotonic() - started > 0.9
    assert "waiting: run is run by another process" in capfd.readouterr().err


def test_the_lock_of_a_killed_process_is_free(tmp_path, holder, capfd):
    first = holder()
    first.kill()
    with folder(tmp_path).lock():
        pass
    assert "waiting" not in capfd.readouterr().err


def test_shards_of_one_world_work_side_by_side_and_the_last_one_finishes(tmp_path, holder):
    other = holder(0, 2)
    mine = folder(tmp_path, 1, 2)
    with mine.lock():
        pass
    with mine.last() as alone:
        assert not alone
    other.kill()
    with mine.last() as alone:
        assert alone


def test_shards_of_another_world_are_refused(tmp_path, holder):
    holder(0, 2)
    refusal = pytest.raises(ConfigError, match=r"shard: must use the same world .*\(2\), got 1/3")
    with refusal, folder(tmp_path, 1, 3).lock():
        raise AssertionError("locked")


def test_the_first_process_decides_the_settings(tmp_path):
    run = folder(tmp_path)
    with run.lock():
        assert run.settle({"batch": 3}) == {"batch": 3}
        assert run.settle({"batch": 5}) == {"batch": 3}
    assert sorted(p.name for p in run.path.iterdir()) == ["config.yaml", "lock", "media"]


@pytest.mark.parametrize("name", ["..", "../x", "a/b", "/etc", ""])
def test_a_run_stays_inside_the_results_folder(tmp_path, name):
    with pytest.raises(ValueError, match="run id: must name a folder in"):
        RunFolder(tmp_path, name, Shard())


def test_status_of_a_whole_run_wins_over_that_of_its_shards(tmp_path):
    shard = folder(tmp_path, 0, 2)
    with shard.lock():
        shard.write_status("shard done")
        assert folder(tmp_path).status()["state"] == "shard done"
        shard.write_status("done")
    assert folder(tmp_path).status()["state"] == shard.status()["state"] == "done"
    assert {"pid", "host", "heartbeat"} <= set(shard.status())


def test_a_failure_keeps_its_traceback_and_one_line_of_it(tmp_path):
    run = folder(tmp_path)
    with run.lock():
        try:
            raise RuntimeError("first line\nsecond line")
        except RuntimeError as error:
            path = run.fail(error)
    assert "Traceback" in path.read_text() and "second line" in path.read_text()
    assert run.status()["reason"] == "RuntimeError: first line"


def test_json_has_no_nan(tmp_path):
    with pytest.raises(ValueError):
        write_json(tmp_path / "x.json", {"a": float("nan")})
    assert not (tmp_path / "x.json").exists()


def test_the_probe_of_a_writable_folder_leaves_nothing(tmp_path):
    ensure_writable(tmp_path / "a" / "b")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="results: must be a writable folder"):
        ensure_writable(tmp_path / "file" / "below")
    assert os.listdir(tmp_path) == ["file"]


def test_a_file_reaches_the_disk_before_it_gets_its_name(tmp_path, monkeypatch):
    happened = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda descriptor: (happened.append("fsync"), fsync(descriptor))[1])
    monkeypatch.setattr(os, "replace", lambda *names: (happened.append("replace"), replace(*names))[1])
    write_text(tmp_path / "x", "text")
    assert happened == ["fsync", "replace", "fsync"] and (tmp_path / "x").read_text() == "text"


def test_a_file_that_does_not_fit_leaves_the_one_before(tmp_path, monkeypatch):
    write_text(tmp_path / "x", "before")

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_text(tmp_path / "x", "after")
    assert os.listdir(tmp_path) == ["x"] and (tmp_path / "x").read_text() == "before"


def wrapped(error: BaseException, how: str) -> BaseException:
    """An error as a library passes it on."""
    if how == "group":
        return BaseExceptionGroup("several", [ValueError("x"), error])
    outer = RuntimeError("could not save")
    if how == "context":
        outer.__cause__, outer.__context__ = ValueError("another cause"), error
    else:
        outer.__cause__ = error
    return outer


@pytest.mark.parametrize("how", ["cause", "context", "group"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EACCES])
def test_a_lack_of_space_is_seen_through_what_wraps_it(number, how):
    error = OSError(number, "x")
    assert lacks_space(error) == lacks_space(wrapped(error, how)) == (number != errno.EACCES)


def test_a_lack_of_space_is_seen_in_the_words_of_libraries():
    assert lacks_space(OSError("96 requested and 0 written"))
    assert lacks_space(RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"))
    assert not lacks_space(RuntimeError("space"))


@pytest.mark.parametrize("torn", ["", "a: [", "- 1"])
def test_torn_settings_are_named(torn, tmp_path):
    run = folder(tmp_path)
    with run.lock():
        (run.path / "config.yaml").write_text(torn)
        with pytest.raises(ConfigError, match=r"run/config.yaml: must "):
            run.settle({"batch": 3})


def test_torn_metrics_are_named(tmp_path):
    run = folder(tmp_path)
    with run.lock():
        run.metrics_file.write_text('{"a": 1')
        with pytest.raises(ConfigError, match=r"run/metrics.json: must be readable JSON"):
            run.metrics()


def test_who_waits_for_the_lock_can_be_told_to_stop(tmp_path, holder):
    holder()
    stopping._asked.set()
    try:
        with pytest.raises(stopping.Stopped), folder(tmp_path).lock():
            raise AssertionError("locked")
    finally:
        stopping._asked.clear()
