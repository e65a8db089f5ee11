"""Losses on features of several consecutive sampler calls (MPQ-DM's relation distillation).

Such a term needs the gradient of all its calls (MPQ-DM, AAAI 2025). The student's features are
computed without a graph first, the term is differentiated with respect to them, and then each call
is run again and receives its own part of that gradient. So at most one call's graph is in memory,
however long the window, and no branch is detached.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from quantarena.methods.core.model.model import QuantizedModel
from quantarena.methods.core.record.points import CalibrationSet
from quantarena.methods.techniques.distill.held_weights import held_weights
from quantarena.methods.techniques.learn.module_outputs import module_outputs


@dataclass(frozen=True, slots=True)
class WindowTerm:
    """A loss on features of consecutive sampler calls.

    Attributes:
        module: path of the module whose output is the feature.
        loss: (student's features, teacher's features) -> loss; one feature for each call of the
            window, oldest first.
        calls: length of the window; the term acts at every ``calls``-th call of a walk.
        weight: factor of the loss.
    """

    module: str
    loss: Callable[[Sequence[Tensor], Sequence[Tensor]], Tensor]
    calls: int = 2
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class TaughtCall:
    """One sampler call as the teacher answered it.

    Attributes:
        points: inputs of the call.
        target: the teacher's prediction.
        features: the teacher's features by module path.
    """

    points: CalibrationSet
    target: Tensor
    features: dict[str, Tensor]


def add_gradients(
    model: QuantizedModel,
    window: Sequence[TaughtCall],
    call: int,
    terms: Sequence[WindowTerm],
    reduction: Literal["sum", "mean"],
) -> tuple[Tensor, Tensor, int]:
    """Add the gradients of one update: of the last call's prediction and of all terms now due.

    Args:
        model: the student.
        window: the latest calls, oldest first.
        call: sampler call of the last one.
        terms: losses on features.
        reduction: how the squared error of the prediction is reduced.

    Returns:
        Loss of the prediction, and the prediction, both detached; and the number of rows that went
        forward and backward, those of earlier calls in the window included.
    """
    with held_weights(model):
        due = [t for t in terms if (call + 1) % t.calls == 0 and len(window) >= t.calls]
        gradients = _feature_gradients(model, window, due)
        rows = len(window[-1].points)
        for place, by_module in enumerate(gradients[:-1]):
            if by_module:
                with module_outputs(model.module, tuple(by_module)) as features:
                    model.run(window[place].points)
                rows += len(window[place].points)
                torch.autograd.backward(  # type: ignore[no-untyped-call]
                    [features[name] for name in by_module], list(by_module.values())
                )
        now, last = window[-1], gradients[-1]
        with module_outputs(model.module, tuple(last)) as features:
            prediction = model.run(now.points)
        error = (prediction - now.target).square()
        loss = error.sum() if reduction == "sum" else error.mean()
        torch.autograd.backward(  # type: ignore[no-untyped-call]
            [loss, *(features[name] for name in last)], [torch.ones_like(loss), *last.values()]
        )
    return loss.detach(), prediction.detach(), rows


def _feature_gradients(
    model: QuantizedModel, window: Sequence[TaughtCall], due: Sequence[WindowTerm]
) -> list[dict[str, Tensor]]:
    """Gradient of the due terms by the student's features, call by call and module by module."""
    gradients: list[dict[str, Tensor]] = [{} for _ in window]
    if not due:
        return gradients
    paths = tuple(dict.fromkeys(term.module for term in due))
    longest = max(term.calls for term in due)
    student: list[dict[str, Tensor]] = []
    for taught in window[-longest:]:
        with torch.no_grad(), module_outputs(model.module, paths) as features:
            model.run(taught.points)
        student.append({n: f.detach().requires_grad_(True) for n, f in features.items()})
    total = torch.zeros((), device=window[-1].target.device)
    for term in due:
        ours = [features[term.module] for features in student[-term.calls :]]
        theirs = [taught.features[term.module] for taught in window[-term.calls :]]
        total = total + term.weight * term.loss(ours, theirs)
    total.backward()  # type: ignore[no-untyped-call]
    for by_module, features in zip(gradients[-longest:], student, strict=True):
        by_module.update({n: f.grad for n, f in features.items() if f.grad is not None})
    return gradients
