"""Bad input: one line on stderr that says what is wrong and what to do, exit code 2, nothing lost."""
import json
import os
import pickle
import sys

import numpy as np
import pytest
import torch

import der
import train


def call(monkeypatch, capsys, flags):
    """train.py in this process -> exit code and what it wrote to stderr."""
    monkeypatch.setattr(sys, "argv", ["train.py", *map(str, flags)])
    code = train.main()
    return code, capsys.readouterr().err


@pytest.mark.parametrize("extra, line", [
    (["--width", "0"], "--width 0: it must be a number at least 1"),
    (["--width", "wide"], "invalid int value: 'wide'"),
    (["--lr", "-1"], "--lr -1.0: it must be a number above 0"),
    (["--lr", "nan"], "--lr nan: it must be a number above 0"),
    (["--head-lr", "inf"], "--head-lr inf: it must be a number above 0"),
    (["--momentum", "1"], "--momentum 1.0: it must be a number at least 0 and below 1"),
    (["--momentum", "0"], "--nesterov needs a --momentum above 0"),
    (["--weight-decay", "-0.1"], "--weight-decay -0.1: it must be a number at least 0"),
    (["--label-smoothing", "1"], "--label-smoothing 1.0"),
    (["--temperature", "0"], "--temperature 0.0: it must be a number above 0"),
    (["--epochs", "0"], "--epochs 0: it must be a number at least 1"),
    (["--batch", "1"], "--batch 1: it must be a number at least 2"),
    (["--milestones", "0"], "milestones must be 1 or more"),
    (["--prune", "--s-max", "0.5"], "--s-max 0.5: it must be a number at least 1"),
    (["--prune", "--sparsity", "-1"], "--sparsity -1.0: it must be a number at least 0"),
    (["--prune", "--mask-share", "0.3"], "--mask-share 0.3 of 3 epochs leaves the masks none"),
    (["--prune", "--no-expansion"], "--prune and --no-expansion"),
    (["--head-views", "0"], "--head-views 0"),
    (["--head-epochs", "0"], "--head-epochs 0"),
    (["--seed", "-1"], "--seed -1"),
    (["--seed", "1" + "0" * 309], "it must be a number at least 0 and below 16777216"),
    (["--shift", "12"], "--shift 12 may push whole images out of sight: give less than 12"),
    (["--evaluate", ""], "--evaluate needs the folder of a run"),
    (["--seed", str(2**24)], "--seed 16777216: it must be a number at least 0 and below 16777216"),
    (["--steps", "-1"], "--steps -1"),
    (["--validation", "1"], "--validation 1.0"),
    (["--validation", "0.99", "--increment", "1"], "first step for BatchNorm, 1 where it needs 2"),
    (["--validation", "0.99", "--base", "1", "--increment", "1"], "give a higher --base"),
    (["--milestones", "ten"], "invalid int value: 'ten'"),
    (["--schedule", "steps", "--warmup", "9"], "--warmup 9 leaves nothing of 3 epochs"),
    (["--schedule", "steps", "--warmup", "2", "--first-epochs", "2", "--milestones"],
     "--warmup 2 leaves nothing of 2 epochs"),
    (["--schedule", "steps", "--warmup", "1", "--milestones", "2", "5"], "the learning rate would never fall"),
    (["--profile", "paper", "--epochs", "170", "--base", "2", "--base-epochs", "60"],
     "--base-epochs 60: the learning rate would never"),
    (["--profile", "paper", "--epochs", "170", "--first-epochs", "110"],
     "--first-epochs 110: the learning rate would never fall"),
    (["--profile", "paper", "--epochs", "110"], "the first of its milestones is epoch 110; give --milestones too"),
    (["--schedule", "cosine"], "invalid choice: 'cosine'"),
    (["--profile", "quick"], "invalid choice: 'quick'"),
    (["--precision", "int8"], "invalid choice: 'int8'"),
    (["--device", "tpu"], "invalid choice: 'tpu'"),
    (["--sparcity", "1"], "unrecognized arguments: --sparcity 1"),
    (["--order", "alphabet"], "unknown class order 'alphabet'"),
    (["--order", "podnet1"], "podnet1 lists 100 classes and the data has 6: give natural or an integer seed"),
    (["--increment", "0"], "--increment 0: it must be a number at least 1"),
    (["--increment", "4"], "6 classes cannot be divided into base 0 and steps of 4"),
    (["--base", "5"], "6 classes cannot be divided into base 5 and steps of 2"),
    (["--base", "8"], "6 classes cannot be divided into base 8"),
    (["--head-batch", "1"], "--head-batch 1: it must be a number at least 2"),
    (["--memory", "5"], "--memory 5: it must hold an exemplar of each of the 6 classes"),
    (["--base", "2", "--memory-per-class", "0"], "--memory-per-class 0: it must be a number at least 1"),
    (["--data", "nowhere.npz"], "there is no data set 'nowhere.npz'"),
])
def test_flags(extra, line, flags, monkeypatch, capsys, tmp_path):
    code, err = call(monkeypatch, capsys, flags + extra)
    assert code == 2 and line in err and err.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_missing_device(flags, monkeypatch, capsys):
    code, err = call(monkeypatch, capsys, flags + ["--device", "cuda"])
    assert code == 2 and "--device cuda: this machine has none" in err and err.count("\n") == 1


