"""prune.py: Eq. 3 and 4 and the compensation written out naively; masked = compacted; a pruned run as a whole."""
import copy
import gc
import math

import pytest
import torch

import der
import prune
import train
from test_train import HARD, log_of


def unsettle(extractor):
    """Give it BatchNorms that are not those of a new network."""
    for module in extractor.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.normal_()


def masked(width=6, seed=0):
    """An unsettled extractor with masks, in test mode."""
    torch.manual_seed(seed)
    extractor = der.ResNet18(width)
    unsettle(extractor)
    prune.attach(extractor, 0.1)
    return extractor.eval()


def set_e(extractor, how):
    for mask in extractor.masks.values():
        mask.e.data = {"random": torch.randn_like(mask.e), "single": -torch.rand_like(mask.e) - 1,
                       "all": torch.rand_like(mask.e) + 0.1}[how]


def naive_layers(width, kept):
    """(kernel, c_in, c_out, kept_in, kept_out) of each convolution, written out from the architecture."""
    widths, source = [width, 2 * width, 4 * width, 8 * width], kept["stage0"]
    rows, c_in = [(3, 3, width, 3, source)], width
    for k, c in enumerate(widths):
        for j in range(2):
            inner, stream = kept[f"stage{k}_block{j}"], kept[f"stage{k}"]
            rows += [(3, c_in, c, source, inner), (3, c, c, inner, stream)]
            rows += [(1, c_in, c, source, stream)] if c_in != c else []
            c_in, source = c, stream
    return rows


def test_eq_3_by_hand_and_by_loop():
    assert prune.anneal(1, 5, 10.0) == pytest.approx(0.1) and prune.anneal(5, 5, 10.0) == pytest.approx(10.0)
    assert prune.anneal(3, 5, 10.0) == pytest.approx(5.05) and prune.anneal(1, 1, 400.0) == 400.0
    values = [prune.anneal(b, 50, 400.0) for b in range(1, 51)]
    assert [b - a for a, b in zip(values, values[1:])] == pytest.approx([(400 - 1 / 400) / 49] * 49)


def test_eq_4_by_loop():
    extractor = masked()
    set_e(extractor, "random")
    prune.set_masks(extractor, 3.0)
    norms = {name: sum(1 / (1 + math.exp(-3 * e)) for e in mask.e.tolist()) for name, mask in extractor.masks.items()}
    rows = naive_layers(6, norms)
    expected = sum(k * k * m_in * m_out for k, _, _, m_in, m_out in rows) / sum(k * k * i * o for k, i, o, *_ in rows)
    assert prune.sparsity_loss(extractor).item() == pytest.approx(expected, rel=1e-5)


def test_all_masks_at_one_give_exactly_one():
    extractor = masked(16)
    set_e(extractor, "all")
    prune.set_masks(extractor, math.inf)
    assert prune.sparsity_loss(extractor).item() == 1.0


@pytest.mark.parametrize("s", [0.0025, 0.5, 1.0, 5.0])
def test_compensation_is_the_formula(s):
    grad, e = torch.randn(20), torch.linspace(-3, 3, 20)

    def slope(x):
        return 1 / (1 + math.exp(-x)) * (1 - 1 / (1 + math.exp(-x)))
    expected = [g * slope(x) / (s * slope(s * x)) for g, x in zip(grad.tolist(), e.tolist())]
    assert prune.compensate(grad, e, s).tolist() == pytest.approx(expected, rel=1e-4)


def test_compensation_is_finite_for_any_e_and_s():
    for s in (1 / 400, 1.0, 20.0, 400.0, 1e5):
        for e in (-1e4, -50.0, -1.0, 0.0, 0.1, 5.0, 1e3):
            for g in (0.0, 1e-30, 1.0, -1e20):
                assert torch.isfinite(prune.compensate(torch.tensor([g]), torch.tensor([e]), s)).all()


def test_a_masks_gradient_does_not_depend_on_s():
    """dL/de = dL/dm sigma'(e), whatever s; far out, where the sigmoid is flat in double precision too, 0 or that."""
    for e in (-1.7, -0.7, -0.1, 0.0, 0.1, 0.5, 1.7):
        for s in (1 / 400, 1.0, 20.0, 400.0):
            mask = prune.Mask(1, e, torch.device("cpu"))
            (3 * prune.annealed(mask.e, s)).sum().backward()
            sigma = 1 / (1 + math.exp(-e))
            assert mask.e.grad.item() == pytest.approx(3 * sigma * (1 - sigma), rel=1e-5)
    for e in (-100.0, 100.0):
        mask = prune.Mask(1, e, torch.device("cpu"))
        prune.annealed(mask.e, 400.0).sum().backward()
        assert torch.isfinite(mask.e.grad).all()


