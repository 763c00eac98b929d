"""The network of DER: a CIFAR ResNet-18, the supernet that grows by one of them a step, its heads and losses.

What a run leaves behind in its folder is written and read back here too.
"""
from __future__ import annotations

import copy
import fcntl
import io
import json
import os
import platform
import re
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.fusion import fuse_conv_bn_eval

import prune

# Mean and deviation of CIFAR-100's training pixels, as in the authors' code. Other data is normalised by the same
# numbers: the BatchNorm behind the first convolution takes care of the rest.
MEAN, STD = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)


class DeviceError(Exception):
    """A device that is not there, or an unknown precision."""


def choose_device(name: str = "auto") -> torch.device:
    """auto = cuda, else cpu. Raises DeviceError."""
    there = torch.cuda.is_available()
    if name not in ("auto", "cpu", "cuda"):
        raise DeviceError(f"unknown device {name!r}: give auto, cpu or cuda")
    if name == "cuda" and not there:
        raise DeviceError("--device cuda: this machine has none; leave the flag out")
    return torch.device("cuda" if there and name != "cpu" else "cpu")


def choose_precision(name: str, device: torch.device) -> torch.dtype:
    """auto = bfloat16 where the hardware multiplies it natively, and so trains faster. Raises DeviceError."""
    if name not in ("auto", "bfloat16", "float32"):
        raise DeviceError(f"unknown precision {name!r}: give auto, bfloat16 or float32")
    if name != "auto":
        return getattr(torch, name)
    if device.type == "cuda":
        native = torch.cuda.get_device_capability() >= (8, 0)
    else:
        native = re.search(r"\b(avx512_bf16|amx_bf16)\b", cpuinfo())  # whether torch can tell depends on its version
    return torch.bfloat16 if native else torch.float32


def cpuinfo() -> str:
    """What Linux knows of this machine's processors; elsewhere nothing."""
    file = Path("/proc/cpuinfo")
    return file.read_text() if file.exists() else ""


def out_of_memory(error: Exception) -> bool:
    """Whether an error says that memory is full, a GPU's or, for which torch has no class of its own, the machine's."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(error)


def chunk(images: Tensor, device: torch.device) -> int:
    """How many of these images [N, H, W, 3] pass at a time where nothing is trained.

    128 of CIFAR's size on a CPU, whose cache holds their activations, not those of 500; 512 on a GPU, which wants work.
    """
    _, height, width, _ = images.shape
    return max(1, (128 if device.type == "cpu" else 512) * 32 * 32 // (height * width))


def machine(device: torch.device) -> dict[str, str | int]:
    """What a reader of results wants to know of where they were made."""
    # In the cloud the name is often no more than the maker's: the numbers tell which generation it is.
    known = re.search(r"cpu family\s*: (.*)\s+model\s*: (.*)\s+model name\s*: (.*)", cpuinfo())
    cpu = f"{known[3]} (family {known[1]}, model {known[2]})" if known else platform.processor() or platform.machine()
    try:
        git = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=Path(__file__).parent,
                             capture_output=True, text=True).stdout.strip()
    except OSError:  # there is no git
        git = ""
    return dict(device=torch.cuda.get_device_name() if device.type == "cuda" else device.type,
                cpu=cpu, threads=torch.get_num_threads(), python=platform.python_version(), torch=torch.__version__,
                numpy=np.__version__, commit=git or "unknown")


# ---------------------------------------------------------------------------------------------------- the extractor

class AllReduce(torch.autograd.Function):
    """The sum over all processes; so is its gradient."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        return AllReduce.forward(ctx, grad)


