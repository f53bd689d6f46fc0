"""Write docs/techniques.md and docs/techniques.html: run `python docs/list_techniques.py`."""

from __future__ import annotations

import json
import re
from html import escape
from pathlib import Path

from secateur.sparsify import lacks
from secateur.technique.catalogue import CatalogueEntry, catalogue

HEAD = """# Techniques

Published techniques as records of the axes. A name can stand wherever a technique is asked for:
`secateur compress --technique dpf`. `secateur describe NAME` says a record in words, and
`secateur list techniques --json` gives all of it to programs. [Which one should I use?](guide.md)
The [sortable table](techniques.html) says what differs between neighbours. Written by
`docs/list_techniques.py`.
"""
AXES = {
    "granularity": "granularity",
    "context": "context",
    "criteria": "criterion",
    "schedule": "schedule",
    "update": "update",
    "objective": "objective",
}
"""The parts of a record, and the words over their columns."""


def page() -> str:
    """Return the page: a table of what runs, a table of what does not, and a paragraph each."""
    running = [entry for entry in catalogue() if not missing(entry)]
    lacking = [entry for entry in catalogue() if missing(entry)]
    lines = [HEAD, f"## {len(running)} that run", "", "| name | record |", "| --- | --- |"]
    lines += [f"| [`{entry.name}`](#{entry.name}) | {record(entry)} |" for entry in running]
    lines += ["", f"## {len(lacking)} that lack something", ""]
    lines += ["The record is what of the technique can be written.", ""]
    lines += ["| name | record | lacks |", "| --- | --- | --- |"]
    for entry in lacking:
        names = ", ".join(text.partition(":")[0] for text in missing(entry))
        lines.append(f"| [`{entry.name}`](#{entry.name}) | {record(entry)} | {names} |")
    lines += ["", "## One by one"]
    for entry in catalogue():
        lines += ["", f"### {entry.name}", "", f"{entry.title}. {entry.citation}.", ""]
        lines.append(entry.summary)
        lines += [f"It lacks {text}." for text in missing(entry)]
    return "\n".join(lines) + "\n"


def missing(entry: CatalogueEntry) -> list[str]:
    """Return everything that keeps a record from running."""
    return [*lacks(entry.technique), *entry.lacks]


def record(entry: CatalogueEntry) -> str:
    """Return the record's text for a table's cell."""
    return f"`{entry.technique}`".replace("|", "\\|")


def table() -> str:
    """Return the sortable table: one file that asks nothing of the network."""
    columns = ["name", *AXES.values(), "year", "runs"]
    head = [f'<th scope="col"><button type="button">{name}</button></th>' for name in columns]
    head.append('<th scope="col">differs from above in</th>')
    return _fill(
        Path(__file__).with_name("techniques_page.html").read_text(encoding="utf-8"),
        count=str(len(catalogue())),
        head="\n".join(head),
        rows="\n".join(map(_body, catalogue())),
        axes=json.dumps(list(AXES.values())),
    )


def _fill(template: str, **values: str) -> str:
    for name, value in values.items():
        template = template.replace("{{" + name + "}}", value)
    return template


def _breakable(text: str) -> str:
    """Escape a text, and let lines break within its words."""
    return re.sub(r"(?<=[(_])(?=\w)", "<wbr>", escape(text))


def _body(entry: CatalogueEntry) -> str:
    """Return a record's row, and the hidden row that tells about it."""
    cells = [
        f'<th scope="row"><button type="button" aria-expanded="false">'
        f"{_breakable(entry.name)}</button></th>"
    ]
    for part, label in AXES.items():
        text = _breakable(str(getattr(entry.technique, part)))
        plain = ' class="empty"' if text in ("keep", "none") else ""
        cells.append(f'<td data-label="{label}"{plain}><code>{text}</code></td>')
    names = ", ".join(text.partition(":")[0] for text in missing(entry))
    runs = f'<span class="lacks">lacks {_breakable(names)}</span>' if names else "runs"
    cells.append(f'<td class="year" data-label="year">{entry.citation.year}</td>')
    cells.append(f'<td data-label="runs" data-value="{"lacks" if names else "runs"}">{runs}</td>')
    cells.append('<td class="differs" data-label="differs in"></td>')
    told = [f"{entry.title}. {entry.citation}.", entry.summary]
    told += [f"It lacks {text}." for text in missing(entry)]
    paragraphs = "".join(f"<p>{escape(text)}</p>" for text in told)
    return "\n".join(
        [
            "<tbody>",
            f"<tr>{''.join(cells)}</tr>",
            f'<tr class="more" hidden><td colspan="{len(cells)}">{paragraphs}</td></tr>',
            "</tbody>",
        ]
    )


if __name__ == "__main__":
    folder = Path(__file__).parent
    (folder / "techniques.md").write_text(page(), encoding="utf-8")
    (folder / "techniques.html").write_text(table(), encoding="utf-8")
