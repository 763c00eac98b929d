"""Several processes under torchrun: the same losses and exemplars as one; one of them writes and speaks."""
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import train
from test_train import log_of

TRAIN = Path(train.__file__)


def launch(processes, *flags):
    """train.py under torchrun, on CPUs."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes),
               str(TRAIN), "--device", "cpu", *flags]
    return subprocess.run(command, capture_output=True, text=True, timeout=240,
                          env=dict(os.environ, OMP_NUM_THREADS="1"))


@pytest.mark.parametrize("extra, stops, lines", [
    (("--epochs", "2"), ["2"], 8), (("--epochs", "4", "--prune", "--sparsity", "3000"), ["1", "3"], 20)])
def test_two_processes_train_as_one_does(extra, stops, lines, flags, tmp_path):
    """Batches of at most 11 images: the shares are not even. Once, with a stop after step 1 and none after step 2."""
    flags = [*flags, "--batch", "11", "--width", "4", *extra]
    results = train.run(train.parse_settings([*flags, "--steps", stops[-1], "--out", str(tmp_path / "one")]))
    assert "--prune" not in extra or min(results["kept"][0].values()) < 0.5
    for steps in stops:
        done = launch(2, *flags, "--steps", steps, "--out", str(tmp_path / "two"))
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("settings:") == 1
    one, two = log_of(tmp_path / "one"), log_of(tmp_path / "two")
    assert len(one) == len(two) == lines
    for a, b in zip(one, two):  # after the first step roundings have grown
        assert a.keys() == b.keys() and a == pytest.approx(b, abs=1e-3 if a["step"] == 1 else 5e-2)
    classes = 2 * int(stops[-1])
    first, second = (torch.load(tmp_path / name / "checkpoint.pt", weights_only=True)["memory"]
                     for name in ("one", "two"))
    assert [chosen.tolist() for chosen in first[:2]] == [chosen.tolist() for chosen in second[:2]]
    assert [len(chosen) for chosen in first] == [len(chosen) for chosen in second] == [24 // classes] * classes


def test_evaluation_is_printed_once(flags, tmp_path):
    train.run(train.parse_settings([*flags, "--steps", "1"]))
    tested = launch(2, "--evaluate", str(tmp_path / "run"))
    assert tested.returncode == 0 and tested.stdout.count(" test images of ") == tested.stdout.count("  in ") == 1


@pytest.mark.parametrize("extra, words", [
    (("--batch", "4"), "--batch 4 is too small to be shared by 2 processes"),
    (("--increment", "1", "--validation", "0.8"), "3 where it needs 4")])
def test_an_error_is_one_line_of_one_process(extra, words, flags):
    done = launch(2, *flags, *extra)
    lines = [line for line in done.stderr.splitlines() if line.startswith("train.py: ")]
    assert done.returncode != 0 and len(lines) == 1 and words in lines[0]
