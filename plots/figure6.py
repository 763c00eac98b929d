"""Figure 6: average accuracy of all the methods of Table 1, grouped by protocol.

    python plots/figure6.py FOLDER [--out DIR]

Drawn from every run's results.json (average) and, on CIFAR-100, from reference.json ("table1"). A run that has not done
all its steps gets no bar: its average is over fewer and easier steps.
"""
import matplotlib.pyplot as plt
from matplotlib.colors import to_rgb

import common
from runs import grouped

# Light to dark, with hatches, so that neighbours differ in a grey print as well.
PUBLISHED = {"iCaRL": ("#f2f2f2", ""), "UCIR": ("#e0e0e0", "////"), "BiC": ("#cccccc", ""),
             "WA": ("#b8b8b8", "\\\\\\\\"), "PODNet": ("#9e9e9e", ""), "DER (paper)": ("#202020", ""),
             "Report": (common.LOOKS[common.REPORT]["color"], "....")}
HATCHES = {common.DER: "", common.DER_PRUNED: "////", (True, False, False): "....",
           common.NO_EXPANSION_AUXILIARY: "xxxx"}
NOT_RUN = "ours: not run"


def published_series(protocols):
    """Table 1 -> list of (label, style, {protocol: (mean, low, high)})."""
    table, known = common.REFERENCE["table1"]["methods"], common.REFERENCE["protocols"]
    return [(name, dict(color=color, hatch=hatch),
             {p: (table[name][known.index(p)],) * 3 for p in protocols if p in known})
            for name, (color, hatch) in PUBLISHED.items()]


def our_series(groups):
    """Groups -> list of (label, style, {protocol: (mean, low, high), or words}); other settings, a paler bar."""
    series = {}
    for group in groups:
        pale = min(0.7, 0.35 * common.rank(group, groups))
        color = [1 - (1 - part) * (1 - pale) for part in to_rgb(common.look(group, groups)["color"])]
        style = dict(color=color, hatch=HATCHES.get(group.method, "\\\\\\\\"))
        bars = series.setdefault(common.legend_label(group), (style, {}))[1]
        bars[group.protocol] = group.of("average") if group.finished else f"{group.done} of {group.total} steps"
    return [(label, style, bars) for label, (style, bars) in series.items()]


def in_place(protocol, series):
    """Series -> list of (value, style, mark) of one protocol, left to right; at the end, that ours is not there."""
    values = [(bars[protocol], style, "*\n" * (label == "Report" and protocol == "B50-Inc10"))
              for label, style, bars in series if protocol in bars]
    ours = any(protocol in bars for label, _, bars in series if label.startswith("ours"))
    return values if ours else values + [(NOT_RUN, {}, "")]


def draw_bar(ax, x, width, value, style, mark):
    """One bar with its number and, over several runs, its span; or the word why there is none."""
    if isinstance(value, str):
        ax.text(x, 1.5, value, rotation=90, ha="center", va="bottom", fontsize=6.5, color="#555555")
        return
    mean, low, high = value
    ax.bar(x, mean, width * 0.92, edgecolor="black", linewidth=0.5, **style)
    if high > low:
        ax.errorbar(x, mean, [[mean - low], [high - mean]], color="black", lw=0.8, capsize=2)
    ax.text(x, high + 0.8, f"{mark}{mean:.1f}", ha="center", va="bottom", fontsize=6.5, linespacing=0.8)


def draw_bars(ax, protocols, series):
    """The bars of each protocol side by side around its place, all of one width."""
    places = [in_place(protocol, series) for protocol in protocols]
    width = 0.88 / max(5, *map(len, places))
    for label, style, _ in series:
        ax.bar(0, 0, label=label, edgecolor="black", linewidth=0.5, **style)                    # for the legend
    for i, bars in enumerate(places):
        for j, (value, style, mark) in enumerate(bars):
            draw_bar(ax, i + (j - (len(bars) - 1) / 2) * width, width, value, style, mark)
    ax.set_xticks(range(len(protocols)), protocols)
    ax.tick_params(axis="x", length=0, labelsize=9)
    ax.grid(axis="x", visible=False)
    ax.set(ylabel="average accuracy (%)", xlim=(-0.5, len(protocols) - 0.5), ylim=(0, 1.06 * ax.dataLim.y1 or 100))


def draw(runs, out):
    """Runs of one data set -> figure6.png, figure6.pdf in out."""
    cifar = common.on_cifar(runs)
    groups = [group for group in grouped(runs) if not cifar or group.method in (common.DER, common.DER_PRUNED)]
    protocols = common.protocols(groups, cifar)
    series = (published_series(protocols) if cifar else []) + our_series(groups)
    fig, ax = plt.subplots(figsize=(8.2, 2.9), layout="constrained")
    fig.suptitle(common.title(runs), fontsize=9)
    draw_bars(ax, protocols, series)
    text = f" *The report's B50-Inc10 is {common.NOT_B50}." if cifar else ""
    common.finish(fig, common.caption(groups) + text, out, "figure6", ours_first=False)


if __name__ == "__main__":
    common.command(draw, __doc__)
