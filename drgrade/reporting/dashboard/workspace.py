"""W&B workspace and report of a sweep: construction and publication."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import wandb_workspaces.reports.v2.interface as wr
import wandb_workspaces.workspaces as ws
from wandb_workspaces import expr

from drgrade.errors import DataError
from drgrade.files import write_text
from drgrade.reporting.dashboard.sweep import DashboardSweep

FRACTION = "label_fraction"
LINE = "curve"
"""Config entry of a run that names its line in the label-efficiency curve."""

_GRADES = range(5)
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
    recalls = [f"val/recall_{grade}" for grade in _GRADES]
    return _grid([_curve(name, [name]) for name in names] + [_curve("val recall by grade", recalls)])


def pretraining() -> list[Any]:
    """Learning curves of pre-training."""
    return _grid([_curve(name, [name]) for name in ("train/loss", "val/loss", "val/accuracy")])


def system() -> list[Any]:
    """System metrics by minute."""
    return _grid(
        [wr.LinePlot(title=title, x="RelativeTime(Process)", y=[key]) for title, key in _SYSTEM.items()]
    )


def worst(sweep: DashboardSweep) -> list[Any]:
    """Table of the worst photographs, if the runs log them."""
    table = wr.WeavePanelSummaryTable(table_name="test/worst", layout=wr.Layout(w=_WIDE, h=2 * _HIGH))
    return [table] if sweep.worst else []


def _curve(title: str, names: list[str]) -> Any:
    return wr.LinePlot(title=title, x="epoch", y=list(names))


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

_TITLE = 128  # maximum length of the title of a report


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
            ws.Section(name=name, panels=shown, is_open=True) for name, shown in sections.items() if shown
        ],
        settings=ws.WorkspaceSettings(x_axis="epoch", max_runs=100),
        runset_settings=ws.RunsetSettings(
            filters=expr.And(_group_filter(sweep)),
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
    blocks: list[Any] = [wr.P(_summary(sweep)), wr.TableOfContents()]
    for title, runs, shown, bare in parts:
        if shown:
            blocks += [wr.H2(title), wr.PanelGrid(runsets=[runs], panels=shown, hide_run_sets=bare)]
    return wr.Report(
        entity=sweep.entity or "",
        project=sweep.project,
        title=sweep.name[:_TITLE],
        description="Created by drgrade dashboard",
        blocks=blocks,
        width="fluid",
    )


def _group_filter(sweep: DashboardSweep) -> expr.FilterExpr:
    return expr.Metric("Group") == sweep.name


def _runs(sweep: DashboardSweep, job_type: str, name: str) -> wr.Runset:
    """Return the runs of a job type in the project of the report."""
    return wr.Runset(
        name=name,
        filters=expr.And(_group_filter(sweep), expr.Metric("JobType") == job_type),
        order=[wr.OrderBy(wr.Metric("Name"), ascending=True)],
        pinned_columns=list(_COLUMNS),
        visible_columns=list(_COLUMNS),
    )


def _summary(sweep: DashboardSweep) -> str:
    return (
        f"Runs of the sweep {sweep.name}; {sweep.finished} of {sweep.cells} cells were finished when this "
        "page was created. For confidence intervals and comparisons, use drgrade report."
    )


WORKSPACE, REPORT, PUBLISHED = "workspace.json", "report.json", "published.json"


@dataclass(frozen=True)
class Links:
    """URLs of a published dashboard."""

    workspace: str
    report: str


def write_specifications(workspace: ws.Workspace, report: wr.Report, folder: Path) -> list[Path]:
    """Write the specifications that would be sent to W&B; return the two files."""
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
    """Save the workspace and the report in W&B, replacing those that an earlier command published.

    Args:
        workspace: Workspace with an entity.
        report: Report with an entity.
        folder: Folder of ``published.json``, which records the ids.

    Raises:
        DataError: If ``published.json`` cannot be read.
    """
    restore_ids(workspace, report, folder)
    workspace.save()  # type: ignore[no-untyped-call]
    report.save()
    links = Links(workspace.url, report.url)
    record = {
        "workspace": {"url": links.workspace, "name": workspace._internal_name, "id": workspace._internal_id},
        "report": {"url": links.report, "id": report.id},
    }
    write_text(folder / PUBLISHED, json.dumps(record, indent=2) + "\n")
    return links


def restore_ids(workspace: ws.Workspace, report: wr.Report, folder: Path) -> None:
    """Give the workspace and the report the ids of those published earlier, if there are any.

    Raises:
        DataError: If ``published.json`` cannot be read.
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
        raise DataError(f"{path} cannot be read ({error!r}); remove it to publish a new dashboard") from error
