"""The protocol of DER: two-stage learning, step by step; evaluation, results and the command line.

    python train.py --data cifar100 --base 0 --increment 10 --profile fast --out runs/fast/B0-Inc10

The same command goes on where it was stopped. Read `learn` first: it is the protocol.
"""
from __future__ import annotations

import argparse
import json
import math
import operator
import os
import shutil
import signal
import sys
import textwrap
import time
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import LinearLR, LRScheduler, MultiStepLR, OneCycleLR, SequentialLR

import data as sources
import prune
from data import DataError, Dataset, Memory, augment, balanced, batches, class_order, herding, increments, members, \
    to_float
from der import ELSEWHERE, DeviceError, FolderError, ReadOnly, RunFolder, Supernet, auxiliary_loss, choose_device, \
    choose_precision, chunk, classification_loss, latency, load, machine, out_of_memory


class SettingsError(Exception):
    """Settings that cannot be used together; the message says which and what to do."""


class Diverged(Exception):
    """A loss that is no longer finite."""


# --------------------------------------------------------------------------------------------------------- settings

def setting(default, text: str, **rule):
    """A field of Settings: the sentence that --help prints, and its range (least, above, below) or choices."""
    return field(default=default, metadata={"help": text, "rule": rule})


@dataclass
class Settings:
    """Every setting of a run; each is a flag of the same name. The values here are the paper's, pruning's our own.

    What the other profiles have in their place stands in PROFILES.
    """

    data: str = setting("cifar100", "cifar100, synthetic, or the path of an .npz file")
    root: str = setting("data", "folder into which cifar100 is downloaded")
    base: int = setting(0, "classes of the first step; 0 = as many as an increment", least=0)
    increment: int = setting(10, "new classes of every other step", least=1)
    steps: int = setting(0, "stop after this many steps; 0 = all", least=0)
    order: str = setting("", "class order: podnet1 .. 3, icarl1993, natural (by label) or a seed of a random one; "
                         "empty = podnet1 with 100 classes, else 0")
    memory: int = setting(2000, "exemplars in all, shared equally by the classes seen (where base is 0)", least=1)
    memory_per_class: int = setting(20, "exemplars of each class instead (where base is not 0)", least=1)
    validation: float = setting(0.0, "test on this share of the training images, held out, to choose settings", least=0,
                                below=1)
    profile: str = setting("fast", "preset of the settings", choices=("paper", "fast", "demo"))
    out: str = setting("", "run folder; empty = runs/PROFILE/PROTOCOL, of other data than CIFAR-100 "
                       "runs/DATA-PROFILE/PROTOCOL")
    restart: bool = setting(False, "start over, whatever the run folder holds")
    evaluate: str = setting("", "a run folder: train nothing, test its model again and print its table")
    # Run.generator multiplies it by 10^8 = 2^8 5^8, and torch takes the lowest 32 bits: from 2^24 on they repeat.
    seed: int = setting(0, "seed of initial weights, batches and augmentation", least=0, below=2**24)
    device: str = setting("auto", "device; auto = cuda where there is one, else cpu", choices=("auto", "cpu", "cuda"))
    precision: str = setting("auto", "of the extractors; auto = bfloat16 where the device is fast at it",
                             choices=("auto", "bfloat16", "float32"))

    width: int = setting(64, "channels of an extractor's first convolution (features = 8 x width)", least=1)
    expansion: bool = setting(True, "add an extractor each step; without, one is trained on (ablation)")
    auxiliary: bool = setting(True, "train with the auxiliary loss (ablation)")

    epochs: int = setting(170, "stage 1: epochs of a step; where given, of the first too, unless --first-epochs or "
                         "--base-epochs is", least=1)
    first_epochs: int = setting(0, "stage 1: epochs of the first step where base is 0; 0 = as every step", least=0)
    schedule: str = setting("steps", "stage 1: course of the learning rate", choices=("steps", "onecycle"))
    warmup: int = setting(10, "steps: epochs of linear warm-up, after which the heads begin anew", least=0)
    milestones: tuple = setting((100, 120), "steps: epochs after the warm-up at which the rate falls to a tenth")
    base_epochs: int = setting(200, "stage 1: epochs of the first step where base is not 0; 0 = as every step", least=0)
    base_milestones: tuple = setting((60, 120, 160), "its milestones, without a warm-up")
    views: int = setting(0, "stage 1: augmented views of each image, by turns, which frozen extractors see once; 0 = "
                         "another every epoch", least=0)
    shift: int = setting(4, "augmentation: pixels by which an image is shifted at most, each way", least=0)
    flip: bool = setting(True, "augmentation: mirror half of the images")
    brightness: int = setting(63, "augmentation: change of brightness at most, either way, in 255ths of it", least=0,
                              below=256)
    batch: int = setting(128, "stage 1: images a batch", least=2)
    lr: float = setting(0.1, "stage 1: (highest) learning rate", above=0)
    momentum: float = setting(0.9, "momentum of SGD", least=0, below=1)
    nesterov: bool = setting(False, "Nesterov's momentum in stage 1")
    weight_decay: float = setting(5e-4, "weight decay of both stages", least=0)
    label_smoothing: float = setting(0.0, "stage 1: label smoothing of both losses", least=0, below=1)

    prune: bool = setting(False, "prune each extractor's channels in the middle of stage 1")
    sparsity: float = setting(0.3, "pruning: weight lambda_s of the sparsity loss", least=0)
    base_sparsity: float = setting(0.0, "pruning: lambda_s of the first step where base is not 0; 0 = as every step",
                                   least=0)
    s_max: float = setting(400.0, "pruning: highest slope of the masks' sigmoid, at the end of each epoch", least=1)
    mask_start: float = setting(0.1, "pruning: where the masks' e begin", above=0)
    mask_share: float = setting(0.5, "pruning: share of the epochs after which the network is made compact", above=0,
                                below=1)

    head_epochs: int = setting(30, "stage 2: epochs", least=1)
    head_batch: int = setting(128, "stage 2: images a batch", least=2)
    head_lr: float = setting(0.1, "stage 2: learning rate", above=0)
    head_milestones: tuple = setting((15,), "stage 2: epochs at which the rate falls to a tenth")
    temperature: float = setting(5.0, "stage 2: the logits are divided by it", above=0)
    head_views: int = setting(30, "stage 2: augmented views of each image, by turns; their features are fixed", least=1)


