"""``drgrade dashboard``: a sweep's workspace and report in W&B, or what they would be when offline."""

import os
import shlex
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from drgrade.cli.arguments import run
from drgrade.errors import ConfigError

if TYPE_CHECKING:
    from drgrade.reporting.dashboard.sweep import Sweep

USAGE = """\
usage: drgrade dashboard SWEEP [name=value ...]

A workspace and a report in Weights & Biases over the runs of a sweep: the curve of test QWK against the label
fraction, the table of runs, confusion, curves, the machine. Both are also written to SWEEP/dashboard/ as JSON
files; without a login that is all.
"""


@dataclass(frozen=True)
class Settings:
    """What can be set on the command line."""

    entity: str | None = field(default=None, metadata={"help": "user or team in W&B; else the runs' own"})
    project: str | None = field(default=None, metadata={"help": "in W&B; else the runs' own"})
    offline: bool | None = field(
        default=None, metadata={"help": "write files only; null: if nobody is logged in"}
    )


def work(folders: list[Path], settings: Settings) -> None:
    """Build the dashboard, and publish or write it.

    Args:
        folders: One sweep's.
        settings: Of the command line.

    Raises:
        ConfigError: If there is not one folder, or wandb-workspaces is not installed.
        DataError: If it is no sweep's folder.
    """
    if len(folders) != 1:
        raise ConfigError("one sweep's folder is needed: drgrade dashboard outputs/sweeps/NAME")
    if find_spec("wandb_workspaces") is None:
        raise ConfigError("drgrade dashboard needs a package: pip install 'drgrade[dashboard]'")
    from drgrade.reporting import dashboard

    sweep = dashboard.read(folders[0], settings.entity, settings.project)
    target = folders[0] / "dashboard"
    if _offline(settings.offline):
        workspace, report = dashboard.make_workspace(sweep), dashboard.make_report(sweep)
        files = dashboard.write_specifications(workspace, report, target)
        print(_later(sweep, folders[0]), *files, sep="\n")
        return
    sweep = _with_entity(sweep)
    workspace, report = dashboard.make_workspace(sweep), dashboard.make_report(sweep)
    dashboard.write_specifications(workspace, report, target)
    links = dashboard.publish(workspace, report, target)
    print(
        f"{sweep.name}: {sweep.finished} of {sweep.cells} cells finished",
        links.workspace,
        links.report,
        sep="\n",
    )


def _offline(asked: bool | None) -> bool:
    from drgrade.training.tracking.loggers import logged_in

    if asked is not None:
        return asked
    return os.environ.get("WANDB_MODE") in ("offline", "dryrun", "disabled") or not logged_in()


def _with_entity(sweep: "Sweep") -> "Sweep":
    """Fill in the user's own entity, which only W&B knows."""
    if sweep.entity:
        return sweep
    from dataclasses import replace

    import wandb

    return replace(sweep, entity=wandb.Api().default_entity)


def _later(sweep: "Sweep", folder: Path) -> str:
    """What to do to see the dashboard."""
    lines = [
        f"{sweep.name}: {sweep.finished} of {sweep.cells} cells finished.",
        "Nothing is published; these files say what would be. To publish:",
        "  wandb login",
    ]
    if sweep.offline:
        lines.append(f"  wandb sync {' '.join(sweep.offline)}")
    return "\n".join([*lines, f"  drgrade dashboard {shlex.quote(str(folder))}"])


def main() -> None:
    """Run from the command line."""
    run(work, Settings(), USAGE)


if __name__ == "__main__":
    main()
