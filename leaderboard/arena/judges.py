"""Programs that judge: preference models, VLMs, metrics. They see what people see, and no names.

A judge is any object with ``name``, ``kind`` and ``order``. ``ask`` gives it sets from the same
desk as people's, at a limited rate, and goes on where an earlier run stopped: what was answered is
in the log, and the set that was out is handed out again.
"""

import hashlib
import hmac
import importlib
import importlib.util
import io
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from PIL import Image

from quantarena.leaderboard.arena.deal import IssuedSet
from quantarena.leaderboard.arena.events import Task, check_answer
from quantarena.leaderboard.arena.memory import content
from quantarena.leaderboard.arena.sets import Answer, Desk, normal
from quantarena.leaderboard.arena.sets import Judge as Who
from quantarena.leaderboard.ranking.image_scores import tiers as tiers_of

Tiers = Sequence[Sequence[int]]
TRIES = 3
"""Calls of a judge that fail one after the other before it is given up."""


class JudgeError(ValueError):
    """A judge that cannot be loaded, or that failed; one line says how."""


@dataclass(frozen=True, slots=True)
class Question:
    """What a judge is asked: all that a voter sees, and nothing else.

    Attributes:
        task: ``fidelity`` or ``preference``.
        prompt: in words.
        images: PNG files without metadata, in the order of display.
        reference: full precision's image as PNG, where the arena shows it.
    """

    task: Task
    prompt: str
    images: tuple[bytes, ...]
    reference: bytes | None


class Judge(Protocol):
    """A program that orders images.

    Attributes:
        name: with its version, such as ``image-reward/1.0``: another name is another judge.
        kind: ``automatic`` for what gives equal answers to equal questions; ``vlm`` is asked
            twice, the second time with the images in reverse order.
    """

    name: str
    kind: Literal["automatic", "vlm"]

    def order(self, question: Question) -> Tiers:
        """Positions of the images in tiers, the best first; those of one tier tie."""
        ...


class PixelJudge:
    """Orders images by PSNR to the reference; within a tenth of a decibel they tie.

    It needs no network and no weights, and shows what a plug-in is.
    """

    name = "pixels/1"
    kind: Literal["automatic", "vlm"] = "automatic"
    margin = 0.1

    def order(self, question: Question) -> Tiers:
        """See ``Judge``. Raises ValueError where there is no reference."""
        if question.reference is None:
            raise ValueError("pixels compares with the reference, and none is shown")
        reference = _pixels(question.reference)
        scores = {}
        for position, data in enumerate(question.images):
            error = float(np.mean((_pixels(data) - reference) ** 2))
            scores[str(position)] = 10 * np.log10(255.0**2 / max(error, 1e-6))
        found = tiers_of(scores, self.margin, higher_is_better=True)
        return [[int(position) for position in tier] for tier in found]


def _pixels(data: bytes) -> "np.ndarray[tuple[int, ...], np.dtype[np.float64]]":
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), dtype=np.float64)


BUILT_IN: dict[str, Callable[[], Judge]] = {"pixels": PixelJudge}


def load(name: str) -> Judge:
    """A judge by name: a built-in one, ``FILE.py:NAME``, or ``package.module:NAME``.

    ``NAME`` is a class or function that is called without arguments.

    Raises:
        JudgeError: it cannot be loaded, or is no judge.
    """
    if name in BUILT_IN:
        return BUILT_IN[name]()
    where, _, attribute = name.rpartition(":")
    if not where or not attribute:
        known = ", ".join(sorted(BUILT_IN))
        raise JudgeError(f"no judge {name!r}: give {known}, FILE.py:NAME or MODULE:NAME")
    try:
        judge: Any = getattr(_module(where), attribute)()
    except Exception as error:  # it is somebody else's code
        text = " ".join(str(error).split())
        raise JudgeError(f"cannot load judge {name}: {type(error).__name__}: {text}") from error
    if not getattr(judge, "name", "") or getattr(judge, "kind", "") not in ("automatic", "vlm"):
        raise JudgeError(f"{name} is no judge: it needs a name, and kind automatic or vlm")
    if not callable(getattr(judge, "order", None)):
        raise JudgeError(f"{name} is no judge: it has no method order")
    found: Judge = judge
    return found


