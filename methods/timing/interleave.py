"""Fair timing of several functions on a machine that others use too."""

import time
from collections.abc import Callable

from quantarena.methods.timing.clock import thread_clock
from quantarena.methods.timing.rivals import Run


def interleave(runs: dict[str, Run], rounds: int, threads: int) -> dict[str, float]:
    """Times every run once per round, so that changes of the machine's load affect all alike."""
    clock = thread_clock() if threads == 1 else time.perf_counter
    repeats, samples = {}, {name: list[float]() for name in runs}
    for name, run in runs.items():
        run()
        repeats[name] = _repeats(run, clock)
    for _ in range(rounds):
        for name, run in runs.items():
            start = clock()
            for _ in range(repeats[name]):
                run()
            samples[name].append((clock() - start) / repeats[name])
    if threads > 1:
        return {name: min(times) for name, times in samples.items()}
    return {name: sorted(times)[len(times) // 2] for name, times in samples.items()}


def _repeats(run: Run, clock: Callable[[], float], seconds: float = 0.02) -> int:
    """Calls that take about that long; found from enough of them that a coarse clock has ticked."""
    tried = 1
    while True:
        start = clock()
        for _ in range(tried):
            run()
        if (spent := clock() - start) >= seconds / 2:
            return max(1, round(tried * seconds / spent))
        tried *= 2
