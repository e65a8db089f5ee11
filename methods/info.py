"""Plain data that describes a method: where it comes from, what it can do, what it may spend."""

from dataclasses import dataclass

from quantarena.methods.core.lengths import PUBLISHED_ITERATIONS

BOARD_BITS = ("w8a8", "w4a8", "w4a4", "w2a4")
"""The widths that the larger presets compare methods at."""


@dataclass(frozen=True, slots=True)
class MethodInfo:
    """Where a method comes from and what it claims.

    Attributes:
        title: display name.
        venue: such as ``ICCV 2023``; ``-`` when there is none.
        paper: arXiv id or DOI; ``-`` when there is none.
        summary: one line.
        version: number to raise by hand whenever the method's results could change; part of every
            cache key.
        bibtex: entry to cite.
        deviations: differences from the paper, one line each.
        url: of a library; empty for a paper.
        licence: of that library.
    """

    title: str
    venue: str
    paper: str
    summary: str
    version: int = 1
    bibtex: str = ""
    deviations: tuple[str, ...] = ()
    url: str = ""
    licence: str = ""


@dataclass(frozen=True, slots=True)
class Capabilities:
    """The requests that a method can meet; any other request becomes a skipped row.

    ``most_iterations`` and ``board_bits`` are read from the source without importing it (see
    ``methods/builtin.py``), so a built-in method writes them as literals.

    Attributes:
        weight_bits: supported weight widths; 16 leaves weights in floating point.
        act_bits: supported activation widths; 16 leaves activations in floating point.
        variants: ``paper`` (the formula), ``release`` (the official code's behaviour).
        most_iterations: iterations a block that the method uses at most; 0 for a method that
            learns nothing, None for one that uses all that a preset allows. It makes estimates of
            time, nothing else.
        board_bits: widths at which the larger presets run a built-in method.
        budget: whether it chooses widths itself under policy ``budget``.
        whole_network: whether it learns all layers at once, so that the whole network has to be on
            the device; not one block after the other.
    """

    weight_bits: tuple[int, ...] = (2, 3, 4, 5, 6, 7, 8)
    act_bits: tuple[int, ...] = (2, 3, 4, 5, 6, 7, 8)
    variants: tuple[str, ...] = ("paper",)
    most_iterations: int | None = None
    board_bits: tuple[str, ...] = BOARD_BITS
    budget: bool = False
    whole_network: bool = False


@dataclass(frozen=True, slots=True)
class Effort:
    """What a preset lets a method spend.

    Attributes:
        samples: number of calibration points to learn from: reconstruction, distillation, walks.
        iterations: reconstruction iterations a block.
        range_samples: largest number of points that ranges, smoothing and dilation are found on;
            0 allows as many as ``samples``. These cost a pass without gradients. What counts are
            distinct images, see docs/protocol.md.
    """

    samples: int
    iterations: int
    range_samples: int = 1280

    @property
    def as_published(self) -> bool:
        """Whether there is room for the lengths and rates of the papers themselves."""
        return self.iterations >= PUBLISHED_ITERATIONS
