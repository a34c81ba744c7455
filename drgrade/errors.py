"""Errors that the user can correct. The commands print them as one line and exit with status 1."""

import errno


class DrgradeError(Exception):
    """Base class of errors that the user can correct; the message names the cause and the remedy."""


class DataError(DrgradeError):
    """A data set, label file, photograph or store cannot be used."""


class ConfigError(DrgradeError):
    """A setting, or a combination of settings, is not valid."""


class EncoderError(DrgradeError):
    """A pre-trained encoder is missing or does not fit."""


class DivergenceError(DrgradeError):
    """A training has reached losses or weights that are not finite."""


_DISK_ADVICE = {
    errno.ENOSPC: "make room (or free some inodes: df -i) and repeat the command",
    errno.EDQUOT: "make room and repeat the command",
    errno.EROFS: "choose another folder, for example with paths.outputs=DIR or hydra.run.dir=DIR",
    errno.EACCES: "change the permissions, or choose another folder, for example with paths.outputs=DIR",
    errno.EPERM: "change the permissions, or choose another folder, for example with paths.outputs=DIR",
    errno.EIO: "the disk or the network drive fails",
    errno.ENAMETOOLONG: "choose a shorter folder, for example with paths.outputs=DIR",
}


def describe_disk_error(error: BaseException) -> str | None:
    """Describe an error of the disk in one line; None for any other error."""
    if not isinstance(error, OSError) or error.errno not in _DISK_ADVICE:
        return None
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}{error.strerror}: {_DISK_ADVICE[error.errno]}"


def check_range(interval: str, prefix: str = "", **settings: float) -> None:
    """Raise an error unless every setting lies in an interval.

    Args:
        interval: In mathematical notation: square brackets include a bound, round ones exclude it; ``inf`` is
            allowed.
        prefix: Written before the name of the setting in the message.
        **settings: Values by name.

    Raises:
        ConfigError: If a value lies outside.

    Example:
        >>> check_range("(0, 1]", "pretext.head.", mix=1.5)
        Traceback (most recent call last):
        ...
        drgrade.errors.ConfigError: pretext.head.mix=1.5 is not in (0, 1]
    """
    low, high = (float(bound) for bound in interval[1:-1].split(","))
    for name, value in settings.items():
        above = value >= low if interval.startswith("[") else value > low
        below = value <= high if interval.endswith("]") else value < high
        if not (above and below):
            raise ConfigError(f"{prefix}{name}={value} is not in {interval}")
