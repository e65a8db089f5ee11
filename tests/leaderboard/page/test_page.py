import dataclasses
import html.parser
import json
import re

import pytest

from quantarena.bench.schema import SUSPECT, Measurement, Row, Status
from quantarena.leaderboard.page.gallery import make_galleries
from quantarena.leaderboard.page.hardware import machines
from quantarena.leaderboard.page.lines import board_lines
from quantarena.leaderboard.page.page import MOST_RECORDS, _columns, render
from quantarena.leaderboard.ranking.read_results import by_board, load_rows

VOID = {"meta", "link", "input", "br", "wbr", "img", "hr"}


class Reader(html.parser.HTMLParser):
    """Checks that every element is closed in order, and collects what tests ask about."""

    def __init__(self):
        super().__init__()
        self.open, self.ids, self.links, self.tags = [], [], [], []

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.append((tag, attrs))
        if "id" in attrs:
            self.ids.append(attrs["id"])
        self.links += [attrs[name] for name in ("src", "href") if attrs.get(name)]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag


def read(path):
    text = path.read_text(encoding="utf-8")
    reader = Reader()
    reader.feed(text)
    assert not reader.open
    return text, reader


def page(folder, planned, title="Synthetic grid"):
    return read(render(folder, grid_title=title, planned=planned, command="./run_all.sh synthetic"))


@pytest.fixture(scope="module")
def rendered(results):
    return page(*results)


def test_page_is_whole_offline_and_small(rendered, results):
    text, reader = rendered
    assert len(text) < 5_000_000
    assert len(set(reader.ids)) == len(reader.ids)
    for link in reader.links:
        assert link.startswith(("#", "data:", "rows/")), link
        if link.startswith("#"):
            assert link[1:] in reader.ids
        if link.startswith("rows/"):
            assert (results[0] / link).is_file()
    assert not re.search(r"url\((?!data:)", text)
    assert "Content-Security-Policy" in text


def test_page_answers_the_question(rendered):
    text, _ = rendered
    assert "Which quantization should I ship?" in text
    assert text.count("Ship Q-Diffusion at w4a8") >= 1
    assert "./run_all.sh synthetic" in text
    assert "Synthetic CPU" in text


def test_every_cell_and_reason_is_visible(rendered, results):
    text, reader = rendered
    for cell in results[1]:
        assert f"cell-{cell.key}" in reader.ids
    for reason in ("NaN in mid_block.attn at step 7", "no result after 600 s", "not run yet"):
        assert reason in text


def test_tables_are_files_beside_it(results, rendered):
    for name in ("leaderboard.html", "rows.csv", "rows.parquet"):
        assert (results[0] / name).stat().st_size > 0
    assert not list(results[0].glob("*.tmp"))


def test_fidelity_and_quality_are_two_boards(rendered):
    text, _ = rendered
    tables = re.findall(r"<table class=\"sortable\">.*?</table>", text, re.S)
    *tables, together = tables
    assert len(tables) == 4
    assert "synthetic-blobs" in together
    assert "next model" in together
    for fidelity, quality in zip(tables[::2], tables[1::2], strict=True):
        assert "LPIPS" in fidelity
        assert "KID" not in fidelity
        assert "KID" in quality
        assert "LPIPS" not in quality


def test_hostile_names_stay_text(tmp_path, make_results, make_grid):
    bad = "<script>alert(1)</script>"
    plan = make_grid(images=6, methods=("rtn",), bits=("w8a8",), workloads=("synthetic-blobs",))
    cells = make_results(tmp_path, plan=plan, broken=False)
    cell = dataclasses.replace(cells[-1], method='x"><script>alert(1)</script>')
    row = Row(
        cell,
        Status.FAILED,
        bad,
        warnings=(bad,),
        method={"title": bad},
        machine={bad: bad},
        workload={"scheduler": bad},
    )
    (tmp_path / "rows" / f"{row.key}.json").write_text(json.dumps(row.to_dict()))
    text, reader = page(tmp_path, [*cells, cell], title=bad)
    assert sum(tag == "script" for tag, _ in reader.tags) == 2
    assert bad not in text


