"""What an image costs in training, against a plain loop as other codes run it. By hand; minutes to half an hour.

    python tests/benchmark.py [--width 64] [--batch 128] [--steps 1 5 10 20] [--kept 0.316] [--batches 4]

On the CPU. Every number is a median over batches, in one process, on random images of CIFAR-100's size; ratios compare
numbers of one run alone. B0-Inc5 is the protocol: step t has t extractors.
"""
import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torchvision.transforms import v2

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import data  # noqa: E402
import der  # noqa: E402
import train  # noqa: E402

CLASSES = 5  # of a step
CHUNK = der.chunk(torch.empty(0, 32, 32, 3), torch.device("cpu"))  # images at a time where nothing is trained
VIEWS, REUSE = 10, 3  # of an image in profile fast, and the epochs that use each: 30 in all
SAMPLES = 2500 + 2000  # of a step of CIFAR-100's B0-Inc5: new images and exemplars


class Watch:
    """Stands in for train.Progress: does step() after each batch, and keeps the seconds of both, epoch by epoch."""

    def __init__(self, step=lambda: None):
        self.step, self.start, self.epochs = step, None, [[]]

    def tick(self, images):
        now = time.perf_counter()
        alone = seconds(self.step)
        if self.start is not None:
            self.epochs[-1].append((now - self.start, alone))
        self.start = time.perf_counter()

    def epoch(self, *_):
        self.start = None  # what is between two epochs is not of a batch
        self.epochs.append([])


class NoFolder:
    """Stands in for der.RunFolder: keeps nothing."""

    def save(self, state):
        pass


