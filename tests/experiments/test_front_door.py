"""`python -m experiments`: every verb has help, help is quick, and a reader that goes away is no error."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from experiments.__main__ import VERBS, docstring_of, main
from experiments.config.front_help import help_text

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "hydra", "omegaconf", "numpy", "pandas", "scipy", "diffusers")


def module(verb):
    return ROOT.joinpath("experiments", *VERBS[verb][0].split(".")).with_suffix(".py")


def test_every_verb_is_a_program_with_a_line_of_help(capsys):
    assert main([]) == 0
    said = capsys.readouterr().out
    for verb, (_, line) in VERBS.items():
        assert f"    {verb} " in said and line in said
        assert '__name__ == "__main__"' in module(verb).read_text(), verb


@pytest.mark.parametrize("verb", VERBS)
def test_help_says_what_a_verb_does_with_an_example(verb, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", [])
    try:
        assert main([*verb.split(), "--help"]) == 0
    except SystemExit as ended:  # argparse, which adds the options
        assert ended.code == 0
    said, text = capsys.readouterr().out, ast.get_docstring(ast.parse(module(verb).read_text()))
    assert text and text.splitlines()[0] in said
    assert f"\n    python -m experiments {verb}" in said
    options = set(re.findall(r'add_argument\("(--[\w-]+)"', module(verb).read_text())) - {"--worker"}  # which is hidden
    assert not [option for option in options if option not in said]


@pytest.mark.parametrize("first", sorted({verb.split()[0] for verb in VERBS if " " in verb}))
def test_a_verb_of_two_words_lists_the_second(first, capsys):
    assert main([first, "--help"]) == 0
    said = capsys.readouterr().out
    for verb, (_, line) in VERBS.items():
        assert (line in said) == verb.startswith(f"{first} ")
    words = ", ".join(verb.split()[1] for verb in VERBS if verb.startswith(f"{first} "))
    for rest, got in (([], ""), (["digit"], "digit")):
        assert main([first, *rest]) == 2
        assert capsys.readouterr() == ("", f"error: {first}: must be one of {words}, got {got!r}\n")


@pytest.mark.slow
def test_from_another_folder_results_lie_where_one_stands(small, tmp_path):
    here = [word for word in small if not word.startswith("results=")]
    folder = tmp_path / "elsewhere"
    folder.mkdir()

    def call(*words):
        env = os.environ | {"PYTHONPATH": str(ROOT)}  # what `make setup` writes into its environment
        done = subprocess.run(
            [sys.executable, *words], cwd=folder, env=env, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    call(str(ROOT / "run.py"), "method=fora", *here)
    assert [path.name for path in folder.iterdir()] == ["results"]
    assert "FORA" in call("-m", "experiments", "tables", "runs=*fora*")
    assert [path.name for path in folder.iterdir()] == ["results"]


def test_an_unknown_verb_is_a_line(capsys):
    assert main(["tabels"]) == 2
    assert capsys.readouterr().err.startswith("error: verb: must be one of plan, ")


def loaded(code):
    """The heavy libraries that a process has loaded after this code, and its exit code."""
    listing = f"import sys; print([name for name in {HEAVY} if name in sys.modules], file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", f"{code}\n{listing}"], cwd=ROOT, capture_output=True, text=True)
    return done.stderr.strip().splitlines()[-1]


def test_status_and_help_load_no_library_of_numbers(tmp_path):
    told = [[], *([*verb.split()] for verb in VERBS if docstring_of(verb)), ["train"]]
    assert loaded(f"from experiments.__main__ import main\nfor words in {told}: main([*words, '--help'])") == "[]"
    light = [verb for verb in VERBS if not docstring_of(verb)]
    assert {"status", "execute", "submit", "collect"} <= set(light)
    names = [f"experiments.{VERBS[verb][0]}" for verb in light]
    found = loaded(f"import importlib\nfor name in {names}: importlib.import_module(name)")
    assert not {"torch", "hydra", "pandas", "scipy", "diffusers"} & set(ast.literal_eval(found))


def test_states_of_a_plan_are_told_without_its_schemas(small):
    from tests.experiments.plans import planned

    plan = planned(small, "method=fora")
    code = f"from experiments.plans import status; assert status.main([{str(plan.folder)!r}]) == 3"
    assert loaded(code) == "[]"


@pytest.mark.parametrize(
    "line", ["-m experiments --help", "-m experiments tables --help", "-m experiments status --help", "run.py --help"]
)
def test_a_reader_that_goes_away_is_no_error(line):
    command = f"{sys.executable} {line} | true"
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_help_of_a_run_names_every_choice_and_key_without_torch():
    found = loaded(
        "import runpy, sys\nsys.argv = ['run.py', '--help']\ntry: runpy.run_path('run.py', run_name='__main__')\nexcept SystemExit as stop: assert not stop.code"
    )
    assert found == "['hydra', 'omegaconf']"
    said = help_text("Run.")
    assert said.startswith("Run.\n") and "hicache_adaptive" in said and "small_table5" in said
    keys = yaml.safe_load((ROOT / "conf" / "config.yaml").read_text()).keys() - {"defaults", "hydra"}
    assert all(f"    {key}=" in said for key in keys)


def test_help_of_a_verb_with_options_ends_well():
    command = [sys.executable, "-m", "experiments", "status", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "--watch" in done.stdout and done.stderr == ""
