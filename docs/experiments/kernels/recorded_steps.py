"""Times whole steps: full precision, packed as written, packed and recorded.

    quantarena quantize emoji-t2i --method rtn --bits w4a8 -o packed
    python docs/experiments/kernels/recorded_steps.py packed

docs/kernels.md has the numbers. Everything runs in one process on one thread and takes turns; times
are processor time. Full precision is eager, in the faster of both layouts. The last columns are the
share of a recorded step that is not in the native loop, the pieces of it, and the seconds of
recording it. ``--profile`` prints where a recorded step's time goes, by kind of operation.
"""

import argparse
import copy
import json
import statistics
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch

from quantarena.bench.ship import export_model
from quantarena.bench.ship.pipeline_folder import open_exported
from quantarena.bench.workloads import pipeline, registry
from quantarena.methods.core.packed.pack import channels_last
from quantarena.methods.core.packed.step.recorded import RecordedStep
from quantarena.methods.timing.step_profile import profile
from quantarena.methods.timing.steps import in_turns, ratio, share_outside

FP, LAST, WRITTEN, RECORDED, EXACT = (
    "fp32",
    "fp32 channels_last",
    "as written",
    "recorded",
    "recorded exactly",
)


@torch.no_grad()
def measured(folder: Path, batches: list[int], rounds: int) -> list[dict[str, Any]]:
    """Rows of the table for one packed folder."""
    exported = open_exported(folder)
    order = export_model.Order(folder, "openvino", Path("unused"), max(batches), rounds, 0)
    workspace = export_model._workspace(order, exported)
    points = export_model._recorded(workspace, lambda *_: None)
    original = pipeline.load(registry.resolve(str(exported.meta["base_model"]))).denoiser
    packed = exported.packed
    found = []
    for batch in batches:
        rows = torch.arange(batch) % len(points)
        given = points.rows(rows)
        steps = {
            RECORDED: RecordedStep(packed.module, packed.clock),
            EXACT: RecordedStep(packed.module, packed.clock, exact=True),
        }
        networks = {
            FP: original,
            LAST: channels_last(copy.deepcopy(original)),
            WRITTEN: packed.module,
            **steps,
        }
        kwargs = {"timestep": given.timestep, "return_dict": False, **given.conditions}
        with packed.clock.at(int(given.step[0])):
            plan = steps[RECORDED].plan(given.sample, **kwargs)
            agreement = steps[RECORDED].agreement(given.sample, **kwargs)
            times = in_turns(
                {name: partial(given.call, network) for name, network in networks.items()}, rounds
            )
            call = partial(steps[RECORDED], given.sample, **kwargs)
            outside = share_outside(steps[RECORDED], plan, call, rounds)
            spent = profile(steps[RECORDED], plan, call, rounds)
        best = min((FP, LAST), key=lambda name: statistics.median(times[name]))
        base = times[best]
        found.append(
            {
                "network": exported.meta["base_model"],
                "bits": exported.meta["bits"],
                "rows": batch,
                "fp32": best,
                "ms": {n: round(1e3 * statistics.median(t), 2) for n, t in times.items()},
                "least_ms": {n: round(1e3 * min(t), 2) for n, t in times.items()},
                "ratio": {n: round(ratio(base, times[n]), 3) for n in (WRITTEN, EXACT, RECORDED)},
                "recorded_to_written": round(ratio(times[WRITTEN], times[RECORDED]), 3),
                "outside": round(outside, 4),
                "profile": [[s.label, s.operations, round(1e3 * s.seconds, 4)] for s in spent],
                "pieces": [plan.native_pieces, plan.torch_pieces],
                "operations": plan.native_operations,
                "arena_bytes": plan.arena_bytes,
                "prepare_seconds": round(steps[RECORDED].told.prepare_seconds, 2),
                "max_rel": agreement.max_rel,
                "equal": agreement.equal,
            }
        )
    return found


def main() -> None:
    """Print the table, and optionally write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folders", type=Path, nargs="+", help="folders that quantize wrote")
    parser.add_argument("--rows", type=int, nargs="+", default=[16, 32])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--profile", action="store_true", help="print times by operation")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    print("| network | bits | rows | fp32 ms | as written | recorded | over written | outside |")
    print("|---|---|---|---|---|---|---|---|")
    found = []
    for folder in given.folders:
        for row in measured(folder, given.rows, given.rounds):
            found.append(row)
            ratios = row["ratio"]
            print(
                f"| {row['network']} | {row['bits']} | {row['rows']} "
                f"| {row['ms'][row['fp32']]:.1f} | {ratios[WRITTEN]:.2f} | {ratios[RECORDED]:.2f} "
                f"| {row['recorded_to_written']:.2f} | {100 * row['outside']:.1f} % |"
            )
            for label, operations, milliseconds in row["profile"] if given.profile else ():
                print(f"    {label:<28} {operations:>4} operations {milliseconds:8.3f} ms")
            sys.stdout.flush()
    if given.json is not None:
        given.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
