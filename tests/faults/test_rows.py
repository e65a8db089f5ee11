"""Damaged rows and plans: each is a line, the others are shown, nothing finished is lost."""

import json
import shutil

import damage
import pytest

from quantarena.bench.store import digest

VERBS = (("render", "smoke"), ("show", "q_diffusion@w4a8"), ("plan", "smoke"))


def signed(document):
    """The text of a row whose digest fits, as a program would write it that knows how."""
    document.pop("digest", None)
    try:
        document["digest"] = digest(document)
    except (TypeError, ValueError):
        document["digest"] = ""
    return json.dumps(document).encode()


def row_file(bench, method="rtn", bits="w4a4"):
    row = next(r for r in bench.rows() if (r.cell.method, r.cell.bits) == (method, bits))
    return bench.results / "smoke/rows" / f"{row.key}.json"


@pytest.fixture
def each(done, survives, real_page, tried):
    """Put each of several texts in the place of a row and read the results."""

    def go(texts, verbs=VERBS[:1], codes=(0,)):
        file = row_file(done)
        whole, folder = file.read_bytes(), file.parent
        for text in texts:
            file.write_bytes(text)
            for verb in verbs:
                survives(*verb, codes=codes)
            tried("rows")
            others = [path for path in folder.glob("*.json") if path != file]
            assert len(others) == 4, "the other rows stay where they are"
            shutil.rmtree(folder / "aside", ignore_errors=True)
            file.write_bytes(whole)
        assert len(done.rows()) == 5

    return go


def test_bytes(each, done):
    whole = row_file(done).read_bytes()
    each([*damage.cut(whole, 10), *damage.flipped(whole, 20)])


def test_texts(each, done):
    each(damage.texts(json.loads(row_file(done).read_bytes())), VERBS)


def test_values_of_other_types_with_a_digest_that_fits(each, done):
    document = json.loads(row_file(done).read_bytes())
    each(map(signed, damage.foreign(document, 40)))
    each(map(signed, damage.extreme(document, 60)))


@pytest.mark.parametrize("kind", damage.NOT_FILES)
def test_no_regular_file(kind, done, survives, real_page, tried):
    file = row_file(done)
    damage.not_a_file(file, kind)
    for verb in VERBS:
        survives(*verb, codes=(0,))
    survives("run", "smoke", codes=(0, 2))
    tried("rows")


def test_a_reason_with_a_lone_surrogate_is_shown_with_a_question_mark(
    done, survives, real_page, tried
):
    file = row_file(done)
    document = json.loads(file.read_bytes())
    document |= {"status": "failed", "reason": "bad \ud800 text", "warnings": ["\udfff"]}
    file.write_bytes(signed(document))
    _, shown, _ = survives("show", "rtn@w4a4", codes=(0,))
    assert shown["reason"] == "bad ? text"
    survives("render", "smoke", codes=(0,))
    assert "bad ? text" in (done.results / "smoke/leaderboard.html").read_text("utf-8")
    tried("rows")


def test_a_damaged_row_is_named_and_its_cell_runs_again(done, survives, real_page):
    file = row_file(done)
    file.write_bytes(file.read_bytes()[:100])
    _, document, err = survives("run", "smoke", codes=(0,))
    assert f"{file.name} is no intact row (not JSON" in err
    assert document["counts"]["ok"] == 5
    assert done.log().count("cell rtn/w4a4") == 2
    assert done.log().count("cell rtn/w4a8") == 1


def test_damaged_plans(done, survives, real_page, tried):
    file = done.results / "smoke/plan.json"
    whole = file.read_bytes()
    document = json.loads(whole)
    texts = [*damage.cut(whole, 5), *damage.texts(document)]
    texts += [json.dumps(one).encode() for one in damage.foreign(document, 25)]
    for text in texts:
        file.write_bytes(text)
        survives("render", "smoke", codes=(0,))
        tried("plans")
    for kind in ("pipe", "loop"):
        damage.not_a_file(file, kind)
        survives("render", "smoke", codes=(0,))
        tried("plans")
    assert len(done.rows()) == 5