def test_unknown_device():
    with pytest.raises(der.DeviceError, match="unknown device 'mps': give auto, cpu or cuda"):
        der.choose_device("mps")


def test_unknown_precision():
    with pytest.raises(der.DeviceError, match="unknown precision 'fp16': give auto, bfloat16 or float32"):
        der.choose_precision("fp16", torch.device("cpu"))


def without(key):
    return lambda arrays: arrays.pop(key)


def replaced(key, apply):
    return lambda arrays: arrays.update({key: apply(arrays[key])})


@pytest.mark.parametrize("damage, line", [
    (without("test_labels"), "lacks test_labels"),
    (replaced("train_images", lambda x: x.astype(np.float32)), "train_images is float32"),
    (replaced("train_images", lambda x: x[:, :, 0, 0]), "train_images is uint8 [96, 12]"),
    (replaced("train_images", lambda x: np.repeat(x, 2, 3)), "train_images is uint8 [96, 12, 12, 6]"),
    (replaced("train_images", lambda x: x[:0]), "train_images is uint8 [0, 12, 12, 3]"),
    (replaced("train_images", lambda x: x[:, :4, :4]), "train_images are 4 x 4 pixels"),
    (replaced("test_images", lambda x: x[:, :8, :8]), "make them the same size"),
    (replaced("train_labels", lambda x: x[1:]), "train_labels is uint8 [95, 1]: it must be integers [96]"),
    (replaced("train_labels", lambda x: x.astype(np.float64)), "train_labels is float64"),
    (replaced("train_labels", lambda x: np.repeat(x, 14, 1)), "train_labels is uint8 [96, 14]"),
    (replaced("train_labels", lambda x: x.astype(np.int64) - 1), "train_labels runs from -1 to 4"),
    (replaced("train_labels", lambda x: np.where(x == 3, 4, x)), "class 3 has too few images"),
    (replaced("train_labels", lambda x: np.where(np.arange(96)[:, None] == 40, 6, x)), "class 6 has too few images"),
    (replaced("test_labels", lambda x: np.where(x == 2, 1, x)), "class 2 has too few images"),
    (replaced("train_labels", lambda x: x.astype(np.int64) + 10**13), "labels must be the whole numbers from 0 on"),
    (replaced("test_labels", lambda x: x + 1), "too few images"),
    (lambda arrays: arrays.update(class_names=np.array(["a", "b"])), "class_names has 2 entries for 6 classes"),
    (replaced("train_labels", lambda x: x.astype(object)), "is not a readable .npz file"),
])
def test_data_sets(damage, line, arrays, flags, monkeypatch, capsys, tmp_path):
    damage(arrays)
    np.savez(tmp_path / "bad.npz", **arrays)
    code, err = call(monkeypatch, capsys, flags + ["--data", tmp_path / "bad.npz"])
    assert code == 2 and line in err and err.count("\n") == 1
    assert not (tmp_path / "run").exists()


class Boom:
    def __reduce__(self):
        return os.mkdir, ("executed",)


