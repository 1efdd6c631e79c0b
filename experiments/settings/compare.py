"""To compare with another program, set these options.

    python -m experiments compare                 print the settings
    python -m experiments compare --markdown      write docs/compare.md

Program by program, the settings under which a run here computes what that program does.
"""

from __future__ import annotations

import sys
from pathlib import Path

from experiments.cli import Exit
from experiments.files import write_text
from experiments.settings.compared import LINES, PeerSetting
from experiments.settings.zoo import compared_table, table

__all__ = ["command", "main", "markdown"]

PAGE = Path(__file__).parents[2] / "docs" / "compare.md"


def command(line: PeerSetting) -> str:
    """The command line of a comparison."""
    quoted = [f"'{word}'" if any(c in word for c in "{[") else word for word in line.overrides]
    return " ".join(["python run.py", f"backend={line.backend}", *quoted])


def markdown() -> str:
    """The page docs/compare.md."""
    rows = [[line.peer, f"`{command(line)}`", "yes" if line.golden else "", line.note] for line in LINES]
    return (
        "\n\n".join(
            [
                "# Beside other programs",
                "Written by `python -m experiments compare --markdown`; a test checks that it is current, and each "
                "line of settings has a test. *Stored*: `tests/golden` has tensors that the other program computed, "
                "and ours at this setting are equal to them.",
                "## To compare with ..., set ...",
                table(["program", "settings", "stored", "note"], rows),
                "## Every method beside its authors' program",
                compared_table(),
            ]
        )
        + "\n"
    )


def main(arguments: list[str]) -> None:
    """Print the settings, or write the page."""
    if "--markdown" in arguments:
        write_text(PAGE, markdown())
        print(f"written: {PAGE}")
        return
    for line in LINES:
        print(f"{line.peer}\n    {command(line)}" + (f"\n    {line.note}" if line.note else ""), end="\n\n")


if __name__ == "__main__":
    outcome = Exit()
    outcome.guard(lambda: main(sys.argv[1:]))
    sys.exit(outcome.code)
