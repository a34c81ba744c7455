"""Rows of a table: named sets of overrides, each of which is crossed with what the sweep runs over.

A product over ``pretext`` and ``init`` would run the baseline, which has no pretext, once for each of them.
Rows name the combinations that mean something.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.override_parser.types import Override

from drgrade.config import nearest
from drgrade.errors import ConfigError
from drgrade.sweeps.grammar import as_override

_NAME = re.compile(r"[A-Za-z0-9][\w.+-]*")
"""A row's name begins the names of its cells' folders."""

Reader = Callable[[Sequence[str]], Mapping[str, Override]]
"""Reads overrides: setting: the last override of it."""


@dataclass(frozen=True)
class Row:
    """One row of a table.

    Attributes:
        name: What it is called; empty: the only row of a sweep without rows.
        overrides: Setting: the row's override of it.
    """

    name: str
    overrides: Mapping[str, Override]

    def with_those_of(self, sweep: Mapping[str, Override]) -> dict[str, Override]:
        """The overrides of this row's cells.

        Args:
            sweep: Setting: override of the experiment or the command line.

        Returns:
            Those of the sweep, but for settings that the row has itself, and then the row's.
        """
        return {key: each for key, each in sweep.items() if key not in self.overrides} | dict(self.overrides)


ALONE = Row("", {})


def read_rows(rows: Mapping[str, Any], only: Sequence[str] | None, read: Reader) -> list[Row]:
    """Read the rows of an experiment.

    Args:
        rows: Name: its overrides, a mapping of setting to value or a list as on the command line.
        only: Names of those that are wanted; None: all.
        read: Reads overrides.

    Returns:
        The rows, in the order of the experiment; a row without a name if there are none.

    Raises:
        ConfigError: If a name or a row makes no sense.
    """
    if only is not None and (isinstance(only, str) or not isinstance(only, Sequence) or not only):
        raise ConfigError(f"hydra.sweeper.only={only} is not a list of rows: hydra.sweeper.only=[rotation]")
    for name in only or ():
        if name not in rows:
            known = nearest(str(name), list(rows)) if rows else "this sweep has no rows"
            raise ConfigError(f"hydra.sweeper.only: there is no row {name!r}; {known}")
    return [_row(name, value, read) for name, value in rows.items() if only is None or name in only] or [
        ALONE
    ]


def refuse_without_effect(rows: Sequence[Row], sweep: Mapping[str, Override]) -> dict[str, list[str]]:
    """Refuse what the command line or the experiment sets and no row takes up.

    Args:
        rows: Of the table.
        sweep: Setting: override of the experiment or the command line.

    Returns:
        Override, as it was written: names of the rows that have the setting themselves, and keep theirs.

    Raises:
        ConfigError: If every row has such a setting itself.
    """
    kept = {}
    for key, override in sweep.items():
        own = [row.name for row in rows if key in row.overrides]
        if own and len(own) == len(rows):
            raise ConfigError(
                f"{override.input_line} has no effect: every row sets {key} itself. Change a row with "
                f"hydra.sweeper.rows.{own[0]}.{key}=, or choose rows with hydra.sweeper.only=[{own[0]}]"
            )
        if own:
            kept[str(override.input_line)] = own
    return kept


def _row(name: str, value: Any, read: Reader) -> Row:
    where = f"hydra.sweeper.rows.{name}"
    if not _NAME.fullmatch(str(name)):
        raise ConfigError(f"{where}: a row's name is made of letters, digits and . + - _")
    if isinstance(value, Mapping):
        given = [f"{key}={as_override(item)}" for key, item in value.items()]
    elif isinstance(value, Sequence) and not isinstance(value, str):
        given = list(map(str, value))
    elif value is None:
        given = []
    else:
        raise ConfigError(f"{where}={value} is neither settings with values nor a list of overrides")
    overrides = dict(read(given))
    for key, override in overrides.items():
        if override.is_sweep_override():
            raise ConfigError(
                f"{where}: {override.input_line}: a row has one value of each setting; "
                "several values belong on the command line or into hydra.sweeper.params"
            )
        if key in ("resume", "sweep"):
            raise ConfigError(f"{where}: {override.input_line}: the sweep sets this itself; leave it out")
    return Row(str(name), overrides)
