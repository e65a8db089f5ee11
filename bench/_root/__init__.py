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

register_with_diffusers()


def __getattr__(name: str) -> Any:
    """Names that need torch, imported when they are asked for."""
    if name == "QuantArenaConfig":
        return import_module("quantarena.bench.ship.diffusers_quantizer").QuantArenaConfig
    if name == "load_pipeline":
        return import_module("quantarena.bench.ship.pipeline_folder").load_pipeline
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
