"""What the next set shows: the prompt, the contestants, the checks, and the order of display."""

import random
import secrets
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from quantarena.leaderboard.arena.catalogue import Catalogue, Scene
from quantarena.leaderboard.arena.engines.protocols import Matchmaker, Past
from quantarena.leaderboard.arena.events import (
    DESTROYED,
    INTACT,
    Matched,
    Purpose,
    Task,
    VoteEvent,
)
from quantarena.leaderboard.arena.images import DESTROY, Pictures
from quantarena.leaderboard.arena.memory import START, Memory, content, content_of, scene_key

REPEAT_AFTER = 5
"""Answers between a set and its repetition: by then the first answer is forgotten."""
CHANCE = "chance-1"
"""The matchmaker of a set whose contestants were drawn by lot."""
TRIED = 8
"""Prompts for which contestants are chosen, until there is a set that the judge does not know."""
SAMPLED = 64
"""Prompts of a board, drawn at random, among which the least seen one is taken."""


class MissingImage(ValueError):
    """An image file that was there when the server started, and is not any more."""


@dataclass(frozen=True, slots=True)
class Placed:
    """One image of a set.

    Attributes:
        contestant: who drew it.
        sha256: of the image file.
        path: the image file.
        treatment: ``destroy`` for an image that is spoilt before it is served.
        token: the opaque id under which it is served, 32 hex digits.
    """

    contestant: str
    sha256: str
    path: Path
    treatment: str
    token: str


@dataclass(frozen=True, slots=True)
class IssuedSet:
    """A set as the server keeps it; voters get ids and the prompt only.

    Attributes:
        id: 32 random hex digits.
        judge: who may answer.
        task: what is asked.
        board: key of the board.
        unit: unit of evidence.
        seed: of the images.
        image: number of the image.
        prompt: in words.
        purpose: as in ``VoteEvent``.
        shown: the images, in the order of display.
        reference: full precision's image, where it is shown.
        matchmaker: what chose the contestants.
        issued: seconds since 1970.
        expires: seconds since 1970.
    """

    id: str
    judge: str
    task: Task
    board: str
    unit: str
    seed: int
    image: int
    prompt: str
    purpose: Purpose
    shown: tuple[Placed, ...]
    reference: Placed | None
    matchmaker: Matched
    issued: float
    expires: float

    @property
    def scene(self) -> str:
        """The key of its scene."""
        return f"{self.board}|{self.seed}|{self.image}"


@dataclass(frozen=True, slots=True)
class Settings:
    """How an arena asks.

    Attributes:
        task: ``fidelity`` (which is nearest to full precision) or ``preference``.
        size: K, images of a set.
        reference: whether full precision's image is shown.
        gold: share of sets that check attention.
        repeats: share of sets that were asked before.
        expires: seconds until a set that nobody answered is void. Accessibility asks for no time
            limit, or for one of at least twenty hours.
        most_open: sets that one judge may hold: the present one and the next.
        most_votes: ranked votes that one judge may cast; 0 is no limit.
        page: version of the page.
        kinds: judges of these kinds inform the choice of sets, and the live board.
    """

    task: Task = "fidelity"
    size: int = 4
    reference: bool = True
    gold: float = 0.05
    repeats: float = 0.05
    expires: float = 24 * 3600.0
    most_open: int = 2
    most_votes: int = 0
    page: str = ""
    kinds: frozenset[str] = frozenset({"human"})


