"""Run folders -> checked results, and runs -> groups that one curve or bar stands for. Reads files, draws nothing."""
import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

NUMBER = (int, float)
SCALARS = {"protocol": str, "dataset": str, "profile": str, "width": int, "order": (str, int), "seed": int,
           "pruned": bool, "expansion": bool, "auxiliary": bool, "num_classes": int, "steps_total": int,
           "average": NUMBER, "last": NUMBER}
LISTS = ("classes_seen", "accuracy", "accuracy_stage1", "task_accuracy", "parameters", "parameters_unpruned",
         "ms_per_image", "seconds")                                                    # a value for every step


class Bad(Exception):
    """A folder or file that can't be drawn; its message is the one line that the user reads."""


def damaged(path, what):
    return Bad(f"{path}: {what}; the file is damaged: run that run again, or remove its folder {path.parent}")


def read_text(path):
    """File -> str, or Bad."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise Bad(f"{path}: missing; run that run again, or remove its folder {path.parent}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise damaged(path, f"unreadable ({error.__class__.__name__})") from None


def parse(text, path, where=""):
    """The text of a JSON object -> dict; anything else is Bad."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise damaged(path, f"{where}not readable as JSON ({str(error).splitlines()[0]})") from None
    if not isinstance(value, dict):
        raise damaged(path, f"{where}not a JSON object")
    return value


def is_a(value, kind):
    """isinstance, but True is no number, and neither are NaN and infinity."""
    kinds = kind if isinstance(kind, tuple) else (kind,)
    if isinstance(value, bool):
        return bool in kinds
    return isinstance(value, kinds) and (not isinstance(value, NUMBER) or abs(value) < 1e18)


def require(values, path, kinds, where=""):
    """Every key of kinds is in values and of its type, or Bad."""
    for key, kind in kinds.items():
        if key not in values:
            raise damaged(path, f"{where}'{key}' is missing")
        if not is_a(values[key], kind):
            raise damaged(path, f"{where}'{key}' is {values[key]!r:.40}, not of the type it should be")


def check_lists(results, path):
    """Each list has an entry a step, a number of 0 or more; in task_accuracy a row of 1, 2, 3, ... of them."""
    steps = len(results["accuracy"])
    for key in LISTS:
        if len(results[key]) != steps:
            raise damaged(path, f"'{key}' has {len(results[key])} entries, 'accuracy' has {steps}")
        rows = results[key] if key == "task_accuracy" else [results[key]]
        if not all(isinstance(row, list) and all(is_a(x, NUMBER) and x >= 0 for x in row) for row in rows):
            raise damaged(path, f"'{key}' holds something that is not a number of 0 or more")
    if [len(row) for row in results["task_accuracy"]] != list(range(1, steps + 1)):
        raise damaged(path, "'task_accuracy' has not 1, 2, 3, ... entries in its rows")
    if max(results["accuracy"] + results["accuracy_stage1"] + sum(results["task_accuracy"], [])) > 100:
        raise damaged(path, "an accuracy is above 100 %")


def check_results(results, path):
    """results.json is what train.py writes, or Bad."""
    require(results, path, SCALARS | dict.fromkeys(LISTS, list))
    if not 1 <= len(results["accuracy"]) <= results["steps_total"]:
        raise damaged(path, f"'accuracy' has {len(results['accuracy'])} entries for {results['steps_total']} steps")
    check_lists(results, path)
    if not re.fullmatch(r"B\d+-Inc\d+", results["protocol"]):
        raise damaged(path, f"'protocol' is {results['protocol']!r:.40}, not of the form B0-Inc10")
    kept = results.get("kept", [])
    if not (isinstance(kept, list) and all(isinstance(masks, dict) and masks and
                                           all(is_a(share, NUMBER) for share in masks.values()) for masks in kept)):
        raise damaged(path, "'kept' is not a list of shares by mask")
    since = results.get("resumed_on", [])
    if not (isinstance(since, list) and all(isinstance(parts, dict) for parts in since)):
        raise damaged(path, "'resumed_on' is not a list of machines")
    if results.get("forgetting") is not None and not is_a(results["forgetting"], NUMBER):
        raise damaged(path, "'forgetting' is neither a number nor null")


