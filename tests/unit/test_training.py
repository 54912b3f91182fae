"""Data, rules, schedule, calibration and the training loop's promises."""

import json
import math
import os
import shutil
import sys
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from deploy.emit import emit
from deploy.fold import fold
from ofa.artefacts import read_jsonl
from ofa.counts import macs as count_macs
from ofa.errors import OfaError
from ofa.run_dir import Run
from ofa.spaces import get_space
from ofa.supernet import Supernet
from ofa.training.calibration import calibrate, top1
from ofa.training.checkpoint import best_checkpoint, list_checkpoints, save_checkpoint
from ofa.training.config import TrainConfig
from ofa.training.data import (
    DataError,
    Images,
    Preprocessing,
    calibration_batches,
    load_images,
    split_validation,
    steps_per_epoch,
    training_batch,
)
from ofa.training.distributed import World
from ofa.training.evaluation import evaluate
from ofa.training.loop import train_supernet
from ofa.training.specialize import specialize
from ofa.training.teacher import open_teacher
from ofa.training.trainer import Trainer, TrainingError
from ofa.training.validation import plan_look

SPACE = get_space("mbv3_tiny_image")


# -- data -----------------------------------------------------------------------------------------------------------


def test_digits_split_is_fixed_and_disjoint():
    train, test = load_images("digits", "train"), load_images("digits", "test")
    assert (len(train), len(test)) == (1348, 449)
    assert train.images.shape[1:] == (3, 8, 8)
    assert torch.bincount(test.labels).min() > 30


def test_validation_is_a_stratified_part_of_training():
    data = load_images("digits", "train")
    train, validation = split_validation(data, fraction=0.2, seed=1)
    assert len(train) + len(validation) == len(data)
    shares = torch.bincount(validation.labels) / torch.bincount(data.labels)
    assert ((shares > 0.18) & (shares < 0.22)).all()
    again = split_validation(data, fraction=0.2, seed=1)[1]
    assert torch.equal(again.images, validation.images)


def test_an_epoch_of_batches_covers_every_image_once():
    n = 64
    data = Images(torch.arange(n, dtype=torch.uint8)[:, None, None, None].expand(n, 3, 8, 8) + 100, torch.arange(n), ("a", "b"))
    config = TrainConfig(batch_size=16, seed=3)
    seen = torch.cat([training_batch(data, s, config, flip=True)[1] for s in range(steps_per_epoch(data, 16))])
    assert sorted(seen.tolist()) == list(range(n))
    other_epoch = training_batch(data, 4, config, flip=True)[1]
    assert other_epoch.tolist() != seen[:16].tolist()


def test_augmentation_shifts_and_mirrors_whole_images():
    image = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    image[:, :, 3, 2] = 255
    data = Images(image.expand(256, 3, 8, 8), torch.zeros(256, dtype=torch.int64), ("a", "b"))
    batch, _ = training_batch(data, 0, TrainConfig(batch_size=256), flip=True)
    assert (batch.sum((1, 2, 3)) == 3 * 255).all()  # a shift of one pixel cannot push it out
    columns = {int(c) for c in batch[:, 0].nonzero()[:, 2]}
    assert columns == {1, 2, 3, 4, 5, 6}  # 2 +- 1, and mirrored 5 +- 1
    unflipped, _ = training_batch(data, 0, TrainConfig(batch_size=256), flip=False)
    assert {int(c) for c in unflipped[:, 0].nonzero()[:, 2]} == {1, 2, 3}


def test_preprocessing_normalises_and_resizes():
    data = load_images("digits", "train")
    preprocess = Preprocessing.of(data, flip=False)
    out = preprocess(data.images, 8)
    assert out.mean().abs() < 1e-3
    assert abs(float(out.std()) - 1) < 1e-2
    assert preprocess(data.images[:2], 16).shape == (2, 3, 16, 16)


def test_directory_and_archive_hold_the_same_images(image_folder, tmp_path):
    archive = tmp_path / "images.tar.xz"
    with tarfile.open(archive, "w:xz") as file:
        file.add(image_folder, "images")
    for split, count in (("train", 80), ("test", 16)):
        a, b = load_images(str(image_folder), split, max_size=32), load_images(str(archive), split, max_size=32)
        assert a.classes == b.classes == ("bright", "dark")
        assert len(a) == count
        assert torch.equal(a.images, b.images)
        assert torch.equal(a.labels, b.labels)


def test_large_images_are_stored_small_and_square(tmp_path):
    for split in ("train", "val"):
        for label in "ab":
            folder = tmp_path / split / label
            folder.mkdir(parents=True)
            Image.new("L", (300, 200)).save(folder / "x.jpg")
    assert load_images(str(tmp_path), "test", max_size=32).images.shape == (2, 3, 32, 32)
    assert load_images(str(tmp_path), "test", size=24).images.shape == (2, 3, 24, 24)


