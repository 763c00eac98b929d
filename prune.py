"""Channel pruning (paper 3.3; Eq. 3, 4): annealed sigmoid masks, sparsity loss, compaction.

`attach` gives an extractor masks, `set_masks` lets them work, `compact` takes them off again, together with the
channels that they switch off. The extractor knows of them only that a BatchNorm may have a scale.
"""
from __future__ import annotations

import copy
import math
from collections.abc import Iterator

import torch
import torch.nn as nn
from torch import Tensor


class Mask(nn.Module):
    """The mask of some channels, by its e: m = sigmoid(s e) in (0, 1), 1 = kept."""

    def __init__(self, channels: int, initial: float, device: torch.device):
        super().__init__()
        self.e = nn.Parameter(torch.full((channels,), initial, device=device))

    def kept(self) -> Tensor:
        """The channels that the binary mask keeps, bool [channels]: m > 0.5, and never none."""
        return (self.e > 0).index_fill(0, self.e.argmax(), True)


def annealed(e: Tensor, s: float | Tensor) -> Tensor:
    """e [channels] -> m = sigmoid(s e) [channels] at slope s, float32, whose gradient is compensated."""
    # In double precision, and from the side on which the sigmoid is small: its slope must not be rounded to nothing
    # before it is compensated (in float32 it is where s e is above 17).
    e = e.double()
    if e.requires_grad:
        fixed = e.detach()  # a hook that held e itself would keep it alive for ever
        e.register_hook(lambda grad: compensate(grad, fixed, s))
    return torch.where(e > 0, 1 - torch.sigmoid(-s * e), torch.sigmoid(s * e)).float()


def anneal(b: int, B: int, s_max: float) -> float:
    """Eq. 3: s rises linearly within each epoch, from 1 / s_max at its first batch, b = 1, to s_max at b = B."""
    if B == 1:
        return s_max
    return 1 / s_max + (s_max - 1 / s_max) * (b - 1) / (B - 1)


def compensate(grad: Tensor, e: Tensor, s: float | Tensor) -> Tensor:
    """The gradient of e without the slope that s gives the sigmoid (HAT, Serra et al. 2018), finite for any e and s.

    g' = g sigma'(e) / (s sigma'(s e)), sigma'(x) = sigma(x) (1 - sigma(x)); the quotient is taken of logarithms.
    """
    def log_slope(x: Tensor) -> Tensor:
        return -x.abs() - 2 * torch.log1p(torch.exp(-x.abs()))
    e, s = e.double(), torch.as_tensor(s, dtype=torch.double)
    log_factor = log_slope(e) - s.log() - log_slope(s * e)
    return (grad.double() * log_factor.clamp(max=700).exp()).clamp(-1e30, 1e30).to(grad.dtype)


def layers(extractor: nn.Module) -> Iterator[tuple[str, nn.Sequential, str | None, str]]:
    """Each ConvBN's name, itself, the names of the masks of its input (None: the image's channels) and of its output.

    What is added together shares a mask: in the first stage the stem and both second convolutions, in every other one
    both second convolutions and the shortcut.
    """
    source = "stage0"
    yield "stem", extractor.stem, None, source
    for k, stage in enumerate(extractor.stages):
        for j, block in enumerate(stage):
            name, inner, stream = f"stages.{k}.{j}", f"stage{k}_block{j}", f"stage{k}"
            yield f"{name}.conv1", block.conv1, source, inner
            yield f"{name}.conv2", block.conv2, inner, stream
            if not isinstance(block.shortcut, nn.Identity):
                yield f"{name}.shortcut", block.shortcut, source, stream
            source = stream


def attach(extractor: nn.Module, initial: float) -> None:
    """Give a ResNet-18 masks, all e = initial."""
    extractor.masks = nn.ModuleDict()
    for _, (_, norm), _, mask in layers(extractor):
        if mask not in extractor.masks:
            extractor.masks[mask] = Mask(norm.num_features, initial, norm.weight.device)
    set_masks(extractor, 1.0)


