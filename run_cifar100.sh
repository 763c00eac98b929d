#!/usr/bin/env bash
# DER on CIFAR-100 with one command: set-up, training, figures and tables. A second call goes on where the first was
# stopped.
#
#   bash run_cifar100.sh               the three protocols, profile fast, then figures and tables
#   bash run_cifar100.sh paper         the same with the paper's settings
#   bash run_cifar100.sh demo          the three protocols scaled to a small synthetic data set: minutes on any laptop
#   bash run_cifar100.sh ablation      Table 2: B0-Inc10 without expansion, without the auxiliary loss, with both
#                                      (ablation --profile paper: with the paper's settings)
#   bash run_cifar100.sh figures       figures and tables again, from the results in runs/* (or: figures FOLDER); where
#                                      there are none yet, from those in plots/measured
#   bash run_cifar100.sh test          the tests
#
# Further arguments go to train.py (--data, --root, --width, --epochs, --prune, --order, --device, ...: see python
# train.py --help).
# RUNS=FOLDER puts the runs there instead of runs/PROFILE; with other settings, give another folder. Paths are relative
# to the folder of this script.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

usage() { sed -n '2,/^set -/{/^set -/d; s/^# \{0,1\}//; p;}' "${BASH_SOURCE[0]##*/}"; }

set_up() { # name a Python that has what requirements.txt asks for, installing that into .venv where it is lacking
    local lacks='
import importlib.metadata, re, sys
def number(version): return [int(part) for part in re.findall("[0-9]+", version)[:2]]
def lacks(name, least):
    try: return number(importlib.metadata.version(name)) < number(least)
    except importlib.metadata.PackageNotFoundError: return True
needs = [line.strip().split(">=") for line in open("requirements.txt")]
sys.exit(any(lacks(*need) for need in needs if need[0] != "pytest" or "pytest" in sys.argv))'
    python=$(command -v python3) || { echo "run_cifar100.sh: no Python 3 found" >&2; exit 2; }
    [ ! -x .venv/bin/python ] || python=.venv/bin/python
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || {
        echo "run_cifar100.sh: $("$python" --version) is too old: 3.10 or newer is needed" >&2; exit 2; }
    "$python" -c "$lacks" "$@" && return
    echo "Installing requirements.txt into .venv (once; some minutes)"
    # completes one that was interrupted; makes one anew whose Python has gone
    python3 -m venv $([ -x .venv/bin/python ] || echo --clear) .venv
    python=.venv/bin/python
    local quiet=-qq
    [ ! -t 1 ] || quiet=--progress-bar=on
    "$python" -m pip install "$quiet" -r requirements.txt
}

train() { # BASE INCREMENT SUFFIX FLAGS...: one run, into $runs/B<BASE>-Inc<INCREMENT><SUFFIX>
    local name=B$1-Inc$2$3 flags=(--base "$1" --increment "$2") flag
    shift 3
    for flag in "$@"; do # what is not frozen is not pruned
        [[ $flag == --prune && " $* " == *" --no-expansion "* ]] || flags+=("$flag")
    done
    case " ${flags[*]} " in *" --prune "*) name=$name-pruned ;; esac # beside the unpruned run, in the same figures
    printf '\n== %s\n' "$runs/$name"
    "$python" train.py --profile "$profile" --out "$runs/$name" "${flags[@]}"
}

draw() { # FOLDER: every figure, then the tables and report.md
    local script
    for script in plots/figure*.py plots/tables.py; do
        "$python" "$script" "$1" || return
    done
    printf '\nEverything at a glance: %s/report.md\n' "$1"
}

mode=fast
case ${1:-} in
    fast | paper | demo | ablation | figures | test) mode=$1; shift ;;
    -h | --help | help) usage; exit ;;
    -* | '') ;;
    *) echo "run_cifar100.sh: unknown mode '$1': give fast, paper, demo, ablation, figures or test" >&2; exit 2 ;;
esac
profile=$mode
if [ "$mode" = ablation ]; then
    profile=fast
    [ "${1:-}" != --profile ] || [ $# -lt 2 ] || { profile=$2; shift 2; }
fi
for argument in "$@"; do
    case $argument in
        -h | --help) usage; exit ;;
        --evaluate | --evaluate=*) wrong="run train.py $argument itself" ;;
        --profile | --profile=*) wrong="give the profile as the mode: fast, paper, demo, ablation --profile NAME" ;;
        --out | --out=*) wrong="each run has a folder of its own: put them elsewhere with RUNS=FOLDER" ;;
        --base | --base=* | --increment | --increment=* | --expansion | --no-expansion | --auxiliary | --no-auxiliary)
            wrong="${argument%%=*} is the mode's to give: for another protocol or method run train.py itself" ;;
        *) continue ;;
    esac
    echo "run_cifar100.sh: $wrong" >&2
    exit 2
done
runs=${RUNS:-runs/$profile}

case $mode in
    test)
        set_up pytest
        "$python" -m pytest tests "$@" ;;
    figures)
        set_up
        shopt -s nullglob
        [ $# -gt 0 ] || [ -z "${RUNS:-}" ] || set -- "$RUNS"
        if [ $# -eq 0 ]; then
            for folder in runs/*; do
                results=("$folder"/*/results.json)
                [ ${#results[@]} -eq 0 ] && [ ! -f "$folder/results.json" ] || set -- "$@" "$folder"
            done
        fi
        [ $# -gt 0 ] || set -- plots/measured # nothing was run here yet
        failed=0
        for folder in "$@"; do
            draw "$folder" || failed=$?
        done
        exit $failed ;;
    demo)
        set_up
        for protocol in "0 2" "0 4" "10 2"; do
            train $protocol "" "$@"
            train $protocol -no-expansion --no-expansion --no-auxiliary "$@"
        done
        draw "$runs" ;;
    ablation)
        set_up
        train 0 10 -no-expansion --no-expansion --no-auxiliary "$@"
        train 0 10 -no-auxiliary --no-auxiliary "$@"
        train 0 10 "" "$@"
        draw "$runs" ;;
    *)
        set_up
        train 0 10 "" "$@"
        train 0 5 "" "$@"
        train 50 10 "" "$@"
        draw "$runs" ;;
esac
