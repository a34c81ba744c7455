"""Log a run to TensorBoard."""

from collections.abc import Mapping

from pytorch_lightning.loggers import TensorBoardLogger

from drgrade.training.tracking.evaluation import draw_evaluation
from drgrade.training.tracking.tracker import Ending, Evaluation


class TensorBoardTracker(TensorBoardLogger):
    """TensorBoard logger that also draws evaluations and logs how the run ended."""

    def __init__(self, save_dir: str, name: str = "tensorboard", worst_photographs: int = 0) -> None:
        """Log into one folder; a resumed run adds a file to it.

        Args:
            save_dir: The run's folder.
            name: Name of the folder in it.
            worst_photographs: Number of the worst test photographs to show.
        """
        super().__init__(save_dir=save_dir, name=name, version="")
        self._worst = worst_photographs

    def log_evaluation(self, evaluation: Evaluation) -> None:
        """See :class:`~drgrade.training.tracking.tracker.Tracker`."""
        for name, figure in draw_evaluation(evaluation, self._worst).items():
            self.experiment.add_figure(f"{evaluation.name}/{name}", figure, evaluation.step)

    def finish_run(self, ending: Ending, record: Mapping[str, object]) -> None:
        """See :class:`~drgrade.training.tracking.tracker.Tracker`."""
        self.experiment.add_text("status", str(record.get("error", ending)))
        self.finalize("success" if ending == "finished" else "failed")