def test_one_small_image_does_not_shrink_the_others(image_folder):
    Image.new("RGB", (24, 3)).save(image_folder / "train" / "dark" / "thin.png")
    with pytest.warns(UserWarning, match="1 of 81 images are smaller than 24 px and are enlarged"):
        assert load_images(str(image_folder), "train", max_size=32).size == 24


def test_directory_and_archive_choose_the_same_test_folder(image_folder, tmp_path):
    (image_folder / "train").rename(image_folder / "val")
    archive = tmp_path / "images.tar"
    with tarfile.open(archive, "w") as file:
        file.add(image_folder, ".")
    assert len(load_images(str(image_folder), "test")) == len(load_images(str(archive), "test")) == 16


def test_images_of_every_kind_are_read_as_people_see_them(tmp_path):
    for label in "ab":
        (tmp_path / "train" / label / "deeper").mkdir(parents=True)
    Image.fromarray(np.full((8, 8), 20_000, np.uint16)).save(tmp_path / "train" / "a" / "0.png")
    Image.new("RGBA", (8, 8), (255, 0, 0, 0)).save(tmp_path / "train" / "a" / "1.png")
    turned = Image.new("RGB", (8, 8), "white")
    turned.paste((0, 0, 0), (0, 0, 8, 4))  # black above
    exif = Image.Exif()
    exif[0x0112] = 3  # taken upside down
    turned.save(tmp_path / "train" / "a" / "2.png", exif=exif)
    Image.new("CMYK", (8, 8)).save(tmp_path / "train" / "b" / "deeper" / "3.jpg")
    hidden = tmp_path / "train" / ".ipynb_checkpoints"
    hidden.mkdir()
    Image.new("RGB", (8, 8)).save(hidden / "x.png")
    (tmp_path / "train" / "a" / "notes.txt").write_text("no image")
    with pytest.warns(UserWarning, match="passed over 1 files that are no images"):
        data = load_images(str(tmp_path), "train")
    assert data.classes == ("a", "b")
    assert data.labels.tolist() == [0, 0, 0, 1]
    grey, clear, upright, _ = data.images
    assert (grey == 20_000 // 256).all()
    assert (clear == 255).all()
    assert upright[:, 0].float().mean() > 250 > 5 > upright[:, -1].float().mean()


def test_class_names_that_cannot_be_written_are_refused(image_folder):
    os.rename(image_folder / "train" / "dark", os.fsencode(image_folder / "train") + b"/d\xff")
    with pytest.raises(DataError, match=r"class folder 'd\\udcff' has no readable name"):
        load_images(str(image_folder), "train")


def test_changed_images_are_noticed_before_validation_mixes_with_training(image_folder, tmp_path):
    run = train_supernet("mbv3_tiny_image", str(image_folder), tmp_path / "a", config=tiny(batch_size=32))
    assert len(run.load_train_and_validation()[1]) == 8
    shutil.copy(image_folder / "train" / "dark" / "000.png", image_folder / "train" / "dark" / "new.png")
    with pytest.raises(OfaError, match=r"its 81 training images are not the 80 that .* was trained on"):
        run.load_train_and_validation()
    (image_folder / "train" / "dark" / "new.png").unlink()
    moved = image_folder.rename(tmp_path / "moved")
    with pytest.raises(OfaError, match=r"not there any more; put them back, or tell .*run.json"):
        run.load_train_and_validation()
    again = train_supernet("mbv3_tiny_image", str(moved), tmp_path / "a", config=tiny(batch_size=32), resume=True)
    assert again.data.source == str(moved)
    assert len(again.load_train_and_validation()[1]) == 8


def test_unreadable_images_are_named_and_counted_or_stop_when_strict(image_folder):
    (image_folder / "train" / "dark" / "000.png").write_bytes(b"not an image")
    (image_folder / "train" / "dark" / "001.png").write_bytes((image_folder / "train" / "dark" / "002.png").read_bytes()[:60])
    with pytest.warns(UserWarning, match=r"left out 2 of 80 images.*dark/000.png"):
        assert len(load_images(str(image_folder), "train", max_size=32)) == 78
    with pytest.raises(DataError, match=r"2 of 80 images cannot be read"):
        load_images(str(image_folder), "train", max_size=32, strict=True)


def test_impossible_data_says_what_was_expected(image_folder, tmp_path):
    with pytest.raises(DataError, match=r"no such directory, archive or name; names: digits, cifar10"):
        load_images("digit", "train", max_size=32)
    with pytest.raises(DataError, match=r"no images found, expected train/<class>/<image> inside"):
        load_images(str(tmp_path / "images" / "train"), "train", max_size=32)
    (tmp_path / "broken.tar").write_bytes(b"\x01" * 1000)
    with pytest.raises(DataError, match=r"no images found|not a readable tar"):
        load_images(str(tmp_path / "broken.tar"), "train", max_size=32)
    for path in (image_folder / "train" / "dark").iterdir():
        path.unlink()
    (image_folder / "train" / "dark").rmdir()
    with pytest.raises(DataError, match=r"1 class \(bright\), expected at least two"):
        load_images(str(image_folder), "train", max_size=32)


# -- calibration ----------------------------------------------------------------------------------------------------


def test_calibrate_averages_within_batch_statistics_weighted_by_size():
    torch.manual_seed(0)
    net = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Dropout(0.9)).eval()
    batches = [torch.randn(8, 3, 5, 5) * 2 + 1, torch.randn(4, 3, 5, 5)]
    calibrate(net, batches)
    first = [(b.mean((0, 2, 3)), b.var((0, 2, 3), unbiased=False)) for b in batches]
    torch.testing.assert_close(net[0].running_mean, (8 * first[0][0] + 4 * first[1][0]) / 12)
    torch.testing.assert_close(net[0].running_var, (8 * first[0][1] + 4 * first[1][1]) / 12)
    hidden = [
        nn.functional.conv2d((b - m[:, None, None]) / (v[:, None, None] + net[0].eps).sqrt(), net[1].weight)
        for b, (m, v) in zip(batches, first, strict=True)
    ]
    variance = sum(len(h) * h.var((0, 2, 3), unbiased=False) for h in hidden) / 12
    torch.testing.assert_close(net[2].running_var, variance)
    assert not any(module.training for module in net.modules())
    assert net[0].momentum == 0.1


