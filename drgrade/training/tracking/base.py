"""What a logger can do beside logging curves, if it is one of ours."""

from collections.abc import Mapping
from typing import Literal, Protocol, runtime_checkable

from drgrade.training.tracking.evaluation import Evaluation

Ending = Literal["finished", "failed", "interrupted"]


@runtime_checkable
class Tracker(Protocol):
    """A logger that shows pictures and is told how the run ended."""

    def show(self, evaluation: Evaluation) -> None:
        """Show confusion matrix and curves of an evaluated set.

        Args:
            evaluation: Of validation, test or external photographs.
        """

    def conclude(self, ending: Ending, record: Mapping[str, object]) -> None:
        """Close the run.

        Args:
            ending: How it ended.
            record: What ``metrics.json`` holds.
        """


def final_name(name: str) -> str:
    """What a figure of ``metrics.json`` is called as one of the run's final figures.

    ``test/qwk`` is final as it is. ``val/qwk`` names a curve, of which a summary keeps the best point; the
    figure of the checkpoint that was tested is ``final/val/qwk``.

    Args:
        name: In ``metrics.json``.

    Returns:
        The name.
    """
    return f"final/{name}" if name.startswith(("train/", "val/")) else name
