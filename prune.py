"""Channel pruning (paper 3.3; Eq. 3, 4): annealed sigmoid masks, sparsity loss, compaction.

`attach` puts masks on an extractor, by hooks: its own code knows nothing of them, and without pruning nothing of this runs.
`compact` takes them off again, together with the channels that they switch off.
"""
from __future__ import annotations

import copy
import math
from collections.abc import Iterator

import torch
import torch.nn as nn
from torch import Tensor


class Mask(nn.Module):
    """The mask of some channels: m = sigmoid(s e) in (0, 1), 1 = kept; binary (e > 0) once `binary` is set."""

    def __init__(self, channels: int, initial: float, device: torch.device):
        super().__init__()
        self.e = nn.Parameter(torch.full((channels,), initial, device=device))
        self.s, self.binary = 1.0, False

    def kept(self) -> Tensor:
        """The channels that the binary mask keeps, bool [channels]: m > 0.5, and never none."""
        return (self.e > 0).index_fill(0, self.e.argmax(), True)

    def forward(self) -> Tensor:
        """m [channels], float32."""
        if self.binary:
            return self.kept().float()
        # In double precision and by exp: float32's sigmoid has no gradient left to compensate where s e is above 17.
        e, s = self.e.double(), self.s
        if e.requires_grad:
            e.register_hook(lambda grad: compensate(grad, e.detach(), s))
        return (1 / (1 + torch.exp((-s * e).clamp(-300, 300)))).float()


def anneal(b: int, B: int, s_max: float) -> float:
    """Eq. 3: s rises linearly within each epoch, from 1 / s_max at its first batch, b = 1, to s_max at b = B."""
    if B == 1:
        return s_max
    return 1 / s_max + (s_max - 1 / s_max) * (b - 1) / (B - 1)


def compensate(grad: Tensor, e: Tensor, s: float) -> Tensor:
    """The gradient of e without the slope that s gives the sigmoid (HAT, Serra et al. 2018), finite for any e and s.

    g' = g sigma'(e) / (s sigma'(s e)), sigma'(x) = sigma(x) (1 - sigma(x)); the quotient is taken of logarithms.
    """
    def log_slope(x: Tensor) -> Tensor:
        return -x.abs() - 2 * torch.log1p(torch.exp(-x.abs()))
    e = e.double()
    log_factor = log_slope(e) - math.log(s) - log_slope(s * e)
    return (grad.double() * log_factor.clamp(max=600).exp()).clamp(-1e30, 1e30).to(grad.dtype)


def attach(extractor: nn.Module, initial: float) -> None:
    """Give a ResNet-18 masks, all e = initial, and multiply them onto what its (batch-normalised) convolutions give.

    What is added together shares a mask: the stem, the second convolutions and the shortcut of a stage.
    """
    device = extractor.stem[0].weight.device
    extractor.masks = nn.ModuleDict()
    for k, stage in enumerate(extractor.stages):
        extractor.masks[f"stage{k}"] = Mask(stage[0].conv2[0].out_channels, initial, device)
        for j, block in enumerate(stage):
            extractor.masks[f"stage{k}_block{j}"] = Mask(block.conv1[0].out_channels, initial, device)
    for layer, _, mask in layers(extractor):
        layer.register_forward_hook(lambda module, inputs, output, mask=mask:
                                    output * mask().to(output.dtype)[:, None, None])


def layers(extractor: nn.Module) -> Iterator[tuple[nn.Sequential, Mask | None, Mask]]:
    """Each ConvBN with the mask of its input channels (None: the image's) and of its output channels."""
    source = extractor.masks["stage0"]
    yield extractor.stem, None, source
    for k, stage in enumerate(extractor.stages):
        stream = extractor.masks[f"stage{k}"]
        for j, block in enumerate(stage):
            inner = extractor.masks[f"stage{k}_block{j}"]
            yield block.conv1, source, inner
            yield block.conv2, inner, stream
            if not isinstance(block.shortcut, nn.Identity):
                yield block.shortcut, source, stream
            source = stream


def sparsity_loss(extractor: nn.Module) -> Tensor:
    """Eq. 4: L_s = sum_l K_l |m_(l-1)|_1 |m_l|_1 / sum_l K_l c_(l-1) c_l; 1 where every mask is 1."""
    used, whole = 0.0, 0.0
    norms = {id(mask): mask().sum() for mask in extractor.masks.values()}
    for (conv, _), source, mask in layers(extractor):
        area = math.prod(conv.kernel_size)
        used = used + area * (norms[id(source)] if source is not None else conv.in_channels) * norms[id(mask)]
        whole += area * conv.in_channels * conv.out_channels
    return used / whole


def kept_features(extractor: nn.Module) -> Tensor:
    """Which features of the extractor outlive compaction, bool [features]."""
    return extractor.masks[f"stage{len(extractor.stages) - 1}"].kept()


def set_masks(extractor: nn.Module, s: float, binary: bool) -> None:
    """Set the slope of all masks, or make them binary."""
    for mask in extractor.masks.values():
        mask.s, mask.binary = s, binary


@torch.no_grad()
def compact(extractor: nn.Module) -> nn.Module:
    """A plain, smaller network that computes what the extractor does with binary masks: no masks, no hooks."""
    small = copy.deepcopy(extractor)
    for layer, source, mask in layers(small):  # the masks are looked at before they go
        conv, norm = layer
        layer._forward_hooks.clear()
        kept_in = slice(None) if source is None else source.kept()
        resize(layer, conv.weight[mask.kept()][:, kept_in].clone(),
               {name: value[mask.kept()].clone() for name, value in norm.state_dict().items() if value.ndim})
    small.features = small.stages[-1][-1].conv2[0].out_channels
    del small.masks
    return small


def resize(layer: nn.Sequential, weight: Tensor, norm: dict[str, Tensor]) -> None:
    """Give a ConvBN this convolution weight [c_out, c_in, K, K] and these BatchNorm entries [c_out]."""
    conv, bn = layer
    conv.out_channels, conv.in_channels = weight.shape[:2]
    conv.weight = nn.Parameter(weight, requires_grad=conv.weight.requires_grad)
    bn.num_features = len(weight)
    for name, value in norm.items():
        if name in ("weight", "bias"):
            value = nn.Parameter(value, requires_grad=getattr(bn, name).requires_grad)
        setattr(bn, name, value)


def reshape_like(extractor: nn.Module, state: dict[str, Tensor], prefix: str = "") -> None:
    """Make a fresh extractor as small as the compact one whose weights are in state, under names with this prefix."""
    for name, layer in extractor.named_modules():
        key = f"{prefix}{name}."
        if isinstance(layer, nn.Sequential) and f"{key}0.weight" in state and f"{key}1.running_var" in state:
            resize(layer, state[f"{key}0.weight"].clone(), {
                entry: state[f"{key}1.{entry}"].clone() for entry in ("weight", "bias", "running_mean", "running_var")})
    extractor.features = extractor.stages[-1][-1].conv2[0].out_channels