def test_calibrate_refuses_no_images():
    with pytest.raises(ValueError, match="at least one image"):
        calibrate(nn.BatchNorm2d(3), [])


def test_top1_counts_over_uneven_batches():
    data = Images(torch.zeros(7, 3, 8, 8, dtype=torch.uint8), torch.tensor([0, 1, 0, 1, 0, 0, 0]), ("a", "b"))
    always_first = nn.Sequential(nn.Flatten(), nn.Linear(192, 2))
    with torch.no_grad():
        always_first[1].weight.zero_()
        always_first[1].bias.copy_(torch.tensor([1.0, 0.0]))
    assert top1(always_first, data, Preprocessing((0.5,) * 3, (1.0,) * 3, False), 8, batch_size=3) == pytest.approx(5 / 7)


def test_evaluating_together_equals_one_after_the_other_and_runs_common_blocks_once(base, monkeypatch):
    net = base.load_supernet()
    data = load_images("digits", "train")
    preprocess = Preprocessing.of(data, flip=False)
    some = data.subset(np.arange(300))
    rng = np.random.default_rng(0)
    population = SPACE.sample(rng, 6)
    population[:, SPACE.column["resolution"]] = [0, 0, 0, 1, 1, 2]
    archs = SPACE.decode(SPACE.canonical(population)) + [SPACE.smallest] * 2
    expected = []
    for arch in archs:
        subnet = net.extract(arch).to(memory_format=torch.channels_last)
        calibrate(subnet, calibration_batches(data, preprocess, SPACE.resolution(arch), num_images=250))
        expected.append(top1(subnet, some, preprocess, SPACE.resolution(arch), batch_size=120))
    extracted = []
    extract_block = Supernet.extract_block
    monkeypatch.setattr(Supernet, "extract_block", lambda self, *step: extracted.append(step) or extract_block(self, *step))
    assert evaluate(net, archs, data, some, preprocess, num_calibration=250, batch_size=120) == expected
    assert len(set(expected)) > 2
    assert sum(name == "stem" for name, _ in extracted) == 3  # one a resolution
    sequences = [tuple(SPACE.blocks(arch).items()) for arch in archs]
    assert len(extracted) == len({sequence[:n] for sequence in sequences for n in range(1, len(sequence) + 1)})


# -- the loop -------------------------------------------------------------------------------------------------------


def tiny(**changes):
    return TrainConfig(**{"epochs": 1, "batch_size": 512, **changes})


def weights(run):
    return {k: v.clone() for k, v in run.load_supernet().state_dict().items()}