# Where a profile differs from the paper's settings, and why.
PROFILES = {
    "paper": {},
    # 30 of 170 epochs; the first step, which starts from random weights, has more. One cycle with Nesterov's
    # momentum needs few, and small batches give an epoch of 5000 to 7000 images more iterations.
    # A narrow or pruned network's few features leave stage 2 short of gradient at temperature 5.
    # Ten views by turns cost no accuracy that could be seen and spare the frozen extractors two thirds of their work.
    "fast": dict(epochs=30, first_epochs=120, base_epochs=60, schedule="onecycle", warmup=0, batch=32, nesterov=True,
                 views=10, head_batch=32, head_views=2, temperature=2.0),
}
# As fast, on a data set and with a network small enough for any laptop.
PROFILES["demo"] = PROFILES["fast"] | dict(epochs=8, first_epochs=0, base_epochs=0, views=4, batch=16, head_batch=16,
                                           data="synthetic", increment=2, width=8, memory=100, memory_per_class=5)
# What may differ where a run goes on.
MAY_DIFFER = {"root", "out", "device", "data", "dataset", "steps", "restart", "machine"}


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line like all others."""

    def error(self, message: str) -> None:
        raise SettingsError(f"{message} (python train.py --help lists the flags)")


def parse_settings(arguments: list[str] | None = None) -> Settings:
    """The command line -> Settings: the paper's, then the profile's, then the flags given."""
    parser = Parser(description=__doc__.split("\n")[0], allow_abbrev=False)
    for f in fields(Settings):
        default = "empty" if f.default == "" else f.default
        if any(f.name in preset for preset in PROFILES.values()):
            default = ", ".join(f"{preset.get(f.name, f.default)} in {name}" for name, preset in PROFILES.items())
        kind = {bool: dict(action=argparse.BooleanOptionalAction), tuple: dict(type=int, nargs="*")}.get(
            type(f.default), dict(type=type(f.default), choices=f.metadata["rule"].get("choices")))
        parser.add_argument("--" + f.name.replace("_", "-"), default=argparse.SUPPRESS, **kind,
                            help=f"{f.metadata['help']} (default: {default})")
    given = vars(parser.parse_args(arguments))
    if given.get("evaluate") == "":
        raise SettingsError("--evaluate needs the folder of a run")
    if "evaluate" in given:  # the run's own settings, but for where its data is and how it is tested
        config = RunFolder(given["evaluate"]).read("config.json")
        if other := given.keys() - {"evaluate", "data", "root", "device", "precision"}:
            raise SettingsError(f"--evaluate tests a run as it was trained: leave out --{min(other).replace('_', '-')}")
        given = {f.name: config[f.name] for f in fields(Settings) if f.name in config and f.name != "device"} | given
    every = dict(first_epochs=0, base_epochs=0) if "epochs" in given else {}  # whoever gives --epochs means each step's
    s = Settings(**{**PROFILES[given.get("profile", Settings.profile)], **every, **given})
    check_settings(s)
    for name, where in idle(s).items():
        if name in given and not s.evaluate:
            say(f"note: --{name.replace('_', '-')} has no effect {where}")
    return s


def idle(s: Settings) -> dict[str, str]:
    """The settings that this run does not use, by name, and why."""
    reasons = (
        (s.base, "with a --base", ("memory", "first_epochs")),
        (not s.base, "without a --base", ("memory_per_class", "base_epochs", "base_milestones", "base_sparsity")),
        (s.base and not s.base_epochs, "without --base-epochs", ("base_milestones",)),
        (s.schedule == "onecycle", "with --schedule onecycle", ("warmup", "milestones", "base_milestones")),
        (not s.prune, "without --prune", ("sparsity", "base_sparsity", "s_max", "mask_start", "mask_share")))
    return {name: where for holds, where, names in reasons if holds for name in names}


def check_settings(s: Settings) -> None:
    """Raise SettingsError for the first setting out of range or at odds with another."""
    for f in fields(s):
        value, tests = getattr(s, f.name), {"least": operator.ge, "above": operator.gt, "below": operator.lt}
        rule = {word: bound for word, bound in f.metadata["rule"].items() if word in tests}
        held = (tests[word](value, bound) for word, bound in rule.items())
        if rule and not (-math.inf < value < math.inf and all(held)):
            bounds = " and ".join(f"{word} {bound}" for word, bound in rule.items()).replace("least", "at least")
            raise SettingsError(f"--{f.name.replace('_', '-')} {value}: it must be a number {bounds}")
    if s.nesterov and not s.momentum:
        raise SettingsError("--nesterov needs a --momentum above 0")
    if any(epoch < 1 for epoch in (*s.milestones, *s.base_milestones, *s.head_milestones)):
        raise SettingsError("milestones must be 1 or more")
    if s.prune and not s.expansion:
        raise SettingsError("--prune and --no-expansion: pruning is for extractors that are frozen; leave one out")
    shortest = min(s.epochs, (s.base_epochs if s.base else s.first_epochs) or s.epochs)
    first = ("base-epochs", s.base_epochs, 0, "base-milestones", s.base_milestones) if s.base else (
        "first-epochs", s.first_epochs, s.warmup, "milestones", s.milestones)
    every = ("epochs", s.epochs, s.warmup, "milestones", s.milestones)
    for flag, epochs, warmup, other, milestones in (every, first) if s.schedule == "steps" else ():
        if 0 < epochs <= warmup:
            raise SettingsError(f"--warmup {warmup} leaves nothing of {epochs} epochs: lower it")
        if milestones and 0 < epochs <= warmup + min(milestones):
            raise SettingsError(f"--{flag} {epochs}: the learning rate would never fall, for the first of its "
                                f"milestones is epoch {warmup + min(milestones)}; give --{other} too")
    if s.prune and int(s.mask_share * shortest) < 1:
        raise SettingsError(f"--mask-share {s.mask_share} of {shortest} epochs leaves the masks none: raise either")


# ---------------------------------------------------------------------------------------------------------- the run

@dataclass
class Run:
    """One run: what it works with and where it stands."""

    settings: Settings
    folder: RunFolder
    device: torch.device
    data: Dataset
    increments: list[int]  # new classes at each step
    supernet: Supernet
    memory: Memory
    results: dict
    step: int = 0  # index of the step under way
    epoch: int = 0  # epochs of its stage 1 that are finished
    earlier: float = 0.0  # seconds that earlier processes spent on this step
    clock: float = field(default_factory=time.monotonic)
    log_bytes: int = 0
    saving: float = 0.0  # seconds that the last checkpoint took, and when it was written
    saved: float = -math.inf
    test_features: dict[tuple[int, int], Tensor] = field(default_factory=dict)

    def epochs(self, step: int) -> int:
        """Epochs of a step's stage 1: the first may have its own."""
        s = self.settings
        return (step == 0 and (s.base_epochs if s.base else s.first_epochs)) or s.epochs

    def generator(self, stage: int, epoch: int = 0) -> torch.Generator:
        """The randomness of an epoch depends on where the run stands alone: resuming needs no generator's state."""
        return torch.Generator().manual_seed(((self.settings.seed * 1000 + self.step) * 10 + stage) * 10_000 + epoch)

    def seconds(self) -> float:
        """Wall time of this step so far."""
        return round(self.earlier + time.monotonic() - self.clock, 1)

    def save(self, **training) -> None:
        """Write the checkpoint: all that the same command needs to go on from here."""
        self.saved = time.monotonic()
        self.folder.save(dict(step=self.step, epoch=self.epoch, seconds=self.seconds(), log_bytes=self.log_bytes,
                              results=self.results, memory=self.memory.chosen, class_names=self.data.class_names,
                              **self.supernet.snapshot(), **training))
        self.saving, self.saved = time.monotonic() - self.saved, time.monotonic()

    def write_results(self) -> None:
        """Write results.json: of all the steps that are finished."""
        self.folder.write("results.json", json.dumps(self.results, indent=1).encode())

    def resume(self) -> dict:
        """Take up the checkpoint, if there is one. Returns the state of a training under way, or {}."""
        state = self.folder.load() or {}
        if state:
            self.step, self.epoch, self.earlier, self.log_bytes, self.results, self.memory.chosen = (
                state[key] for key in ("step", "epoch", "seconds", "log_bytes", "results", "memory"))
            self.supernet.rebuild(state)
            if self.results.get("accuracy") and not (self.folder.path / "results.json").exists():
                self.write_results()
            if str(self.device) not in self.results["latency_device"]:
                self.results["latency_device"] += f", then {self.device}"
            here = machine(self.device)
            since = self.results.setdefault("resumed_on", [])  # an older checkpoint has none
            if here not in [self.folder.read("config.json").get("machine"), *since]:
                since.append(here)
        self.folder.cut_log(self.log_bytes)  # what came after the checkpoint will be written again
        return {key: state[key] for key in ("optimizer", "scheduler") if key in state}