def test_no_rows_at_all(tmp_path, make_grid):
    text, _ = page(tmp_path / "new", make_grid().cells())
    assert text.count("planned, but it has not run yet") >= 20
    assert "Stay with full precision for now" in text
    assert "Nothing is planned here" in page(tmp_path / "void", ())[0]


@pytest.mark.parametrize("methods", [("rtn",), ()])
def test_one_row_or_only_full_precision(tmp_path, make_results, make_grid, methods):
    plan = make_grid(images=6, methods=methods, bits=("w8a8",), workloads=("synthetic-blobs",))
    cells = make_results(tmp_path, plan=plan, broken=False)
    text, _ = page(tmp_path, cells)
    assert "Full precision" in text


def test_missing_images_latency_and_numbers(tmp_path, make_results, make_grid):
    plan = make_grid(images=6, workloads=("synthetic-blobs",))
    cells = make_results(tmp_path, plan=plan, broken=False, pictures=False)
    for path in sorted((tmp_path / "rows").glob("*.json")):
        data = json.loads(path.read_text())
        row = dataclasses.replace(
            Row.from_dict(data),
            latency=None,
            observed=None,
            parity=None,
            workload={},
            machine={},
            measurements=(Measurement("psnr", None, reason="not finite"),),
        )
        path.write_text(json.dumps(row.to_dict()))
    text, _ = page(tmp_path, cells)
    assert "not timed" in text
    assert "so there is no speed to plot" in text
    assert '<div class="gallery' not in text
    assert "No row says where it ran" in text


def test_hundreds_of_rows(tmp_path, make_results, make_grid):
    methods = tuple(f"method_{n:02d}" for n in range(30))
    bits = ("w8a8", "w4a8", "w4a4", "w6a6")
    plan = make_grid(images=8, workloads=("synthetic-blobs",), methods=methods, bits=bits)
    cells = make_results(tmp_path, plan=plan, broken=False, pictures=False)
    text, _ = page(tmp_path, cells)
    assert len(cells) == 121
    assert "121 of 121" not in text  # the script counts; without it nothing is claimed
    assert len(text) < 5_000_000


