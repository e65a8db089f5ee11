import dataclasses
from dataclasses import replace

import pandas as pd
import pytest

from quantarena.bench.schema import Latency, Measurement
from quantarena.bench.spec import Cell
from quantarena.bench.target import Target
from quantarena.leaderboard.page.advice import MEMORY, NOTHING, SHIP, UNQUANTIZED, advise
from quantarena.leaderboard.page.boards import quality_lines, short_name
from quantarena.leaderboard.page.export import COLUMNS, FIXED_COLUMNS, export_tables, rows_frame
from quantarena.leaderboard.page.lines import board_lines, combined
from quantarena.leaderboard.page.pareto import Point, Span, front, size_points, speed_points
from quantarena.leaderboard.page.plot import key_of
from quantarena.leaderboard.ranking.ranking import rank_results
from quantarena.leaderboard.ranking.read_results import BoardId, contestant, load_rows
from quantarena.leaderboard.ranking.standings import Tie

LPIPS = "lpips/alex-v0.1"


@pytest.fixture(scope="module")
def boards(results):
    folder, planned = results
    rows, ranking = load_rows(folder).rows, rank_results(folder)
    found = {}
    for board in dict.fromkeys(BoardId.of(cell) for cell in planned):
        own = [row for row in rows if BoardId.of(row.cell) == board]
        found[board.workload] = board_lines(board, own, planned, ranking.board(board))
    return found


def slower(lines, factor):
    """The same lines on a machine where packed kernels gain less."""
    changed = []
    for line in lines:
        time = line.latency
        if time and not line.is_fp:
            time = dataclasses.replace(
                time,
                ratio=time.ratio * factor,
                ratio_low=time.ratio_low * factor,
                ratio_high=time.ratio_high * factor,
            )
        changed.append(dataclasses.replace(line, latency=time))
    return tuple(changed)


def test_every_planned_cell_has_a_line_in_order(boards):
    blobs = boards["synthetic-blobs"]
    assert len(blobs) == 10
    assert blobs[0].is_fp
    ranked = [line for line in blobs if line.standing]
    widths = [line.bits for line in ranked]
    assert widths == sorted(widths, key=["w8a8", "w4a8", "w4a4"].index)
    for bits in set(widths):
        factors = [line.standing.factor for line in ranked if line.bits == bits]
        assert factors == sorted(factors)
        assert factors[0] == 1
    assert [line.state for line in blobs[-3:]] == ["failed", "missing", "timeout"]
    assert blobs[-2].reason == "planned, but it has not run yet"


def test_only_packed_latency_is_ranked(boards):
    timed = {line.name: line.timed for line in boards["synthetic-blobs"]}
    assert timed["q_diffusion@w4a8"]
    assert not timed["rtn@w4a8"]
    line = next(e for e in boards["synthetic-shapes"] if e.name == "rtn@w8a8")
    off = dataclasses.replace(line, parity=dataclasses.replace(line.parity, max_rel=1e-3))
    assert line.timed
    assert not off.timed


def test_seeds_are_averaged_with_narrower_intervals():
    seeds = [[Measurement("psnr", value, value - 2, value + 2, n=10)] for value in (20.0, 22.0)]
    seeds.append([Measurement("psnr", None, reason="not finite")])
    (mean,) = combined(seeds)
    assert mean.value == 21.0
    assert mean.low == pytest.approx(21 - 2**0.5)
    assert mean.high == pytest.approx(21 + 2**0.5)
    assert mean.n == 20
    assert combined([[Measurement("psnr", None, reason="why")]])[0].reason == "why"


def test_the_quality_board_is_ordered_within_each_width(boards):
    lines = quality_lines(boards["synthetic-shapes"], "kid/effnet-lite0")
    assert lines[0].is_fp
    assert [line.bits for line in lines[1:]] == ["w8a8"] * 3 + ["w4a8"] * 2 + ["w4a4"] * 3
    for bits in ("w8a8", "w4a8", "w4a4"):
        values = [line.figure("kid/effnet-lite0").value for line in lines if line.bits == bits]
        assert values == sorted(values)
    assert quality_lines(boards["synthetic-shapes"], "absent") == ()


