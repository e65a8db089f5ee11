"""Groups the free channels of a network into the places where outliers can be planted."""

from dataclasses import dataclass
from enum import StrEnum

from quantarena.bench.workloads.outliers.follow import Channels
from quantarena.bench.workloads.outliers.ties import FIXED


class SiteKind(StrEnum):
    """What a site's channels are.

    ``CHANNELS`` lie between a layer or norm and the layers that read them. ``STREAM`` is an image
    that norms read too, so all channels of a group have one factor. ``HALF`` is the deep half of a
    concatenation. ``SCORES`` are channels of queries, with one over the factor on the keys.
    """

    CHANNELS = "channels"
    STREAM = "stream"
    HALF = "half"
    SCORES = "scores"


@dataclass(frozen=True, slots=True)
class Site:
    """Free channels that the same layers read.

    Attributes:
        kind: what they are.
        readers: paths of the layers that read them.
        classes: classes of channels, in order; each has one factor.
    """

    kind: SiteKind
    readers: tuple[str, ...]
    classes: tuple[int, ...]

    @property
    def name(self) -> str:
        """A name that depends on nothing but the network."""
        return f"{self.kind}:{','.join(self.readers)}"


def sites_of(channels: Channels) -> tuple[Site, ...]:
    """The sites of a network.

    A class that no layer and no attention reads is in none, nor is one whose factor would be felt.
    """
    ties = channels.ties
    readers: dict[int, list[str]] = {}
    for path, numbers in channels.read.items():
        for number in numbers.tolist():
            found = readers.setdefault(ties.find(number)[0], [])
            if path not in found:
                found.append(path)
    for left in {FIXED, *(ties.find(number)[0] for number in channels.faint)}:
        readers.pop(left, None)
    normed = {ties.find(number)[0] for number in channels.normed}
    halves = _deep(channels) & normed
    grouped: dict[tuple[SiteKind, tuple[str, ...]], list[int]] = {}
    for root, paths in sorted(readers.items()):
        kind = SiteKind.STREAM if root in normed else SiteKind.CHANNELS
        if root in halves:
            grouped.setdefault((SiteKind.HALF, tuple(sorted(paths))), []).append(root)
        grouped.setdefault((kind, tuple(sorted(paths))), []).append(root)
    makers = _makers(channels)
    for query in sorted({ties.find(query)[0] for query, _ in channels.rules.scores}):
        if query != FIXED and query not in readers:
            grouped.setdefault((SiteKind.SCORES, (makers[query],)), []).append(query)
    return tuple(Site(*key, tuple(classes)) for key, classes in grouped.items())


def _deep(channels: Channels) -> set[int]:
    """The classes that are only in the first part of concatenations: a U-Net's deep half."""
    first, others = set(), set()
    for parts in channels.rules.joined:
        classes = [{channels.ties.find(number)[0] for number in part} for part in parts]
        if len(classes) > 1:
            first |= classes[0]
            others |= set().union(*classes[1:])
    return first - others - {FIXED}


def _makers(channels: Channels) -> dict[int, str]:
    """The path of the first module that makes a channel of each class."""
    makers: dict[int, str] = {}
    for path, numbers in channels.made.items():
        for number in numbers.tolist():
            makers.setdefault(channels.ties.find(number)[0], path)
    return makers