def _module(where: str) -> Any:
    if not where.endswith(".py"):
        return importlib.import_module(where)
    path = Path(where)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise FileNotFoundError(f"no file {where}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@dataclass(frozen=True, slots=True)
class Rate:
    """How fast a judge may be called.

    Attributes:
        per_minute: calls a minute at most; 0 is no limit.
        clock: seconds.
        sleep: waits for seconds.
    """

    per_minute: float = 0.0
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep


def judge_id(salt: str, name: str) -> str:
    """The id of a program as a judge: the same in every run on one log."""
    return hmac.new(salt.encode(), f"program:{name}".encode(), hashlib.sha256).hexdigest()[:16]


def ask(
    judge: Judge,
    desk: Desk,
    wanted: int,
    rate: Rate,
    said: Callable[[int, int], None] = lambda done, wanted: None,
) -> int:
    """Let a judge answer until the log holds ``wanted`` ranked votes of it.

    Args:
        judge: who is asked.
        desk: issues sets and takes answers.
        wanted: votes of this judge in the log at the end, those of earlier runs included.
        rate: how fast.
        said: called with the votes so far, and ``wanted``, after each.

    Returns:
        The number of its votes in the log. It is less than ``wanted`` where every set that is
        left was answered before: asking again would add nothing.

    Raises:
        JudgeError: the judge failed several times in a row. What it answered before is kept.
    """
    who = Who(
        judge_id(desk.log.meta("salt"), judge.name), str(uuid.uuid4()), judge.kind, judge.name
    )
    caller = _Caller(judge, rate)
    idle = 0
    while (done := len(desk.memory.own[who.id])) < wanted:
        issued = desk.issue(who).result()
        names = [placed.contestant for placed in issued.shown]
        if content(issued.scene, names) in desk.memory.asked[who.id]:
            idle += 1
            desk.answer(who, Answer(str(uuid.uuid4()), issued.id, "skip", (), 0)).result()
            if idle > 20:
                return done
            continue
        idle = 0
        began = rate.clock()
        tiers = caller.order(_question(desk, issued), len(issued.shown))
        dwell = int(1000 * max(rate.clock() - began, 0.0))
        desk.answer(who, Answer(str(uuid.uuid4()), issued.id, "rank", tiers, dwell)).result()
        said(len(desk.memory.own[who.id]), wanted)
    return done


class _Caller:
    """Calls a judge in time, again where it fails, and both ways round where that matters."""

    def __init__(self, judge: Judge, rate: Rate) -> None:
        self._judge, self._rate = judge, rate
        self._next = rate.clock()

    def order(self, question: Question, size: int) -> tuple[tuple[int, ...], ...]:
        first = self._call(question, size)
        if self._judge.kind != "vlm":
            return first
        turned = Question(question.task, question.prompt, question.images[::-1], question.reference)
        second = self._call(turned, size)
        back = tuple(tuple(size - 1 - position for position in tier) for tier in second)
        return joined(first, back)

    def _call(self, question: Question, size: int) -> tuple[tuple[int, ...], ...]:
        for attempt in range(TRIES):
            self._wait()
            try:
                tiers = normal(self._judge.order(question))
                check_answer("rank", tiers, size)
            except Exception as error:  # it is somebody else's code, and somebody's network
                text = " ".join(str(error).split())[:200]
                fault = f"{self._judge.name} failed: {type(error).__name__}: {text}"
                self._rate.sleep(2.0**attempt)
            else:
                return tiers
        raise JudgeError(f"{fault} ({TRIES} times; the same command goes on from here)")

    def _wait(self) -> None:
        if self._rate.per_minute:
            late = self._next - self._rate.clock()
            if late > 0:
                self._rate.sleep(late)
            self._next = max(self._next, self._rate.clock()) + 60.0 / self._rate.per_minute


def joined(one: Tiers, other: Tiers) -> tuple[tuple[int, ...], ...]:
    """Two answers to one question as one: what they do not agree on is a tie.

    An image begins a new tier where both answers put it below every image of the tier above.
    """
    places = [
        {position: number for number, tier in enumerate(tiers) for position in tier}
        for tiers in (one, other)
    ]
    ordered = sorted(places[0], key=lambda p: (places[0][p] + places[1][p], p))
    found: list[list[int]] = []
    for position in ordered:
        above = found[-1] if found else []
        if above and not all(
            place[better] < place[position] for better in above for place in places
        ):
            above.append(position)
        else:
            found.append([position])
    return normal(found)


def _question(desk: Desk, issued: IssuedSet) -> Question:
    def png(placed: Any) -> bytes:
        return desk.pictures.png(placed.path, placed.treatment)

    reference = png(issued.reference) if issued.reference else None
    return Question(issued.task, issued.prompt, tuple(map(png, issued.shown)), reference)
