"""The fake stages in the state of the process that the real ones run in; they change it, too.

``rude`` in ``behaviour.json`` is a method that leaves precisions and functions changed, ``deaf``
one that closes what the run writes to; ``rlimit`` stands for one that leaves what a child process
inherits.
"""

import json
import os
import signal

import fake_stages
import torch
from fake_stages import Paths, prepare, script, time_cell

from quantarena.bench import process_state

__all__ = ["Paths", "prepare", "run_cell", "time_cell"]


def run_cell(cell, paths, *, plugins=(), prefer_plugin=False, batch=0, progress):
    what = script(paths, f"{cell.method}/{cell.bits}")
    with process_state.process_state():
        torch.get_float32_matmul_precision()  # raises where precisions are mixed
        row = fake_stages.run_cell(cell, paths, progress=progress)
        if what == "rude":
            torch.backends.mkldnn.matmul.fp32_precision = "bf16"
            torch.backends.cuda.matmul.fp32_precision = "tf32"
            os.replace = json.dumps = None
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        if what == "deaf":  # the last thing that it does: pytest's own streams must come back
            os.close(1)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 2)
            progress("quantize", 9, 10)
    if what == "rlimit":
        process_state._lasting["the limit RLIMIT_CHAIRS (3, now 2)"] = True
    return row
