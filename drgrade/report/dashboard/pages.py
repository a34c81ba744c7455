"""The workspace and the report of a sweep, as objects of wandb-workspaces."""

from typing import Any

import wandb_workspaces.reports.v2.interface as wr
import wandb_workspaces.workspaces as ws
from wandb_workspaces import expr

from drgrade.report.dashboard import panels
from drgrade.report.dashboard.sweep import Sweep

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