def test_resumed_training_equals_an_uninterrupted_run(tmp_path):
    straight = train_supernet("mbv3_tiny_image", "digits", tmp_path / "a", config=tiny(epochs=2))
    newest = sorted((tmp_path / "a" / "supernet").glob("step_*"))
    assert [path.name for path in newest] == ["step_000002", "step_000004"]
    interrupted = train_supernet("mbv3_tiny_image", "digits", tmp_path / "b", config=tiny(epochs=2))
    for path in sorted((tmp_path / "b" / "supernet").glob("step_*"))[1:]:  # as if it had been stopped in the second epoch
        for file in path.iterdir():
            file.unlink()
        path.rmdir()
    resumed = train_supernet("mbv3_tiny_image", "digits", tmp_path / "b", config=tiny(epochs=2), resume=True)
    for (name, a), b in zip(weights(straight).items(), weights(resumed).values(), strict=True):
        assert torch.equal(a, b), name
    records = list(read_jsonl(tmp_path / "b" / "supernet" / "metrics.jsonl"))
    assert [r["step"] for r in records] == [2, 4]
    assert interrupted.space_name == "mbv3_tiny_image"


def test_training_refuses_to_overwrite_or_mix_runs(tmp_path):
    train_supernet("mbv3_tiny_image", "digits", tmp_path / "a", config=tiny())
    with pytest.raises(TrainingError, match=r"already holds a trained run; add --resume auto"):
        train_supernet("mbv3_tiny_image", "digits", tmp_path / "a", config=tiny())
    with pytest.raises(TrainingError, match=r"epochs is 3, but the run began with 1"):
        train_supernet("mbv3_tiny_image", "digits", tmp_path / "a", config=tiny(epochs=3), resume=True)
    with pytest.raises(TrainingError, match=r"is a run of space 'mbv3_tiny_image', not 'mbv3_small_image'"):
        train_supernet("mbv3_small_image", "digits", tmp_path / "a", config=tiny(), resume=True)
    with pytest.raises(TrainingError, match=r"data's seed is 1, but the run began with 0"):
        train_supernet("mbv3_tiny_image", "digits", tmp_path / "a", config=tiny(seed=1), resume=True)


def test_training_alone_and_together_are_not_mixed_in_one_run(tmp_path):
    train_supernet("mbv3_tiny_image", "digits", tmp_path / "a", config=tiny(), arch=SPACE.smallest)
    for other in (None, SPACE.largest):
        with pytest.raises(TrainingError, match="was begun with another --arch"):
            train_supernet("mbv3_tiny_image", "digits", tmp_path / "a", config=tiny(), arch=other, resume=True)


def test_loss_that_is_not_finite_stops_and_keeps_the_last_good_checkpoint(tmp_path, monkeypatch):
    train_supernet("mbv3_tiny_image", "digits", tmp_path / "a", config=tiny(epochs=2))
    kept = tmp_path / "a" / "supernet" / "step_000002"
    for file in (tmp_path / "a" / "supernet" / "step_000004").iterdir():
        file.unlink()
    (tmp_path / "a" / "supernet" / "step_000004").rmdir()
    monkeypatch.setattr("ofa.training.trainer.F.cross_entropy", lambda logits, *_, **__: logits.sum() * math.nan)
    with pytest.raises(TrainingError, match=r"loss is nan at step 2; checkpoint of step 2 is kept; .*lower --lr"):
        train_supernet("mbv3_tiny_image", "digits", tmp_path / "a", config=tiny(epochs=2), resume=True)
    assert json.loads((kept / "state.json").read_text())["step"] == 2


def test_huge_learning_rate_ends_in_an_error_not_in_a_broken_checkpoint(tmp_path):
    with pytest.raises(TrainingError, match="lower --lr"):
        train_supernet("mbv3_tiny_image", "digits", tmp_path / "a", config=tiny(lr=1e30, epochs=3, clip_norm=0))
    assert not list((tmp_path / "a" / "supernet").glob("step_*"))


def test_a_run_without_a_checkpoint_may_begin_anew(tmp_path):
    train_supernet("mbv3_tiny_image", "digits", tmp_path / "a", config=tiny())
    for path in (tmp_path / "a" / "supernet").glob("step_*"):
        shutil.rmtree(path)
    assert train_supernet("mbv3_tiny_image", "digits", tmp_path / "a", config=tiny(seed=1)).data.seed == 1


@pytest.mark.parametrize("share", [0, 1, -1, 5, math.nan])
def test_impossible_validation_share_is_refused(tmp_path, share):
    with pytest.raises(OfaError, match="expected a share between 0 and 1"):
        train_supernet("mbv3_tiny_image", "digits", tmp_path / "a", config=tiny(), validation_fraction=share)


@pytest.mark.parametrize(
    "changes", [{"epochs": 0}, {"batch_size": 1}, {"lr": -1}, {"lr": math.nan}, {"label_smoothing": 1.0}, {"recipe": "x"}]
)
def test_illegal_settings_are_refused(changes):
    with pytest.raises(OfaError):
        tiny(**changes)


