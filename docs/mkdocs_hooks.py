"""Adds to the documentation site what lies outside of docs/: some pages, and the sources.

The folders ``methods``, ``bench`` and ``leaderboard`` at the root are subpackages of
``quantarena``. mkdocstrings reads sources without importing them, so it gets a copy of them in the
layout of that package.
"""

import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
ZOO = Path("bench/workloads/zoo")
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    **{
        f"{ZOO}/{card.parent.name}/README.md": f"models/{card.parent.name}.md"
        for card in sorted((ROOT / ZOO).glob("*/README.md"))
    },
}
"""Pages of the site by the file in the repository that holds their text."""

_LINK = re.compile(r"\]\(([^)#\s]+)(#[^)\s]*)?\)")


@event_priority(100)  # before mkdocstrings reads its paths
def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Copies the sources to where mkdocstrings finds them as ``quantarena``."""
    sources = Path(tempfile.mkdtemp(prefix="quantarena-docs-"))
    package = sources / "quantarena"
    package.mkdir()
    shutil.copy(ROOT / "bench" / "_root" / "__init__.py", package)
    for folder in ("bench", "methods", "leaderboard"):
        for file in sorted((ROOT / folder).rglob("*.py")):
            copy = package / file.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, copy)
    for folder in [path for path in package.rglob("*") if path.is_dir()]:
        (folder / "__init__.py").touch()  # a namespace package is invisible to mkdocstrings
    python: dict[str, Any] = config.plugins["mkdocstrings"].config.handlers["python"]
    python["paths"] = [str(sources)]
    config["quantarena_sources"] = sources
    return config


def on_post_build(config: MkDocsConfig) -> None:
    """Removes the copy of the sources."""
    shutil.rmtree(config["quantarena_sources"], ignore_errors=True)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages of files outside of docs/, and what they link to."""
    for source, page in PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=site_links(text, Path(source))))
    files.append(_copied(config, ROOT / "CITATION.cff", "CITATION.cff"))
    for picture in sorted((ROOT / ZOO).glob("*/samples.png")):
        files.append(_copied(config, picture, f"models/{picture.parent.name}-samples.png"))
    return files


def site_links(text: str, source: Path) -> str:
    """``text`` of a repository file with its links as the site needs them.

    Args:
        text: Markdown.
        source: its path in the repository.
    """
    page = Path(PAGES[str(source)])

    def link(match: re.Match[str]) -> str:
        target, anchor = match.group(1), match.group(2) or ""
        if "://" in target:
            return match.group()
        inside = (source.parent / target).as_posix()
        if inside in PAGES:
            target = PAGES[inside]
        elif inside.startswith("docs/"):
            target = inside.removeprefix("docs/")
        elif target == "samples.png":
            target = f"models/{source.parent.name}-samples.png"
        return f"]({'../' * (len(page.parts) - 1)}{target}{anchor})"

    text = re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.DOTALL)
    return _LINK.sub(link, text)


def _copied(config: MkDocsConfig, source: Path, target: str) -> File:
    return File.generated(config, target, abs_src_path=str(source))