class BatchNorm(nn.BatchNorm2d):
    """BatchNorm whose output may be multiplied by a scale [channels], such as a mask.

    In training its statistics are those of the whole batch also where several processes share it (torch has that for
    GPUs alone).
    """

    scale: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = (p if self.scale is None else p * self.scale for p in (self.weight, self.bias))
        if not (self.training and dist.is_initialized()):
            return F.batch_norm(x, self.running_mean, self.running_var, weight, bias, self.training, self.momentum,
                                self.eps)
        values = x.float() - self.running_mean[:, None, None]  # the same for all: near the mean, squares do not cancel
        count = values.new_full((self.num_features,), x.numel() / self.num_features)
        moments = torch.stack([values.sum((0, 2, 3)), values.square().sum((0, 2, 3)), count])
        total, squares, count = AllReduce.apply(moments)
        mean = total / count
        var = (squares / count - mean.square()).clamp(min=0)
        gain = weight * (var + self.eps).rsqrt()
        out = values * gain[:, None, None] + (bias - mean * gain)[:, None, None]
        with torch.no_grad():
            self.running_mean += self.momentum * mean
            self.running_var.lerp_(var * count / (count - 1), self.momentum)
        return out.to(x.dtype)


class ConvBN(nn.Sequential):
    """Convolution without bias, then BatchNorm."""

    def __init__(self, c_in: int, c_out: int, kernel: int, stride: int = 1):
        super().__init__(nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, bias=False), BatchNorm(c_out))
        nn.init.kaiming_normal_(self[0].weight, mode="fan_out", nonlinearity="relu")


class Block(nn.Module):
    """Basic residual block: x [B, c_in, H, W] -> [B, c_out, H / stride, W / stride]."""

    def __init__(self, c_in: int, c_out: int, stride: int):
        super().__init__()
        self.stride = stride
        self.conv1 = ConvBN(c_in, c_out, 3, stride)
        self.conv2 = ConvBN(c_out, c_out, 3)
        self.shortcut = ConvBN(c_in, c_out, 1) if stride > 1 or c_in != c_out else nn.Identity()
        nn.init.zeros_(self.conv2[1].weight)  # the block starts as its shortcut (Goyal et al., 2017)

    def forward(self, x: Tensor) -> Tensor:
        # Subsampling here is the stride of a 1 x 1 convolution; oneDNN's backward of that one overwrites memory that is
        # not its own where the channels are few (torch 2.15 on a CPU).
        skipped = self.shortcut(x[:, :, ::self.stride, ::self.stride])
        return F.relu(self.conv2(F.relu(self.conv1(x))) + skipped)


class ResNet18(nn.Module):
    """ResNet-18 for small images: normalised images [B, 3, H, W] -> features [B, 8 * width], float32.

    width 64 is the paper's: 512 features, 11.2 M parameters.
    """

    def __init__(self, width: int = 64):
        super().__init__()
        self.stem = ConvBN(3, width, 3)
        widths = [width, width, 2 * width, 4 * width, 8 * width]
        self.stages = nn.Sequential(*(
            nn.Sequential(Block(c_in, c_out, stride), Block(c_out, c_out, 1))
            for c_in, c_out, stride in zip(widths, widths[1:], (1, 2, 2, 2))))

    @property
    def num_features(self) -> int:
        """Channels of the output: 8 * width, fewer once pruned."""
        return self.stages[-1][-1].conv2[0].out_channels

    def forward(self, x: Tensor) -> Tensor:
        return self.stages(F.relu(self.stem(x))).mean((2, 3), dtype=torch.float32)


def fold(extractor: ResNet18, dtype: torch.dtype) -> ResNet18:
    """A copy for inference: BatchNorm folded into the convolutions, weights in dtype."""
    folded = copy.deepcopy(extractor).eval()
    for module in folded.modules():
        if isinstance(module, ConvBN):
            module[0], module[1] = fuse_conv_bn_eval(module[0], module[1]), nn.Identity()
    return folded.to(dtype=dtype, memory_format=torch.channels_last).requires_grad_(False)


# ----------------------------------------------------------------------------------------------------- the supernet