def test_training_starts_from_the_weights_of_another_run(tmp_path):
    first = train_supernet("mbv3_tiny_image", "digits", tmp_path / "a", config=tiny())
    barely = tiny(lr=1e-12, weight_decay=0)  # hardly moves: what it ends with is what it began with
    second = train_supernet("mbv3_tiny_image", "digits", tmp_path / "b", config=barely, init=first.path)
    for (name, a), b in zip(first.load_supernet().named_parameters(), second.load_supernet().parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6, msg=name)
    assert Run(second.path).record["init"] == {"run": "../a", "weights_sha256": first.weights_sha256}
    with pytest.raises(OfaError, match=r"is a run of space 'mbv3_tiny_image', expected 'mbv3_small_image'"):
        train_supernet("mbv3_small_image", "digits", tmp_path / "c", config=tiny(), init=first.path)


def test_weights_for_other_classes_come_without_their_classifier(tmp_path, image_folder, capsys):
    first = train_supernet("mbv3_tiny_image", "digits", tmp_path / "a", config=tiny())
    barely = tiny(lr=1e-12, weight_decay=0, batch_size=32)
    second = train_supernet("mbv3_tiny_image", str(image_folder), tmp_path / "b", config=barely, init=first.path)
    a, b = dict(first.load_supernet().named_parameters()), dict(second.load_supernet().named_parameters())
    odd = [name for name in a if a[name].shape != b[name].shape or not torch.allclose(a[name], b[name], rtol=0, atol=1e-6)]
    assert odd
    assert all(name.startswith("layers.classifier.") for name in odd)
    assert "has 10 classes, not 2: the classifier starts anew" in capsys.readouterr().err


def test_one_architecture_trained_alone_uses_the_same_loop(tmp_path):
    run = train_supernet("mbv3_tiny_image", "digits", tmp_path / "a", config=tiny(), arch=SPACE.smallest)
    assert run.space.size() == 1
    assert not any("kernel_transforms" in name for name in run.load_supernet().state_dict())


# -- teachers, specialising, looks, checkpoints ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A run that others start from or learn from."""
    return train_supernet(
        "mbv3_tiny_image", "digits", tmp_path_factory.mktemp("base") / "run", config=tiny(epochs=2, batch_size=64)
    )


def metrics_of(run):
    return list(read_jsonl(run.supernet_dir / "metrics.jsonl"))


def test_progressive_shrinking_passes_all_phases(tmp_path):
    config = tiny(recipe="progressive", epochs=12, batch_size=256)
    run = train_supernet("mbv3_tiny_image", "digits", tmp_path / "a", config=config)
    assert list(dict.fromkeys(record["phase"] for record in metrics_of(run))) == [
        "teacher",
        "kernel_size",
        "depth 2",
        "expand_ratio 2",
    ]  # the short phases end between two records


def test_a_teacher_may_be_a_network_a_run_or_an_onnx_file(tmp_path, base, monkeypatch):
    """All three are the same network, so that all three teach the same."""
    arch = SPACE.arch(resolution=8)
    net = base.load_supernet().extract(arch)
    train, _ = base.load_train_and_validation()
    calibrate(net, calibration_batches(train, base.preprocess, 8))
    blocks = SPACE.blocks(arch)
    (tmp_path / "teacher.onnx").write_bytes(emit(blocks, fold(net)))
    cpu = torch.device("cpu")
    images = train.images[:5]
    expected = net(base.preprocess(images, 8))
    from_file = open_teacher(tmp_path / "teacher.onnx", train, base.preprocess, cpu)(images)
    torch.testing.assert_close(from_file, expected, rtol=1e-4, atol=1e-4)
    from_net = open_teacher(net, train, base.preprocess, cpu)(images)
    torch.testing.assert_close(from_net, expected, rtol=1e-4, atol=1e-4)
    assert isinstance(net[0].bn, nn.BatchNorm2d)  # the user's network is as it was
    largest = base.load_supernet().extract(SPACE.largest)
    calibrate(largest, calibration_batches(train, base.preprocess, 16))
    from_run = open_teacher(base.path, train, base.preprocess, cpu)(images)
    torch.testing.assert_close(from_run, largest(base.preprocess(images, 16)), rtol=1e-4, atol=1e-4)


def test_an_external_teacher_is_learnt_from(tmp_path):
    """A teacher that always says 3 makes a network say 3."""

    class Always3(nn.Module):
        def forward(self, images):
            return nn.functional.one_hot(torch.full((len(images),), 3), 10).float() * 20

    config = tiny(batch_size=64, epochs=2, recipe="single_path", kd_ratio=50.0)
    run = train_supernet("mbv3_tiny_image", "digits", tmp_path / "a", config=config, teacher=Always3(), arch=SPACE.smallest)
    data = load_images("digits", "test")
    net = run.load_supernet().extract(SPACE.smallest)
    calibrate(net, calibration_batches(run.load_train_and_validation()[0], run.preprocess, 8))
    assert (net(run.preprocess(data.images, 8)).argmax(1) == 3).float().mean() > 0.95


