"""Adds to the documentation site what lies outside of docs/: some pages, and the sources.

The folders ``methods``, ``bench`` and ``leaderboard`` at the root are subpackages of
``quantarena``. mkdocstrings reads sources without importing them, so it gets a copy of them in the
layout of that package.
"""

import shutil
import tempfile
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files
from site_pages import FILES, PAGES, ROOT, site_text

_SOURCES = tempfile.TemporaryDirectory(prefix="quantarena-docs-")
"""A folder that disappears with the process, after a failed build too."""


@event_priority(100)  # before mkdocstrings reads its paths
def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Copies the sources to where mkdocstrings finds them as ``quantarena``."""
    package = Path(_SOURCES.name, "quantarena")
    package.mkdir(exist_ok=True)
    shutil.copy(ROOT / "bench" / "_root" / "__init__.py", package)
    for folder in ("bench", "methods", "leaderboard"):
        for file in sorted((ROOT / folder).rglob("*.py")):
            copy = package / file.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, copy)
    pages = sorted((ROOT / "docs" / "methods").glob("*.md"))
    entries = [{_title(page): f"methods/{page.name}"} for page in pages]
    for section in config.nav or []:
        if "Methods" in section:
            section["Methods"] = entries
    python: dict[str, Any] = config.plugins["mkdocstrings"].config.handlers["python"]
    python["paths"] = [_SOURCES.name]
    return config


def _title(page: Path) -> str:
    """The part of a page's first heading before a bracket or a colon."""
    heading = page.read_text(encoding="utf-8").splitlines()[0].lstrip("# ")
    return heading.split("(")[0].split(":")[0].strip()


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages and files of ``site_pages``."""
    for source, page in PAGES.items():
        files.append(File.generated(config, page, content=site_text(source)))
    for source, target in FILES.items():
        files.append(File.generated(config, target, abs_src_path=str(ROOT / source)))
    return files
