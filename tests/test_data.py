"""data.py: orders, increments, herding, the memory, augmentation, the sources."""
import hashlib
import os
import sys

import numpy as np
import pytest
import torch

import data
import der


def test_class_orders_are_the_published_ones():
    assert data.class_order("podnet1", 100)[:5] == [87, 0, 52, 58, 44]
    assert data.class_order("podnet2", 100)[-5:] == [92, 87, 23, 64, 61]
    assert data.class_order("podnet3", 100)[:5] == [71, 54, 45, 32, 4]
    assert data.class_order("icarl1993", 100)[:5] == [68, 56, 78, 8, 23]
    digests = {"podnet1": "3c06ac62f0fa031e", "podnet2": "a0b20d5b7b45c113", "podnet3": "6aba3190865415ab",
               "icarl1993": "835a3cb766d249ae"}  # of the orders as they are published
    for name in data.ORDERS:
        order = data.class_order(name, 100)
        assert sorted(order) == list(range(100)) and hashlib.sha256(bytes(order)).hexdigest()[:16] == digests[name]
    assert data.class_order("1993", 100) == data.class_order("icarl1993", 100)
    assert data.class_order("natural", 7) == list(range(7))
    assert data.class_order(3, 7) == data.class_order("3", 7) and sorted(data.class_order(3, 7)) == list(range(7))


@pytest.mark.parametrize("order, classes", [("podnet9", 100), ("podnet1", 20), (-1, 10), ("", 10)])
def test_class_order_refuses(order, classes):
    with pytest.raises(data.DataError, match="seed"):
        data.class_order(order, classes)


def test_increments():
    assert data.increments(100, 50, 10) == [50, 10, 10, 10, 10, 10]
    assert data.increments(100, 0, 5) == [5] * 20
    assert data.increments(10, 10, 3) == [10]
    for bad in ((100, 0, 7), (100, 45, 10), (100, 0, 0), (100, -10, 10), (100, 110, 10)):
        with pytest.raises(data.DataError, match="cannot be divided"):
            data.increments(*bad)


def naive_herding(features, m):
    """By the definition, one candidate at a time."""
    f = [x / np.linalg.norm(x) for x in features.double().numpy()]
    mean, picked = sum(f) / len(f), []
    for _ in range(m):
        def distance(i):
            return np.linalg.norm(mean - sum(f[j] for j in picked + [i]) / (len(picked) + 1))
        picked.append(min((i for i in range(len(f)) if i not in picked), key=distance))
    return picked


def test_herding_is_the_naive_greedy_choice():
    features = torch.randn(30, 5) + 1
    assert data.herding(features, 12).tolist() == naive_herding(features, 12)


def test_herding_is_ordered_without_repetition():
    features = torch.randn(20, 4)
    full = data.herding(features, 50)
    assert sorted(full.tolist()) == list(range(20))
    for m in (0, 1, 7):
        assert torch.equal(data.herding(features, m), full[:m])


@pytest.mark.parametrize("total, per_class, shares", [(20, 0, [10, 5, 3]), (20, 4, [4, 4, 4])])
def test_memory_keeps_prefixes_within_its_budget(total, per_class, shares):
    memory, ranked = data.Memory(total, per_class), []
    for step, share in enumerate(shares):
        new = [torch.randperm(100)[:30] for _ in range(2)]
        ranked += new
        memory.add(new)
        assert [len(chosen) for chosen in memory.chosen] == [share] * (2 * step + 2)
        assert all(torch.equal(chosen, r[:share]) for chosen, r in zip(memory.chosen, ranked))
        assert per_class or len(memory.indices()) <= total


def naive_augment(image, top, left, flip, brightness, padding=4):
    height, width, _ = image.shape
    padded = np.zeros((height + 2 * padding, width + 2 * padding, 3))
    padded[padding:padding + height, padding:padding + width] = image
    crop = padded[top:top + height, left:left + width]
    crop = crop[:, ::-1] if flip else crop
    return np.minimum(crop / 255 * brightness, 1).transpose(2, 0, 1)


@pytest.mark.parametrize("shift, flip", [(4, True), (2, False)])
def test_augment_is_crop_flip_brightness_of_each_image(shift, flip):
    images = torch.randint(0, 256, (50, 10, 14, 3), dtype=torch.uint8)
    draw = torch.rand(4, 50, generator=torch.Generator().manual_seed(5))
    out = data.augment(images, draw, shift, flip, jitter=0.25)
    assert out.shape == (50, 3, 10, 14) and out.dtype == torch.float32
    for i in range(50):
        top, left = (int(share * (2 * shift + 1)) for share in draw[:2, i])
        expected = naive_augment(images[i].numpy(), top, left, flip and draw[2, i] < 0.5,
                                 0.75 + 0.5 * draw[3, i].item(), shift)
        assert np.allclose(out[i].numpy(), expected, atol=1e-6)


def test_augment_may_leave_images_as_they_are():
    images = torch.randint(0, 256, (20, 8, 9, 3), dtype=torch.uint8)
    assert torch.equal(data.augment(images, torch.rand(4, 20), 0, False, 0.0), data.to_float(images))