def test_teachers_that_do_not_fit_are_refused(tmp_path, image_folder, base):
    train, _ = base.load_train_and_validation()
    for source, message in (
        (tmp_path / "no.onnx", "not a readable ONNX file"),
        (nn.Sequential(nn.Flatten(), nn.Linear(192, 7)), r"teacher Sequential: gives \(7,\) logits an image, expected \(10,\)"),
        (nn.Sequential(nn.Flatten(), nn.Linear(5, 10)), "teacher Sequential: cannot run"),
        (tmp_path, "not a run directory"),
    ):
        with pytest.raises(OfaError, match=message):
            open_teacher(source, train, base.preprocess, torch.device("cpu"))
    with pytest.raises(OfaError, match="its classes are not those of the images"):
        train_supernet("mbv3_tiny_image", str(image_folder), tmp_path / "a", config=tiny(batch_size=32), teacher=base.path)


def test_specialising_starts_from_the_inherited_weights_and_improves(tmp_path, base):
    arch = SPACE.smallest
    barely = TrainConfig(lr=1e-12, weight_decay=0, epochs=1, batch_size=512)
    untouched = specialize(base, arch, tmp_path / "a", config=barely).load_supernet().extract(arch)
    inherited = base.load_supernet().extract(arch)
    for (name, a), b in zip(inherited.named_parameters(), untouched.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6, msg=name)

    special = specialize(base, arch, tmp_path / "b", epochs=4, lr=0.05)
    assert special.space.size() == 1
    train, validation = base.load_train_and_validation()
    assert torch.equal(special.load_train_and_validation()[1].images, validation.images)
    accuracy = {}
    for name, net in (("inherited", inherited), ("special", special.load_supernet().extract(arch))):
        calibrate(net, calibration_batches(train, base.preprocess, 8))
        accuracy[name] = top1(net, validation, base.preprocess, 8)
    assert accuracy["special"] > accuracy["inherited"] + 0.05


def test_a_largest_network_trained_alone_starts_a_supernet(tmp_path, base):
    small_input = SPACE.arch(resolution=8)  # the same weights, whatever the resolution
    teacher = train_supernet("mbv3_tiny_image", "digits", tmp_path / "a", config=tiny(batch_size=64), arch=small_input)
    barely = tiny(lr=1e-12, weight_decay=0, recipe="progressive", skip_teacher=True)
    run = train_supernet("mbv3_tiny_image", "digits", tmp_path / "b", config=barely, init=teacher.path)
    largest, expected = run.load_supernet().extract(SPACE.largest), teacher.load_supernet().extract(small_input)
    assert metrics_of(run)[0]["phase"] != "teacher"
    kept = load_file(run.supernet_dir / "teacher" / "step_000000" / "model.safetensors")
    for name, p in expected.named_parameters():
        torch.testing.assert_close(kept[name], p, rtol=0, atol=0, msg=name)
    assert sum(p.numel() for p in largest.parameters()) == sum(p.numel() for p in expected.parameters())
    other = train_supernet("mbv3_tiny_image", "digits", tmp_path / "c", config=tiny(), arch=SPACE.smallest)
    with pytest.raises(OfaError, match="the weights to start from have no stage1_block0 of this shape"):
        train_supernet("mbv3_tiny_image", "digits", tmp_path / "d", config=tiny(), init=other.path)


def test_averaged_weights_are_the_ones_to_use(tmp_path):
    plain = train_supernet("mbv3_tiny_image", "digits", tmp_path / "a", config=tiny(epochs=2))
    averaged = train_supernet("mbv3_tiny_image", "digits", tmp_path / "b", config=tiny(epochs=2, ema_decay=0.9))
    kept = load_file(averaged.supernet_dir / "step_000004" / "training.safetensors")
    for name, p in plain.load_supernet().named_parameters():  # averaging does not change training
        assert torch.equal(p, kept[f"weights|{name}"]), name
    names = dict(averaged.load_supernet().named_parameters())
    assert any(not torch.equal(p, kept[f"weights|{name}"]) for name, p in names.items())


def test_looking_costs_less_than_a_tenth_of_training():
    for epoch_images in (100, 1_000, 50_000):
        for step_macs in (1e6, 1e7):
            look = plan_look(SPACE, epoch_images=epoch_images, num_validation=5_000, step_macs=step_macs)
            cost = count_macs(SPACE, SPACE.encode(list(look.archs.values()))).sum() * (look.num_images + 200)
            assert cost <= 0.1 * 3 * step_macs * epoch_images * look.every
            assert look.num_images >= 200
    assert list(look.archs) == ["top1_largest", "top1_smallest", "top1_random_1", "top1_random_2"]
    alone = plan_look(SPACE.restrict(SPACE.smallest), epoch_images=1_000, num_validation=100, step_macs=1e6)
    assert list(alone.archs) == ["top1_largest"]


