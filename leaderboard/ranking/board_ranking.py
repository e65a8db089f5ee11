"""The ranking of one board, as a value."""

from collections.abc import Mapping
from dataclasses import dataclass

from quantarena.leaderboard.inference.run_effects import FEWEST_RUNS
from quantarena.leaderboard.ranking.quality import QualityStanding
from quantarena.leaderboard.ranking.read_results import BoardId
from quantarena.leaderboard.ranking.standings import Standing


@dataclass(frozen=True, slots=True)
class BoardRanking:
    """The fidelity ranking of one board, width by width, best first.

    Attributes:
        board: what was compared.
        metric: metric that images were judged by, None when no contestant has per-image scores.
        margin: difference up to which two images tie.
        margin_source: how the margin was found, in words.
        floor: mean of the metric for full precision with bfloat16 weights, if it was measured.
        another_draw: mean of the metric between images of other noise, if it was measured.
        units: number of prompts, or of images without prompts.
        runs: number of seeds.
        seeds: these seeds, in order.
        standings: the ranked contestants.
        unranked: for each other contestant the reason why it has no rank.
        quality: ranks in metrics of whole sets of images.
    """

    board: BoardId
    metric: str | None
    margin: float
    margin_source: str
    floor: float | None
    another_draw: float | None
    units: int
    runs: int
    standings: tuple[Standing, ...]
    unranked: Mapping[str, str]
    quality: tuple[QualityStanding, ...] = ()
    seeds: tuple[int, ...] = ()

    @property
    def beyond_runs(self) -> bool:
        """True where there are runs enough for claims on other runs than those at hand."""
        return self.runs >= FEWEST_RUNS

    def standing(self, name: str) -> Standing | None:
        """The standing of ``method@bits``, if it is ranked."""
        return next((s for s in self.standings if s.contestant == name), None)
