"""``drgrade dashboard``: make a workspace and a report in Weights & Biases, or write them as JSON."""

import os
import shlex
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

from omegaconf import DictConfig

from drgrade.cli.command import run
from drgrade.errors import ConfigError
from drgrade.settings import DashboardSettings


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
    from drgrade.reporting import dashboard

    sweep = dashboard.read_dashboard_sweep(settings.sweep, settings.entity, settings.project)
    target = settings.sweep / "dashboard"
    offline = _is_offline(settings.offline)
    if not offline and not sweep.entity:
        sweep = replace(sweep, entity=_default_entity())
    workspace, report = dashboard.build_workspace(sweep), dashboard.build_report(sweep)
    files = dashboard.write_specifications(workspace, report, target)
    print(f"{sweep.name}: {sweep.finished} of {sweep.cells} cells finished")
    if offline:
        print(_publishing_help(sweep.offline, settings.sweep), *files, sep="\n")
    else:
        print(*dashboard.publish(workspace, report, target), sep="\n")


def _is_offline(setting: bool | None) -> bool:
    from drgrade.training.tracking.wandb_logger import logged_in

    if setting is not None:
        return setting
    return os.environ.get("WANDB_MODE") in ("offline", "dryrun", "disabled") or not logged_in()


def _default_entity() -> str | None:
    import wandb

    entity: str | None = wandb.Api().default_entity
    return entity


def _publishing_help(offline_runs: Sequence[str], folder: Path) -> str:
    lines = ["Not published; the specifications were only written to files. To publish:", "  wandb login"]
    if offline_runs:
        lines.append(f"  wandb sync {' '.join(offline_runs)}")
    return "\n".join([*lines, f"  drgrade dashboard {shlex.quote(str(folder))}"])


def main() -> None:
    """Run from the command line."""
    run(work, DashboardSettings)


if __name__ == "__main__":
    main()
