"""The state of the process around one piece of work: fixed before it, restored after it.

A method is foreign code. It may change torch's default dtype, the number of threads, a random
generator, the working directory, the environment or the warning filters. None of that may reach the
next cell, whose numbers would then depend on what ran before it in the same process.
"""

import contextlib
import os
import random
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np

THREADS = 1
"""Torch's CPU threads in every stage: one thread sums in one order, on every machine."""


@contextlib.contextmanager
def process_state(threads: int = THREADS) -> Iterator[None]:
    """Run the block on ``threads`` torch threads, and restore the state of the process after it.

    Restored are torch's number of threads, default dtype, gradient mode and deterministic mode; the
    global random generators of Python, numpy and torch; the warning filters; the working directory
    and the environment. The block starts in fp32 with gradients enabled, whatever held before.

    Torch is imported by this function, not by the module.
    """
    import torch

    with contextlib.ExitStack() as stack:
        stack.callback(_restore_torch, _torch_state())
        stack.callback(random.setstate, random.getstate())
        stack.callback(np.random.set_state, np.random.get_state())
        stack.enter_context(torch.random.fork_rng(devices=[]))
        stack.enter_context(warnings.catch_warnings())
        stack.callback(_restore_environment, dict(os.environ))
        stack.callback(_restore_folder, _folder())
        torch.set_num_threads(threads)
        torch.set_default_dtype(torch.float32)
        torch.set_grad_enabled(True)
        yield


def _torch_state() -> dict[str, Any]:
    import torch

    return {
        "threads": torch.get_num_threads(),
        "dtype": torch.get_default_dtype(),
        "grad": torch.is_grad_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "warn_only": torch.is_deterministic_algorithms_warn_only_enabled(),
    }


def _restore_torch(state: dict[str, Any]) -> None:
    import torch

    torch.set_num_threads(state["threads"])
    torch.set_default_dtype(state["dtype"])
    torch.set_grad_enabled(state["grad"])
    torch.use_deterministic_algorithms(state["deterministic"], warn_only=state["warn_only"])


def _restore_environment(environment: dict[str, str]) -> None:
    for name in set(os.environ) - set(environment):
        del os.environ[name]
    for name, value in environment.items():
        if os.environ.get(name) != value:
            os.environ[name] = value


def _folder() -> str | None:
    """The working directory; None where it has been deleted."""
    try:
        return os.getcwd()
    except FileNotFoundError:
        return None


def _restore_folder(folder: str | None) -> None:
    if folder is not None and _folder() != folder:
        os.chdir(folder)
