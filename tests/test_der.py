"""der.py: the extractor, Eq. 1, the heads and losses written out naively, and what frozen means."""
import copy
import math

import pytest
import torch

import der


def grown(increments=(2, 3, 2), width=2, **kwargs):
    net = der.Supernet(width, **kwargs)
    for n_new in increments:
        net.expand(n_new)
        for module in net.extractors[-1].modules():  # statistics and scales that are not those of a new network
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
                module.weight.data.uniform_(0.5, 1.5)
    return net


def train_a_little(net, steps=3):
    optimizer = torch.optim.SGD((p for p in net.parameters() if p.requires_grad), 0.1, weight_decay=0.1)
    net.train()
    for _ in range(steps):
        logits, aux_logits, _ = net(torch.rand(4, 3, 16, 16))
        optimizer.zero_grad()
        (logits.sum() + aux_logits.square().sum()).backward()
        optimizer.step()


@pytest.mark.parametrize("flags, expected", [
    ("fpu avx2 avx512f avx512_bf16 avx512_vnni", torch.bfloat16), ("amx_bf16 avx512_fp16 amx_tile", torch.bfloat16),
    ("fpu avx2 avx512f avx512_vnni", torch.float32), ("", torch.float32)])
def test_bfloat16_where_the_processor_multiplies_it(flags, expected, monkeypatch):
    info = f"processor\t: 0\ncpu family\t: 25\nmodel\t\t: 17\nmodel name\t: Some CPU\nflags\t\t: {flags}\n"
    monkeypatch.setattr(der, "cpuinfo", lambda: info)
    cpu = torch.device("cpu")
    assert der.choose_precision("auto", cpu) == expected and der.machine(cpu)["cpu"] == "Some CPU (family 25, model 17)"
    assert der.choose_precision("bfloat16", cpu) == torch.bfloat16
    info = "processor\t: 0\nCPU implementer\t: 0x41\n"  # Linux on ARM names it by numbers alone
    assert der.machine(cpu)["cpu"]


def test_resnet18_has_the_papers_size():
    extractor = der.ResNet18(64)
    assert extractor.num_features == 512
    assert sum(p.numel() for p in extractor.parameters()) == 11_168_832
    assert [stage[0].conv1[0].stride[0] for stage in extractor.stages] == [1, 2, 2, 2]
    assert extractor(torch.rand(2, 3, 32, 32)).shape == (2, 512)


def test_convolutions_start_as_he_et_al_say():
    """Normal, fan-out: a standard deviation of sqrt(2 / (outputs x kernel area))."""
    for kernel, c_out in ((3, 64), (3, 256), (1, 128)):
        weight = der.ConvBN(64, c_out, kernel)[0].weight
        assert weight.std().item() == pytest.approx(math.sqrt(2 / (c_out * kernel ** 2)), rel=0.03)


def test_blocks_start_as_their_shortcuts():
    block = der.Block(4, 4, 1)
    x = torch.rand(2, 4, 8, 8)
    assert torch.equal(block(x), x)


def test_super_feature_and_heads_are_eq_1():
    net = grown().eval()
    images = torch.rand(5, 3, 16, 16)
    logits, aux_logits, features = net(images)
    normalised = (images - torch.tensor(der.MEAN).view(3, 1, 1)) / torch.tensor(der.STD).view(3, 1, 1)
    parts = [extractor(normalised) for extractor in net.extractors]
    assert torch.allclose(features, torch.cat(parts, 1), atol=1e-5)
    for b in range(5):
        for c in range(7):
            expected = sum(w * u for w, u in zip(net.classifier.weight[c].tolist(), features[b].tolist()))
            assert math.isclose(logits[b, c].item(), expected, abs_tol=1e-4)
    assert net.classifier.bias is None
    assert torch.allclose(aux_logits, parts[-1] @ net.auxiliary.weight.T + net.auxiliary.bias, atol=1e-5)
    assert aux_logits.shape == (5, 3)  # "old" and two new classes


def test_expand_starts_from_the_extractor_before():
    net = grown((2, 2))
    old = copy.deepcopy(net.extractors[-1].state_dict())
    net.expand(2)
    assert all(torch.equal(a, b) for a, b in zip(old.values(), net.extractors[-1].state_dict().values()))
    train_a_little(net)
    assert not torch.equal(net.extractors[-1].stem[0].weight, net.extractors[-2].stem[0].weight)


