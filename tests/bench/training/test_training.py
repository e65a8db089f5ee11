"""The training loop, the emoji data set and what the model cards report."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from quantarena.bench.training.export.memorisation import memorisation
from quantarena.bench.training.tasks.checkpoints import load_checkpoint, save_weights
from quantarena.bench.training.tasks.loop import LoopConfig, Trainer
from quantarena.bench.workloads import emoji64


class LineTask:
    name = "line"

    def build(self):
        return nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.1), nn.BatchNorm1d(8), nn.Linear(8, 4))

    def loss(self, net, batch):
        return (net(torch.randn(batch, 4)) - 1.0).square().mean()


def _train(folder, steps, until, resume):
    trainer = Trainer(LineTask(), LoopConfig(steps=steps, batch=8, warmup=2, seed=3), folder)
    if resume:
        trainer.resume()
    while trainer.progress.step < until:
        trainer.step()
    trainer.save()
    return load_checkpoint(folder)


def _assert_same(left, right):
    assert type(left) is type(right)
    if isinstance(left, torch.Tensor):
        torch.testing.assert_close(left, right, rtol=0, atol=0)
    elif isinstance(left, dict):
        assert left.keys() == right.keys()
        for key in left:
            _assert_same(left[key], right[key])
    elif isinstance(left, list):
        assert len(left) == len(right)
        for a, b in zip(left, right, strict=True):
            _assert_same(a, b)
    else:
        assert left == right


def test_a_cut_and_resumed_run_equals_one_in_a_piece(tmp_path):
    whole = _train(tmp_path / "whole", 4, 4, resume=False)
    _train(tmp_path / "cut", 4, 2, resume=False)
    resumed = _train(tmp_path / "cut", 4, 4, resume=True)
    _assert_same(whole, resumed)


def test_run_ends_at_its_steps_and_leaves_no_partial_file(tmp_path):
    trainer = Trainer(LineTask(), LoopConfig(steps=3, batch=8), tmp_path)
    assert trainer.run()
    assert trainer.progress.step == 3
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_ctrl_c_keeps_what_was_learned(tmp_path):
    class Interrupted(LineTask):
        def loss(self, net, batch):
            if trainer.progress.step == 2:
                raise KeyboardInterrupt
            return super().loss(net, batch)

    trainer = Trainer(Interrupted(), LoopConfig(steps=9, batch=8), tmp_path)
    assert not trainer.run()
    assert load_checkpoint(tmp_path)["progress"]["step"] == 2


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    _train(tmp_path, 1, 1, resume=False)
    other = LineTask()
    other.name = "other"
    with pytest.raises(ValueError, match="is of line, not other"):
        Trainer(other, LoopConfig(), tmp_path).resume()


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    class Broken(LineTask):
        def loss(self, net, batch):
            return super().loss(net, batch) * float("nan")

    with pytest.raises(FloatingPointError, match="step 1"):
        Trainer(Broken(), LoopConfig(steps=3, batch=4), tmp_path).run()


def test_the_rate_warms_up_and_falls(tmp_path):
    trainer = Trainer(LineTask(), LoopConfig(steps=100, warmup=10, lr=1.0), tmp_path)
    rates = []
    for step in range(100):
        trainer.progress.step = step
        rates.append(trainer.learning_rate())
    assert np.argmax(rates) == 9
    assert rates[0] == pytest.approx(0.1)
    assert rates[-1] < 0.03


@pytest.mark.parametrize(("cooldown", "fall"), [(0.0, 100), (0.25, 75)])
def test_the_rate_stays_at_its_peak_until_the_cooldown(tmp_path, cooldown, fall):
    config = LoopConfig(steps=100, warmup=10, lr=1.0, cooldown=cooldown)
    trainer = Trainer(LineTask(), config, tmp_path)
    rates = []
    for step in range(100):
        trainer.progress.step = step
        rates.append(trainer.learning_rate())
    assert rates[9 : fall + 1] == pytest.approx([1.0] * len(rates[9 : fall + 1]))
    assert all(b < a for a, b in zip(rates[fall:], rates[fall + 1 :], strict=False))
    assert fall == 100 or rates[-1] < 0.03


def test_a_cooldown_that_is_no_share_is_refused():
    with pytest.raises(ValueError, match="0 to 1, not 20"):
        LoopConfig(cooldown=20)


def test_saved_weights_go_on_where_the_run_was(tmp_path):
    done = _train(tmp_path / "run", 40, 30, resume=False)
    save_weights(tmp_path / "run", tmp_path / "weights.safetensors")
    trainer = Trainer(LineTask(), LoopConfig(steps=40, warmup=4, lr=1.0, seed=9), tmp_path / "next")
    trainer.start(tmp_path / "weights.safetensors")
    assert trainer.progress.step == 30
    assert trainer.progress.seconds == done["progress"]["seconds"]
    assert not torch.allclose(done["net"]["0.weight"], done["ema"]["0.weight"], rtol=1e-3)
    for key, value in trainer.net.state_dict().items():
        torch.testing.assert_close(value, done["ema"][key], rtol=1e-3, atol=1e-6)
        torch.testing.assert_close(trainer.ema[key], done["ema"][key], rtol=1e-3, atol=1e-6)
    first = trainer.learning_rate()
    trainer.progress.step += 3
    assert trainer.learning_rate() > 2.0 * first
    trainer.progress.step -= 3
    assert trainer.run()
    assert load_checkpoint(tmp_path / "next")["progress"]["step"] == 40


def test_saved_weights_are_small_and_of_one_model(tmp_path):
    _train(tmp_path / "run", 2, 2, resume=False)
    path = tmp_path / "weights.safetensors"
    save_weights(tmp_path / "run", path)
    tensors = load_file(path)
    assert {value.dtype for value in tensors.values()} == {torch.float16, torch.int64}
    assert set(tensors) == set(LineTask().build().state_dict())
    other = LineTask()
    other.name = "other"
    with pytest.raises(ValueError, match="is of line, not other"):
        Trainer(other, LoopConfig(), tmp_path).start(path)
    path.write_text("no weights")
    with pytest.raises(ValueError, match="no weights file"):
        Trainer(LineTask(), LoopConfig(), tmp_path).start(path)
    with pytest.raises(FileNotFoundError):
        Trainer(LineTask(), LoopConfig(), tmp_path).start(tmp_path / "none.safetensors")


def test_the_cifar_networks_differ_in_size():
    from quantarena.bench.training.tasks import cifar

    counts = {}
    for task in (cifar.CifarTask, cifar.LargeCifarTask):
        net = task.build(object.__new__(task))
        counts[task.name] = sum(p.numel() for p in net.parameters())
    assert counts["cifar10-uncond"] == 1_113_955
    assert 5e6 < counts["cifar10-uncond-large"] < 9e6


def test_export_without_training_is_one_line(tmp_path, caplog):
    from quantarena.bench.training import __main__ as cli

    assert cli.main(["emoji-t2i", "--out", str(tmp_path), "--export"]) == 2
    assert "train first" in caplog.text


def test_a_second_run_does_not_overwrite_the_first(tmp_path, caplog):
    from quantarena.bench.training import __main__ as cli

    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "checkpoint.pt").touch()
    assert cli.main(["vae", "--out", str(tmp_path)]) == 2
    assert "--resume" in caplog.text


def test_missing_cifar_is_one_line(tmp_path, caplog):
    from quantarena.bench.training import __main__ as cli

    arguments = ["cifar10-uncond", "--out", str(tmp_path), "--cifar", str(tmp_path / "none.zip")]
    assert cli.main(arguments) == 2
    assert "no CIFAR-10" in caplog.text


def test_help_names_the_tarballs():
    command = [sys.executable, "-m", "quantarena.bench.training.tasks.emoji_data", "--help"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "FLUENT" in shown.stdout.upper()


class TestEmojiData:
    def test_the_split_leaks_nothing(self):
        train, held_out = emoji64.records("train"), emoji64.records("heldout")
        assert len(train) + len(held_out) == len(emoji64.records()) > 2000
        assert 290 <= len(held_out) <= 310
        assert not {row.id for row in train} & {row.id for row in held_out}
        pictures = {image.tobytes() for image in emoji64.load_images(train, 32)}
        shared = [
            row.id
            for row, image in zip(held_out, emoji64.load_images(held_out, 32), strict=True)
            if image.tobytes() in pictures
        ]
        assert not shared

    def test_the_other_drawing_of_a_held_out_emoji_is_trained_on(self):
        codes = {row.id.split("-", 1)[1] for row in emoji64.records("train")}
        assert all(row.id.split("-", 1)[1] in codes for row in emoji64.records("heldout"))

    def test_the_split_is_stratified(self):
        rows = emoji64.records()
        for category in emoji64.CATEGORIES:
            members = [row for row in rows if row.category == category]
            share = sum(row.split == "heldout" for row in members) / len(members)
            assert 0.12 < share < 0.18
        held_out = emoji64.records("heldout")
        assert sum(row.style == "noto" for row in held_out) == len(held_out) // 2

    def test_captions_are_one_to_one(self):
        captions = [row.caption for row in emoji64.records()]
        assert len(set(captions)) == len(captions)
        assert all(caption.startswith(("a ", "an ")) for caption in captions)

    def test_pictures_are_64_px_on_white(self):
        images = emoji64.load_images(emoji64.records("heldout")[:20])
        assert images.shape == (20, 64, 64, 3)
        assert images[:, 0, 0].min() == 255

    def test_size_on_disk(self):
        size = sum(path.stat().st_size for path in emoji64.data_dir().iterdir())
        assert size < 9e6

    def test_an_unknown_split_is_refused(self):
        with pytest.raises(ValueError, match="unknown split 'test'"):
            emoji64.records("test")


def test_whitening_changes_latents_and_not_images():
    from quantarena.bench.training.tasks import images, vae

    torch.manual_seed(0)
    net = vae.VaeTask(32).build().eval()
    pictures = images.images_tensor("heldout", 32)[:32]
    with torch.no_grad():
        before = net.decode(net.encode(pictures).latent_dist.mode()).sample
        vae.whiten(net, pictures)
        after = net.decode(net.encode(pictures).latent_dist.mode()).sample
    torch.testing.assert_close(before, after, rtol=1e-3, atol=1e-4)
    latents = vae.encode(net, pictures)
    torch.testing.assert_close(latents.mean((0, 2, 3)), torch.zeros(4), rtol=0, atol=1e-3)
    torch.testing.assert_close(latents.std((0, 2, 3)), torch.ones(4), rtol=1e-3, atol=0)


@pytest.mark.parametrize("latent", [True, False])
def test_the_objective_is_zero_for_the_right_noise(latent):
    from quantarena.bench.training.tasks.noise import NoiseObjective, scheduler

    objective = NoiseObjective(scheduler(latent=latent))
    clean = torch.randn(16, 4, 8, 8)

    def oracle(noisy, steps):
        signal = objective.signal[steps].view(-1, 1, 1, 1)
        return (noisy - signal * clean) / objective.noise[steps].view(-1, 1, 1, 1)

    assert objective(clean, oracle) < 1e-6
    assert 0.5 < objective(clean, lambda noisy, steps: torch.zeros_like(noisy)) < 2.0


def test_memorised_samples_are_found():
    generator = torch.Generator().manual_seed(0)
    pool = torch.randint(0, 256, (40, 3, 8, 8), generator=generator, dtype=torch.uint8)
    near = memorisation(pool[:5], pool[:20], pool[20:])
    assert near["samples_to_train"] == 0.0
    assert near["share_of_near_copies"] == 1.0
    assert near["samples_to_heldout"] > 50.0


def test_a_run_keeps_its_tokenizer(tmp_path):
    from quantarena.bench.training.tasks import t2i

    captions = ["a red apple, 3d", "a green apple, flat", "a clock, flat"]
    first = t2i.run_tokenizer(tmp_path, captions)
    again = t2i.run_tokenizer(tmp_path, ["other words"])
    assert again.get_vocab() == first.get_vocab()
    ids = t2i.tokenize(first, [captions[0], ""])
    assert torch.equal(ids, t2i.tokenize(again, [captions[0], ""]))
    assert ids.shape == (2, t2i.MAX_TOKENS)
    assert (ids[:, 0] == first.bos_token_id).all()
