"""The results as a page of Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

COMMANDS = """\
cd apps/unmask
export PYTHONPATH=.:src
python -m train.prepare --cache CACHE
python -m train.train --cache CACHE --out FIRST --steps 14000
python -m train.train --cache CACHE --out DENSE --start FIRST/last.pt --steps 22000 \\
    --rate 2e-3 --ramp 0 --whole 0.75 --seed 2 --compile
python -m train.compress --dense DENSE --cache CACHE --out STUDENT --macs 0.22 \\
    --technique 'filter | local | variety(magnitude) | one_cycle' --prune 1500 --tune 4000 --compile
python -m train.compress --dense DENSE --cache CACHE --out STUDENT --macs 0.22 \\
    --technique 'filter | local | variety(magnitude) | one_cycle' --prune 1500 --tune 6500 --compile
python -m train.compress --dense FIRST --cache CACHE --out SHORT1 --prune 500 --tune 600
python -m train.compress --dense FIRST --cache CACHE --out SHORT2 --prune 500 --tune 600 \\
    --technique 'filter | local | variety(magnitude) | one_cycle'
python -m train.compress --dense FIRST --cache CACHE --out SHORT3 --prune 500 --tune 600 \\
    --no-teacher
python -m train.export --dense DENSE --student STUDENT --cache CACHE --work WORK
python -m train.folder --out FILES --pictures 120 --clips 12
unmask evaluate FILES --labels FILES/labels.csv --json files.json
python -m train.report --work WORK --dense DENSE --folder files.json \\
    --student STUDENT SHORT1 SHORT2 SHORT3"""

FIGURES = {
    "auc": "AUC", "eer": "EER", "ap": "AP", "recall_at_1": "recall at 1 %",
    "recall_at_5": "recall at 5 %", "brier_uncalibrated": "Brier, before calibration",
    "brier": "Brier", "ece_uncalibrated": "ECE, before calibration", "ece": "ECE",
}  # fmt: skip
VERDICTS = {
    "false_alarm_rate": "untouched faces flagged", "undecided": "untouched faces undecided",
    "swap_found": "self-blended faces flagged", "generated_found": "generated faces flagged",
}  # fmt: skip


def span(values: Sequence[float | None]) -> str:
    """A value with its interval.

    >>> span([0.5, 0.4, 0.6])
    '0.500 (0.400-0.600)'
    """
    if values[0] is None:
        return "-"
    if len(values) < 3 or values[1] is None or values[2] is None:
        return f"{values[0]:.3f}"
    return f"{values[0]:.3f} ({values[1]:.3f}-{values[2]:.3f})"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def card(text: str, result: Mapping[str, Any]) -> str:
    """The model card with its figures written anew between their two marks."""
    models = result["models"]
    rows = [
        [f"{answer}: {FIGURES[name]}", *(span(m["figures"][f"{answer}_{name}"])
                                         for m in models.values())]
        for answer in ("swap", "generated")
        for name in ("auc", "recall_at_1", "recall_at_5", "brier", "ece")
    ]  # fmt: skip
    rows += [
        [title, *(span(model["figures"][name]) for model in models.values())]
        for name, title in VERDICTS.items()
    ]
    before, rest = text.split("<!-- figures -->")
    after = rest.split("<!-- /figures -->")[1]
    tables = f"{_sizes(result)}\n{table(['', *models], rows)}"
    return f"{before}<!-- figures -->\n{tables}<!-- /figures -->{after}"


def page(result: Mapping[str, Any]) -> str:
    """The whole page."""
    models = result["models"]
    parts = [
        "# The detector of unmask: measured figures\n",
        f"Validation split: {result['faces']['real']} real faces, each with a self-blended twin, "
        f"and {result['faces']['generated']} wholly generated ones; nobody in it was trained on. "
        "In brackets the 95 % interval: bootstrap over groups (persons). Calibration and "
        "thresholds were chosen on this split; Brier and ECE after calibration come from five "
        "folds over groups, for an even mixture of real and fake. These fakes are made the way "
        "the training made its own, so the figures say nothing of other methods. "
        "`unmask_detector.json` holds all numbers.\n",
        "```\n" + COMMANDS + "\n```\n",
        "Sums are rounded otherwise on another processor: there the commands give networks like "
        "these, not the same bits.\n",
        "## Size and time\n", _sizes(result),
        "## Swapped (self-blended) faces\n", _figures(models, "swap"),
        "## Wholly generated faces\n", _figures(models, "generated"),
        "## Verdicts at the shipped thresholds\n",
        table(["", *models], [
            [title, *(span(m["figures"][name]) for m in models.values())]
            for name, title in VERDICTS.items()
        ]),
        "## Compression\n", _compression(result["compression"]),
        "## Robustness\n", _robustness(result),
    ]  # fmt: skip
    for name, model in models.items():
        if "details" in model:
            parts += [f"## By group: {name}\n", _details(model["details"])]
    if "folder" in result:
        parts += ["## Whole files, through the whole pipeline\n", _folder(result["folder"])]
    return "\n".join(parts)


def _sizes(result: Mapping[str, Any]) -> str:
    dense = result["models"]["dense"]
    rows = []
    for name, model in result["models"].items():
        single, batch = result["ms_single"][name], result["ms_batch_16"][name]
        auc, whole = model["figures"]["swap_auc"][0], dense["figures"]["swap_auc"][0]
        rows.append([
            name, f"{model['params']:,}", f"{model['macs'] / 1e6:.1f} M",
            f"{model['macs'] / dense['macs']:.1%}", f"{model['bytes']:,}",
            f"{model['bytes'] / dense['bytes']:.1%}",
            f"{single:.2f} ({result['ms_single']['dense'] / single:.1f} x)",
            f"{batch:.2f} ({result['ms_batch_16']['dense'] / batch:.1f} x)", f"{auc / whole:.1%}",
        ])  # fmt: skip
    head = ["", "params", "MACs", "of dense", "bytes", "of dense", "ms, one face",
            "ms a face of 16", "AUC of dense"]  # fmt: skip
    note = "\nONNX Runtime, one thread, models in turns; energy could not be measured here.\n"
    return table(head, rows) + note


def _figures(models: Mapping[str, Any], answer: str) -> str:
    rows = [
        [title, *(span(model["figures"][f"{answer}_{name}"]) for model in models.values())]
        for name, title in FIGURES.items()
    ]
    return table(["", *models], rows)


def _compression(runs: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        [
            f"`{run['technique'].replace('|', chr(92) + '|')}`", "yes" if run["teacher"] else "no",
            f"{run['macs']:.3f}", f"{run['params']:,}", " + ".join(map(str, run["steps"])),
            f"{run['swap_auc_pruned']:.3f}", f"{run['swap_auc']:.3f}",
            f"{run['generated_auc']:.3f}",
        ]
        for run in runs
    ]  # fmt: skip
    head = ["technique", "distilled", "MACs", "params", "steps", "AUC pruned", "AUC at the end",
            "generated"]  # fmt: skip
    return table(head, rows) + (
        "\nAUC over 600 pairs, in PyTorch; steps of pruning + of tuning. One run each: rows of "
        "equal steps may be compared, and small differences between them may be chance. Those of "
        "500 + 600 steps begin at FIRST, the others at DENSE.\n"
    )


def _robustness(result: Mapping[str, Any]) -> str:
    names = list(next(iter(result["robustness"].values())))
    rows = []
    for damage, found in result["robustness"].items():
        row = [damage]
        for name in names:
            row += [span(found[name]["swap_auc"]), f"{found[name]['generated_auc']:.3f}",
                    f"{found[name]['false_alarms']:.1%}"]  # fmt: skip
        rows.append(row)
    head = [""]
    for name in names:
        head += [f"{name}: swap AUC", "generated AUC", "false alarms"]
    return table(head, rows) + f"\n{result['robustness_pairs']} pairs, damaged at full size.\n"


def _details(details: Mapping[str, Any]) -> str:
    parts = []
    for kind, groups in details["false_alarms"].items():
        rows = [[name, str(v[3]), span(v[:3])] for name, v in groups.items()]
        parts.append(table([kind, "faces", "untouched faces flagged"], rows))
    for kind, groups in details["swap_auc"].items():
        rows = [[name, str(v[3]), span(v[:3])] for name, v in groups.items()]
        title = "share of the other face in the blend" if kind == "ratio" else kind
        parts.append(table([title, "pairs", "swap AUC"], rows))
    rows = [[name, str(v[3]), span(v[:3])] for name, v in details["generated_found"].items()]
    parts.append(table(["generator", "faces", "flagged"], rows))
    return "\n".join(parts)


def _folder(folder: Mapping[str, Any]) -> str:
    groups = {"overall": folder["overall"], **folder["groups"]}
    rows = []
    for metric in folder["overall"]:
        values = [group[metric] for group in groups.values()]
        rows.append([metric, *(span(v) if isinstance(v, list) else str(v) for v in values)])
    note = f"\nModel `{folder['model']}`; {len(folder['failed'])} files could not be analysed.\n"
    return table(["", *groups], rows) + note
