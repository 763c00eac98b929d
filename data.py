"""Data sets, class orders, increments, exemplars and augmentation.

A data set lives on the device as uint8. Everything done to an image is batched tensor code; there are no worker
processes. After `Dataset.reorder` labels are positions in the class order: class 0 is the first to arrive.
"""
from __future__ import annotations

import hashlib
import math
import os
import socket
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


class DataError(Exception):
    """A data set, class order or protocol that cannot be used; the message says what is wrong and what to do."""


# The orders of PODNet's three trials, which the DER paper averages over. Labels are CIFAR-100's fine labels,
# alphabetical (apple = 0).
ORDERS = {
    "podnet1": [
        87, 0, 52, 58, 44, 91, 68, 97, 51, 15, 94, 92, 10, 72, 49, 78, 61, 14, 8, 86, 84, 96, 18, 24, 32, 45, 88, 11,
        4, 67, 69, 66, 77, 47, 79, 93, 29, 50, 57, 83, 17, 81, 41, 12, 37, 59, 25, 20, 80, 73, 1, 28, 6, 46, 62, 82,
        53, 9, 31, 75, 38, 63, 33, 74, 27, 22, 36, 3, 16, 21, 60, 19, 70, 90, 89, 43, 5, 42, 65, 76, 40, 30, 23, 85,
        2, 95, 56, 48, 71, 64, 98, 13, 99, 7, 34, 55, 54, 26, 35, 39],
    "podnet2": [
        58, 30, 93, 69, 21, 77, 3, 78, 12, 71, 65, 40, 16, 49, 89, 46, 24, 66, 19, 41, 5, 29, 15, 73, 11, 70, 90, 63,
        67, 25, 59, 72, 80, 94, 54, 33, 18, 96, 2, 10, 43, 9, 57, 81, 76, 50, 32, 6, 37, 7, 68, 91, 88, 95, 85, 4,
        60, 36, 22, 27, 39, 42, 34, 51, 55, 28, 53, 48, 38, 17, 83, 86, 56, 35, 45, 79, 99, 84, 97, 82, 98, 26, 47,
        44, 62, 13, 31, 0, 75, 14, 52, 74, 8, 20, 1, 92, 87, 23, 64, 61],
    "podnet3": [
        71, 54, 45, 32, 4, 8, 48, 66, 1, 91, 28, 82, 29, 22, 80, 27, 86, 23, 37, 47, 55, 9, 14, 68, 25, 96, 36, 90,
        58, 21, 57, 81, 12, 26, 16, 89, 79, 49, 31, 38, 46, 20, 92, 88, 40, 39, 98, 94, 19, 95, 72, 24, 64, 18, 60,
        50, 63, 61, 83, 76, 69, 35, 0, 52, 7, 65, 42, 73, 74, 30, 41, 3, 6, 53, 13, 56, 70, 77, 34, 97, 75, 2, 17,
        93, 33, 84, 99, 51, 62, 87, 5, 15, 10, 78, 67, 44, 59, 85, 43, 11],
    "icarl1993": np.random.RandomState(1993).permutation(100).tolist(),
}


# ---------------------------------------------------------------------------------------------- the protocol's parts

def class_order(name_or_seed: str | int, num_classes: int) -> list[int]:
    """The order in which classes arrive: a name in ORDERS, natural (by label), or the seed of a random permutation.

    Returns the data set's labels, first to arrive first. Raises DataError for an unknown name, or one in
    ORDERS (they are CIFAR-100's) on data with another number of classes.
    """
    if name_or_seed == "natural":
        return list(range(num_classes))
    if name_or_seed in ORDERS:
        if num_classes != 100:
            raise DataError(f"the class order {name_or_seed} lists 100 classes and the data has {num_classes}: "
                            "give natural or an integer seed instead, as in --order 0")
        return list(ORDERS[name_or_seed])
    try:
        return np.random.RandomState(int(name_or_seed)).permutation(num_classes).tolist()
    except ValueError:
        raise DataError(f"unknown class order {name_or_seed!r}: give one of {', '.join(ORDERS)}, "
                        "natural, or an integer seed from 0 to 4294967295") from None