def test_frozen_means_frozen_bit_for_bit():
    net = grown((2, 2, 2))
    before = copy.deepcopy([extractor.state_dict() for extractor in net.extractors])
    features = net.eval().features(torch.ones(1, 3, 16, 16))
    train_a_little(net)
    for index, extractor in enumerate(net.extractors):
        same = [torch.equal(value, before[index][name]) for name, value in extractor.state_dict().items()
                if not name.endswith("num_batches_tracked")]
        assert all(same) if index < 2 else not any(same)
        assert extractor.training == (index == 2)
        assert all((p.grad is not None) == p.requires_grad == (index == 2) for p in extractor.parameters())
    assert torch.equal(net.eval().features(torch.ones(1, 3, 16, 16))[:, :32], features[:, :32])


def test_folded_extractors_compute_what_they_did():
    net = grown((2, 2)).eval()
    images = torch.rand(4, 3, 16, 16)
    trained = net.features(images)
    net.freeze()
    assert len(net.folded) == 2
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for folded in net.folded for m in folded.modules())
    assert torch.allclose(net.features(images), trained, atol=1e-5)


def test_without_expansion_one_extractor_is_trained_on():
    net = grown((2, 2), expansion=False)
    net.freeze()
    net.expand(3)
    assert len(net.extractors) == 1 and not net.folded and net.classifier.weight.shape == (7, 16)
    before = net.extractors[0].stem[0].weight.clone()
    train_a_little(net)
    assert not torch.equal(net.extractors[0].stem[0].weight, before)


def test_rebuild_gives_the_same_network():
    net = grown((2, 3))
    net.freeze()
    other = der.Supernet(2)
    other.rebuild(net.snapshot())
    images = torch.rand(3, 3, 16, 16)
    assert all(torch.equal(a, b) for a, b in zip(net.eval()(images), other.eval()(images)))


@pytest.mark.filterwarnings("ignore")
def test_rebuild_stays_on_its_device():
    """The state of a checkpoint is on the CPU, whatever the network's device."""
    net, other = grown((2,)), der.Supernet(2).to("meta")
    net.freeze()
    other.rebuild(net.snapshot())
    tensors = [*other.parameters(), *other.buffers(), *other.folded[0].parameters()]
    assert {tensor.device.type for tensor in tensors} == {"meta"}


def test_known_features_of_frozen_extractors_change_nothing():
    net = grown((2, 3, 1)).eval()
    images = torch.rand(4, 3, 16, 16)
    assert all(torch.equal(a, b) for a, b in zip(net(images), net(images, old=net.features(images, last=-1))))


def test_num_parameters():
    net = grown((2, 3), width=64)
    assert net.num_parameters() == 2 * 11_168_832 + 5 * 1024


def test_latency_is_that_of_the_best_batch_in_milliseconds_an_image(monkeypatch):
    """The first call, to warm up, does not count."""
    clock = iter([0, 1, 10, 15, 20, 24, 30, 33, 40, 46, 50, 55])  # seconds: 1, then 5, 4, 3, 6, 5
    monkeypatch.setattr(der.time, "perf_counter", lambda: next(clock))
    assert der.latency(grown((2,)), torch.rand(10, 3, 8, 8)) == 300.0


def test_auxiliary_targets():
    assert der.auxiliary_targets(torch.tensor([0, 4, 5, 6, 9]), 5).tolist() == [0, 0, 1, 2, 5]
    assert der.auxiliary_targets(torch.tensor([0, 3]), 0).tolist() == [1, 4]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_losses_are_mean_cross_entropies(smoothing):
    def naive(logits, targets):
        total = 0.0
        for row, target in zip(logits.tolist(), targets):
            log_p = [x - math.log(sum(math.exp(y) for y in row)) for x in row]
            total -= (1 - smoothing) * log_p[target] + smoothing * sum(log_p) / len(row)
        return total / len(targets)

    logits, aux_logits, labels = torch.randn(6, 5), torch.randn(6, 3), torch.tensor([0, 1, 2, 3, 4, 4])
    assert math.isclose(der.classification_loss(logits, labels, smoothing), naive(logits, [0, 1, 2, 3, 4, 4]),
                        rel_tol=1e-5)
    assert math.isclose(der.auxiliary_loss(aux_logits, labels, 3, smoothing), naive(aux_logits, [0, 0, 0, 1, 2, 2]),
                        rel_tol=1e-5)