def test_plain_fid_is_for_inception_only():
    assert short_name("fid/clean-fid/inception") == "FID"
    assert short_name("fid/effnet-lite0") == "FID (effnet-lite0)"
    assert short_name("kid/effnet-lite0") == "KID"
    assert short_name("odd") == "odd"


def spot(x, y, line=None):
    return Point(line, Span(x, x - 0.1, x + 0.1), Span(y, y - 0.01, y + 0.01))


class Named:
    name = "n"


@pytest.mark.parametrize(
    ("x", "y", "dominated"),
    [
        (1.0, 0.30, True),  # slower and further: worse in both
        (1.5, 0.30, True),  # tied in speed, surely further
        (1.45, 0.105, False),  # worse in both, but inside both intervals
        (1.0, 0.105, True),  # tied in fidelity, surely slower
        (2.0, 0.30, False),  # faster, further
        (1.0, 0.05, False),  # slower, nearer
    ],
)
def test_dominated_needs_a_sure_difference(x, y, dominated):
    marked = front([spot(1.5, 0.1, Named()), spot(x, y, Named())])
    assert marked[1].dominated is dominated
    assert marked[0].dominated is False


def test_points_of_the_plots(boards):
    lines = boards["synthetic-blobs"]
    assert all(point.line.timed for point in speed_points(lines, LPIPS, y_higher=False))
    size = size_points(lines, LPIPS, y_higher=False)
    assert {point.line.name for point in size} >= {"rtn@w4a4", "q_diffusion@w8a8"}
    assert not any(point.line.is_fp for point in size)
    by = {point.line.name: point.dominated for point in size}
    assert by["rtn@w8a8"]
    assert not by["q_diffusion@w8a8"]


def test_ship_the_fastest_that_is_near(boards):
    advice = advise(boards["synthetic-shapes"], LPIPS)
    assert advice.kind == SHIP
    assert advice.choice.name == "q_diffusion@w4a8"
    assert "of full precision’s time" in advice.sentence
    assert "0.05" in advice.rule


def tied(lines, *names):
    """The same lines, with these as near as the first and told from each other by nobody."""
    figures = next(line for line in lines if line.name == names[0]).figures
    ties = {name: tuple(Tie(other, 900) for other in names if other != name) for name in names}
    return tuple(
        replace(
            line,
            figures=figures,
            standing=replace(line.standing, ties=ties[line.name], worst_share=0.2),
        )
        if line.name in ties
        else line
        for line in lines
    )


def test_the_answer_names_what_ties_with_it(boards):
    lines = boards["synthetic-shapes"]
    alone = advise(lines, LPIPS)
    assert alone.ties == ()
    assert alone.headline == "Ship Q-Diffusion at w4a8"
    alike = advise(tied(lines, "q_diffusion@w4a8", "rtn@w4a8"), LPIPS)
    assert alike.headline == "Ship Q-Diffusion or RTN at w4a8"
    assert [line.name for line in alike.ties] == ["rtn@w4a8"]
    assert "RTN cannot be told from it at w4a8" in alike.sentence
    assert "900 images would tell RTN from it" in alike.doubt