def increments(num_classes: int, base: int, increment: int) -> list[int]:
    """Number of new classes at each step of "Base-m Inc-n": (100, 50, 10) -> [50, 10, 10, 10, 10, 10].

    base = 0 means that the first step is an increment like the others. Raises DataError where the classes cannot be
    divided so.
    """
    if base < 0 or increment < 1 or base > num_classes or (num_classes - base) % increment:
        raise DataError(f"{num_classes} classes cannot be divided into base {base} and steps of {increment}: "
                        "base must be 0 or more, increment 1 or more, and classes - base a multiple of increment")
    return ([base] if base else []) + [increment] * ((num_classes - base) // increment)


def herding(features: Tensor, m: int) -> Tensor:
    """Herding (iCaRL): pick m images one after another so that the mean of the picked stays nearest the class mean.

    features [N, D] of one class -> LongTensor [min(m, N)], in order of choice: a smaller m gives a prefix.
    """
    f = F.normalize(features.double(), dim=1)  # double: ties and their order do not depend on rounding
    mean, picked_sum = f.mean(0), torch.zeros_like(f[0])
    free = torch.ones(len(f), dtype=torch.bool, device=f.device)
    order = []
    for k in range(1, min(m, len(f)) + 1):
        distance = (mean - (picked_sum + f) / k).norm(dim=1).masked_fill(~free, math.inf)  # [N]
        best = int(distance.argmin())
        free[best] = False
        picked_sum += f[best]
        order.append(best)
    return torch.tensor(order, dtype=torch.long)


class Memory:
    """The exemplars M_t: for each class seen, indices of training images in the order in which herding chose them.

    total: budget shared equally by the classes seen; per_class: a fixed budget for each class instead (0 = not).
    """

    def __init__(self, total: int, per_class: int = 0):
        self.total, self.per_class = total, per_class
        self.chosen: list[Tensor] = []  # [class] -> LongTensor of indices into the training set

    def share(self, classes_seen: int) -> int:
        """Exemplars that each class may keep once classes_seen classes are known."""
        return self.per_class or self.total // classes_seen

    def add(self, ranked: list[Tensor]) -> None:
        """Take new classes' images, ranked by herding, and cut every class to its new share (a prefix)."""
        share = self.share(len(self.chosen) + len(ranked))
        self.chosen = [indices[:share] for indices in self.chosen + ranked]

    def indices(self) -> Tensor:
        """All exemplars, class after class: LongTensor [at most the budget]."""
        return torch.cat([torch.empty(0, dtype=torch.long), *self.chosen])


# ------------------------------------------------------------------------------------------------------- the images

@dataclass
class Dataset:
    """Images uint8 [N, H, W, 3] and labels int64 [N]; class_names[label] is the name of a class."""

    name: str
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    class_names: list[str]

    def reorder(self, order: list[int]) -> Dataset:
        """The same data with labels replaced by positions in the order."""
        position = torch.tensor(order).argsort()
        return replace(self, train_labels=position[self.train_labels], test_labels=position[self.test_labels],
                       class_names=[self.class_names[label] for label in order])

    def hold_out(self, fraction: float) -> Dataset:
        """Put this fraction of each class's training images (at least one) in the place of the test set."""
        test = torch.zeros(len(self.train_labels), dtype=torch.bool)
        for label in range(len(self.class_names)):
            images = members(self.train_labels, label, label + 1)
            shuffled = images[torch.randperm(len(images), generator=torch.Generator().manual_seed(label))]
            test[shuffled[:min(max(1, round(fraction * len(images))), len(images) - 1)]] = True
        return replace(self, train_images=self.train_images[~test], train_labels=self.train_labels[~test],
                       test_images=self.train_images[test], test_labels=self.train_labels[test])

    def fingerprint(self) -> str:
        """The same for the same images, labels and order of them, wherever the file is."""
        digest = hashlib.sha256()
        for tensor in (self.train_images, self.train_labels, self.test_images, self.test_labels):
            digest.update(tensor.numpy().tobytes())
        return digest.hexdigest()[:16]

    def to(self, device: torch.device) -> Dataset:
        """The same data on a device."""
        moved = (t.to(device) for t in (self.train_images, self.train_labels, self.test_images, self.test_labels))
        return Dataset(self.name, *moved, self.class_names)


def to_float(images: Tensor) -> Tensor:
    """uint8 [B, H, W, 3] -> float [B, 3, H, W] in [0, 1], channels last in memory."""
    return images.permute(0, 3, 1, 2).float() / 255


def augment(images: Tensor, draw: Tensor, shift: int, flip: bool, jitter: float) -> Tensor:
    """Random crop from a black border, horizontal flip and brightness.

    images uint8 [B, H, W, 3], draw [4, B] (top, left, flip, brightness of each image, uniform in [0, 1)) -> float
    [B, 3, H, W] in [0, 1], channels last in memory. shift: pixels of the border; flip: whether half of the images are
    mirrored; jitter: the largest relative change of brightness.
    """
    batch, height, width, _ = images.shape
    draw = draw.to(images.device)
    top, left = (draw[:2] * (2 * shift + 1)).long()
    x, y = torch.arange(width, device=images.device), torch.arange(height, device=images.device)
    rows = top[:, None] + y  # [B, H]
    columns = left[:, None] + torch.where(draw[2, :, None] < 0.5 * flip, width - 1 - x, x)  # [B, W]
    padded = F.pad(images, (0, 0, shift, shift, shift, shift))
    index = torch.arange(batch, device=images.device)[:, None, None]
    cropped = to_float(padded[index, rows[:, :, None], columns[:, None, :]])
    brightness = 1 + jitter * (2 * draw[3] - 1)
    return (cropped * brightness[:, None, None, None]).clamp(max=1)


def members(labels: Tensor, low: int, high: int) -> Tensor:
    """Indices (on the CPU) of the images with low <= label < high."""
    return ((labels >= low) & (labels < high)).nonzero()[:, 0].cpu()


def balanced(labels: Tensor, share: int, generator: torch.Generator) -> Tensor:
    """A class-balanced choice: at most share images of each class, drawn at random. labels [N] -> indices into them."""
    order = torch.randperm(len(labels), generator=generator)
    shuffled = labels[order]
    return torch.cat([order[shuffled == label][:share] for label in range(int(labels.max()) + 1)])


def batches(count: int, size: int, generator: torch.Generator,
            device: torch.device | str = "cpu") -> tuple[Tensor, ...]:
    """A random order of range(count) in batches of nearly equal size: at most size, or one more lest an image be alone.

    BatchNorm needs two. So count = 7, size = 2 gives 3, 2, 2.
    """
    parts = max(1, min(math.ceil(count / size), count // 2))
    return torch.randperm(count, generator=generator).to(device).tensor_split(parts)


# ------------------------------------------------------------------------------------------------------ the sources

def load(source: str, root: str = "data") -> Dataset:
    """Load `cifar100` (downloaded to root on first use), `synthetic`, or the path of an .npz file.

    Raises DataError with one line that says what is wrong and what to do.
    """
    if source == "cifar100":
        return cifar100(root)
    return synthetic() if source == "synthetic" else from_npz(source)


def cifar100(root: str) -> Dataset:
    """CIFAR-100 by torchvision, which checks the files' MD5 before it opens them."""
    try:
        from torchvision.datasets import CIFAR100  # here: it takes seconds, which other data sets need not wait for
    except (ImportError, RuntimeError) as error:  # RuntimeError: it is there, but not of this torch
        raise DataError(f"CIFAR-100 is read by torchvision, which cannot be imported ({error}): pip install -r "
                        "requirements.txt, or give --data FILE.npz") from None
    socket.setdefaulttimeout(30)  # a network that never answers is an error too
    try:
        train, test = (CIFAR100(root, train=train, download=True) for train in (True, False))
    except (OSError, RuntimeError) as error:
        raise DataError(f"CIFAR-100 is not in {root!r} and cannot be downloaded ({error}): give --data FILE.npz with "
                        "the keys train_images, train_labels, test_images, test_labels, or try the demo, "
                        "bash run_cifar100.sh demo") from None
    arrays = (train.data, train.targets, test.data, test.targets)
    return Dataset("CIFAR-100", *map(torch.as_tensor, arrays), list(train.classes))


CIFAR100_SUM = 18_729_378_732  # of all training pixels, whatever their order: how an .npz of CIFAR-100 is recognised


def from_npz(path: str) -> Dataset:
    """Read train_images, train_labels, test_images, test_labels (and class_names) from an .npz file."""
    arrays = read_npz(path)
    images = {split: check_images(path, split, arrays[f"{split}_images"]) for split in ("train", "test")}
    if images["train"].shape[1:] != images["test"].shape[1:]:
        raise DataError(f"{path}: train_images are {images['train'].shape[1:]} and test_images "
                        f"{images['test'].shape[1:]}: make them the same size")
    labels = {split: check_labels(path, split, arrays[f"{split}_labels"], len(images[split])) for split in images}
    classes = int(labels["train"].max()) + 1
    for split, least in (("train", 2), ("test", 1)):
        counts = np.bincount(labels[split], minlength=classes)
        if len(counts) > classes or counts.min() < least:
            raise DataError(f"{path}: class {int(counts.argmin()) if len(counts) == classes else len(counts) - 1} has "
                            f"too few images: each label from 0 to {len(counts) - 1} needs at least 2 training images "
                            "and 1 test image")
    names = [name.decode(errors="replace") if isinstance(name, bytes) else str(name)
             for name in arrays.get("class_names", np.arange(classes)).ravel()]
    if len(names) != classes:
        raise DataError(f"{path}: class_names has {len(names)} entries for {classes} classes: give one a class")
    is_cifar = classes == 100 and int(images["train"].sum(dtype=np.int64)) == CIFAR100_SUM
    name = "CIFAR-100" if is_cifar else os.fsencode(os.path.basename(path)).decode(errors="replace")
    tensors = (images["train"], labels["train"], images["test"], labels["test"])
    return Dataset(name, *(torch.from_numpy(np.ascontiguousarray(t)) for t in tensors), names)


def read_npz(path: str) -> dict[str, np.ndarray]:
    """The arrays of an .npz that are of use here; nothing in it is unpickled."""
    keys = [f"{split}_{kind}" for split in ("train", "test") for kind in ("images", "labels")]
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in [*keys, "class_names"] if key in file.files}
    except FileNotFoundError:
        raise DataError(f"there is no data set {path!r}: give cifar100, synthetic or the path of an .npz") from None
    except MemoryError:
        raise
    except Exception as error:  # on other files numpy and zipfile raise nearly anything
        why = str(error).split("\n")[0]
        raise DataError(f"{path} is not a readable .npz file ({why}): write it with numpy.savez, "
                        "without objects") from None
    if missing := [key for key in keys if key not in arrays]:
        raise DataError(f"{path} lacks {', '.join(missing)}: an .npz needs the keys {', '.join(keys)}")
    return arrays


def check_images(path: str, split: str, images: np.ndarray) -> np.ndarray:
    """uint8 [N, H, W], [N, H, W, 1] or [N, H, W, 3] -> uint8 [N, H, W, 3]."""
    images = images[..., None] if images.ndim == 3 else images
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3) or 0 in images.shape:
        raise DataError(f"{path}: {split}_images is {images.dtype} {list(images.shape)}: it must be uint8 "
                        "[N, H, W] or [N, H, W, 3]")
    if min(images.shape[1:3]) < 8:
        raise DataError(f"{path}: {split}_images are {images.shape[1]} x {images.shape[2]} pixels: the network halves "
                        "them three times, so they must be at least 8 x 8")
    return np.repeat(images, 3, axis=-1) if images.shape[-1] == 1 else images


def check_labels(path: str, split: str, labels: np.ndarray, count: int) -> np.ndarray:
    """Integers [N] or [N, 1] -> int64 [N]."""
    if labels.dtype.kind not in "iu" or labels.shape not in ((count,), (count, 1)):
        raise DataError(f"{path}: {split}_labels is {labels.dtype} {list(labels.shape)}: it must be integers "
                        f"[{count}] or [{count}, 1], one for each image")
    if labels.min() < 0 or labels.max() >= 2**16:
        raise DataError(f"{path}: {split}_labels runs from {labels.min()} to {labels.max()}: labels must be the whole "
                        "numbers from 0 on, without a gap")
    return labels.astype(np.int64).ravel()


def synthetic(classes: int = 20, train: int = 100, test: int = 50, seed: int = 0) -> Dataset:
    """Seeded images 32 x 32 for a first run: each class is a smooth coloured pattern, moved about, under clutter.

    train, test: images a class. Learnable by a small network in a few epochs, not trivial: the clutter is nearly as
    strong as the pattern.
    """
    generator = torch.Generator().manual_seed(seed)

    def smooth(count: int) -> Tensor:
        coarse = torch.randn(count, 3, 8, 8, generator=generator)
        return F.interpolate(coarse, size=32, mode="bicubic", align_corners=False)

    patterns = smooth(classes)
    labels = torch.arange(classes).repeat_interleave(train + test)
    shift = torch.randint(-6, 7, (len(labels), 2), generator=generator)
    moved = torch.stack([patterns[c].roll((int(dy), int(dx)), (1, 2)) for c, (dy, dx) in zip(labels, shift)])
    images = moved + 0.7 * smooth(len(labels)) + 0.3 * torch.randn(len(labels), 3, 32, 32, generator=generator)
    images = (128 + 48 * images).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()
    is_train = (torch.arange(train + test) < train).repeat(classes)
    names = [f"pattern {label}" for label in range(classes)]
    return Dataset("synthetic", images[is_train], labels[is_train], images[~is_train], labels[~is_train], names)