class Dealer:
    """Puts sets together. The same memory and seed give the same set, but for its opaque ids."""

    def __init__(
        self,
        catalogue: Catalogue,
        settings: Settings,
        matchmaker: Matchmaker,
        pictures: Pictures,
    ) -> None:
        self._catalogue, self._settings = catalogue, settings
        self._scenes = {scene.key: scene for scene in catalogue.scenes}
        self._boards: dict[str, list[Scene]] = {}
        for scene in catalogue.scenes:
            self._boards.setdefault(scene.board, []).append(scene)
        self._matchmaker, self._pictures = matchmaker, pictures

    def deal(
        self, memory: Memory, judge: str, others: Sequence[IssuedSet], *, seed: int, now: float
    ) -> IssuedSet:
        """The next set for a judge.

        Args:
            memory: what the log says.
            judge: who will answer.
            others: sets that are out and not answered.
            seed: decides everything that is random.
            now: seconds since 1970.
        """
        rng = random.Random(seed)
        purpose = self._purpose(rng)
        before = self._earlier(memory, judge, others, rng) if purpose == "repeat" else None
        if before is None:
            purpose = "rank" if purpose == "repeat" else purpose
            scene, names, matched = self._fresh(memory, judge, others, rng, seed, purpose)
            purpose = _possible(purpose, scene)
            shown = self._shown(scene, names, purpose)
        else:
            scene = self._scenes[scene_key(before)]
            matched = before.matchmaker
            shown = [self._placed(one.contestant, scene) for one in before.shown]
        rng.shuffle(shown)
        reference = None
        if self._settings.reference and scene.reference:
            reference = self._file("fp", scene.reference)
        return IssuedSet(
            id=secrets.token_hex(16),
            judge=judge,
            task=self._settings.task,
            board=scene.board,
            unit=scene.unit,
            seed=scene.seed,
            image=scene.image,
            prompt=scene.prompt,
            purpose=purpose,
            shown=tuple(shown),
            reference=reference,
            matchmaker=matched,
            issued=now,
            expires=now + self._settings.expires,
        )

    def _purpose(self, rng: random.Random) -> Purpose:
        draw = rng.random()
        if draw < self._settings.gold:
            return "gold-order" if draw < self._settings.gold / 2 else "gold-tie"
        return "repeat" if draw < self._settings.gold + self._settings.repeats else "rank"

    def _earlier(
        self, memory: Memory, judge: str, others: Sequence[IssuedSet], rng: random.Random
    ) -> VoteEvent | None:
        """A vote of the judge's that can be asked for again: old enough, once only, still here."""
        own = memory.own[judge][:-REPEAT_AFTER]
        waiting = {one.scene for one in others if one.judge == judge}
        fit = [
            event
            for event in own
            if event.mode == "rank"
            and event.purpose == "rank"
            and content_of(event) not in memory.repeated[judge]
            and scene_key(event) not in waiting
            and self._still_there(event)
        ]
        return rng.choice(fit) if fit else None

    def _still_there(self, event: VoteEvent) -> bool:
        scene = self._scenes.get(scene_key(event))
        return scene is not None and all(one.contestant in scene.files for one in event.shown)

    def _fresh(
        self,
        memory: Memory,
        judge: str,
        others: Sequence[IssuedSet],
        rng: random.Random,
        seed: int,
        purpose: Purpose,
    ) -> tuple[Scene, tuple[str, ...], Matched]:
        """A prompt and its contestants that the judge was not asked to compare there before.

        Where the matchmaker has none for the first few prompts, chance finds one; where nothing
        is new, the matchmaker's first one is asked again.
        """
        asked = memory.asked[judge] | {
            content(one.scene, [placed.contestant for placed in one.shown])
            for one in others
            if one.judge == judge
        }
        first = None
        for scene in self._ordered(memory, judge, others, rng, purpose)[:TRIED]:
            names, matched = self._contestants(memory, scene, others, seed, purpose)
            found = (scene, names, matched)
            if content(scene.key, names) not in asked:
                return found
            first = first or found
        assert first is not None, "a catalogue has scenes"
        scene, names, matched = first
        for _ in range(TRIED):
            drawn = tuple(rng.sample(sorted(scene.files), len(names)))
            if content(scene.key, drawn) not in asked:
                return scene, drawn, replace(matched, name=CHANCE)
        return first

    def _ordered(
        self,
        memory: Memory,
        judge: str,
        others: Sequence[IssuedSet],
        rng: random.Random,
        purpose: Purpose,
    ) -> list[Scene]:
        """Of the board with the fewest looks at a contestant, prompts with few looks first.

        A prompt that the judge has not seen comes before one that the judge has.
        """
        boards, scenes = Counter(memory.board_looks), Counter(memory.looks)
        for one in others:
            boards[one.board] += 1
            scenes[one.scene] += 1
        names = sorted(self._boards)
        rng.shuffle(names)
        board = min(names, key=lambda name: boards[name] / len(self._catalogue.contestants[name]))
        seen = memory.seen[judge] | {one.scene for one in others if one.judge == judge}
        there = self._boards[board]
        drawn = rng.sample(there, min(SAMPLED, len(there)))
        if purpose == "gold-order":
            drawn = [scene for scene in drawn if scene.reference] or drawn
        return sorted(drawn, key=lambda scene: (scene.key in seen, scenes[scene.key]))

    def _contestants(
        self,
        memory: Memory,
        scene: Scene,
        others: Sequence[IssuedSet],
        seed: int,
        purpose: Purpose,
    ) -> tuple[tuple[str, ...], Matched]:
        past = Past(
            f"{scene.board}|{self._settings.task}",
            memory.votes[scene.board],
            [
                tuple(placed.contestant for placed in one.shown)
                for one in others
                if one.board == scene.board
            ],
        )
        room = {"gold-order": 2, "gold-tie": 1}.get(_possible(purpose, scene), 0)
        size = max(self._settings.size - room, 1)
        names = tuple(sorted(scene.files))
        chosen = self._matchmaker.next_set(past, names, size=size, seed=seed)
        matched = Matched(self._matchmaker.name, seed, memory.basis.get(scene.board, START))
        return chosen[:size], matched

    def _shown(self, scene: Scene, names: Sequence[str], purpose: Purpose) -> list[Placed]:
        shown = [self._placed(name, scene) for name in names]
        if purpose == "gold-tie":
            shown.append(self._placed(names[0], scene))
        elif purpose == "gold-order" and scene.reference:
            few = shown[: max(self._settings.size - 2, 0)]
            shown = [self._file(INTACT, scene.reference), *few]
            shown.append(self._file(DESTROYED, scene.reference, DESTROY))
        return shown

    def _placed(self, name: str, scene: Scene) -> Placed:
        return self._file(name, scene.files[name])

    def _file(self, name: str, path: Path, treatment: str = "") -> Placed:
        try:
            sha256 = self._pictures.sha256(path)
        except OSError as error:
            raise MissingImage(f"{path.name} of {name}: {error.strerror or error}") from None
        return Placed(name, sha256, path, treatment, secrets.token_hex(16))


def _possible(purpose: Purpose, scene: Scene) -> Purpose:
    """The purpose of a set on a scene: nothing can be spoilt where there is no reference."""
    return "rank" if purpose == "gold-order" and scene.reference is None else purpose
