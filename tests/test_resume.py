"""Killed at any moment a run loses nothing; read back, a model is the one that was trained."""
import contextlib
import io
import json
import multiprocessing
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import data
import der
import train
from test_train import log_of, results_of

TRAIN = str(Path(train.__file__))


# Starts processes as forks of one that has imported torch, and what the first optimiser imports: they take seconds.
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["train", "torch._dynamo"])


def command(flags, errors):
    """train.py with these flags; stderr goes to the file errors. SIGINT reaches it though the tests may ignore it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for path, stream in ((os.devnull, sys.stdout), (errors, sys.stderr)):
        os.dup2(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC), stream.fileno())
    sys.argv = [TRAIN, *flags]
    sys.exit(train.main())


def written(folder):
    """When its checkpoint was; None where there is none yet, or is just becoming checkpoint.old.pt."""
    with contextlib.suppress(FileNotFoundError):
        return (folder / "checkpoint.pt").stat().st_mtime_ns


@pytest.mark.parametrize("how, times", [(signal.SIGKILL, 20), (signal.SIGTERM, 3), (signal.SIGINT, 3)])
def test_stopped_at_random_moments_in_turn(how, times, flags, tiny, tmp_path):
    """Each time a new process goes on; in the end the numbers and the log are those of a run left alone."""
    longer = ["--epochs", "15", "--steps", "2"]
    alone = Path(tiny).with_name("alone")  # once trained, the others find it finished
    train.run(train.parse_settings([*flags, *longer, "--out", str(alone)]))
    chance, stopped, errors = random.Random(0), 0, tmp_path / "errors"

    def go_on(stop):
        process, before = SERVER.Process(target=command, args=(flags + longer, errors)), written(tmp_path / "run")
        process.start()
        if stop:
            while process.is_alive() and written(tmp_path / "run") in (before, None):
                time.sleep(0.005)
            time.sleep(chance.uniform(0, 0.1))
            with contextlib.suppress(ProcessLookupError):  # it may just have ended
                os.kill(process.pid, how)
        process.join()
        return process.exitcode

    for _ in range(times):
        code = go_on(stop=True)
        assert code in (0, {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130}[how])
        assert "Traceback" not in errors.read_text()
        stopped += code != 0
    # Of the 20 stops some were in the second step.
    assert times < 20 or der.RunFolder(tmp_path / "run").load()["step"] >= 1
    assert go_on(stop=False) == 0 and errors.read_text() == ""
    assert stopped >= 3
    assert results_of(tmp_path / "run") == results_of(alone)
    assert log_of(tmp_path / "run") == log_of(alone)


def test_a_file_size_limit_like_a_full_disk(flags, tmp_path):
    """The system refuses to write past 60 kB: one line, and what was there before can be used."""
    train.run(train.parse_settings([*flags, "--steps", "1"]))
    limited = f"ulimit -f 60; exec {sys.executable} {TRAIN} " + " ".join(flags)
    done = subprocess.run(["bash", "-c", limited], capture_output=True, text=True)
    assert done.returncode == 1 and "File too large" in done.stderr and done.stderr.count("\n") == 1
    assert der.RunFolder(tmp_path / "run").load()["step"] == 1 and results_of(tmp_path / "run")["classes_seen"] == [2]
    train.run(train.parse_settings(flags))


def test_the_seconds_of_a_step_go_on(flags, tmp_path, monkeypatch, capsys):
    """After a stop within the step those before it count: in the log, in the results and for the time left."""
    def stop(self, stage, epoch, *rest):
        original(self, stage, epoch, *rest)
        if epoch == 2:
            raise KeyboardInterrupt
    original = train.Progress.epoch
    with monkeypatch.context() as patch:
        patch.setattr(train.Progress, "epoch", stop)
        with pytest.raises(KeyboardInterrupt):
            train.run(train.parse_settings(flags))
    folder = der.RunFolder(tmp_path / "run")
    folder.save(folder.load() | {"seconds": 100_000.0})

    def slow(self, *args):
        time.sleep(0.1)  # the unit of the seconds that are written: such an epoch may take less
        original(self, *args)
    monkeypatch.setattr(train.Progress, "epoch", slow)
    results = train.run(train.parse_settings([*flags, "--steps", "2"]))
    assert 100_000 < results["seconds"][0] < 100_100 and results["seconds"][1] < 100
    seconds = [json.loads(line)["seconds"] for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [value > 100_000 for value in seconds] == [False] + 2 * [True] + 7 * [False]
    # 2 of 3 epochs of 32 images took 100,000 s. Left: the third, and 3 of 24 + 32, twice seen by a frozen extractor:
    # (32 + 56 * (3 + 2 / 4)) / (2 * 32) * 100,000 s = 98 h 57 min
    before, after = re.findall("step 1/3 .* epoch 2/3 .* about (.*) left", capsys.readouterr().out)
    assert before.startswith("0:") and after.startswith("98:5")


@pytest.mark.parametrize("extra", [(), ("--no-expansion",), ("--precision", "bfloat16"), ("--validation", "0.2")])
def test_the_model_afterwards(extra, flags, tiny, tmp_path, monkeypatch, capsys):
    """Reloaded = trained: the same logits, the same accuracy, the data set's own class names."""
    trained, original = {}, train.record

    def record(r, *args):
        original(r, *args)
        trained["logits"] = r.supernet(data.to_float(r.data.test_images))[0].detach()
        trained["test"] = r.data
    monkeypatch.setattr(train, "record", record)
    results = train.run(train.parse_settings([*flags, *extra]))
    test = trained["test"]
    net = der.load(tmp_path / "run", device="cpu", precision="bfloat16" if "bfloat16" in extra else "float32")
    assert torch.equal(net(data.to_float(test.test_images))[0], trained["logits"])
    names, probabilities = net.predict(test.test_images.numpy())
    count = 18 if "--validation" in extra else 36
    assert probabilities.shape == (count, 6) and torch.allclose(probabilities.sum(1), torch.ones(count))
    assert torch.allclose(probabilities, (trained["logits"] / 2).softmax(1), atol=1e-6)  # the profile's temperature
    assert set(names) <= set(np.arange(6).astype(str))
    right = [name == test.class_names[label] for name, label in zip(names, test.test_labels)]
    assert round(100 * sum(right) / count, 2) == results["last"]

    monkeypatch.setattr(sys, "argv", ["train.py", "--evaluate", str(tmp_path / "run")])
    capsys.readouterr()
    assert train.main() == 0
    out = capsys.readouterr().out
    which = f"{count} {'test' if count == 36 else 'held-out'} images of 6 classes"
    assert f"{results['last']:.2f} % of {which}" in out and train.table_row(results, 2) in out


