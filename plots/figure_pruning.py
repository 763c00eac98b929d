"""What pruning saves: parameters, latency, accuracy and kept channels over the steps; all but the last in a table.

    python plots/figure_pruning.py FOLDER [--out DIR]

Drawn from every run's results.json (parameters, parameters_unpruned, ms_per_image, accuracy, kept) and config.json (the
machine), a row of panels for each protocol that has a pruned run; without one nothing is drawn. Latencies of two kinds
of machine are not drawn in one panel.
"""
import matplotlib.pyplot as plt

import common
from runs import grouped

PANELS = (("parameters", "parameters (million)", 1e-6), ("ms_per_image", "latency (ms an image)", 1),
          ("accuracy", "top-1 accuracy (%)", 1))


def compared(groups):
    """Groups -> those of the whole DER, pruned and not, of every protocol that has a pruned one."""
    protocols = [group.protocol for group in groups if group.method == common.DER_PRUNED]
    return [group for group in groups if group.protocol in protocols
            and group.method in (common.DER, common.DER_PRUNED)]


def panel(ax, key, label, scale, groups, everything):
    """One quantity of a protocol's groups over the classes seen; of parameters, what they would be unpruned, too."""
    drawn = groups if key != "ms_per_image" else comparable(groups)
    for group in drawn:
        common.curve(ax, group, key, everything, scale)
    if key == "parameters" and all(group.method == common.DER_PRUNED for group in groups):
        ax.plot(groups[0].first.results["classes_seen"], groups[0].of("parameters_unpruned")[0] * scale,
                label="without pruning (counted)", color="#8c8c8c", ls="--", lw=1)
    ax.set_ylabel(label)
    if key == "ms_per_image":
        text = drawn[0].machines()[0] if drawn else "several machines: see the table"
        text += "; others: see the table" if 0 < len(drawn) < len(groups) else ""
        ax.set_title(common.balanced(text, 40), fontsize=6.5)
    if key != "accuracy" and drawn:
        ax.set_ylim(0, 1.08 * ax.dataLim.y1)
    ax.xaxis.get_major_locator().set_params(integer=True)


def comparable(groups):
    """The groups all from the machine of the first pruned one: latencies of two say nothing about pruning."""
    machines = next(group.machines() for group in groups if group.method == common.DER_PRUNED)
    return [group for group in groups if group.machines() == machines and len(machines) == 1]


def kept_panel(ax, groups):
    """The first pruned group's share of channels kept, in the mean of each stage's masks, and that of the features."""
    group, *more = [group for group in groups if group.method == common.DER_PRUNED]
    kept, seen = group.first.results.get("kept", []), group.first.results["classes_seen"]
    for stage, marker in enumerate("osD^"):
        shares = [[share for name, share in masks.items() if name.startswith(f"stage{stage}")] for masks in kept]
        ax.plot(seen[:len(shares)], [100 * sum(row) / len(row) for row in shares], marker=marker, ms=3.5, lw=1.2,
                color=plt.get_cmap("viridis")(stage / 3.5), label=f"blocks, group {stage + 1}")
    features = [100 * masks.get("stage3", float("nan")) for masks in kept]
    ax.plot(seen[:len(features)], features, color="#000000", ls="--", lw=1, label="features alone")
    ax.set(ylabel="channels kept (%)", ylim=(0, 104))
    if more:
        ax.set_title(common.balanced(", ".join(group.variant) or common.describe(group), 40), fontsize=6.5)
    ax.xaxis.get_major_locator().set_params(integer=True)


def table(groups):
    """The numbers as Markdown, a row a step and group."""
    rows = []
    for group in groups:
        columns = [group.of(key)[0] for key in ("parameters", "parameters_unpruned", "ms_per_image", "accuracy")]
        rows += [f"| {common.label(group)} | {group.protocol} | {seen} | {p / 1e6:.3f} | {100 * p / full:.1f} | "
                 f"{top1:.2f} | {ms:.2f} | {' and '.join(group.machines())} |\n"
                 for seen, p, full, ms, top1 in zip(group.first.results["classes_seen"], *columns)]
    head = "| | protocol | classes seen | parameters (M) | % of unpruned | accuracy (%) | ms an image | machine |\n"
    return head + "| --- | --- | --: | --: | --: | --: | --: | --- |\n" + "".join(rows)


def draw(runs, out):
    """Runs of one data set -> figure_pruning.png, figure_pruning.pdf and table_pruning.md in out."""
    groups = compared(grouped(runs))
    if not groups:
        return common.nothing("figure_pruning.py: no pruned run here", out, "figure_pruning.png", "figure_pruning.pdf",
                              "table_pruning.md")
    protocols = common.protocols(groups, cifar=False)  # those alone that have a pruned run
    fig, rows = plt.subplots(len(protocols), 4, figsize=(9.6, 0.5 + 2.1 * len(protocols)), layout="constrained",
                             squeeze=False, sharex="row")
    fig.suptitle(common.title(runs), fontsize=9)
    for axes, protocol in zip(rows, protocols):
        these = [group for group in groups if group.protocol == protocol]
        for ax, (key, label, scale) in zip(axes, PANELS):
            panel(ax, key, label, scale, these, groups)
        kept_panel(axes[3], these)
        axes[0].set_title(protocol, loc="left", fontweight="bold")
    for ax in rows[-1]:
        ax.set_xlabel("classes seen")
    common.finish(fig, common.caption(groups), out, "figure_pruning")
    common.write_text(out / "table_pruning.md", table(groups))


if __name__ == "__main__":
    common.command(draw, __doc__)
