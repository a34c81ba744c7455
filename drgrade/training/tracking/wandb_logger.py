"""A run in Weights & Biases."""

import os
import secrets
import string
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import WandbLogger

from drgrade.training.tracking.base import Card, Ending, final_name, recall, remember
from drgrade.training.tracking.evaluation import Curve, Evaluation, caption

SERVICE = "wandb"
DATA_DIR = "WANDB_DATA_DIR"

_GRADES = range(5)
_HIGHER = (
    "qwk",
    "accuracy",
    "macro_f1",
    "auroc",
    "referable_auroc",
    "referable_sensitivity",
    "referable_specificity",
    *(f"{metric}_{grade}" for metric in ("auroc", "recall") for grade in _GRADES),
)
"""Metrics of which the highest value is the best one."""

_LOWER = ("loss", "mae", "ece")

_BY_FRACTION = "by_label_fraction/qwk"
_AREA = "wandb/area-under-curve/v0"
"""W&B's own chart of curves by class."""


class WandbTracker(WandbLogger):
    """W&B, with the directions of metrics, W&B's own charts, and an end that says how the run ended."""

    def __init__(self, card: Card, project: str, offline: bool, worst: int, **more: Any) -> None:
        """Describe the run; it starts in W&B with the first thing that is logged.

        Args:
            card: What the run is called.
            project: In W&B.
            offline: Keep the run on this machine.
            worst: How many of the worst test photographs to show.
            **more: For ``wandb.init``.
        """
        self._card, self._worst = card, worst
        earlier = recall(card.folder, SERVICE)
        self._goes_on = earlier is not None
        super().__init__(
            name=card.name,
            save_dir=str(card.folder),
            project=project,
            offline=offline,
            version=earlier or _new_id(),
            group=card.group,
            job_type=card.job_type,
            tags=card.all_tags,
            **more,
        )
        del self._wandb_init["anonymous"]  # Lightning hands it over, and wandb warns that it has no effect

    def log_hyperparams(self, params: Any) -> None:
        """Start the run with its config, and say of which metrics the highest value is the best.

        Args:
            params: The config.
        """
        super().log_hyperparams({**params, "curve": self._card.curve})
        remember(self._card.folder, SERVICE, self.experiment.id)
        # Fractions of the labels have different numbers of steps in an epoch: what is compared is epochs.
        self.experiment.define_metric("epoch")
        self.experiment.define_metric(_BY_FRACTION, step_metric="label_fraction")
        for subset in ("train", "val"):
            for names, best in ((_HIGHER, "max"), (_LOWER, "min")):
                for name in names:
                    self.experiment.define_metric(
                        f"{subset}/{name}", step_metric="epoch", step_sync=True, summary=best
                    )

    def show(self, evaluation: Evaluation) -> None:
        """See :class:`~drgrade.training.tracking.base.Tracker`."""
        name = evaluation.name
        charts = {
            f"{name}/confusion": self._confusion(evaluation),
            f"{name}/roc": self._curves(f"ROC, {name}", evaluation.roc, "fpr", "tpr"),
            f"{name}/precision_recall": self._curves(
                f"precision and recall, {name}", evaluation.precision_recall, "recall", "precision"
            ),
        }
        if self._worst and name != "val":
            charts[f"{name}/worst"] = self._photographs(evaluation)
        with _staged_in(self._card.folder / "wandb"):
            self.experiment.log({**charts, "trainer/global_step": evaluation.step})

    def conclude(self, ending: Ending, record: Mapping[str, object]) -> None:
        """See :class:`~drgrade.training.tracking.base.Tracker`."""
        if "test/qwk" in record:
            # A point of its own, so that W&B can draw the curve over the runs of a sweep.
            point = {"label_fraction": record["label_fraction"], _BY_FRACTION: record["test/qwk"]}
            self.experiment.log(point)
        figures = {final_name(name): value for name, value in record.items()}
        if self._goes_on:
            figures.setdefault("error", None)  # of an earlier part, which this one has mended
        self.experiment.summary.update(figures)
        self.experiment.finish(exit_code=0 if ending == "finished" else 1)

    def _confusion(self, evaluation: Evaluation) -> Any:
        import wandb

        return wandb.plot.confusion_matrix(
            y_true=evaluation.predictions.grades.tolist(),
            preds=evaluation.predictions.predicted.tolist(),
            class_names=[str(grade) for grade in _GRADES],
            title=f"confusion, {evaluation.name}",
        )

    def _curves(self, title: str, curves: Sequence[Curve], x: str, y: str) -> Any:
        import wandb

        points: list[Iterable[Any]] = [
            [f"grade {curve.grade}", float(right), float(up)]
            for curve in curves
            for right, up in zip(curve.x, curve.y, strict=True)
        ]
        return wandb.plot_table(
            vega_spec_name=_AREA,
            data_table=wandb.Table(columns=["class", x, y], data=points),
            fields={"x": x, "y": y, "class": "class"},
            string_fields={"title": title, "x-axis-title": x, "y-axis-title": y},
        )

    def _photographs(self, evaluation: Evaluation) -> Any:
        import wandb

        probabilities = [f"p{grade}" for grade in _GRADES]
        table = wandb.Table(columns=["photograph", "image_id", "grade", "predicted", *probabilities])
        for mistake in evaluation.worst(self._worst):
            photograph = wandb.Image(mistake.image, caption=caption(mistake))
            grades = (mistake.grade, mistake.predicted)
            table.add_data(photograph, mistake.image_id, *grades, *map(float, mistake.probabilities))
        return table


@contextmanager
def _staged_in(folder: Path) -> Iterator[None]:
    """Keep what tables hold with the run until it is uploaded: wandb puts it into the home folder otherwise.

    W&B knows no other way to say so than its environment variable. A user's own one stays.
    """
    if DATA_DIR in os.environ:
        yield
        return
    os.environ[DATA_DIR] = str(folder.absolute())
    try:
        yield
    finally:
        del os.environ[DATA_DIR]


def _new_id() -> str:
    """Of the form that W&B gives."""
    return "".join(secrets.choice(string.ascii_lowercase + string.digits) for _ in range(8))
