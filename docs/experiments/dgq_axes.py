"""Measures DGQ's choices: the axis of groups, frozen channel groups, and the start token.

The script runs fake quantization with rounding to nearest. Channels that change their group at
every sampler call have no packed form, so only fake quantization can try them.

    python docs/experiments/dgq_axes.py w4a4 --cache FOLDER
"""

import argparse
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from method_options import heldout, quantized
from torch import Tensor

from quantarena.bench.cache import StageCache
from quantarena.bench.spec import Budget, Cell
from quantarena.bench.stages.record import trajectory
from quantarena.bench.stages.workspace import open_workspace
from quantarena.methods.core.model.model import QuantizedModel
from quantarena.methods.core.record.trajectory import CalibrationSet
from quantarena.methods.core.trace.network import AttentionKind
from quantarena.methods.dgq import Dgq


def start_token_shares(model: QuantizedModel, points: CalibrationSet) -> dict[str, float]:
    """Measures the mean weight of the first key by cross-attention, in full precision."""
    seen: dict[str, float] = {}

    def note(name: str) -> Any:
        def watch(operand: str, x: Tensor) -> None:
            if operand == "softmax":
                seen[name] = float(x[..., 0].mean())

        return watch

    crossing = {
        name: note(name)
        for name in model.attention
        if model.graph.attention[name].kind is AttentionKind.CROSS
    }
    with torch.no_grad(), model.using(weights=False, acts=False), model.watching(crossing):
        model.run(points)
    return seen


def main() -> None:
    """Parses the command line and prints the measurements."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bits")
    parser.add_argument("--workload", default="emoji-t2i")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--cache", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    budget = Budget(images=32, calibration_samples=128, iterations=0)
    cell = Cell(given.workload, "dgq", given.bits, given.seed, "paper", "published", budget)
    workspace = open_workspace(cell)
    with tempfile.TemporaryDirectory() as folder:
        recorded = trajectory(workspace, StageCache(given.cache or Path(folder)))
        points = heldout(workspace)
        with torch.no_grad():
            target = points.call(workspace.loaded.denoiser)
        for frozen in (True, False):
            method = Dgq(Dgq.Options(frozen=frozen))
            model, _, _ = quantized(method, cell, workspace, recorded)
            with torch.no_grad():
                gap = (model.run(points) - target).square().mean() / target.square().mean()
            notes = model.notes["groups"]
            print(f"frozen={frozen}: one call {float(gap):.5f}", flush=True)
            if not frozen:
                continue
            for kind in ("layers", "products"):
                mine = [v for k, v in notes.items() if (":" in k) == (kind == "products")]
                agree = [v["agree"] for v in mine if "agree" in v]
                print(
                    f"{kind}: {dict(Counter(v['axis'] for v in mine))}, the axis of a call "
                    f"agrees at {sum(agree) / max(1, len(agree)):.3f} of the calls"
                )
            kinds = Counter(
                (model.layers[k].is_conv, v["axis"]) for k, v in notes.items() if ":" not in k
            )
            print(f"by (convolution, axis): {dict(kinds)}")
            shares = start_token_shares(model, points)
            if shares:
                keys = model.attention[next(iter(shares))].info.keys
                mean, most = sum(shares.values()) / len(shares), max(shares.values())
                print(f"start token: mean {mean:.4f}, most {most:.4f}; 1 / keys {1 / keys:.4f}")


if __name__ == "__main__":
    main()
