"""W&B workspace and report of a sweep: construction and publication."""

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import wandb_workspaces.reports.v2.interface as wr
import wandb_workspaces.workspaces as ws
from wandb_workspaces import expr

from drgrade.artefacts import read_object, read_yaml, shortened
from drgrade.errors import DataError
from drgrade.files import write_text
from drgrade.grades import NUM_GRADES
from drgrade.runs.run_dir import CONFIG, read_provenance
from drgrade.sweeps.cells import SWEEP, Cell, progress, read_sweep

FRACTION = "label_fraction"
LINE = "curve"
"""Config entry of a run that names its line in the label-efficiency curve."""

WORKSPACE, REPORT, PUBLISHED = "workspace.json", "report.json", "published.json"

_DEFAULT_PROJECT = "drgrade"
_OFFLINE = "wandb/offline-run-*"
_TITLE = 128  # maximum length of the title of a report
_WIDE, _HALF, _HIGH = 24, 12, 10
_MEAN_AND_RANGE: dict[str, Any] = {
    "groupby_aggfunc": "mean",
    "groupby_rangefunc": "minmax",
    "max_runs_to_show": 500,
}

_SYSTEM = {
    "GPU, %": "system/gpu.0.gpu",
    "GPU memory, bytes": "system/gpu.0.memoryAllocatedBytes",
    "memory of the process, MB": "system/proc.memory.rssMB",
    "memory of the machine, %": "system/memory_percent",
    "threads": "system/proc.cpu.threads",
    "network, bytes received": "system/network.recv",
}

_COLUMNS = (
    "run:displayName",
    "run:state",
    f"config:{LINE}.value",
    f"config:{FRACTION}.value",
    "config:fold.value",
    "config:seed.value",
    "summary:test/qwk",
    "summary:test/accuracy",
    "summary:test/auroc",
    "summary:test/mae",
    "summary:final/val/qwk",
    "summary:status",
    "config:split_hash.value",
)
"""Columns of the table of runs."""


@dataclass(frozen=True)
class DashboardSweep:
    """A sweep in W&B.

    Attributes:
        name: W&B group of its runs.
        entity: User or team; None for the default.
        project: W&B project of its runs.
        cells: Number of cells.
        finished: Number of finished cells.
        worst: The runs log their worst photographs.
        offline: Shell patterns of the folders of offline W&B runs, including pre-training.
    """

    name: str
    entity: str | None
    project: str
    cells: int
    finished: int
    worst: bool
    offline: tuple[str, ...]


def read_dashboard_sweep(
    folder: Path, entity: str | None = None, project: str | None = None
) -> DashboardSweep:
    """Read the folder of a sweep; ``entity`` and ``project`` override those of its cells.

    Raises:
        DataError: If the folder is not that of a sweep, or no cell logged to W&B.
    """
    if not (folder / SWEEP).is_file():
        raise DataError(f"{folder} is not the folder of a sweep: it has no {SWEEP}")
    cells = read_sweep(folder)
    loggers = [logger for cell in cells if (logger := _logger(folder / cell.name)) is not None]
    if not loggers:
        raise DataError(
            f"{folder}: none of its {len(cells)} cells logged to W&B; run the sweep with logger=wandb"
        )
    projects = {(logger["entity"], logger["project"]) for logger in loggers}
    if len(projects) > 1 and project is None:
        listed = ", ".join(f"{named or ''}/{where}" for named, where in sorted(projects, key=str))
        raise DataError(
            f"{folder}: its cells are in several W&B projects ({listed}): select one with project="
        )
    return DashboardSweep(
        name=str(read_object(folder / SWEEP, "remove it").get("name", folder.name)),
        entity=entity or loggers[0]["entity"],
        project=project or loggers[0]["project"] or _DEFAULT_PROJECT,
        cells=len(cells),
        finished=sum(progress(folder / cell.name).is_finished for cell in cells),
        worst=any(logger.get("worst_photographs") for logger in loggers),
        offline=_offline(folder, cells),
    )


def _offline(folder: Path, cells: Sequence[Cell]) -> tuple[str, ...]:
    patterns = [f"{shlex.quote(str(folder))}/*/{_OFFLINE}"] if any(folder.glob(f"*/{_OFFLINE}")) else []
    encoders = {encoder for cell in cells if (encoder := _encoder(folder / cell.name)) is not None}
    offline = [encoder for encoder in sorted(encoders) if any(encoder.glob(_OFFLINE))]
    return (*patterns, *(f"{shlex.quote(str(encoder))}/{_OFFLINE}" for encoder in offline))


