"""Helpers for downloading data sets whose licence allows it."""

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from drgrade.errors import DataError


def build_once(target: Path, fill: Callable[[Path], None]) -> bool:
    """Create a folder completely or not at all.

    The folder is filled under a temporary name and renamed. If several processes request it, one fills it
    and the others wait. Leftovers of killed processes are removed.

    Args:
        target: The folder.
        fill: Writes the content into the given folder.

    Returns:
        True if the folder was created, False if it existed.

    Raises:
        DataError: If it cannot be written.
    """
    if target.exists():  # before locking, because the folder around it may be read-only
        return False
    parent, prefix = target.parent, f".{target.name}-"
    try:
        parent.mkdir(parents=True, exist_ok=True)
        with FileLock(parent / f".{target.name}.lock"):
            if target.exists():
                return False
            for leftover in parent.glob(f"{prefix}*"):
                shutil.rmtree(leftover)
            unfinished = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
            try:
                unfinished.chmod(0o755)
                fill(unfinished)
                unfinished.rename(target)
            finally:
                shutil.rmtree(unfinished, ignore_errors=True)
    except OSError as error:
        raise DataError(f"{target} cannot be written: {error}") from error
    return True


def needs_extra(what: str, package: str) -> DataError:
    """Return the error for a missing optional package.

    Args:
        what: Feature that needs the package.
        package: Name of the package.
    """
    return DataError(f"{what} needs the package {package}: pip install 'drgrade[datasets]'")
