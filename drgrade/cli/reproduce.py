"""``drgrade reproduce``: from photographs to the report, with an estimate of the time before it starts."""

import re
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from drgrade.cli.arguments import help_text, parse
from drgrade.cli.hydra_command import explain
from drgrade.config import choices, nearest
from drgrade.errors import ConfigError, DrgradeError
from drgrade.progress import format_duration, say

if TYPE_CHECKING:
    from drgrade.sweeps.sweeper import PlannedSweep

USAGE = """\
usage: drgrade reproduce data=NAME data.root=DIR [scale=small] [any setting of a training ...]

Prepares the photographs, says how long everything will take, runs the tables of the experiments
and makes one report of them. Ctrl-C stops it, and the same command goes on where it was.
"""


@dataclass(frozen=True)
class Settings:
    """What can be set beside the settings of the trainings."""

    experiments: tuple[str, ...] = field(
        default=("rotation_table", "msssl_table"), metadata={"help": "the tables that are made"}
    )
    out: Path | None = field(default=None, metadata={"help": "of the report; else outputs/reports/NAME"})
    estimate: Literal["first", "only", "none"] = field(
        default="first", metadata={"help": "first; only: run nothing more; none: start at once"}
    )
    measure: float = field(default=10.0, metadata={"help": "seconds of training in each short run"})


def divide(arguments: Sequence[str]) -> tuple[Settings, list[str]]:
    """Tell this command's settings from those of the trainings.

    Args:
        arguments: Of the command line.

    Returns:
        The settings, and the overrides of every training.

    Raises:
        ConfigError: If a setting cannot be read, or makes no sense here.
    """
    own = {setting.name for setting in fields(Settings)}
    mine = [each for each in arguments if each.split("=", 1)[0] in own]
    overrides = [each for each in arguments if each not in mine]
    _, settings = parse(mine, Settings())
    tables = [name for name in choices("experiment") if name.endswith("_table")]
    for name in settings.experiments:
        if name not in choices("experiment"):
            raise ConfigError(f"experiments={name}: there is no such experiment; {nearest(name, tables)}")
    if not settings.experiments:
        raise ConfigError(f"experiments= names none; there is: {', '.join(tables)}")
    if not settings.measure > 0:
        raise ConfigError(f"measure={settings.measure} is not above 0 seconds")
    for each in overrides:
        if "=" not in each and not each.startswith("~"):
            raise ConfigError(f"{each}: settings are written name=value (--help lists them)")
        if re.match(r"\+*experiment=", each):
            raise ConfigError(f"{each}: here it is experiments=NAME,NAME")
        if each.startswith("hydra.sweep.dir=") and len(settings.experiments) > 1:
            raise ConfigError(f"{each}: each table needs a folder of its own; leave this out")
    return settings, overrides


def work(settings: Settings, overrides: Sequence[str]) -> int:
    """Prepare, estimate, run, report.

    Args:
        settings: Of this command.
        overrides: Of every training.

    Returns:
        Exit status: 0, or 1 if a table is not complete.

    Raises:
        DrgradeError: If something is wrong that the user can mend.
    """
    from drgrade.sweeps.sweeper import plan_sweep

    began = time.monotonic()
    sweeps = [plan_sweep(name, overrides) for name in settings.experiments]
    expected = None if settings.estimate == "none" else _estimate(sweeps, settings.measure)
    if settings.estimate == "only":
        return 0
    prepared = time.monotonic()
    incomplete = [sweep.experiment for sweep in sweeps if _run(sweep.experiment, overrides)]
    took = time.monotonic() - prepared
    reported = _report(sweeps, settings.out or _target(sweeps, overrides))
    print(_conclusion(took, expected, time.monotonic() - began))
    if incomplete:
        print(
            f"error: not complete: {', '.join(incomplete)}; the same command again runs what is missing",
            file=sys.stderr,
        )
    return 1 if incomplete or not reported else 0


def _estimate(sweeps: Sequence["PlannedSweep"], seconds: float) -> float:
    """Print the estimate of every table; return the seconds of all of them."""
    from drgrade.sweeps.estimate import estimate_sweeps, format_estimates

    estimates = estimate_sweeps(sweeps, seconds)
    notes = {
        sweep.experiment: "measured on this machine, but its cells run on others"
        for sweep in sweeps
        if sweep.waiting and not sweep.local
    }
    print(f"\n{format_estimates(estimates, datetime.now(), notes)}")
    print("Ctrl-C stops; the same command resumes.\n", flush=True)
    return sum(each.seconds for each in estimates)


def _run(experiment: str, overrides: Sequence[str]) -> int:
    """Sweep, as a command of its own; returns its exit status."""
    from drgrade.sweeps.subprocesses import run_child

    command = [sys.executable, "-m", "drgrade.cli.train", "-m", f"+experiment={experiment}", *overrides]
    status = run_child([*command, "hydra.sweeper.report=false"])  # one report of all in the end
    if status == 130:  # somebody has interrupted the sweep, and means all of it
        raise KeyboardInterrupt
    return status


def _target(sweeps: Sequence["PlannedSweep"], overrides: Sequence[str]) -> Path:
    """Folder of the report: the same command finds the same one."""
    return Path(sweeps[0].config.paths.outputs) / "reports" / "+".join(sweep.plan.name for sweep in sweeps)


def _report(sweeps: Sequence["PlannedSweep"], folder: Path) -> bool:
    """Report on what there is; whether there is anything."""
    from drgrade.cli import report

    folders = [sweep.plan.folder for sweep in sweeps if sweep.plan.folder.is_dir()]
    try:
        report.work(folders, report.Settings(out=folder))
    except DrgradeError as error:
        print(f"error: no report: {error}", file=sys.stderr)
        return False
    return True


def _conclusion(took: float, expected: float | None, whole: float) -> str:
    against = f", estimated {format_duration(expected)}" if expected is not None else ""
    return f"the tables took {format_duration(took)}{against}; everything {format_duration(whole)}"


def main() -> None:
    """Run from the command line."""
    arguments = sys.argv[1:]
    if any(argument in ("-h", "--help", "help") for argument in arguments):
        print(help_text(USAGE, Settings()))
        return
    try:
        status = work(*divide(arguments))
    except KeyboardInterrupt:
        print("interrupted; the same command goes on where it was", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        message = explain(error)
        if message is None:
            raise
        say(f"error: {message}")
        sys.exit(1)
    sys.exit(status)


if __name__ == "__main__":
    main()
