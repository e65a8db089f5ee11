"""Bad ``workload.json`` and condition files: one line that names the file, never another run."""

import json
import shutil

import damage
import pytest

from quantarena.bench.errors import UserError
from quantarena.bench.workloads import registry
from quantarena.bench.workloads.conditions import read_conditions
from quantarena.bench.workloads.settings import FILE_KEYS

GOOD = {
    "title": "Mine",
    "steps": 5,
    "guidance": 2.5,
    "eta": 0.5,
    "sampler": "DDIMScheduler",
    "resolution": 16,
    "licence": "mine",
    "conditions": {"kind": "prompt", "values": ["a cat", ""]},
}


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "model"
    place.mkdir()
    (place / "model_index.json").write_text('{"_class_name": "DDPMPipeline"}')
    return place


def refused(folder):
    """Whether the folder is refused, in one line; otherwise its settings are in range."""
    try:
        info, line = registry.resolve(str(folder)), ""
    except UserError as error:
        info, line = None, str(error)
    if info is None:
        assert "workload.json" in line
        assert "\n" not in line
        return True
    assert (1 <= info.steps <= 10**5, 0 <= info.guidance < float("inf")) == (True, True)
    assert all(isinstance(prompt, str) for prompt in info.prompts)
    return False


def test_a_good_file_is_taken(folder):
    (folder / "workload.json").write_text(json.dumps(GOOD))
    assert not refused(folder)
    assert registry.resolve(str(folder)).prompts == ("a cat", "")


def test_bytes_and_values(folder, tried):
    file, whole = folder / "workload.json", json.dumps(GOOD).encode()
    texts = [*damage.cut(whole, 20), *damage.flipped(whole, 60), *damage.texts(GOOD)]
    texts += [json.dumps(one).encode() for one in damage.foreign(GOOD, 80)]
    texts += [json.dumps(one).encode() for one in damage.extreme(GOOD, 40)]
    for text in texts:
        file.write_bytes(text)
        refused(folder)
        tried("workloads")
    for kind in damage.NOT_FILES[:2]:
        damage.not_a_file(file, kind)
        assert refused(folder)
        tried("workloads")
        shutil.rmtree(file) if kind == "folder" else file.unlink()


@pytest.mark.parametrize("name", sorted(set(FILE_KEYS) - {"name", "pipeline_class"}))
def test_a_misspelt_key_is_refused_with_the_right_one(name, folder, tried):
    for wrong in (name[:-1], name.upper(), f"{name}s", name + "_"):
        (folder / "workload.json").write_text(json.dumps({wrong: GOOD.get(name, "x")}))
        with pytest.raises(UserError, match=f"unknown setting {wrong!r}: .*{name}"):
            registry.resolve(str(folder))
        tried("workloads")


@pytest.mark.parametrize(
    ("document", "line"),
    [
        ({"guidance_scale": 7.5}, "it is called guidance here"),
        ({"num_inference_steps": 50}, "it is called steps here"),
        ({"prompts": ["a cat"]}, "it is called conditions here"),
        ({"conditions": {"kind": "prompt", "value": ["a"]}}, "did you mean values"),
        ({"conditions": {"kind": "prompt", "values": "a cat"}}, '"values" must be a list'),
        ({"conditions": {"kind": "prompt", "values": [["a"]]}}, "is no prompt"),
        ({"conditions": {"kind": "class", "values": ["cat"]}}, "is no class"),
        ({"conditions": {"kind": "none", "values": ["a"]}}, "of kind none and values"),
        ({"conditions": {"kind": "prompt", "values": [], "file": "a"}}, "give one"),
        ({"steps": True}, "steps must be a whole number"),
        ({"steps": 10**9}, "steps must be at most"),
        ({"sampler": 3}, "sampler must be a text"),
        ({"title": None}, "title must be a text"),
    ],
)
def test_what_it_says(document, line, folder, tried):
    (folder / "workload.json").write_text(json.dumps(document))
    with pytest.raises(UserError, match=line):
        registry.resolve(str(folder))
    tried("workloads")


@pytest.mark.parametrize(
    ("name", "text", "prompts"),
    [
        ("p.csv", 'image,caption\n1,a\n2,""\n3,c\n', ("a", "", "c")),
        ("p.csv", "image,caption\n1,a\n2\n3,c\n", ("a", "", "c")),
        ("p.tsv", "caption\tid\na\t1\n\t2\nc\t3\n", ("a", "", "c")),
        ("p.json", '["a", "", "c"]', ("a", "", "c")),
        (
            "p.json",
            '[{"caption": "a"}, {"caption": null}, {"id": 1}, {"caption": "c"}]',
            ("a", "", "", "c"),
        ),
    ],
)
def test_an_empty_caption_moves_no_other(name, text, prompts, tmp_path):
    (tmp_path / name).write_text(text)
    assert read_conditions(tmp_path / name, "prompt") == prompts


def test_damaged_tables(tmp_path, tried):
    whole = {
        "csv": b'image,caption\n1,"a, b"\n2,c\n',
        "json": b'{"images": [{"id": 1}], "annotations": [{"caption": "a"}, {"caption": "b"}]}',
    }
    for suffix, data in whole.items():
        file = tmp_path / f"p.{suffix}"
        for text in (*damage.cut(data, 10), *damage.flipped(data, 40), *damage.texts({"a": 0})):
            file.write_bytes(text)
            tried("conditions")
            prompts, line = (), file.name
            try:
                prompts = read_conditions(file, "prompt")
            except UserError as error:
                line = str(error)
            assert file.name in line
            assert all(isinstance(prompt, str) for prompt in prompts)
    (tmp_path / "p.json").write_text('[{"caption": "a"}, 3]')
    with pytest.raises(UserError, match="mixes objects and other values"):
        read_conditions(tmp_path / "p.json", "prompt")
    (tmp_path / "c.json").write_text('["1", "a b"]')
    with pytest.raises(UserError, match="'a b' is no class number"):
        read_conditions(tmp_path / "c.json", "class")
