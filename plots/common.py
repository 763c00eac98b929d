"""What every figure and table shares: names and looks, captions, files written whole, the command line."""
import argparse
import json
import os
import textwrap
from pathlib import Path

import matplotlib
matplotlib.use("Agg")                                  # draws into files, needs no screen
import matplotlib.pyplot as plt

from runs import Bad, load_runs

REFERENCE = json.loads((Path(__file__).parent / "reference.json").read_text(encoding="utf-8"))
NO_BREAK = "\N{NO-BREAK SPACE}"
NOT_B50 = "not a 50-class first step"                  # the report's B50-Inc10: reference.json says why
PAPER, PAPER_PRUNED, REPORT = "paper: DER w/o pruning", "paper: DER, pruned", "report"
DER, DER_PRUNED = (True, True, False), (True, True, True)        # methods: (expansion, auxiliary, pruned)
NO_EXPANSION, NO_EXPANSION_AUXILIARY = (False, False, False), (False, True, False)

# Okabe and Ito's colours, safe for colour-blind eyes; each has a marker and a line of its own for prints in grey.
LOOKS = {
    DER: dict(color="#0072B2", ls="-", marker="o", lw=1.8, ms=4),
    DER_PRUNED: dict(color="#D55E00", ls="-", marker="s", lw=1.6, ms=3.6),
    (True, False, False): dict(color="#CC79A7", ls="--", marker="P", lw=1.2, ms=4),
    (True, False, True): dict(color="#56B4E9", ls=":", marker="p", lw=1.2, ms=4),
    NO_EXPANSION: dict(color="#8c8c8c", ls="-", marker="X", lw=1.0, ms=4, alpha=0.8),
    NO_EXPANSION_AUXILIARY: dict(color="#5a5a5a", ls=":", marker="*", lw=1.2, ms=5),
    PAPER: dict(color="#000000", ls="--", marker="^", lw=1.0, ms=4, mfc="white", mew=0.8),
    PAPER_PRUNED: dict(color="#009E73", ls="-.", marker="v", lw=1.0, ms=4, mfc="white", mew=0.8),
    REPORT: dict(color="#E69F00", ls=(0, (1, 1)), marker="D", lw=1.4, ms=3.2, mfc="white", mew=0.8),
}
VARIANTS = [dict(), dict(mfc="white", ls=(0, (6, 1.5))), dict(mfc="white", ls=(0, (3, 1, 1, 1)), alpha=0.6),
            dict(ls=(0, (1, 1)), alpha=0.6), dict(mfc="white", ls="-", alpha=0.4)]
FONT = {"font.size": 8, "axes.titlesize": 9, "axes.labelsize": 8.5, "legend.fontsize": 8, "legend.frameon": False,
        "axes.spines.top": False, "axes.spines.right": False, "axes.linewidth": 0.7, "axes.grid": True,
        "grid.color": "#e0e0e0", "grid.linewidth": 0.5, "axes.axisbelow": True, "pdf.fonttype": 42}


def on_cifar(runs):
    """Whether the published numbers may stand beside these runs."""
    return runs[0].results["dataset"] == "CIFAR-100"


def title(runs):
    """The data set, in words that nobody takes for CIFAR-100 where it is another."""
    data = runs[0].results["dataset"].replace("$", r"\$")  # a pair of $ would be a formula
    classes = runs[0].results["num_classes"]
    return data if on_cifar(runs) else f"{data} data, {classes} classes (not CIFAR-100)"


def protocols(groups, cifar):
    """The protocols to show, in order: on CIFAR-100 the report's three, then whatever else was run."""
    return list(dict.fromkeys((REFERENCE["protocols"] if cifar else []) + [group.protocol for group in groups]))


def published(protocol, groups):
    """CIFAR-100 protocol -> {name: accuracies}; the paper's pruned curve only where one of our groups is pruned."""
    paper, report = (REFERENCE[key]["curves"].get(protocol) for key in ("paper", "report"))
    pruned = any(group.method == DER_PRUNED for group in groups)
    curves = {PAPER: paper["DER (w/o pruning)"], PAPER_PRUNED: paper["DER"], REPORT: report} if paper else {}
    return {name: accuracy for name, accuracy in curves.items() if pruned or name != PAPER_PRUNED}


NAMES = {(True, True): "DER", (True, False): "DER, no auxiliary loss",
         (False, True): "no expansion, auxiliary loss", (False, False): "no expansion"}


def name(method):
    """(expansion, auxiliary, pruned) -> "DER", "DER, pruned", "no expansion", ..."""
    return NAMES[method[:2]] + (", pruned" if method[2] else "")


def describe(group):
    """A group's method, and the settings that other runs do not share."""
    return ", ".join((name(group.method),) + group.variant)


def label(group):
    """What a group of our runs is called beside published ones."""
    return f"ours: {describe(group)}"


def legend_label(group):
    return label(group) + (f" (mean of {len(group.runs)})" if len(group.runs) > 1 else "")


def look(group, groups):
    """A group's line style: its method's, varied where its settings are not the most usual ones of that method."""
    return LOOKS.get(group.method, LOOKS[NO_EXPANSION]) | VARIANTS[min(len(VARIANTS) - 1, rank(group, groups))]


def curve(ax, group, key, groups, scale=1, zorder=2):
    """Draw one of a group's results, times scale, over the classes seen; of several runs the mean in a band."""
    seen, (mean, low, high), style = group.first.results["classes_seen"], group.of(key), look(group, groups)
    ax.plot(seen, mean * scale, label=legend_label(group), zorder=zorder, **style)
    if len(group.runs) > 1:
        ax.fill_between(seen, low * scale, high * scale, color=style["color"], alpha=0.2, lw=0)