def run(s: Settings) -> dict:
    """One run from its settings, or what is left of it. Returns the results."""
    r = open_run(s)
    try:
        return learn(r, r.resume())
    finally:
        r.folder.release()


def learn(r: Run, training: dict) -> dict:
    """The whole protocol: for each step expand, stage 1, stage 2, pick exemplars, test. Returns the results.

    training: the state of a stage 1 under way, from `Run.resume`, or {}.
    """
    last = min(r.settings.steps or len(r.increments), len(r.increments))
    progress = Progress(r, last)

    for r.step in range(r.step, last):
        n_old, n_new = sum(r.increments[:r.step]), r.increments[r.step]
        fresh = members(r.data.train_labels, n_old, n_old + n_new)  # D_t
        samples = torch.cat([fresh, r.memory.indices()])  # D~_t = D_t + M_t: nothing else of the past is read
        if r.epoch == 0:
            torch.manual_seed(r.generator(stage=0).initial_seed())
            r.supernet.expand(n_new)

        train_representation(r, samples, n_old, training, progress)  # stage 1
        r.supernet.freeze()
        stage1, _ = test(r)
        if r.step > 0:
            train_classifier(r, samples, progress)  # stage 2
        share = r.memory.share(n_old + n_new)
        classes = [members(r.data.train_labels, label, label + 1) for label in range(n_old, n_old + n_new)]
        r.memory.add([same(images[herding(extract(r, images), share)]) for images in classes])
        record(r, stage1, *test(r))

        r.step, r.epoch, r.earlier, r.clock, training = r.step + 1, 0, 0.0, time.monotonic(), {}
        r.save()
    return r.results