def test_the_best_checkpoint_stays_besides_the_newest(tmp_path):
    weights = {"w": torch.zeros(1)}
    for step, score in enumerate((0.2, 0.9, None, 0.5, 0.6), 1):
        save_checkpoint(tmp_path, weights, step, score=score, keep=2)
    assert [c.step for c in list_checkpoints(tmp_path)] == [2, 4, 5]
    assert best_checkpoint(tmp_path).step == 2
    save_checkpoint(tmp_path, weights, 6, score=0.9, keep=1)
    assert [c.step for c in list_checkpoints(tmp_path)] == [6]  # as good and newer


def test_long_epochs_are_saved_in_between(tmp_path, monkeypatch):
    monkeypatch.setattr("ofa.training.trainer.CHECKPOINT_SECONDS", 0.0)
    run = train_supernet("mbv3_tiny_image", "digits", tmp_path / "a", config=tiny(batch_size=256))
    assert [c.step for c in list_checkpoints(run.supernet_dir)] == [3, 4]  # an epoch has four steps


def test_reduced_precision_trains(tmp_path):
    run = train_supernet("mbv3_tiny_image", "digits", tmp_path / "a", config=tiny(precision="bf16", epochs=2, batch_size=128))
    losses = [record["loss"] for record in metrics_of(run)]
    assert losses[1] < losses[0]
    assert all(p.dtype is torch.float32 for p in run.load_supernet().parameters())


@pytest.mark.parametrize("device", ["cuda:7", "nonsense"])
def test_a_device_that_is_not_there_is_refused(tmp_path, device):
    with pytest.raises(OfaError, match=f"device '{device}' cannot be used"):
        train_supernet("mbv3_tiny_image", "digits", tmp_path / "a", config=tiny(), device=device)


# -- what must not happen silently --------------------------------------------------------------------------------------


def make_trainer(run, config, **changes):
    return Trainer(run, config, *run.load_train_and_validation(), run.preprocess, World(0, 1, torch.device("cpu")), **changes)


def test_averages_follow_when_channels_are_sorted(base):
    """The averaged largest network computes after sorting what it computed before."""
    trainer = make_trainer(base, tiny(recipe="progressive", epochs=12, batch_size=256, ema_decay=0.99))
    trainer.net.load_state_dict(base.load_supernet().state_dict())
    trainer.average.restart(trainer.net)
    phase = next(p for p in trainer.phases if p.sort_channels is not None)
    images = torch.randn(4, 3, 16, 16)
    before = trainer.net.eval()(images, SPACE.largest)
    trainer.step = phase.start
    trainer.teacher = trainer.outside_teacher = lambda images: None
    trainer.enter(phase)
    trainer.average.swap(trainer.net)
    torch.testing.assert_close(trainer.net.eval()(images, SPACE.largest), before, rtol=1e-4, atol=1e-4)


def test_the_teacher_of_progressive_shrinking_is_the_supernets_largest_network_of_that_moment(tmp_path, base):
    config = tiny(recipe="progressive", epochs=12, batch_size=256, skip_teacher=True)
    run = train_supernet("mbv3_tiny_image", "digits", tmp_path / "a", config=config, init=base.path)
    kept = load_file(run.supernet_dir / "teacher" / "step_000000" / "model.safetensors")
    for name, p in base.load_supernet().extract(SPACE.largest).named_parameters():
        assert torch.equal(kept[name], p), name


def test_a_single_phase_has_its_teacher_too(tmp_path, base, monkeypatch):
    only_kernels = tiny(recipe="progressive", skip_teacher=True, batch_size=256)
    monkeypatch.setattr("ofa.training.phases.SUBNETS", {"kernel_size": 1})
    trainer = make_trainer(base, only_kernels)
    (phase,) = trainer.phases
    trainer.step = 1
    with pytest.raises(OfaError, match="no checkpoint inside"):  # in mid-phase a lost teacher is not made up
        trainer.enter(phase)
    run = train_supernet("mbv3_tiny_image", "digits", tmp_path / "a", config=only_kernels, init=base.path)
    assert list_checkpoints(run.supernet_dir / "teacher")


def test_a_teacher_left_by_a_run_that_came_to_nothing_is_not_used(tmp_path, base):
    save_checkpoint(tmp_path / "a" / "supernet" / "teacher", {"odd": torch.zeros(1)}, 0)
    config = tiny(recipe="progressive", epochs=12, batch_size=256, skip_teacher=True)
    run = train_supernet("mbv3_tiny_image", "digits", tmp_path / "a", config=config, init=base.path)
    assert "odd" not in load_file(run.supernet_dir / "teacher" / "step_000000" / "model.safetensors")


