"""Hub models: found in the cache, described when absent, downloaded by one verb."""

import http.server
import json
import shutil
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
from huggingface_hub import constants

from quantarena.bench.cli.main import run
from quantarena.bench.errors import BrokenModel, UnknownName, UserError
from quantarena.bench.workloads import hub, hub_download, papers, pipeline, registry
from quantarena.bench.workloads.sampling import Draw, draw_images


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache of the Hub, no endpoint."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    return tmp_path / "hub"


@pytest.fixture
def downloaded(cache, pixel_folder):
    """A function that puts a model where a download would."""

    def put(hub_id, folder=pixel_folder, revision="0123abcd"):
        root = cache / f"models--{hub_id.replace('/', '--')}"
        shutil.copytree(folder, root / "snapshots" / revision)
        (root / "refs").mkdir(exist_ok=True)
        (root / "refs" / "main").write_text(revision)
        return root / "snapshots" / revision

    return put


@pytest.fixture
def serve(monkeypatch):
    """A function that starts a Hub which always gives one answer."""
    servers = []

    def start(status, headers=(), wait=0.0):
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                time.sleep(wait)
                self.send_response(status)
                for name, value in headers:
                    self.send_header(name, value)
                self.end_headers()

            def log_message(self, *args):
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_an_absent_model_says_what_to_download_and_where_to(cache):
    with pytest.raises(UnknownName) as caught:
        registry.resolve("google/ddpm-cifar10-32")
    line = str(caught.value)
    assert "quantarena fetch google/ddpm-cifar10-32" in line
    assert str(cache) in line
    assert "https://huggingface.co/google/ddpm-cifar10-32" in line
    assert "\n" not in line


@pytest.mark.parametrize("name", papers.PAPERS)
def test_an_absent_paper_model_is_named(name, cache):
    with pytest.raises(UnknownName, match=f"workload {name} needs {papers.PAPERS[name].model}, "):
        registry.resolve(name)


def test_a_downloaded_model_is_a_workload(downloaded):
    folder = downloaded("someone/tiny")
    info = registry.resolve("someone/tiny")
    assert (info.name, info.hub, info.path) == ("someone/tiny", "someone/tiny", folder)
    assert info.noise_name == "tiny", "not the name of the snapshot's folder"
    assert pipeline.load(info).slot == "unet"


def test_a_folder_wins_over_a_hub_id(downloaded, tmp_path, monkeypatch, pixel_folder):
    downloaded("someone/tiny")
    shutil.copytree(pixel_folder, tmp_path / "someone" / "tiny")
    monkeypatch.chdir(tmp_path)
    info = registry.resolve("someone/tiny")
    assert (info.name, info.hub) == (str(tmp_path / "someone" / "tiny"), "")


def test_the_named_revision_counts(downloaded):
    downloaded("someone/tiny", revision="old")
    new = downloaded("someone/tiny", revision="new")
    assert hub.snapshot("someone/tiny") == new


def test_a_snapshot_without_a_reference(downloaded, cache):
    folder = downloaded("someone/tiny")
    shutil.rmtree(folder.parent.parent / "refs")
    assert hub.snapshot("someone/tiny") == folder


def test_half_a_download(downloaded):
    shutil.rmtree(downloaded("someone/tiny") / "unet")
    with pytest.raises(BrokenModel, match="is not whole, unet is missing: quantarena fetch"):
        registry.resolve("someone/tiny")


def test_a_paper_draws_with_its_sampler(downloaded):
    downloaded("google/ddpm-cifar10-32")
    info = registry.resolve("ddpm-cifar10?steps=2")
    assert (info.name, info.steps, info.eta) == ("ddpm-cifar10?steps=2", 2, 0.0)
    assert registry.resolve("ddpm-cifar10").steps == 100
    loaded = pipeline.load(info)
    assert type(loaded.pipe.scheduler).__name__ == "DDIMScheduler"
    images = draw_images(loaded, info, Draw("evaluate", 1, 0, info.steps, 1)).images
    assert images.shape == (1, 3, 16, 16)


def test_a_paper_on_a_folder_of_its_model(cache, pixel_folder):
    info = registry.resolve(f"ddpm-church?model={pixel_folder}")
    assert (info.path, info.steps, info.noise_name) == (pixel_folder, 500, "ddpm-church-256")
    with pytest.raises(UserError, match=r"model=.* is no folder"):
        registry.resolve(f"ddpm-church?model={pixel_folder}x")
    with pytest.raises(UserError, match="is a model already"):
        registry.resolve(f"{pixel_folder}?model={pixel_folder}")


def test_a_paper_that_wants_captions(downloaded, tmp_path, pixel_folder):
    downloaded("CompVis/stable-diffusion-v1-4")
    with pytest.raises(UserError, match=r"draws from MS-COCO .* --set prompts=FILE"):
        registry.resolve("sd-v1-4")
    file = tmp_path / "captions.json"
    file.write_text(json.dumps({"images": [{"id": 1}], "annotations": [{"caption": "a cat"}]}))
    assert registry.resolve(f"sd-v1-4?prompts={file}").prompts == ("a cat",)


def test_classes_of_a_paper(downloaded):
    downloaded("facebook/DiT-XL-2-256")
    prompts = registry.resolve("dit-xl-2-256").prompts
    assert (len(prompts), prompts[0], prompts[-1]) == (1000, "0", "999")


