"""The table of a method's options on its page in docs/methods, written from the code.

``python -m quantarena.methods.option_table docs/methods`` brings every page up to date.
"""

import re
import sys
from pathlib import Path

from quantarena.methods.builtin import builtins
from quantarena.methods.options import MethodOptions, describe
from quantarena.methods.registry import entry

HEADING = "## Options\n\n"
START, END = "<!-- options: written by quantarena.methods.option_table -->", "<!-- /options -->"


def option_table(method: str, kind: type[MethodOptions]) -> str:
    """A Markdown table of a method's options, between its markers."""
    rows = [
        f"| `{o.name}` | {o.values} | `{o.default}` | {o.description} |" for o in describe(kind)
    ]
    head = f"| `--option {method}.NAME=VALUE` | values | default | meaning |"
    return "\n".join([START, head, "|---|---|---|---|", *rows, END])


def updated(page: str, method: str) -> str:
    """A page with its table of options replaced, or put under its heading where there is none."""
    table = option_table(method, entry(method).method.Options)
    if START not in page:
        return page.replace(HEADING, f"{HEADING}{table}\n\n", 1)
    pattern = re.escape(START) + ".*?" + re.escape(END)
    return re.sub(pattern, lambda _: table, page, flags=re.DOTALL)


def main(folder: Path) -> None:
    """Bring the page of every built-in method in ``folder`` up to date."""
    for name in builtins():
        page = folder / f"{name}.md"
        if page.is_file():
            page.write_text(updated(page.read_text(encoding="utf-8"), name), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
