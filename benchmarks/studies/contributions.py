"""Gather the studies of the four contributions: tables and pictures under docs/contributions.

    python benchmarks/studies/contributions.py --studies runs/studies --docs docs

Copies each study's raw results to docs/results/studies, draws the curves, and tests each technique
against its reference once per curve: the accuracy averaged over the budgets, seed by seed, with
Holm's correction over the techniques of a table. The study pages beside the raw results test point
by point.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch

from secateur.report.features import features_svg
from secateur.report.plots import COLOURS, WIDE, drawing
from secateur.study import Paired, Study, holm, interval, paired, summarise
from secateur.study.curves import styles
from secateur.study.summary import Panel
from secateur.train.data import load_data

HERE = Path(__file__).parent
RAW = ("results.jsonl", "results.parquet", "study.html", "study.md")
Record = Mapping[str, Any]


def main() -> None:
    """Write everything for which there are results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--studies", type=Path, default=Path("runs/studies"))
    parser.add_argument("--docs", type=Path, default=Path("docs"))
    arguments = parser.parse_args()
    raw, pages = arguments.docs / "results" / "studies", arguments.docs / "contributions"
    pages.mkdir(parents=True, exist_ok=True)
    for folder in sorted(arguments.studies.iterdir()):
        if not (folder / "results.jsonl").is_file():
            continue
        (raw / folder.name).mkdir(parents=True, exist_ok=True)
        for name in RAW:
            if (folder / name).is_file():
                shutil.copy(folder / name, raw / folder.name / name)
    for name in ("schedule", "criteria", "context", "context_tuned"):
        if (raw / name / "results.jsonl").is_file():
            of_study(name, raw / name, pages)
    if (raw / "criteria" / "results.jsonl").is_file():
        fill(pages, "criteria contrast", criteria_contrast(read(raw / "criteria")))
    if (raw / "features" / "results.jsonl").is_file():
        of_features(read(raw / "features"), pages)
    if (raw / "variety" / "results.jsonl").is_file():
        of_variety(read(raw / "variety"), pages)
    if (raw / "resnet56" / "results.jsonl").is_file():
        fill(pages, "resnet56", resnet56_table(read(raw / "resnet56")))
        fill(pages, "resnet56 pairs", resnet56_pairs(read(raw / "resnet56")))


def fill(pages: Path, name: str, table: str) -> None:
    """Put a table into the pages where its name stands between marks."""
    marks = f"<!-- {name} -->", f"<!-- end of {name} -->"
    block = re.compile(f"{re.escape(marks[0])}.*?{re.escape(marks[1])}", re.DOTALL)
    print(f"\n{name}\n{table}")
    for page in pages.glob("*.md"):
        text = page.read_text(encoding="utf-8")
        new = block.sub(lambda _: f"{marks[0]}\n\n{table}\n\n{marks[1]}", text)
        if new != text:
            page.write_text(new, encoding="utf-8")


def read(folder: Path) -> list[Record]:
    """Read the raw results of a study."""
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


def of_study(name: str, folder: Path, pages: Path) -> None:
    """Draw the curves of a study and print its tables."""
    study, records = Study.read(HERE / f"{name}.yaml"), read(folder)
    summary = summarise(study, records)
    for panel in summary.panels:
        groups = {""}
        if name.startswith("context"):
            groups = {"weight", "filter"}
        for group in sorted(groups):
            mine = [row for row in panel.rows if row.role == "dense" or group in row.technique]
            part = Panel(panel.model, panel.data, tuple(mine))
            title = " ".join(filter(None, [name, panel.model, group]))
            path = pages / f"{title.replace(' ', '_')}.svg"
            measure = "macs_left" if name == "criteria" else "params_left"
            path.write_text(_document(_curves(part, measure)), encoding="utf-8")
            reference = study.reference if not group else f"{group}, local"
            fill(pages, title, curve_table(part, reference, bool(group)))