def train_epoch(parts, gradients, optimizer, scheduler: LRScheduler, tick) -> dict[str, float]:
    """One epoch, of either stage. parts: indices, batch by batch.

    gradients(batch): the forward and the backward pass (`Passes`) -> the loss's terms by name. Returns their means.
    """
    sums: dict[str, Tensor] = {}
    by_batch = isinstance(scheduler, OneCycleLR)
    for batch in parts:
        terms = gradients(batch)
        optimizer.step()
        if by_batch:
            scheduler.step()
        for name, value in terms.items():  # summed on the device: nothing here waits for it
            sums[name] = sums.get(name, 0) + value
        tick(len(batch))
    if not by_batch:
        scheduler.step()
    means = torch.stack([*sums.values()]) / len(parts)
    if dist.is_initialized():  # each process has its share of the mean
        dist.all_reduce(means)
        means /= world_size()
    return dict(zip(sums, means.tolist()))


# ------------------------------------------------------------------------------------ both passes, recorded on a GPU

class Passes:
    """The forward and the backward pass of a batch. On a GPU they are recorded as a CUDA graph and replayed.

    They are some hundred kernels of some microseconds each, which Python cannot start as fast as a GPU runs them. Each
    shape of the inputs, and each value of those that are no tensors, has a graph of its own. What the loss reads beside
    its inputs must stay where it is in memory: where it does not, make another Passes.
    """

    RECORDED_ON = "cuda"  # type of the devices whose passes are recorded
    WARM_UP = 3  # calls before a recording, in which libraries may not be set up nor convolutions timed

    def __init__(self, loss, optimizer: torch.optim.Optimizer):
        """loss(*inputs) -> total, its terms by name."""
        self.loss, self.optimizer, self.calls, self.graphs = loss, optimizer, {}, {}

    def __call__(self, *inputs) -> dict[str, Tensor]:
        """Leaves total's gradients in the optimiser's parameters; returns the terms.

        On a GPU both are there until the next call writes over them.
        """
        key = tuple(x.shape if isinstance(x, Tensor) else x for x in inputs)
        self.calls[key] = self.calls.get(key, 0) + 1
        self.optimizer.zero_grad()
        # What processes send each other is not recorded.
        records = inputs[0].device.type == self.RECORDED_ON and not dist.is_initialized()
        if not records or self.calls[key] <= self.WARM_UP:
            return self.direct(*inputs)
        graph, places, terms, gradients = self.graphs.get(key) or self.capture(key, inputs)
        for place, value in zip(places, inputs):
            if isinstance(value, Tensor):
                place.copy_(value)
        graph.replay()
        for parameter, gradient in gradients:
            parameter.grad = gradient
        return terms

    def direct(self, *inputs) -> dict[str, Tensor]:
        """Both passes, kernel by kernel."""
        total, terms = self.loss(*inputs)
        total.backward()
        return {name: term.detach() for name, term in terms.items()}

    def capture(self, key: tuple, inputs: tuple) -> tuple:
        """The graph, and the tensors that it reads and writes: inputs, terms, gradients. Nothing is computed yet."""
        graph, places = torch.cuda.CUDAGraph(), [x.clone() if isinstance(x, Tensor) else x for x in inputs]
        with torch.cuda.graph(graph, stream=torch.cuda.current_stream()):
            terms = self.direct(*places)
        trained = (p for group in self.optimizer.param_groups for p in group["params"])
        self.graphs[key] = graph, places, terms, [(p, p.grad) for p in trained if p.grad is not None]
        return self.graphs[key]


# ------------------------------------------------------------------------------------------ stage 1: representation

