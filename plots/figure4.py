"""Figure 4: top-1 accuracy over the classes seen, a panel a protocol, ours with the paper's and the report's curves.

    python plots/figure4.py FOLDER [--out DIR]

Drawn from every run's results.json (classes_seen, accuracy) and from reference.json ("paper", "report").
"""
import matplotlib.pyplot as plt

import common
from runs import grouped, protocol_order


def classes_after(protocol, steps):
    """"B50-Inc10", 3 -> [50, 60, 70]."""
    base, increment = protocol_order(protocol)
    return [(base or increment) + increment * step for step in range(steps)]


def panel(ax, protocol, groups, references):
    """Draw one protocol: published curves, ours above them; below all of them the bands of averaged runs."""
    for name, accuracy in references.items():
        ax.plot(classes_after(protocol, len(accuracy)), accuracy, label=name, **common.LOOKS[name])
    ours = [group for group in groups if group.protocol == protocol]
    for order, group in enumerate(ours):                           # the whole DER, which is the first, on top
        common.curve(ax, group, "accuracy", groups, zorder=3 - order / 10)
    notes = ["report: " + common.NOT_B50] * bool(references and protocol == "B50-Inc10")
    notes += ["ours: not run"] * (not ours)
    ax.text(0.03, 0.03, "\n".join(notes), transform=ax.transAxes, style="italic", fontsize=7.5, color="#555555")
    ax.set(title=protocol, xlabel="classes seen")
    ax.xaxis.get_major_locator().set_params(integer=True)


def grid(count, title):
    """count -> figure and its axes, three in a row, one scale for all."""
    rows, columns = -(-count // 3), min(3, count)
    fig, axes = plt.subplots(rows, columns, figsize=(max(4.2, 2.6 * columns + 0.4), 2.9 * rows), sharey=True,
                             squeeze=False, layout="constrained")
    fig.suptitle(title, fontsize=9)
    for ax in axes.flat[count:]:
        ax.remove()
    for ax in axes[:, 0]:
        ax.set_ylabel("top-1 accuracy (%)")
    return fig, axes.flat[:count]


def draw(runs, out):
    """Runs of one data set -> figure4.png, figure4.pdf in out."""
    groups, cifar = grouped(runs), common.on_cifar(runs)
    protocols = common.protocols(groups, cifar)
    fig, axes = grid(len(protocols), common.title(runs))
    for ax, protocol in zip(axes, protocols):
        panel(ax, protocol, groups, common.published(protocol, groups) if cifar else {})
    text = " Paper and report: width 64, 170 epochs a step; paper: mean of three orders." if cifar else ""
    common.finish(fig, common.caption(groups) + text, out, "figure4")


if __name__ == "__main__":
    common.command(draw, __doc__)