def curve_table(panel: Panel, reference: str, macs: bool) -> str:
    """Compare whole curves with the reference's: mean accuracy over the budgets, seed by seed.

    With ``macs`` the table says what is left of the multiply-accumulates.
    """
    curves: dict[str, dict[int, float]] = {}
    left: dict[str, list[str]] = {}
    points: dict[str, list[str]] = {}
    for row in panel.rows:
        if row.role == "dense":
            continue
        points.setdefault(row.technique, []).append(f"{row.accuracy.mean:.3f}")
        left.setdefault(row.technique, []).append(f"{row.left['macs_left'].mean:.2f}")
        for seed, value in row.accuracies.items():
            curves.setdefault(row.technique, {}).setdefault(seed, 0.0)
            curves[row.technique][seed] += value
    counts = {name: len(each) for name, each in points.items()}
    means = {name: {seed: total / counts[name] for seed, total in each.items()}
             for name, each in curves.items()}  # fmt: skip
    return _table(points, means, reference, left if macs else None)


def _table(
    points: Mapping[str, Sequence[str]],
    means: Mapping[str, Mapping[int, float]],
    reference: str,
    macs: Mapping[str, Sequence[str]] | None = None,
) -> str:
    others = [name for name in means if name != reference]
    found = {name: paired(means[name], means[reference]) for name in others}
    adjusted = dict(
        zip(others, holm([each.p if each else None for each in found.values()]), strict=True)
    )
    more = ("MACs left there | ", "--- | ") if macs else ("", "")
    lines = [f"| technique | accuracy at the budgets | {more[0]}mean of the curve | against "
             f"{reference}, 95 % interval | p, corrected | |",
             f"| --- | --- | {more[1]}---: | --- | ---: | --- |"]  # fmt: skip
    for name, each in means.items():
        mean = interval(list(each.values()))
        half = "" if mean.half is None else f" ± {mean.half:.3f}"
        cells = [name, " · ".join(points[name]), *([" · ".join(macs[name])] if macs else []),
                 f"{mean.mean:.3f}{half}"]  # fmt: skip
        test, p = found.get(name), adjusted.get(name)
        cells += ["", "", "the reference"] if name == reference else _verdict(test, p)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _verdict(test: Paired | None, p: float | None) -> list[str]:
    """Say a difference with its interval, the corrected p, and what may be said."""
    if test is None or test.difference.low is None or test.difference.high is None:
        return ["", "", ""]
    low, high = test.difference.low, test.difference.high
    differs = p is not None and p < 0.05 and (low > 0 or high < 0)
    verdict = "no difference seen"
    if differs:
        verdict = "above" if test.difference.mean > 0 else "below"
    shown = "–" if p is None else f"{p:.4f}" if p >= 0.0001 else "< 0.0001"
    return [f"{test.difference.mean:+.3f} [{low:+.3f}, {high:+.3f}]", shown, verdict]


def _curves(panel: Panel, measure: str) -> str:
    label = f"Accuracy over what is left, {panel.model} on {panel.data}."
    look = styles([panel])
    with drawing(f"{measure}-{panel.model}", label, WIDE * 0.72, 3.4) as (figure, svg):
        axes = figure.add_subplot()
        names = list(dict.fromkeys(row.technique for row in panel.rows if row.role != "dense"))
        every: list[float] = []
        every_height = [panel.dense.accuracy.mean] if panel.dense is not None else []
        if panel.dense is not None:
            axes.axhline(panel.dense.accuracy.mean, color=COLOURS["dense"], lw=1.3, label="dense")
        least = min(row.left[measure].mean for row in panel.rows)
        for number, name in enumerate(names):
            style, curve = look[name], panel.curve(name)
            places = [row.left[measure].mean * _aside(number, len(names), least) for row in curve]
            heights = [row.accuracy.mean for row in curve]
            errors = [row.accuracy.half or 0.0 for row in curve]
            every += places
            every_height += [h + sign * e for h, e in zip(heights, errors, strict=True)
                             for sign in (-1, 1)]  # fmt: skip
            axes.errorbar(
                places, heights, yerr=errors, color=style.colour, marker=style.marker, ms=4.5,
                lw=1.5, elinewidth=0.8, ls=(0, (3, 2)) if style.dashed else "-", label=name,
                mfc="none" if style.dashed else style.colour,
            )  # fmt: skip
        _finish(axes, "share of multiply-accumulates left" if "macs" in measure else
                "share of parameters left", every, every_height)  # fmt: skip
    return svg[0]


