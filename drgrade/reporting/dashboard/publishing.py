"""Where a dashboard goes: to W&B, or into files that say what would."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import wandb_workspaces.reports.v2.interface as wr
import wandb_workspaces.workspaces as ws

from drgrade.errors import DataError
from drgrade.files import write_text

WORKSPACE, REPORT, PUBLISHED = "workspace.json", "report.json", "published.json"


@dataclass(frozen=True)
class Links:
    """Where what was published is.

    Attributes:
        workspace: URL.
        report: URL.
    """

    workspace: str
    report: str


def write_specifications(workspace: ws.Workspace, report: wr.Report, folder: Path) -> list[Path]:
    """Write what W&B would be sent.

    Args:
        workspace: Of a sweep.
        report: Of a sweep.
        folder: Is made.

    Returns:
        The two files.
    """
    view, page = workspace._to_model(), report._to_model()  # type: ignore[no-untyped-call]
    specifications = {
        WORKSPACE: {
            "entity": view.entity,
            "project": view.project,
            "name": view.display_name,
            "spec": view.spec,
        },
        REPORT: {"entity": page.project.entity_name, "project": page.project.name, "name": page.display_name}
        | {"spec": page.spec},
    }
    files = []
    for name, whole in specifications.items():
        spec = json.loads(whole.pop("spec").model_dump_json(by_alias=True, exclude_none=True))
        write_text(folder / name, json.dumps({**whole, "spec": spec}, indent=2) + "\n")
        files.append(folder / name)
    return files


def publish(workspace: ws.Workspace, report: wr.Report, folder: Path) -> Links:
    """Save both in W&B; what an earlier command has published is replaced.

    Args:
        workspace: Of a sweep, with an entity.
        report: Of a sweep, with an entity.
        folder: Remembers what was published.

    Returns:
        Where they are.

    Raises:
        DataError: If what is remembered cannot be read.
    """
    take_up(workspace, report, folder)
    workspace.save()  # type: ignore[no-untyped-call]
    report.save()
    links = Links(workspace.url, report.url)
    record = {
        "workspace": {"url": links.workspace, "name": workspace._internal_name, "id": workspace._internal_id},
        "report": {"url": links.report, "id": report.id},
    }
    write_text(folder / PUBLISHED, json.dumps(record, indent=2) + "\n")
    return links


def take_up(workspace: ws.Workspace, report: wr.Report, folder: Path) -> None:
    """Let both stand for what an earlier command has published.

    Args:
        workspace: Gets the name and id of the earlier one.
        report: Gets the id of the earlier one.
        folder: That remembers them; nothing happens if it does not.

    Raises:
        DataError: If what is remembered cannot be read.
    """
    path = folder / PUBLISHED
    if not path.is_file():
        return
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        workspace._internal_name = record["workspace"]["name"]
        workspace._internal_id = record["workspace"]["id"]
        report.id = record["report"]["id"]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path} cannot be read ({error!r}); remove it, and a new dashboard is published"
        ) from error
