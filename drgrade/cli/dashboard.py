"""``drgrade dashboard``: make a workspace and a report in Weights & Biases, or write them as JSON."""

import os
import shlex
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from drgrade.cli.command import run
from drgrade.errors import ConfigError
from drgrade.settings import DashboardSettings

if TYPE_CHECKING:
    from drgrade.reporting.dashboard.sweep import DashboardSweep


def work(cfg: DictConfig) -> None:
    """Build the dashboard, and publish or write it.

    Args:
        cfg: The composed config (``conf/dashboard.yaml``).

    Raises:
        ConfigError: If wandb-workspaces is not installed.
        DataError: If the folder is not that of a sweep.
    """
    settings = DashboardSettings.read(cfg)
    if find_spec("wandb_workspaces") is None:
        raise ConfigError("drgrade dashboard needs a package: pip install 'drgrade[dashboard]'")
    from drgrade.reporting.dashboard.sweep import read_dashboard_sweep
    from drgrade.reporting.dashboard.workspace import (
        build_report,
        build_workspace,
        publish,
        write_specifications,
    )

    sweep = read_dashboard_sweep(settings.sweep, settings.entity, settings.project)
    target = settings.sweep / "dashboard"
    offline = _is_offline(settings.offline)
    if not offline:
        sweep = _with_entity(sweep)
    workspace, report = build_workspace(sweep), build_report(sweep)
    files = write_specifications(workspace, report, target)
    print(f"{sweep.name}: {sweep.finished} of {sweep.cells} cells finished")
    if offline:
        print(_how_to_publish(sweep, settings.sweep), *files, sep="\n")
    else:
        links = publish(workspace, report, target)
        print(links.workspace, links.report, sep="\n")


def _is_offline(setting: bool | None) -> bool:
    from drgrade.training.tracking.wandb_logger import logged_in

    if setting is not None:
        return setting
    return os.environ.get("WANDB_MODE") in ("offline", "dryrun", "disabled") or not logged_in()


def _with_entity(sweep: "DashboardSweep") -> "DashboardSweep":
    """Fill in the user's own entity, which only W&B knows."""
    if sweep.entity:
        return sweep
    from dataclasses import replace

    import wandb

    return replace(sweep, entity=wandb.Api().default_entity)


def _how_to_publish(sweep: "DashboardSweep", folder: Path) -> str:
    lines = ["Nothing is published; the files contain what would be. To publish:", "  wandb login"]
    if sweep.offline:
        lines.append(f"  wandb sync {' '.join(sweep.offline)}")
    return "\n".join([*lines, f"  drgrade dashboard {shlex.quote(str(folder))}"])


def main() -> None:
    """Run from the command line."""
    run(work, DashboardSettings)


if __name__ == "__main__":
    main()
