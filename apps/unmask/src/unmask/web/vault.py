"""The private folder that uploads pass through: nothing in it outlives its use, or the server."""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from unmask.errors import UnmaskError

PRIVATE = 0o700


class Full(Exception):  # noqa: N818 - it is no fault
    """The folder may not grow any further now."""


class StoredFile:
    """One upload: written once, read by one worker, discarded."""

    def __init__(self, vault: Vault, path: Path) -> None:
        self.path = path
        self.size = 0
        self._vault = vault
        self._gone = False
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        self._file: IO[bytes] | None = os.fdopen(descriptor, "wb")

    def write(self, data: bytes) -> None:
        """Append; raises `Full` where the folder has no room left."""
        if self._file is None:
            raise ValueError("the file is closed")
        self._vault.claim(len(data))
        self.size += len(data)
        self._file.write(data)

    def close(self) -> None:
        """Finish writing."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def discard(self) -> None:
        """Delete the file; may be called again, and from any thread."""
        with self._vault.lock:
            gone, self._gone = self._gone, True
        if gone:
            return
        with suppress(OSError):
            self.close()
        self._file = None
        self.path.unlink(missing_ok=True)
        self._vault.release(self.size)


class Vault:
    """A folder of random names that only this user can open, locked while the server lives.

    ``root`` holds one folder for each running server. Folders whose lock nobody holds belong to
    servers that died: they are deleted at the start of the next one.
    """

    def __init__(self, root: Path, capacity: int) -> None:
        self.lock = threading.Lock()
        self.capacity = capacity
        self.used = 0
        _private(root)
        with _held(root / "lock"):
            self.swept = _sweep(root)
            self.path = root / f"server-{secrets.token_hex(8)}"
            self.path.mkdir(mode=PRIVATE)
            self._lock_file = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT, 0o600)
            fcntl.flock(self._lock_file, fcntl.LOCK_EX)

    def new(self) -> StoredFile:
        """Return a new empty file under a random name without an ending."""
        return StoredFile(self, self.path / secrets.token_hex(16))

    def files(self) -> list[Path]:
        """Return what lies in the folder now."""
        return [path for path in self.path.iterdir() if path.name != "lock"]

    def claim(self, size: int) -> None:
        """Count bytes in, or raise `Full`."""
        with self.lock:
            if self.used + size > self.capacity:
                raise Full
            self.used += size

    def release(self, size: int) -> None:
        """Count bytes out."""
        with self.lock:
            self.used -= size

    def close(self) -> None:
        """Delete the folder and all that is in it."""
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock_file)


def _private(root: Path) -> None:
    """Make the folder, or make sure that nobody else made it."""
    root.mkdir(mode=PRIVATE, parents=True, exist_ok=True)
    found = root.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise UnmaskError(f"{str(root)!r} is not a folder of this user: name another one")
    root.chmod(PRIVATE)


@contextmanager
def _held(path: Path) -> Iterator[None]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _sweep(root: Path) -> int:
    """Delete the folders of dead servers and return how many there were."""
    swept = 0
    for folder in root.glob("server-*"):
        try:
            descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        except OSError:
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
            swept += 1
        except BlockingIOError:
            pass
        finally:
            os.close(descriptor)
    return swept
