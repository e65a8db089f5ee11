"""Which setting of full precision is fastest on this machine, found once for each workload."""

import json
from pathlib import Path

from quantarena.bench.cache import StageCache
from quantarena.bench.closure import closure
from quantarena.bench.machine import fingerprint
from quantarena.bench.spec import content_key
from quantarena.bench.stages import latency
from quantarena.bench.stages.workspace import Workspace
from quantarena.methods.core.record.trajectory import CalibrationSet


def fastest_setting(workspace: Workspace, batch: CalibrationSet, cache: StageCache) -> str:
    """The name of the fastest setting, from the cache or measured now.

    All cells of a workload are timed against one baseline, so that their ratios can be compared.

    Args:
        workspace: the workload; its denoiser is timed.
        batch: one batch of recorded inputs.
        cache: of stages.
    """

    def make(folder: Path) -> None:
        found = latency.fastest_full_precision(workspace.loaded.denoiser, batch)
        (folder / "setting.json").write_text(json.dumps(found))

    def read(folder: Path) -> str:
        return str(json.loads((folder / "setting.json").read_text()))

    inputs = [workspace.loaded.sha256, workspace.settings(), len(batch), fingerprint()]
    key = content_key([inputs, closure("quantarena.bench.stages.latency").key])
    return cache.load("setting", key, make, read)
