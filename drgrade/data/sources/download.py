"""Fetching data sets whose licence allows it, and putting them where a source reads them."""

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from drgrade.errors import DataError


def build_once(target: Path, fill: Callable[[Path], None]) -> bool:
    """Make a folder that is either complete or not there.

    It is filled beside its place and renamed. Of several processes that ask for the same one, one fills it
    and the others wait. What killed processes left behind is removed.

    Args:
        target: The folder.
        fill: Writes its content into the folder that it is given.

    Returns:
        Whether it was made now; False if it was there.

    Raises:
        DataError: If it cannot be written.
    """
    if target.exists():  # first, because where it is, the folder around it may well be read-only
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
    """The error for an optional package that is not installed.

    Args:
        what: What needs it.
        package: Its name.
    """
    return DataError(f"{what} needs the package {package}: pip install 'drgrade[datasets]'")
