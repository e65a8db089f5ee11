"""The teacher's walk, read from a recorded trajectory instead of run with a sampler.

A recording holds what the full-precision network was fed at every sampler call, so the next sample
of a walk that the teacher drives can be looked up. Guidance, eta and the sampler itself are already
part of the recorded samples.
"""

import torch
from torch import Tensor

from quantarena.methods.core.errors import Unsupported
from quantarena.methods.core.nested import leaves
from quantarena.methods.core.record.points import CalibrationSet
from quantarena.methods.core.record.trajectory import Trajectory
from quantarena.methods.techniques.distill.deck import Deck
from quantarena.methods.techniques.distill.walk import Walk


def teacher_walk(recorded: Trajectory, batch: int) -> Walk:
    """Walks over all sampler calls, each of ``batch`` rows out of all that were recorded.

    Rows are dealt from a shuffled deck: none walks again before all others have walked.

    Args:
        recorded: the recording; values are read when a walk gets to them.
        batch: rows of each walk; all recorded rows where there are fewer.

    Raises:
        Unsupported: an input beside sample and timestep changes from call to call.
    """
    _require_constant(recorded)
    deck, chosen = Deck(recorded.rows), torch.arange(0)

    def start(generator: torch.Generator) -> CalibrationSet:
        nonlocal chosen
        chosen = deck.deal(batch, generator)
        return recorded.pick(torch.zeros_like(chosen), chosen)

    def step(prediction: Tensor, call: int, sample: Tensor) -> Tensor:
        return recorded.sample[call + 1, chosen]

    return Walk(recorded.timestep, start, step)


def whole_walks(updates: int, calls: int) -> int:
    """The number of updates that finishes the last walk, so that every call is visited equally."""
    return -(-updates // calls) * calls


def _require_constant(recorded: Trajectory) -> None:
    for path, leaf in leaves(recorded.conditions).items():
        if not isinstance(leaf, Tensor) or path in recorded.fixed or not leaf.stride(0):
            continue
        # one call at a time: all of them at once may not fit into memory
        if not all(torch.equal(leaf[0], leaf[call]) for call in range(1, len(leaf))):
            raise Unsupported(f"{path} changes from call to call: it cannot be distilled yet")
