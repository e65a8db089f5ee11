"""quantarena: compare quantization methods for diffusion models on real packed kernels."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("quantarena")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+unknown"

__all__ = ["__version__"]