def test_skipping_the_teacher_without_one_is_refused(tmp_path):
    config = tiny(recipe="progressive", skip_teacher=True)
    with pytest.raises(TrainingError, match="skip_teacher needs a trained largest network"):
        train_supernet("mbv3_tiny_image", "digits", tmp_path / "a", config=config)
    with pytest.raises(TrainingError, match="a teacher is given, but distillation is 'none'"):
        train_supernet("mbv3_tiny_image", "digits", tmp_path / "a", config=tiny(distillation="none"), teacher=nn.Identity())
    assert not (tmp_path / "a").exists()


def test_nothing_to_train_is_refused_before_anything_is_written(tmp_path, base):
    config = tiny(recipe="progressive", skip_teacher=True)
    with pytest.raises(OfaError, match="progressive shrinking has nothing to do"):
        train_supernet("mbv3_tiny_image", "digits", tmp_path / "a", config=config, init=base.path, arch=SPACE.smallest)
    assert not (tmp_path / "a").exists()


def test_a_resumed_run_insists_on_its_teacher(tmp_path, base):
    config = tiny(recipe="single_path", epochs=1)
    train_supernet("mbv3_tiny_image", "digits", tmp_path / "a", config=config, teacher=base.path)
    with pytest.raises(TrainingError, match=r"teacher is None, but the run began with '[0-9a-f]{64}'"):
        train_supernet("mbv3_tiny_image", "digits", tmp_path / "a", config=config, resume=True)
    train_supernet("mbv3_tiny_image", "digits", tmp_path / "a", config=config, teacher=base.path, resume=True)


def test_settings_that_a_recipe_does_not_look_at_are_named(tmp_path):
    with pytest.warns(UserWarning, match="prefer = 'best' has no effect on recipe 'sandwich'"):
        train_supernet("mbv3_tiny_image", "digits", tmp_path / "a", config=tiny(prefer="best"))
    assert tiny(recipe="progressive", warmup=0.5, num_random=3).without_effect(taught=False) == ["warmup", "num_random"]
    assert tiny(kd_ratio=2.0).without_effect(taught=False) == ["kd_ratio"]
    assert tiny(kd_ratio=2.0).without_effect(taught=True) == []


@pytest.mark.parametrize("changes", [{"epochs": 2.5}, {"epochs": "3"}, {"epochs": True}, {"recipe": 1}, {"lr": "x"}])
def test_settings_of_another_type_are_refused(changes):
    with pytest.raises(OfaError, match="expected a value of type"):
        tiny(**changes)


def test_specialising_keeps_the_supernets_validation_images_unseen(tmp_path, image_folder):
    supernet = train_supernet("mbv3_tiny_image", str(image_folder), tmp_path / "a", config=tiny(batch_size=32, crop_scale=0.5))
    special = specialize(supernet, SPACE.smallest, tmp_path / "b", epochs=1)
    assert special.data == supernet.data
    settings = json.loads((special.supernet_dir / "config.json").read_text())
    assert (settings["batch_size"], settings["crop_scale"]) == (32, 0.5)
    other_seed = specialize(supernet, SPACE.smallest, tmp_path / "c", config=tiny(batch_size=32, seed=5))
    assert torch.equal(other_seed.load_train_and_validation()[1].images, supernet.load_train_and_validation()[1].images)
    shutil.copy(image_folder / "train" / "dark" / "000.png", image_folder / "train" / "dark" / "new.png")
    with pytest.raises(OfaError, match=r"its 81 training images are not the 80 that"):
        specialize(supernet, SPACE.smallest, tmp_path / "d", epochs=1)


def test_left_overs_of_a_killed_process_are_swept(tmp_path):
    (tmp_path / ".step_000007.partial").mkdir()
    save_checkpoint(tmp_path, {"w": torch.zeros(1)}, 9)
    assert [path.name for path in tmp_path.iterdir()] == ["step_000009"]


def test_looking_takes_less_than_a_tenth_of_the_time(tmp_path):
    run = train_supernet("mbv3_tiny_image", "digits", tmp_path / "a", config=tiny(epochs=6, batch_size=64))
    records = metrics_of(run)
    looked = sum(record.get("look_seconds", 0) for record in records)
    assert 0 < looked < 0.2 * records[-1]["seconds"]  # 0.1 is the aim; tests share the machine


def test_tensorboard_is_asked_for_by_name_where_it_is_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(TrainingError, match=r"--tensorboard needs .* pip install tensorboard"):
        train_supernet("mbv3_tiny_image", "digits", tmp_path / "a", config=tiny(), tensorboard=True)
