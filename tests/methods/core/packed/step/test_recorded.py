"""Recorded steps compute what their network computes, and stand back where they cannot."""

import copy
import threading

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from quantarena.methods.core.clock import CallClock
from quantarena.methods.core.packed.step import recorded as recorded_module
from quantarena.methods.core.packed.step.recorded import RecordedStep
from quantarena.methods.core.packed.step.trace import NotRecordable
from quantarena.methods.core.packed.step.verify import verify


def close(one, other):
    """A code may fall the other way where float noise decides a rounding."""
    return float((one - other).norm() / other.norm()) < 0.02


def warm(packed, call):
    """What follows what is learned, so that the network computes the same in every later call."""
    for _ in range(recorded_module.LEARNING):
        call.on(packed.module, packed.clock)


@pytest.mark.parametrize("rows", [1, 3, 4])
def test_replay_of_exact_operations_equals_the_network_bit_for_bit(made, call_of, rows):
    packed, probe = made
    step = RecordedStep(packed.module, packed.clock, exact=True)
    warm(packed, call_of(probe, 0, rows))
    for number in range(3):
        call = call_of(probe, number, rows)
        assert torch.equal(call.on(step, packed.clock), call.on(packed.module, packed.clock))
    assert (step.told.replayed, step.told.eager) == (3, 0)


def test_a_whole_step_is_one_native_piece(made, call_of):
    packed, probe = made
    call = call_of(probe, 1, 2)
    step = RecordedStep(packed.module, packed.clock)
    with packed.clock.at(1):
        plan = step.plan(call.points.sample, **call.kwargs)
    assert (plan.native_pieces, plan.torch_pieces) == (1, 0)
    assert plan.native_operations > len(packed.layers)
    assert close(call.on(step, packed.clock), call.on(packed.module, packed.clock))


def test_a_replay_in_memory_full_of_nan_agrees_with_the_network(made, call_of):
    packed, probe = made
    step = RecordedStep(packed.module, packed.clock)
    for number in range(2):
        call = call_of(probe, number, 3)
        with packed.clock.at(number):
            found = step.agreement(call.points.sample, **call.kwargs)
        assert found.equal, "with torch's values in place of inexact ones"
        assert found.max_rel < 1e-6
        assert found.compared > 0


