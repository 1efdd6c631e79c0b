"""What `python run.py --help` says: read from conf/ without composing it, so without torch."""

from __future__ import annotations

import re
from pathlib import Path

__all__ = ["help_text"]

CONF = Path(__file__).parents[2] / "conf"
KEY = re.compile(r"^(\w+): *([^#]*?) *(?:# *(.*))?$")


def help_text(said: str, conf: Path = CONF) -> str:
    """What the program says of itself, the choices of every group, and the keys of a run with their defaults."""
    lines = [said.rstrip(), "", "Groups (group=choice):"]
    groups = sorted(folder for folder in conf.iterdir() if folder.is_dir())
    wide = max(len(folder.name) for folder in groups)
    for folder in groups:
        lines.append(f"    {folder.name:<{wide}}  {', '.join(sorted(path.stem for path in folder.glob('*.yaml')))}")
    lines += ["", "Keys (key=value; null is what the backend recommends):"]
    keys = [
        found for line in (conf / "config.yaml").read_text().splitlines() if (found := KEY.match(line)) and found[2]
    ]
    wide = max(len(f"{found[1]}={found[2]}") for found in keys)
    lines += [f"    {f'{found[1]}={found[2]}':<{wide}}  {found[3] or ''}".rstrip() for found in keys]
    lines += ["", "Keys of a group: python run.py --cfg job. Hydra's own flags: python run.py --hydra-help."]
    return "\n".join(lines)
