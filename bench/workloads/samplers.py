"""Replaces a pipeline's sampler, and passes it the arguments that the pipeline leaves out."""

import functools
import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch
from torch import Tensor

from quantarena.bench.errors import UserError, did_you_mean, first_line
from quantarena.bench.workloads.inputs import arguments
from quantarena.bench.workloads.inputs.arguments import PLAIN


def with_sampler(
    pipe: Any, name: str, options: arguments.Pairs = (), workload: str = "the workload"
) -> Any:
    """The pipeline with a scheduler of another class, or other settings, over its noise schedule.

    The pipeline is built again, since some pipelines correct their scheduler's settings when built.

    Args:
        pipe: a diffusers pipeline.
        name: scheduler class of diffusers, with or without ``Scheduler`` at its end; "" for that
            of the pipeline.
        options: settings that replace those of the pipeline's scheduler.
        workload: its name, for messages.

    Raises:
        UserError: diffusers has no such scheduler, it does not fit this noise schedule, it needs
            a library that is missing, or it does not take a setting.
    """
    import diffusers

    current = type(pipe.scheduler)
    fitting = {kind.__name__: kind for kind in getattr(pipe.scheduler, "compatibles", ())}
    fitting[current.__name__] = current
    wanted = name if name.endswith("Scheduler") else f"{name}Scheduler"
    wanted = wanted if name else current.__name__
    if wanted not in fitting:
        known = getattr(diffusers, wanted, None)
        why = f"unknown sampler {name!r}" if known is None else f"sampler {name!r} does not fit"
        raise UserError(f"{why} in place of {current.__name__}: {did_you_mean(wanted, fitting)}")
    kind = fitting[wanted]
    try:
        if options:
            given = inspect.signature(kind.__init__).parameters
            plain = {n: p.default for n, p in given.items() if type(p.default) in PLAIN}
            arguments.require_options(wanted, given, plain, options, workload)
        scheduler = kind.from_config(pipe.scheduler.config, **arguments.values(options))
    except ImportError as error:
        raise UserError(f"sampler {name!r} cannot run here: {first_line(error)}") from None
    except (ValueError, NotImplementedError) as error:
        raise UserError(f"{workload}: {wanted} refuses its settings: {first_line(error)}") from None
    return type(pipe).from_pipe(pipe, scheduler=scheduler)


@contextmanager
def stepping(scheduler: Any, eta: float, generators: Sequence[torch.Generator]) -> Iterator[None]:
    """Give every step inside the block ``eta`` and one generator per image.

    Several pipelines pass neither to the scheduler. Fresh noise would then come from one generator
    for all images, and an image would depend on its batch. Arguments of the pipeline are kept.

    Args:
        scheduler: the pipeline's scheduler.
        eta: share of fresh noise in DDIM.
        generators: one per image; the guidance halves of an image share its generator.

    Raises:
        UserError: ``eta`` is not 0, and the sampler does not take it; or a step draws noise from
            torch's own generator, which all images of a batch share.
    """
    signature = inspect.signature(scheduler.step)
    if eta and "eta" not in signature.parameters:
        raise UserError(f"{type(scheduler).__name__} takes no eta: leave it 0, or take DDIM")
    inner, before = scheduler.step, vars(scheduler).get("step")

    @functools.wraps(type(scheduler).step)
    def step(self: Any, *args: Any, **kwargs: Any) -> Any:
        given = signature.bind_partial(*args, **kwargs).arguments
        if "eta" in signature.parameters and "eta" not in given:
            kwargs["eta"] = eta
        if "generator" in signature.parameters and given.get("generator") is None:
            kwargs["generator"] = _for_rows(given.get("sample"), generators)
        before = torch.get_rng_state()
        output = inner(*args, **kwargs)
        if not torch.equal(before, torch.get_rng_state()):
            raise UserError(
                f"sampler {type(scheduler).__name__} draws fresh noise with these settings and "
                "takes no generator for it, so an image would depend on its batch: choose another "
                "with sampler=NAME"
            )
        return output

    scheduler.step = MethodType(step, scheduler)
    try:
        yield
    finally:
        if before is None:
            del scheduler.step
        else:
            scheduler.step = before


def _for_rows(sample: Any, generators: Sequence[torch.Generator]) -> list[torch.Generator] | None:
    """One generator for each row of a step; None if the rows are not whole sets of images."""
    rows = len(sample) if isinstance(sample, Tensor) and sample.dim() else 0
    if not rows or rows % len(generators):
        return None
    return list(generators) * (rows // len(generators))
