"""Ways to damage a file or a document, the same ones at every run."""

import copy
import json
import os
import random

DEEP = "[" * 200_000
FOREIGN = ("x", "", None, [], {}, [[]], 1e308, -1e308, -1, 0, True, 2**70, 10**400, "\ud800", "\0")
"""Values that take the place of a value of another type or size."""


def cut(data, count, seed=0):
    """The data, truncated at several places."""
    rng = random.Random(seed)
    return [data[: rng.randrange(len(data))] for _ in range(count)]


def flipped(data, count, seed=0):
    """The data with one byte changed."""
    rng, copies = random.Random(seed), []
    for _ in range(count):
        place = rng.randrange(len(data))
        copies.append(
            data[:place] + bytes([data[place] ^ (1 << rng.randrange(8))]) + data[place + 1 :]
        )
    return copies


def paths_of(document, path=()):
    """The path to each value inside a document."""
    children = ()
    if isinstance(document, dict):
        children = document.items()
    elif isinstance(document, list):
        children = enumerate(document)
    for name, child in children:
        yield (*path, name)
        yield from paths_of(child, (*path, name))


def with_value(document, path, value):
    """A copy of the document with another value at a path."""
    changed = copy.deepcopy(document)
    place = changed
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] = value
    return changed


def foreign(document, count, seed=0):
    """Copies of the document, each with one value of another type or size."""
    rng = random.Random(seed)
    places = list(paths_of(document))
    return [with_value(document, rng.choice(places), rng.choice(FOREIGN)) for _ in range(count)]


EXTREMES = {
    float: (1e308, -1e308, 1e-308, 0.0, -1.0),
    int: (0, -1, 2**62, -(2**62)),
    str: ("", "\0", "\ud800", "x" * 5000, "<script>", "../../x", "a\nb", "w99a99"),
    bool: (True, False),
}
"""Values of the same type that no program of ours writes."""


def extreme(document, count, seed=0):
    """Copies of the document, each with one value that has the right type and no sense."""
    rng = random.Random(seed)
    leaves = []
    for path in paths_of(document):
        value = document
        for name in path:
            value = value[name]
        leaves += [(path, type(value))] if type(value) in EXTREMES else []
    chosen = (rng.choice(leaves) for _ in range(count))
    return [with_value(document, path, rng.choice(EXTREMES[kind])) for path, kind in chosen]


def texts(document):
    """JSON texts that no program of ours writes."""
    plain = json.dumps(document)
    return [
        b"",
        b"\0" * 100,
        b"\xff\xfe",
        DEEP.encode(),
        ('{"a":' * 100_000).encode(),
        b"NaN",
        b"[]",
        b'"text"',
        plain.replace("0", "Infinity").encode(),
        plain.replace("0", "1e999").encode(),
        plain.replace("0", "9" * 5000).encode(),
        plain.encode("utf-16"),
    ]


def not_a_file(path, kind):
    """Put a pipe, a folder or a link to itself in the place of a file."""
    path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(path)


NOT_FILES = ("pipe", "folder", "loop")