def test_the_gate_sees_a_wrong_recording(made, call_of):
    packed, probe = made
    call = call_of(probe, 1, 2)
    step = RecordedStep(packed.module, packed.clock)
    warm(packed, call)
    with torch.no_grad(), packed.clock.at(1):
        plan = step.plan(call.points.sample, **call.kwargs)
        inputs = [x for x in (call.points.sample, *call.kwargs.values()) if torch.is_tensor(x)]
        expected = packed.module(call.points.sample, **call.kwargs)
        right = verify(plan, inputs, 1, expected)
        right.require(1e-5)
        other = plan._ops[plan.native_operations // 2]
        at = other.at[0].offset
        other.at[0].offset = at + 4  # one number beside the place
        wrong = verify(plan, inputs, 1, expected)
        other.at[0].offset = at
    assert not wrong.equal or not wrong.max_rel <= 1e-5


def test_results_of_calls_do_not_share_memory(made, call_of):
    packed, probe = made
    step = RecordedStep(packed.module, packed.clock, exact=True)
    one, two = (call_of(probe, number, 2) for number in (0, 1))
    first = one.on(step, packed.clock)
    kept = first.clone()
    second = two.on(step, packed.clock)
    assert torch.equal(first, kept)
    assert not torch.equal(first, second)


def test_callers_in_several_threads_get_their_own_results(made, call_of):
    packed, probe = made
    step = RecordedStep(packed.module, packed.clock, exact=True)
    rows = 2
    calls = []
    for start in range(4):
        call = call_of(probe, 1, rows)
        call.points = probe.trajectory.pick(
            torch.ones(rows, dtype=torch.long), (torch.arange(rows) + start) % probe.trajectory.rows
        )
        call.kwargs |= dict(call.points.conditions)
        calls.append(call)
    with torch.no_grad(), packed.clock.at(1):
        warm(packed, calls[0])
    with torch.no_grad(), packed.clock.at(1):
        wanted = [packed.module(call.points.sample, **call.kwargs)[0] for call in calls]
        wrong = []

        def work(number):
            call = calls[number]
            with torch.no_grad():
                for _ in range(20):
                    got = step(call.points.sample, **call.kwargs)[0]
                    if not torch.equal(got, wanted[number]):
                        wrong.append(number)

        threads = [threading.Thread(target=work, args=(n,)) for n in range(len(calls))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong
    assert step.told.eager == 0


KINDS = [(0, "mpq_dm"), (0, "vidit_q"), (2, "vidit_q"), (2, "svdquant"), (2, "dgq"), (0, "ptqd")]


@pytest.mark.parametrize(("number", "method"), KINDS, ids=str)
def test_networks_of_every_kind_of_layer_compute_the_same(packed_of, call_of, number, method):
    packed, probe = packed_of(number, method)
    step = RecordedStep(packed.module, packed.clock, exact=True)
    warm(packed, call_of(probe, 0, 2))
    for at in (0, 2, 0):
        call = call_of(probe, at, 2)
        assert torch.equal(call.on(step, packed.clock), call.on(packed.module, packed.clock))


def test_step_tables_are_read_at_the_call(packed_of, call_of):
    packed, probe = packed_of(0, "mpq_dm")
    assert any(getattr(layer, "entries", 0) for layer in packed.layers.values())
    step = RecordedStep(packed.module, packed.clock, exact=True)
    warm(packed, call_of(probe, 0, 2))
    results = [call_of(probe, at, 2).on(step, packed.clock) for at in range(probe.trajectory.calls)]
    assert step.told.eager == 0
    for at, result in enumerate(results):
        assert torch.equal(result, call_of(probe, at, 2).on(packed.module, packed.clock))
    assert len(step._recordings) == 1, "one recording serves all sampler calls"


# ---- fallbacks ------------------------------------------------------------------------------


@pytest.fixture
def step_and_call(packed_of, call_of):
    packed, probe = packed_of(0)
    step = RecordedStep(packed.module, packed.clock, exact=True)
    call = call_of(probe, 1, 2)
    call.on(step, packed.clock)
    assert step.told.replayed == 1
    return step, call, packed


def eager_reason(step, call, packed):
    before = step.told.eager
    got, want = call.on(step, packed.clock), call.on(packed.module, packed.clock)
    assert torch.equal(got, want)
    return step.told.reason if step.told.eager > before else ""


def test_gradients_run_as_written(step_and_call):
    step, call, packed = step_and_call
    with packed.clock.at(1):
        step(call.points.sample, **call.kwargs)
    assert "gradients" in step.told.reason


def test_training_mode_runs_as_written(step_and_call):
    step, call, packed = step_and_call
    packed.module.train()
    assert "training" in eager_reason(step, call, packed)
    packed.module.eval()
    assert eager_reason(step, call, packed) == ""


def test_a_new_hook_runs(step_and_call):
    step, call, packed = step_and_call
    module = next(m for m in packed.module.modules() if isinstance(m, nn.SiLU))
    seen = []
    handle = module.register_forward_hook(lambda *_: seen.append(1))
    call.on(step, packed.clock)
    count = len(seen)
    call.on(packed.module, packed.clock)
    assert count
    handle.remove()


def test_a_hook_that_changes_values_counts(step_and_call):
    step, call, packed = step_and_call
    before = call.on(step, packed.clock)
    name = next(iter(packed.layers))
    handle = packed.layers[name].register_forward_hook(lambda _, __, out: out * 1.5)
    assert eager_reason(step, call, packed) == ""  # recorded anew, with the hook
    assert not torch.equal(call.on(step, packed.clock), before)
    handle.remove()
    eager_reason(step, call, packed)
    assert torch.equal(call.on(step, packed.clock), before)


def test_changed_weights_count(step_and_call):
    step, call, packed = step_and_call
    before = call.on(step, packed.clock)
    norm = next(m for m in packed.module.modules() if isinstance(m, nn.GroupNorm))
    with torch.no_grad():
        norm.weight.mul_(1.5)  # in place
    eager_reason(step, call, packed)
    changed = call.on(step, packed.clock)
    assert not torch.equal(changed, before)
    norm.weight = nn.Parameter(norm.weight / 1.5, requires_grad=False)  # another tensor
    eager_reason(step, call, packed)
    norm.weight.data = norm.weight.data * 2  # other memory
    eager_reason(step, call, packed)
    assert not torch.equal(call.on(step, packed.clock), changed)


def test_a_repacked_layer_counts(step_and_call):
    step, call, packed = step_and_call
    layer = next(iter(packed.layers.values()))
    state = layer.state_dict()
    name = next(name for name in state if name.endswith("weight_scale"))
    state[name] = state[name] * 2
    layer.load_state_dict(state)
    assert eager_reason(step, call, packed) == ""


def test_other_shapes_strides_and_constants_get_their_own_recording(step_and_call):
    step, call, packed = step_and_call
    for change in (
        lambda x: x.to(memory_format=torch.channels_last),
        lambda x: torch.cat([x, x]),
        lambda x: torch.stack([x, x], dim=-1)[..., 0],
    ):
        sample, kwargs = change(call.points.sample), dict(call.kwargs)
        if len(sample) != len(call.points.sample):
            kwargs["timestep"] = kwargs["timestep"].repeat(2)
        with torch.no_grad(), packed.clock.at(1):
            got, want = step(sample, **kwargs), packed.module(sample, **kwargs)
        assert torch.equal(got[0], want[0])
    with torch.no_grad(), packed.clock.at(1):
        kwargs = {**call.kwargs, "return_dict": True}
        got = step(call.points.sample, **kwargs)
        assert torch.equal(got.sample, packed.module(call.points.sample, **kwargs).sample)
    assert step.told.eager == 0
    assert len(step._recordings) == 5


def test_too_many_kinds_run_as_written(packed_of, call_of):
    packed, probe = packed_of(0)
    step = RecordedStep(packed.module, packed.clock, limit=1)
    for rows in (1, 2):
        call_of(probe, 0, rows).on(step, packed.clock)
    assert (step.told.replayed, step.told.eager) == (1, 1)
    assert "more than 1" in step.told.reason


def test_other_modes_and_types_run_as_written(step_and_call):
    step, call, packed = step_and_call
    with torch.no_grad(), packed.clock.at(1), torch.autocast("cpu"):
        step(call.points.sample, **call.kwargs)
    assert step.told.reason == "autocast is on"

    class Other(torch.Tensor):
        pass

    with torch.no_grad(), packed.clock.at(1):
        step(call.points.sample.as_subclass(Other), **call.kwargs)
    assert "Other" in step.told.reason


def test_rows_of_several_calls_run_as_written(packed_of, call_of):
    packed, probe = packed_of(0, "mpq_dm")
    step = RecordedStep(packed.module, packed.clock)
    call = call_of(probe, 1, 2)
    with torch.no_grad(), packed.clock.at(torch.tensor([0, 1])):
        got, want = (
            network(call.points.sample, **call.kwargs)[0] for network in (step, packed.module)
        )
    assert torch.equal(got, want)
    assert "different sampler calls" in step.told.reason
    with torch.no_grad(), packed.clock.at(torch.tensor([1, 1])):
        step(call.points.sample, **call.kwargs)
    assert step.told.replayed == 1


class Branches(nn.Module):
    """Control flow on values, in ways that a dispatcher sees and does not see."""

    def __init__(self, how):
        super().__init__()
        self.how, self.scale = how, nn.Parameter(torch.tensor([2.0]), requires_grad=False)

    def forward(self, x):
        if self.how == "item":
            return x * x.sum().item()
        if self.how == "truth":
            return F.silu(x) if x[0, 0] > 0 else x + 1
        if self.how == "numpy":
            return x + float(x.numpy().sum())
        if self.how == "mask":
            return x[x > 0]
        if self.how == "writes":
            return x.add_(1)
        if self.how == "itself":
            return x
        return x * self.scale.item() + 1


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("item", "control flow"),
        ("numpy", "other values"),
        ("mask", "sizes in it depend on values"),
        ("writes", "writes to its inputs"),
        ("itself", "as it is"),
    ],
)
def test_what_a_recording_cannot_hold_runs_as_written(how, reason):
    step = RecordedStep(Branches(how).eval())
    for seed in range(3):
        x = torch.randn(4, 8, generator=torch.Generator().manual_seed(seed))
        with torch.no_grad():
            got, want = step(x.clone()), step.network(x.clone())
        assert torch.equal(got, want)
    assert step.told.replayed == 0
    assert reason in step.told.reason
    with pytest.raises(NotRecordable, match=reason), torch.no_grad():
        step.plan(torch.randn(4, 8))


