"""A run of quantarena whose seconds are processor seconds, so that other programs do not count.

    python docs/experiments/scale/cpu_run.py run quick --workload emoji-t2i --executor local

Stages compute on one thread, so that on a quiet machine their wall seconds are about these. Rows of
such a run are good for the simulation of this folder and for nothing else: their latencies are
processor time, too.
"""

import sys
import time

time.perf_counter = time.process_time
time.monotonic = time.process_time

from quantarena.bench.cli.main import main  # noqa: E402

if __name__ == "__main__":
    sys.argv[0] = "quantarena"
    main()