def test_the_smaller_of_the_tied_is_named_first(boards):
    lines = [
        replace(line, observed=replace(line.observed, packed_bytes=line.observed.packed_bytes // 2))
        if line.name == "rtn@w4a8"
        else line
        for line in tied(boards["synthetic-shapes"], "q_diffusion@w4a8", "rtn@w4a8")
    ]
    assert advise(lines, LPIPS).headline == "Ship RTN or Q-Diffusion at w4a8"


def test_a_collapse_of_the_choice_is_said(boards):
    lines = [
        replace(line, standing=replace(line.standing, worst_share=0.71, images=64))
        if line.name == "q_diffusion@w4a8"
        else line
        for line in boards["synthetic-shapes"]
    ]
    assert "Look at the worst images of Q-Diffusion" in advise(lines, LPIPS).doubt
    assert "71" in advise(lines, LPIPS).doubt


def test_the_tolerance_is_told_in_what_other_noise_changes(boards):
    lines = boards["synthetic-shapes"]
    assert "other noise" not in advise(lines, LPIPS).rule
    rule = advise(lines, LPIPS, another_draw=0.5).rule
    assert "within 0.05" in rule
    assert "10\N{NARROW NO-BREAK SPACE}% of what other noise changes" in rule


def test_nothing_faster_is_said_plainly(boards):
    advice = advise(slower(boards["synthetic-shapes"], 0.5), LPIPS)
    assert advice.kind == MEMORY
    assert advice.sentence.startswith("Nothing here is faster than full precision")
    assert advice.choice.share < 0.2


def test_only_what_strays_is_faster(boards):
    advice = advise(slower(boards["synthetic-shapes"], 0.65), LPIPS)
    assert advice.kind == MEMORY
    assert "strays too far" in advice.sentence


def with_setting(lines, setting, backend):
    """The lines, timed against a setting, and that setting as a contestant."""
    lines = [
        dataclasses.replace(
            e, latency=e.latency and dataclasses.replace(e.latency, fp_setting=setting)
        )
        for e in lines
    ]
    like = next(e for e in lines if e.timed)
    own = dataclasses.replace(
        like.latency, backend=backend, ratio=1.0, ratio_low=0.9, ratio_high=1.1
    )
    rows = tuple(dataclasses.replace(row, backend=backend) for row in like.rows)
    extra = {"name": "fp@bf16@fp", "method": "fp@bf16", "title": "bf16", "bits": "fp"}
    return [*lines, dataclasses.replace(like, **extra, rows=rows, latency=own)]


@pytest.mark.parametrize("setting", ["bf16 eager", "bf16 channels_last"])
def test_an_unquantized_setting_that_nothing_beats_is_the_answer(boards, setting):
    lines = with_setting(slower(boards["synthetic-shapes"], 0.5), setting, "bf16 eager")
    advice = advise(lines, LPIPS)
    assert advice.kind == UNQUANTIZED
    assert advice.headline == "Ship bf16, unquantized"
    assert advice.choice.name == "fp@bf16@fp"
    assert "of full precision’s bytes" in advice.sentence


def test_a_faster_quantized_cell_is_shipped_all_the_same(boards):
    lines = with_setting(boards["synthetic-shapes"], "bf16 eager", "bf16 eager")
    assert advise(lines, LPIPS).choice.name == "q_diffusion@w4a8"


def test_only_the_setting_that_speeds_are_relative_to_can_be_the_answer(boards):
    lines = with_setting(slower(boards["synthetic-shapes"], 0.5), "openvino bf16", "bf16 eager")
    assert advise(lines, LPIPS).kind == MEMORY


def test_rivals_are_ranked_by_speed_and_coloured_last(boards):
    lines = list(boards["synthetic-shapes"])
    index = next(i for i, e in enumerate(lines) if e.timed and e.method == "q_diffusion")
    rows = tuple(
        dataclasses.replace(r, method=r.method | {"rival": True}) for r in lines[index].rows
    )
    own = dataclasses.replace(lines[index].latency, backend="openvino int8")
    lines[index] = dataclasses.replace(lines[index], rows=rows, latency=own)
    assert lines[index].timed
    assert lines[index].is_rival
    assert key_of(lines).methods[-1] == "q_diffusion"


def test_no_packed_kernels_no_speed_claim(boards):
    plain = [
        dataclasses.replace(
            e, latency=e.latency and dataclasses.replace(e.latency, backend="reference")
        )
        for e in boards["synthetic-shapes"]
    ]
    advice = advise(plain, LPIPS)
    assert (advice.kind, advice.choice) == (NOTHING, None)
    assert "No cell ran on packed integer kernels" in advice.sentence


def test_no_evidence_no_advice():
    advice = advise((), None)
    assert (advice.kind, advice.choice) == (NOTHING, None)


def test_exported_columns_are_fixed(results, tmp_path):
    rows = load_rows(results[0]).rows
    csv, parquet = export_tables(rows, tmp_path)
    frame = pd.read_parquet(parquet)
    assert tuple(frame.columns[: len(FIXED_COLUMNS)]) == FIXED_COLUMNS
    assert list(frame.columns) == list(pd.read_csv(csv).columns)
    assert len(frame) == len(rows) == 19
    assert frame.loc[frame.status == "failed", "reason"].item().startswith("NaN")
    assert frame[LPIPS].notna().sum() == 14
    assert not list(tmp_path.glob(".*"))


def test_types_do_not_depend_on_the_rows(results):
    rows = load_rows(results[0]).rows
    full = rows_frame(rows)
    failed = rows_frame([row for row in rows if row.status != "ok"])
    for name in FIXED_COLUMNS:
        assert full[name].dtype == failed[name].dtype, name
    assert list(rows_frame([]).columns) == [*FIXED_COLUMNS, "schema_version"]


def test_columns_follow_the_types_of_a_row():
    types = {column.name: column.dtype for column in COLUMNS}
    assert types["latency_ratio"] == types["observed_code_bits"] == "Float64"
    assert types["seed"] == types["budget_images"] == types["observed_bops"] == "Int64"
    assert types["status"] == types["reason"] == types["parity_worst_layer"] == "string"
    times = {f"latency_{field.name}" for field in dataclasses.fields(Latency)} - {"latency_step"}
    assert times <= set(types)
    assert types["latency_step_form"] == types["latency_step_reason"] == "string"
    assert {field.name for field in dataclasses.fields(Cell)} - {
        "budget",
        "options",
        "target",
    } <= set(types)
    assert {"target_device", "target_dtype", "device_name", "device_clock_mhz"} <= set(types)
    written = {column.name for column in COLUMNS if column.json}
    assert {"options_json", "observed_coverage_json", "machine_json", "warnings_json"} <= written
    assert len(types) == len(COLUMNS), "two columns of one name"


def test_floats_survive_the_csv(results, tmp_path):
    rows = load_rows(results[0]).rows
    csv, _ = export_tables(rows, tmp_path)
    back = pd.read_csv(csv).set_index("key")
    for row in rows:
        if figure := row.measurement(LPIPS):
            assert back.loc[row.key, LPIPS] == figure.value


def test_targets_have_boards_of_their_own(results):
    rows = [row for row in load_rows(results[0]).rows if row.cell.workload == "synthetic-blobs"]
    other = replace(rows[0].cell, target=Target("cuda", "bf16"))
    board = BoardId.of(other)
    assert board != BoardId.of(rows[0].cell)
    assert board.title == f"{BoardId.of(rows[0].cell).title} · cuda, bf16"


def test_times_of_two_machines_are_never_in_one_column(results):
    folder, planned = results
    rows = [row for row in load_rows(folder).rows if row.cell.workload == "synthetic-blobs"]
    board = BoardId.of(rows[0].cell)
    moved = next(row for row in rows if row.latency and row.cell.method == "q_diffusion")
    machine = {**moved.machine, "cpu": "Another Processor", "cores": 3}
    mixed = [replace(row, machine=machine) if row is moved else row for row in rows]
    lines = {line.name: line for line in board_lines(board, mixed, planned, None)}
    line = lines[contestant(moved.cell)]
    assert line.latency is None
    assert line.elsewhere == ("Another Processor, 3 cores",)
    assert not line.timed
    rest = [each for each in lines.values() if each is not line]
    assert any(each.latency for each in rest)
    assert not any(each.elsewhere for each in rest)
