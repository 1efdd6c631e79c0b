"""The small mistakes of the mutation run: which there are, that each is one, and which lines a test reaches."""

import builtins

from benchmarks.mutants import instrument, mutants, mutate
from benchmarks.mutation import DECLARED, reaching, sample

SOURCE = '''"""Text with 1 number."""
POLYNOMIALS = (1.0, 2.0)


def clip(x: int, low: int = 3) -> int:
    """Text."""
    if not x and low:
        raise ValueError("no")
    if x < low:
        return -x
    return x
'''
EXPECTED = {
    "`3` -> `4`", "`3` -> `2`", "`not x and low` -> `not x or low`", "`not x` -> `x`",
    "`if not x and low:` -> `if not (not x and low):`", "`raise ValueError('no')` -> `pass`",
    "`if x < low:` -> `if not x < low:`", "`x < low` -> `x <= low`", "`return -x` -> `return None`", "`-x` -> `x`",
    "`return x` -> `return None`",
}  # fmt: skip


def test_every_mistake_is_one_and_made_alone(tmp_path):
    (tmp_path / "a.py").write_text(SOURCE)
    found = mutants(tmp_path, "a.py")
    assert {mutant.text for mutant in found} == EXPECTED
    made = [mutate(tmp_path, mutant) for mutant in found]
    assert len({*made, instrument(SOURCE, "a.py")}) == len(EXPECTED) + 1
    changed = {}
    exec(made[[mutant.text for mutant in found].index("`x < low` -> `x <= low`")], changed)  # noqa: S102
    assert [changed["clip"](x) for x in (2, 3, 4)] == [-2, -3, 4]


def test_statements_say_that_they_are_reached(monkeypatch):
    lines, names = [], {}
    monkeypatch.setattr(builtins, "__reached__", lambda file, *span: lines.append(span), raising=False)
    exec(instrument(SOURCE, "a.py"), names)  # noqa: S102
    assert lines == [(2, 2), (5, 5)]
    names["clip"](5)
    assert lines[2:] == [(7, 7), (9, 9), (11, 11)]


def test_tests_that_reach_a_line_come_quickest_first_within_the_time(tmp_path):
    (tmp_path / "a.py").write_text(SOURCE)
    found = mutants(tmp_path, "a.py")
    last = next(mutant for mutant in found if mutant.text == "`return x` -> `return None`")
    default = next(mutant for mutant in found if mutant.text == "`3` -> `4`")
    reach = {
        "": (0.0, {"a.py": {2, 5}}),
        "slow": (3.0, {"a.py": {7, 9, 11}}),
        "quick": (1.0, {"a.py": {7, 11}}),
        "other": (0.5, {"a.py": {7}, "b.py": {11}}),
        "none": (0.1, {"b.py": {5, 7, 11}}),
    }
    assert reaching(last, reach, 4) == ["quick", "slow"]
    assert reaching(last, reach, 3.9) == ["quick"]
    assert reaching(default, reach, 9) == ["other", "quick", "slow", *DECLARED]


def test_a_sample_has_its_share_of_every_file(tmp_path):
    for name, times in (("a", 1), ("b", 5)):
        (tmp_path / f"{name}.py").write_text("\n".join(SOURCE.replace("clip", f"clip{i}") for i in range(times)))
    found = [mutant for name in "ab" for mutant in mutants(tmp_path, f"{name}.py")]
    picked = sample(found, 12, seed=1)
    assert [sum(mutant.file == f"{name}.py" for mutant in picked) for name in "ab"] == [2, 10]
    assert picked == sample(found, 12, seed=1) != sample(found, 12, seed=2)
    assert sample(found, 1000, seed=1) == sorted(found)