def seconds(function):
    """Seconds that a call takes."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def median_ms(function, images, repeats):
    """Median milliseconds an image of a call, after one to warm up."""
    times = [seconds(function) for _ in range(repeats + 1)]
    return 1000 * statistics.median(times[1:]) / images


def make_run(width, batch, t, batches, kept=None):
    """A run before stage 1 of step t, its frozen extractors compact where kept (share of channels) is given."""
    s = train.parse_settings(["--width", str(width), "--batch", str(batch), "--epochs", "2", "--first-epochs", "0",
                              "--views", "1", "--increment", str(CLASSES), *(["--prune"] if kept else [])])
    device = torch.device("cpu")
    precision = der.choose_precision(s.precision, device)
    images = torch.randint(0, 256, (batches * batch, 32, 32, 3), dtype=torch.uint8)
    labels = torch.randint(0, CLASSES * t, (batches * batch,))
    dataset = data.Dataset("random", images, labels, images, labels, [str(c) for c in range(CLASSES * t)]).to(device)
    net = der.Supernet(width, True, precision, s.mask_start if kept else None).to(device)
    for step in range(t):
        net.expand(CLASSES)
        if kept:
            for mask in net.extractors[-1].masks.values():
                mask.e.data = torch.full_like(mask.e, 0.5).index_fill(
                    0, torch.arange(round(kept * len(mask.e)), len(mask.e), device=device), -0.5)
            if step < t - 1:
                net.compact()
    return train.Run(s, NoFolder(), device, dataset, [CLASSES] * t, net, data.Memory(2000, 0), {}, step=t - 1)


def ours(width, batch, t, batches, kept=None):
    """ms an image: of a batch in the first and second half of stage 1 (alike unless pruned), and of the frozen."""
    r, watch = make_run(width, batch, t, batches, kept), Watch()
    samples = torch.arange(batches * batch)
    train.train_representation(r, samples, CLASSES * (t - 1), {}, watch)
    draw = torch.rand(4, len(samples))
    frozen = median_ms(lambda: train.extract(r, samples, draw, last=-1), len(samples), 3) if t > 1 else 0.0
    first, second = (1000 * statistics.median(took for took, _ in half) / batch for half in watch.epochs[:2])
    return first, second, frozen


def overhead(width, batch, t, rounds):
    """ms an image of a batch, frozen extractors included: as it is; the networks' passes and the optimiser alone.

    The two are timed alternately: the machine's speed changes within minutes. The second is on fixed images, without
    auxiliary loss.
    """
    r, samples = make_run(width, batch, t, rounds), torch.arange(rounds * batch)
    net = make_run(width, batch, t, 1).supernet.train()
    images = torch.rand(batch, 3, 32, 32, device=r.device).contiguous(memory_format=torch.channels_last)
    chunk = images[torch.arange(CHUNK) % batch]  # frozen extractors see as many at a time, whatever the batch
    labels = torch.randint(0, CLASSES * t, (batch,), device=r.device)
    optimizer = torch.optim.SGD(train.groups(net, r.settings), 0.1, 0.9, weight_decay=5e-4, nesterov=True, fused=True)

    @torch.no_grad()
    def frozen_features():
        return [folded(chunk.to(net.precision)) for folded in net.folded]

    fixed = [torch.rand(batch, extractor.num_features) for extractor in net.extractors[:-1]]

    def step():
        with torch.autocast(images.device.type, torch.bfloat16, enabled=net.precision == torch.bfloat16):
            newest = net.extractors[-1](images)
        loss = F.cross_entropy(net.classifier(torch.cat([*fixed, newest], dim=1)), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    watch = Watch(step)
    train.train_representation(r, samples, CLASSES * (t - 1), {}, watch)
    new = [statistics.median(times) / batch for times in zip(*sum(watch.epochs, []))]
    frozen = [0.0, 0.0]
    if t > 1:
        draw, part = torch.rand(4, CHUNK), torch.arange(CHUNK) % len(samples)
        times = [(seconds(lambda: train.extract(r, part, draw, last=-1)), seconds(frozen_features))
                 for _ in range(rounds + 1)]
        frozen = [statistics.median(column) / CHUNK for column in zip(*times[1:])]  # the first warms up
    return [1000 * (a + b) for a, b in zip(new, frozen)]


class Images(torch.utils.data.Dataset):
    """Random images for a plain loop: PIL transforms, one image at a time."""

    def __init__(self, count):
        self.images = [v2.functional.to_pil_image(image)
                       for image in torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8)]
        self.transform = v2.Compose([v2.RandomCrop(32, 4), v2.RandomHorizontalFlip(), v2.ColorJitter(63 / 255),
                                     v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True),
                                     v2.Normalize(der.MEAN, der.STD)])

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.transform(self.images[index]), index % CLASSES


def plain(width, batch, t, batches):
    """ms an image of a straightforward loop: worker processes, float32, every extractor unfolded in every batch."""
    extractors = [der.ResNet18(width).requires_grad_(k == t - 1).train(k == t - 1) for k in range(t)]
    head, auxiliary = torch.nn.Linear(8 * width * t, CLASSES * t), torch.nn.Linear(8 * width, CLASSES + 1)
    trained = [*extractors[-1].parameters(), *head.parameters(), *auxiliary.parameters()]
    optimizer = torch.optim.SGD(trained, 0.1, 0.9, weight_decay=5e-4)
    ahead = 4  # batches that two workers prepare ahead: as in a long epoch, each batch has another prepared beside it
    loader = torch.utils.data.DataLoader(Images((batches + 1 + ahead) * batch), batch, shuffle=True, num_workers=2)
    times = [time.perf_counter()]
    for _, (images, labels) in zip(range(batches + 1), loader):
        features = [extractor(images) for extractor in extractors]
        loss = F.cross_entropy(head(torch.cat(features, dim=1)), labels)
        loss = loss + F.cross_entropy(auxiliary(features[-1]), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()
        times.append(time.perf_counter())
    return 1000 * statistics.median(b - a for a, b in zip(times[1:], times[2:])) / batch


def hold(width, batch, t, kept):
    """Stage 1 with all that it holds on to in profile fast: CIFAR-100, and the frozen features of all views."""
    features = round(kept * 8 * width) * (t - 1)
    held = torch.ones(60_000, 32, 32, 3, dtype=torch.uint8), torch.ones(VIEWS, SAMPLES, features)
    ours(width, batch, t, 2, kept)
    return held


def peak_memory(width, batch, t, kept):
    """MB at the peak of stage 1 in a process of its own; before this one has grown: its children begin as large."""
    command = [sys.executable, __file__, "--width", str(width), "--batch", str(batch), "--kept", str(kept),
               "--memory", str(t)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--steps", type=int, nargs="*", default=[1, 5, 10, 20])
    parser.add_argument("--kept", type=float, default=0.316, help="share of every layer's channels that pruning leaves")
    parser.add_argument("--batches", type=int, default=4)
    parser.add_argument("--memory", type=int, help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.memory:
        hold(a.width, a.batch, a.memory, a.kept)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
        return
    peaks = [peak_memory(a.width, a.batch, t, a.kept) for t in a.steps]
    print(der.machine(torch.device("cpu")))
    print(f"\nwidth {a.width}, batch {a.batch}, ms an image; pruned: {a.kept:.1%} of the channels of every layer, "
          f"about {a.kept ** 2:.0%} of the parameters\nfresh: other views every epoch (paper); by turns: a view serves "
          f"{REUSE} epochs (fast); in brackets: times faster than the plain loop\n")
    print("           plain loop |            unpruned              |             pruned\n"
          "  t           float32 |       fresh         by turns     |       fresh         by turns     |  "
          "peak MB, pruned")
    first = None
    for t, peak in zip(a.steps, peaks):
        slow = plain(a.width, a.batch, t, a.batches)
        row = [f"{t:3}  {slow:16.2f} "]
        costs = []
        for kept in (None, a.kept):
            masked, compact, frozen = ours(a.width, a.batch, t, a.batches, kept)
            new = (masked + compact) / 2
            costs += [new + frozen, new + frozen / REUSE]
            row.append("  ".join(f"{cost:7.2f} ({slow / cost:5.1f}x)" for cost in costs[-2:]))
        first = first or costs
        print(" | ".join(row), f"| {peak:8}", flush=True)
    print("growth of the last row over the first: " + ", ".join(
        f"{name} {cost / start:.2f}" for name, cost, start in
        zip(("unpruned, fresh", "unpruned, by turns", "pruned, fresh", "pruned, by turns"), costs, first)))
    for width, batch, rounds in ((16, 32, 8 * a.batches), (a.width, a.batch, 2 * a.batches)):
        for t in (1, a.steps[-1]):
            whole, alone = overhead(width, batch, t, rounds)
            print(f"overhead at width {width}, batch {batch}, t = {t}: {whole:.2f} ms an image, bare network "
                  f"{alone:.2f}: {100 * (whole / alone - 1):+.1f} %", flush=True)


if __name__ == "__main__":
    main()
