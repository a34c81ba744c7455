"""Log a run to TensorBoard or MLflow, with figures of its evaluations drawn by matplotlib."""

import logging
import os
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from filelock import FileLock
from lightning_fabric.utilities.logger import _flatten_dict
from pytorch_lightning.loggers import Logger, MLFlowLogger, TensorBoardLogger

from drgrade.errors import ConfigError
from drgrade.training.tracking.tracker import (
    Ending,
    Evaluation,
    GradeCurve,
    Mistake,
    RunDescription,
    caption,
    describe_run,
    final_name,
    read_run_id,
    write_run_id,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SERVICE = "mlflow"

_STATUS = {"finished": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}
_MAX_PARAMETER_LENGTH, _MAX_TAG_LENGTH, _MAX_BATCH = 6000, 8000, 100
"""Limits of MLflow: characters of a value, and parameters in one request."""

_COLOURS = ("#0072b2", "#56b4e9", "#009e73", "#e69f00", "#d55e00")
"""Colours of the grades 0 to 4, safe for colour-blind readers (Okabe and Ito)."""

_COLUMNS = 4


def draw_evaluation(evaluation: Evaluation, worst: int = 0) -> dict[str, "Figure"]:
    """Draw the figures of an evaluation.

    Args:
        evaluation: Results on one set.
        worst: Number of the worst photographs to show; not for validation.

    Returns:
        Figures by name: ``confusion``, ``roc``, ``precision_recall`` and, if requested, ``worst``.
    """
    drawn = {
        "confusion": _confusion(evaluation),
        "roc": _curves(evaluation.roc, "false positive rate", "true positive rate", evaluation.name),
        "precision_recall": _curves(evaluation.precision_recall, "recall", "precision", evaluation.name),
    }
    mistakes = evaluation.worst(worst) if evaluation.name != "val" else []
    return {**drawn, "worst": _photographs(mistakes)} if mistakes else drawn


def _begin(width: float, height: float) -> "Figure":
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=100, layout="constrained")


def _confusion(evaluation: Evaluation) -> "Figure":
    """Draw counts; the colour shows the share of the true grade."""
    counts = evaluation.confusion
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    figure = _begin(4, 4)
    axes = figure.add_subplot(
        xlabel="predicted grade", ylabel="true grade", title=evaluation.name, xticks=range(5), yticks=range(5)
    )
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (true, predicted), count in np.ndenumerate(counts):
        ink = "white" if shares[true, predicted] > 0.6 else "black"
        axes.text(predicted, true, str(count), ha="center", va="center", color=ink)
    return figure


def _curves(curves: Sequence[GradeCurve], x: str, y: str, title: str) -> "Figure":
    figure = _begin(4.5, 4)
    axes = figure.add_subplot(xlabel=x, ylabel=y, title=title, xlim=(0, 1), ylim=(0, 1.02))
    for curve in curves:
        axes.plot(curve.x, curve.y, color=_COLOURS[curve.grade], label=f"grade {curve.grade}")
    if curves:
        axes.legend(loc="lower right", frameon=False)
    return figure


