"""Text alignment: the scorer that ships, and CLIPScore with a tiny CLIP of random weights."""

import json
import shutil

import numpy as np
import pytest
import torch

from quantarena.bench.errors import UserError
from quantarena.bench.metrics.derive import alignment as derive_alignment
from quantarena.bench.metrics.names import ALIGNMENT, CLIP_SCORE, R_PRECISION, TEXT
from quantarena.bench.metrics.quality.effnet import effnet_lite0
from quantarena.bench.metrics.quality.extractor import extract
from quantarena.bench.metrics.text import clip
from quantarena.bench.metrics.text.alignment import (
    DISTRACTORS,
    FILE_NAME,
    _distractors,
    alignment,
    retrieval,
    scorer,
)
from quantarena.bench.metrics.text.text import text_metrics
from quantarena.bench.metrics.weights import ASSETS, BrokenWeights, sha256_of
from quantarena.bench.stages.score import ScoreInputs, score
from quantarena.bench.workloads.emoji64 import load_images, records


@pytest.fixture(autouse=True)
def no_clip(monkeypatch, tmp_path):
    monkeypatch.delenv(clip.VARIABLE, raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


@pytest.fixture(scope="module")
def heldout():
    """61 drawings that the scorer was not fitted on, at 32 px: images, features, captions."""
    rows = records("heldout")[::5]
    images = torch.from_numpy(load_images(rows, 32)).permute(0, 3, 1, 2).contiguous()
    return images, extract(images, effnet_lite0()), [row.caption for row in rows]


def test_finds_captions_of_drawings_it_was_not_fitted_on(heldout):
    _, features, captions = heldout
    found = alignment(features, captions, scorer())
    assert found[R_PRECISION].mean() > 0.25  # by chance 0.01
    shuffled = alignment(features, captions[1:] + captions[:1], scorer())
    assert shuffled[R_PRECISION].mean() < 0.1
    assert found[ALIGNMENT].mean() > shuffled[ALIGNMENT].mean() + 0.1
    assert retrieval(scorer(), features, captions)["recall@10"] > 0.15


def test_falls_with_damage(heldout, noisy):
    images, features, captions = heldout
    clean = alignment(features, captions, scorer())
    worse = alignment(extract(noisy(images, 60), effnet_lite0()), captions, scorer())
    for name in (ALIGNMENT, R_PRECISION):
        assert worse[name].mean() < clean[name].mean()


def test_a_picture_of_the_caption_itself_is_at_one():
    """The zero case: an embedding that is the caption's own has cosine 1."""
    known = scorer()
    exact = known.embeddings[:20] - known.centre
    standing = type(known)(
        torch.zeros(384),
        torch.ones(384),
        torch.eye(384),
        known.centre,
        known.embeddings,
        known.captions,
        "",
    )
    found = alignment(exact, known.captions[:20], standing)
    np.testing.assert_allclose(found[ALIGNMENT], 1, atol=1e-5)
    assert found[R_PRECISION].mean() == 1


def test_distractors_are_fixed_and_never_the_caption():
    for own in (0, 7, 150):
        drawn = _distractors("a cat", own, 151).tolist()
        assert len(set(drawn)) == DISTRACTORS
        assert own not in drawn
        assert 0 <= min(drawn) <= max(drawn) <= 150
    assert torch.equal(_distractors("a cat", 0, 151), _distractors("a cat", 0, 151))
    assert not torch.equal(_distractors("a cat", 0, 151), _distractors("a dog", 0, 151))


def test_manifest_states_the_file_and_how_good_it_is():
    entry = json.loads((ASSETS / "manifest.json").read_text())[FILE_NAME]
    assert entry["sha256"] == sha256_of(ASSETS / FILE_NAME) == scorer().sha256
    assert entry["bytes"] == (ASSETS / FILE_NAME).stat().st_size <= 4_000_000
    assert entry["held_out_drawings"]["r-precision-99"] > 0.3
    assert "MiniLM" in (ASSETS / "NOTICE").read_text()


@pytest.mark.parametrize("damage", ["cut", "gone", "other"])
def test_a_damaged_scorer_gives_one_line(tmp_path, damage):
    for name in (FILE_NAME, "manifest.json"):
        shutil.copy(ASSETS / name, tmp_path)
    path = tmp_path / FILE_NAME
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-7])
    elif damage == "gone":
        path.unlink()
    else:
        from quantarena.bench.metrics.weights import write_asset

        write_asset(tmp_path, FILE_NAME, b"\x02\0\0\0\0\0\0\0{}", {})
    with pytest.raises(BrokenWeights, match="install the package again") as caught:
        scorer(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_ridge_map_by_hand():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(50, 4, generator=generator), torch.randn(50, 3, generator=generator)
    mean, std, weight, centre = derive_alignment.fit(x, y, ridge=2.0)
    z = ((x - x.mean(0)) / x.std(0)).double().numpy()
    want = np.linalg.inv(z.T @ z + 2 * np.eye(4)) @ z.T @ (y - y.mean(0)).double().numpy()
    np.testing.assert_allclose(weight.numpy(), want, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(centre.numpy(), y.mean(0).numpy(), rtol=1e-6)
    assert (mean.shape, std.shape) == ((4,), (4,))


@pytest.mark.parametrize("content", [None, b"not a wheel"])
def test_deriving_from_another_file_is_one_line(tmp_path, capsys, content):
    path = tmp_path / "a.whl"
    if content is not None:
        path.write_bytes(content)
    assert derive_alignment.main([str(path), "-o", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_measurements_with_prompts(heldout):
    images, _, captions = heldout
    scores = score(ScoreInputs(images, images, None, prompts=captions))
    found = {m.name: m for m in scores.measurements}
    for name in (ALIGNMENT, R_PRECISION):
        assert found[name].low < found[name].value < found[name].high
        assert found[name].n == len(scores.per_image[name]) == len(captions)
        assert found[name].board == "quality"
        assert found[name].extractor_sha256 == scorer().sha256
    assert found[CLIP_SCORE].value is None
    assert "QUANTARENA_CLIP=FOLDER" in found[CLIP_SCORE].reason


def test_prompts_that_it_does_not_know(heldout):
    images, features, _ = heldout
    long = " ".join(["word"] * 500)
    measured, values = text_metrics(images[:2], features[:2], ["a monkey, flat", long])
    assert values == {}
    for m in measured[:2]:
        assert m.value is None
        assert "is not among the 2,041 captions" in m.reason
        assert len(m.reason) < 200


def test_without_prompts_and_without_square_images(heldout):
    images, _, captions = heldout
    found = {m.name: m for m in score(ScoreInputs(images[:2], images[:2], None)).measurements}
    assert {found[name].reason for name in TEXT} == {"the workload draws from no prompts"}
    wide = images[:2, :, :16].contiguous()
    found = {
        m.name: m for m in score(ScoreInputs(wide, wide, None, prompts=captions[:2])).measurements
    }
    assert found[ALIGNMENT].reason == "the extractor takes square images"


@pytest.fixture(scope="module")
def tiny_clip(tmp_path_factory):
    """CLIP with random weights and a tokenizer of single letters."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

    folder = tmp_path_factory.mktemp("clip")
    letters = "abcdefghijklmnopqrstuvwxyz,"
    words = [*letters, *(letter + "</w>" for letter in letters)]
    vocabulary = ["<|startoftext|>", "<|endoftext|>", *words]
    (folder / "vocab.json").write_text(json.dumps({w: i for i, w in enumerate(vocabulary)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer(
        str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=77
    )
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    small |= {"num_attention_heads": 2}
    torch.manual_seed(0)
    model = CLIPModel(
        CLIPConfig(
            text_config={**small, "vocab_size": len(vocabulary), "eos_token_id": 1},
            vision_config={**small, "image_size": 32, "patch_size": 8},
            projection_dim=8,
        )
    )
    model.save_pretrained(folder)
    image_processor = CLIPImageProcessor(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    )
    CLIPProcessor(image_processor, tokenizer).save_pretrained(folder)
    return folder


def test_clip_score_is_the_model_s_own_cosine(tiny_clip, heldout, monkeypatch):
    from transformers import CLIPModel, CLIPProcessor

    monkeypatch.setenv(clip.VARIABLE, str(tiny_clip))
    images, features, captions = heldout
    measured, values = text_metrics(images[:6], features[:6], captions[:6])
    found = {m.name: m for m in measured}[CLIP_SCORE]
    model, processor = (
        CLIPModel.from_pretrained(tiny_clip),
        CLIPProcessor.from_pretrained(tiny_clip),
    )
    inputs = processor(
        text=captions[:6], images=list(images[:6]), return_tensors="pt", padding=True
    )
    with torch.no_grad():
        cosines = model(**inputs).logits_per_image.diagonal() / model.logit_scale.exp()
    np.testing.assert_allclose(values[CLIP_SCORE], (100 * cosines).clamp(min=0), atol=1e-3)
    assert values[CLIP_SCORE].max() > 0
    assert found.value == pytest.approx(values[CLIP_SCORE].mean())
    assert found.extractor_sha256 == sha256_of(tiny_clip / "model.safetensors")
    assert "clip-vit-large-patch14" in found.impl


def test_a_caption_of_500_tokens_is_cut(tiny_clip, heldout):
    images = heldout[0][:1]
    long, cut = "cat " * 500, "cat " * 100
    first, second = (clip.clip_score(images, [text], tiny_clip)[0] for text in (long, cut))
    np.testing.assert_allclose(first, second, rtol=1e-5)


def test_clip_that_is_not_there(monkeypatch, tmp_path, heldout):
    images, features, captions = heldout
    monkeypatch.setenv(clip.VARIABLE, str(tmp_path))
    assert "no folder with CLIP's weights" in clip.find_clip()
    (tmp_path / "model.safetensors").write_bytes(b"x")
    with pytest.raises(UserError, match="does not load as CLIP"):
        clip.clip_score(images[:1], captions[:1], tmp_path)
    measured, _ = text_metrics(images[:1], features[:1], captions[:1])
    assert "does not load as CLIP" in {m.name: m for m in measured}[CLIP_SCORE].reason