def test_a_large_page_links_to_documents_instead_of_showing_all(tmp_path, make_results, make_grid):
    methods = tuple(f"method_{n:03d}" for n in range(MOST_RECORDS // 3 + 1))
    plan = make_grid(images=6, workloads=("synthetic-blobs",), methods=methods)
    make_results(tmp_path, plan=plan, broken=False, pictures=False)
    text, reader = page(tmp_path, plan.cells())
    assert "too many to show every cell in full" in text
    assert 'id="cell-' not in text
    assert sum(link.startswith("rows/") for link in reader.links) >= MOST_RECORDS
    for link in reader.links:
        if link.startswith("#"):
            assert link[1:] in reader.ids


def test_pictures_stay_inside_their_budget(results):
    rows = load_rows(results[0]).rows
    boards = [board_lines(b, own, (), None) for b, own in by_board(rows).items()]
    for budget in (10_000_000, 400_000, 60_000):
        galleries = make_galleries(results[0], boards, budget=budget)
        shown = [t for g in galleries if g for t in (g.reference, *g.others)]
        assert 0 < sum(len(uri) for thumbs in shown for uri in thumbs.uris) <= budget
        for gallery, lines in zip(galleries, boards, strict=True):
            absent = len(gallery.left_out) if gallery else 0
            here = len(gallery.others) if gallery else 0
            assert gallery is None or absent + here == sum(e.ok and not e.is_fp for e in lines)


def test_captions_are_never_guessed(tmp_path, make_results, make_grid):
    plan = make_grid(images=8, workloads=("synthetic-blobs",), methods=("rtn",), bits=("w8a8",))
    make_results(tmp_path, plan=plan, broken=False)
    rows = [
        dataclasses.replace(row, workload={"prompts": ["one", "two"]})
        for row in load_rows(tmp_path).rows
    ]
    boards = [board_lines(b, own, (), None) for b, own in by_board(rows).items()]
    (gallery,) = make_galleries(tmp_path, boards)
    assert gallery.captions[:3] == ("one", "two", "seed 0, image 2")


def test_rows_outside_the_plan_are_shown_and_counted(results, tmp_path, make_results, make_grid):
    cells = make_results(tmp_path, plan=make_grid(images=6), broken=False, pictures=False)
    text, reader = page(tmp_path, cells[:-1])
    assert "1 row in this folder is outside the present plan" in text
    assert f"cell-{cells[-1].key}" in reader.ids


def test_a_file_that_is_no_row_is_named(tmp_path, make_results, make_grid):
    cells = make_results(tmp_path, plan=make_grid(images=6), broken=False, pictures=False)
    (tmp_path / "rows" / "cut.json").write_text("{")
    assert "cut.json" in page(tmp_path, cells)[0]


def test_machines_are_told_apart_by_what_times_depend_on(results):
    row = load_rows(results[0]).rows[0]

    def on(**machine):
        return dataclasses.replace(row, machine=machine)

    found = machines(
        [on(cpu="A", cores=2, git="1"), on(cpu="A", cores=2, git="2"), on(gpu={"name": "G"}), on()]
    )
    assert [machine.name for machine in found] == ["A, 2 cores", "G"]
    assert [machine.rows for machine in found] == [2, 1]
    assert found[0].varied == ("git",)


@pytest.mark.parametrize(("low", "said"), [(0.001, True), (0.2, False)])
def test_an_interval_that_reaches_into_the_rounding_of_full_precision_is_a_tie(
    tmp_path, make_results, make_grid, low, said
):
    plan = make_grid(workloads=("synthetic-shapes",), methods=("rtn", "steady"), bits=("w4a4",))
    planned = make_results(tmp_path, plan=plan, broken=False, pictures=False)
    (path,) = [p for p in (tmp_path / "rows").iterdir() if '"rtn"' in p.read_text()]
    document = json.loads(path.read_text())
    document.pop("digest", None)
    for figure in document["measurements"]:
        if figure["name"].startswith("lpips"):
            figure["low"] = low
    path.write_text(json.dumps(document))
    text, _ = page(tmp_path, planned)
    assert ("tied with FP" in text) == said


def test_a_suspicion_of_our_own_side_stands_under_its_board(tmp_path, make_results, make_grid):
    plan = make_grid(workloads=("synthetic-shapes",), methods=("rtn", "steady"), bits=("w8a8",))
    planned = make_results(tmp_path, plan=plan, broken=False, pictures=False)
    assert "Check our side first" not in page(tmp_path, planned)[0]
    (path,) = [p for p in (tmp_path / "rows").iterdir() if '"steady"' in p.read_text()]
    row = Row.from_dict(json.loads(path.read_text()))
    told = dataclasses.replace(row, warnings=("plain", f"{SUSPECT}worse than <rounding>"))
    path.write_text(json.dumps(told.to_dict()))
    text, _ = page(tmp_path, planned)
    assert text.count("Check our side first") == 1
    assert "worse than &lt;rounding&gt;</li>" in text


def test_the_table_keeps_room_for_speed_and_size():
    names = ("lpips/alex-v0.1", "psnr", "ssim", "noise-sqnr", "latent-mse")
    found = [Measurement(name, 1.0) for name in names]
    assert [m.name for m in _columns(found)] == ["lpips/alex-v0.1", "psnr", "noise-sqnr"]
    assert [m.name for m in _columns(found[:3])] == list(names[:3])
    assert [m.name for m in _columns(found[1:])] == ["psnr", "ssim", "noise-sqnr"]


def test_rivals_and_unquantized_settings_are_named(make_results, make_grid, tmp_path):
    planned = make_results(tmp_path, plan=make_grid(workloads=("synthetic-shapes",)), broken=False)
    for file in (tmp_path / "rows").iterdir():
        row = Row.from_dict(json.loads(file.read_text()))
        own, backend = {"rival": True, "title": "Theirs"}, "openvino int8"
        latency = dataclasses.replace(row.latency, fp_setting="bf16 eager")
        if row.cell.method == "steady":
            latency = dataclasses.replace(latency, backend=backend)
            row = dataclasses.replace(row, method=own, backend=backend, parity=None)
        file.write_text(json.dumps(dataclasses.replace(row, latency=latency).to_dict()))
    text, _ = page(tmp_path, planned)
    assert text.count(">rival</small>") == 3
    assert "a rival runs on kernels of its own" in text
    assert ">against bf16 eager</small>" in text