@dataclass
class Run:
    """One run folder: its settings and its results, and its log when somebody asks for it."""
    folder: Path
    config: dict
    results: dict

    def __post_init__(self):
        self.protocol = self.results["protocol"]
        self.base = protocol_order(self.protocol)[0]
        self.method = tuple(self.results[key] for key in ("expansion", "auxiliary", "pruned"))
        self.done, self.total = len(self.results["accuracy"]), self.results["steps_total"]
        self.finished, self.held_out = self.done == self.total, self.config["validation"] > 0
        for average, key in (("average", "accuracy"), ("average_stage1", "accuracy_stage1")):
            self.results[average] = sum(self.results[key]) / self.done  # unrounded, to be rounded once

    def settings(self):
        """In words, all that makes two runs of one method incomparable; order and seed are averaged over."""
        smoothing = self.config["label_smoothing"]
        words = (f"profile {self.results['profile']}", f"width {self.results['width']}")
        words += (f"label smoothing {smoothing:g}",) if smoothing else ()
        words += (f"{100 * self.config['validation']:g} % held out",) if self.held_out else ()
        return words + (f"{self.config['epochs']} epochs a step",)

    def first_step(self):
        """In words, the epochs of the first step where it has its own: those of B0 are others than those of B50."""
        epochs = self.config.get("base_epochs" if self.base else "first_epochs", 0)
        return (f"{epochs} the first of B{self.base}",) if epochs else ()

    def pruning(self):
        """In words, lambda_s of a pruned run, and that of its first step where it has its own."""
        keys = ("base_sparsity", "sparsity") if self.base else ("sparsity",)
        return tuple(f"{key} {self.config[key]}" for key in keys if self.results["pruned"] and self.config.get(key))

    def made_on(self):
        """-> list of dict: the machine and versions that the run began with, then the others that it went on with."""
        first = self.config.get("machine")
        return [first if isinstance(first, dict) else {}, *self.results.get("resumed_on", [])]

    def machine(self):
        """In words, what a latency depends on beside the network; of all machines that the run was on."""
        places = []
        for parts in self.made_on():
            if "device" not in parts:
                return "not recorded"
            threads = f"{parts.get('threads')} thread{'s' * (parts.get('threads') != 1)}"
            place = f"{parts.get('cpu')}, {threads}" if parts["device"] == "cpu" else parts["device"]
            places.append(f"{place}, torch {parts.get('torch')}")
        where = str(self.results.get("latency_device"))  # all that runs from before resumed_on say of a second device
        later = f"latency on {where}" if ", then " in where and len(places) == 1 else None
        return ", ".join(filter(None, [", then ".join(dict.fromkeys(places)), self.config.get("precision"), later]))

    def log(self):
        """log.jsonl -> list of dicts, one an epoch; a last line without its end (a run under way) is left out."""
        path = self.folder / "log.jsonl"
        rows = [(f"line {i}: ", parse(line, path, f"line {i}: "))
                for i, line in enumerate(read_text(path).split("\n")[:-1], 1) if line.strip()]
        for where, row in rows:
            require(row, path, {"step": int, "stage": int, "epoch": int, "classification": NUMBER}, where)
        return [row for _, row in rows]


def load_run(folder):
    """Run folder -> Run, or Bad."""
    config, results = (parse(read_text(folder / name), folder / name) for name in ("config.json", "results.json"))
    require(config, folder / "config.json", {"epochs": int, "validation": NUMBER, "label_smoothing": NUMBER})
    check_results(results, folder / "results.json")
    return Run(folder, config, results)


