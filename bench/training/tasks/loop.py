"""The training loop of every model of the zoo: AdamW, averaged weights, cosine schedule.

All randomness of a step comes from the global generator, seeded with (seed, step), so an
interrupted and resumed run equals an uninterrupted one. `Trainer.start` continues from a file of
weights alone (`checkpoints.save_weights`), with a new warm-up.
"""

from __future__ import annotations

import logging
import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from quantarena.bench.training.tasks.checkpoints import (
    load_checkpoint,
    load_weights,
    save_checkpoint,
)

__all__ = ["LoopConfig", "Task", "Trainer", "averaged"]

log = logging.getLogger(__name__)

LINE_SECONDS = 10.0
"""Time between two lines about a run's progress."""


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
    """A model to train, as the loop sees it."""

    name: str

    def build(self) -> nn.Module:
        """Builds the trainable network from its seed."""

    def loss(self, net: nn.Module, batch: int) -> Tensor:
        """Draws a batch and returns its loss."""


@dataclass
class Progress:
    """The state of a run; `started` is the step at which its optimizer was new."""

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

    def save(self) -> None:
        """Writes weights, averaged weights, optimizer and progress as the checkpoint."""
        state = {
            "task": self.task.name,
            "net": self.net.state_dict(),
            "ema": self.ema,
            "optimizer": self.optimizer.state_dict(),
            "progress": vars(self.progress),
        }
        save_checkpoint(state, self.folder)

    def resume(self) -> None:
        """Loads the checkpoint.

        Raises:
            FileNotFoundError: There is none.
            ValueError: It belongs to another model.
        """
        state = load_checkpoint(self.folder, self.task.name)
        self.net.load_state_dict(state["net"])
        self.ema = {k: v.to(self.config.device) for k, v in state["ema"].items()}
        self.optimizer.load_state_dict(state["optimizer"])
        self.progress = Progress(**state["progress"])

    def start(self, path: Path) -> None:
        """Loads weights that `save_weights` wrote; the optimizer begins anew.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: The file is of another model, or no weights file.
        """
        tensors, progress = load_weights(path, self.task.name)
        self.net.load_state_dict(tensors)
        for name, value in self.ema.items():
            value.copy_(tensors[name])
        self.progress = Progress(**progress)
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
        last_save = last_line = last = time.monotonic()
        smooth = math.nan
        try:
            while self.fraction() < 1.0:
                loss = self.step()
                if not math.isfinite(loss):
                    raise FloatingPointError(f"loss is {loss} at step {self.progress.step}")
                now = time.monotonic()
                self.progress.seconds += now - last
                last = now
                smooth = loss if math.isnan(smooth) else 0.98 * smooth + 0.02 * loss
                if self.progress.step % 50 == 0:
                    self.progress.losses.append((self.progress.step, smooth))
                if now - last_line > LINE_SECONDS:
                    self._report(smooth)
                    last_line = now
                if now - last_save > self.config.checkpoint_seconds:
                    self.save()
                    last_save = now
        except KeyboardInterrupt:
            log.warning("%s: stopped at step %d", self.task.name, self.progress.step)
        finally:
            self.save()
        return self.fraction() >= 1.0

    def _report(self, loss: float) -> None:
        """Logs one line: share of the budget, step, speed and loss."""
        log.info(
            "%s: %.0f %%, step %d, %.3f s a step, loss %.4f",
            self.task.name,
            100.0 * self.fraction(),
            self.progress.step,
            self.progress.seconds / self.progress.step,
            loss,
        )


def averaged(task: Task, folder: Path) -> nn.Module:
    """Returns the network of a training folder with its averaged weights, in eval mode."""
    state = load_checkpoint(folder)
    net = task.build()
    net.load_state_dict(state["ema"])
    return net.eval()
