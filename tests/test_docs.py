"""The documentation names only files, modules and links that exist."""

import ast
import importlib.util
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


CODE = re.compile(r"```(?:python|py)\n(.*?)```", re.DOTALL)


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


def bound(file):
    """The names that a module binds when it is imported, those that it imports included."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom | ast.Import):
            names |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
    return names


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_code_imports_names_that_exist(page):
    missing = []
    for block in CODE.findall(page.read_text()):
        for node in ast.walk(ast.parse(block)):
            if not isinstance(node, ast.ImportFrom) or "quantarena." not in f"{node.module}":
                continue
            path = ROOT.joinpath(*str(node.module).split(".")[1:])
            file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
            missing += [
                f"{node.module}.{alias.name}"
                for alias in node.names
                if alias.name not in bound(file) and not path.joinpath(f"{alias.name}.py").exists()
            ]
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_lines_are_short(page):
    lines = [line for line in page.read_text().splitlines() if not line.startswith("|")]
    assert [line for line in lines if len(line) > LONGEST] == []


@pytest.fixture(scope="module")
def site():
    spec = importlib.util.spec_from_file_location("site_pages", ROOT / "docs" / "site_pages.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_pages_of_the_site_from_outside_of_docs_link_to_its_pages(site):
    placed = {*site.PAGES.values(), *site.FILES.values()}
    targets = []
    for source, page in site.PAGES.items():
        at = (ROOT / "docs" / page).parent
        targets += [at / t for t in LINK.findall(site.site_text(source)) if "://" not in t]
    inside = {target.resolve().relative_to(ROOT / "docs").as_posix() for target in targets}
    assert {"design.md", "contributing.md", "models/emoji-dit.md", "CITATION.cff"} <= inside
    assert sorted(t for t in inside - placed if not (ROOT / "docs" / t).exists()) == []


def test_site_text_is_the_readme_but_for_its_links(site):
    readme = (ROOT / "README.md").read_text()
    assert LINK.sub("", site.site_text("README.md")) == LINK.sub("", readme)


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