def _photographs(mistakes: Sequence[Mistake]) -> "Figure":
    rows = -(-len(mistakes) // _COLUMNS)
    figure = _begin(2.2 * _COLUMNS, 2.6 * rows)
    for number, mistake in enumerate(mistakes, start=1):
        axes = figure.add_subplot(rows, _COLUMNS, number)
        axes.imshow(mistake.image)
        axes.set_title(f"{mistake.image_id}\n{caption(mistake)}", fontsize=8)
        axes.set_axis_off()
    return figure


class TensorBoardTracker(TensorBoardLogger):
    """TensorBoard logger that also draws evaluations and logs the final status of the run."""

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


def mlflow_logger(
    project: str, folder: str, tracking_uri: str | None = None, worst_photographs: int = 0, **about: Any
) -> Logger:
    """Make a logger for MLflow; by default it writes to a database on this machine.

    Args:
        project: Name of MLflow's experiment.
        folder: Folder of the database and its figures.
        tracking_uri: Another database or a server; None for ``MLFLOW_TRACKING_URI``, else the folder.
        worst_photographs: Number of the worst test photographs to show.
        **about: Arguments of :func:`~drgrade.training.tracking.tracker.describe_run`.

    Returns:
        The logger.

    Raises:
        ConfigError: If MLflow is not installed.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    if not all(map(find_spec, ("mlflow", "sqlalchemy", "alembic"))):
        raise ConfigError("logger=mlflow needs packages: pip install 'drgrade[mlflow]'")
    artifacts = None
    tracking_uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
    if not tracking_uri:
        artifacts = Path(folder).absolute() / "artifacts"
        artifacts.mkdir(parents=True, exist_ok=True)
        # A process waits up to a minute while another one writes to the SQLite file.
        tracking_uri = f"sqlite:///{artifacts.parent / 'mlflow.db'}?timeout=60"
    return MlflowTracker(describe_run(**about), project, tracking_uri, artifacts, worst_photographs)


class MlflowTracker(MLFlowLogger):
    """MLflow logger that continues a resumed run under the same id and logs its final status."""

    def __init__(
        self, run: RunDescription, project: str, tracking_uri: str, artifacts: Path | None, worst: int
    ) -> None:
        """Describe the run; it starts with the first logged value.

        Args:
            run: Name and labels of the run.
            project: Name of MLflow's experiment.
            tracking_uri: Database or server.
            artifacts: Folder for figures, beside the lock of a local database; None to let the server decide.
            worst: Number of the worst test photographs to show.
        """
        self._run, self._worst = run, worst
        # Without a lock, runs that start at the same time would all create the database and the experiment.
        self._lock = FileLock(artifacts.parent / ".lock") if artifacts else nullcontext()
        logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)  # creation of tables
        with self._lock:
            super().__init__(
                experiment_name=project,
                run_name=run.name,
                tracking_uri=tracking_uri,
                tags=_tags(run),
                artifact_location=artifacts.resolve().as_uri() if artifacts else None,
                run_id=read_run_id(run.folder, SERVICE),
            )

    def log_hyperparams(self, params: Any) -> None:
        """Start or continue the run, and log the config as parameters ``a/b/c``.

        MLflow parameters cannot change. A setting that differs in a resumed run (the number of epochs, for
        example) becomes the tag ``resumed/a/b/c``.
        """
        from mlflow.entities import Param, RunTag

        known = self._start()
        flat = {
            name: _short(str(value), _MAX_PARAMETER_LENGTH) for name, value in _flatten_dict(params).items()
        }
        new = [Param(name, value) for name, value in flat.items() if name not in known]
        for start in range(0, len(new), _MAX_BATCH):
            self.experiment.log_batch(self.run_id, params=new[start : start + _MAX_BATCH])
        changed = {name: value for name, value in flat.items() if known.get(name, value) != value}
        tags = [RunTag(f"resumed/{name}", value) for name, value in changed.items()]
        self.experiment.log_batch(self.run_id, tags=tags)

    def log_evaluation(self, evaluation: Evaluation) -> None:
        """See :class:`~drgrade.training.tracking.tracker.Tracker`."""
        for name, figure in draw_evaluation(evaluation, self._worst).items():
            self.experiment.log_figure(self.run_id, figure, f"{evaluation.name}/{name}.png")

    def finalize(self, status: str = "success") -> None:
        """Do nothing: Lightning calls this after each fit and test, but the run continues."""

    def finish_run(self, ending: Ending, record: Mapping[str, object]) -> None:
        """See :class:`~drgrade.training.tracking.tracker.Tracker`."""
        logged = self.experiment.get_run(self.run_id).data
        if "error" in logged.tags and "error" not in record:
            self.experiment.delete_tag(self.run_id, "error")  # of an earlier attempt
        for metric, value in record.items():
            name = final_name(metric)
            if not isinstance(value, int | float) or isinstance(value, bool):
                self.experiment.set_tag(self.run_id, name, _short(str(value), _MAX_TAG_LENGTH))
            elif name not in logged.metrics or name.startswith("final/"):
                self.experiment.log_metric(self.run_id, name, value)
        self.experiment.set_terminated(self.run_id, _STATUS[ending])

    def _start(self) -> dict[str, str]:
        """Create or find the run; return the parameters that it already has."""
        resumed = self._run_id is not None
        with self._lock:
            client, name = self._mlflow_client, self._experiment_name
            # Lightning would create a missing experiment too, but with a warning.
            if not resumed and client.get_experiment_by_name(name) is None:
                client.create_experiment(name, artifact_location=self._artifact_location)
            run_id = self.run_id
        assert run_id is not None
        write_run_id(self._run.folder, SERVICE, run_id)
        if not resumed:
            return {}
        self.experiment.update_run(run_id, status="RUNNING")
        return dict(self.experiment.get_run(run_id).data.params)


def _tags(run: RunDescription) -> dict[str, str]:
    own = {"job_type": run.job_type, **run.facts, **({"group": run.group} if run.group else {})}
    # Otherwise MLflow adds the user's name, the path of the script and the git remote.
    nobody = dict.fromkeys(("mlflow.user", "mlflow.source.git.repoURL"), "") | {
        "mlflow.source.name": "drgrade"
    }
    return {**nobody, **own, **dict.fromkeys(run.tags, "true")}


def _short(text: str, longest: int) -> str:
    return text if len(text) <= longest else text[: longest - 1] + "…"