def test_the_first_step_alone_has_no_temperature(flags, tmp_path):
    """It has no stage 2."""
    train.run(train.parse_settings([*flags, "--steps", "1"]))
    assert der.load(tmp_path / "run").temperature == 1.0


@pytest.mark.parametrize("extra, words", [((), "the same command goes on"),
                                          (("--restart",), "the same command without --restart goes on")])
def test_what_goes_on_after_ctrl_c(extra, words, flags, monkeypatch, capsys):
    """With --restart once more all would be lost. Where stdout is a pipe that Ctrl-C has broken: no traceback."""
    def interrupted(s):
        raise KeyboardInterrupt
    monkeypatch.setattr(train, "run", interrupted)
    monkeypatch.setattr(sys, "argv", ["train.py", *flags, *extra])
    assert train.main() == 130 and words in capsys.readouterr().out
    read, write = os.pipe()
    os.close(read)
    with open(write, "w") as broken:
        monkeypatch.setattr(sys, "stdout", broken)
        assert train.main() == 130
        broken.flush()  # as at the end of Python, which would complain


def test_a_finished_run_repeated_gets_its_results_back_but_no_empty_log(flags, tmp_path):
    train.run(train.parse_settings(flags))
    before, log = (tmp_path / "run" / "results.json").read_bytes(), tmp_path / "run" / "log.jsonl"
    (tmp_path / "run" / "results.json").unlink()
    log.unlink()
    train.run(train.parse_settings(flags))
    assert (tmp_path / "run" / "results.json").read_bytes() == before and not log.exists()


def test_a_reader_of_the_output_who_has_gone(flags, monkeypatch, capsys):
    """As in `train.py --evaluate ... | head -1`, whose last table nobody reads: one line, no traceback."""
    results = train.run(train.parse_settings(flags))
    monkeypatch.setattr(train, "run", lambda s: results)
    monkeypatch.setattr(sys, "argv", ["train.py", *flags])

    class Gone(io.StringIO):
        def write(self, text):
            raise BrokenPipeError(32, "Broken pipe")
    monkeypatch.setattr(sys, "stdout", Gone())
    assert train.main() == 1 and capsys.readouterr().err == "train.py: [Errno 32] Broken pipe\n"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("extra", [(), ("--prune", "--epochs", "4"), ("--precision", "bfloat16")])
def test_on_a_gpu(extra, flags, tmp_path):
    """From beginning to end, with a stop between, and read back there and on the CPU."""
    flags = [*flags, "--device", "cuda", *extra]
    train.run(train.parse_settings([*flags, "--steps", "2"]))
    results = train.run(train.parse_settings(flags))
    assert results["classes_seen"] == [2, 4, 6] and results["latency_device"] == "cuda"
    images = torch.randint(0, 256, (5, 12, 12, 3), dtype=torch.uint8)
    there, here = (der.load(tmp_path / "run", device).predict(images)[1] for device in ("cuda", "cpu"))
    assert torch.allclose(there, here, atol=2e-2)


