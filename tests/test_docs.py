"""The documentation names only files, modules and links that exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
LONGEST = 125
"""Characters of a line; rows of tables cannot be wrapped and may be longer."""
PACKAGE = ("methods", "bench", "leaderboard")
"""Folders that hold subpackages of ``quantarena``."""

FILE = re.compile(r"`((?:methods|bench|leaderboard|tests|docs)/[\w./-]+\.\w+)`")
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)\s]*)?\)")
MODULE = re.compile(r"quantarena((?:\.\w+)+)")


def name(page):
    return str(page.relative_to(ROOT))


def exists(module):
    """Whether ``.methods.api``, or the module of ``.methods.api.Method``, is there."""
    parts = module.strip(".").split(".")
    if parts[0] not in PACKAGE:
        return True
    for end in (len(parts), len(parts) - 1):
        path = ROOT.joinpath(*parts[:end])
        if path.with_suffix(".py").is_file() or (end == len(parts) and path.is_dir()):
            return True
    return False


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_files_exist(page):
    files = {file for file in FILE.findall(page.read_text()) if "mine" not in Path(file).stem}
    assert sorted(file for file in files if not (ROOT / file).exists()) == []


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_inside_the_repository_lead_somewhere(page):
    targets = [t for t in LINK.findall(page.read_text()) if "://" not in t]
    assert [target for target in targets if not (page.parent / target).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_modules_exist(page):
    assert [module for module in MODULE.findall(page.read_text()) if not exists(module)] == []


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_lines_are_short(page):
    lines = [line for line in page.read_text().splitlines() if not line.startswith("|")]
    assert [line for line in lines if len(line) > LONGEST] == []


def test_new_paths_in_the_changelog_exist():
    rows = re.findall(r"^\|[^|]*\|[^|]*\| ([^|]*) \|$", (ROOT / "CHANGELOG.md").read_text(), re.M)
    modules = [module for row in rows for module in re.findall(r"`(\w+(?:\.\w+)+)`", row)]
    assert len(modules) > 150
    assert [module for module in modules if not exists(module)] == []


def test_hooks_have_the_linter_of_the_constraints():
    pinned = re.search(r"^ruff==(.*)$", (ROOT / "constraints.txt").read_text(), re.M)
    hook = re.search(
        r"ruff-pre-commit\n\s*rev: v(.*)", (ROOT / ".pre-commit-config.yaml").read_text()
    )
    assert pinned is not None
    assert hook is not None
    assert pinned[1] == hook[1]
