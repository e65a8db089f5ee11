import pytest
import torch

from quantarena.methods.core.kernels import native


def isa_names() -> list[str]:
    """Instruction sets of this machine; the reference where nothing was built."""
    return list(native.load().status.available) or ["reference"]


@pytest.fixture(params=isa_names())
def library(request: pytest.FixtureRequest) -> native.Library:
    return native.load(request.param)


@pytest.fixture(autouse=True)
def one_thread():
    """Small jobs on a shared machine lose to their own thread pool."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