def _encoder(cell: Path) -> Path | None:
    """Return the encoder folder of a finished cell."""
    named = read_provenance(cell).get("encoder")
    return Path(named) if named else None


def _logger(cell: Path) -> dict[str, Any] | None:
    """Return the settings of the W&B logger of a cell; None for other loggers or if it has not started."""
    if not (cell / CONFIG).is_file():
        return None
    logger = read_yaml(cell / CONFIG, "run the cell again").get("logger")
    if not isinstance(logger, dict):
        return None
    if not str(logger.get("_target_", "")).endswith(".wandb_logger"):
        return None
    logger = {"entity": None, "project": None, **logger}
    for name in ("entity", "project"):
        if not isinstance(logger[name], str | None):
            raise DataError(f"{cell / CONFIG}: logger.{name}={shortened(logger[name])} is not text")
    return logger


def efficiency() -> list[Any]:
    """Panels of test QWK against the label fraction."""
    return [
        wr.LinePlot(
            title="test QWK by label fraction, mean and range",
            x=FRACTION,
            y=["by_label_fraction/qwk"],
            log_x=True,
            title_x="label fraction",
            title_y="test QWK",
            groupby=wr.Config(LINE),
            **_MEAN_AND_RANGE,
            layout=wr.Layout(x=0, y=0, w=_HALF, h=_HIGH),
        ),
        wr.ScatterPlot(
            title="test QWK of every run",
            x=wr.Config(FRACTION),
            y=wr.SummaryMetric("test/qwk"),
            log_x=True,
            running_ymean=True,
            layout=wr.Layout(x=_HALF, y=0, w=_HALF, h=_HIGH),
        ),
        wr.BarPlot(
            title="test QWK, mean and range",
            metrics=[wr.SummaryMetric("test/qwk")],
            orientation="v",
            groupby=wr.Config(FRACTION),
            **_MEAN_AND_RANGE,
            layout=wr.Layout(x=0, y=_HIGH, w=_WIDE, h=_HIGH),
        ),
    ]


def confusion() -> list[Any]:
    """Confusion matrix, ROC and precision-recall curves on the test photographs."""
    matrix = {name: name for name in ("Actual", "Predicted", "nPredictions")}
    roc = {"x": "fpr", "y": "tpr", "class": "class"}
    precision_recall = {"x": "recall", "y": "precision", "class": "class"}
    curve, blank = "wandb/area-under-curve/v0", {"x-axis-title": "", "y-axis-title": ""}
    return [
        _chart(0, "test/confusion", "wandb/confusion_matrix/v1", matrix, {"title": "confusion, test"}),
        _chart(8, "test/roc", curve, roc, blank | {"title": "ROC, test"}),
        _chart(
            16,
            "test/precision_recall",
            curve,
            precision_recall,
            blank | {"title": "precision and recall, test"},
        ),
    ]


def training() -> list[Any]:
    """Learning curves of grading."""
    names = ("val/qwk", "val/auroc", "val/loss", "train/loss")
    recalls: list[Any] = [f"val/recall_{grade}" for grade in range(NUM_GRADES)]
    panels = [wr.LinePlot(title=name, x="epoch", y=[name]) for name in names]
    return _grid([*panels, wr.LinePlot(title="val recall by grade", x="epoch", y=recalls)])


def pretraining() -> list[Any]:
    """Learning curves of pre-training."""
    names = ("train/loss", "val/loss", "val/accuracy")
    return _grid([wr.LinePlot(title=name, x="epoch", y=[name]) for name in names])


def system() -> list[Any]:
    """System metrics by minute."""
    return _grid(
        [wr.LinePlot(title=title, x="RelativeTime(Process)", y=[key]) for title, key in _SYSTEM.items()]
    )


def worst(sweep: DashboardSweep) -> list[Any]:
    """Table of the worst photographs, if the runs log them."""
    table = wr.WeavePanelSummaryTable(table_name="test/worst", layout=wr.Layout(w=_WIDE, h=2 * _HIGH))
    return [table] if sweep.worst else []


def _chart(x: int, key: str, preset: str, fields: dict[str, str], strings: dict[str, str]) -> Any:
    """Return a W&B chart of the table ``KEY_table``."""
    return wr.CustomChart(
        query={"summaryTable": {"tableKey": f"{key}_table"}},
        chart_name=preset,
        chart_fields=fields,
        chart_strings=strings,
        layout=wr.Layout(x=x, y=0, w=8, h=_HIGH),
    )


def _grid(panels: list[Any]) -> list[Any]:
    """Arrange panels in two columns."""
    for number, panel in enumerate(panels):
        row, column = divmod(number, 2)
        panel.layout = wr.Layout(x=column * _HALF, y=row * _HIGH, w=_HALF, h=_HIGH)
    return panels


