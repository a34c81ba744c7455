"""Log a run to Weights & Biases."""

import netrc
import os
import secrets
import string
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import requests
from pytorch_lightning.loggers import Logger, WandbLogger

from drgrade.progress import say
from drgrade.training.tracking.tracker import (
    Ending,
    Evaluation,
    GradeCurve,
    RunDescription,
    caption,
    describe_run,
    final_name,
    read_run_id,
    write_run_id,
)

SERVICE = "wandb"
DATA_DIR = "WANDB_DATA_DIR"

_SECONDS_TO_ANSWER, _SECONDS_TO_START, _SECONDS_TO_FINISH = 5.0, 30.0, 300.0

_GRADES = range(5)
_TO_MAXIMISE = (
    "qwk",
    "accuracy",
    "macro_f1",
    "auroc",
    "referable_auroc",
    "referable_sensitivity",
    "referable_specificity",
    *(f"{metric}_{grade}" for metric in ("auroc", "recall") for grade in _GRADES),
)
_TO_MINIMISE = ("loss", "mae", "nll", "brier")

_BY_FRACTION = "by_label_fraction/qwk"
_CURVE_CHART = "wandb/area-under-curve/v0"
"""W&B's own chart of curves by class."""


def wandb_logger(
    project: str,
    offline: bool | None = None,
    worst_photographs: int = 0,
    entity: str | None = None,
    **about: Any,
) -> Logger:
    """Make a logger for Weights & Biases, offline if nobody is logged in.

    Args:
        project: Project in W&B.
        offline: Keep the run on this machine; None to do so if nobody is logged in. ``WANDB_MODE`` has
            precedence.
        worst_photographs: Number of the worst test photographs to show, which uploads them.
        entity: User or team in W&B; None for the user's default.
        **about: Arguments of :func:`~drgrade.training.tracking.tracker.describe_run`.

    Returns:
        The logger. W&B starts with the first logged value.
    """
    if "WANDB_MODE" in os.environ:
        offline = False  # wandb reads the variable
    else:
        os.environ.setdefault("WANDB_SILENT", "true")
    if offline is None:
        offline = not logged_in()
    return WandbTracker(describe_run(**about), project, offline, worst_photographs, entity=entity)


