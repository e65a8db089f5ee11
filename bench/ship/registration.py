"""Tells diffusers about our quantizer, without importing diffusers.

diffusers finds quantizers in two tables of ``diffusers.quantizers.auto`` and has no entry points.
Where that module is imported already, the tables get our entries at once. Otherwise a finder waits
for the import, and adds them when the module has run. Neither imports torch here.
"""

import importlib.machinery
import pkgutil
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

TABLES = "diffusers.quantizers.auto"
METHOD = "quantarena"
QUANTIZER = "quantarena.bench.ship.diffusers_quantizer"


class _Waiting(MetaPathFinder):
    """Finds one module as Python would, and registers the quantizer after it has run."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """See ``MetaPathFinder``; None for every other module."""
        if fullname != TABLES:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            _add(module)

        # On this one loader object, so that whoever asks for a source or a path still gets it.
        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def register_with_diffusers() -> None:
    """Make ``from_pretrained`` know ``quant_method: quantarena``; a second call does nothing."""
    tables = sys.modules.get(TABLES)
    if tables is not None and hasattr(tables, "AUTO_QUANTIZER_MAPPING"):
        _add(tables)
    elif not any(type(finder).__name__ == _Waiting.__name__ for finder in sys.meta_path):
        sys.meta_path.insert(0, _Waiting())


def _add(tables: ModuleType) -> None:
    ours = sys.modules.get(QUANTIZER)
    if ours is not None and not hasattr(ours, "QuantArenaQuantizer"):
        return  # its own import led here; it registers itself when it has run
    # By name: every module is below the package that calls this, and an import would put all that
    # diffusers is told into the key of every stage. No stage loads networks through these tables.
    ours = pkgutil.resolve_name(QUANTIZER)
    tables.AUTO_QUANTIZER_MAPPING[METHOD] = ours.QuantArenaQuantizer
    tables.AUTO_QUANTIZATION_CONFIG_MAPPING[METHOD] = ours.QuantArenaConfig
