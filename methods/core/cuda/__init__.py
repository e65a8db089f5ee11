"""The CUDA backend, in Triton: same formats and same oracle as the native kernels.

Importing this package needs neither Triton nor a GPU; ``layer`` needs Triton.  With
``TRITON_INTERPRET=1`` in the environment before Triton is first imported, everything but CUDA
graphs runs on CPU tensors, slowly, which is how the kernels are tested without a GPU.
"""

from quantarena.methods.core.cuda.device import Status, status

__all__ = ["Status", "status"]
