"""``drgrade report``: make tables, figures and a page from the folders of runs and sweeps."""

from datetime import datetime
from pathlib import Path

from drgrade.cli.command import run
from drgrade.errors import ConfigError
from drgrade.settings import ReportSettings

_MANY = 6
"""Number of methods above which the terminal shows the means alone."""


def make_report(settings: ReportSettings) -> Path:
    """Make a report, print its table and the path of the page.

    Returns:
        The path of the page.

    Raises:
        ConfigError: If a folder does not exist.
    """
    for folder in [*settings.runs, *settings.cross]:
        if not folder.is_dir():
            problem = "is not a folder" if folder.exists() else "does not exist"
            raise ConfigError(f"{folder} {problem}: name the folder of a run or of a sweep")
    target = _target(settings)

    from drgrade.reporting.notes import unfinished_note
    from drgrade.reporting.overview import overview_table
    from drgrade.reporting.study import build_study
    from drgrade.reporting.tables import main_table
    from drgrade.reporting.writer import write_report

    study = build_study(
        settings.runs,
        resamples=settings.resamples,
        seed=settings.seed,
        title=settings.title,
        compare=settings.compare,
        published=settings.published,
        cross=settings.cross,
    )
    page = write_report(study, target)
    table = overview_table(study) if len(study.methods) > _MANY else None
    print(f"{study.title}\n\n{(table or main_table(study)).plain()}\n")
    for line in filter(None, [unfinished_note(study), *study.notes]):
        print(line)
    print(page)
    return page


def _target(settings: ReportSettings) -> Path:
    """Return the folder of the report."""
    if settings.out is not None:
        folder = settings.out
    elif len(settings.runs) == 1:
        folder = settings.runs[0] / "report"
    else:
        folder = settings.paths.outputs / "reports" / f"{datetime.now():%Y-%m-%d_%H-%M-%S}"
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file: name a folder with out=DIR")
    return folder


def main() -> None:
    """Run from the command line."""
    run(lambda cfg: make_report(ReportSettings.read(cfg)), ReportSettings)


if __name__ == "__main__":
    main()
