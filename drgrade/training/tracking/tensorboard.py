"""A run in TensorBoard."""

from collections.abc import Mapping

from pytorch_lightning.loggers import TensorBoardLogger

from drgrade.training.tracking.base import Ending
from drgrade.training.tracking.evaluation import Evaluation
from drgrade.training.tracking.figures import figures


class TensorBoardTracker(TensorBoardLogger):
    """TensorBoard, with pictures of evaluations and a text on how the run ended."""

    def __init__(self, save_dir: str, name: str, worst_photographs: int = 0) -> None:
        """Log into one folder; a run that goes on adds a file to it.

        Args:
            save_dir: The run's folder.
            name: Of the folder in it.
            worst_photographs: How many of the worst test photographs to show.
        """
        super().__init__(save_dir=save_dir, name=name, version="")
        self._worst = worst_photographs

    def show(self, evaluation: Evaluation) -> None:
        """See :class:`~drgrade.training.tracking.base.Tracker`."""
        for name, figure in figures(evaluation, self._worst).items():
            self.experiment.add_figure(f"{evaluation.name}/{name}", figure, evaluation.step)

    def conclude(self, ending: Ending, record: Mapping[str, object]) -> None:
        """See :class:`~drgrade.training.tracking.base.Tracker`."""
        self.experiment.add_text("status", str(record.get("error", ending)))
        self.finalize("success" if ending == "finished" else "failed")
