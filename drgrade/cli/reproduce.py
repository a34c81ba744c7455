"""``drgrade reproduce``: from photographs to the report, with an estimate of the time before it starts."""

import os
import re
import sys
import time
from collections.abc import Sequence
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from drgrade.cli.command import arguments, fail, run
from drgrade.config import choices, is_sweep, nearest
from drgrade.errors import ConfigError, DrgradeError
from drgrade.progress import format_duration
from drgrade.settings import ReportSettings, ReproduceSettings, TrainSettings

if TYPE_CHECKING:
    from drgrade.sweeps.sweeper import PlannedSweep

OWN = tuple(name for name in ReproduceSettings.model_fields if name not in TrainSettings.model_fields)
"""Settings of this command; all others are those of the trainings."""


def work(given: Sequence[str], cfg: DictConfig) -> None:
    """Prepare, estimate, run and report.

    Args:
        given: Arguments of the command line.
        cfg: The config composed from those without several values.

    Raises:
        DrgradeError: If a setting is wrong, or a table cannot be planned.
        SystemExit: With status 1 if a table is not complete.
    """
    settings = ReproduceSettings.read(cfg)
    overrides = training_overrides(settings, given)

    from drgrade.sweeps.sweeper import plan_sweep

    began = time.monotonic()
    sweeps = [plan_sweep(name, overrides) for name in settings.experiments]
    expected = None if settings.estimate == "none" else _estimate(sweeps, settings.measure)
    if settings.estimate == "only":
        return
    prepared = time.monotonic()
    incomplete = [sweep.experiment for sweep in sweeps if _run(sweep.experiment, overrides)]
    took = time.monotonic() - prepared
    names = "+".join(sweep.plan.name for sweep in sweeps)
    reported = _report(sweeps, settings.out or Path(sweeps[0].config.paths.outputs) / "reports" / names)
    estimated = "" if expected is None else f", estimated {format_duration(expected)}"
    whole = format_duration(time.monotonic() - began)
    print(f"time for the tables: {format_duration(took)}{estimated}; in total: {whole}")
    if incomplete:
        print(
            f"error: not complete: {', '.join(incomplete)}; repeat the command to run the missing cells",
            file=sys.stderr,
        )
    if incomplete or not reported:
        sys.exit(1)


def training_overrides(settings: ReproduceSettings, given: Sequence[str]) -> list[str]:
    """Return the overrides of every training: the arguments without those of this command.

    Raises:
        ConfigError: If an override or an experiment cannot be used here.
    """
    tables = [name for name in choices("experiment") if name.endswith("_table")]
    for name in settings.experiments:
        if name not in choices("experiment"):
            raise ConfigError(f"experiments={name}: there is no such experiment; {nearest(name, tables)}")
    if not settings.experiments:
        raise ConfigError(f"experiments=[] is empty; available: {', '.join(tables)}")
    overrides = [each for each in given if each.split("=", 1)[0] not in OWN]
    for each in overrides:
        if each.startswith("-"):
            raise ConfigError(f"{each}: the tables are sweeps already; settings are written name=value")
        if re.match(r"\+*experiment=", each):
            raise ConfigError(f"{each}: here it is experiments=NAME,NAME")
        if each.startswith("hydra.sweep.dir=") and len(settings.experiments) > 1:
            raise ConfigError(f"{each}: each table needs a folder of its own; leave this out")
    return overrides


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
    """Run a sweep as a command of its own; return its exit status."""
    from drgrade.processes import SIGNALS, run_child

    command = [sys.executable, "-m", "drgrade.cli.train", "-m", f"+experiment={experiment}", *overrides]
    status = run_child([*command, "hydra.sweeper.report=false"])  # one report at the end
    if status - 128 in SIGNALS:  # only the sweep was interrupted
        os.kill(os.getpid(), status - 128)
    return status


def _report(sweeps: Sequence["PlannedSweep"], folder: Path) -> bool:
    """Report on the finished runs; return False if there are none."""
    from drgrade.cli.report import make_report

    folders = [sweep.plan.folder for sweep in sweeps if sweep.plan.folder.is_dir()]
    try:
        make_report(ReportSettings.compose(runs=folders, out=folder))
    except DrgradeError as error:
        print(f"error: no report: {error}", file=sys.stderr)
        return False
    return True


def main() -> None:
    """Run from the command line."""
    try:
        given = arguments(sys.argv[1:], ReproduceSettings)
    except ConfigError as error:
        fail(str(error))
    # Hydra cannot compose one config from a sweep; the sweeps of the tables do.
    sys.argv[1:] = [each for each in given if each.split("=", 1)[0] in OWN or not is_sweep(each)]
    run(partial(work, given), ReproduceSettings)


if __name__ == "__main__":
    main()
