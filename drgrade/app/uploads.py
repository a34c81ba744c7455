"""Files that are looked at: in a folder of their own, in memory where there is such a place, not for long."""

import os
import re
import secrets
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from filelock import FileLock, Timeout

from drgrade.errors import ConfigError

MAX_BYTES = 60_000_000
"""A photograph of 20 megapixels without compression has as many; larger files are not looked at."""

MAX_FILES = 8
"""That are looked at together."""

_PREFIX = "drgrade-app-"
_IN_MEMORY = Path("/dev/shm")
_ROOM = 2**31
"""Bytes that have to be free in memory, else it is the disk's folder for temporary files."""

_SECONDS_KEPT = 600.0
_SECONDS_BETWEEN_LOOKS = 30.0
_LONGEST_NAME = 100


@dataclass(frozen=True)
class Upload:
    """One file.

    Attributes:
        name: As its owner calls it; may hold anything.
        path: Where it is. Empty if it was too large.
        size: In bytes, as it was sent.
    """

    name: str
    path: Path
    size: int

    @property
    def is_too_large(self) -> bool:
        """Whether it was not kept."""
        return self.size > MAX_BYTES


class Uploads:
    """Keeps files until they were looked at; with it ends what it kept.

    A context manager. A file that nobody asks for again is deleted after ten minutes. If the process is
    killed so that it cannot tidy up, the next one that starts does; in memory (``/dev/shm``) nothing outlives
    the computer's being switched off.

    Attributes:
        folder: Where they are, readable by its owner only.
    """

    def __init__(self, parent: Path | None = None) -> None:
        """Make the folder, and delete those of others that were killed.

        Args:
            parent: Where; None for memory if there is room, else the folder for temporary files.

        Raises:
            ConfigError: If it cannot be written to.
        """
        parent = parent or _place()
        self.folder = parent / f"{_PREFIX}{secrets.token_hex(8)}"
        # The lock is older than the folder, so a folder without a locked lock has no owner.
        self._lock = FileLock(parent / f"{self.folder.name}.lock")
        try:
            _delete_orphans(parent)
            self._lock.acquire()
            self.folder.mkdir(mode=0o700)
        except OSError as error:
            self._lock.release()
            raise ConfigError(f"{parent}: uploads cannot be kept there ({error}); set TMPDIR") from error
        self._kept: dict[Path, tuple[Upload, float]] = {}
        self._guard = threading.Lock()
        self._closing = threading.Event()
        threading.Thread(target=self._delete_forgotten, daemon=True).start()

    def keep(self, name: str, content: BinaryIO, size: int) -> Upload:
        """Keep a file.

        Args:
            name: As its owner calls it.
            content: At its beginning; is not read if it is too large.
            size: Of it, in bytes.

        Returns:
            What to ask for later.
        """
        folder = self.folder / secrets.token_hex(16)
        folder.mkdir(mode=0o700)
        upload = Upload(name, folder / _harmless(name), size)
        with upload.path.open("wb") as file:
            if not upload.is_too_large:
                shutil.copyfileobj(content, file)
        with self._guard:
            self._kept[upload.path] = upload, time.monotonic()
        return upload

    @contextmanager
    def taken(self, path: Path) -> Iterator[Upload | None]:
        """Look at a file for the only time; afterwards it is deleted.

        Args:
            path: Of an upload.

        Yields:
            The upload; None if there is none of that path (any more).
        """
        with self._guard:
            upload, _ = self._kept.pop(path, (None, 0.0))
        try:
            yield upload
        finally:
            if upload is not None:
                shutil.rmtree(upload.path.parent, ignore_errors=True)

    def delete_older(self, seconds: float) -> None:
        """Delete what nobody asked for.

        Args:
            seconds: Since it came.
        """
        latest = time.monotonic() - seconds
        with self._guard:
            old = [path for path, (_, at) in self._kept.items() if at <= latest]
            for path in old:
                del self._kept[path]
        for path in old:
            shutil.rmtree(path.parent, ignore_errors=True)

    def close(self) -> None:
        """Delete everything."""
        self._closing.set()
        shutil.rmtree(self.folder, ignore_errors=True)
        Path(self._lock.lock_file).unlink(missing_ok=True)
        self._lock.release()

    def __enter__(self) -> "Uploads":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _delete_forgotten(self) -> None:
        while not self._closing.wait(_SECONDS_BETWEEN_LOOKS):
            self.delete_older(_SECONDS_KEPT)


def _place() -> Path:
    """Memory if there is room, else the disk."""
    try:
        if os.access(_IN_MEMORY, os.W_OK | os.X_OK) and shutil.disk_usage(_IN_MEMORY).free >= _ROOM:
            return _IN_MEMORY
    except OSError:
        pass  # a system without it
    return Path(tempfile.gettempdir())


def _delete_orphans(parent: Path) -> None:
    for folder in parent.glob(f"{_PREFIX}*"):
        try:
            if not folder.is_dir() or folder.stat().st_uid != os.getuid():
                continue
        except FileNotFoundError:  # its owner has just tidied up
            continue
        lock = FileLock(parent / f"{folder.name}.lock")
        try:
            with lock.acquire(blocking=False):
                shutil.rmtree(folder, ignore_errors=True)
                Path(lock.lock_file).unlink(missing_ok=True)
        except Timeout:
            pass  # its owner lives


def _harmless(name: str) -> str:
    """A name for the file system that ends as the owner's does."""
    return re.sub(r"[^\w.-]+", "_", name)[-_LONGEST_NAME:].lstrip(".") or "file"
