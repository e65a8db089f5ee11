import pytest
import torch
from torch import nn
from torch.nn import functional as F

from quantarena.methods.core.model.time_table import precalculate, precalculate_projections


class Clock(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two = nn.Linear(16, 32), nn.Linear(32, 32)

    def forward(self, timestep):
        angle = timestep.float()[:, None] * torch.logspace(0, -4, 8)
        return self.two(F.silu(self.one(torch.cat([angle.sin(), angle.cos()], 1))))


@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("schedule", [[981, 741, 741, 501, 261, 21], [0.999, 0.5, 0.001]])
def test_table_is_the_live_module_bit_for_bit(rows, schedule):
    clock, times = Clock(), torch.tensor(schedule)
    table = precalculate(clock, times, rows=rows)
    with torch.no_grad():
        for timestep in times:
            found = table(timestep.repeat(rows))
            assert torch.equal(found, clock(timestep.repeat(rows)))
    assert table(times[0]).shape == (1, 32)
    assert not table.values.requires_grad


def test_table_of_mixed_steps_is_the_loop():
    times = torch.tensor([981, 741, 501, 261, 21])
    table = precalculate(Clock(), times)
    mixed = torch.tensor([21, 981, 21, 501])
    assert torch.equal(table(mixed), torch.cat([table(t) for t in mixed]))


@pytest.mark.parametrize("timestep", [500, 22, -1, 1000, 981.5, float("nan")])
def test_unscheduled_step_is_an_error(timestep):
    table = precalculate(Clock(), torch.tensor([981, 741, 501, 261, 21]))
    with pytest.raises(ValueError, match="not in the table's schedule of 5 steps"):
        table(torch.tensor([981, timestep]))


def test_projections_have_a_table_each():
    clock, times = Clock(), torch.tensor([30, 20, 10])
    down, up = nn.Linear(32, 8), nn.Linear(32, 4)
    tables = precalculate_projections(
        clock, {"down": lambda e: down(F.silu(e)), "up": lambda e: up(F.silu(e))}, times
    )
    assert set(tables) == {"down", "up"}
    with torch.no_grad():
        for t in times:
            assert torch.equal(tables["down"](t), down(F.silu(clock(t[None]))))
            assert torch.equal(tables["up"](t), up(F.silu(clock(t[None]))))


def test_only_functions_of_time_have_tables():
    with pytest.raises(ValueError, match="more than the timestep"):
        precalculate(lambda t: torch.arange(len(t))[:, None] + t[:, None], torch.arange(3), rows=2)
    with pytest.raises(ValueError, match="at least one timestep"):
        precalculate(Clock(), torch.tensor([]))
