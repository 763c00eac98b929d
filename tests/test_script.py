"""run_cifar100.sh: which runs a mode makes, with which flags; what it refuses. A stand-in notes Python's calls."""
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "run_cifar100.sh"


@pytest.fixture
def call(tmp_path):
    """call(arguments...) -> exit code, stderr, and the flags of each call of train.py."""
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\n[ "$1" = -c ] || echo "$@" >> calls\n')
    python.chmod(0o755)
    shutil.copy(SCRIPT, tmp_path)

    def call(*arguments):
        (tmp_path / "calls").write_text("")
        done = subprocess.run(["bash", tmp_path / SCRIPT.name, *arguments], capture_output=True, text=True)
        calls = [line.split() for line in (tmp_path / "calls").read_text().splitlines()]
        return done.returncode, done.stderr, [words[1:] for words in calls if words[0] == "train.py"]
    return call


def test_each_mode_makes_its_runs(call):
    ten = "--base 0 --increment 10"
    protocols = {"B0-Inc10": ten, "B0-Inc5": "--base 0 --increment 5", "B50-Inc10": "--base 50 --increment 10"}
    demo = {f"B{base}-Inc{increment}{name}": f"--base {base} --increment {increment}{flags}"
            for base, increment in ((0, 2), (0, 4), (10, 2))
            for name, flags in (("", ""), ("-no-expansion", " --no-expansion --no-auxiliary"))}
    expected = {"fast": protocols, "paper": protocols, "demo": demo,
                "ablation": {"B0-Inc10-no-expansion": f"{ten} --no-expansion --no-auxiliary",
                             "B0-Inc10-no-auxiliary": f"{ten} --no-auxiliary", "B0-Inc10": ten}}
    for mode, names in expected.items():
        code, _, runs = call(mode, "--width", "16")
        profile = mode if mode != "ablation" else "fast"
        assert code == 0 and [" ".join(words) for words in runs] == [
            f"--profile {profile} --out runs/{profile}/{name} {flags} --width 16" for name, flags in names.items()]


@pytest.mark.parametrize("mode", ["demo", "ablation"])
def test_what_is_not_expanded_is_not_pruned(mode, call):
    code, _, runs = call(mode, "--prune")
    assert code == 0 and len(runs) == {"demo": 6, "ablation": 3}[mode]
    for words in runs:
        assert ("--prune" in words) != ("--no-expansion" in words)
        assert ("--prune" in words) == words[3].endswith("-pruned")


@pytest.mark.parametrize("arguments, line", [
    (["quick"], "unknown mode 'quick'"),
    (["--profile", "paper"], "give the profile as the mode"),
    (["--profile=paper"], "give the profile as the mode"),
    (["ablation", "--profile"], "ablation --profile NAME"),
    (["ablation", "--width", "16", "--profile", "paper"], "ablation --profile NAME"),
    (["--out", "x"], "RUNS=FOLDER"),
    (["demo", "--out=x"], "RUNS=FOLDER"),
    (["--increment", "20"], "--increment is the mode's to give"),
    (["demo", "--base=4"], "--base is the mode's to give"),
    (["--prune", "--no-auxiliary"], "run train.py itself"),
    (["--evaluate", "runs/fast/B0-Inc10"], "run train.py --evaluate itself"),
])
def test_what_is_refused(arguments, line, call):
    code, err, runs = call(*arguments)
    assert code == 2 and line in err and err.count("\n") == 1 and not runs


def test_help_trains_nothing(call):
    code, err, runs = call("demo", "--width", "8", "--help")
    assert (code, err, runs) == (0, "", [])


@pytest.mark.parametrize("there", [True, False])
def test_a_venv_whose_python_has_gone_is_made_anew(there, call, tmp_path, monkeypatch):
    """As after an upgrade of Python; one that works is only completed."""
    inside, outside = tmp_path / ".venv" / "bin" / "python", tmp_path / "bin" / "python3"
    outside.parent.mkdir()
    for python in (inside, outside):  # packages are lacking; installing ends the script
        python.write_text('#!/bin/sh\ncase "$2" in venv) echo "$@" >> calls; exit 1;; *lacks*) exit 1;; esac\n')
        python.chmod(0o755)
    if not there:
        inside.unlink()
        inside.symlink_to(tmp_path / "gone")
    monkeypatch.setenv("PATH", f"{outside.parent}:/usr/bin:/bin")
    assert call("demo")[0] == 1
    assert (tmp_path / "calls").read_text() == f"-m venv {'' if there else '--clear '}.venv\n"


def drawn(tmp_path):
    """Folders that plots/tables.py was called on."""
    calls = [line.split() for line in (tmp_path / "calls").read_text().splitlines()]
    return [words[1] for words in calls if words[0] == "plots/tables.py"]


def test_figures_of_the_folders_that_are_named(call, tmp_path):
    assert call("figures", "runs/a", "typo")[:2] == (0, "") and drawn(tmp_path) == ["runs/a", "typo"]


def test_folders_without_results_are_said(call, tmp_path):
    shutil.copytree(SCRIPT.parent / "plots", tmp_path / "plots", ignore=shutil.ignore_patterns("measured"))
    (tmp_path / ".venv" / "bin" / "python").write_text(f'#!/bin/sh\n[ "$1" = -c ] || exec "{sys.executable}" "$@"\n')
    (tmp_path / "runs" / "fast" / "B0-Inc10").mkdir(parents=True)
    for arguments, line in (([], "plots/measured: no such folder"), (["typo"], "typo: no such folder"),
                            (["runs"], "runs: no run in it has a results.json")):
        code, err, _ = call("figures", *arguments)
        assert code == 2 and line in err and err.count("\n") == 1


def test_figures_of_a_run_alone_and_of_several(call, tmp_path):
    for name in ("runs/fast/B0-Inc10", "runs/flowers", "runs/begun"):
        (tmp_path / name).mkdir(parents=True)
        if name != "runs/begun":
            (tmp_path / name / "results.json").touch()
    assert call("figures")[:2] == (0, "") and drawn(tmp_path) == ["runs/fast", "runs/flowers"]


def test_figures_of_what_was_run_here_else_of_what_is_published(call, tmp_path):
    (tmp_path / "runs" / "fast" / "B0-Inc10").mkdir(parents=True)  # begun, without results
    for name in ("plots/measured/B0-Inc10", "runs/fast/B0-Inc10"):
        (tmp_path / name).mkdir(parents=True, exist_ok=True)
        (tmp_path / name / "results.json").touch()
        assert call("figures")[:2] == (0, "") and drawn(tmp_path) == [name.rsplit("/", 1)[0]]


def test_figures_of_all_folders_though_one_is_bad(call, tmp_path):
    for name in ("a", "b", "c"):
        (tmp_path / "runs" / name / "run").mkdir(parents=True)
        (tmp_path / "runs" / name / "run" / "results.json").touch()
    python = tmp_path / ".venv" / "bin" / "python"
    python.write_text(python.read_text() + '[ "$1 $2" != "plots/figure.py runs/b" ] || exit 2\n')
    (tmp_path / "plots").mkdir()
    (tmp_path / "plots" / "figure.py").touch()
    assert call("figures")[0] == 2 and drawn(tmp_path) == ["runs/a", "runs/c"]