def test_what_is_added_together_shares_a_mask():
    extractor = masked()
    by_mask = {}
    for name, layer, _, mask in prune.layers(extractor):
        assert extractor.get_submodule(name) is layer and len(extractor.masks[mask].e) == layer[1].num_features
        by_mask.setdefault(mask, []).append(layer)
    sizes = sorted(len(layers) for layers in by_mask.values())
    assert sizes == [1] * 8 + [3] * 4  # stem + 2 second convolutions; else 2 second convolutions + the shortcut


def check_compact(extractor):
    """Masked (binary) and compact networks agree, and the second has what the masks say and nothing more."""
    prune.set_masks(extractor, math.inf)
    small, kept = prune.compact(extractor), prune.kept(extractor)["stage3"]
    images = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        whole, part = extractor(images), small(images)
    assert torch.allclose(whole[:, kept], part, atol=1e-4) and (whole[:, ~kept] == 0).all()
    counts = {name: int(mask.kept().sum()) for name, mask in extractor.masks.items()}
    rows = naive_layers(extractor.num_features // 8, counts)
    assert sum(p.numel() for p in small.parameters()) == sum(k * k * m_in * m_out + 2 * m_out
                                                             for k, _, _, m_in, m_out in rows)
    assert small.num_features == counts["stage3"] and type(small) is der.ResNet18
    assert not any(isinstance(module, prune.Mask) for module in small.modules())
    assert not any(module.scale is not None for module in small.modules() if isinstance(module, der.BatchNorm))
    assert {name for name, _ in small.named_parameters()} == {name for name, _ in der.ResNet18(2).named_parameters()}
    return small


@pytest.mark.parametrize("how, seed", [("random", 0), ("random", 1), ("random", 2), ("single", 3), ("all", 4)])
def test_masked_equals_compacted(how, seed):
    extractor = masked(seed=seed)
    set_e(extractor, how)
    before = copy.deepcopy(extractor.state_dict())
    small = check_compact(extractor)
    assert all(torch.equal(a, b) for a, b in zip(before.values(), extractor.state_dict().values()))
    if how == "single":
        assert {int(mask.kept().sum()) for mask in extractor.masks.values()} == {1}
    fresh = der.ResNet18(6).eval()
    prune.reshape_like(fresh, small.state_dict())
    fresh.load_state_dict(small.state_dict())
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(fresh(images), small(images))


def test_masked_logits_equal_compacted_logits():
    """Of both heads, whose inputs go with the channels; in the second step with a compact extractor before the new."""
    net, images = der.Supernet(6, masks=0.1).eval(), torch.rand(4, 3, 32, 32)
    for n_new in (3, 2):
        net.expand(n_new)
        newest = net.extractors[-1]
        unsettle(newest)
        set_e(newest, "random")
        prune.set_masks(newest, math.inf)
        with torch.no_grad():
            whole = net(images)[:2]
            net.compact()
            part = net(images)[:2]
        assert 0 < net.extractors[-1].num_features < 48 and not net.masked()
        assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(whole, part))


def test_a_mask_multiplies_what_batch_norm_gives():
    """In training and in test mode, with the gradient of the product; the statistics are those of all channels."""
    torch.manual_seed(0)
    norm, x, weights = der.BatchNorm(5), torch.randn(4, 5, 3, 3), torch.randn(4, 5, 3, 3)
    norm.weight.data.normal_()
    norm.bias.data.normal_()
    mask = prune.Mask(5, 0.1, torch.device("cpu"))
    mask.e.data.normal_()
    for training in (True, False):
        norm.train(training)
        plain = copy.deepcopy(norm)
        norm.scale, mask.e.grad = prune.annealed(mask.e, 2.0), None
        (norm(x) * weights).sum().backward()
        grad, mask.e.grad = mask.e.grad.clone(), None
        expected = plain(x) * prune.annealed(mask.e, 2.0)[:, None, None]
        (expected * weights).sum().backward()
        assert torch.allclose(norm(x), expected, atol=1e-6) and torch.allclose(grad, mask.e.grad, atol=1e-4)
        norm.scale = None


def test_a_batch_leaves_nothing_behind():
    extractor = masked()
    for batch in range(40):
        if batch == 2:
            before = sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())
        prune.set_masks(extractor, 2.0)
        prune.sparsity_loss(extractor).backward()
    assert sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects()) <= before + 12


