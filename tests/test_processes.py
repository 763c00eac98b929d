"""Several processes under torchrun: the same losses and exemplars as one; one of them writes and speaks."""
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

TRAIN = Path(__file__).parents[1] / "train.py"


def launch(processes, *flags):
    """train.py under torchrun, on CPUs."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), str(TRAIN),
               "--device", "cpu", *flags]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, env=dict(os.environ, OMP_NUM_THREADS="1"))


def log_of(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("extra", [(), ("--prune", "--sparsity", "20")])
def test_two_processes_train_as_one_does(extra, flags, tmp_path):
    """7 batches of 15 or 16 images an epoch, 3 epochs: the shares are not even."""
    flags = [*flags, "--increment", "3", "--steps", "2", "--batch", "7", "--width", "4", *extra]
    for processes in (1, 2):
        done = launch(processes, *flags, "--out", str(tmp_path / str(processes)))
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("settings:") == 1
    one, two = log_of(tmp_path / "1"), log_of(tmp_path / "2")
    assert len(one) == len(two) > 8
    for a, b in zip(one, two):
        assert a.keys() == b.keys() and (a["step"], a["stage"], a["epoch"]) == (b["step"], b["stage"], b["epoch"])
        tolerance = 1e-3 if a["step"] == 1 else 2e-2  # roundings grow with the iterations
        assert all(a[name] == pytest.approx(b[name], abs=tolerance) for name in a if name not in ("seconds", "lr"))
    first, second = (torch.load(tmp_path / name / "checkpoint.pt", weights_only=True)["memory"] for name in "12")
    assert [chosen.tolist() for chosen in first] == [chosen.tolist() for chosen in second]


def test_what_two_processes_began_one_goes_on_with(flags, tmp_path):
    assert launch(2, *flags, "--steps", "1").returncode == 0
    done = subprocess.run([sys.executable, TRAIN, *flags, "--steps", "2"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "run" / "results.json").read_text())["classes_seen"] == [2, 4]


@pytest.mark.parametrize("wrong, message", [(["--batch", "4"], "--batch 4"), (["--data", "none.npz"], "none.npz")])
def test_an_error_is_one_line_of_one_process(wrong, message, flags):
    done = launch(2, *flags, *wrong)
    lines = [line for line in done.stderr.splitlines() if line.startswith("train.py: ")]
    assert done.returncode != 0 and len(lines) == 1 and message in lines[0]