def set_masks(extractor: nn.Module, s: float | Tensor) -> None:
    """Multiply onto what each (batch-normalised) convolution gives its mask at slope s; s = inf: the binary one.

    A mask is computed once for all who share it, all at once, and works by way of BatchNorm's weight and bias: that
    costs next to nothing.
    """
    names, masks = extractor.masks.keys(), extractor.masks.values()
    if isinstance(s, float) and s == math.inf:  # a tensor is not compared: that would wait for the device
        values = [mask.kept().float() for mask in masks]
    else:
        values = annealed(torch.cat([mask.e for mask in masks]), s).split([len(mask.e) for mask in masks])
    values = dict(zip(names, values))
    for _, (_, norm), _, mask in layers(extractor):
        norm.scale = values[mask]


def sparsity_loss(extractor: nn.Module) -> Tensor:
    """Eq. 4: L_s = sum_l K_l |m_(l-1)|_1 |m_l|_1 / sum_l K_l c_(l-1) c_l; 1 where every mask is 1.

    Of an extractor that has masks (`attach`), at the slope of the last `set_masks`.
    """
    used, whole = 0.0, 0.0
    norms = {mask: layer[1].scale.sum() for _, layer, _, mask in layers(extractor)}
    for _, (conv, _), source, mask in layers(extractor):
        area = math.prod(conv.kernel_size)
        used = used + area * norms.get(source, conv.in_channels) * norms[mask]
        whole += area * conv.in_channels * conv.out_channels
    return used / whole


def kept(extractor: nn.Module) -> dict[str, Tensor]:
    """Mask by mask, the channels that outlive compaction, bool [channels]; the last one's are the features."""
    return {name: mask.kept() for name, mask in extractor.masks.items()}


@torch.no_grad()
def compact(extractor: nn.Module) -> nn.Module:
    """Make the masks from `attach` binary; returns a plain, smaller network, without masks, that computes the same."""
    set_masks(extractor, math.inf)
    small, keep = copy.deepcopy(extractor), kept(extractor)
    del small.masks
    for _, layer, source, mask in layers(small):
        conv, norm = layer
        resize(layer, conv.weight[keep[mask]][:, keep.get(source, slice(None))],
               {name: value[keep[mask]] if value.ndim else value for name, value in norm.state_dict().items()})
    return small


@torch.no_grad()
def spread(small: nn.Module, dense: dict[str, Tensor], keep: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state of a network as large as before compaction: the compact one's weights, the others from dense."""
    state = {name: value.clone() for name, value in dense.items()}
    for name, layer, source, mask in layers(small):
        for entry, value in layer.state_dict().items():
            whole = state[f"{name}.{entry}"]
            if entry == "0.weight":
                every = keep[mask].new_ones(whole.shape[1])
                whole[keep[mask][:, None] & keep.get(source, every)] = value.flatten(0, 1).to(whole.device)
            elif whole.ndim:
                whole[keep[mask]] = value.to(whole.device)
    return state


def resize(layer: nn.Sequential, weight: Tensor, norm: dict[str, Tensor]) -> None:
    """Give a ConvBN this convolution weight [c_out, c_in, K, K] and a BatchNorm in this state, [c_out] each."""
    conv, _ = layer
    conv.out_channels, conv.in_channels = weight.shape[:2]
    conv.weight = nn.Parameter(weight.clone(memory_format=torch.channels_last))
    layer[1] = type(layer[1])(len(weight), device=weight.device).train(layer.training)
    layer[1].load_state_dict(norm)


def reshape_like(extractor: nn.Module, state: dict[str, Tensor], prefix: str = "") -> None:
    """Make a fresh extractor as small as the compact one whose weights are in state, under names with this prefix."""
    for name, layer, _, _ in layers(extractor):
        norm = {entry: state[f"{prefix}{name}.1.{entry}"] for entry in layer[1].state_dict()}
        resize(layer, state[f"{prefix}{name}.0.weight"], norm)
