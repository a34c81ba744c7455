"""A sweep's workspace and report in Weights & Biases."""

from drgrade.report.dashboard.pages import make_report, make_workspace
from drgrade.report.dashboard.publishing import publish, write_specifications
from drgrade.report.dashboard.sweep import Sweep, read

__all__ = ["Sweep", "make_report", "make_workspace", "publish", "read", "write_specifications"]