def train_representation(r: Run, samples: Tensor, n_old: int, training: dict, progress: Progress) -> None:
    """Train F_t, H_t and H_t^a on D~_t (samples: indices), from epoch r.epoch on with the state in training."""
    s, net, old = r.settings, r.supernet, {}
    epochs, samples = r.epochs(r.step), samples.to(r.device)
    views = s.views or epochs
    of_base = s.base > 0 and r.step == 0
    is_base = of_base and s.base_epochs > 0  # it has a schedule of its own
    lambda_a = 1.0 if s.auxiliary and r.step > 0 else 0.0
    lambda_s = (of_base and s.base_sparsity) or s.sparsity
    lambdas = {"classification": 1.0, "auxiliary": lambda_a, "sparsity": lambda_s}
    net.auxiliary.requires_grad_(lambda_a > 0)
    model = shared(net)
    optimizer = torch.optim.SGD(groups(net, s), s.lr, s.momentum, weight_decay=s.weight_decay, nesterov=s.nesterov,
                                fused=True)
    scheduler = make_scheduler(optimizer, s, is_base, epochs, len(batches(len(samples), s.batch, torch.Generator())))
    if r.epoch > 0:
        optimizer.load_state_dict(training["optimizer"])
        scheduler.load_state_dict(training["scheduler"])

    def loss(index: Tensor, draw: Tensor, features: Tensor | None, slope: Tensor | None,
             share: float) -> tuple[Tensor, dict[str, Tensor]]:
        """Eq. 2 over a batch -> L, and its terms by name without their lambda; both times share.

        index [B]: training images; draw [4, B]: their augmentation; features [B, D]: theirs in the frozen extractors;
        slope: of the masks; share: of this process in the batch, 1 for its mean one.
        """
        labels = r.data.train_labels[index]
        if net.masked():
            prune.set_masks(net.extractors[-1], slope)
        logits, aux_logits, _ = model(augmented(r, index, draw), features)
        terms = {"classification": classification_loss(logits, labels, s.label_smoothing)}
        if lambda_a:
            terms["auxiliary"] = auxiliary_loss(aux_logits, labels, n_old, s.label_smoothing)
        if net.masked():
            terms["sparsity"] = prune.sparsity_loss(net.extractors[-1])
        # L = L_H + lambda_a L_Ha + lambda_s L_s
        total = sum(lambdas[name] * term for name, term in terms.items())
        return share * total, {name: share * term for name, term in terms.items()}

    passes = Passes(loss, optimizer)
    for epoch in range(r.epoch, epochs):
        generator, lr = r.generator(1, epoch), scheduler.get_last_lr()[0]
        if s.schedule == "steps" and not is_base and epoch == s.warmup > 0:
            torch.manual_seed(generator.initial_seed())
            net.classifier.reset_parameters()
            net.auxiliary.reset_parameters()
        if net.masked() and epoch >= int(s.mask_share * epochs):  # what is left heals while it is trained on
            model, passes = compact(net, optimizer, s), Passes(loss, optimizer)
        view = epoch % views
        draw = torch.rand(4, len(samples), generator=r.generator(3, view)).to(r.device)
        if net.folded and view not in old:
            old = (old if s.views else {}) | {view: extract(r, samples, draw, last=-1)}
        net.train()
        parts = batches(len(samples), s.batch, generator, r.device)
        if net.masked():  # on the device before they are needed: nothing waits for a batch's
            slopes = iter(torch.tensor([prune.anneal(b, len(parts), s.s_max) for b in range(1, len(parts) + 1)],
                                       dtype=torch.double, device=r.device))

        def gradients(whole: Tensor) -> dict[str, Tensor]:
            """Both passes of a batch, whole [B] (places in samples) -> the loss's terms."""
            batch = whole.tensor_split(world_size())[rank()]  # of several processes, each has its share
            share = len(batch) * world_size() / len(whole)  # so that the processes' mean is that of the whole batch
            return passes(samples[batch], draw[:, batch], old[view][batch] if old else None,
                          next(slopes) if net.masked() else None, share)

        terms = train_epoch(parts, gradients, optimizer, scheduler, progress.tick)
        r.epoch = epoch + 1
        progress.epoch(1, r.epoch, epochs, lr, terms)
        # After every epoch, unless that would take more than a twentieth of the time (a large network on a GPU).
        if r.epoch == epochs or time.monotonic() - r.saved > 20 * r.saving:
            r.save(optimizer=optimizer.state_dict(), scheduler=scheduler.state_dict())


def compact(net: Supernet, optimizer: torch.optim.Optimizer, s: Settings) -> torch.nn.Module:
    """Make the newest extractor compact under way. Returns the network to train on with the same optimiser."""
    net.compact()
    for group, new in zip(optimizer.param_groups, groups(net, s)):
        group["params"] = new["params"]
    optimizer.state.clear()  # the momentum of weights that are other tensors now; it is there again in ten batches
    return shared(net)


def groups(net: Supernet, s: Settings) -> list[dict]:
    """The optimiser's groups: the weights in training; in a run with pruning, the masks, none once they are gone.

    A mask's gradients, of both losses, shrink as one over the width, so its rate rises with it: that brings the effect
    of a lambda_s closer together across widths. 16 is the width at which the defaults of pruning were found.
    """
    trained = [(name, p) for name, p in net.named_parameters() if p.requires_grad]
    weights, masks = ([p for name, p in trained if (".masks." in name) == masked] for masked in (False, True))
    return [dict(params=weights)] + ([dict(params=masks, lr=s.lr * s.width / 16, weight_decay=0.0)] if s.prune else [])


def make_scheduler(optimizer, s: Settings, is_base: bool, epochs: int, batches_an_epoch: int) -> LRScheduler:
    """Stage 1's learning rate: one cycle, batch by batch; or warm-up, then steps, epoch by epoch."""
    if s.schedule == "onecycle":
        return OneCycleLR(optimizer, [group["lr"] for group in optimizer.param_groups], epochs=epochs,
                          steps_per_epoch=batches_an_epoch, cycle_momentum=False)
    if is_base or not s.warmup:
        return MultiStepLR(optimizer, s.base_milestones if is_base else s.milestones)
    # Epoch e = 0 .. w - 1 of the warm-up has (e + 1) / w of the full rate, as in the authors' code.
    warmup = LinearLR(optimizer, 1 / s.warmup, total_iters=s.warmup - 1)
    return SequentialLR(optimizer, [warmup, MultiStepLR(optimizer, s.milestones)], [s.warmup])


# ---------------------------------------------------------------------------------------------- stage 2: classifier

