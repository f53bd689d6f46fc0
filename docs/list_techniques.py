"""Write docs/techniques.md: run `python docs/list_techniques.py`."""

from __future__ import annotations

from pathlib import Path

from secateur.sparsify import lacks
from secateur.technique.catalogue import CatalogueEntry, catalogue

HEAD = """# Techniques

Published techniques as records of the axes. A name can stand wherever a technique is asked for:
`secateur compress --technique dpf`. `secateur describe NAME` says a record in words, and
`secateur list techniques --json` gives all of it to programs. Written by
`docs/list_techniques.py`.
"""


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


if __name__ == "__main__":
    Path(__file__).with_name("techniques.md").write_text(page(), encoding="utf-8")
