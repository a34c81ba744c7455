"""LightningModules. They orchestrate; the maths is in drgrade.pretext, drgrade.models and drgrade.metrics."""

from drgrade.tasks.grading import GradingTask
from drgrade.tasks.pretext import PretextTask

__all__ = ["GradingTask", "PretextTask"]
