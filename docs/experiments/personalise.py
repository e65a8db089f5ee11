"""The board `personalisation`: emoji-t2i tuned to subjects that it has never seen.

Three single subjects and a pair; full fine-tuning with AdamW, LoRA on packed codes, PEQA and
TuneQDM, beside the networks before tuning. Every cell runs in a process of its own, whose peak
memory is measured. A run that was interrupted goes on where it was.

    python docs/experiments/personalise.py results/personalisation
    python docs/experiments/personalise.py results/rates --rates

The first command prints the tables of docs/results/personalisation.md and takes about ten
core-minutes. The second one tries learning rates on a subject that is on no board.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from quantarena.bench.personalise.board import (
    CONTESTANTS,
    FULL,
    board,
    markdown,
    measured,
    request,
    verdicts,
)
from quantarena.bench.personalise.emoji import BOARD
from quantarena.methods.tuning import RATES, Approach

TRIED = "tractor"


FACTORS = (0.25, 0.5, 1, 2)


def rates(folder: Path, updates: int, seed: int, bits: str, factors: Sequence[float]) -> None:
    """Prints the noise error on held-out views for multiples of the present rates."""
    settings = {"workload": "emoji-t2i", "bits": bits, "updates": updates, "seed": seed}
    for who in CONTESTANTS:
        for factor in factors if who.tuned else (1,):
            cell = request(TRIED, who, images=0, others=0, **settings)
            cell = replace(cell, lr=RATES[Approach(who.approach)] * factor)
            result, _ = measured(cell, folder)
            print(f"{who.title:28} rate {cell.lr:g}  noise error {result['loss']:.4f}", flush=True)


def main() -> None:
    """Parses the command line and prints the board."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where finished cells are kept")
    parser.add_argument("--rates", action="store_true", help="try learning rates")
    parser.add_argument("--factor", type=float, action="append", help="of a rate; repeatable")
    parser.add_argument("--subject", action="append", help=f"of {', '.join(BOARD)}; repeatable")
    parser.add_argument("--bits", default="w4a16")
    parser.add_argument("--updates", type=int, default=60)
    parser.add_argument("--images", type=int, default=16, help="pictures of each subject or pair")
    parser.add_argument("--others", type=int, default=16, help="pictures of other prompts")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    if given.rates:
        rates(given.folder, given.updates, given.seed, given.bits, given.factor or FACTORS)
        return
    rows = board(
        given.folder,
        given.subject or BOARD,
        said=lambda line: print(line, flush=True),
        workload="emoji-t2i",
        bits=given.bits,
        updates=given.updates,
        seed=given.seed,
        images=given.images,
        others=given.others,
    )
    print(f"\n{markdown(rows)}\n\n- " + "\n- ".join(verdicts(rows)))
    print(f"\n{FULL.title} and all others saw the same images, timesteps and noise.")


if __name__ == "__main__":
    main()
