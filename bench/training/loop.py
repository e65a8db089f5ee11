"""One resumable training loop for every model of the zoo: AdamW, EMA, cosine schedule, checkpoints.

All randomness of a step comes from the global generator seeded with (seed, step), so that a run
that was cut and resumed equals one that was not. `save_weights` keeps a run in a small file without
the optimizer's moments; `Trainer.start` goes on from there with a new warm-up.
"""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm.auto import tqdm

from quantarena.bench.files import make_shareable

__all__ = ["LoopConfig", "Task", "Trainer", "averaged", "load_checkpoint", "save_weights"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoopConfig:
    """Settings of a run.

    Attributes:
        minutes: Training time, over all resumed parts; the schedule ends there.
        steps: Number of optimizer steps; if set, it replaces `minutes`.
        batch: Images a step.
        lr: Peak learning rate.
        warmup: Steps of linear warm-up, also after a start from saved weights.
        ema: Final decay of the averaged weights.
        seed: Seed of weights, batches and noise.
        device: torch device.
        cooldown: Share of the budget, at its end, in which the rate falls; before that it stays at
            its peak. 1 is a cosine over the whole run.
        bf16: Autocast to bfloat16 (worth it on GPUs, and on CPUs with bfloat16 instructions).
        checkpoint_seconds: Time between two checkpoints.
    """

    minutes: float = 10.0
    steps: int | None = None
    batch: int = 64
    lr: float = 1e-3
    warmup: int = 50
    ema: float = 0.999
    seed: int = 0
    device: str = "cpu"
    cooldown: float = 1.0
    bf16: bool = False
    checkpoint_seconds: float = 60.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.cooldown <= 1.0:
            raise ValueError(f"cooldown is a share of the budget, 0 to 1, not {self.cooldown:g}")


class Task(Protocol):
    """What the loop needs to know of a model."""

    name: str

    def build(self) -> nn.Module:
        """Builds the trainable network from its seed."""

    def loss(self, net: nn.Module, batch: int) -> Tensor:
        """Draws a batch and returns its loss."""


@dataclass
class Progress:
    """What has been done so far; `started` is the step at which the optimizer was new."""

    step: int = 0
    started: int = 0
    seconds: float = 0.0
    device: str = "CPU"
    losses: list[tuple[int, float]] = field(default_factory=list)


class Trainer:
    """Trains a task within a budget; see the module's docstring.

    Args:
        task: The model and its loss.
        config: Settings.
        folder: Where `checkpoint.pt` lives.
    """

    def __init__(self, task: Task, config: LoopConfig, folder: Path) -> None:
        self.task = task
        self.config = config
        self.folder = folder
        self.progress = Progress()
        torch.manual_seed(config.seed)
        self.net = task.build().to(config.device).train()
        self.ema = {key: value.detach().clone() for key, value in self.net.state_dict().items()}
        if torch.device(config.device).type == "cuda":
            self.progress.device = torch.cuda.get_device_name(config.device)
        params = [p for p in self.net.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            params, lr=config.lr, betas=(0.9, 0.99), weight_decay=0.01
        )

    @property
    def checkpoint(self) -> Path:
        """Path of the checkpoint file."""
        return self.folder / "checkpoint.pt"

    def save(self) -> None:
        """Writes weights, EMA, optimizer and progress; a kill never leaves half a file."""
        self.folder.mkdir(parents=True, exist_ok=True)
        state = {
            "task": self.task.name,
            "net": self.net.state_dict(),
            "ema": self.ema,
            "optimizer": self.optimizer.state_dict(),
            "progress": vars(self.progress),
        }
        partial = self.checkpoint.with_suffix(".partial")
        torch.save(state, partial)
        os.replace(partial, self.checkpoint)

    def resume(self) -> None:
        """Loads the checkpoint.

        Raises:
            FileNotFoundError: There is none.
            ValueError: It belongs to another model.
        """
        state = load_checkpoint(self.folder)
        if state["task"] != self.task.name:
            raise ValueError(f"{self.checkpoint} is of {state['task']}, not {self.task.name}")
        self.net.load_state_dict(state["net"])
        self.ema = {k: v.to(self.config.device) for k, v in state["ema"].items()}
        self.optimizer.load_state_dict(state["optimizer"])
        self.progress = Progress(**state["progress"])

    def start(self, path: Path) -> None:
        """Loads weights that `save_weights` wrote; the optimizer begins anew.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: It is of another model, or not such a file.
        """
        if not path.is_file():
            raise FileNotFoundError(f"no weights at {path}")
        try:
            with safe_open(path, "pt") as file:
                about = file.metadata() or {}
                state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise ValueError(f"{path} is no weights file: {error}") from error
        if about.get("task") != self.task.name:
            raise ValueError(f"{path} is of {about.get('task')}, not {self.task.name}")
        own = self.net.state_dict()
        self.net.load_state_dict({key: state[f"net.{key}"] for key in own})
        for key, value in self.ema.items():
            value.copy_(state[f"ema.{key}"])
        self.progress = Progress(**json.loads(about["progress"]))
        self.progress.started = self.progress.step

    def fraction(self) -> float:
        """Returns the share of the budget that is spent, 0 to 1."""
        if self.config.steps is not None:
            return min(1.0, self.progress.step / self.config.steps)
        return min(1.0, self.progress.seconds / (60.0 * self.config.minutes))

    def learning_rate(self) -> float:
        """Returns the next step's rate: warm-up, the peak, then a cosine to 2 % of the peak."""
        begun = self.progress.step - self.progress.started
        ramp = min(1.0, (begun + 1) / max(1, self.config.warmup))
        falling = self.config.cooldown
        spent = max(0.0, self.fraction() - 1.0 + falling) / falling if falling else 0.0
        cosine = 0.51 + 0.49 * math.cos(math.pi * spent)
        return self.config.lr * ramp * cosine

    def step(self) -> float:
        """Makes one optimizer step and returns the loss."""
        torch.manual_seed(self.config.seed * 1_000_003 + self.progress.step)
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate()
        device_type = torch.device(self.config.device).type
        with torch.autocast(device_type, torch.bfloat16, enabled=self.config.bf16):
            loss = self.task.loss(self.net, self.config.batch)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
        self.optimizer.step()
        self._average()
        self.progress.step += 1
        return float(loss.detach())

    @torch.no_grad()
    def _average(self) -> None:
        decay = min(self.config.ema, (1 + self.progress.step) / (10 + self.progress.step))
        for key, value in self.net.state_dict().items():
            if value.is_floating_point():
                self.ema[key].lerp_(value, 1.0 - decay)
            else:
                self.ema[key].copy_(value)

    def run(self) -> bool:
        """Trains until the budget is spent; Ctrl-C writes a checkpoint and stops.

        Returns:
            Whether the budget is spent.
        """
        probe: list[float] = []
        last_save = last = time.monotonic()
        bar = tqdm(total=100, desc=self.task.name, unit="%", mininterval=5.0)
        smooth = math.nan
        try:
            while self.fraction() < 1.0:
                loss = self.step()
                if not math.isfinite(loss):
                    raise FloatingPointError(f"loss is {loss} at step {self.progress.step}")
                now = time.monotonic()
                self.progress.seconds += now - last
                probe.append(now - last)
                last = now
                smooth = loss if math.isnan(smooth) else 0.98 * smooth + 0.02 * loss
                if len(probe) == 10:
                    self._report_probe(probe)
                if self.progress.step % 50 == 0:
                    self.progress.losses.append((self.progress.step, smooth))
                    bar.set_postfix(step=self.progress.step, loss=f"{smooth:.4f}")
                bar.update(100 * self.fraction() - bar.n)
                if now - last_save > self.config.checkpoint_seconds:
                    self.save()
                    last_save = now
        except KeyboardInterrupt:
            log.warning("%s: stopped at step %d", self.task.name, self.progress.step)
        finally:
            bar.close()
            self.save()
        return self.fraction() >= 1.0

    def _report_probe(self, probe: list[float]) -> None:
        seconds = sorted(probe)[len(probe) // 2]
        left = (1.0 - self.fraction()) * 60.0 * self.config.minutes
        log.info(
            "%s: %.3f s a step, %.0f images/s, about %d steps left",
            self.task.name,
            seconds,
            self.config.batch / seconds,
            self.config.steps or left / seconds,
        )


def load_checkpoint(folder: Path) -> Mapping[str, Any]:
    """Reads the checkpoint of a training folder on the CPU."""
    path = folder / "checkpoint.pt"
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}: train first")
    state: Mapping[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return state


def save_weights(folder: Path, path: Path) -> None:
    """Writes a training folder's state without the optimizer's, floats in fp16, as safetensors.

    Args:
        folder: Where the checkpoint is.
        path: File to write: network, averaged weights, progress.

    Raises:
        FileNotFoundError: There is no checkpoint.
        ValueError: A weight is too large for fp16.
    """
    checkpoint = load_checkpoint(folder)
    state = {}
    for part in ("net", "ema"):
        for key, value in checkpoint[part].items():
            small = value.half() if value.is_floating_point() else value
            if not torch.isfinite(small).all():
                raise ValueError(f"{part}.{key} does not fit fp16")
            state[f"{part}.{key}"] = small.contiguous()
    about = {"task": checkpoint["task"], "progress": json.dumps(checkpoint["progress"])}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    save_file(state, partial, about)
    make_shareable(partial)
    os.replace(partial, path)


def averaged(task: Task, folder: Path) -> nn.Module:
    """Returns the network of a training folder with its averaged weights, in eval mode."""
    state = load_checkpoint(folder)
    net = task.build()
    net.load_state_dict(state["ema"])
    return net.eval()