def _aside(number: int, count: int, least: float) -> float:
    """Return a factor that moves a curve a little, so that intervals at one place part.

    On an axis from ``least`` to one, the curves of a place stand 0.5 % of its width apart.
    """
    return float((1 / least) ** (0.005 * (number - (count - 1) / 2)))


def _finish(axes: Any, label: str, places: Iterable[float], heights: Sequence[float]) -> None:
    axes.set_xscale("log")
    coarse = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 1)
    fine = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1)
    ticks = [tick for tick in (fine if min(places) > 0.4 else coarse)
             if 0.85 * min(places) <= tick]  # fmt: skip
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    low, high = min(heights), max(heights)
    margin = 0.06 * (high - low) + 0.01
    axes.set_ylim(max(0.0, low - margin), min(1.0, high + margin))
    axes.set_xlabel(label)
    axes.set_ylabel("accuracy")
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8.5)


def _document(svg: str) -> str:
    """Make the element a file of its own: a white ground, and colours that need no page."""
    plain = re.sub(r"var\(--\w+, (#[0-9a-f]{6})\)", r"\1", svg)
    head, _, rest = plain.partition(">")
    style = "font-family: system-ui, sans-serif; background: #fff"
    # Matplotlib's links to markers and images need the namespace of links.
    spaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    box = re.search(r'viewBox="([\d. ]+)"', head)
    ground = ""
    if box:
        x, y, width, height = box[1].split()
        ground = f'<rect x="{x}" y="{y}" width="{width}" height="{height}" fill="#fff"/>'
    return f'{head} {spaces} style="{style}">{ground}{rest}\n'


CHANNELS = ("red", "green", "blue", "grey", "saturation", "value", "edges across", "edges down",
            "noise 1", "noise 2", "another image's red", "another image's grey")  # fmt: skip
METHODS = ("induced", "random", "variance", "logistic", "weights only")


def of_features(records: Sequence[Record], pages: Path) -> None:
    """Draw the curves of the feature study, the maps, and print its tables."""
    _maps(records, pages)
    _channels(records, pages)
    for task in dict.fromkeys(record["task"] for record in records):
        mine = [record for record in records if record["task"] == task]
        path = pages / f"features_{task.replace(' ', '_')}.svg"
        path.write_text(_document(_feature_curves(task, mine)), encoding="utf-8")
        budgets = sorted({record["budget"] for record in mine} - {0.0})
        points: dict[str, list[str]] = {}
        means: dict[str, dict[int, float]] = {}
        for method in METHODS:
            for budget in budgets:
                values = {r["seed"]: r["accuracy"] for r in mine
                          if (r["method"], r["budget"]) == (method, budget)}  # fmt: skip
                points.setdefault(method, []).append(f"{interval(list(values.values())).mean:.3f}")
                for seed, value in values.items():
                    row = means.setdefault(method, {})
                    row[seed] = row.get(seed, 0.0) + value / len(budgets)
        dense = interval([r["accuracy"] for r in mine if r["method"] == "dense"])
        inputs = [
            interval([r["inputs"] for r in mine if (r["method"], r["budget"]) == ("induced", b)])
            for b in budgets
        ]
        read = " · ".join(f"{each.mean:.0f}" for each in inputs)
        said = f"Dense: {dense.mean:.3f} ± {dense.half or 0:.3f}. Inputs read: {read}.\n\n"
        fill(pages, f"features {task}", said + _table(points, means, "induced"))


def _maps(records: Sequence[Record], pages: Path) -> None:
    """Draw which pixels the first seed's networks read, over the mean image."""
    spec = "fashion-mnist:runs/data/fashion_mnist"
    images: Any = load_data(spec, limit=4000, seed=0).train.images
    mean = images[torch.arange(4000)].float().mean((0, 1))
    whole = {"pixels": mean, "patch entries": mean.reshape(4, 7, 4, 7).mean((0, 2))}
    for task, image in whole.items():
        mine = [r for r in records
                if (r["task"], r["method"], r["seed"]) == (task, "induced", 0)]  # fmt: skip
        for number, record in enumerate(sorted(mine, key=lambda each: each["budget"])):
            kept = torch.zeros(image.numel(), dtype=torch.bool)
            kept[record["kept"]] = True
            svg = features_svg(kept.reshape(image.shape), image, title=f"{int(kept.sum())} read")
            path = pages / f"map_{task.replace(' ', '_')}_{number}.svg"
            path.write_text(_document(svg), encoding="utf-8")


