"""Tables 1 and 2 as Markdown, and report.md: the runs, the tables, the steps and the figures at a glance.

    python plots/tables.py FOLDER [--out DIR]

Drawn from every run's results.json and config.json and from reference.json. report.md shows the figures that lie in DIR
already, so run their scripts first.
"""
import common
from runs import grouped

NOT_RUN = "not run"
FIGURES = {
    "figure4": "Figure 4: accuracy over the classes seen",
    "figure5": "Figure 5: the losses of stage 1 over the first three steps",
    "figure6": "Figure 6: average accuracy by method and protocol",
    "figure_pruning": "Pruning: parameters, latency, accuracy and channels kept over the steps",
    "figure_tradeoff": "Pruning: accuracy against the parameters that are left",
}
DEFINITIONS = """\
- *Accuracy* is top-1 (%) over all classes seen so far, after stage 2; *average* is its mean over the steps, *last* its
  value after the last step.
- *Before stage 2* is the same average, of the accuracy before the classifier is trained again.
- *Forgetting* is the mean, over the classes of each step but the last, of their best accuracy so far less their last.
- *Parameters* are those of the whole model, after the last step and in the mean over the steps.
- *ms per image* is the latency of the model as it is after the last step, *time* that of training: compare them only
  between runs of one machine (listed below the runs) that had it for themselves.
"""


def markdown(head, rows):
    """Head and rows of cells -> a Markdown table, the first column to the left, the others to the right."""
    lines = [head, ["---"] + ["--:"] * (len(head) - 1)] + rows
    return "".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def mean(values):
    """The same digits wherever a mean is printed: numpy's may round another way."""
    return sum(values) / len(values)


def cell(group, key):
    """A group's mean, its span where several runs are averaged; a dagger where steps are missing: those are harder."""
    if not group.finished:
        return f"{group.done} of {group.total} steps †"
    middle, low, high = group.of(key)
    span = f" ({low:.2f} to {high:.2f}, n = {len(group.runs)})" if len(group.runs) > 1 else ""
    return f"{middle:.2f}{span}"


def table1(groups, cifar):
    """Average accuracy: a row a method, a column a protocol."""
    protocols, rows = common.protocols(groups, cifar), {}
    curves = {p: common.published(p, groups) for p in protocols}
    for name, values in common.REFERENCE["table1"]["methods"].items() if cifar else ():
        rows[name] = {p: f"{value:.2f}" for p, value in zip(common.REFERENCE["protocols"], values)}
        if name == "DER (paper)" and any(common.PAPER_PRUNED in curves[p] for p in protocols):
            rows["DER, pruned (paper)"] = {p: f"{mean(curves[p][common.PAPER_PRUNED]):.2f}" for p in rows[name]}
    if cifar:
        rows["Report"]["B50-Inc10"] += " *"
    for group in groups:
        if not cifar or group.method in (common.DER, common.DER_PRUNED):
            rows.setdefault(common.label(group), {})[group.protocol] = cell(group, "average")
    return markdown(["average accuracy (%)"] + protocols,
                    [[name] + [row.get(p, NOT_RUN if name.startswith("ours") else "–") for p in protocols]
                     for name, row in rows.items()])


def ablation(groups, protocol):
    """The protocol's runs in the ablation: those that are not pruned; of a method that has none, the pruned."""
    these = [g for g in groups if g.protocol == protocol]
    whole = {g.method[:2] for g in these if not g.method[2]}
    return [g for g in these if not g.method[2] or g.method[:2] not in whole]


def table2(groups, cifar):
    """The ablation: last and average accuracy, ours and on CIFAR-100 the paper's -> table, its protocol."""
    ablated = [g.protocol for g in groups if not all(g.method[:2])]
    protocol = "B0-Inc10" if cifar else (ablated or [groups[0].protocol])[0]
    paper = {(r["expansion"], r["auxiliary"]): r for r in common.REFERENCE["table2"]["rows"]} if cifar else {}
    these, rows = ablation(groups, protocol), []
    for method in ((False, False), (False, True), (True, False), (True, True)):
        ours = [(common.describe(g), *(cell(g, key) for key in ("last", "average", "average_stage1")))
                for g in these if g.method[:2] == method]
        if not ours and method != (False, True):                      # that row is not in the paper's table
            ours = [(common.name(method + (False,)), *[NOT_RUN] * 3)]
        theirs = [f"{paper[method][key]:.2f}" if method in paper else "–" for key in ("last", "average")]
        marks = ["yes" if part else "no" for part in method]
        rows += [[name] + marks + values + theirs * cifar for name, *values in ours]
    head = [protocol, "expansion", "auxiliary loss", "ours: last", "ours: average", "before stage 2"]
    return markdown(head + ["paper: last", "paper: average"] * cifar, rows), protocol


def footnotes(groups, cifar):
    """What the dagger means: unfinished runs beside the paper and the report over the same steps."""
    lines = []
    for g in groups:
        if not g.finished:
            published = common.published(g.protocol, groups) if cifar else {}
            same = "".join(f", {name} {mean(accuracy[:g.done]):.2f}" for name, accuracy in published.items())
            lines.append(f"† {g.protocol}, {common.label(g)}: {g.done} of {g.total} steps done, and early steps are "
                         f"easy. Average over the same steps: ours {g.of('average')[0]:.2f}{same}.\n")
    return "\n".join(lines)


