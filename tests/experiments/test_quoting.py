"""Values that Hydra's grammar cannot read are said with the character and how to quote it."""

import pytest

from experiments.config.compose import compose, quoting
from experiments.errors import ConfigError


@pytest.mark.parametrize(("value", "letter", "place"), [("a=b.txt", "=", 2), ("caf\u00e9.txt", "\u00e9", 4)])
def test_the_character_and_the_quotes_are_said(value, letter, place):
    with pytest.raises(ConfigError) as said:
        compose(["backend=emoji", f"backend.prompts={value}"])
    line = f"backend.prompts: must be quoted because of {letter!r}, its character {place}"
    assert str(said.value).startswith(line) and f"'backend.prompts=\"{value}\"'" in str(said.value)


def test_other_values_are_not_blamed_on_quoting():
    assert quoting("a=b") == quoting("a=[1,2") == quoting("a") == quoting("a='b") == ""