def _channels(records: Sequence[Record], pages: Path) -> None:
    """Count how often each channel is read, over budgets and seeds."""
    mine = [r for r in records if (r["task"], r["method"]) == ("channels", "induced")]
    lines = ["| channel | networks that read it |", "| --- | ---: |"]
    for place, name in enumerate(CHANNELS):
        count = sum(place in record["kept"] for record in mine)
        lines.append(f"| {name} | {count} of {len(mine)} |")
    fill(pages, "features kept channels", "\n".join(lines))


def _feature_curves(task: str, records: Sequence[Record]) -> str:
    with drawing(f"features-{task}", f"Accuracy over parameters, {task}.", WIDE * 0.72, 3.2) as (
        figure, svg,
    ):  # fmt: skip
        axes = figure.add_subplot()
        dense = [r for r in records if r["method"] == "dense"]
        whole = dense[0]["params"]
        axes.axhline(
            interval([r["accuracy"] for r in dense]).mean, color=COLOURS["dense"], lw=1.3,
            label="dense",
        )  # fmt: skip
        every: list[float] = []
        every_height = [interval([r["accuracy"] for r in dense]).mean]
        least = min(r["params"] for r in records) / whole
        for number, method in enumerate(METHODS):
            mine = [r for r in records if r["method"] == method]
            budgets = sorted({r["budget"] for r in mine})
            groups = [[r for r in mine if r["budget"] == budget] for budget in budgets]
            aside = _aside(number, len(METHODS), least)
            places = [interval([r["params"] for r in group]).mean / whole * aside
                      for group in groups]  # fmt: skip
            found = [interval([r["accuracy"] for r in group]) for group in groups]
            every += places
            every_height += [end for each in found for end in (each.low, each.high)
                             if end is not None]  # fmt: skip
            axes.errorbar(
                places, [each.mean for each in found], yerr=[each.half or 0.0 for each in found],
                color=COLOURS[f"series{number + 1}"], marker="os^Dv"[number], ms=4.5, lw=1.5,
                elinewidth=0.8, label=method,
            )  # fmt: skip
        _finish(axes, "share of parameters left", every, every_height)
    return svg[0]


def of_variety(records: Sequence[Record], pages: Path) -> None:
    """Print what became of filters chosen by what they resemble in."""
    dense = interval([r["accuracy"] for r in records if r["criterion"] == "dense"])
    said = f"Dense: {dense.mean:.3f} ± {dense.half or 0:.3f}.\n\n"
    records = [record for record in records if record["criterion"] != "dense"]
    names = {
        " of ".join(filter(None, [r["variety"] and f"variety ({r['variety']})", r["criterion"]])): (
            r["criterion"], r["variety"])
        for r in records
    }  # fmt: skip
    for measure in ("tuned", "ticket"):
        points: dict[str, list[str]] = {}
        means: dict[str, dict[int, float]] = {}
        for name, key in names.items():
            mine = [r for r in records if (r["criterion"], r["variety"]) == key]
            shares = sorted({r["kept"] for r in mine}, reverse=True)
            for share in shares:
                values = {r["seed"]: r[measure] for r in mine if r["kept"] == share}
                points.setdefault(name, []).append(f"{interval(list(values.values())).mean:.3f}")
                for seed, value in values.items():
                    row = means.setdefault(name, {})
                    row[seed] = row.get(seed, 0.0) + value / len(shares)
        fill(pages, f"variety {measure}", said + _table(points, means, "magnitude"))
    lines = ["| | alike by weights | alike by activations |", "| --- | ---: | ---: |"]
    for name, key in names.items():
        mine = [r for r in records if (r["criterion"], r["variety"]) == key]
        found = [interval([r["alike"][kind] for r in mine]) for kind in ("weights", "activations")]
        lines.append(f"| {name} | {found[0].mean:.3f} | {found[1].mean:.3f} |")
    fill(pages, "variety alike", "\n".join(lines))
    fill(pages, "variety contrast", variety_contrast(records))