@pytest.mark.parametrize("images", [np.zeros((2, 8, 8, 3)), np.zeros((32, 32, 3), np.uint8),
                                    np.zeros((2, 3, 32, 32), np.uint8), np.zeros((28, 28), np.uint8),
                                    np.zeros((2, 4, 4, 3), np.uint8)])
def test_predict_refuses_other_images(images):
    """Not uint8; a single image, in colour or grey; the channels in another place; too small."""
    with pytest.raises(ValueError, match="uint8 images"):
        der.Supernet(2).predict(images)


def test_load_refuses_what_is_no_finished_step(flags, tmp_path, monkeypatch):
    with pytest.raises(der.FolderError, match="holds no run"):
        der.load(tmp_path)
    (tmp_path / "config.json").write_text('{"width": 2}')
    with pytest.raises(der.FolderError, match="holds no run"):
        der.load(tmp_path)
    (tmp_path / "config.json").write_text('{"width": 2, "expansion": true, "temperature": 2}')  # results, published
    with pytest.raises(der.FolderError, match="holds no checkpoint"):
        der.load(tmp_path)
    monkeypatch.setattr(train.Progress, "epoch", lambda self, stage, epoch, *a: 1 / (2 - epoch))
    with pytest.raises(ZeroDivisionError):
        train.run(train.parse_settings(flags))
    with pytest.raises(der.FolderError, match="let the run go on"):
        der.load(tmp_path / "run")


@pytest.mark.parametrize("shape, sizes", [((28, 28), (30, 9, 3)), ((40, 40, 3), (12, 12, 5))])
def test_any_data_runs_through_all_of_it(shape, sizes, flags, tmp_path):
    """Uneven classes, grey or in colour, of other sizes; steps that are not equal."""
    rng = np.random.default_rng(0)
    arrays = {}
    for split, part in (("train", 1), ("test", 3)):
        labels = np.repeat(np.arange(3), [max(1, n // part) for n in sizes])
        arrays[f"{split}_images"] = rng.integers(0, 256, (len(labels), *shape), np.uint8)
        arrays[f"{split}_labels"] = labels[:, None]
    np.savez(tmp_path / "uneven.npz", **arrays)
    results = train.run(train.parse_settings([*flags, "--data", str(tmp_path / "uneven.npz"), "--base", "2",
                                              "--increment", "1", "--epochs", "1", "--head-epochs", "1"]))
    assert results["classes_seen"] == [2, 3] and results["dataset"] == "uneven.npz"
    images, net = arrays["test_images"], der.load(tmp_path / "run")
    probabilities = net.predict(images)[1]
    assert probabilities.shape == (len(images), 3)
    if images.ndim == 3:
        assert torch.equal(probabilities, net.predict(np.stack([images] * 3, -1))[1])
        assert torch.equal(probabilities, net.predict(images[..., None])[1])


def test_a_run_goes_on_as_it_began_on_another_machine(flags, tmp_path, monkeypatch):
    """In its precision, whatever this machine is fast at; both machines are named."""
    flags = [flag for flag in flags if flag not in ("--precision", "float32")]
    monkeypatch.setattr(train, "choose_precision", lambda name, device: der.choose_precision(
        "float32" if name == "auto" else name, device))
    monkeypatch.setattr(train, "choose_device", lambda name: torch.device("cpu"))
    train.run(train.parse_settings([*flags, "--steps", "1"]))
    monkeypatch.setattr(train, "choose_precision", lambda name, device: der.choose_precision(
        "bfloat16" if name == "auto" else name, device))
    monkeypatch.setattr(train, "choose_device", lambda name: torch.device("cpu", 0))
    results = train.run(train.parse_settings([*flags, "--steps", "2"]))
    assert results["latency_device"] == "cpu, then cpu:0" and results["classes_seen"] == [2, 4]
    assert results["resumed_on"] == []  # what a machine says of itself is the same
    there = {"device": "cpu", "cpu": "Quipu"}
    monkeypatch.setattr(train, "machine", lambda device: there)
    (tmp_path / "run" / "results.json").unlink()
    train.run(train.parse_settings([*flags, "--steps", "2"]))  # all is done: it only writes this again
    assert json.loads((tmp_path / "run" / "results.json").read_text())["resumed_on"] == []
    for _ in range(2):
        results = train.run(train.parse_settings(flags))
    assert results["resumed_on"] == [there] and results["classes_seen"] == [2, 4, 6]


def test_the_line_of_progress_fits_the_terminal(flags, monkeypatch, capsys):
    """A line longer than the terminal would leave its first row behind at each update."""
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(train.shutil, "get_terminal_size", lambda: os.terminal_size((40, 20)))
    monkeypatch.setattr(train.Progress, "shown", property(lambda self: -1e9, lambda self, value: None), raising=False)
    train.run(train.parse_settings([*flags, "--steps", "2"]))
    lines = [part for part in capsys.readouterr().out.split("\r\x1b[K") if "img/s" in part or "stage 1  epoch" in part]
    assert len(lines) > 20 and max(map(len, lines)) == 39
