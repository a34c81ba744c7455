"""Rows of a sweep: named sets of overrides that are crossed with the swept values.

A product over ``pretext`` and ``init`` would repeat the baseline without pre-training for every pretext. Rows
name the combinations that make sense.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.override_parser.types import Override

from drgrade.config import as_override, nearest
from drgrade.errors import ConfigError

_NAME = re.compile(r"[A-Za-z0-9][\w.+-]*")
"""Pattern of a row's name, which begins the folder names of its cells."""

OverrideReader = Callable[[Sequence[str]], Mapping[str, Override]]
"""Parses overrides into a mapping from each setting to its last override."""


@dataclass(frozen=True)
class SweepRow:
    """One row of a sweep.

    Attributes:
        name: Its name; empty for the only row of a sweep without rows.
        overrides: The row's overrides, by setting.
    """

    name: str
    overrides: Mapping[str, Override]

    def combine(self, sweep: Mapping[str, Override]) -> dict[str, Override]:
        """Combine the overrides of the sweep with those of the row, which win.

        Args:
            sweep: Overrides of the experiment and the command line, by setting.

        Returns:
            Overrides of the row's cells, the row's own last.
        """
        return {key: each for key, each in sweep.items() if key not in self.overrides} | dict(self.overrides)


def read_rows(rows: Mapping[str, Any], only: Sequence[str] | None, read: OverrideReader) -> list[SweepRow]:
    """Parse the rows of an experiment.

    Args:
        rows: Overrides of each row, by its name: a mapping from settings to values, or a list of overrides.
        only: Names of the rows to keep; None: all.
        read: Parses overrides.

    Returns:
        The rows, in the order of the experiment; one row without a name if there are none.

    Raises:
        ConfigError: If a name or a row is invalid.
    """
    if only is not None and (isinstance(only, str) or not isinstance(only, Sequence) or not only):
        raise ConfigError(f"hydra.sweeper.only={only} is not a list of rows: hydra.sweeper.only=[rotation]")
    for name in only or ():
        if name not in rows:
            known = nearest(str(name), list(rows)) if rows else "this sweep has no rows"
            raise ConfigError(f"hydra.sweeper.only: there is no row {name!r}; {known}")
    chosen = [_row(name, value, read) for name, value in rows.items() if only is None or name in only]
    return chosen or [SweepRow("", {})]


def refuse_unused(rows: Sequence[SweepRow], sweep: Mapping[str, Override]) -> dict[str, list[str]]:
    """Raise an error for overrides that every row replaces.

    Args:
        rows: Rows of the sweep.
        sweep: Overrides of the experiment and the command line, by setting.

    Returns:
        Overrides that some rows replace, with the names of these rows.

    Raises:
        ConfigError: If all rows replace an override.
    """
    replaced = {}
    for key, override in sweep.items():
        own = [row.name for row in rows if key in row.overrides]
        if own and len(own) == len(rows):
            raise ConfigError(
                f"{override.input_line} has no effect: every row sets {key} itself. Change a row with "
                f"hydra.sweeper.rows.{own[0]}.{key}=, or choose rows with hydra.sweeper.only=[{own[0]}]"
            )
        if own:
            replaced[str(override.input_line)] = own
    return replaced


def _row(name: str, value: Any, read: OverrideReader) -> SweepRow:
    where = f"hydra.sweeper.rows.{name}"
    if not _NAME.fullmatch(str(name)):
        raise ConfigError(f"{where}: the name of a row may contain letters, digits and . + - _")
    if isinstance(value, Mapping):
        given = [f"{key}={as_override(item)}" for key, item in value.items()]
    elif isinstance(value, Sequence) and not isinstance(value, str):
        given = list(map(str, value))
    elif value is None:
        given = []
    else:
        raise ConfigError(f"{where}={value} is neither a mapping of settings nor a list of overrides")
    overrides = dict(read(given))
    for key, override in overrides.items():
        if override.is_sweep_override():
            raise ConfigError(
                f"{where}: {override.input_line}: a row has one value of each setting; "
                "several values belong on the command line or into hydra.sweeper.params"
            )
        if key in ("resume", "sweep"):
            raise ConfigError(f"{where}: {override.input_line}: the sweep sets this itself; remove it")
    return SweepRow(str(name), overrides)
