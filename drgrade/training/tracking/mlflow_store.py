"""A run in MLflow: a data base on this machine, or a server."""

import logging
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from filelock import FileLock
from lightning_fabric.utilities.logger import _flatten_dict
from pytorch_lightning.loggers import MLFlowLogger

from drgrade.training.tracking.base import Card, Ending, final_name, recall, remember
from drgrade.training.tracking.evaluation import Evaluation, figures

SERVICE = "mlflow"

_STATUS = {"finished": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}
_LONGEST_PARAMETER, _LONGEST_TAG, _AT_ONCE = 6000, 8000, 100
"""Limits of MLflow: characters of a value, and parameters in one request."""


class MlflowTracker(MLFlowLogger):
    """MLflow, where a run that goes on is the same run, and its status is how it ended."""

    def __init__(
        self, card: Card, project: str, tracking_uri: str, artifacts: Path | None, worst: int
    ) -> None:
        """Describe the run; it starts with the first thing that is logged.

        Args:
            card: What the run is called.
            project: The experiment, in MLflow's words.
            tracking_uri: Data base or server.
            artifacts: Folder of the pictures of a new experiment, beside the lock of a local data base; None:
                the server decides.
            worst: How many of the worst test photographs to show.
        """
        self._card, self._worst = card, worst
        # Cells that start at the same time would all make the data base, and then the experiment.
        self._alone = FileLock(artifacts.parent / ".lock") if artifacts else nullcontext()
        # It tells how it makes its tables.
        logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)
        with self._alone:
            super().__init__(
                experiment_name=project,
                run_name=card.name,
                tracking_uri=tracking_uri,
                tags=_tags(card),
                artifact_location=artifacts.resolve().as_uri() if artifacts else None,
                run_id=recall(card.folder, SERVICE),
            )

    def log_hyperparams(self, params: Any) -> None:
        """Start the run, or go on with it, and record the config as ``a/b/c``.

        MLflow lets no parameter change. One that is another in a run that goes on (the number of epochs, say)
        becomes the tag ``resumed/a/b/c``.

        Args:
            params: The config.
        """
        from mlflow.entities import Param, RunTag

        known = self._start()
        flat = {name: _short(str(value), _LONGEST_PARAMETER) for name, value in _flatten_dict(params).items()}
        new = [Param(name, value) for name, value in flat.items() if name not in known]
        for start in range(0, len(new), _AT_ONCE):
            self.experiment.log_batch(self.run_id, params=new[start : start + _AT_ONCE])
        changed = {name: value for name, value in flat.items() if known.get(name, value) != value}
        tags = [RunTag(f"resumed/{name}", value) for name, value in changed.items()]
        self.experiment.log_batch(self.run_id, tags=tags)

    def show(self, evaluation: Evaluation) -> None:
        """See :class:`~drgrade.training.tracking.base.Tracker`."""
        for name, figure in figures(evaluation, self._worst).items():
            self.experiment.log_figure(self.run_id, figure, f"{evaluation.name}/{name}.png")

    def finalize(self, status: str = "success") -> None:
        """Nothing: Lightning says this after each fit and each test, but the run goes on.

        Args:
            status: Of that part.
        """

    def conclude(self, ending: Ending, record: Mapping[str, object]) -> None:
        """See :class:`~drgrade.training.tracking.base.Tracker`."""
        found = self.experiment.get_run(self.run_id).data
        if "error" in found.tags and "error" not in record:
            self.experiment.delete_tag(self.run_id, "error")  # of an earlier part, which this one has mended
        for name, value in {final_name(name): value for name, value in record.items()}.items():
            if not isinstance(value, int | float) or isinstance(value, bool):
                self.experiment.set_tag(self.run_id, name, _short(str(value), _LONGEST_TAG))
            elif name not in found.metrics or name.startswith("final/"):
                self.experiment.log_metric(self.run_id, name, value)
        self.experiment.set_terminated(self.run_id, _STATUS[ending])

    def _start(self) -> dict[str, str]:
        """Make or find the run.

        Returns:
            The parameters that it has already.
        """
        resumed = self._run_id is not None
        with self._alone:
            if not resumed:
                self._make_experiment()
            run_id = self.run_id
        assert run_id is not None
        remember(self._card.folder, SERVICE, run_id)
        if not resumed:
            return {}
        self.experiment.update_run(run_id, status="RUNNING")
        return dict(self.experiment.get_run(run_id).data.params)

    def _make_experiment(self) -> None:
        """Make the experiment if there is none: Lightning does too, but warns that it had to."""
        client, name = self._mlflow_client, self._experiment_name
        if client.get_experiment_by_name(name) is None:
            client.create_experiment(name, artifact_location=self._artifact_location)


def _tags(card: Card) -> dict[str, str]:
    own = {"job_type": card.job_type, **card.facts, **({"group": card.group} if card.group else {})}
    return {**own, **dict.fromkeys(card.tags, "true")}


def _short(text: str, longest: int) -> str:
    return text if len(text) <= longest else text[: longest - 1] + "…"
