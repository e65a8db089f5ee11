"""quantarena: compare quantization methods for diffusion models on real packed kernels.

Importing it lets diffusers' ``from_pretrained`` load networks that quantarena packed. It imports
neither torch nor diffusers.
"""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from quantarena.bench.ship.registration import register_with_diffusers

if TYPE_CHECKING:
    from quantarena.bench.ship.diffusers_quantizer import QuantArenaConfig
    from quantarena.bench.ship.pipeline_folder import load_pipeline

try:
    __version__ = version("quantarena")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+unknown"

__all__ = ["QuantArenaConfig", "__version__", "load_pipeline"]

_LATE = {
    "QuantArenaConfig": "quantarena.bench.ship.diffusers_quantizer",
    "load_pipeline": "quantarena.bench.ship.pipeline_folder",
}
"""Names that need torch, and the modules that define them; imported when they are asked for."""

register_with_diffusers()


def __getattr__(name: str) -> Any:
    """The names in ``_LATE``."""
    if name in _LATE:
        return getattr(import_module(_LATE[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
