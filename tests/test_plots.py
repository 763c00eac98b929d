"""plots/: what is drawn from which files, and one line for files that cannot be drawn."""
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

PLOTS = Path(__file__).parents[1] / "plots"
sys.path.insert(0, str(PLOTS))

import common  # noqa: E402
import figure5  # noqa: E402
import figure_pruning  # noqa: E402
import figure_tradeoff  # noqa: E402
import runs  # noqa: E402
import tables  # noqa: E402
import train  # noqa: E402


def make_run(folder, protocol="B0-Inc10", dataset="CIFAR-100", steps=3, done=3, config={}, **changes):
    """A run folder with made-up results."""
    folder.mkdir(parents=True)
    base, increment = (int(part) for part in protocol[1:].split("-Inc"))
    tasks = [[90.0 - 5 * t - k for k in range(t + 1)] for t in range(done)]
    accuracy = [sum(row) / len(row) for row in tasks]
    results = dict(
        protocol=protocol, dataset=dataset, profile="fast", width=16, order="podnet1", seed=0, pruned=False,
        expansion=True, auxiliary=True, num_classes=100, steps_total=steps, latency_batch=32, latency_device="cpu",
        classes_seen=[(base or increment) + increment * t for t in range(done)], accuracy=accuracy,
        accuracy_stage1=accuracy, task_accuracy=tasks, average=sum(accuracy) / done, last=accuracy[-1],
        forgetting=10.0, parameters=[700_000 * (t + 1) for t in range(done)],
        parameters_unpruned=[700_000 * (t + 1) for t in range(done)], ms_per_image=[0.3] * done, seconds=[60.0] * done)
    results.update(changes)
    (folder / "results.json").write_text(json.dumps(results))
    config = dict({key: results[key] for key in ("order", "seed", "width")}, epochs=4, validation=0.0, lr=0.1,
                  label_smoothing=0.0, machine={"torch": "2"}) | config
    (folder / "config.json").write_text(json.dumps(config))
    log = [dict(step=t + 1, stage=1, epoch=e + 1, classification=1 / (e + 1), auxiliary=0.5, lr=0.1, seconds=1.0)
           for t in range(done) for e in range(4)]
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log))


def plot(script, folder, *more):
    return subprocess.run([sys.executable, PLOTS / script, folder, *more], capture_output=True, text=True)


def test_a_mean_over_the_same_steps_has_the_same_digits_everywhere(tmp_path):
    """Those of the paper's pruned curve over 8 steps lie between two roundings, which numpy and sum settle apart."""
    make_run(tmp_path / "a", "B0-Inc5", steps=20, done=8, pruned=True)
    assert plot("tables.py", tmp_path).returncode == 0
    report = (tmp_path / "report.md").read_text()
    row = re.search(r"mean of the first 8 \|(.*)", report)[1].split(" | ")
    assert f"paper: DER, pruned {row[2].strip()}," in report


