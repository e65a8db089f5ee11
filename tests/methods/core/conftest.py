import pytest
import torch
from torch import Tensor

from quantarena.methods.core.kernels import formats, native
from quantarena.methods.core.kernels.formats import IntegerLayer


def random_layer(
    shape: tuple[int, ...],
    weight_bits: int,
    act_bits: int,
    *,
    seed: int = 0,
    asymmetric: bool = False,
    codes: str = "normal",
    steps: int = 0,
    multiplier: bool = False,
    groups: int = 1,
    bias: bool = True,
    **geometry: tuple[int, int],
) -> IntegerLayer:
    """A layer with codes ``normal``, ``uniform``, ``low``, ``high`` or ``extreme`` (either end)."""
    make = torch.Generator().manual_seed(seed)
    low, high = formats.code_range(weight_bits)
    if codes == "normal":
        values = (torch.randn(shape, generator=make) * (high + 1) / 3).round().clamp(low, high)
    elif codes == "uniform":
        values = torch.randint(low, high + 1, shape, generator=make)
    else:
        either = torch.rand(shape, generator=make) < 0.5
        values = torch.where(either, low, high)
        if codes in ("low", "high"):
            values = torch.full(shape, low if codes == "low" else high)
    out, top = shape[0], (1 << act_bits) - 1
    table = (steps,) if steps else ()
    zero = torch.randint(low, high + 1, (out,), generator=make) if asymmetric else torch.zeros(out)
    return IntegerLayer(
        kind="linear" if len(shape) == 2 else "conv2d",
        weight_codes=values.to(torch.int8),
        weight_bits=weight_bits,
        weight_scale=torch.rand(out, generator=make) * 0.1 + 0.01,
        weight_zero=zero.to(torch.int32),
        act_bits=act_bits,
        act_scale=torch.rand(table, generator=make) * 6 / top + 0.01,
        act_zero=torch.randint(0, top + 1, table, generator=make),
        in_mult=torch.rand(shape[1] * groups, generator=make) + 0.5 if multiplier else None,
        bias=torch.randn(out, generator=make) if bias else None,
        groups=groups,
        **geometry,
    )


def random_input(shape: tuple[int, ...], seed: int = 1, extreme: bool = False) -> Tensor:
    """Normal values, or only values that saturate the quantizer at either end."""
    make = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=make) * 3
    return torch.where(x > 0, 1e9, -1e9) if extreme else x


def isa_names() -> list[str]:
    """Instruction sets of this machine; the reference where nothing was built."""
    return list(native.load().status.available) or ["reference"]


@pytest.fixture(params=isa_names())
def library(request: pytest.FixtureRequest) -> native.Library:
    return native.load(request.param)


@pytest.fixture
def make_layer():
    return random_layer


@pytest.fixture
def make_input():
    return random_input


@pytest.fixture(autouse=True)
def one_thread():
    """Small jobs on a shared machine lose to their own thread pool."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