def logged_in() -> bool:
    """Return True if ``wandb login`` has stored a key, without importing wandb or asking its server."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    path = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    host = urlparse(_address()).netloc
    try:
        return netrc.netrc(path).authenticators(host) is not None
    except (FileNotFoundError, netrc.NetrcParseError):
        return False


class WandbTracker(WandbLogger):
    """W&B logger with directions of metrics, W&B's own charts, and the final status of the run."""

    def __init__(self, run: RunDescription, project: str, offline: bool, worst: int, **more: Any) -> None:
        """Describe the run; it starts in W&B with the first logged value.

        Args:
            run: Name and labels of the run.
            project: Project in W&B.
            offline: Keep the run on this machine.
            worst: Number of the worst test photographs to show.
            **more: Arguments of ``wandb.init``.
        """
        self._run, self._worst = run, worst
        earlier = read_run_id(run.folder, SERVICE)
        self._resumed = earlier is not None
        super().__init__(
            name=run.name,
            save_dir=str(run.folder),
            project=project,
            offline=offline,
            version=earlier or _new_id(),
            group=run.group,
            job_type=run.job_type,
            tags=run.all_tags,
            **more,
        )
        self._wandb_init["settings"] = _settings()
        del self._wandb_init["anonymous"]  # set by Lightning; wandb warns that it has no effect

    def log_hyperparams(self, params: Any) -> None:
        """Start the run with its config, and define which metrics are maximised.

        Args:
            params: The config.
        """
        self._start()
        super().log_hyperparams({**params, "curve": self._run.curve})
        write_run_id(self._run.folder, SERVICE, self.experiment.id)
        # The number of steps of an epoch depends on the label fraction, so epochs are the common axis.
        self.experiment.define_metric("epoch")
        self.experiment.define_metric(_BY_FRACTION, step_metric="label_fraction")
        for subset in ("train", "val"):
            for names, best in ((_TO_MAXIMISE, "max"), (_TO_MINIMISE, "min")):
                for name in names:
                    self.experiment.define_metric(
                        f"{subset}/{name}", step_metric="epoch", step_sync=True, summary=best
                    )

    def _start(self) -> None:
        """Start the run, offline if the server cannot be reached."""
        import wandb

        if self._offline or os.environ.get("WANDB_MODE", "online") not in ("online", "run"):
            return
        reason = _unreachable()
        if not reason:
            try:
                self.experiment  # noqa: B018 - starts the run
            except wandb.errors.CommError as error:
                reason = str(error).splitlines()[0]
        if reason:
            say(f"W&B cannot be reached ({reason}): the run is kept offline; upload it with wandb sync")
            self._wandb_init["mode"] = "offline"

    def log_evaluation(self, evaluation: Evaluation) -> None:
        """See :class:`~drgrade.training.tracking.tracker.Tracker`."""
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
        with _data_dir(self._run.folder / "wandb"):
            self.experiment.log({**charts, "trainer/global_step": evaluation.step})

    def finish_run(self, ending: Ending, record: Mapping[str, object]) -> None:
        """See :class:`~drgrade.training.tracking.tracker.Tracker`."""
        if "test/qwk" in record:
            # A point of its own, from which W&B can draw the curve over the runs of a sweep.
            point = {"label_fraction": record["label_fraction"], _BY_FRACTION: record["test/qwk"]}
            self.experiment.log(point)
        summary = {final_name(name): value for name, value in record.items()}
        if self._resumed:
            summary.setdefault("error", None)  # of an earlier attempt
        self.experiment.summary.update(summary)
        self.experiment.finish(exit_code=0 if ending == "finished" else 1)

    def _confusion(self, evaluation: Evaluation) -> Any:
        import wandb

        return wandb.plot.confusion_matrix(
            y_true=evaluation.predictions.grades.tolist(),
            preds=evaluation.predictions.predicted.tolist(),
            class_names=[str(grade) for grade in _GRADES],
            title=f"confusion, {evaluation.name}",
        )

    def _curves(self, title: str, curves: Sequence[GradeCurve], x: str, y: str) -> Any:
        import wandb

        points: list[Iterable[Any]] = [
            [f"grade {curve.grade}", float(right), float(up)]
            for curve in curves
            for right, up in zip(curve.x, curve.y, strict=True)
        ]
        return wandb.plot_table(
            vega_spec_name=_CURVE_CHART,
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


def _settings() -> Any:
    """Return settings of wandb that keep the repository, paths, host and user of the machine out of a run."""
    import wandb

    return wandb.Settings(
        host=os.environ.get("WANDB_HOST", "not recorded"),
        disable_git=True,
        disable_code=True,
        console="off",
        x_disable_meta=True,
        init_timeout=_SECONDS_TO_START,
        finish_timeout=_SECONDS_TO_FINISH,
    )


def _unreachable() -> str:
    """Return why W&B's server does not answer; empty if it does. A proxy of the environment is used."""
    answers: list[str] = []

    def ask() -> None:
        try:
            requests.head(_address(), timeout=_SECONDS_TO_ANSWER)
        except requests.RequestException as error:
            answers.append(type(error).__name__)
        else:
            answers.append("")

    # In a thread, because the lookup of a name has no time limit.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_SECONDS_TO_ANSWER + 1)
    return answers[0] if answers else "no answer"


def _address() -> str:
    return os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")


@contextmanager
def _data_dir(folder: Path) -> Iterator[None]:
    """Let wandb stage the files of tables in the run's folder instead of the home folder.

    The environment variable is the only way to set it; a value set by the user stays.
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
    """Return a random id in the format of W&B."""
    return "".join(secrets.choice(string.ascii_lowercase + string.digits) for _ in range(8))
