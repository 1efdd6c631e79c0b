"""Imports out of the garbage collector's sight."""

import gc
import subprocess
import sys

import pytest

from experiments.config.imports import load


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    gc.unfreeze()
    for name in ("many_objects", "broken_module"):
        sys.modules.pop(name, None)


def test_what_an_import_makes_is_never_collected(folder):
    (folder / "many_objects.py").write_text("import gc\nDURING = gc.isenabled()\nMADE = [[] for _ in range(1000)]\n")
    before = gc.get_freeze_count()
    module = load("many_objects")
    assert not module.DURING and gc.isenabled() and gc.get_freeze_count() >= before + 1000
    frozen = gc.get_freeze_count()
    kept = [[] for _ in range(1000)]
    assert load("many_objects") is module and gc.get_freeze_count() == frozen and len(kept) == 1000


def test_after_an_import_that_fails_the_collector_goes_on(folder):
    (folder / "broken_module.py").write_text("raise OSError('no such library')\n")
    with pytest.raises(OSError, match="no such library"):
        load("broken_module")
    assert gc.isenabled()


def test_at_the_end_no_library_misses_what_it_made():
    code = "from experiments.config.imports import load; load('triton')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")
