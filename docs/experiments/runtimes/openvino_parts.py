r"""Times an OpenVINO export with parts of it taken away, beside NNCF's int8 of the same network.

    quantarena quantize emoji-t2i --method q_diffusion --bits w8a8 -o packed
    python docs/experiments/runtimes/openvino_parts.py packed
    python docs/experiments/runtimes/openvino_parts.py packed symmetric \
        --only "the export" --rounds 8

docs/runtimes.md has the numbers. A network without a part computes something else: what it shows is
the time that the part takes. Each network is timed in turns with the others, on one thread; then
OpenVINO's own counters give the number of operations that run and their time by kind. The second
table has these of the first graph and of the last, NNCF's, by kind and primitive. More folders of
the same network are exported as they are, and take their turns too.
"""

import argparse
import contextlib
import io
import logging
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nncf
import numpy as np
import torch

from quantarena.bench.devices.turns import take_turns
from quantarena.bench.machine import has_dot_products
from quantarena.bench.ship import export_model
from quantarena.bench.ship.pipeline_folder import open_exported
from quantarena.methods.core.packed.step.recorded import RecordedStep
from quantarena.methods.rivals import ov_network
from quantarena.methods.rivals.positional import arguments
from quantarena.methods.rivals.stand_in import StandIn
from quantarena.methods.runtimes import openvino_graph
from quantarena.methods.runtimes.plain_layers import plain_network

COUNTED = 6
EXACT = openvino_graph._codes_of
ZERO_PART = openvino_graph._zero_part


def one_quantizer() -> Callable[..., Any]:
    """The first quantizer of an input serves all layers that read it."""
    made: dict[tuple[str, int, bool], Any] = {}

    def codes(x: Any, layer: Any, *, turned: bool) -> Any:
        key = (x.get_node().get_friendly_name(), x.get_index(), turned)
        if key not in made:
            made[key] = EXACT(x, layer, turned=turned)
        return made[key]

    return codes


def rounds_by_itself(x: Any, layer: Any, *, turned: bool) -> Any:
    """A plain FakeQuantize, which rounds after it has added the zero point."""
    import openvino.opset15 as ov

    scale = np.float32(layer.act_scale.reshape(-1)[0])
    zero, levels = int(layer.act_zero.reshape(-1)[0]), 1 << layer.act_bits
    if layer.in_mult is not None:
        factor = layer.in_mult.numpy().astype(np.float32)
        shape = [-1, 1] if turned else openvino_graph._channels(layer)
        x = ov.multiply(x, ov.constant(factor.reshape(shape)))
    low, high = (ov.constant(np.float32(end * scale)) for end in (-zero, levels - 1 - zero))
    return ov.fake_quantize(x, low, high, low, high, levels).output(0)


def no_zero_part(*args: Any, **kwargs: Any) -> Any:
    """Nothing in the place of what weight zero points take off."""
    import openvino.opset15 as ov

    return ov.constant(np.float32(0))


FORMS: dict[str, tuple[Callable[[], Callable[..., Any]], Callable[..., Any]]] = {
    "the export": (lambda: EXACT, ZERO_PART),
    "one quantizer an input": (one_quantizer, ZERO_PART),
    "no weight zero points": (lambda: EXACT, no_zero_part),
    "neither": (one_quantizer, no_zero_part),
    "plain FakeQuantize": (lambda: rounds_by_itself, ZERO_PART),
    "plain FakeQuantize, no weight zero points": (lambda: rounds_by_itself, no_zero_part),
}


def network_of(model: Any) -> ov_network.OpenVinoNetwork:
    """The model with OpenVINO's counters on."""
    with tempfile.TemporaryDirectory() as folder:
        ov_network.save(model, Path(folder))
        made = ov_network.OpenVinoNetwork(Path(folder) / ov_network.MODEL, ov_network.F32)
    settings = made._settings() | {"PERF_COUNT": True}
    made.__dict__["_settings"] = lambda: settings
    return made


def quantized_by_nncf(network: Any, points: Any) -> Any:
    """NNCF's int8 of the same architecture; its weights are random, which changes no time."""
    kind = network.packed_from  # the class of diffusers, less what packed networks add
    model = ov_network.convert(kind.from_config(network.config).eval(), points)
    given = [t.numpy() for t in arguments(points.sample, points.timestep, points.conditions)]
    nncf.set_log_level(logging.ERROR)
    with contextlib.redirect_stdout(io.StringIO()):
        return nncf.quantize(
            model,
            nncf.Dataset([given]),
            subset_size=1,
            preset=nncf.QuantizationPreset.MIXED,
            model_type=nncf.ModelType.TRANSFORMER,
        )


Kind = tuple[str, str]
"""What an operation is, and what computes it."""
Counts = tuple[Counter[Kind], Counter[Kind]]
"""Operations, and their milliseconds."""


