"""``drgrade report``: tables, figures and a page from the folders of runs and sweeps."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from drgrade.cli.arguments import run
from drgrade.errors import ConfigError

USAGE = """\
usage: drgrade report RUN_OR_SWEEP [RUN_OR_SWEEP ...] [name=value ...]

Tables, figures and one page from the folders of runs, of sweeps, or from folders that hold some.
It works on a half-finished sweep and says so; it refuses runs that cannot be averaged.
"""

_LEAST_RESAMPLES = 100
_MANY = 6
"""Methods; of more the terminal shows the means alone."""


@dataclass(frozen=True)
class Settings:
    """What can be set on the command line."""

    out: Path | None = field(
        default=None,
        metadata={"help": "where; else report/ in the folder if there is one, or outputs/reports/DATE_TIME"},
    )
    title: str | None = field(default=None, metadata={"help": "of the page; else it is named by its data"})
    resamples: int = field(default=10_000, metadata={"help": "of the bootstrap: intervals and p-values"})
    seed: int = field(default=0, metadata={"help": "of the bootstrap"})
    compare: str = field(
        default="reference",
        metadata={"help": "reference: each with random weights of its encoder; all: every pair; or a method"},
    )


def target(folders: Sequence[Path], out: Path | None, now: datetime) -> Path:
    """Where the report goes.

    Args:
        folders: That are reported.
        out: As it is asked for, if it is.
        now: Names the folder if several folders are reported together and nothing is asked for.

    Raises:
        ConfigError: If a file stands there.
    """
    if out is not None:
        folder = out
    elif len(folders) == 1:
        folder = folders[0] / "report"
    else:
        folder = Path("outputs", "reports", f"{now:%Y-%m-%d_%H-%M-%S}")
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file: name a folder with out=DIR")
    return folder


def work(folders: list[Path], settings: Settings) -> None:
    """Make a report, print its table and where the page lies.

    Args:
        folders: Of runs, of sweeps, or folders that hold some.
        settings: Of the command line.

    Raises:
        ConfigError: If a folder is not there, or a setting makes no sense.
    """
    _check(folders, settings)
    folder = target(folders, settings.out, datetime.now())

    from drgrade.reporting import summary_text as prose
    from drgrade.reporting.overview import overview_table
    from drgrade.reporting.study import make_study
    from drgrade.reporting.table import plain_table
    from drgrade.reporting.tables import main_table
    from drgrade.reporting.writer import write_report

    study = make_study(
        folders,
        resamples=settings.resamples,
        seed=settings.seed,
        title=settings.title,
        compare=settings.compare,
    )
    page = write_report(study, folder)
    table = overview_table(study) if len(study.methods) > _MANY else None
    print(f"{study.title}\n\n{plain_table(table or main_table(study))}\n")
    for line in filter(None, [prose.unfinished(study), *study.notes]):
        print(line)
    print(page)


def _check(folders: Sequence[Path], settings: Settings) -> None:
    if not folders:
        raise ConfigError("no folder is given: drgrade report RUN_OR_SWEEP [RUN_OR_SWEEP ...]")
    for folder in folders:
        if not folder.is_dir():
            what = "is no folder" if folder.exists() else "is not there"
            raise ConfigError(f"{folder} {what}: name the folder of a run or of a sweep")
    if settings.resamples < _LEAST_RESAMPLES:
        raise ConfigError(f"resamples={settings.resamples}: intervals need {_LEAST_RESAMPLES} at least")
    if settings.seed < 0:
        raise ConfigError(f"seed={settings.seed} is below 0")


def main() -> None:
    """Run from the command line."""
    run(work, Settings(), USAGE)


if __name__ == "__main__":
    main()
