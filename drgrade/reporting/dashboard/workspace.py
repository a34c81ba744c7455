"""Panels that the workspace and the report share. Their names are those that the runs log under."""

from typing import Any

import wandb_workspaces.reports.v2.interface as wr
import wandb_workspaces.workspaces as ws
from wandb_workspaces import expr

from drgrade.reporting.dashboard import workspace as panels
from drgrade.reporting.dashboard.sweep import Sweep

FRACTION = "label_fraction"
LINE = "curve"
"""Config entry of a run: which line of the label-efficiency curve it is a point of."""

_GRADES = range(5)
_WIDE, _HALF, _HIGH = 24, 12, 10

_SYSTEM = {
    "GPU, %": "system/gpu.0.gpu",
    "GPU memory, bytes": "system/gpu.0.memoryAllocatedBytes",
    "memory of the process, MB": "system/proc.memory.rssMB",
    "memory of the machine, %": "system/memory_percent",
    "threads": "system/proc.cpu.threads",
    "network, bytes received": "system/network.recv",
}


def efficiency() -> list[Any]:
    """Test QWK against the label fraction: mean and range of every line, and every single run."""
    return [
        wr.LinePlot(
            title="test QWK by label fraction, mean and range",
            x=FRACTION,
            y=["by_label_fraction/qwk"],
            log_x=True,
            title_x="label fraction",
            title_y="test QWK",
            groupby=wr.Config(LINE),
            groupby_aggfunc="mean",
            groupby_rangefunc="minmax",
            max_runs_to_show=500,
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
            groupby_aggfunc="mean",
            groupby_rangefunc="minmax",
            max_runs_to_show=500,
            layout=wr.Layout(x=0, y=_HIGH, w=_WIDE, h=_HIGH),
        ),
    ]


def confusion() -> list[Any]:
    """Confusion matrix and curves per grade, of the test photographs of the runs that are chosen."""
    area = {"x-axis-title": "", "y-axis-title": ""}
    return [
        _chart(
            "test/confusion",
            "wandb/confusion_matrix/v1",
            {"Actual": "Actual", "Predicted": "Predicted", "nPredictions": "nPredictions"},
            {"title": "confusion, test"},
            wr.Layout(x=0, y=0, w=8, h=_HIGH),
        ),
        _chart(
            "test/roc",
            "wandb/area-under-curve/v0",
            {"x": "fpr", "y": "tpr", "class": "class"},
            area | {"title": "ROC, test"},
            wr.Layout(x=8, y=0, w=8, h=_HIGH),
        ),
        _chart(
            "test/precision_recall",
            "wandb/area-under-curve/v0",
            {"x": "recall", "y": "precision", "class": "class"},
            area | {"title": "precision and recall, test"},
            wr.Layout(x=16, y=0, w=8, h=_HIGH),
        ),
    ]


def training() -> list[Any]:
    """Curves over the epochs."""
    names = ("val/qwk", "val/auroc", "val/loss", "train/loss")
    recalls = [f"val/recall_{grade}" for grade in _GRADES]
    return _grid([_curve(name, [name]) for name in names] + [_curve("val recall by grade", recalls)])


def pretraining() -> list[Any]:
    """Curves of the pretext."""
    return _grid([_curve(name, [name]) for name in ("train/loss", "val/loss", "val/accuracy")])


def system() -> list[Any]:
    """What the machine did, by minute."""
    return _grid(
        [wr.LinePlot(title=title, x="RelativeTime(Process)", y=[key]) for title, key in _SYSTEM.items()]
    )


def worst(sweep: Sweep) -> list[Any]:
    """The table of the worst photographs, if the sweep has any."""
    table = wr.WeavePanelSummaryTable(table_name="test/worst", layout=wr.Layout(w=_WIDE, h=2 * _HIGH))
    return [table] if sweep.worst else []


def _curve(title: str, names: list[str]) -> Any:
    return wr.LinePlot(title=title, x="epoch", y=list(names))


def _chart(key: str, preset: str, fields: dict[str, str], strings: dict[str, str], layout: wr.Layout) -> Any:
    """One of W&B's own charts over a table that the runs log as ``KEY_table``."""
    return wr.CustomChart(
        query={"summaryTable": {"tableKey": f"{key}_table"}},
        chart_name=preset,
        chart_fields=fields,
        chart_strings=strings,
        layout=layout,
    )


def _grid(panels: list[Any]) -> list[Any]:
    """Two in a row."""
    for number, panel in enumerate(panels):
        row, column = divmod(number, 2)
        panel.layout = wr.Layout(x=column * _HALF, y=row * _HIGH, w=_HALF, h=_HIGH)
    return panels


_COLUMNS = (
    "run:displayName",
    "run:state",
    f"config:{panels.LINE}.value",
    f"config:{panels.FRACTION}.value",
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
"""Of the table of runs."""

_TITLE = 128
"""Characters that a report's title may have."""


def make_workspace(sweep: Sweep) -> ws.Workspace:
    """Build the workspace: all panels over all runs of the sweep, pre-training included.

    Args:
        sweep: Whose runs.

    Returns:
        The workspace; nothing is sent.
    """
    sections = {
        "Label efficiency": panels.efficiency(),
        "Confusion and curves": panels.confusion(),
        "Worst photographs": panels.worst(sweep),
        "Training": panels.training(),
        "System": panels.system(),
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
            filters=expr.And(_of(sweep)),
            order=[expr.Ordering(expr.Metric("Name"), ascending=True)],
            pinned_columns=list(_COLUMNS),
        ),
    )


def make_report(sweep: Sweep) -> wr.Report:
    """Build the report: the curve, the table of runs, confusion, training, pre-training, the machine.

    Args:
        sweep: Whose runs.

    Returns:
        The report; nothing is sent.
    """
    graded = _runs(sweep, "grading", "cells")
    parts = [
        ("Label efficiency and runs", graded, panels.efficiency(), False),
        ("Confusion and curves per grade", graded, panels.confusion(), True),
        ("Worst photographs", graded, panels.worst(sweep), True),
        ("Training", graded, panels.training(), True),
        ("Pre-training", _runs(sweep, "pretext", "pre-training"), panels.pretraining(), False),
        ("System", graded, panels.system(), True),
    ]
    blocks: list[Any] = [wr.P(_summary(sweep)), wr.TableOfContents()]
    for title, runs, shown, bare in parts:
        if shown:
            blocks += [wr.H2(title), wr.PanelGrid(runsets=[runs], panels=shown, hide_run_sets=bare)]
    return wr.Report(
        entity=sweep.entity or "",
        project=sweep.project,
        title=sweep.name[:_TITLE],
        description="Made by drgrade dashboard",
        blocks=blocks,
        width="fluid",
    )


def _of(sweep: Sweep) -> expr.FilterExpr:
    return expr.Metric("Group") == sweep.name


def _runs(sweep: Sweep, job_type: str, name: str) -> wr.Runset:
    """The sweep's runs of a kind, in the report's own project."""
    return wr.Runset(
        name=name,
        filters=expr.And(_of(sweep), expr.Metric("JobType") == job_type),
        order=[wr.OrderBy(wr.Metric("Name"), ascending=True)],
        pinned_columns=list(_COLUMNS),
        visible_columns=list(_COLUMNS),
    )


def _summary(sweep: Sweep) -> str:
    state = f"{sweep.finished} of {sweep.cells} cells were finished when this page was made"
    return (
        f"Runs of the sweep {sweep.name}; {state}. Figures with intervals and comparisons come from drgrade "
        "report, which computes them from the stored predictions; this page shows the runs as they went."
    )
