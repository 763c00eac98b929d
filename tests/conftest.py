"""What the tests share: the modules on the path, and a data set so small that a whole run takes seconds."""
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def tiny_arrays(classes=6, train=16, test=6, size=12):
    """Each class is a colour on a quadrant, under noise: learnable in a few epochs."""
    rng = np.random.default_rng(0)
    arrays = {}
    for split, count in (("train", train), ("test", test)):
        labels = np.repeat(np.arange(classes), count)
        images = rng.integers(0, 80, (len(labels), size, size, 3))
        for image, label in zip(images, labels):
            half = size // 2
            top, left = (label // 3 % 2) * half, (label % 2) * half
            image[top:top + half, left:left + half, label % 3] += 150
        arrays[f"{split}_images"], arrays[f"{split}_labels"] = images.astype(np.uint8), labels.astype(np.uint8)[:, None]
    return arrays


@pytest.fixture
def arrays():
    return tiny_arrays()


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """Path of an .npz with 6 classes of 16 + 6 images, 12 x 12."""
    path = tmp_path_factory.mktemp("data") / "tiny.npz"
    np.savez(path, **tiny_arrays())
    return str(path)


@pytest.fixture
def flags(tiny, tmp_path):
    """Flags of a run of seconds: 3 steps of 2 classes; a later flag overrides an earlier one."""
    return ["--data", tiny, "--profile", "demo", "--increment", "2", "--width", "2", "--epochs", "3", "--batch", "16",
            "--memory", "24", "--head-epochs", "4", "--head-views", "2", "--views", "2", "--precision", "float32",
            "--device", "cpu", "--out", str(tmp_path / "run")]