@pytest.mark.parametrize(("name", "paper"), papers.PAPERS.items())
def test_papers_are_whole(name, paper):
    assert hub.is_id(paper.model)
    assert paper.source
    assert paper.images >= 1000
    assert (paper.conditions == "prompt") == bool(paper.captions)
    assert (paper.conditions == "class") == bool(paper.classes)
    if paper.sampler:
        import diffusers

        step = getattr(diffusers, paper.sampler).step
        assert paper.eta == 0 or "eta" in step.__code__.co_varnames


@pytest.mark.parametrize(("name", "paper"), papers.PAPERS.items())
def test_the_page_says_what_the_table_says(name, paper):
    page = Path(__file__).parents[3] / "docs" / "workloads.md"
    lines = [line for line in page.read_text().splitlines() if line.startswith(f"| `{name}` |")]
    sampler = paper.sampler.removesuffix("Scheduler") or "own"
    cells = [cell.strip() for cell in lines[-1].split("|")]
    assert cells[2:5] == [
        paper.model,
        f"{sampler}, {paper.steps}, {paper.eta:g}",
        f"{paper.guidance:g}",
    ]
    assert cells[6:9] == [f"{paper.images:,}", paper.source, paper.note]


def test_listed_as_to_be_downloaded(downloaded, capsys):
    downloaded("google/ddpm-cifar10-32")
    assert run(["ls", "workloads", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["ddpm-cifar10"]["state"] == "ready"
    assert rows["ddpm-church"]["state"] == "needs download"
    assert rows["emoji-t2i"]["state"] == "ready"
    assert len({tuple(row) for row in rows.values()}) == 1, "one set of columns"


@pytest.mark.parametrize("verb", [["plan", "quick", "--model"], ["fetch"]])
def test_absent_model_on_the_command_line(verb, cache, capsys):
    began = time.monotonic()
    assert run([*verb, "someone/tiny"]) == 2
    assert time.monotonic() - began < 5
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert "https://huggingface.co/someone/tiny" in line
    assert str(cache) in line


def test_a_hub_that_never_answers(cache, serve, monkeypatch):
    serve(200, wait=3.0)
    monkeypatch.setattr(hub_download, "TIMEOUT", 0.2)
    began = time.monotonic()
    with pytest.raises(UserError, match=r"cannot download a/b to .* try again with a network"):
        hub_download.fetch("a/b")
    assert time.monotonic() - began < 2


def test_offline_mode(cache, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="cannot download a/b to"):
        hub_download.fetch("a/b")


@pytest.mark.parametrize(
    ("status", "code", "line"),
    [
        (404, "RepoNotFound", "has no model a/b, or it is private"),
        (403, "GatedRepo", "a/b asks you to accept its licence"),
        (500, "", "cannot download a/b"),
    ],
)
def test_answers_of_the_hub(status, code, line, cache, serve):
    serve(status, [("X-Error-Code", code)] if code else [])
    with pytest.raises(UserError, match=line) as caught:
        hub_download.fetch("a/b")
    assert "\n" not in str(caught.value)


FILES = (
    "model_index.json",
    "README.md",
    "big.ckpt",
    "big.safetensors",
    "scheduler/config.json",
    "unet/config.json",
    "unet/m.safetensors",
    "unet/m.bin",
    "unet/m.fp16.safetensors",
    "unet/m.non_ema.safetensors",
    "unet/m.onnx",
    "unet/flax_model.msgpack",
    "text/pytorch_model.bin",
    "text/config.json",
    "text/m.fp16.bin",
    "vae/m.fp16.safetensors",
    "sharded/m-00001-of-00002.safetensors",
    "sharded/m-00002-of-00002.safetensors",
    "sharded/m.safetensors.index.json",
    "unet/onnx/weights.pb",
)


def test_each_weight_is_downloaded_once():
    kept = set(hub_download.wanted(FILES))
    assert set(FILES) - kept == {
        "big.ckpt",
        "big.safetensors",
        "unet/m.bin",
        "unet/m.fp16.safetensors",
        "unet/m.onnx",
        "unet/m.non_ema.safetensors",
        "unet/flax_model.msgpack",
        "text/m.fp16.bin",
        "unet/onnx/weights.pb",
    }


def test_fetch_asks_for_what_is_wanted(downloaded, monkeypatch, capsys):
    asked = {}

    def download(hub_id, **more):
        asked.update(more)
        return str(downloaded(hub_id, revision=more["revision"]))

    info = SimpleNamespace(sha="feed", siblings=[SimpleNamespace(rfilename=f) for f in FILES])
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *a, **k: info)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert run(["fetch", "ddpm-cifar10", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["model"] == "google/ddpm-cifar10-32"
    assert set(asked["allow_patterns"]) == set(hub_download.wanted(FILES))
    assert str(registry.resolve(found["workload"]).path) == found["folder"]


def test_a_repository_that_is_no_pipeline(cache, monkeypatch):
    info = SimpleNamespace(sha="feed", siblings=[SimpleNamespace(rfilename="config.json")])
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *a, **k: info)
    with pytest.raises(BrokenModel, match="a/b is no diffusers pipeline"):
        hub_download.fetch("a/b")


@pytest.mark.parametrize("name", ["nothing", "a/b/c", "emoji-t2i", "../a"])
def test_fetching_what_is_no_model(name, cache):
    assert run(["fetch", name]) == 2