def test_augment_draws_every_offset_both_flips_and_the_whole_range():
    images = torch.zeros(4000, 8, 8, 3, dtype=torch.uint8)
    images[:, 4, 3] = 100  # one bright pixel: where it lands tells the crop and the flip
    draw = torch.rand(4, 4000, generator=torch.Generator().manual_seed(0))
    out = data.augment(images, draw, 4, True, 63 / 255)[:, 0] * 255
    seen = out.flatten(1).max(1).values > 0
    rows, columns = out[seen].flatten(1).argmax(1).div(8, rounding_mode="floor"), out[seen].flatten(1).argmax(1) % 8
    assert rows.unique().tolist() == columns.unique().tolist() == list(range(8))
    # Unflipped, the pixel is in column 3 + 4 - left = -1 .. 7; flipped, in 7 minus that: 0 .. 8.
    assert 0.42 < (columns < 4).float().mean() < 0.58
    peak = out[seen].amax((1, 2))
    assert 100 * (1 - 63 / 255) <= peak.min() < 76 and 124 < peak.max() <= 100 * (1 + 63 / 255) + 1e-3


def test_batches_cover_every_image_once_in_nearly_equal_parts():
    parts = data.batches(129, 128, torch.Generator().manual_seed(0))
    assert sorted(torch.cat(parts).tolist()) == list(range(129))
    assert [len(part) for part in parts] == [65, 64]
    assert [len(part) for part in data.batches(7, 2, torch.Generator())] == [3, 2, 2]  # BatchNorm needs two images
    assert [len(part) for part in data.batches(1, 4, torch.Generator())] == [1]


def test_balanced_takes_the_same_share_of_each_class():
    labels = torch.tensor([0] * 3 + [1] * 50 + [2] * 50)
    chosen = data.balanced(labels, 5, torch.Generator().manual_seed(0))
    assert labels[chosen].bincount().tolist() == [3, 5, 5] and len(set(chosen.tolist())) == 13


def test_hold_out_splits_each_class_of_the_training_images():
    whole = data.synthetic(classes=4, train=20, test=2)
    split = whole.hold_out(0.25)
    assert split.train_labels.bincount().tolist() == [15] * 4 and split.test_labels.bincount().tolist() == [5] * 4
    assert whole.hold_out(0.01).test_labels.bincount().tolist() == [1] * 4
    assert whole.hold_out(0.99).train_labels.bincount().tolist() == [1] * 4
    together = torch.cat([split.train_images, split.test_images]).flatten(1)
    assert torch.equal(together.unique(dim=0), whole.train_images.flatten(1).unique(dim=0))


def test_reorder_renames_labels_and_names():
    source = data.synthetic(classes=3, train=2, test=1)
    moved = source.reorder([2, 0, 1])
    assert moved.class_names == ["pattern 2", "pattern 0", "pattern 1"]
    assert moved.train_labels.tolist() == [1, 1, 2, 2, 0, 0]  # what was class 0 now comes second


def test_synthetic_is_seeded():
    assert data.synthetic().fingerprint() == data.synthetic().fingerprint() != data.synthetic(seed=1).fingerprint()


@pytest.mark.parametrize("change", [
    {}, {"train_images": lambda x: x[..., 0], "test_images": lambda x: x[..., 0]},
    {"train_images": lambda x: x[..., :1], "test_images": lambda x: x[..., :1]},
    {"train_labels": lambda x: x.ravel().astype(np.int64)}, {"class_names": lambda x: x.astype("S")}])
def test_npz_of_any_usual_form(change, arrays, tmp_path):
    arrays["class_names"] = np.array(list("abcdef"))
    for key, apply in change.items():
        arrays[key] = apply(arrays[key])
    np.savez(tmp_path / "flowers.npz", **arrays)
    loaded = data.load(str(tmp_path / "flowers.npz"))
    assert loaded.name == "flowers.npz" and loaded.class_names == list("abcdef")
    assert loaded.train_images.shape == (96, 12, 12, 3) and loaded.train_images.dtype == torch.uint8
    assert loaded.test_labels.tolist() == np.repeat(np.arange(6), 6).tolist()


def test_a_file_name_that_is_no_utf_8_can_be_written_everywhere(arrays, tmp_path):
    path = os.fsdecode(os.fsencode(tmp_path) + b"/\xff.npz")
    np.savez(path, **arrays)
    assert data.load(path).name == "\N{REPLACEMENT CHARACTER}.npz"


@pytest.mark.skipif("CIFAR100_NPZ" not in os.environ, reason="CIFAR100_NPZ names no .npz of CIFAR-100")
def test_cifar100_is_recognised():
    loaded = data.load(os.environ["CIFAR100_NPZ"])
    assert loaded.name == "CIFAR-100" and loaded.train_labels.bincount().tolist() == [500] * 100
    assert loaded.class_names[:2] == ["apple", "aquarium_fish"]
    value = torch.arange(256, dtype=torch.double) / 255
    for channel, mean, std in zip(range(3), der.MEAN, der.STD):
        share = loaded.train_images[..., channel].flatten().bincount(minlength=256).double() / (50_000 * 32 * 32)
        assert share @ value == pytest.approx(mean, abs=2e-4)
        assert share @ value ** 2 - mean ** 2 == pytest.approx(std ** 2, abs=2e-4)


def test_without_torchvision_one_line_says_so(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision.datasets", None)  # as if it were not installed
    with pytest.raises(data.DataError, match=r"torchvision.*pip install.*--data FILE\.npz") as error:
        data.load("cifar100", str(tmp_path))
    assert "\n" not in str(error.value)


def test_a_failed_download_names_the_two_ways_out(tmp_path, monkeypatch):
    def no_network(*args, **kwargs):
        raise OSError("no network")
    monkeypatch.setattr("torchvision.datasets.CIFAR100", no_network)
    with pytest.raises(data.DataError, match=r"--data FILE\.npz.*run_cifar100\.sh demo") as error:
        data.load("cifar100", str(tmp_path))
    assert "\n" not in str(error.value)