def rank(group, groups):
    """0 where a group's settings are the most usual among those of its method, 1 for the next, ..."""
    variants = [other.variant for other in groups if other.method == group.method]
    return sorted(set(variants), key=lambda variant: (-variants.count(variant), variant)).index(group.variant)


def plural(word, values):
    """"seed", {1, 2} -> "seeds 1, 2"."""
    values = sorted({str(value) for value in values})
    return f"{word}{'s' * (len(values) > 1)} {', '.join(values)}"


def first_steps(runs):
    """Runs -> ["120 the first of B0", "60 the first of B50"]: the epochs that all runs of one base share."""
    found = [{run.first_step() for run in runs if run.base == base} for base in sorted({run.base for run in runs})]
    return [words for one in found if len(one) == 1 for words in one.pop()]


def caption(groups, unfinished=True):
    """Groups that a figure draws -> what they were trained on and how; and which of them are unfinished."""
    runs = [run for group in groups for run in group.runs]
    if not runs:
        return "None of our runs is shown here."
    shared = [words for words in runs[0].settings()
              if not words.endswith("held out") and all(words in run.settings() for run in runs)]
    first = first_steps(runs)
    if first and not any(words.endswith("epochs a step") for words in shared):  # then it has to say what it counts
        first[0] = first[0].replace(" the first", " epochs the first")
    shared += first + [plural(key, (run.results[key] for run in runs)) for key in ("order", "seed")]
    text = f"Ours: {title(runs)}; {', '.join(shared).replace(' ', NO_BREAK).replace(',' + NO_BREAK, ', ')}."
    if any(len(group.runs) > 1 for group in groups):
        text += " Means over runs, with the lowest and the highest."
    held_out = [run.held_out for run in runs]
    if any(held_out):
        text += (f" {'Tested' if all(held_out) else 'Those with images held out: tested'} on held-out training images, "
                 "not on the test images.")
    partial = [f"{g.protocol} ({describe(g)}): {g.done} of {g.total} steps" for g in groups
               if unfinished and not g.finished]
    if any(group.left_out for group in groups):
        text += f" Left out, with fewer steps done: {sum(group.left_out for group in groups)} of the runs."
    return text + (f" Unfinished: {'; '.join(partial)}." if partial else "")


def finish(fig, text, out, name, ours_first=True):
    """Put one legend for all panels and the caption below the figure, then save it as PNG and PDF; nothing is cut."""
    handles = {label: handle for ax in fig.axes for handle, label in zip(*ax.get_legend_handles_labels())}
    if ours_first:
        handles = dict(sorted(handles.items(), key=lambda item: not item[0].startswith("ours")))
    top = legend_bottom(fig, handles) - 0.08 / fig.get_figheight()
    fig.text(0.5, top, balanced(text, int(fig.get_figwidth() * 19)), ha="center", va="top", fontsize=7,
             color="#444444")
    for kind, metadata in (("png", {"Software": None}), ("pdf", {"CreationDate": None, "Producer": None})):
        whole(out / f"{name}.{kind}", lambda path: fig.savefig(path, format=kind, dpi=200, bbox_inches="tight",
                                                               pad_inches=0.06, metadata=metadata))
    plt.close(fig)


def balanced(text, width):
    """Wrap text into as few lines of at most `width` letters as it takes, all about as long."""
    lines = len(textwrap.wrap(text, width))
    fits = (w for w in range(len(text) // lines, width + 1) if len(textwrap.wrap(text, w)) == lines)
    return textwrap.fill(text, next(fits))


def legend_bottom(fig, handles):
    """Draw the legend below the figure, in as many columns as fit. Returns where it ends, in parts of the figure."""
    for columns in range(min(5, len(handles)), 0, -1):
        legend = fig.legend(handles.values(), handles, loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=columns,
                            handlelength=2.8, columnspacing=1.4)
        fig.canvas.draw()
        box = legend.get_window_extent().transformed(fig.transFigure.inverted())
        if box.width <= 1 or columns == 1:
            return box.y0
        legend.remove()


def whole(path, write):
    """Have write(beside) make the file beside its place, then rename it: it is there whole or not at all."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write(beside)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
    print(path)


def nothing(why, out, *names):
    """Say why a script draws nothing, and remove what it drew when there was something: report.md would show it."""
    for name in names:
        (out / name).unlink(missing_ok=True)
    print(f"{why}, nothing to draw")


def write_text(path, text):
    whole(path, lambda beside: beside.write_text(text, encoding="utf-8"))


def command(draw, description):
    """The command line of a plot: FOLDER and --out, then draw(runs, out). Trouble is one line and exit status 2."""
    parser = argparse.ArgumentParser(description=description.split("\n")[0])
    parser.add_argument("folder", type=Path, help="folder that holds the run folders")
    parser.add_argument("--out", type=Path, help="folder for what is drawn (default: FOLDER)")
    arguments = parser.parse_args()
    out = arguments.out or arguments.folder
    plt.rcParams.update(FONT)
    try:
        runs = load_runs(arguments.folder)
        out.mkdir(parents=True, exist_ok=True)
        draw(runs, out)
    except Bad as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    except OSError as error:
        parser.exit(2, f"{parser.prog}: {error.filename or out}: {error.strerror or error}; mend that or give --out "
                       "another folder\n")