@pytest.mark.parametrize("content", [b"", b"not a zip", pickle.dumps(Boom()), None])
def test_files_that_are_no_npz(content, flags, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "bad.npz"
    path.mkdir() if content is None else path.write_bytes(content)
    code, err = call(monkeypatch, capsys, flags + ["--data", path])
    assert code == 2 and "is not a readable .npz file" in err and err.count("\n") == 1
    assert not (tmp_path / "executed").exists()


def test_truncated_npz(flags, tiny, monkeypatch, capsys, tmp_path):
    whole = open(tiny, "rb").read()
    (tmp_path / "half.npz").write_bytes(whole[:len(whole) // 2])
    code, err = call(monkeypatch, capsys, flags + ["--data", tmp_path / "half.npz"])
    assert code == 2 and "is not a readable .npz file" in err and err.count("\n") == 1


@pytest.mark.parametrize("mark, offset, value", [
    (b"PK\x01\x02", 8, 1),  # as if it were encrypted
    (b"PK\x01\x02", 10, 9),  # a compression that Python lacks
    (b"\x93NUMPY", 9, 0x40),  # a header so long that numpy warns of it, in three lines
])
def test_npz_with_one_byte_damaged(mark, offset, value, flags, arrays, monkeypatch, capsys, tmp_path):
    np.savez(tmp_path / "bad.npz", **arrays | {"train_images": np.zeros((96, 16, 16, 3), np.uint8)})
    content = bytearray((tmp_path / "bad.npz").read_bytes())
    content[content.find(mark) + offset] = value
    (tmp_path / "bad.npz").write_bytes(content)
    code, err = call(monkeypatch, capsys, flags + ["--data", tmp_path / "bad.npz"])
    assert code == 2 and "is not a readable .npz file" in err and err.count("\n") == 1


@pytest.mark.parametrize("at", [0.2, 0.4, 0.6, 0.8])
def test_damaged_compressed_npz(at, flags, arrays, monkeypatch, capsys, tmp_path):
    np.savez_compressed(tmp_path / "bad.npz", **arrays)
    content = bytearray((tmp_path / "bad.npz").read_bytes())
    place = int(at * len(content))
    content[place:place + 40] = bytes(40)
    (tmp_path / "bad.npz").write_bytes(content)
    code, err = call(monkeypatch, capsys, flags + ["--data", tmp_path / "bad.npz"])
    assert code == 2 and "is not a readable .npz file" in err and err.count("\n") == 1


# --------------------------------------------------------------------------------------------------- the run folder

def test_other_settings_on_an_old_folder(flags, monkeypatch, capsys, tmp_path):
    assert call(monkeypatch, capsys, flags + ["--steps", "1"])[0] == 0
    before = (tmp_path / "run" / "results.json").read_bytes()
    code, err = call(monkeypatch, capsys, flags + ["--steps", "1", "--lr", "0.2", "--no-auxiliary"])
    assert code == 2 and "auxiliary True (now False), lr 0.1 (now 0.2)" in err and "--restart" in err
    assert (tmp_path / "run" / "results.json").read_bytes() == before
    assert call(monkeypatch, capsys, flags + ["--steps", "1", "--lr", "0.2", "--restart"])[0] == 0
    assert json.loads((tmp_path / "run" / "config.json").read_text())["lr"] == 0.2


def test_results_without_a_checkpoint(flags, monkeypatch, capsys, tmp_path):
    """As in plots/measured: neither the log nor the results are written over."""
    assert call(monkeypatch, capsys, flags + ["--steps", "1"])[0] == 0
    for path in (tmp_path / "run").glob("*.pt"):
        path.unlink()
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    code, err = call(monkeypatch, capsys, flags)
    assert code == 2 and "holds results without a checkpoint" in err and err.count("\n") == 1
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before
    assert call(monkeypatch, capsys, flags + ["--restart", "--steps", "1"])[0] == 0


def test_evaluate_takes_no_training_flags(flags, monkeypatch, capsys, tmp_path):
    assert call(monkeypatch, capsys, flags + ["--steps", "1"])[0] == 0
    code, err = call(monkeypatch, capsys, ["--evaluate", tmp_path / "run", "--width", "8"])
    assert code == 2 and "leave out --width" in err and err.count("\n") == 1


def test_evaluate_without_results(flags, monkeypatch, capsys, tmp_path):
    assert call(monkeypatch, capsys, flags + ["--steps", "1"])[0] == 0
    (tmp_path / "run" / "results.json").unlink()
    code, err = call(monkeypatch, capsys, ["--evaluate", tmp_path / "run"])
    assert code == 2 and "has lost its results.json" in err and err.count("\n") == 1


def gpu_is_full(s):
    raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2 GiB")


@pytest.mark.parametrize("whose, full", [
    ("the GPU's", gpu_is_full),
    ("the machine's", lambda s: torch.empty(2**50)),
    ("the machine's", lambda s: np.empty(2**50)),
])
def test_memory_is_full(whose, full, flags, monkeypatch, capsys):
    monkeypatch.setattr(train, "run", full)
    code, err = call(monkeypatch, capsys, flags)
    assert code == 1 and f"{whose} memory is full" in err and err.count("\n") == 1


def test_a_data_set_too_large_for_memory_is_not_called_unreadable(flags, monkeypatch, capsys):
    monkeypatch.setattr(np, "load", lambda *_, **__: np.empty(2**50))
    code, err = call(monkeypatch, capsys, flags)
    assert code == 1 and "memory is full" in err and err.count("\n") == 1


def test_other_errors_of_torch_are_not_taken_for_a_full_memory(flags, monkeypatch, capsys):
    monkeypatch.setattr(train, "run", lambda s: torch.ones(2) @ torch.ones(3))
    with pytest.raises(RuntimeError, match="inconsistent tensor size"):
        call(monkeypatch, capsys, flags)


@pytest.mark.parametrize("extra, notes", [
    (["--sparsity", "1"], ["--sparsity has no effect without --prune"]),
    (["--sparsity", "1", "--prune"], []),
    (["--base", "4", "--memory", "9", "--base-sparsity", "1", "--prune"], ["--memory has no effect with a --base"]),
    (["--memory-per-class", "9", "--warmup", "1"],
     ["--memory-per-class has no effect without a --base", "--warmup has no effect with --schedule onecycle"]),
    (["--schedule", "steps", "--warmup", "1", "--milestones", "1"], []),
    (["--schedule", "steps", "--warmup", "0", "--milestones", "1", "--base", "4", "--base-milestones", "1"],
     ["--base-milestones has no effect without --base-epochs"]),
    (["--schedule", "steps", "--warmup", "0", "--milestones", "1", "--base", "4", "--base-milestones", "1",
      "--base-epochs", "2"], []),
])
def test_a_flag_without_effect_is_said(extra, notes, flags, capsys):
    """A setting that it leaves at its default is not named; nothing is refused: the script gives all runs the same."""
    start = flags.index("--memory")  # given by the fixture
    train.parse_settings([*flags[:start], *flags[start + 2:], *extra])
    said = [line.removeprefix("note: ") for line in capsys.readouterr().out.splitlines()]
    assert sorted(said) == sorted(notes)


def test_two_at_once(flags, monkeypatch, capsys, tmp_path):
    folder = der.RunFolder(tmp_path / "run")
    folder.claim({}, set(), {})
    code, err = call(monkeypatch, capsys, flags)
    assert code == 2 and "another process is at work" in err and err.count("\n") == 1
    folder.release()


def test_out_is_a_file(flags, monkeypatch, capsys, tmp_path):
    (tmp_path / "run").write_text("mine")
    code, err = call(monkeypatch, capsys, flags)
    assert code == 2 and "cannot be a run folder" in err and (tmp_path / "run").read_text() == "mine"


def test_a_file_system_without_locks(flags, monkeypatch, capsys, tmp_path):
    def refuse(*_):
        raise OSError(37, "No locks available")
    monkeypatch.setattr(der.fcntl, "flock", refuse)
    code, err = call(monkeypatch, capsys, flags)
    assert code == 2 and "cannot be a run folder (No locks available): give another --out" in err
    assert err.count("\n") == 1


def in_the_directory(content):
    """Damage the name of a file in a zip's directory: not even a bad zip file for Python, but bad UTF-8."""
    place = content.rfind(b"PK\x01\x02") + 46
    return content[:place] + b"\xff" * 8 + content[place + 8:]


def as_if_compressed(content):
    """Another method in a zip's directory for what is stored as it is: zlib's error, which is no other's."""
    place = content.find(b"PK\x01\x02") + 10
    return content[:place] + b"\x08" + content[place + 1:]


@pytest.mark.parametrize("harm", [lambda b: b[:len(b) // 2], lambda b: b"", in_the_directory, as_if_compressed,
                                  lambda b: b[:3000] + b"\xff" * 8 + b[3008:]])
def test_a_damaged_checkpoint_falls_back_on_the_one_before(harm, flags, monkeypatch, capsys, tmp_path):
    call(monkeypatch, capsys, flags + ["--steps", "2"])
    whole = json.loads((tmp_path / "run" / "results.json").read_text())
    for name in ("checkpoint.pt", "checkpoint.old.pt"):
        path = tmp_path / "run" / name
        path.write_bytes(harm(path.read_bytes()))
        code, err = call(monkeypatch, capsys, flags + ["--steps", "2"])
        assert f"{name} is damaged" in err
        if name == "checkpoint.pt":
            assert code == 0
            again = json.loads((tmp_path / "run" / "results.json").read_text())
            assert again["accuracy"] == whole["accuracy"]
            (tmp_path / "run" / "checkpoint.pt").write_bytes(b"damaged too")
    assert code == 2 and "start over with --restart" in err


def test_a_checkpoint_that_may_not_be_read_is_not_called_damaged(flags, monkeypatch, capsys, tmp_path):
    assert call(monkeypatch, capsys, flags + ["--steps", "1"])[0] == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}

    def refuse(path, *_, **__):
        raise PermissionError(13, "Permission denied", str(path))
    monkeypatch.setattr(torch, "load", refuse)
    code, err = call(monkeypatch, capsys, flags)
    assert code == 1 and "Permission denied" in err and "damaged" not in err and err.count("\n") == 1
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before


@pytest.mark.parametrize("error", [PermissionError, MemoryError, lambda: RuntimeError("can't allocate memory")])
def test_a_checkpoint_for_which_something_is_missing_is_not_passed_over(error, flags, monkeypatch, capsys, tmp_path):
    assert call(monkeypatch, capsys, flags + ["--steps", "1"])[0] == 0
    monkeypatch.setattr(torch, "load", lambda *_, **__: (_ for _ in ()).throw(error()))
    with pytest.raises(type(error())):
        der.RunFolder(tmp_path / "run").load()
    assert "damaged" not in capsys.readouterr().err


def test_a_checkpoint_executes_nothing(flags, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert call(monkeypatch, capsys, flags + ["--steps", "1"])[0] == 0
    for path in (tmp_path / "run").glob("*.pt"):
        torch.save({"step": Boom()}, path)
    code, err = call(monkeypatch, capsys, flags)
    assert code == 2 and "damaged" in err and not (tmp_path / "executed").exists()


def test_a_checkpoint_of_unknown_settings(flags, monkeypatch, capsys, tmp_path):
    """Another command could go on from it with its own settings, and claim them for what was trained before."""
    assert call(monkeypatch, capsys, flags + ["--steps", "1"])[0] == 0
    (tmp_path / "run" / "config.json").unlink()
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    code, err = call(monkeypatch, capsys, flags + ["--lr", "0.5"])
    assert code == 2 and "a checkpoint without its config.json" in err and err.count("\n") == 1
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before
    assert call(monkeypatch, capsys, flags + ["--restart", "--steps", "1"])[0] == 0


def test_a_full_disk_keeps_the_last_checkpoint(flags, monkeypatch, capsys, tmp_path):
    original_write, original_save, kept = der.RunFolder.write, der.RunFolder.save, []

    def write(self, name, content):
        if name == "checkpoint.new.pt" and len(kept) == 2:
            raise OSError(28, "No space left on device")
        original_write(self, name, content)

    def save(self, state):
        original_save(self, state)
        kept.append((state["step"], state["epoch"]))
    monkeypatch.setattr(der.RunFolder, "write", write)
    monkeypatch.setattr(der.RunFolder, "save", save)
    code, err = call(monkeypatch, capsys, flags)
    assert code == 1 and "No space left on device" in err and err.count("\n") == 1
    state = der.RunFolder(tmp_path / "run").load()
    assert (state["step"], state["epoch"]) == kept[-1] and len(kept) == 2
    monkeypatch.undo()
    assert call(monkeypatch, capsys, flags)[0] == 0


def test_divergence_stops_with_the_place_and_the_setting(flags, monkeypatch, capsys, tmp_path):
    code, err = call(monkeypatch, capsys, flags + ["--lr", "1e30"])
    assert code == 1 and "step 1/3  stage 1  epoch 1/3: the loss is no longer finite" in err and "lower --lr" in err
    assert err.count("\n") == 1