def steps_table(protocol, groups, cifar):
    """Accuracy step by step: ours, the paper's and the report's; and our longest run that the paper has, less its."""
    ours = [group for group in groups if group.protocol == protocol]
    columns = {common.label(group): list(group.of("accuracy")[0]) for group in ours}
    columns |= common.published(protocol, groups) if cifar else {}
    theirs = {common.DER: common.PAPER, common.DER_PRUNED: common.PAPER_PRUNED}
    both = [group for group in ours if theirs.get(group.method) in columns]
    if both:
        best = max(both, key=lambda group: group.done)
        columns[f"{common.label(best)}, less the paper's"] = [
            a - b for a, b in zip(best.of("accuracy")[0], columns[theirs[best.method]])]
    longest = max(ours, key=lambda group: group.done)
    rows = [[seen] + [f"{values[i]:.2f}" if i < len(values) else "" for values in columns.values()]
            for i, seen in enumerate(longest.first.results["classes_seen"])]
    for steps in sorted({min(group.done for group in ours), longest.done}):
        rows.append([f"mean of the first {steps}"] + [
            f"{mean(values[:steps]):.2f}" if len(values) >= steps else "" for values in columns.values()])
    return markdown(["classes seen"] + list(columns), rows)


def paragraphs(*parts):
    return "\n\n".join(part.strip() for part in parts if part) + "\n"


def duration(seconds):
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{seconds / 60:.1f} min"


def run_row(run):
    """Run -> its row of the table of runs."""
    r = run.results
    forgetting = "–" if r.get("forgetting") is None else f"{r['forgetting']:.2f}"
    parameters = [f"{count / 1e6:.3g} M" for count in (r["parameters"][-1], mean(r["parameters"]))]
    dagger = "" if run.finished else " †"
    settings = ", ".join(run.settings() + run.first_step() + run.pruning())
    return [run.folder.name, run.protocol, common.name(run.method), settings, r["order"], r["seed"],
            f"{run.done} of {run.total}", f"{r['average']:.2f}{dagger}", f"{r['last']:.2f}{dagger}", forgetting,
            *parameters, f"{r['ms_per_image'][-1]:.3g}", duration(sum(r["seconds"]))]


def machines(runs):
    """Which machine and which versions which runs were made with, a line each; and how latency was measured."""
    found = {}
    for run in runs:
        first, *since = run.made_on()
        words = [f"{key} {value}" for key, value in (first or {"machine": "not recorded"}).items()]
        words += ["then " + ", ".join(f"{key} {value}" for key, value in parts.items() if value != first.get(key))
                  for parts in since]
        words.append(f"latency batch {run.results.get('latency_batch')} on {run.results.get('latency_device')}")
        found.setdefault(", ".join(words), []).append(run.folder.name)
    return "".join(f"- {', '.join(names)}: {words}\n" for words, names in found.items())


def report(runs, groups, cifar, out):
    """Everything at a glance -> the text of report.md."""
    head = ["run", "protocol", "method", "settings", "order", "seed", "steps", "average", "last", "forgetting",
            "parameters, last", "parameters, mean", "ms per image", "time"]
    hours = ""
    if len({run.machine() for run in runs}) == 1:
        hours = f" Their times add up to {duration(sum(sum(run.results['seconds']) for run in runs))}."
    parts = [f"# DER, results: {common.title(runs)}", f"{common.caption(groups)}{hours}",
             "## Runs", markdown(head, list(map(run_row, runs))), machines(runs),
             "## Table 1", table1(groups, cifar), footnotes(groups, cifar), "## Table 2", table2(groups, cifar)[0]]
    for protocol in dict.fromkeys(group.protocol for group in groups):
        parts += [f"## {protocol}, step by step", steps_table(protocol, groups, cifar)]
    parts += ["## Figures"] + [f"![{words}]({name}.png)\n\n*{words}.*" for name, words in FIGURES.items()
                               if (out / f"{name}.png").exists()]
    sources = [common.REFERENCE[key]["source"] for key in ("table1", "table2", "paper", "report", "report_losses")]
    sources = [f"- {text}\n" for text in sources + ["\\* " + common.REFERENCE["report"]["B50-Inc10 note"]]]
    parts += ["## Notes", DEFINITIONS + "".join(sources if cifar else [])]
    return paragraphs(*parts)


def draw(runs, out):
    """Runs of one data set -> table1.md, table2.md and report.md in out."""
    groups, cifar = grouped(runs), common.on_cifar(runs)
    first, (second, protocol) = table1(groups, cifar), table2(groups, cifar)
    these, star = ablation(groups, protocol), f"\\* The report's B50-Inc10 is {common.NOT_B50}." if cifar else ""
    common.write_text(out / "table1.md", paragraphs(first, common.caption(groups), star, footnotes(groups, cifar)))
    common.write_text(out / "table2.md", paragraphs(second, common.caption(these), footnotes(these, cifar)))
    common.write_text(out / "report.md", report(runs, groups, cifar, out))


if __name__ == "__main__":
    common.command(draw, __doc__)