def variety_contrast(records: Sequence[Record]) -> str:
    """Test variety by weights against none, averaged over criteria and budgets, seed by seed."""
    measures: dict[str, Callable[[Record], float]] = {
        "accuracy, tuned": lambda record: record["tuned"],
        "accuracy, ticket": lambda record: record["ticket"],
        "alike by weights": lambda record: record["alike"]["weights"],
        "alike by activations": lambda record: record["alike"]["activations"],
    }
    criteria = ("magnitude", "movement", "taylor")
    count = len(criteria) * len({record["kept"] for record in records})
    rows = []
    for label, value in measures.items():
        with_it, without = (
            [r for r in records if r["variety"] == kind and r["criterion"] in criteria]
            for kind in ("weights", "")
        )
        rows.append((label, _averaged(with_it, count, value), _averaged(without, count, value)))
    return _pairs(rows)


def criteria_contrast(records: Sequence[Record]) -> str:
    """Test each criterion with variety against without, averaged over budgets, seed by seed."""
    budgets = len({record["budget"] for record in records} - {None, 0.0})
    criteria = ("magnitude", "movement", "taylor")

    def curve(names: Collection[str]) -> dict[int, float]:
        mine = [record for record in records if record["technique"] in names]
        return _averaged(mine, budgets * len(names), itemgetter("accuracy"))

    rows = [(f"variety of {name}, against {name}", curve({f"variety of {name}"}), curve({name}))
            for name in criteria]  # fmt: skip
    varied = curve({f"variety of {name}" for name in criteria})
    return _pairs([*rows, ("all three, against all three", varied, curve(set(criteria)))])


PAIRS = (
    ("secateur, local", "Torch-Pruning, local"),
    ("secateur, global", "Torch-Pruning, global"),
    ("secateur, local, filters alone", "secateur, local"),
    ("secateur, global", "secateur, local"),
)


def resnet56_table(records: Sequence[Record]) -> str:
    """Return the table of ResNet-56."""
    lines = ["| | asked | achieved | parameters left | before fine-tuning | "
             "accuracy, 95 % interval |",
             "| --- | ---: | ---: | ---: | ---: | ---: |"]  # fmt: skip
    ratios = sorted({record["ratio"] for record in records})
    for ratio in ratios:
        for way in dict.fromkeys(record["way"] for record in records):
            mine = [r for r in records if (r["way"], r["ratio"]) == (way, ratio)]
            found = interval([r["accuracy"] for r in mine])
            lines.append(
                f"| {way} | {ratio}x | {mine[0]['achieved']:.2f}x | {mine[0]['params']:.3f} | "
                f"{mine[0]['accuracy_early']:.3f} | {found.mean:.3f}"
                f"{'' if found.half is None else f' ± {found.half:.3f}'} |"
            )
    return "\n".join(lines)


def resnet56_pairs(records: Sequence[Record]) -> str:
    """Test ways against each other: accuracy averaged over the ratios, seed by seed."""
    ratios = {record["ratio"] for record in records}
    means = {
        way: _averaged([r for r in records if r["way"] == way], len(ratios), itemgetter("accuracy"))
        for way in dict.fromkeys(record["way"] for record in records)
    }
    rows = []
    for one, other in PAIRS:
        if one not in means or other not in means:
            continue
        alike = [r["same_channels"] for r in records if r["way"] == other]
        shown = f" ({100 * min(alike):.1f} % the same channels)" if "Torch" in other else ""
        rows.append((f"{one}, against {other}{shown}", means[one], means[other]))
    return _pairs(rows)


def _averaged(
    records: Sequence[Record], count: int, value: Callable[[Record], float]
) -> dict[int, float]:
    """Return each seed's mean value, of the seeds that have as many records."""
    found: dict[int, list[float]] = {}
    for record in records:
        found.setdefault(record["seed"], []).append(value(record))
    return {seed: sum(all_) / count for seed, all_ in found.items() if len(all_) == count}


def _pairs(rows: Sequence[tuple[str, Mapping[int, float], Mapping[int, float]]]) -> str:
    """Return a table of differences, seed by seed, with Holm's correction over its rows."""
    found = [paired(one, other) for _, one, other in rows]
    adjusted = holm([each.p if each else None for each in found])
    lines = ["| | difference, 95 % interval | p, corrected | |", "| --- | --- | ---: | --- |"]
    for (label, _, _), test, p in zip(rows, found, adjusted, strict=True):
        lines.append(f"| {label} | " + " | ".join(_verdict(test, p)) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