def load_runs(folder):
    """A folder of run folders (or one run folder) -> list of Run on one data set; Bad if there is nothing to draw."""
    if not folder.is_dir():
        raise Bad(f"{folder}: no such folder; name the one that holds the run folders, or train first")
    inside = [folder] if (folder / "config.json").exists() else sorted(p for p in folder.iterdir() if p.is_dir())
    runs = [load_run(path) for path in inside if (path / "results.json").exists()]
    if not runs:
        raise Bad(f"{folder}: no run in it has a results.json (a run writes it after its first step): name the folder "
                  "that holds the run folders, or train first")
    # An .npz of CIFAR-100 may hold the images in any order. Other files of one name may hold anything.
    data = sorted({(name, "" if name == "CIFAR-100" else str(run.config.get("fingerprint")))
                   for run in runs for name in [run.results["dataset"]]})
    if len(data) > 1:
        raise Bad(f"{folder}: its runs are on different data ({', '.join(name for name, _ in data)}); give each a "
                  "folder of its own")
    return sorted(runs, key=lambda run: (protocol_order(run.protocol), run.folder.name))


@dataclass
class Group:
    """Runs that differ in class order and seed only: one curve, or one bar."""
    runs: list
    variant: tuple                             # their settings that not all runs in the folder share

    def __post_init__(self):                   # a mean takes runs of one length: the longest there are
        self.done, everything = max(run.done for run in self.runs), self.runs
        self.runs = [run for run in everything if run.done == self.done]
        self.left_out = len(everything) - len(self.runs)
        self.first = self.runs[0]
        self.protocol, self.method = self.first.protocol, self.first.method
        self.total, self.finished = self.first.total, self.first.finished

    def of(self, key):
        """The runs' values of one key -> mean, lowest, highest (numbers, or arrays over the steps)."""
        values = np.array([run.results[key] for run in self.runs], dtype=float)
        return values.mean(axis=0), values.min(axis=0), values.max(axis=0)

    def machines(self):
        """The machines that its runs are from, each in words."""
        return sorted({run.machine() for run in self.runs})


def protocol_order(protocol):
    """"B50-Inc10" -> (50, 10), for sorting."""
    return tuple(int(number) for number in re.findall(r"\d+", protocol))


# Settings that runs which are averaged may differ in, or that stand elsewhere in what a group is called.
NEUTRAL = {"data", "root", "out", "device", "steps", "restart", "evaluate", "machine", "dataset", "fingerprint",
           "order", "seed", "base", "increment", "expansion", "auxiliary", "prune", "profile", "width", "epochs",
           "label_smoothing", "validation"}
# Those that only pruned runs use; only runs with, and without, a base; only runs whose learning rate falls in steps.
PRUNING = {"sparsity", "base_sparsity", "s_max", "mask_start", "mask_share"}
OF_BASE, OF_NONE = {"base_epochs", "base_milestones", "base_sparsity", "memory_per_class"}, {"first_epochs", "memory"}
OF_STEPS = {"warmup", "milestones", "base_milestones"}


def others(run, runs):
    """In words, the rest of a run's settings in which the runs of its profile differ: of any method and protocol.

    What sets two profiles apart is left to their names, which `settings` gives; so a flag that all runs of one profile
    were given is not named, as where a folder holds no other profile. Nor is a base_sparsity of 0: it is no lambda_s,
    it says that the first step has that of every step.
    """
    def used(other):
        unused = (OF_NONE if other.base else OF_BASE) | (set() if other.method[2] else PRUNING)
        unused |= set() if other.config.get("schedule") == "steps" else OF_STEPS
        # What runs from before these were settings had.
        config = {"base_sparsity": 0.0, "shift": 4, "flip": True, "brightness": 63} | other.config
        return {key: value for key, value in config.items() if key not in unused}
    return tuple(f"{key} {value}" for key, value in used(run).items() if key not in NEUTRAL
                 and (value or key != "base_sparsity")
                 and any(used(other).get(key, value) != value for other in runs
                         if other.results["profile"] == run.results["profile"]))


def grouped(runs):
    """Runs -> list of Group by protocol, by method (the whole DER first) and by settings."""
    shared = set.intersection(*(set(run.settings()) for run in runs))
    parts = {}
    for run in runs:
        variant = tuple(words for words in run.settings() if words not in shared) + others(run, runs)
        expansion, auxiliary, pruned = run.method
        parts.setdefault((protocol_order(run.protocol), not expansion, not auxiliary, pruned, variant), []).append(run)
    return [Group(members, key[-1]) for key, members in sorted(parts.items())]