def test_everything_is_drawn(tmp_path):
    make_run(tmp_path / "a", "B0-Inc5", steps=20)
    make_run(tmp_path / "b", "B0-Inc10", done=3, steps=3)
    make_run(tmp_path / "c", "B0-Inc10", expansion=False, auxiliary=False)
    for script in ("figure4.py", "figure5.py", "figure6.py", "tables.py"):
        done = plot(script, tmp_path)
        assert done.returncode == 0 and done.stderr == "", done.stderr
    for name in ("figure4", "figure5", "figure6"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert (tmp_path / f"{name}.pdf").read_bytes().startswith(b"%PDF")
    report = (tmp_path / "report.md").read_text()
    assert all(f"{name}.png" in report for name in ("figure4", "figure5", "figure6"))
    table1, table2 = ((tmp_path / f"table{i}.md").read_text() for i in (1, 2))
    assert "75.36" in table1 and "75.40" in table1 and "3 of 20 steps †" in table1  # paper, report, ours
    assert "65.34" in table2 and "40.81" in table2 and "not run" in table2


def test_pruning_is_drawn_where_there_is_a_pruned_run(tmp_path):
    make_run(tmp_path / "a")
    done = plot("figure_pruning.py", tmp_path)
    assert done.returncode == 0 and "no pruned run" in done.stdout
    make_run(tmp_path / "b", pruned=True, parameters=[70_000, 140_000, 210_000])
    done = plot("figure_pruning.py", tmp_path)
    assert done.returncode == 0 and (tmp_path / "figure_pruning.png").exists()
    row = "| ours: DER, pruned | B0-Inc10 | 30 | 0.210 | 10.0 | 79.00 | 0.30 | not recorded |"
    assert row in (tmp_path / "table_pruning.md").read_text()
    (tmp_path / "b" / "results.json").unlink()  # and where there is none any more, nothing of it is left to be shown
    assert plot("figure_pruning.py", tmp_path).returncode == 0 and not list(tmp_path.glob("*_pruning.*"))


def test_every_protocol_with_a_pruned_run_has_its_row_and_one_method_one_look(tmp_path, monkeypatch):
    for name, protocol, steps, done, sparsity in (("a", "B0-Inc5", 20, 8, 0.3), ("b", "B0-Inc10", 3, 3, 0.3),
                                                  ("c", "B0-Inc10", 3, 3, 0.1)):
        make_run(tmp_path / name, protocol, steps=steps, done=done, pruned=True, config={"sparsity": sparsity},
                 kept=[{f"stage{i}": sparsity / done for i in range(4)}] * done)
    make_run(tmp_path / "d", "B0-Inc10", steps=3)
    make_run(tmp_path / "e", "B50-Inc10")
    figures, finish = [], figure_pruning.common.finish
    monkeypatch.setattr(figure_pruning.common, "finish", lambda fig, *rest: (figures.append(fig), finish(fig, *rest)))
    figure_pruning.draw(runs.load_runs(tmp_path), tmp_path)
    assert (tmp_path / "figure_pruning.png").exists()
    inc5, inc10 = figures[0].axes[:4], figures[0].axes[4:]
    assert len(inc10) == 4 and [row[0].get_title(loc="left") for row in (inc5, inc10)] == ["B0-Inc5", "B0-Inc10"]
    looks = {(line.get_label(), line.get_markerfacecolor()) for line in (inc5[2].lines[0], *inc10[2].lines)}
    assert len(inc5[2].lines) == 1 and len(inc10[2].lines) == len(looks) == 3  # 0.3 looks the same in both
    assert inc5[3].lines[0].get_ydata()[0] == 100 * 0.3 / 8 and inc10[3].lines[0].get_ydata()[0] == 100 * 0.1 / 3
    table = (tmp_path / "table_pruning.md").read_text()
    rows = ("DER | B0-Inc10 | 10", "DER, pruned, sparsity 0.3 | B0-Inc5 | 40",
            "DER, pruned, sparsity 0.1 | B0-Inc10 | 30")
    assert all(f"| ours: {row} |" in table for row in rows)
    assert "B50-Inc10" not in table


def test_latencies_of_two_machines_are_not_drawn_together(tmp_path, monkeypatch):
    close, finish = (lambda fig, *_: figure_pruning.plt.close(fig)), figure_pruning.common.finish
    here = dict(device="cpu", cpu="Abacus", threads=2, torch="2.0", python="3.12")
    make_run(tmp_path / "pruned", pruned=True, config={"machine": here, "precision": "float32"})
    for name, change in (("same", {"python": "3.13"}), ("gpu", {"device": "GPU"}), ("threads", {"threads": 1}),
                         ("torch", {"torch": "2.1"}), ("bfloat16", {})):
        make_run(tmp_path / name, config={"machine": here | change,
                                          "precision": name if name == "bfloat16" else "float32"})
        groups = figure_pruning.compared(runs.grouped(runs.load_runs(tmp_path)))
        ax, whole = figure_pruning.plt.figure().subplots(1, 2)
        figure_pruning.panel(ax, "ms_per_image", "ms", 1, groups, groups)
        figure_pruning.panel(whole, "accuracy", "%", 1, groups, groups)
        assert len(whole.lines) == 2 and len(ax.lines) == (2 if name == "same" else 1), name
        assert ax.lines[-1].get_label() == "ours: DER, pruned" + (", precision float32" if name == "bfloat16" else "")
        others = "" if name == "same" else "; others: see the table"
        assert ax.get_title().split() == f"Abacus, 2 threads, torch 2.0, float32{others}".split()
        monkeypatch.setattr(figure_pruning.common, "finish", finish if name == "gpu" else close)  # one picture will do
        figure_pruning.draw(runs.load_runs(tmp_path), tmp_path)
        table = (tmp_path / "table_pruning.md").read_text()
        assert "Abacus, 2 threads, torch 2.0, float32 |" in table
        assert name != "gpu" or "| GPU, torch 2.0, float32 |" in table
        (tmp_path / name / "results.json").unlink()
    make_run(tmp_path / "another seed", pruned=True, seed=1, config={"machine": here | {"threads": 1}})
    make_run(tmp_path / "unpruned", config={"machine": here, "precision": "float32"})
    groups = figure_pruning.compared(runs.grouped(runs.load_runs(tmp_path)))
    ax = figure_pruning.plt.figure().subplots()
    figure_pruning.panel(ax, "ms_per_image", "ms", 1, groups, groups)
    assert len(groups) == 2 and not ax.lines and ax.get_title() == "several machines: see the table"
    moved = tmp_path / "moved"  # a run that began on one device and went on on another
    make_run(moved / "a", pruned=True, config={"machine": here}, latency_device="cpu, then cuda")
    make_run(moved / "b", config={"machine": here})
    pruned, other = runs.load_runs(moved)
    assert pruned.machine() == other.machine() + ", latency on cpu, then cuda"


def test_a_run_that_went_on_elsewhere_says_on_what(tmp_path):
    """What has changed, once; and its latencies are not taken for those of the machine that it began on."""
    here = dict(device="cpu", cpu="Abacus", threads=2, torch="2.0", python="3.12", commit="aaa")
    since = [here | {"commit": "bbb"}, here | {"cpu": "Quipu", "threads": 4}]
    make_run(tmp_path / "moved", pruned=True, config={"machine": here, "precision": "float32"}, resumed_on=since)
    make_run(tmp_path / "stayed", config={"machine": here, "precision": "float32"}, resumed_on=since[:1])
    moved, stayed = runs.load_runs(tmp_path)
    assert stayed.machine() == "Abacus, 2 threads, torch 2.0, float32"
    assert moved.machine() == "Abacus, 2 threads, torch 2.0, then Quipu, 4 threads, torch 2.0, float32"
    assert tables.machines([moved, stayed]) == (
        "- moved: device cpu, cpu Abacus, threads 2, torch 2.0, python 3.12, commit aaa, then commit bbb, "
        "then cpu Quipu, threads 4, latency batch 32 on cpu\n"
        "- stayed: device cpu, cpu Abacus, threads 2, torch 2.0, python 3.12, commit aaa, then commit bbb, "
        "latency batch 32 on cpu\n")


def test_channels_kept_say_whose_they_are_where_several_runs_are_pruned(tmp_path):
    for share in (0.8, 0.6):
        make_run(tmp_path / f"{share}", pruned=True, kept=[{f"stage{i}": share for i in range(4)}] * 3,
                 config={"sparsity": share})
        groups = figure_pruning.compared(runs.grouped(runs.load_runs(tmp_path)))
        ax = figure_pruning.plt.figure().subplots()
        figure_pruning.kept_panel(ax, groups)
        assert ax.get_title() == ("sparsity 0.6" if len(groups) > 1 else "")
        assert list(ax.lines[0].get_ydata()) == list(ax.lines[-1].get_ydata()) == [100 * share] * 3
    for smoothing in (0.0, 0.1):  # the first has no words of its own
        make_run(tmp_path / "two" / f"{smoothing}", pruned=True, config={"label_smoothing": smoothing})
    groups = figure_pruning.compared(runs.grouped(runs.load_runs(tmp_path / "two")))
    ax = figure_pruning.plt.figure().subplots()
    figure_pruning.kept_panel(ax, groups)
    assert ax.get_title() == "DER, pruned"


def test_the_tradeoff_is_drawn_over_runs_that_differ_in_lambda_s_alone(tmp_path):
    make_run(tmp_path / "unpruned", done=3)
    make_run(tmp_path / "another seed", done=3, seed=1)
    others = [(0.3, 0.5, 2, 0), (2.0, 0.1, 1, 0), (5.0, 0.1, 2, 1)]  # another lr, fewer steps, another seed
    for index, (sparsity, lr, done, seed) in enumerate([(1.0, 0.1, 2, 0), (0.0, 0.1, 2, 0), (3.0, 0.1, 2, 0)] + others):
        parameters = [300_000, 140_000 * (index + 1)][:done]
        make_run(tmp_path / f"{index}", done=done, seed=seed, pruned=True, parameters=parameters,
                 config=dict(sparsity=sparsity, lr=lr, s_max=100 + index // 3))
    points, unpruned = figure_tradeoff.curve(runs.grouped(runs.load_runs(tmp_path)))
    assert [(figure_tradeoff.sparsity(group), round(figure_tradeoff.share_left(group), 6)) for group in points] == \
        [(0.0, 20.0), (1.0, 10.0), (3.0, 30.0)]
    assert unpruned == []  # two seeds make one group: a mean of other seeds than the points'
    (tmp_path / "another seed" / "results.json").unlink()
    points, unpruned = figure_tradeoff.curve(runs.grouped(runs.load_runs(tmp_path)))
    assert [group.first.folder.name for group in unpruned] == ["unpruned"]
    assert plot("figure_tradeoff.py", tmp_path).returncode == 0 and (tmp_path / "figure_tradeoff.png").exists()
    (tmp_path / "2" / "results.json").unlink()
    assert "nothing to draw" in plot("figure_tradeoff.py", tmp_path).stdout


def test_the_steps_table_compares_the_longest_run_with_its_counterpart(tmp_path):
    make_run(tmp_path / "a", done=1)
    make_run(tmp_path / "b", pruned=True, done=2)
    make_run(tmp_path / "c", expansion=False, done=3)
    assert plot("tables.py", tmp_path).returncode == 0
    lines = (tmp_path / "report.md").read_text().splitlines()
    head = next(line for line in lines if line.startswith("| classes seen"))
    assert head.endswith("| ours: DER, pruned, less the paper's |")
    means = [line for line in lines if line.startswith("| mean of the first")]
    assert len(means) == 2 and means[0].startswith("| mean of the first 1 | 90.00 | 90.00 | 90.00 |")
    assert means[0].endswith(f" {90 - 87.82:.2f} |") and means[1].startswith("| mean of the first 3 |  |  | ")
    assert means[1].endswith("|  |")


def test_runs_of_two_seeds_are_drawn_as_their_mean_in_a_band_one_run_as_a_line(tmp_path):
    make_run(tmp_path / "a", done=2, parameters=[1_000_000, 2_000_000])
    make_run(tmp_path / "b", done=2, parameters=[3_000_000, 4_000_000], seed=1)
    group, = runs.grouped(runs.load_runs(tmp_path))
    for group, mean, bands in ((group, [2, 3], [(1, 4)]), (runs.Group(group.runs[:1], ()), [1, 2], [])):
        ax = figure5.plt.figure().subplots()
        common.curve(ax, group, "parameters", [group], 1e-6)
        assert list(ax.lines[0].get_xdata()) == [10, 20] and ax.lines[0].get_ydata() == pytest.approx(mean)
        edges = [band.get_paths()[0].vertices[:, 1] for band in ax.collections]
        assert [pytest.approx((edge.min(), edge.max())) for edge in edges] == bands


def test_the_run_that_got_furthest_names_the_steps_of_the_losses(tmp_path, monkeypatch):
    make_run(tmp_path / "a", done=1)
    make_run(tmp_path / "b", done=3, pruned=True)
    figures = []
    monkeypatch.setattr(common, "finish", lambda fig, *rest: figures.append(fig))
    figure5.draw(runs.load_runs(tmp_path), tmp_path)
    first, last = figures[0].axes[0], figures[0].axes[-1]
    assert [text.get_text() for text in first.texts] == [f"step {i}: {10 * i} classes" for i in (1, 2, 3)]
    assert len(last.get_xticks()) == 12 and len(first.lines) == 4 + 2  # four epochs a step; two lines between steps
    figure5.plt.close(figures[0])


def test_losses_of_zero_are_drawn(tmp_path):
    make_run(tmp_path / "a", "B0-Inc1", done=1)
    line = dict(step=1, stage=1, epoch=1, classification=0.0, lr=0.1, seconds=1.0)  # one class: nothing to confuse
    (tmp_path / "a" / "log.jsonl").write_text(json.dumps(line) + "\n")
    ax = figure5.plt.figure().subplots()
    figure5.draw_losses(ax, "classification", figure5.our_losses(runs.load_runs(tmp_path)[0]), "ours")
    assert ax.lines[0].get_ydata().tolist() == [0.0]
    done = plot("figure5.py", tmp_path)
    assert done.returncode == 0 and not done.stderr


def test_without_a_log_there_are_no_losses_but_all_the_rest(tmp_path):
    make_run(tmp_path / "a")
    (tmp_path / "a" / "log.jsonl").unlink()
    done = plot("figure5.py", tmp_path)
    assert done.returncode == 0 and "nothing to draw" in done.stdout and not (tmp_path / "figure5.png").exists()
    assert plot("tables.py", tmp_path).returncode == 0
    assert "figure5" not in (tmp_path / "report.md").read_text()


def test_a_data_sets_name_is_no_formula(tmp_path):
    make_run(tmp_path / "a", dataset="a$b_$c.npz")
    assert plot("figure4.py", tmp_path).returncode == 0


def test_other_data_gets_no_cifar_numbers(tmp_path):
    make_run(tmp_path / "a", "B0-Inc4", "synthetic", num_classes=20)
    assert plot("tables.py", tmp_path).returncode == 0
    text = (tmp_path / "report.md").read_text()
    assert "synthetic" in text and "75.36" not in text and "iCaRL" not in text


@pytest.mark.parametrize("dataset, protocol", [("CIFAR-100", "B0-Inc5"), ("synthetic", "B0-Inc4")])
@pytest.mark.parametrize("script, published", [("figure4", "paper: DER w/o pruning"), ("figure5", "report"),
                                               ("figure6", "iCaRL")])
def test_published_numbers_stand_beside_cifar_alone(dataset, protocol, script, published, tmp_path, monkeypatch):
    labels = []
    monkeypatch.setattr(common, "finish", lambda fig, *args, **kwargs: labels.extend(
        label for ax in fig.axes for label in ax.get_legend_handles_labels()[1]))
    make_run(tmp_path / "a", protocol, dataset)
    __import__(script).draw(runs.load_runs(tmp_path), tmp_path)
    assert "ours: DER" in labels and (published in labels) == (dataset == "CIFAR-100")


def test_a_short_step_beside_a_long_one_has_its_epochs_counted():
    axis = figure5.plt.figure().add_subplot().xaxis
    figure5.mark_epochs(axis, [[{"epoch": 120}], [{"epoch": 30}], [{"epoch": 3}]])
    assert [label.get_text() for label in axis.get_ticklabels()] == "50 100 10 20 30 1 2 3".split()
    assert axis.get_ticklocs()[:4] == pytest.approx([50 / 120, 100 / 120, 1 + 1 / 3, 1 + 2 / 3])


def test_only_orders_and_seeds_are_averaged(tmp_path):
    for name, change in (("a", {}), ("b", dict(order="podnet2")), ("c", dict(seed=1)), ("d", dict(width=32))):
        make_run(tmp_path / name, **change)
    make_run(tmp_path / "e", config={"lr": 0.5})
    groups = runs.grouped(runs.load_runs(tmp_path))
    assert sorted([run.folder.name for run in group.runs] for group in groups) == [["a", "b", "c"], ["d"], ["e"]]
    assert ("lr 0.5",) in [group.variant[-1:] for group in groups]


def test_different_data_of_one_name_are_not_drawn_together(tmp_path):
    """But CIFAR-100's images may be in any order."""
    for dataset in ("flowers.npz", "CIFAR-100"):
        for fingerprint in "ab":
            make_run(tmp_path / dataset / fingerprint, dataset=dataset, config={"fingerprint": fingerprint})
    assert len(runs.load_runs(tmp_path / "CIFAR-100")) == 2
    with pytest.raises(runs.Bad, match=r"different data \(flowers.npz, flowers.npz\)"):
        runs.load_runs(tmp_path / "flowers.npz")


def test_what_was_tested_on_images_held_out_is_said(tmp_path):
    """Of the runs it is true of."""
    def text(*shares):
        for share in shares:
            make_run(tmp_path / str(shares) / str(share), config={"validation": share})
        groups = runs.grouped(runs.load_runs(tmp_path / str(shares)))
        assert len(groups) == len(shares)
        return common.caption(groups), [group.variant for group in groups]
    caption, variants = text(0.0)
    assert "held" not in caption
    caption, variants = text(0.2)
    assert " Tested on held-out" in caption and "% held out" not in caption.replace(common.NO_BREAK, " ")
    caption, variants = text(0.1, 0.2)
    assert " Tested on held-out training images" in caption and variants == [("10 % held out",), ("20 % held out",)]
    caption, variants = text(0.0, 0.2)
    assert " Those with images held out: tested on" in caption and variants == [(), ("20 % held out",)]


def test_a_setting_that_is_not_used_sets_no_runs_apart(tmp_path):
    """The budget of exemplars that the protocol does not have, milestones where the rate does not fall in steps."""
    for protocol, schedule, name, together in (
            ("B50-Inc10", "onecycle", "memory", True), ("B50-Inc10", "onecycle", "memory_per_class", False),
            ("B0-Inc10", "onecycle", "memory", False), ("B0-Inc10", "onecycle", "memory_per_class", True),
            ("B0-Inc10", "onecycle", "milestones", True), ("B0-Inc10", "steps", "milestones", False)):
        folder = tmp_path / f"{protocol}-{schedule}-{name}"
        for value in (1, 2):
            make_run(folder / str(value), protocol, config={"schedule": schedule, name: value})
        assert len(runs.grouped(runs.load_runs(folder))) == (1 if together else 2), folder.name


@pytest.mark.parametrize("base", [0, 50])
@pytest.mark.parametrize("schedule", ["steps", "onecycle"])
@pytest.mark.parametrize("prune", [False, True])
def test_the_settings_that_are_not_used_are_those_of_which_train_says_so(base, schedule, prune):
    s = train.Settings(base=base, schedule=schedule, prune=prune)
    unused = (runs.OF_NONE if base else runs.OF_BASE) | (set() if prune else runs.PRUNING)
    assert set(train.idle(s)) == unused | (set() if schedule == "steps" else runs.OF_STEPS)


def test_a_setting_in_which_methods_or_protocols_differ_is_named(tmp_path):
    """Else a temperature's effect would be taken for that of pruning; pruning's own settings say nothing of others."""
    for name, temperature, change in (("a", 2, {}), ("b", 5, dict(pruned=True)), ("c", 2, dict(protocol="B0-Inc5"))):
        sparsity = 0.1 if change.get("pruned") else 0.3
        make_run(tmp_path / name, config={"temperature": temperature, "sparsity": sparsity}, **change)
    variants = {group.first.folder.name: group.variant for group in runs.grouped(runs.load_runs(tmp_path))}
    assert variants == {"a": ("temperature 2",), "b": ("temperature 5",), "c": ("temperature 2",)}


def test_a_lambda_s_of_the_first_step_is_named_where_there_is_one(tmp_path):
    """0, and none at all in runs from before it was a setting, mean that of every step: one row with B0's."""
    for name, protocol, pruned, config in (
            ("a", "B0-Inc10", False, {}), ("b", "B0-Inc10", True, {"sparsity": 0.3}),
            ("c", "B50-Inc10", True, {"sparsity": 0.3}),
            ("d", "B50-Inc10", True, {"sparsity": 0.5, "base_sparsity": 0.1})):
        make_run(tmp_path / name, protocol, pruned=pruned, config=config)
    groups = runs.grouped(runs.load_runs(tmp_path))
    assert {group.first.folder.name: group.variant for group in groups} == {
        "a": (), "b": ("sparsity 0.3",), "c": ("sparsity 0.3",), "d": ("base_sparsity 0.1", "sparsity 0.5")}
    assert {name: runs.load_run(tmp_path / name).pruning() for name in "abcd"} == {  # for the report
        "a": (), "b": ("sparsity 0.3",), "c": ("sparsity 0.3",), "d": ("base_sparsity 0.1", "sparsity 0.5")}
    looks = {group.first.folder.name: common.look(group, groups) for group in groups}
    assert looks["a"] == common.LOOKS[common.DER]                    # the only ones of its method: not hollow
    assert looks["b"] == looks["c"] == common.LOOKS[common.DER_PRUNED] != looks["d"]
    for name, config in (("c", {}), ("d", {"base_sparsity": 0.1})):
        make_run(tmp_path / "two" / name, "B50-Inc10", pruned=True, config=config)
    variants = {group.first.folder.name: group.variant for group in runs.grouped(runs.load_runs(tmp_path / "two"))}
    assert variants == {"c": (), "d": ("base_sparsity 0.1",)}


def test_runs_from_before_augmentation_was_a_setting_had_todays(tmp_path):
    todays = {"shift": 4, "flip": True, "brightness": 63}
    for name, config in (("old", {}), ("new", todays), ("other", {"flip": False})):
        make_run(tmp_path / name, config=config)
    groups = runs.grouped(runs.load_runs(tmp_path))
    assert {group.variant: [run.folder.name for run in group.runs] for group in groups} == {
        ("flip True",): ["new", "old"], ("flip False",): ["other"]}


def test_five_settings_of_one_method_have_five_looks(tmp_path):
    for sparsity in range(1, 6):
        make_run(tmp_path / str(sparsity), pruned=True, config={"sparsity": sparsity})
    groups = runs.grouped(runs.load_runs(tmp_path))
    assert len({str(common.look(group, groups)) for group in groups}) == 5


def test_two_profiles_are_told_apart_by_name(tmp_path, monkeypatch):
    """A dozen settings follow from it and would fill the legend; where runs of one profile differ, that is named."""
    make_run(tmp_path / "a", config={"batch": 32, "views": 10})
    make_run(tmp_path / "b", config={"batch": 128, "views": 0, "epochs": 8}, profile="paper")
    groups, figures = runs.grouped(runs.load_runs(tmp_path)), []
    assert [group.variant for group in groups] == [("profile fast", "4 epochs a step"),
                                                   ("profile paper", "8 epochs a step")]
    log = [dict(step=t + 1, stage=1, epoch=e + 1, classification=1, auxiliary=1) for t in range(3) for e in range(8)]
    (tmp_path / "b" / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log))
    monkeypatch.setattr(common, "finish", lambda fig, *args: figures.append(fig))
    figure5.draw(runs.load_runs(tmp_path), tmp_path)
    ax = figures[0].axes[-1]                                       # one colour, for one method: the lines must differ
    assert len({line.get_linestyle() for line in ax.lines if line.get_label().startswith("ours")}) == 2
    assert "ours: DER, profile fast, 4 epochs a step" in ax.get_xlabel()                # whose epochs are counted
    make_run(tmp_path / "c", config={"batch": 64, "views": 10})
    assert sorted(group.variant for group in runs.grouped(runs.load_runs(tmp_path))) == [
        ("profile fast", "4 epochs a step", "batch 32"), ("profile fast", "4 epochs a step", "batch 64"),
        ("profile paper", "8 epochs a step")]


def test_the_recipe_of_a_run_is_in_its_words(tmp_path):
    """Two that differ in it stand apart, and each difference is named once."""
    for name, first, smoothing in (("a", 60, 0.1), ("b", 120, 0.0)):
        make_run(tmp_path / name, config={"first_epochs": first, "label_smoothing": smoothing})
    groups = runs.grouped(runs.load_runs(tmp_path))
    epochs = groups[0].first.config["epochs"]
    assert sorted(group.variant for group in groups) == [
        ("first_epochs 120",), ("label smoothing 0.1", "first_epochs 60")]
    captions = [common.caption([group]).replace(common.NO_BREAK, " ") for group in groups]
    assert sum("label smoothing 0.1" in text for text in captions) == 1
    assert sum(f"{epochs} epochs a step, 120 the first of B0" in text for text in captions) == 1
    assert "the first of" not in common.caption(groups).replace(common.NO_BREAK, " ")
    for more in (0, 1):
        make_run(tmp_path / "more" / str(more), config={"first_epochs": 60, "epochs": epochs + more})
    text = common.caption(runs.grouped(runs.load_runs(tmp_path / "more"))).replace(common.NO_BREAK, " ")
    assert "60 epochs the first of B0" in text and "epochs a step" not in text    # what is counted is said either way


def test_the_protocols_of_one_profile_are_one_row(tmp_path):
    """Whatever their first steps are: B50's is another one than B0's in any profile."""
    for protocol in ("B0-Inc5", "B0-Inc10", "B50-Inc10"):
        of_base = int(protocol == "B50-Inc10")
        make_run(tmp_path / protocol, protocol, pruned=True, config={"first_epochs": 120, "base_epochs": 60 * of_base,
                                                                     "base_sparsity": 0.1 * of_base})
    assert plot("tables.py", tmp_path).returncode == 0
    rows = [line for line in (tmp_path / "table1.md").read_text().splitlines() if "ours" in line]
    assert len(rows) == 1 and "not run" not in rows[0]
    report = (tmp_path / "report.md").read_text().replace("\N{NO-BREAK SPACE}", " ")
    assert "epochs a step, 120 the first of B0, 60 the first of B50, order" in report


def test_an_average_is_rounded_once(tmp_path):
    """results.json has 70.05 for 70.055: a figure with one decimal must not make 70.0 of it."""
    make_run(tmp_path / "a", steps=2, done=2, accuracy=[70.05, 70.06], average=70.05)
    assert f"{runs.load_run(tmp_path / 'a').results['average']:.1f}" == "70.1"


def test_table_2_has_the_average_before_stage_2(tmp_path):
    make_run(tmp_path / "a", accuracy_stage1=[90.0, 80.0, 71.0])
    assert plot("tables.py", tmp_path).returncode == 0
    head, _, _, _, der = (line.split(" | ") for line in (tmp_path / "table2.md").read_text().splitlines()[:5])
    assert der[head.index("before stage 2")] == "80.33" and der[head.index("ours: average")] == "84.50"


def test_table_2_has_a_pruned_run_where_there_is_no_other(tmp_path):
    make_run(tmp_path / "a", pruned=True, average=70.0, accuracy=[75.0, 70.0, 65.0])
    make_run(tmp_path / "b", pruned=True, auxiliary=False)
    make_run(tmp_path / "c", auxiliary=False)
    assert plot("tables.py", tmp_path).returncode == 0
    _, _, neither, no_auxiliary, der, *more = (tmp_path / "table2.md").read_text().splitlines()
    assert "pruned" in der and "70.00" in der and not any(line.startswith("|") for line in more)
    assert "not run" in neither and "84.50" in no_auxiliary and "pruned" not in no_auxiliary


def test_each_method_has_a_marker_and_a_line_of_its_own():
    """Of those that a mode of run_cifar100.sh puts into one figure; else prints in grey cannot be read."""
    methods = [(True, auxiliary, pruned) for auxiliary in (True, False) for pruned in (True, False)]
    looks = [common.LOOKS[method] for method in (*methods, common.NO_EXPANSION)]
    looks += [common.LOOKS[name] for name in (common.PAPER, common.PAPER_PRUNED, common.REPORT)]
    assert len({look["marker"] for look in looks}) == len({look["color"] for look in looks}) == len(looks) == 8
    looks.append(common.LOOKS[common.NO_EXPANSION_AUXILIARY])  # train.py can be told so
    assert len({look["marker"] for look in looks}) == len({look["color"] for look in looks}) == len(looks) == 9


def test_reference_numbers():
    curves = common.REFERENCE["paper"]["curves"]
    assert round(sum(curves["B0-Inc10"]["DER (w/o pruning)"]) / 10, 2) == 75.36
    assert {name: len(curve) for name, curve in common.REFERENCE["report"]["curves"].items()} == \
        {"B0-Inc5": 20, "B0-Inc10": 10, "B50-Inc10": 6}
    losses = common.REFERENCE["report_losses"]
    assert len(losses["classification"]) == len(losses["auxiliary"]) == 3 * 170


@pytest.mark.parametrize("damage, line", [
    (lambda path: path.write_text("{"), "not readable as JSON"),
    (lambda path: path.write_text("[]"), "not a JSON object"),
    (lambda path: path.write_bytes(b"\xff\xfe"), "unreadable"),
    (lambda path: path.write_text(path.read_text().replace('"last"', '"lost"')), "'last' is missing"),
    (lambda path: path.write_text(path.read_text().replace("[60.0, 60.0, 60.0]", "[60.0]")), "'seconds' has 1 entries"),
    (lambda path: path.write_text(path.read_text().replace("[60.0, 60.0, 60.0]", "[60.0, NaN, 60.0]")), "not a number"),
    (lambda path: path.write_text(path.read_text().replace('"last"', '"last": NaN, "was"')), "'last' is nan"),
    (lambda path: path.write_text(path.read_text().replace('"last"', '"kept": [{}, {}, {}], "last"')), "'kept' is not"),
    (lambda path: path.write_text(path.read_text().replace('"last"', '"kept": [1, 2, 3], "last"')), "'kept' is not"),
    (lambda path: path.write_text(path.read_text().replace('"last"', '"resumed_on": ["here"], "last"')),
     "'resumed_on' is not a list of machines"),
    (lambda path: path.with_name("config.json").write_text('{"epochs": 4, "validation": 0, "label_smoothing": "x"}'),
     "'label_smoothing' is 'x', not of the type it should be"),
    (lambda path: path.unlink(), "no run in it has a results.json"),
])
def test_damaged_results(damage, line, tmp_path):
    make_run(tmp_path / "a")
    damage(tmp_path / "a" / "results.json")
    done = plot("figure6.py", tmp_path)
    assert done.returncode == 2 and line in done.stderr and done.stderr.count("\n") == 1
    assert not (tmp_path / "figure6.png").exists()


def test_no_folder(tmp_path):
    done = plot("figure4.py", tmp_path / "nothing")
    assert done.returncode == 2 and "no such folder" in done.stderr and done.stderr.count("\n") == 1
