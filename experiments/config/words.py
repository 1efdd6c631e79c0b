"""What of a command line can be refused before Hydra reads it, in our one line instead of its usage text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from experiments.config.compose import check_override
from experiments.errors import check
from experiments.files import ensure_writable

__all__ = ["FLAGS", "check_words", "expand_compare"]

FLAGS = {
    **dict.fromkeys(("-h", "--help", "--hydra-help", "--version", "--resolve", "-r", "--run", "-m", "--multirun"), 0),
    **dict.fromkeys(("-sc", "--shell-completion"), 0),
    **dict.fromkeys(("-c", "--cfg", "-p", "--package", "-i", "--info", "-cn", "--config-name"), 1),
    **dict.fromkeys(("-cp", "--config-path", "-cd", "--config-dir", "--experimental-rerun"), 1),
}
"""Hydra's own words -> how many words follow them; `--info` may stand alone."""

FOLDERS = ("hydra.sweep.dir", "hydra.run.dir")
"""Where Hydra writes."""


def expand_compare(words: Sequence[str]) -> tuple[list[str], bool]:
    """The command line with `compare=a,b,...` as the sweep that it means (`-m method=a,b,...`), and whether it had it.

    Raises:
        ConfigError: for fewer than two methods, or a method beside it.
    """
    given = [word for word in words if word.startswith("compare=")]
    if not given:
        return list(words), False
    names = given[0].partition("=")[2].split(",")
    check(len(given) == 1 and len(set(names)) > 1, "compare", "must name two methods or more", ",".join(names))
    rest = [word for word in words if word not in (*given, "-m", "--multirun")]
    beside = [word for word in rest if word.startswith("method=")]
    check(not beside, "method", "must not stand beside compare=", beside)
    for name in names:
        check_override(f"method={name}")
    return ["-m", f"method={','.join(names)}", *rest], True


def check_words(words: Sequence[str]) -> list[str]:
    """Refuse flags that are none, values that are none of their group, folders that cannot be, a search without an aim.

    Returns the words with the flags last, because Hydra takes overrides only where they stand together.

    Raises:
        ConfigError: naming the word.
    """
    searching = any(word.startswith("hydra/sweeper=") and not word.endswith("=basic") for word in words)
    named = any(word.startswith("metrics.objective=") for word in words)
    check(named or not searching, "metrics.objective", "must name the metric that the sweeper optimises", None)
    rest, overrides, flags = list(words), list[str](), list[str]()
    while rest:
        word = rest.pop(0)
        if word.startswith("-"):
            flags.append(word)
            flag, equals, value = word.partition("=")
            check(flag in FLAGS, "argument", "must be key=value, or one of those in --hydra-help", word)
            if FLAGS[flag] and not equals and rest and "=" not in rest[0]:
                flags.append(value := rest.pop(0))
            if flag in ("-cd", "--config-dir"):
                check(Path(value).is_dir(), flag, "must be a folder", value)
            continue
        key, _, value = word.lstrip("+").partition("=")
        if key in FOLDERS and value and "$" not in value:
            ensure_writable(Path(value.strip("'\"")), key)
        check_override(word)
        overrides.append(word)
    return [*overrides, *flags]
