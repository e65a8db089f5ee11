"""The CUDA backend in Triton, with the formats and the oracle of the native kernels.

Importing this package needs neither Triton nor a GPU; importing ``layer`` needs Triton. With
``TRITON_INTERPRET=1`` in the environment before Triton is first imported, everything but CUDA
graphs runs on CPU tensors, slowly; so the kernels are tested without a GPU.
"""

from quantarena.methods.core.cuda.device import CudaStatus, status

__all__ = ["CudaStatus", "status"]
