"""Figure 5: the losses of stage 1 over the first three steps of B0-Inc5, epoch by epoch.

    python plots/figure5.py FOLDER [--out DIR]

Drawn from log.jsonl (classification, auxiliary and, of pruned runs, sparsity) and, for CIFAR-100's B0-Inc5, from
reference.json ("report_losses"). Without a B0-Inc5 run: the B0 protocol with the smallest increment. Of several orders
or seeds the first run is drawn. Every step is one unit wide, whatever its number of epochs, so that short and long
schedules lie side by side; the axes below and above count the epochs of ours (where they differ: of the one that is
named) and of the report.
"""
import matplotlib.pyplot as plt

import common
from runs import NUMBER, Group, damaged, grouped, is_a, protocol_order

PARTS = {"classification": "classification loss", "auxiliary": "auxiliary loss", "sparsity": "sparsity loss"}
STEPS = 3
REPORTED = common.REFERENCE["report_losses"]


def chosen(runs):
    """Runs -> groups of the one protocol to draw, one run each: the whole DER, pruned and not, if there is any."""
    runs = [run for run in runs if run.method in (common.DER, common.DER_PRUNED)] or runs
    best = min((run.protocol for run in runs), key=lambda name: (name != REPORTED["protocol"], protocol_order(name)))
    return [Group([g.first], g.variant) for g in grouped([run for run in runs if run.protocol == best])]


def our_losses(run):
    """Run -> for each of its first steps, the log's lines of stage 1 in order of epochs."""
    rows = [row for row in run.log() if row["stage"] == 1 and 1 <= row["step"] <= min(STEPS, run.done)]
    for row in rows:
        if row["epoch"] < 1 or not all(is_a(row.get(part, 0), NUMBER) for part in PARTS):
            raise damaged(run.folder / "log.jsonl", f"a loss or the number of epoch {row['epoch']} makes no sense")
    steps = [sorted((row for row in rows if row["step"] == step), key=lambda row: row["epoch"])
             for step in range(1, min(STEPS, run.done) + 1)]
    if not all(steps):
        raise damaged(run.folder / "log.jsonl", f"step {steps.index([]) + 1} is in the results, but not in the log")
    return steps


def report_losses():
    """The report's losses in the form of our_losses."""
    epochs = REPORTED["epochs_per_step"]
    rows = [dict(epoch=i % epochs + 1, classification=c) | (dict(auxiliary=a) if a else {})  # 0: not trained with it
            for i, (c, a) in enumerate(zip(REPORTED["classification"], REPORTED["auxiliary"]))]
    return [rows[start:start + epochs] for start in range(0, len(rows), epochs)]


def draw_losses(ax, part, steps, label, **look):
    """A line for each step that has this part in its loss; x = steps before + epoch / epochs of the step."""
    for i, rows in enumerate(steps):
        points = [(i + row["epoch"] / rows[-1]["epoch"], row[part]) for row in rows if part in row]
        if points:
            ax.plot(*zip(*points), label=label, **look)


def mark_epochs(axis, steps):
    """Count the epochs of each step (as from our_losses) on an x axis, at most four numbers to a step."""
    marks = []
    for i, rows in enumerate(steps):
        count = rows[-1]["epoch"]
        spacing = next(n for n in (1, 2, 5, 10, 20, 50, 100, 200, 500, count) if count / n <= 4.5)
        marks += [(i + epoch / count, str(epoch)) for epoch in range(spacing, count + 1, spacing)]
    axis.set_ticks(*zip(*marks), fontsize=7)


def name_steps(ax, group):
    """Which step lies where, and how many classes it has seen."""
    seen = group.first.results["classes_seen"]
    for i in range(min(STEPS, group.total)):
        words = f"{seen[i]} classes" if i < group.done else "not done yet"
        ax.text(i + 0.5, 0.94, f"step {i + 1}: {words}", transform=ax.get_xaxis_transform(), ha="center", va="top")


def frame(axes, parts, groups, losses, total, compare):
    """Scales of epochs (the first group's), lines between the steps, and what the axes mean."""
    mark_epochs(axes[-1].xaxis, losses[0])
    alike = len({tuple(rows[-1]["epoch"] for rows in steps) for steps in losses}) == 1
    axes[-1].set(xlim=(0, total), xlabel=f"epoch of the step, {'ours' if alike else common.label(groups[0])}"
                                         " (every step drawn equally wide)")
    if compare:
        above = axes[0].secondary_xaxis("top")
        mark_epochs(above.xaxis, report_losses())
        above.set_xlabel("epoch of the step, report")
    for ax, part in zip(axes, parts):
        top = ax.dataLim.y1 or 1  # a first step of one class has no loss
        ax.set(ylabel=PARTS[part], ylim=(0, top * (1.2 if ax is axes[0] else 1.05)))  # room for the names
        ax.grid(axis="x", visible=False)
        for i in range(1, total):
            ax.axvline(i, color="#555555", lw=0.8, ls=(0, (4, 2)))
        if part == "auxiliary":
            ax.text(0.5, 0.5, "none at step 1", transform=ax.get_xaxis_transform(), ha="center", style="italic",
                    color="#555555")


def draw(runs, out):
    """Runs of one data set -> figure5.png, figure5.pdf in out."""
    runs = [run for run in runs if (run.folder / "log.jsonl").exists()]
    if not runs:
        return common.nothing("figure5.py: none of these runs has a log.jsonl", out, "figure5.png", "figure5.pdf")
    groups = sorted(chosen(runs), key=lambda group: -min(group.done, STEPS))  # the first names steps and epochs
    losses = [our_losses(group.first) for group in groups]
    compare = common.on_cifar(runs) and groups[0].protocol == REPORTED["protocol"]
    parts = [part for part in PARTS
             if part == "classification" or any(part in row for steps in losses for rows in steps for row in rows)]
    fig, axes = plt.subplots(len(parts), figsize=(7.2, 0.7 + 1.75 * len(parts)), sharex=True, layout="constrained",
                             squeeze=False)
    fig.suptitle(f"{common.title(runs)}, {groups[0].protocol}", fontsize=9)
    for ax, part in zip(axes[:, 0], parts):
        if compare and part in REPORTED:
            color = common.LOOKS[common.REPORT]["color"]
            draw_losses(ax, part, report_losses(), common.REPORT, color=color, lw=1, alpha=0.75)
        for group, steps in zip(groups, losses):
            look = {key: value for key, value in common.look(group, groups).items() if key in ("color", "ls", "alpha")}
            if group.method == common.DER_PRUNED and look["ls"] == "-":
                look["ls"] = (0, (4, 1))
            draw_losses(ax, part, steps, common.label(group), **look, lw=1.3)
    frame(axes[:, 0], parts, groups, losses, min(STEPS, groups[0].total), compare)
    name_steps(axes[0, 0], groups[0])
    smoothed = any(group.first.config.get("label_smoothing") for group in groups)
    text = " Ours is trained with label smoothing, which keeps its losses above 0." if smoothed else ""
    common.finish(fig, common.caption(groups) + text, out, "figure5")


if __name__ == "__main__":
    common.command(draw, __doc__)
