"""The arena's engines by name."""

from collections.abc import Callable, Mapping

from quantarena.leaderboard.arena.engines.joint import joint_engine
from quantarena.leaderboard.arena.engines.ksort import ksort_engine
from quantarena.leaderboard.arena.engines.protocols import Engine

DEFAULT = "joint"
ENGINES: Mapping[str, Callable[[], Engine]] = {"joint": joint_engine, "ksort": ksort_engine}


def engine(name: str = DEFAULT) -> Engine:
    """A fresh engine.

    Raises:
        KeyError: there is none of this name; the message names those that there are.
    """
    if name not in ENGINES:
        raise KeyError(f"no engine {name}: choose {' or '.join(ENGINES)}")
    return ENGINES[name]()
