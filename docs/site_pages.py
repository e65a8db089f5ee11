"""The pages of the documentation site whose text is a file outside of docs/, and their links."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
_CARDS = sorted((ROOT / "bench" / "workloads" / "zoo").glob("*/README.md"))

PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "examples/plugin-package/README.md": "examples/plugin-package.md",
    **{card.relative_to(ROOT).as_posix(): f"models/{card.parent.name}.md" for card in _CARDS},
}
"""Pages of the site by the file in the repository that holds their text."""

FILES = {
    "CITATION.cff": "CITATION.cff",
    **{
        card.with_name("samples.png").relative_to(ROOT).as_posix(): f"models/{card.parent.name}.png"
        for card in _CARDS
    },
}
"""Files of the site by the file in the repository that is copied there."""

_LINK = re.compile(r"\]\(([^)#\s]+)(#[^)\s]*)?\)")
_FRONT_MATTER = re.compile(r"\A---\n.*?\n---\n", re.DOTALL)


def site_text(source: str) -> str:
    """The text of a page of ``PAGES``, with its links as the site needs them.

    Args:
        source: path of the file in the repository.
    """
    text = _FRONT_MATTER.sub("", (ROOT / source).read_text(encoding="utf-8"))
    to_root = "../" * PAGES[source].count("/")

    def moved(match: re.Match[str]) -> str:
        target, anchor = match.group(1), match.group(2) or ""
        if "://" in target:
            return match.group()
        inside = (Path(source).parent / target).as_posix()
        place = PAGES.get(inside) or FILES.get(inside) or inside.removeprefix("docs/")
        return f"]({to_root}{place}{anchor})"

    return _LINK.sub(moved, text)
