"""The results folder of a study: one file per finished cell, written whole or not at all."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from secateur.errors import SecateurError
from secateur.study.cells import FORMAT

HEADER, LOCK, CELLS, RUNS = "study.json", ".lock", "cells", "runs"
RESULTS, PARQUET = "results.jsonl", "results.parquet"
_LARGEST_RECORD = 10_000_000
_PATIENCE_SECONDS = 3.0
# Of the versions, those that a result depends on so much that a mix has to be asked for.
_DECISIVE = ("secateur", "torch")


class DiskError(SecateurError):
    """The results folder cannot be written; what is finished is kept."""


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[int]:
    """Hold the folder's lock, and give its file descriptor for the workers to hold as well.

    The system frees the lock when the last process that holds it ends, however it ends. Raises
    SecateurError where another study holds it.
    """
    try:
        import fcntl
    except ImportError as error:
        raise SecateurError("studies need file locks as Linux and macOS have them") from error
    with told(folder):
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        end = time.monotonic() + _PATIENCE_SECONDS
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                # The workers of a study that was killed need a moment to notice.
                if time.monotonic() > end:
                    raise SecateurError(
                        f"another study is running on {folder}: wait for its end, or choose "
                        "another --out"
                    ) from error
                time.sleep(0.05)
        yield descriptor
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def told(folder: Path) -> Iterator[None]:
    """Turn a failure to write (a full disk, say) into one line."""
    try:
        yield
    except OSError as error:
        raise DiskError(
            f"{folder} cannot be written: {error.strerror or error}; what is finished is kept, and "
            "the same command goes on"
        ) from error


def write(path: Path, content: bytes) -> None:
    """Write a file beside its place, then move it there; raises SecateurError if that fails."""
    partial = path.with_name(f".{path.name}.partial")
    with told(path.parent):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with partial.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        except OSError:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
            raise


def open_folder(folder: Path, title: str, versions: Mapping[str, str], mix: bool) -> list[str]:
    """Check that the folder is ours and of these versions, or begin it; return remarks.

    Raises SecateurError for a folder that holds something else, another format of results, or (but
    with ``mix``) results of other versions of secateur or torch.
    """
    header = folder / HEADER
    if not header.exists():
        # A file that begins with a dot is the lock, or what a killed run left half written.
        others = [path.name for path in folder.iterdir() if not path.name.startswith(".")]
        if others:
            raise SecateurError(f"{folder} holds something else ({sorted(others)[0]}): choose an "
                                "empty or new folder with --out")  # fmt: skip
        write(header, _json({"format": FORMAT, "title": title, "versions": dict(versions)}))
        return []
    found = _read(header)
    if found is None or "format" not in found:
        raise SecateurError(f"{header} is damaged: delete it, the finished cells beside it are "
                            "kept")  # fmt: skip
    if found["format"] != FORMAT:
        raise SecateurError(
            f"{folder} holds results in the format {found['format']}, this version reads {FORMAT}: "
            "choose another --out"
        )
    before = found.get("versions") or {}
    if mix:
        return []
    for name in _DECISIVE:
        if before.get(name) != versions.get(name):
            raise SecateurError(
                f"{folder} holds results of {name} {before.get(name)}, this is "
                f"{versions.get(name)}: choose another --out, or take both together with --mix"
            )
    if before.get("code") != versions.get("code"):
        return ["the code of secateur has changed since the first cells of this folder were run"]
    return []


def read_cells(folder: Path) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Return the records of all finished cells by name, and remarks on files that are damaged."""
    records, remarks = {}, []
    for path in sorted((folder / CELLS).glob("*.json")):
        record = _read(path)
        if record is None or record.get("cell") != path.stem or record.get("format") != FORMAT:
            remarks.append(f"{path} is damaged: it does not count, and its cell is run again")
        else:
            records[path.stem] = record
    return records, remarks


def write_cell(folder: Path, record: Mapping[str, Any]) -> None:
    """Keep the record of a finished cell."""
    write(folder / CELLS / f"{record['cell']}.json", _json(record))


def write_results(folder: Path, records: Sequence[Mapping[str, Any]]) -> list[str]:
    """Write all records as JSON lines and Parquet; return a remark where Parquet is not at hand."""
    lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    write(folder / RESULTS, lines.encode())
    if not records:
        return []
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        return [f"{PARQUET} is not written without pyarrow: pip install 'secateur[study]'"]
    rows = [_flat(record) for record in records]
    # A table has the columns of its first row unless told of the others.
    columns = {key: [row.get(key) for row in rows] for row in rows for key in row}
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink)
    write(folder / PARQUET, sink.getvalue().to_pybytes())
    return []


def _flat(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return columns: what is nested becomes ``outer.inner``, lists become JSON."""
    row: dict[str, Any] = {}
    for key, value in record.items():
        if isinstance(value, Mapping):
            row.update({f"{key}.{inner}": each for inner, each in _flat(value).items()})
        else:
            row[key] = json.dumps(value, ensure_ascii=False) if isinstance(value, list) else value
    return row


def _read(path: Path) -> dict[str, Any] | None:
    """Read a JSON object; None where the file holds none."""
    try:
        if path.stat().st_size > _LARGEST_RECORD:
            return None
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def partials(folder: Path) -> Iterable[Path]:
    """Return what a killed run left half written."""
    return [*folder.glob(".*.partial"), *(folder / CELLS).glob(".*.partial")]