def test_a_truth_is_asked_again():
    step = RecordedStep(Branches("truth").eval(), exact=True)
    positive, negative = torch.ones(4, 8), torch.ones(4, 8)
    negative[0, 0] = -1
    with torch.no_grad():
        for x in (positive, negative, positive * 2):
            assert torch.equal(step(x), step.network(x))
    assert (step.told.replayed, step.told.eager) == (2, 1)
    assert "control flow depends on" in step.told.reason


def test_a_constant_that_was_read_is_watched():
    step = RecordedStep(Branches("constant").eval())
    x = torch.randn(4, 8)
    with torch.no_grad():
        assert torch.equal(step(x), x * 2 + 1)
        step.network.scale.fill_(3)
        assert torch.equal(step(x), x * 3 + 1)
    assert (step.told.replayed, step.told.eager) == (2, 0)


def test_errors_are_those_of_the_network(step_and_call):
    step, call, packed = step_and_call
    with (
        torch.no_grad(),
        pytest.raises(ValueError, match="does not fit a layer"),
        packed.clock.at(1),
    ):
        step(call.points.sample[:, :1], **call.kwargs)
    call.on(step, packed.clock)


def test_a_copy_records_for_itself(step_and_call):
    step, call, packed = step_and_call
    clock = CallClock()
    other = copy.deepcopy(step, {id(packed.clock): clock})
    with torch.no_grad(), clock.at(1):
        got = other(call.points.sample, **call.kwargs)[0]
    assert torch.equal(got, call.on(packed.module, packed.clock))
    assert other.told.replayed == 1
    assert step.told.replayed == 1
