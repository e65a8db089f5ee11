import errno
import subprocess
import sys

import numpy as np
import pytest
import torch

from quantarena.bench.errors import (
    BrokenModel,
    UnknownName,
    Unsupported,
    UserError,
    did_you_mean,
    first_line,
    one_line,
    out_of_memory,
)


def test_messages_are_one_line():
    assert str(UserError("cannot\n   read\tit")) == "cannot read it"


def test_what_is_a_users_mistake():
    assert issubclass(UnknownName, UserError)
    assert issubclass(BrokenModel, UserError)
    assert not issubclass(Unsupported, UserError)


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("rtm", "did you mean rtn?"),
        ("Q-Diffusion", "did you mean q_diffusion?"),
        ("qdiffusion", "did you mean q_diffusion?"),
        ("zzz", "known: fp, q_diffusion, rtn"),
    ],
)
def test_near_names(name, near):
    assert did_you_mean(name, ["rtn", "fp", "q_diffusion"]).startswith(near)


def test_no_names_at_all():
    assert did_you_mean("x", []) == "none are known"


def test_an_unexpected_error_in_one_line():
    with pytest.raises(ValueError, match="first") as caught:
        raise ValueError("first\nsecond")
    assert one_line(caught.value).startswith("ValueError: first second (test_errors.py:")


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("one\ntwo"), "one"),
        (ValueError("\n one"), "one"),
        (MemoryError(), "MemoryError"),
    ],
)
def test_the_first_line_of_a_message(error, line):
    assert first_line(error) == line


def raised(call):
    with pytest.raises(Exception) as caught:  # noqa: PT011, whichever a library has for it
        call()
    return caught.value


@pytest.mark.parametrize(
    "error",
    [
        raised(lambda: torch.empty(1 << 58, dtype=torch.uint8)),
        raised(lambda: np.empty(1 << 55)),
        MemoryError(),
        torch.OutOfMemoryError("the card is full"),
        OSError(errno.ENOMEM, ""),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"),
        RuntimeError("unable to mmap 80 bytes from file <x>: Cannot allocate memory (12)"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_memory_that_ran_out_is_seen_whoever_says_it(error):
    assert out_of_memory(error)


@pytest.mark.parametrize(
    "error",
    [
        ValueError("one"),
        RuntimeError("size mismatch"),
        OSError(errno.ENOSPC, "No space left on device"),
        UserError("the option memory: out of memory is no value"),
    ],
)
def test_other_errors_are_none_of_memory(error):
    assert not out_of_memory(error)


def test_the_errors_load_without_torch():
    code = "import sys, quantarena.bench.errors; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
