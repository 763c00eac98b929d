"""What pruning costs: accuracy against the share of parameters that is left, a point for each lambda_s.

    python plots/figure_tradeoff.py FOLDER [--out DIR]

Drawn from every run's results.json (parameters, parameters_unpruned, average) and config.json (sparsity). Of the whole
DER, the runs that differ in lambda_s alone, three or more; the unpruned one beside them where it is there.
"""
import matplotlib.pyplot as plt

import common
from runs import grouped


def alike(group):
    """All that two points of the curve must share."""
    return group.protocol, group.done, tuple(words for words in group.variant if not words.startswith("sparsity "))


def curve(groups):
    """Groups -> the longest row of pruned ones that differ in lambda_s alone, by lambda_s; and the unpruned one."""
    rows = {}
    for group in groups:
        if group.method == common.DER_PRUNED and "sparsity" in group.first.config:
            rows.setdefault(alike(group), []).append(group)
    points = max(rows.values(), key=len, default=[])
    whole = [group for group in groups if group.method == common.DER and points and alike(group) == alike(points[0])]
    return sorted(points, key=sparsity), whole


def sparsity(group):
    """The lambda_s of a group's runs."""
    return group.first.config["sparsity"]


def left(group):
    """Parameters left after the last step done, in % of what they would be without pruning."""
    return 100 * (group.of("parameters")[0] / group.of("parameters_unpruned")[0])[-1]


def draw(runs, out):
    """Runs of one data set -> figure_tradeoff.png and figure_tradeoff.pdf in out."""
    points, whole = curve(grouped(runs))
    if len(points) < 3:
        return print("figure_tradeoff.py: no three pruned runs that differ in --sparsity alone, nothing to draw")
    fig, ax = plt.subplots(figsize=(4.4, 3.2), layout="constrained")
    shares, accuracy = [left(group) for group in points], [group.of("average")[0] for group in points]
    ax.plot(shares, accuracy, label="ours: DER, pruned", **common.LOOKS[common.DER_PRUNED])
    for group, x, y in zip(points, shares, accuracy):
        ax.annotate(f"$\\lambda_s$ = {sparsity(group):g}", (x, y), (3, -9), textcoords="offset points", fontsize=7)
    for group in whole:
        ax.axhline(group.of("average")[0], label="ours: DER, not pruned", color="#0072B2", ls="--", lw=1)
    ax.set(xscale="log", xlabel=f"parameters left after {points[0].first.results['classes_seen'][-1]} classes (%)",
           ylabel="average top-1 accuracy (%)", title=f"{common.title(runs)}, {points[0].protocol}")
    ax.xaxis.set_major_formatter("{x:g}")
    common.finish(fig, common.caption(points + whole), out, "figure_tradeoff")


if __name__ == "__main__":
    common.command(draw, __doc__)