def counted(network: ov_network.OpenVinoNetwork, points: Any) -> Counts:
    """Operations that ran in a step, and their milliseconds, by kind and primitive."""
    request = network.compiled_for(points).create_infer_request()
    given = [t.numpy() for t in arguments(points.sample, points.timestep, points.conditions)]
    counts, spent = Counter[Kind](), Counter[Kind]()
    for _ in range(COUNTED):
        request.infer(given)
        for node in request.get_profiling_info():
            if node.real_time.total_seconds():
                kind = (node.node_type, node.exec_type)
                counts[kind] += 1
                spent[kind] += 1e3 * node.real_time.total_seconds() / COUNTED
    return Counter({kind: count // COUNTED for kind, count in counts.items()}), spent


def kinds_table(found: dict[str, Counts]) -> str:
    """Operations and milliseconds of several graphs, by kind; the largest difference first."""
    names = list(found)
    kinds = {kind for counts, _ in found.values() for kind in counts}
    first, last = (found[name][1] for name in (names[0], names[-1]))
    head = " | ".join(f"{name}: operations | ms" for name in names)
    lines = [f"| kind | primitive | {head} |", "|---" * (2 + 2 * len(names)) + "|"]
    for kind in sorted(kinds, key=lambda k: -abs(first[k] - last[k])):
        cells = (f"{counts[kind]} | {spent[kind]:.2f}" for counts, spent in found.values())
        lines.append(f"| {kind[0]} | {kind[1]} | {' | '.join(cells)} |")
    return "\n".join(lines)


def exported_as(form: str, packed: Any, few: Any) -> ov_network.OpenVinoNetwork:
    """A packed network in one of the forms."""
    codes, zero_part = FORMS[form]
    openvino_graph._codes_of, openvino_graph._zero_part = codes(), zero_part
    plain = plain_network(packed)
    model = ov_network.convert(plain.module, few)
    openvino_graph.fill(model, plain.layers, saturates=not has_dot_products())
    return network_of(model)


def shaken(network: torch.nn.Module, points: Any, seed: int = 0) -> torch.Tensor:
    """A call of our own network with the outputs of its norms moved by one last place, at random.

    Its distance from the plain call is what the order of sums between the layers can do.
    """
    random = torch.Generator().manual_seed(seed)

    def shake(module: Any, given: Any, output: Any) -> Any:
        if not isinstance(output, torch.Tensor):
            return None
        up = torch.randint(2, output.shape, generator=random) * 2 - 1
        return torch.nextafter(output, output + up.to(output))

    norms = (torch.nn.GroupNorm, torch.nn.LayerNorm)
    hooks = [m.register_forward_hook(shake) for m in network.modules() if isinstance(m, norms)]
    try:
        found: torch.Tensor = points.call(network)
        return found
    finally:
        for hook in hooks:
            hook.remove()


def apart(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """The relative difference of two predictions."""
    return float((found - wanted).norm() / wanted.norm())


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folders", type=Path, nargs="+", help="folders that quantize wrote")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--images", type=int, default=16, help="of a step, less guidance")
    parser.add_argument("--only", nargs="+", choices=FORMS, default=list(FORMS))
    parser.add_argument("--without-nncf", action="store_true", help="which takes a while")
    given = parser.parse_args()
    torch.set_num_threads(1)
    images = given.images
    order = export_model.Order(
        given.folders[0], "openvino", Path("unused"), images, given.rounds, 0
    )
    exported = open_exported(given.folders[0])
    packed = exported.packed
    points = export_model._recorded(export_model._workspace(order, exported), lambda *_: None)
    few = points.rows(slice(0, 2))
    networks = {}
    for name in given.only:
        networks[name] = exported_as(name, packed, few)
    for folder in given.folders[1:]:
        other = open_exported(folder).packed
        networks[f"the export of {folder.name}"] = exported_as("the export", other, few)
    if not given.without_nncf:
        networks["NNCF int8"] = network_of(quantized_by_nncf(packed.module, points))
    modules = {name: StandIn(packed.module, network) for name, network in networks.items()}
    with packed.clock.at(int(points.step[0])), torch.no_grad():
        wanted = points.call(packed.module)
        if "the export" in modules:
            found = apart(points.call(modules["the export"]), wanted)
            print(f"one call of the export is {found:.1e} from ours")
        ours = {
            "our kernels": packed.module,
            "our kernels, recorded": RecordedStep(packed.module, packed.clock),
        }
        turns = take_turns({**ours, **modules}, points, given.rounds)
        # last: a hook keeps a norm and its activation from running as one pass from then on
        moved = apart(shaken(packed.module, points), wanted)
        print(f"one call of our kernels is {moved:.1e} from itself with its norms shaken")
    base = np.asarray(turns.seconds(given.only[0]))
    counts = {name: counted(network, points) for name, network in networks.items()}
    print(f"{len(points)} rows a step, {turns.disturbed} of {given.rounds} rounds disturbed")
    print(f"| network | ms a step | least | of the time of {given.only[0]} | operations |")
    print("|---|---|---|---|---|")
    for name in turns.calls:
        times = np.asarray(turns.seconds(name))
        line = f"| {name} | {1e3 * np.median(times):.1f} | {1e3 * times.min():.1f} |"
        line += f" {np.median(times / base):.2f} |"
        print(line + (f" {sum(counts[name][0].values())} |" if name in networks else " - |"))
    print(kinds_table({name: counts[name] for name in (given.only[0], list(counts)[-1])}))


if __name__ == "__main__":
    main()