def build_workspace(sweep: DashboardSweep) -> ws.Workspace:
    """Build a workspace with all runs of the sweep, including pre-training; nothing is sent."""
    sections = {
        "Label efficiency": efficiency(),
        "Confusion and curves": confusion(),
        "Worst photographs": worst(sweep),
        "Training": training(),
        "System": system(),
    }
    return ws.Workspace(
        entity=sweep.entity or "",
        project=sweep.project,
        name=sweep.name,
        sections=[
            ws.Section(name=name, panels=panels, is_open=True) for name, panels in sections.items() if panels
        ],
        settings=ws.WorkspaceSettings(x_axis="epoch", max_runs=100),
        runset_settings=ws.RunsetSettings(
            filters=expr.And(expr.Metric("Group") == sweep.name),
            order=[expr.Ordering(expr.Metric("Name"), ascending=True)],
            pinned_columns=list(_COLUMNS),
        ),
    )


def build_report(sweep: DashboardSweep) -> wr.Report:
    """Build a report with label efficiency, runs, confusion, training and system; nothing is sent."""
    graded = _runs(sweep, "grading", "cells")
    parts = [
        ("Label efficiency and runs", graded, efficiency(), False),
        ("Confusion and curves per grade", graded, confusion(), True),
        ("Worst photographs", graded, worst(sweep), True),
        ("Training", graded, training(), True),
        ("Pre-training", _runs(sweep, "pretext", "pre-training"), pretraining(), False),
        ("System", graded, system(), True),
    ]
    summary = (
        f"Runs of the sweep {sweep.name}; {sweep.finished} of {sweep.cells} cells were finished when this "
        "page was created. For confidence intervals and comparisons, use drgrade report."
    )
    blocks: list[Any] = [wr.P(summary), wr.TableOfContents()]
    for title, runs, panels, hide_runs in parts:
        if panels:
            blocks += [wr.H2(title), wr.PanelGrid(runsets=[runs], panels=panels, hide_run_sets=hide_runs)]
    return wr.Report(
        entity=sweep.entity or "",
        project=sweep.project,
        title=sweep.name[:_TITLE],
        description="Created by drgrade dashboard",
        blocks=blocks,
        width="fluid",
    )


def _runs(sweep: DashboardSweep, job_type: str, name: str) -> wr.Runset:
    """Return the runs of a job type in the project of the report."""
    return wr.Runset(
        name=name,
        filters=expr.And(expr.Metric("Group") == sweep.name, expr.Metric("JobType") == job_type),
        order=[wr.OrderBy(wr.Metric("Name"), ascending=True)],
        pinned_columns=list(_COLUMNS),
        visible_columns=list(_COLUMNS),
    )


def write_specifications(workspace: ws.Workspace, report: wr.Report, folder: Path) -> list[Path]:
    """Write the specifications that would be sent to W&B; return the two files."""
    models = {WORKSPACE: workspace._to_model(), REPORT: report._to_model()}  # type: ignore[no-untyped-call]
    for name, model in models.items():
        record = {"entity": workspace.entity, "project": workspace.project, "name": model.display_name}
        spec = json.loads(model.spec.model_dump_json(by_alias=True, exclude_none=True))
        write_text(folder / name, json.dumps({**record, "spec": spec}, indent=2) + "\n")
    return [folder / name for name in models]


def publish(workspace: ws.Workspace, report: wr.Report, folder: Path) -> tuple[str, str]:
    """Save the workspace and the report in W&B, replacing those that an earlier command published.

    ``published.json`` in the folder records their ids.

    Returns:
        URLs of the workspace and the report.

    Raises:
        DataError: If ``published.json`` cannot be read.
    """
    restore_ids(workspace, report, folder)
    workspace.save()  # type: ignore[no-untyped-call]
    report.save()
    record = {
        "workspace": {"url": workspace.url, "name": workspace._internal_name, "id": workspace._internal_id},
        "report": {"url": report.url, "id": report.id},
    }
    write_text(folder / PUBLISHED, json.dumps(record, indent=2) + "\n")
    return workspace.url, report.url


def restore_ids(workspace: ws.Workspace, report: wr.Report, folder: Path) -> None:
    """Give the workspace and the report the ids of those published earlier, if there are any."""
    path = folder / PUBLISHED
    if not path.is_file():
        return
    try:
        record = read_object(path, "remove it to publish a new dashboard")
        workspace._internal_name = record["workspace"]["name"]
        workspace._internal_id = record["workspace"]["id"]
        report.id = record["report"]["id"]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} cannot be read ({error!r}); remove it to publish a new dashboard") from error