class Supernet(nn.Module):
    """The expandable network: extractors F_1 .. F_t, classifier H_t and auxiliary classifier H_t^a (Eq. 1).

    width: of each extractor. expansion = False keeps a single extractor that is trained on (the ablation's baseline).
    precision: bfloat16 runs the extractors in autocast; the heads and the losses are float32 always.
    masks: the value at which every new extractor's channel masks begin; None = no pruning.
    """

    def __init__(self, width: int = 64, expansion: bool = True, precision: torch.dtype = torch.float32,
                 masks: float | None = None):
        super().__init__()
        self.width, self.expansion, self.precision, self.masks = width, expansion, precision, masks
        self.extractors = nn.ModuleList()
        self.classifier: nn.Linear | None = None
        self.auxiliary: nn.Linear | None = None
        self.increments: list[int] = []  # new classes at each step so far
        self.class_names: list[str] = []  # in order of arrival, where the data set names them
        self.temperature = 1.0  # by which stage 2 divides the logits; so does predict
        self.dense: dict[str, Tensor] = {}  # the newest extractor's weights as they were before it was made compact,
        self.kept: dict[str, Tensor] = {}  # and which of its channels are left
        self.folded: list[ResNet18] = []  # inference copies of the frozen extractors, outside the parameters
        self.register_buffer("mean", torch.tensor(MEAN).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(STD).view(3, 1, 1))

    def expand(self, n_new: int) -> Supernet:
        """Begin a step with n_new classes: freeze what is there, add an extractor, make both heads new.

        The new extractor starts from the weights of the one before it, after pruning as `prune.spread` says.
        """
        if self.expansion or not self.extractors:
            self.freeze()
            extractor = ResNet18(self.width)
            if self.extractors:
                newest = self.extractors[-1]
                extractor.load_state_dict(prune.spread(newest, self.dense, self.kept) if self.dense
                                          else newest.state_dict())
            self.dense, self.kept = {}, {}
            self.extractors.append(extractor.to(self.mean.device, memory_format=torch.channels_last))
            if self.masks is not None:
                prune.attach(extractor, self.masks)
        else:
            self.folded.clear()
            self.extractors.requires_grad_(True)
        self.increments.append(n_new)
        self.reset_heads()
        return self.train(self.training)

    def reset_heads(self) -> None:
        """H_t over all classes seen, on the super-feature; H_t^a over "old" and the new classes, on F_t alone."""
        device, newest = self.mean.device, self.extractors[-1].num_features
        all_features = sum(extractor.num_features for extractor in self.extractors)
        self.classifier = nn.Linear(all_features, sum(self.increments), bias=False, device=device)
        self.auxiliary = nn.Linear(newest, self.increments[-1] + 1, device=device)

    def masked(self) -> bool:
        """Whether the newest extractor has masks: it is being pruned and not compact yet."""
        return hasattr(self.extractors[-1], "masks")

    def compact(self) -> None:
        """Really remove the channels that the newest extractor's masks switch off, and the heads' inputs with them."""
        newest = self.extractors[-1]
        self.dense = {name: value for name, value in newest.state_dict().items() if not name.startswith("masks.")}
        self.kept, self.extractors[-1] = prune.kept(newest), prune.compact(newest)
        kept = self.kept["stage3"]  # of the features
        before = kept.new_ones(self.classifier.in_features - len(kept))
        for head, columns in ((self.classifier, torch.cat([before, kept])), (self.auxiliary, kept)):
            head.weight = nn.Parameter(head.weight.detach()[:, columns], head.weight.requires_grad)
            head.in_features = int(columns.sum())

    def freeze(self, count: int | None = None) -> None:
        """End the training of the first count extractors (all): no gradients, BatchNorm in eval mode, from now on."""
        for extractor in self.extractors[len(self.folded):count]:
            extractor.zero_grad()  # else they would stay in memory for ever
            self.folded.append(fold(extractor.requires_grad_(False).eval(), self.precision))

    def snapshot(self) -> dict:
        """All that `rebuild` needs: increments, how many extractors are frozen, the state_dict, dense and kept."""
        return dict(increments=self.increments, frozen=len(self.folded), supernet=self.state_dict(), dense=self.dense,
                    kept=self.kept)

    def rebuild(self, snapshot: dict) -> None:
        """Grow an empty supernet to what it was when the snapshot was taken."""
        self.increments, state = list(snapshot["increments"]), snapshot["supernet"]
        for index in range(len(self.increments) if self.expansion else 1):
            prefix, extractor = f"extractors.{index}.", ResNet18(self.width).to(memory_format=torch.channels_last)
            self.extractors.append(extractor)
            if any(name.startswith(prefix + "masks.") for name in state):
                prune.attach(extractor, self.masks)
            else:
                prune.reshape_like(extractor, state, prefix)
        self.reset_heads()
        self.load_state_dict(state)
        self.to(self.mean.device)  # the state may be of another device
        self.dense, self.kept = snapshot["dense"], snapshot["kept"]
        self.freeze(snapshot["frozen"])

    def train(self, mode: bool = True) -> Supernet:
        """As nn.Module.train, but frozen extractors stay in eval mode."""
        super().train(mode)
        for extractor in self.extractors[:len(self.folded)]:
            extractor.eval()
        return self

    def _apply(self, function, *args, **kwargs):
        """What nn.Module does to move and cast: the folded copies move along."""
        for folded in self.folded:
            folded._apply(function)
        return super()._apply(function, *args, **kwargs)

    def branch(self, index: int, images: Tensor) -> Tensor:
        """Features of one extractor: images [B, 3, H, W] in [0, 1] -> [B, d], float32."""
        x = ((images - self.mean) / self.std).contiguous(memory_format=torch.channels_last)
        if index < len(self.folded):
            with torch.no_grad():
                return self.folded[index](x.to(self.precision))
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.precision == torch.bfloat16):
            return self.extractors[index](x)

    def features(self, images: Tensor, first: int = 0, last: int | None = None) -> Tensor:
        """The super-feature u = [F_1(x), .., F_t(x)] (Eq. 1): images [B, 3, H, W] in [0, 1] -> [B, sum of d].

        first, last: of the extractors with these indices alone, as in a slice.
        """
        indices = range(len(self.extractors))[first:last]
        return torch.cat([self.branch(index, images) for index in indices], dim=1)

    def forward(self, images: Tensor, old: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """images [B, 3, H, W] in [0, 1] -> logits [B, classes], aux_logits [B, new + 1], features [B, sum of d].

        old: these images' features of all extractors but the newest, where they are known already.
        """
        features = self.features(images) if old is None else torch.cat([old, self.features(images, -1)], dim=1)
        newest = features[:, -self.extractors[-1].num_features:]
        return self.classifier(features), self.auxiliary(newest), features

    @torch.no_grad()
    def predict(self, images: Tensor | np.ndarray) -> tuple[list[str], Tensor]:
        """Classify images uint8 [N, H, W, 3] or, grey, [N, H, W] -> N names, and probabilities [N, classes] on the CPU.

        Prepared as for training; grey may be [N, H, W, 1], too. A single image is images[None]: one [3, H, W] would be
        taken for three grey ones. The columns of the probabilities are in the order of class_names; they are those of
        stage 2, softmax(logits / temperature), not calibrated. Raises ValueError.
        """
        images = torch.as_tensor(images)
        whole = images[..., None] if images.ndim == 3 else images
        if images.dtype != torch.uint8 or whole.ndim != 4 or whole.shape[3] not in (1, 3) or min(whole.shape[1:3]) < 8:
            raise ValueError("predict takes uint8 images [N, H, W, 3] or [N, H, W] of at least 8 x 8 pixels, not "
                             f"{images.dtype} {list(images.shape)}")
        self.eval()
        parts = whole.expand(-1, -1, -1, 3).split(chunk(whole, self.mean.device))
        scaled = (part.to(self.mean.device).permute(0, 3, 1, 2).float() / 255 for part in parts)
        probabilities = torch.cat([(self(part)[0] / self.temperature).softmax(1).cpu() for part in scaled])
        return [self.class_names[index] for index in probabilities.argmax(1)], probabilities

    def num_parameters(self) -> int:
        """Parameters of the model that is used after a step: all extractors and the classifier."""
        return sum(p.numel() for module in (self.extractors, self.classifier) for p in module.parameters())

    def num_parameters_unpruned(self) -> int:
        """What num_parameters would be had no channel been removed."""
        with torch.device("meta"):
            full = ResNet18(self.width)
        count, classes = len(self.extractors), sum(self.increments)
        return count * (sum(p.numel() for p in full.parameters()) + full.num_features * classes)


@torch.no_grad()
def latency(net: Supernet, images: Tensor) -> float:
    """Milliseconds an image of inference on this batch [B, 3, H, W]: the best of 5, after one to warm up."""
    times = []
    for _ in range(6):
        start = time.perf_counter()
        net(images)[0].sum().item()  # .item() waits for the device
        times.append(time.perf_counter() - start)
    return round(1000 * min(times[1:]) / len(images), 4)


# ------------------------------------------------------------------------------------------------------- the losses

def auxiliary_targets(labels: Tensor, n_old: int) -> Tensor:
    """Targets of H_t^a: 0 = any old class, 1.. = the new classes in order. LongTensor [B] -> LongTensor [B]."""
    return (labels - n_old + 1).clamp(min=0)


def classification_loss(logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """L_H: mean cross-entropy of logits [B, classes] over labels [B]."""
    return F.cross_entropy(logits, labels, label_smoothing=smoothing)


def auxiliary_loss(aux_logits: Tensor, labels: Tensor, n_old: int, smoothing: float = 0.0) -> Tensor:
    """L_Ha (paper 3.2): mean cross-entropy of aux_logits [B, new + 1], all old classes being one."""
    return F.cross_entropy(aux_logits, auxiliary_targets(labels, n_old), label_smoothing=smoothing)


# ------------------------------------------------------------------------------------------- what a run leaves behind

class FolderError(Exception):
    """A run folder that cannot be used; the message says what is wrong and what to do."""


ELSEWHERE = "another --out (with run_cifar100.sh: RUNS=FOLDER)"


class RunFolder:
    """runs/<name>: log.jsonl, which grows; config.json, results.json, checkpoint.pt, each there whole or not at all."""

    CHECKPOINTS = ("checkpoint.new.pt", "checkpoint.pt", "checkpoint.old.pt")  # newest first

    def __init__(self, path: str | Path):
        self.path = Path(path)

    def claim(self, config: dict, may_differ: set[str], defaults: dict, restart: bool = False) -> None:
        """Make or take up the folder for this process alone. Raises FolderError where it holds another run.

        defaults: what a setting was in runs that are older than it.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self.lock = os.open(self.path, os.O_RDONLY)
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the system frees it when the process ends
        except BlockingIOError:
            self.release()
            raise FolderError(f"another process is at work in {self.path}: wait, or give {ELSEWHERE}") from None
        except OSError as error:
            raise FolderError(f"{self.path} cannot be a run folder ({error.strerror}): give {ELSEWHERE}") from None
        try:
            self.check(config, may_differ, defaults, restart)
        except FolderError:
            self.release()
            raise
        if not (self.path / "config.json").exists():  # where and with what a run began stays written there
            self.write("config.json", json.dumps(config, indent=1).encode())

    def check(self, config: dict, may_differ: set[str], defaults: dict, restart: bool) -> None:
        """Raise FolderError where the folder holds a run that cannot go on so; with restart, empty it instead."""
        if restart:
            for name in ("config.json", "log.jsonl", "results.json", *self.CHECKPOINTS):
                (self.path / name).unlink(missing_ok=True)
        now, before = json.loads(json.dumps([config, defaults]))  # tuples become lists, as in the file
        there = self.read("config.json")
        differ = [f"{name} {old!r} (now {now.get(name)!r})" for name, old in (before | there if there else {}).items()
                  if name not in may_differ and old != now.get(name)]
        if differ:
            raise FolderError(f"{self.path} holds a run with other settings: {', '.join(differ)}. Repeat its command, "
                              f"give {ELSEWHERE}, or start over with --restart")
        saved = any((self.path / name).exists() for name in self.CHECKPOINTS)
        if saved and not there:
            raise FolderError(f"{self.path} holds a checkpoint without its config.json: give {ELSEWHERE}, or start "
                              "over with --restart")
        if (self.path / "results.json").exists() and not saved:
            raise FolderError(f"{self.path} holds results without a checkpoint to go on from: give {ELSEWHERE}, or "
                              "start over with --restart")

    def release(self) -> None:
        """Let other processes have the folder."""
        os.close(self.lock)

    def read(self, name: str) -> dict:
        """What is in config.json or results.json, or {} where there is none. Raises FolderError where it is damaged."""
        try:
            content = json.loads((self.path / name).read_bytes())
        except (FileNotFoundError, NotADirectoryError):
            return {}
        except ValueError:
            content = None
        if not isinstance(content, dict):
            raise FolderError(f"{self.path / name} is damaged: start over with --restart")
        return content

    def write(self, name: str, content: bytes | memoryview) -> None:
        """Write a file beside its place, sync it, rename it. Raises OSError, on a full disk for one."""
        part = self.path / (name + ".part")
        try:
            with open(part, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, self.path / name)
        finally:
            part.unlink(missing_ok=True)

    def append_log(self, line: dict) -> int:
        """Add a line to log.jsonl. Returns the file's length in bytes."""
        with open(self.path / "log.jsonl", "ab") as file:
            file.write((json.dumps(line) + "\n").encode())
            file.flush()
            os.fsync(file.fileno())
            return file.tell()

    def cut_log(self, length: int) -> None:
        """Cut log.jsonl to its first length bytes; one that is missing stays so."""
        log = self.path / "log.jsonl"
        if log.exists():
            os.truncate(log, min(length, log.stat().st_size))

    def save(self, state: dict) -> None:
        """Write checkpoint.pt; the one before it stays beside it as checkpoint.old.pt."""
        buffer = io.BytesIO()
        torch.save(state, buffer)
        new, current, old = (self.path / name for name in self.CHECKPOINTS)
        self.write(new.name, buffer.getbuffer())
        if current.exists():
            os.replace(current, old)
        os.replace(new, current)

    def load(self) -> dict | None:
        """The newest whole checkpoint, tensors on the CPU; None where there is none. Nothing in it is executed.

        A damaged one is named on stderr and the one before it taken. Raises FolderError where all are damaged.
        """
        there = [self.path / name for name in self.CHECKPOINTS if (self.path / name).exists()]
        for path in there:
            try:
                with zipfile.ZipFile(path) as file:
                    if broken := file.testzip():  # compares every record with its CRC
                        raise zipfile.BadZipFile(f"bad CRC of {broken}")
                return torch.load(path, map_location="cpu", weights_only=True)
            except Exception as error:  # on a damaged file zipfile and torch raise nearly anything
                if isinstance(error, PermissionError) or out_of_memory(error):
                    raise  # the file may be whole: say what is wrong, do not pass over it
                print(f"{path} is damaged ({type(error).__name__}: {error})".split("\n")[0], file=sys.stderr)
        if there:
            raise FolderError(f"no whole checkpoint is left in {self.path}: start over with --restart")
        return None


class ReadOnly(RunFolder):
    """The folder for all of several processes but the one that writes: they read alone."""

    def nothing(self, *_) -> int:
        return 0

    claim = release = write = append_log = cut_log = save = nothing


def load(run_folder: str | Path, device: str = "auto", precision: str = "auto") -> Supernet:
    """The supernet that a run has trained, as it is after its last finished step, ready for predict.

    precision: auto = bfloat16 where the device is fast at it, whatever the run had. Raises FolderError where there is
    no model, or the run is in the middle of a step.
    """
    folder = RunFolder(run_folder)
    config, state = folder.read("config.json"), folder.load()
    if not {"width", "expansion", "temperature"} <= config.keys():
        raise FolderError(f"{folder.path} holds no run: give the folder of one")
    if not state:
        raise FolderError(f"{folder.path} holds no checkpoint to read the model from: train that run again")
    if state["epoch"] > 0:
        raise FolderError(f"{folder.path} stands within a step: let the run go on to the step's end")
    where = choose_device(device)
    net = Supernet(config["width"], config["expansion"], choose_precision(precision, where)).to(where)
    net.rebuild(state)
    net.class_names = state["class_names"][:sum(state["increments"])]
    net.temperature = config["temperature"] if len(net.increments) > 1 else 1.0  # the first step has no stage 2
    return net.eval()
