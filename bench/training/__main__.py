"""Trains and exports the models of the zoo.

    python -m quantarena.bench.training vae --minutes 10 --out runs
    python -m quantarena.bench.training emoji-t2i --minutes 40 --out runs
    python -m quantarena.bench.training emoji-t2i --out runs --export

`--resume` continues an interrupted run, also with more minutes. `--save-weights FILE` writes its
weights without the optimizer's state; `--start FILE` continues from that file in another folder.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from quantarena.bench.report.phenomena import write_section
from quantarena.bench.training.export.folder import export_model
from quantarena.bench.training.tasks import zoo
from quantarena.bench.training.tasks.checkpoints import save_weights
from quantarena.bench.training.tasks.loop import LoopConfig, Trainer

log = logging.getLogger("quantarena.training")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="quantarena.bench.training",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", choices=zoo.MODELS, help="model or part of one")
    parser.add_argument("--out", type=Path, default=Path("runs"), help="folder of the checkpoints")
    parser.add_argument(
        "--minutes",
        type=float,
        default=10.0,
        help="training time, including earlier parts of a resumed run",
    )
    parser.add_argument("--steps", type=int, help="number of steps, instead of a time")
    parser.add_argument("--batch", type=int, help="images a step [by model]")
    parser.add_argument("--lr", type=float, help="peak learning rate [by model]")
    parser.add_argument("--ema", type=float, help="decay of the averaged weights [by model]")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights, batches and noise")
    parser.add_argument("--device", default="cpu", help="torch device")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--bf16", action="store_true", help="autocast to bfloat16")
    parser.add_argument(
        "--cooldown",
        type=float,
        default=1.0,
        help="share of the budget in which the rate falls; 0: constant rate",
    )
    parser.add_argument(
        "--size", type=int, default=32, help="side of the autoencoder's images, 32 or 64"
    )
    parser.add_argument(
        "--copies", type=int, default=2, help="jittered copies of each training image"
    )
    parser.add_argument(
        "--cifar",
        type=Path,
        default=Path("cifar10"),
        help="CIFAR-10: a zip of JPEGs or a torchvision folder",
    )
    begin = parser.add_mutually_exclusive_group()
    begin.add_argument("--resume", action="store_true", help="continue from the checkpoint")
    begin.add_argument(
        "--start", type=Path, metavar="FILE", help="continue from a file of --save-weights"
    )
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument(
        "--export", action="store_true", help="write the pipeline folder instead of training"
    )
    instead.add_argument(
        "--card",
        action="store_true",
        help="measure the table of the exported model's card again, instead of training",
    )
    instead.add_argument(
        "--save-weights",
        type=Path,
        metavar="FILE",
        help="write the weights in fp16 instead of training",
    )
    parser.add_argument(
        "--zoo", type=Path, default=zoo.zoo_dir(), help="folder that gets the pipeline folder"
    )
    return parser


def _config(args: argparse.Namespace) -> LoopConfig:
    preset = zoo.PRESETS[args.model]
    return LoopConfig(
        minutes=args.minutes,
        steps=args.steps,
        batch=args.batch or preset.batch,
        lr=args.lr or preset.lr,
        ema=args.ema or preset.ema,
        seed=args.seed,
        device=args.device,
        warmup=preset.warmup,
        cooldown=args.cooldown,
        bf16=args.bf16,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code: 0 done, 1 stopped early, 2 wrong use."""
    args = _parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(args.threads)
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        if args.export:
            folder = export_model(args.model, args.out, args.zoo, args.cifar)
            log.info("%s -> %s", args.model, folder)
            return 0
        if args.card:
            with tempfile.TemporaryDirectory() as cache:
                write_section(args.zoo / args.model, Path(cache))
            log.info("%s -> %s", args.model, args.zoo / args.model / "README.md")
            return 0
        folder = args.out / args.model
        if args.save_weights:
            save_weights(folder, args.save_weights)
            log.info("%s -> %s", args.model, args.save_weights)
            return 0
        if (folder / "checkpoint.pt").is_file() and not args.resume:
            raise ValueError(f"{folder} holds a checkpoint: add --resume or choose another --out")
        task = zoo.make_task(args.model, args.out, args.size, args.device, args.copies, args.cifar)
        trainer = Trainer(task, _config(args), folder)
        if args.resume:
            trainer.resume()
        elif args.start:
            trainer.start(args.start)
        return 0 if trainer.run() else 1
    except (FileNotFoundError, ValueError, FloatingPointError) as error:
        log.error("error: %s", error)
        return 2


if __name__ == "__main__":
    sys.exit(main())
