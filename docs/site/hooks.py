"""Hooks of the documentation's build: a page per module of the library, and links that leave docs/.

Every module of `hicache` that says what it offers (`__all__`) gets a page `api/<module>.md`, written by mkdocstrings
from its docstrings, so no list of modules has to be kept. Links to files outside docs/ (`../results/...`) cannot be
followed on the site: they become the file's name, and one whose file is missing is an error of the build.
"""

from __future__ import annotations

import ast
import logging
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
LINK = re.compile(r"!?\[([^\]]*)\]\((\.\./[^)#\s]+)(?:#[^)]*)?\)")
log = logging.getLogger("mkdocs.hooks")


def modules() -> list[str]:
    """The modules of the library with an `__all__`, by dotted name."""
    found = []
    for path in sorted((ROOT / "hicache").rglob("*.py")):
        names = [
            target.id
            for node in ast.parse(path.read_text()).body
            if isinstance(node, ast.Assign)
            for target in node.targets
            if isinstance(target, ast.Name)
        ]
        if "__all__" in names:
            found.append(".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"))
    return found


def on_files(files: Files, config: Any) -> Files:
    """Add the pages of the API reference, and their part of the navigation."""
    names = modules()
    pages = [{name: f"api/{name}.md"} for name in names]
    config["nav"] = [entry for entry in config["nav"] if "API" not in entry] + [{"API": pages}]
    for name in names:
        options = "    options: { members: false }\n" if name == "hicache" else ""
        files.append(File.generated(config, f"api/{name}.md", content=f"# {name}\n\n::: {name}\n{options}"))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Links to files of the checkout become their names."""

    def name(match: re.Match[str]) -> str:
        target = (Path(page.file.abs_src_path).parent / match[2]).resolve()
        if not target.exists():
            log.warning("%s: a link to %s, which does not exist", page.file.src_path, match[2])
        return f"{match[1]} (`{target.relative_to(ROOT)}`)"

    return LINK.sub(name, markdown)
