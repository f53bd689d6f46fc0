"""A study file: techniques x budgets x seeds x data x models, read from YAML and checked."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from secateur.errors import SecateurError, suggestion
from secateur.study.cells import Cell
from secateur.technique import Criterion, Technique
from secateur.technique.catalogue import find_technique
from secateur.train import Settings

DENSE = "dense"
_LARGEST_FILE = 64_000
_MOST_CELLS = 10_000
_KEYS = ("title", "question", "techniques", "reference", "budgets", "seeds", "models", "data",
         "training")  # fmt: skip
_CURRENCIES = ("sparsity", "params", "macs", "bytes", "latency")
_TRAINING = {
    "epochs": int, "batch_size": int, "learning_rate": float, "include": tuple, "exclude": tuple,
}  # fmt: skip
_MODEL = {"model": str, "weights": str, "pretrained": bool, **_TRAINING}
_DATA = {"data": str, "size": int, "limit": int}
_WORDS = {int: "a whole number", float: "a number", str: "a text", bool: "true or false",
          tuple: "a list of texts"}  # fmt: skip


@dataclass(frozen=True)
class Named:
    """Something of the study file under the label that it has on the page."""

    label: str
    values: Mapping[str, Any]


@dataclass(frozen=True)
class Study:
    """A grid of cells, and what the page says about it; ``Study.read`` makes one.

    ``reference`` is the label of the technique that all others are tested against.
    """

    title: str
    question: str
    techniques: Mapping[str, str]
    reference: str
    budgets: tuple[tuple[str, float], ...]
    seeds: tuple[int, ...]
    models: tuple[Named, ...]
    data: tuple[Named, ...]
    training: Mapping[str, Any]
    cells: tuple[Cell, ...]

    @classmethod
    def read(cls, path: str | Path) -> Study:
        """Read a study file; raises SecateurError, quoting the file, for what cannot be done."""
        path = Path(path)
        try:
            if path.stat().st_size > _LARGEST_FILE:
                raise SecateurError(f"{path} is larger than {_LARGEST_FILE:,} bytes: no study file")
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or error
            raise SecateurError(f"{path} cannot be read as a study: {reason}") from error
        try:
            return cls.parse(text)
        except SecateurError as error:
            raise SecateurError(f"{path}: {error}") from error

    @classmethod
    def parse(cls, text: str) -> Study:
        """Read the text of a study file.

        >>> study = Study.parse("techniques: [weight | local | magnitude | agp]\\nseeds: 2")
        >>> [cell.words() for cell in study.cells if cell.settings.seed == 1]  # doctest: +ELLIPSIS
        ['dense, cnn on digits, seed 1', 'random weight, sparsity 0.9, cnn on digits, seed 1', ...]
        """
        found = _mapping(_load(text), "a study file")
        _known(found, _KEYS, "a study")
        if "techniques" not in found:
            raise SecateurError("a study needs techniques: a list of texts, or labels with texts")
        techniques = _techniques(found["techniques"])
        reference = found.get("reference", next(iter(techniques)))
        if not isinstance(reference, str) or reference not in techniques:
            raise SecateurError(
                f"the reference {quoted(reference)} is no technique of the study: "
                f"{suggestion(reference if isinstance(reference, str) else '', techniques)}"
            )
        study = cls(
            _text(found.get("title", "A study"), "title"),
            _text(found.get("question", ""), "question"),
            techniques,
            reference,
            _budgets(found.get("budgets", {"sparsity": [0.9]})),
            _seeds(found.get("seeds", 3)),
            _named(found.get("models", ["cnn"]), "models", "model", _MODEL),
            _named(found.get("data", ["digits"]), "data", "data", _DATA),
            _options(found.get("training", {}), "training", _TRAINING),
            (),
        )
        return replace(study, cells=_different(_cells(study)))


def quoted(value: object) -> str:
    """Quote a value of the file, however large it is.

    >>> quoted(0.5), quoted("a" * 500)[-4:], quoted([1, 2])
    ("'0.5'", "aa…'", 'a list')
    """
    if isinstance(value, (dict, list)):
        return "a list" if isinstance(value, list) else "a mapping"
    text = str(value)
    return f"'{text if len(text) <= 100 else text[:100] + '…'}'"


class _Loader(yaml.SafeLoader):
    """Builds plain values only, and refuses keys given twice and references."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()  # type: ignore[no-untyped-call]
            raise SecateurError(
                f"line {event.start_mark.line + 1}: references (*{event.anchor}) are not read; "
                "write the value again"
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for place, key in enumerate(keys):
            if not isinstance(key, str):
                line = node.value[place][0].start_mark.line + 1
                raise SecateurError(f"line {line}: the key {quoted(key)} is not a text; quote it")
            if key in keys[:place]:
                line = node.value[place][0].start_mark.line + 1
                raise SecateurError(f"line {line}: the key {quoted(key)} is given twice")
        return super().construct_mapping(node, deep)


def _load(text: str) -> Any:
    if len(text) > _LARGEST_FILE:
        raise SecateurError(f"a study of {len(text):,} characters is too long")
    try:
        return yaml.load(text, Loader=_Loader)
    except SecateurError:
        raise
    except (yaml.YAMLError, ValueError, TypeError, OverflowError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}: " if mark else ""
        reason = getattr(error, "problem", None) or str(error).partition("\n")[0]
        raise SecateurError(f"{where}this is not YAML: {reason}") from error


def _mapping(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise SecateurError(f"{what} is a mapping from names to values, not {quoted(value)}")
    return value


def _known(found: Mapping[str, Any], accepted: Any, what: str) -> None:
    for key in found:
        if key not in accepted:
            raise SecateurError(f"{what} has no {quoted(key)}: {suggestion(key, accepted)}")


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise SecateurError(f"{what} is {quoted(value)}: expected a text")
    return " ".join(value.split())


def _entries(value: Any, what: str) -> dict[str, Any]:
    """Read a list of texts, which are their own labels, or a mapping from labels."""
    if isinstance(value, str):
        value = [value]
    if isinstance(value, list):
        for each in value:
            if not isinstance(each, str):
                raise SecateurError(f"{what}: {quoted(each)} is not a text; to give it a label and "
                                    f"settings, write {what} as a mapping")  # fmt: skip
            if value.count(each) > 1:
                raise SecateurError(f"{what}: {quoted(each)} is given twice")
        value = {each: each for each in value}
    if not isinstance(value, dict) or not value:
        raise SecateurError(f"{what} is {quoted(value)}: expected a list of texts, or labels with "
                            "texts, at least one")  # fmt: skip
    return value


def _techniques(value: Any) -> dict[str, str]:
    found: dict[str, str] = {}
    seen: dict[Technique, str] = {}
    for label, text in _entries(value, "techniques").items():
        if not isinstance(text, str):
            raise SecateurError(f"techniques: {quoted(label)} is {quoted(text)}: expected the text "
                                "of a technique or a name of the catalogue")  # fmt: skip
        if label == DENSE or label.startswith("random "):
            raise SecateurError(f"techniques: the label {quoted(label)} is kept for a baseline; "
                                "choose another")  # fmt: skip
        try:
            technique = find_technique(text)
        except SecateurError as error:
            raise SecateurError(f"techniques: {error}") from error
        if technique in seen:
            raise SecateurError(f"techniques: {quoted(label)} and {quoted(seen[technique])} are "
                                f"the same: {technique}")  # fmt: skip
        seen[technique] = label
        found[label] = text
    return found


def _budgets(value: Any) -> tuple[tuple[str, float], ...]:
    found = []
    _known(_mapping(value, "budgets"), _CURRENCIES, "budgets")
    for currency, listed in value.items():
        numbers = listed if isinstance(listed, list) else [listed]
        for number in numbers:
            if isinstance(number, bool) or not isinstance(number, (int, float)):
                raise SecateurError(f"budgets: {currency} {quoted(number)} is not a number")
            if not 0 < number < 1:
                raise SecateurError(
                    f"budgets: {currency} {quoted(number)} should be a fraction between 0 and 1"
                )
            if (currency, float(number)) in found:
                raise SecateurError(f"budgets: {currency} {quoted(number)} is given twice")
            found.append((currency, float(number)))
    if not found:
        raise SecateurError("budgets are empty: write, for instance, sparsity: [0.5, 0.9]")
    return tuple(found)


def _seeds(value: Any) -> tuple[int, ...]:
    """Read a list of seeds, or their number."""
    if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= _MOST_CELLS:
        return tuple(range(value))
    if not isinstance(value, list) or not value:
        raise SecateurError(f"seeds is {quoted(value)}: expected how many, or a list of numbers")
    for seed in value:
        if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
            raise SecateurError(f"seeds: {quoted(seed)} should be a whole number, 0 to {2**32 - 1}")
        if value.count(seed) > 1:
            raise SecateurError(f"seeds: {quoted(seed)} is given twice")
    return tuple(value)


def _named(value: Any, what: str, key: str, accepted: Mapping[str, type]) -> tuple[Named, ...]:
    found = []
    for label, given in _entries(value, what).items():
        values = {key: given} if isinstance(given, str) else given
        where = f"{what}: {quoted(label)}"
        options = _options(values, where, accepted)
        if key not in options:
            raise SecateurError(f"{where} names no {key}; write {key}: TEXT")
        found.append(Named(label, options))
    return tuple(found)


def _options(value: Any, what: str, accepted: Mapping[str, type]) -> dict[str, Any]:
    _known(_mapping(value, what), accepted, what)
    return {key: _option(given, f"{what}: {key}", accepted[key]) for key, given in value.items()}


def _option(given: Any, what: str, kind: type) -> Any:
    if kind is tuple:
        listed = [given] if isinstance(given, str) else given
        if isinstance(listed, list) and all(isinstance(each, str) for each in listed):
            return tuple(listed)
    elif kind is bool or not isinstance(given, bool):
        if kind is float and isinstance(given, int):
            return float(given)
        if isinstance(given, kind):
            return given
    raise SecateurError(f"{what} is {quoted(given)}: expected {_WORDS[kind]}")


def _cells(study: Study) -> Iterator[Cell]:
    """Give every cell, all of the first seed before the second, so that trouble shows early."""
    count = (
        (len(study.techniques) + 2) * len(study.budgets) * len(study.seeds)
        * len(study.models) * len(study.data)
    )  # fmt: skip
    if count > _MOST_CELLS:
        raise SecateurError(f"this grid has about {count:,} cells; at most {_MOST_CELLS:,} are run")
    techniques = [("technique", *each) for each in study.techniques.items()]
    techniques = [("random", *each) for each in _random(study.techniques)] + techniques
    weights = {each.label: _weights(each) for each in study.models}
    for seed in study.seeds:
        for data in study.data:
            for model in study.models:
                common = {**study.training, **model.values, **data.values, "seed": seed}
                place = model.label, data.label
                yield Cell(DENSE, *place, DENSE, _dense(common), weights[model.label])
                for role, label, text in techniques:
                    for settings in _runs(text, study.budgets, common):
                        yield Cell(label, *place, role, settings, weights[model.label])


def _different(cells: Iterator[Cell]) -> tuple[Cell, ...]:
    """Refuse labels of models or data behind which the same run stands."""
    found: dict[str, Cell] = {}
    for cell in cells:
        other = found.setdefault(cell.name, cell)
        if other is not cell:
            raise SecateurError(f"{quoted(cell.words())} and {quoted(other.words())} are the same "
                                "run under two labels; leave one out")  # fmt: skip
    return tuple(found.values())


def _dense(common: Mapping[str, Any]) -> Settings:
    """Train the same network for the same steps with nothing removed."""
    nothing = "weight | global | magnitude | one_shot"
    return Settings(technique=nothing, sparsity=0.0, baseline=False, **common)


def _runs(
    text: str, budgets: tuple[tuple[str, float], ...], common: Mapping[str, Any]
) -> Iterator[Settings]:
    """Give one run per budget, or the only one of a technique that brings its budget along."""
    technique = find_technique(text)
    given: tuple[dict[str, Any], ...] = tuple({currency: value} for currency, value in budgets)
    if technique.granularity.block is not None or technique.context.given:
        given = ({},)
    teacher = technique.objective.name == "distillation"
    for budget in given:
        yield Settings(technique=text, baseline=teacher, **budget, **common)


def _random(techniques: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Give a baseline of random scores for every granularity that has none of its own.

    It takes the context and the schedule of the first technique with that granularity.
    """
    found = [find_technique(text) for text in techniques.values()]
    random = Criterion.parse("random")
    covered = {each.granularity for each in found if each.criteria == random}
    for each in found:
        if each.granularity not in covered:
            covered.add(each.granularity)
            baseline = Technique(each.granularity, each.context, random, each.schedule)
            yield f"random {each.granularity}", str(baseline)


def _weights(model: Named) -> str:
    """Return the SHA-256 of the file that a model starts from; its name may stay and it change."""
    path = model.values.get("weights")
    if path is None:
        return ""
    try:
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(
                hashlib, "file_digest") else hashlib.sha256(file.read()).hexdigest()  # fmt: skip
    except OSError as error:
        raise SecateurError(f"models: {quoted(model.label)}: the weights {quoted(path)} cannot be "
                            f"read: {error.strerror}") from error  # fmt: skip
