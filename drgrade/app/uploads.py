"""Temporary storage of uploaded files, in memory if possible."""

import os
import re
import secrets
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock, Timeout

from drgrade.errors import ConfigError

MAX_BYTES = 60_000_000
"""Largest file that is analysed: an uncompressed photograph of 20 megapixels."""

MAX_FILES = 8
"""Number of files that are analysed together."""

MAX_KEPT = 4 * MAX_FILES
"""Number of files that are kept at the same time, of at most ``MAX_FILES * MAX_BYTES`` together."""

_PREFIX = "drgrade-app-"
_IN_MEMORY = Path("/dev/shm")
_MIN_FREE = 2**31  # bytes that must be free in memory; otherwise temporary files are on disk

_SECONDS_KEPT = 600.0
_CLEANUP_SECONDS = 30.0
_MAX_NAME = 100


@dataclass(frozen=True)
class Upload:
    """One uploaded file.

    Attributes:
        name: Original name; may contain any characters.
        path: Stored file; empty if it was too large.
        size: Size in bytes as sent.
    """

    name: str
    path: Path
    size: int

    @property
    def is_too_large(self) -> bool:
        """True if its content was not stored."""
        return self.size > MAX_BYTES


class Uploads(AbstractContextManager["Uploads"]):
    """Stores files until they are analysed; a context manager that deletes everything at the end.

    Files that are not requested are deleted after ten minutes; earlier, the oldest first, if there are more
    than :data:`MAX_KEPT`, or they have more than ``MAX_FILES * MAX_BYTES`` bytes together. If the process is
    killed, the next one deletes its files; in memory (``/dev/shm``) they are lost when the computer is
    switched off.

    Attributes:
        folder: Folder of the files, readable by its owner only.
    """

    def __init__(self, parent: Path | None = None) -> None:
        """Create the folder, and delete those of processes that were killed.

        Args:
            parent: Parent folder; None for memory if there is space, else the folder of temporary files.

        Raises:
            ConfigError: If it is not writable.
        """
        parent = parent or _default_parent()
        self.folder = parent / f"{_PREFIX}{secrets.token_hex(8)}"
        # The lock is acquired before the folder is created, so a folder without a held lock has no owner.
        self._lock = FileLock(parent / f"{self.folder.name}.lock")
        try:
            _delete_orphans(parent)
            self._lock.acquire()
            self.folder.mkdir(mode=0o700)
        except OSError as error:
            self._lock.release()
            raise ConfigError(f"{parent}: uploads cannot be stored there ({error}); set TMPDIR") from error
        self._kept: dict[Path, tuple[Upload, float]] = {}
        self._guard = threading.Lock()
        self._closing = threading.Event()
        threading.Thread(target=self._delete_expired, daemon=True).start()

    def keep(self, name: str, content: BinaryIO, size: int) -> Upload:
        """Store a file of ``size`` bytes; its content is not read if it is too large."""
        folder = self.folder / secrets.token_hex(16)
        folder.mkdir(mode=0o700)
        upload = Upload(name, folder / _safe_name(name), size)
        with upload.path.open("wb") as file:
            if not upload.is_too_large:
                shutil.copyfileobj(content, file)
        with self._guard:
            self._kept[upload.path] = upload, time.monotonic()
            sizes = [0 if each.is_too_large else each.size for each, _ in self._kept.values()]
            surplus = 0
            while len(sizes) - surplus > MAX_KEPT or sum(sizes[surplus:]) > MAX_FILES * MAX_BYTES:
                surplus += 1
            self._forget(list(self._kept)[:surplus])
        return upload

    def __contains__(self, path: Path) -> bool:
        """Return True if a file with that path has been stored and has not been taken or deleted."""
        with self._guard:
            return path in self._kept

    @contextmanager
    def take(self, path: Path) -> Iterator[Upload | None]:
        """Give access to a file once; it is deleted afterwards.

        Yields:
            The upload; None if there is no upload with that path.
        """
        with self._guard:
            upload, _ = self._kept.pop(path, (None, 0.0))
        try:
            yield upload
        finally:
            if upload is not None:
                shutil.rmtree(upload.path.parent, ignore_errors=True)

    def delete_older(self, seconds: float) -> None:
        """Delete files that were stored at least ``seconds`` ago."""
        latest = time.monotonic() - seconds
        with self._guard:
            old = [path for path, (_, at) in self._kept.items() if at <= latest]
            self._forget(old)

    def _forget(self, paths: list[Path]) -> None:
        for path in paths:
            del self._kept[path]
            shutil.rmtree(path.parent, ignore_errors=True)

    def __exit__(self, *_: object) -> None:
        """Delete all files and release the folder."""
        self._closing.set()
        shutil.rmtree(self.folder, ignore_errors=True)
        Path(self._lock.lock_file).unlink(missing_ok=True)
        self._lock.release()

    def _delete_expired(self) -> None:
        while not self._closing.wait(_CLEANUP_SECONDS):
            self.delete_older(_SECONDS_KEPT)


def _default_parent() -> Path:
    """Return memory if there is space, else the folder of temporary files."""
    try:
        if os.access(_IN_MEMORY, os.W_OK | os.X_OK) and shutil.disk_usage(_IN_MEMORY).free >= _MIN_FREE:
            return _IN_MEMORY
    except OSError:
        pass  # a system without /dev/shm
    return Path(tempfile.gettempdir())


def _delete_orphans(parent: Path) -> None:
    for folder in parent.glob(f"{_PREFIX}*"):
        try:
            if not folder.is_dir() or folder.stat().st_uid != os.getuid():
                continue
        except FileNotFoundError:  # its owner has just deleted it
            continue
        lock = FileLock(parent / f"{folder.name}.lock")
        try:
            with lock.acquire(blocking=False):
                shutil.rmtree(folder, ignore_errors=True)
                Path(lock.lock_file).unlink(missing_ok=True)
        except Timeout:
            pass  # its owner is alive


def _safe_name(name: str) -> str:
    """Return a valid file name with the same ending."""
    return re.sub(r"[^\w.-]+", "_", name, flags=re.ASCII)[-_MAX_NAME:].lstrip(".") or "file"
