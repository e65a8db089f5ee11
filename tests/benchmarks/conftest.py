"""One cell's model, quantized and packed, on the zoo's model or on a tiny network without it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from quantarena.bench.cache import StageCache
from quantarena.bench.machine import fingerprint
from quantarena.bench.spec import Budget, Cell
from quantarena.bench.stages import sequence
from quantarena.bench.stages.latency import measure
from quantarena.bench.stages.record import trajectory
from quantarena.bench.stages.workspace import Workspace, open_workspace
from quantarena.bench.workloads import registry as workloads
from quantarena.methods.contract import MethodContext
from quantarena.methods.core.model.model import QuantizedModel
from quantarena.methods.core.model.policy import policy
from quantarena.methods.core.packed.pack import observe, pack
from quantarena.methods.core.trace.network import trace
from quantarena.methods.info import Effort
from quantarena.methods.registry import method_entry

ZOO = "emoji-t2i"
BUDGET = Budget(
    images=4, batch=4, steps=4, calibration_images=8, calibration_samples=32, iterations=4
)


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]):
    found = fingerprint()
    machine_info["quantarena"] = {
        name: found[name] for name in ("cpu", "cores", "isa", "ram_bytes", "gpu", "versions")
    }


@dataclass
class Bench:
    """A workload whose trajectory is recorded, and how a method runs on it."""

    workload: str
    workspace: Workspace
    recorded: Any

    def context(self, cell: Cell) -> MethodContext:
        first = self.recorded.pick(torch.zeros(2, dtype=torch.long), torch.arange(2))
        model = self.workspace.loaded.denoiser
        graph = trace(model, first.sample, timestep=first.timestep, **first.conditions)
        effort = Effort(cell.budget.calibration_samples, cell.budget.iterations)
        return MethodContext(
            model,
            graph,
            self.recorded,
            cell.widths,
            policy(cell.policy),
            cell.variant,
            cell.seed,
            effort,
        )

    def quantize(self, cell: Cell) -> QuantizedModel:
        return method_entry(cell.method).configured(cell.options).run(self.context(cell))

    def time_quantize(self, benchmark: Any, cell: Cell) -> QuantizedModel:
        """Seconds to quantize, two rounds."""
        model = benchmark.pedantic(self.quantize, (cell,), rounds=2)
        benchmark.extra_info.update(self.labels(cell), iterations=cell.budget.iterations)
        return model

    def time_step(self, benchmark: Any, cell: Cell, model: QuantizedModel) -> None:
        """Latency of one packed step, and its ratio to full precision measured in turns."""
        packed, original = pack(model), self.workspace.loaded.denoiser
        points = sequence.sampler_batch(self.recorded, cell.budget.batch)
        with torch.no_grad(), packed.clock.at(int(points.step[0])):
            benchmark.pedantic(points.call, (packed.module,), rounds=20, warmup_rounds=3)
            latency, _ = measure(
                packed.module,
                original,
                points,
                backend=packed.backend,
                setting="fp32 eager",
                images=cell.budget.batch,
                steps=self.recorded.calls,
                rounds=20,
            )
        seen = observe(model, packed, original)
        benchmark.extra_info.update(
            self.labels(cell),
            backend=packed.backend,
            ratio_to_fp32=latency.ratio,
            ratio_interval=[latency.ratio_low, latency.ratio_high],
            fp_setting=latency.fp_setting,
            batch=cell.budget.batch,
            coverage=seen.coverage,
            weight_bits_observed=seen.weight_bits,
        )

    def labels(self, cell: Cell) -> dict[str, Any]:
        return {
            "cell_key": cell.key,
            "workload": self.workload,
            "method": cell.method,
            "bits": cell.bits,
            "threads": torch.get_num_threads(),
        }


@pytest.fixture(scope="session")
def bench(request, tmp_path_factory) -> Bench:
    torch.set_num_threads(1)
    present = ZOO in workloads.names()
    workload = ZOO if present else str(request.getfixturevalue("pixel_folder"))
    workspace = open_workspace(Cell(workload, "fp", "fp", budget=BUDGET))
    recorded = trajectory(workspace, StageCache(tmp_path_factory.mktemp("cache")))
    return Bench(ZOO if present else "tiny", workspace, recorded)


@pytest.fixture(scope="session")
def quantized(bench) -> Callable[[Cell], QuantizedModel]:
    """Quantized models by cell: the latency benchmark need not quantize again."""
    made: dict[Cell, QuantizedModel] = {}

    def get(cell: Cell) -> QuantizedModel:
        if cell not in made:
            made[cell] = bench.quantize(cell)
        return made[cell]

    return get


@pytest.fixture(scope="session")
def cell_of(bench) -> Callable[[str, str], Cell]:
    return lambda method, bits: Cell(bench.workspace.info.name, method, bits, budget=BUDGET)