def train_classifier(r: Run, samples: Tensor, progress: Progress) -> None:
    """Train H_t from scratch on a class-balanced part of D~_t (samples: indices); the features stay as they are.

    A class with fewer images than the share of a class gives all that it has.
    """
    s, net, generator = r.settings, r.supernet, r.generator(stage=2)
    share = max(len(chosen) for chosen in r.memory.chosen)  # all exemplars, and as many of each new class
    samples = samples[balanced(r.data.train_labels.cpu()[samples], share, generator)]
    labels = r.data.train_labels[samples.to(r.device)]
    views = [extract(r, samples, torch.rand(4, len(samples), generator=generator))
             for _ in range(min(s.head_views, s.head_epochs))]  # each [N, D]
    torch.manual_seed(generator.initial_seed())
    net.classifier.reset_parameters()
    optimizer = torch.optim.SGD(net.classifier.parameters(), s.head_lr, s.momentum, weight_decay=s.weight_decay)
    scheduler = MultiStepLR(optimizer, s.head_milestones)

    def loss(features: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        value = classification_loss(net.classifier(features) / s.temperature, labels)
        return value, {"classification": value}

    passes = Passes(loss, optimizer)
    for epoch in range(s.head_epochs):
        lr, features = scheduler.get_last_lr()[0], views[epoch % len(views)]
        terms = train_epoch(batches(len(samples), s.head_batch, generator, r.device),
                            lambda batch: passes(features[batch], labels[batch]), optimizer, scheduler, progress.tick)
        progress.epoch(2, epoch + 1, s.head_epochs, lr, terms)
    if dist.is_initialized():
        dist.broadcast(net.classifier.weight.data, 0)


# --------------------------------------------------------------------------------------------- features, evaluation

def augmented(r: Run, index: Tensor, draw: Tensor) -> Tensor:
    """Training images (indices [B], on the device) -> [B, 3, H, W] in [0, 1], augmented as draw [4, B] says."""
    s = r.settings
    return augment(r.data.train_images[index], draw, s.shift, s.flip, s.brightness / 255)


@torch.no_grad()
def extract(r: Run, samples: Tensor, draw: Tensor | None = None, last: int | None = None) -> Tensor:
    """Super-features [N, D] of training images (indices) in test mode; of augmented ones where draw [4, N] is given.

    last: of the extractors before this index alone. Of several processes, each computes its share.
    """
    r.supernet.eval()
    count, chunks = math.ceil(len(samples) / world_size()), []
    mine = torch.arange(rank() * count, (rank() + 1) * count) % len(samples)
    for part in mine.split(chunk(r.data.train_images, r.device)):
        index = samples[part].to(r.device)
        images = to_float(r.data.train_images[index]) if draw is None else augmented(r, index, draw[:, part])
        chunks.append(r.supernet.features(images, last=last))
    features = torch.cat(chunks)
    if dist.is_initialized():
        shares = [torch.empty_like(features) for _ in range(world_size())]
        dist.all_gather(shares, features)
        features = torch.cat(shares)[:len(samples)]
    return features


def evaluate(s: Settings) -> dict:
    """Read a run's model and test it again, on the data it was trained on. Returns its results."""
    folder = RunFolder(s.evaluate)
    net, results = load(s.evaluate, s.device, s.precision), folder.read("results.json")
    if not results:
        raise FolderError(f"{s.evaluate} has lost its results.json: give the folder of another run")
    data = sources.load(s.data, s.root)
    if data.fingerprint() != folder.read("config.json")["fingerprint"]:
        raise SettingsError(f"{s.data} is not the data that {s.evaluate} was trained on: give that with --data")
    data = data.reorder(class_order(s.order, len(data.class_names)))
    data = data.hold_out(s.validation) if s.validation else data
    index = members(data.test_labels, 0, len(net.class_names))
    right = net.predict(data.test_images[index])[1].argmax(1) == data.test_labels[index]
    say(f"{s.evaluate}: {percent(right):.2f} % of {len(index)} {'held-out' if s.validation else 'test'} images of "
        f"{len(net.class_names)} classes")
    return results


@torch.no_grad()
def test(r: Run) -> tuple[float, list[float]]:
    """Top-1 (%) over the test images of all classes seen, and over those of each step's classes.

    A frozen extractor sees each test image once: its features are kept by (extractor, step of the classes); without
    expansion, where it is trained on, by (step under way, step of the classes).
    """
    r.supernet.eval()
    correct, size = [], chunk(r.data.test_images, r.device)
    for task in range(r.step + 1):
        start = sum(r.increments[:task])
        index = members(r.data.test_labels, start, start + r.increments[task]).to(r.device)
        keys = [(branch if r.settings.expansion else r.step, task) for branch in range(len(r.supernet.extractors))]
        for branch, key in enumerate(keys):
            if key not in r.test_features:
                r.test_features[key] = torch.cat([r.supernet.branch(branch, to_float(r.data.test_images[part]))
                                                  for part in index.split(size)])
        logits = r.supernet.classifier(torch.cat([r.test_features[key] for key in keys], dim=1))
        correct.append(logits.argmax(1) == r.data.test_labels[index])
    return percent(torch.cat(correct)), [percent(c) for c in correct]


def percent(correct: Tensor) -> float:
    """bool [N] -> the share that is true, in % to two decimals."""
    return round(100 * correct.sum().item() / len(correct), 2)


def summary(accuracy: list[float], task_accuracy: list[list[float]]) -> dict:
    """Average and last accuracy; forgetting: mean over old tasks of best minus last accuracy (None with one step)."""
    last = task_accuracy[-1]
    drops = [max(row[k] for row in task_accuracy[k:]) - last[k] for k in range(len(last) - 1)]
    return dict(average=round(sum(accuracy) / len(accuracy), 2), last=accuracy[-1],
                forgetting=round(sum(drops) / len(drops), 2) if drops else None)


LATENCY_BATCH = 32  # images


def record(r: Run, stage1: float, accuracy: float, task_accuracy: list[float]) -> None:
    """Add the step to the results, write them, print the step's row."""
    row = dict(classes_seen=sum(r.increments[:r.step + 1]), accuracy=accuracy, accuracy_stage1=stage1,
               task_accuracy=task_accuracy, parameters=r.supernet.num_parameters(),
               parameters_unpruned=r.supernet.num_parameters_unpruned(),
               ms_per_image=latency(r.supernet, to_float(r.data.test_images[:LATENCY_BATCH])), seconds=r.seconds())
    if r.settings.prune:
        row["kept"] = {name: round(kept.float().mean().item(), 4) for name, kept in r.supernet.kept.items()}
    for name, value in row.items():
        r.results[name] = r.results.get(name, []) + [value]
    r.results.update(summary(r.results["accuracy"], r.results["task_accuracy"]))
    r.write_results()
    say(TABLE_HEAD)
    say(table_row(r.results, r.step))


TABLE_HEAD = "step  classes   parameters  stage 1 %  accuracy %  average %  ms/image  seconds"


def table_row(results: dict, step: int) -> str:
    """A row of the table of steps."""
    average = sum(results["accuracy"][:step + 1]) / (step + 1)
    return (f"{step + 1:4}  {results['classes_seen'][step]:7}  {results['parameters'][step]:11,}  "
            f"{results['accuracy_stage1'][step]:9.2f}  {results['accuracy'][step]:10.2f}  {average:9.2f}  "
            f"{results['ms_per_image'][step]:8.2f}  {results['seconds'][step]:7.0f}")


# ------------------------------------------------------------------------------------------------ several processes

def rank() -> int:
    """Which of torchrun's processes this is, also before they have joined; 0 writes and speaks."""
    return int(os.environ.get("RANK", 0)) if "LOCAL_RANK" in os.environ else 0


def world_size() -> int:
    """How many processes share the work."""
    return dist.get_world_size() if dist.is_initialized() else 1


def shared(net: Supernet) -> torch.nn.Module:
    """The network, its gradients averaged over the processes."""
    return DistributedDataParallel(net) if dist.is_initialized() else net


def same(tensor: Tensor) -> Tensor:
    """What process 0 has, for all: they could differ by a rounding where a device is not repeatable."""
    if not dist.is_initialized():
        return tensor
    box = [tensor]
    dist.broadcast_object_list(box, 0)
    return box[0]


def join(device: torch.device) -> None:
    """Where torchrun started this process, join the others."""
    if "LOCAL_RANK" in os.environ:
        own = None
        if device.type == "cuda":
            own = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
            if int(os.environ["LOCAL_WORLD_SIZE"]) > torch.cuda.device_count():
                raise DeviceError("several processes need a CUDA device each: give torchrun fewer, or --device cpu")
            torch.cuda.set_device(own)
        dist.init_process_group("nccl" if own else "gloo", device_id=own)


def complain(error: Exception | str) -> None:
    """One clear line on stderr, of one process."""
    if rank() == 0:
        print(f"train.py: {error}", file=sys.stderr)


# --------------------------------------------------------------------------------------------- beginning, progress, end

def open_run(s: Settings) -> Run:
    """Check the settings against the data and the run folder, and make all that the run works with."""
    device = choose_device(s.device)
    join(device)
    if s.batch < 4 * world_size() and world_size() > 1:  # batches are of nearly equal size: at least half of --batch
        raise SettingsError(f"--batch {s.batch} is too small to be shared by {world_size()} processes: give at least "
                            f"{4 * world_size()}")
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True
        # Passes are recorded on the stream on which they have warmed up, and that cannot be the default one.
        torch.cuda.set_stream(torch.cuda.Stream())
    if rank() > 0:
        dist.barrier()  # until the first process has the data: it may be downloading them
    data = sources.load(s.data, s.root)
    if rank() == 0 and world_size() > 1:
        dist.barrier()
    classes = len(data.class_names)
    s.order = s.order or ("podnet1" if classes == 100 else "0")
    order, steps = class_order(s.order, classes), increments(classes, s.base, s.increment)
    if not s.base and s.memory < classes:
        raise SettingsError(f"--memory {s.memory}: it must hold an exemplar of each of the {classes} classes")
    if s.shift >= min(data.train_images.shape[1:3]):
        raise SettingsError(f"--shift {s.shift} may push whole images out of sight: give less than "
                            f"{min(data.train_images.shape[1:3])}, their size")
    fingerprint, data = data.fingerprint(), data.reorder(order)
    data = data.hold_out(s.validation) if s.validation else data
    count, least = len(members(data.train_labels, 0, steps[0])), 2 * world_size()
    if count < least:  # every class has two, but --validation may take one
        raise SettingsError(f"too few training images in the first step for BatchNorm, {count} where it needs {least}: "
                            f"give a higher --{'base' if s.base else 'increment'}, a lower --validation or fewer "
                            "processes")
    protocol = f"B{s.base}-Inc{s.increment}"
    s.out = s.out or f"runs/{'' if data.name == 'CIFAR-100' else Path(data.name).stem + '-'}{s.profile}/{protocol}"
    folder = (ReadOnly if rank() else RunFolder)(s.out)
    if s.precision == "auto" and not s.restart:  # a run goes on as it began, also on another machine
        s.precision = folder.read("config.json").get("precision", "auto")
    precision = choose_precision(s.precision, device)
    s.precision = str(precision).removeprefix("torch.")
    say(textwrap.fill("settings: " + ", ".join(f"{name} {value}" for name, value in asdict(s).items()), 120))
    folder.claim(dict(asdict(s), dataset=data.name, fingerprint=fingerprint, machine=machine(device)), MAY_DIFFER,
                 asdict(Settings()), s.restart)
    if dist.is_initialized():
        dist.barrier()  # the folder is what the first process made of it
    results = dict(protocol=protocol, dataset=data.name, profile=s.profile, width=s.width, order=s.order, seed=s.seed,
                   pruned=s.prune, expansion=s.expansion, auxiliary=s.auxiliary, num_classes=classes,
                   steps_total=len(steps), latency_batch=min(LATENCY_BATCH, len(data.test_images)),
                   latency_device=str(device), resumed_on=[])
    supernet = Supernet(s.width, s.expansion, precision, s.mask_start if s.prune else None).to(device)
    memory = Memory(s.memory, s.memory_per_class if s.base else 0)
    return Run(s, folder, device, data.to(device), steps, supernet, memory, results)


class Progress:
    """Where the run stands: one updating line in a terminal; elsewhere a plain line an epoch, of stage 2 its last."""

    def __init__(self, r: Run, last: int):
        self.r, self.last, self.text, self.left, self.images = r, last, "", "", 0
        self.mark = self.shown = time.monotonic()

    def position(self, step: int, share: float = 0.0) -> float:
        """Work done up to a point of the run: an image costs a quarter more for each frozen extractor that sees it."""
        r, costs = self.r, []
        for t, n in enumerate(r.increments):
            seen = sum(r.increments[:t])
            images = seen * r.memory.share(seen) if t else 0
            images += n * len(r.data.train_labels) / sum(r.increments)
            frozen = t if r.settings.expansion else 0
            costs.append(images * (r.epochs(t) + frozen / 4 * min(r.settings.views or r.epochs(t), r.epochs(t))))
        return sum(costs[:step]) + share * costs[min(step, len(costs) - 1)]

    def tick(self, images: int) -> None:
        """Count a batch; in a terminal, show the line again at most twice a second."""
        self.images += images
        now = time.monotonic()
        if rank() == 0 and sys.stdout.isatty() and now - self.shown > 0.5:
            self.shown = now
            print("\r\x1b[K" + self.line(now)[:shutil.get_terminal_size().columns - 1], end="", flush=True)

    def line(self, now: float) -> str:
        """Step, epoch, losses, the rate since the last epoch's end and the time left."""
        return f"{self.text}  {self.images / max(now - self.mark, 1e-9):.0f} img/s{self.left}"

    def epoch(self, stage: int, epoch: int, epochs: int, lr: float, terms: dict[str, float]) -> None:
        """Write the epoch to the log and show it. Raises Diverged where a loss is not finite."""
        r, now = self.r, time.monotonic()
        where = f"step {r.step + 1}/{len(r.increments)}  stage {stage}  epoch {epoch}/{epochs}"
        losses = "  ".join(f"{name} {value:.3f}" for name, value in terms.items())
        if not all(map(math.isfinite, terms.values())):
            raise Diverged(f"{where}: the loss is no longer finite ({losses}). What was before is kept in "
                           f"{r.folder.path}; give a lower --{'lr' if stage == 1 else 'head-lr'} and {ELSEWHERE}, "
                           "or --restart")
        r.log_bytes = r.folder.append_log(dict(
            step=r.step + 1, stage=stage, epoch=epoch, **{name: round(value, 5) for name, value in terms.items()},
            lr=round(lr, 8), seconds=r.seconds()))
        here = self.position(r.step, epoch / epochs if stage == 1 else 1)
        spent = sum(r.results.get("seconds", [])) + r.seconds()  # of the whole run: epochs with masks are slower
        left = int((self.position(self.last) - here) * spent / here)
        self.left = f"  about {left // 3600}:{left // 60 % 60:02}:{left % 60:02} left"
        self.text = f"{where}  {losses}"
        if not sys.stdout.isatty() and (stage == 1 or epoch == epochs):
            say(self.line(now))
        self.mark, self.images = now, 0


def say(line: str) -> None:
    """Print a line of its own, over the updating one."""
    if rank() == 0:
        print(("\r\x1b[K" if sys.stdout.isatty() else "") + line, flush=True)


def main() -> int:
    """The command line. Exit codes: 0 done, 1 diverged, out of memory or disk, 2 bad input, 130 and 143 stopped."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        s = parse_settings()
        results = evaluate(s) if s.evaluate else run(s)
        say("\n".join([TABLE_HEAD, *(table_row(results, step) for step in range(len(results["accuracy"])))]))
        means = "  ".join(f"{name} {results[name]}" for name in ("average", "last", "forgetting"))
        say(f"{means}  in {s.evaluate or s.out}")
    except (SettingsError, DataError, DeviceError, FolderError) as error:
        complain(error)
        return 2
    except (Diverged, OSError) as error:
        complain(error)
        return 1
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        whose = "the GPU's" if isinstance(error, torch.OutOfMemoryError) else "the machine's"
        complain(f"{whose} memory is full: free some and repeat the command, or give a lower --batch, --views or "
                 f"--width, or smaller data, and {ELSEWHERE}")
        return 1
    except KeyboardInterrupt:
        same_command = "the same command" + " without --restart" * ("--restart" in sys.argv)
        try:
            say(f"stopped; {same_command} goes on from the last checkpoint")
        except BrokenPipeError:  # in `train.py | tee log` Ctrl-C has stopped tee as well
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 130
    if dist.is_initialized():
        dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main())
