"""quantarena: compare quantization methods for diffusion models on real packed kernels."""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from quantarena.bench.ship.pipeline_folder import load_pipeline

try:
    __version__ = version("quantarena")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+unknown"

__all__ = ["__version__", "load_pipeline"]


def __getattr__(name: str) -> Any:
    """``load_pipeline``, imported when it is asked for: it needs torch."""
    if name == "load_pipeline":
        return import_module("quantarena.bench.ship.pipeline_folder").load_pipeline
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
