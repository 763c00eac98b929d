"""train.Passes: what a CUDA graph leaves, on a GPU, and by a stand-in that records and replays on a CPU."""
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

import der
import prune
import train
from test_train import log_of, settings

GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")


class Graph(TorchDispatchMode):
    """A CUDA graph's stand-in on a CPU: does the operations that it saw again, from and into the same tensors."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        outputs = operation(*args, **(kwargs or {}))
        self.calls.append((operation, *tree_map_only(Tensor, Tensor.detach, (args, kwargs or {}, outputs))))
        return outputs

    @torch.no_grad()
    def replay(self):
        for operation, args, kwargs, outputs in self.calls:
            for place, value in zip(tree_leaves(outputs), tree_leaves(operation(*args, **kwargs)), strict=True):
                if isinstance(place, Tensor) and place.data_ptr() != value.data_ptr():  # neither view nor in place
                    place.copy_(value)


@pytest.fixture
def device(request, monkeypatch):
    """A device by its name; "recording cpu" records passes as a GPU does, by the stand-in."""
    if request.param == "cuda":
        torch.cuda.set_stream(torch.cuda.Stream())
    elif request.param == "recording cpu":
        monkeypatch.setattr(train.Passes, "RECORDED_ON", "cpu")
        monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
        monkeypatch.setattr(torch.cuda, "graph", lambda graph, stream: graph)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda: None)
    return request.param.split()[-1]


@pytest.mark.parametrize("device, graphs", [("cpu", 0), ("recording cpu", 2), pytest.param("cuda", 2, marks=GPU)],
                         indirect=["device"])
def test_passes_leave_what_a_loop_would(device, graphs):
    """Gradients and terms of ten batches of two sizes, of masks at other slopes each time, to rounding."""
    net = der.Supernet(4, masks=0.1).to(device).expand(3)
    slopes = torch.linspace(0.5, 50, 10, dtype=torch.double, device=device)

    def loss(images, labels, slope):
        prune.set_masks(net.extractors[-1], slope)
        terms = {"classification": train.classification_loss(net(images)[0], labels),
                 "sparsity": prune.sparsity_loss(net.extractors[-1])}
        return terms["classification"] + 0.5 * terms["sparsity"], terms

    passes = train.Passes(loss, torch.optim.SGD(net.parameters(), 0.1))
    for number, slope in enumerate(slopes):
        batch = 6 + number % 2
        inputs = torch.rand(batch, 3, 12, 12, device=device), torch.randint(0, 3, (batch,), device=device), slope
        terms = {name: term.clone() for name, term in passes(*inputs).items()}
        got = {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}
        net.zero_grad()
        total, expected = loss(*inputs)
        total.backward()
        for name, term in expected.items():
            assert torch.allclose(terms[name], term, rtol=1e-4, atol=1e-5)
        assert got.keys() == {name for name, p in net.named_parameters() if p.grad is not None} and len(got) > 60
        for name, p in net.named_parameters():
            assert name not in got or torch.allclose(got[name], p.grad, rtol=1e-3, atol=1e-4)
    assert len(passes.graphs) == graphs


@pytest.mark.parametrize("device", ["recording cpu", pytest.param("cuda", marks=GPU)], indirect=True)
@pytest.mark.parametrize("extra", [(), ("--no-expansion",), ("--prune", "--epochs", "12")])
def test_recorded_passes_are_the_passes(extra, device, flags, monkeypatch):
    """A run whose passes are CUDA graphs has the losses of one whose passes are not, up to rounding that grows."""
    flags = [*flags, "--device", device, "--lr", "0.01", "--batch", "7", "--steps", "2", *extra]
    recorded, original = [], train.Passes.capture
    monkeypatch.setattr(train.Passes, "capture", lambda self, *a: recorded.append(a[0]) or original(self, *a))
    train.run(settings(*flags))
    assert len(recorded) >= 4  # two sizes of batch in stage 1, of each step
    monkeypatch.setattr(train.Passes, "__call__", lambda self, *a: self.optimizer.zero_grad() or self.direct(*a))
    train.run(settings(*flags, "--out", flags[flags.index("--out") + 1] + "-plain"))
    graphs, plain = (log_of(flags[flags.index("--out") + 1] + end) for end in ("", "-plain"))
    for a, b in zip(graphs, plain, strict=True):  # on a GPU the second step begins from weights that differ already
        assert device == "cuda" and a["step"] > 1 or a == {name: pytest.approx(b[name], rel=0.02) for name in b}