def test_masks_have_a_learning_rate_of_their_own_and_no_weight_decay():
    s = train.parse_settings(["--prune", "--width", "32", "--lr", "0.1"])
    net = der.Supernet(s.width, masks=s.mask_start).expand(2)
    weights, masks = train.groups(net, s)
    es = {id(mask.e) for mask in net.extractors[-1].masks.values()}
    assert masks["lr"] == 0.2 and masks["weight_decay"] == 0 and weights.keys() == {"params"}
    assert {id(p) for p in masks["params"]} == es
    assert {id(p) for p in weights["params"]} == {id(p) for p in net.parameters()} - es


def test_spread_puts_every_compact_weight_back_in_its_place():
    extractor = masked()
    set_e(extractor, "random")
    dense = {name: value.clone() for name, value in extractor.state_dict().items() if not name.startswith("masks.")}
    small, keep = prune.compact(extractor), prune.kept(extractor)
    same = prune.spread(small, dense, keep)
    assert same.keys() == dense.keys() and all(torch.equal(same[name], dense[name]) for name in dense)
    with torch.no_grad():
        for p in small.parameters():
            p.add_(1)
    state = prune.spread(small, dense, keep)
    for name, _, source, mask in prune.layers(extractor):
        sources = keep[source] if source else torch.ones(3, dtype=torch.bool)
        for o, row in enumerate(state[f"{name}.0.weight"]):
            for i, kernel in enumerate(row):
                trained = bool(keep[mask][o] and sources[i])
                assert torch.equal(kernel, dense[f"{name}.0.weight"][o, i] + trained)
        assert torch.equal(state[f"{name}.1.bias"], dense[f"{name}.1.bias"] + keep[mask])


def test_s_rises_in_every_epoch_of_the_masks(flags, monkeypatch):
    """Eq. 3 where it is used: batch b of B has the slope anneal(b, B), in each epoch before compaction."""
    slopes, original = [], prune.set_masks
    monkeypatch.setattr(prune, "set_masks", lambda extractor, s: slopes.append(s) or original(extractor, s))
    train.run(train.parse_settings([*flags, "--prune", "--steps", "1", "--batch", "4", "--epochs", "6",
                                    "--s-max", "50"]))
    epoch = [prune.anneal(b, 8, 50.0) for b in range(1, 9)]
    assert slopes == [1.0, *(3 * epoch), math.inf]


def test_a_pruned_run(flags, tmp_path, monkeypatch):
    """It shrinks; masked and compacted agree after real training; the next extractor starts from the dense weights."""
    original, original_compact, dense = der.Supernet.expand, prune.compact, []

    def expand(self, n_new):
        start = prune.spread(self.extractors[-1], self.dense, self.kept) if self.dense else {}
        original(self, n_new)
        if start:
            state = self.extractors[-1].state_dict()
            dense.append(all(torch.equal(value, state[name]) for name, value in start.items()))
        return self

    def compact(extractor):
        with monkeypatch.context() as patch:
            patch.setattr(prune, "compact", original_compact)
            return check_compact(extractor.eval())
    monkeypatch.setattr(der.Supernet, "expand", expand)
    monkeypatch.setattr(prune, "compact", compact)
    results = train.run(train.parse_settings([*flags, *HARD]))
    assert dense == [True, True]
    assert results["pruned"] and all(a < 0.9 * b for a, b in zip(results["parameters"], results["parameters_unpruned"]))
    assert [len(kept) for kept in results["kept"]] == [12] * 3 and min(results["kept"][0].values()) > 0
    sparsity = [line.get("sparsity") for line in log_of(tmp_path / "run") if line["stage"] == 1]
    assert sparsity[0] > sparsity[2] and sparsity[3:6] == [None] * 3  # compact for the second half
    model = der.load(tmp_path / "run", "cpu", "float32")
    assert model.num_parameters() == results["parameters"][-1]
    assert model.predict(torch.zeros(2, 12, 12, 3, dtype=torch.uint8))[1].shape == (2, 6)


def test_masks_of_a_run_begin_where_the_settings_say(flags):
    r = train.open_run(train.parse_settings([*flags, "--prune", "--mask-start", "0.25"]))
    r.folder.release()
    masks = r.supernet.expand(2).extractors[0].masks.values()
    assert all((mask.e == 0.25).all() for mask in masks)


def test_without_pruning_parameters_are_those_unpruned(flags):
    results = train.run(train.parse_settings([*flags, "--steps", "2"]))
    assert results["parameters"] == results["parameters_unpruned"] and not results["pruned"]
