"""What pruning costs: accuracy against the share of parameters that is left, a point for each lambda_s.

    python plots/figure_tradeoff.py FOLDER [--out DIR]

Drawn from every run's results.json (parameters, parameters_unpruned, accuracy) and config.json (sparsity), where three
or more pruned runs with as many steps done differ in lambda_s alone; with them the unpruned run, if it got as far.
"""
import matplotlib.pyplot as plt
from matplotlib.ticker import LogFormatter

import common
from runs import NUMBER, PRUNING, grouped, is_a


def sparsity(group):
    """The lambda_s of a group's runs."""
    return group.first.config.get("sparsity")


def rest(group, apart):
    """All that makes two groups comparable, apart from the settings named: protocol, settings, orders and seeds."""
    words = tuple(words for words in group.variant if words.split(" ")[0] not in apart)
    return group.protocol, words, tuple(sorted((str(run.results["order"]), run.results["seed"]) for run in group.runs))


def curve(groups):
    """Groups -> the pruned ones that differ in lambda_s alone (most points, then most steps), and the unpruned one."""
    rows = {}
    for group in groups:
        if group.method == common.DER_PRUNED and is_a(sparsity(group), NUMBER):
            rows.setdefault((group.done, rest(group, {"sparsity"})), []).append(group)
    points = sorted(max(rows.values(), key=lambda row: (len(row), row[0].done), default=[]), key=sparsity)
    return points, [group for group in groups if points and group.method == common.DER and group.done >= points[0].done
                    and rest(group, PRUNING) == rest(points[0], PRUNING)]


def share_left(group):
    """Parameters left after the last step done, in % of what they would be without pruning."""
    return 100 * (group.of("parameters")[0] / group.of("parameters_unpruned")[0])[-1]


def draw(runs, out):
    """Runs of one data set -> figure_tradeoff.png and figure_tradeoff.pdf in out."""
    points, unpruned = curve(grouped(runs))
    if len(points) < 3:
        return common.nothing("figure_tradeoff.py: no three pruned runs here that differ in --sparsity alone", out,
                              "figure_tradeoff.png", "figure_tradeoff.pdf")
    fig, ax = plt.subplots(figsize=(4.4, 3.2), layout="constrained")
    shares = [share_left(group) for group in points]
    mean, low, high = zip(*(group.of("average") for group in points))
    ax.plot(shares, mean, label=f"ours: {common.name(common.DER_PRUNED)}", **common.LOOKS[common.DER_PRUNED])
    ax.vlines(shares, low, high, color=common.LOOKS[common.DER_PRUNED]["color"])
    for group, x, y in zip(points, shares, mean):
        ax.annotate(f"$\\lambda_s$ = {sparsity(group):g}", (x, y), (0, -11), textcoords="offset points", ha="center",
                    fontsize=7)
    for group in unpruned:
        ax.axhline(group.of("accuracy")[0][:points[0].done].mean(), color=common.LOOKS[common.DER]["color"], ls="--",
                   lw=1, label=f"ours: {common.name(common.DER)}")
    ax.margins(0.1, 0.15)
    ax.set(xscale="log", xlabel=f"parameters left after {points[0].first.results['classes_seen'][-1]} classes (%)",
           ylabel="average top-1 accuracy (%)", title=f"{common.title(runs)}, {points[0].protocol}")
    ax.xaxis.set_major_formatter("{x:g}")
    ax.xaxis.set_minor_formatter(LogFormatter(labelOnlyBase=False, minor_thresholds=(1, 0.4)))
    common.finish(fig, common.caption(points, unfinished=False), out, "figure_tradeoff")


if __name__ == "__main__":
    common.command(draw, __doc__)
