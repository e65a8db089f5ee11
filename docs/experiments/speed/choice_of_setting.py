"""How often a rule takes the slower of two settings of full precision (docs/protocol.md).

    python docs/experiments/speed/choice_of_setting.py cifar10-uncond --rounds 100 --images 8

Records rounds in which eager torch in both layouts and OpenVINO take turns, as they come, disturbed
ones too. Then OpenVINO's times are multiplied so that it is faster than the contiguous layout by a
planted median ratio, and each rule chooses from stretches of the rounds of these two: the old one
(the least median of 5), the median of 5 paired ratios, and that of ``bench/devices/choose.py`` (its
20 fresh rounds where 5 leave it open).
"""

import argparse
import copy
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from quantarena.bench.devices import turns
from quantarena.bench.devices.choose import DECIDING, FEW, fastest_of, ratio_interval
from quantarena.bench.spec import Budget, Cell
from quantarena.bench.stages.record import record, recorded_in
from quantarena.bench.stages.sequence import sampler_batch
from quantarena.bench.stages.workspace import open_workspace
from quantarena.methods.core.packed.pack import channels_last
from quantarena.methods.rivals import ov_network
from quantarena.methods.rivals.stand_in import StandIn

EAGER, OPENVINO = "eager", "openvino"
PLANTED = (1.03, 1.05, 1.12)
CHOICES = 4000
Seconds = dict[str, np.ndarray[Any, Any]]


def recorded_rounds(workload: str, rounds: int, images: int) -> Seconds:
    """Seconds of calls, less what they waited, round by round."""
    budget = Budget(images=images, batch=images, calibration_images=images, steps=2)
    workspace = open_workspace(Cell(workload, "fp", "fp", budget=budget))
    network = workspace.loaded.denoiser
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        record(workspace, workspace.draw(calibration=True), folder, lambda *_: None)
        points = sampler_batch(recorded_in(folder), images)
        ov_network.save(ov_network.convert(network, points.rows(slice(0, 2))), folder)
        other = ov_network.OpenVinoNetwork(folder / ov_network.MODEL, ov_network.F32)
    turns.MOST_ROUNDS = 1  # all rounds as they come
    last = channels_last(copy.deepcopy(network))
    networks = {EAGER: network, "channels_last": last, OPENVINO: StandIn(network, other)}
    calls = turns.take_turns(networks, points, rounds).calls
    own = {name: [c.seconds - c.waited for c in calls[name]] for name in (EAGER, OPENVINO)}
    return {name: np.asarray(of) for name, of in own.items()}


def stretch(seconds: Seconds, length: int, random: np.random.Generator) -> Seconds:
    """Consecutive rounds from anywhere."""
    start = random.integers(0, len(seconds[EAGER]) - length)
    return {name: of[start : start + length] for name, of in seconds.items()}


def old(few: Seconds) -> str:
    """The least median, each by itself."""
    return min(few, key=lambda name: float(np.median(few[name])))


def new(few: Seconds, seconds: Seconds, random: np.random.Generator) -> str:
    """The rule of now."""
    leader = fastest_of({name: list(of) for name, of in few.items()})
    slower = EAGER if leader == OPENVINO else OPENVINO
    if ratio_interval(list(few[slower]), list(few[leader]))[1] > 1:
        return leader
    fresh = stretch(seconds, DECIDING, random)
    return fastest_of({name: list(of) for name, of in fresh.items()})


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("workload")
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--images", type=int, default=8)
    given = parser.parse_args()
    torch.set_num_threads(1)
    found = recorded_rounds(given.workload, given.rounds, given.images)
    ratios = found[EAGER] / found[OPENVINO]
    print(
        f"median ratio {np.median(ratios):.2f}, its logarithm varies by {np.log(ratios).std():.3f}"
    )
    print("| planted ratio | least median of 5 | 5 pairs | the rule of now |")
    print("|---|---|---|---|")
    for planted in PLANTED:
        scaled = found | {OPENVINO: found[OPENVINO] * np.median(ratios) / planted}
        random, wrong = np.random.default_rng(0), np.zeros(3)
        for _ in range(CHOICES):
            few = stretch(scaled, FEW, random)
            pairs = fastest_of({name: list(of) for name, of in few.items()})
            chosen = (old(few), pairs, new(few, scaled, random))
            wrong += np.asarray([name == EAGER for name in chosen])
        print(
            f"| {planted} | "
            + " | ".join(f"{100 * share / CHOICES:.1f} %" for share in wrong)
            + " |"
        )


if __name__ == "__main__":
    main()
