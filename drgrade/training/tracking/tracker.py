"""Track a run in an experiment logger, from its settings to its final status."""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol, cast, runtime_checkable

import numpy as np
import numpy.typing as npt
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.loggers import Logger

from drgrade.data.photographs import Collection
from drgrade.files import write_text
from drgrade.metrics.distributed import Predictions
from drgrade.metrics.functional import confusion_matrix
from drgrade.runs.run_dir import read_json
from drgrade.training.build import instantiate
from drgrade.training.distributed import is_main_process

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]
Ending = Literal["finished", "failed", "interrupted"]

TRACKING = "tracking.json"
"""File in a run's folder with the ids that services have given to the run."""

_MAX_TAG_LENGTH = 64
"""W&B rejects longer tags."""

_ABSOLUTE = re.compile(r"[~/][^:;,]*$|file://|[A-Za-z]:\\")
_PATH = re.compile(r"(?<![\w.:/~-])~?/(?:[^/\s:;,'\"()\[\]=]+/)*([^/\s:;,'\"()\[\]=]+)/?")
_USER = re.compile(r"(\w://)[^/\s@]+@")

_MAX_POINTS = 200
"""Points of a curve; W&B draws at most 10,000 rows of a table."""


@dataclass(frozen=True)
class GradeCurve:
    """A curve of one grade against the rest: ``x`` and ``y`` are (P,) in [0, 1]."""

    grade: int
    x: Floats
    y: Floats


@dataclass(frozen=True)
class Mistake:
    """A photograph with a wrong predicted grade: probabilities (5,), image (S, S, 3) uint8 from the store."""

    image_id: str
    grade: int
    predicted: int
    probabilities: Floats
    image: npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Evaluation:
    """Results on one set.

    Attributes:
        name: ``val``, ``test`` or ``external/NAME``.
        predictions: Predictions on all its photographs.
        collection: Photographs whose rows the predictions name.
        step: Number of optimiser steps before the evaluation.
    """

    name: str
    predictions: Predictions
    collection: Collection
    step: int

    @cached_property
    def confusion(self) -> Counts:
        """(5, 5) counts; rows are the true grade."""
        counts: Counts = confusion_matrix(self.predictions.predicted, self.predictions.grades).numpy()
        return counts

    @cached_property
    def roc(self) -> list[GradeCurve]:
        """True against false positive rate, for each grade that some photographs have and some do not."""
        from sklearn.metrics import roc_curve

        return self._curves(lambda truth, scores: roc_curve(truth, scores)[:2])

    @cached_property
    def precision_recall(self) -> list[GradeCurve]:
        """Precision against recall, for the same grades as :attr:`roc`."""
        from sklearn.metrics import precision_recall_curve

        return self._curves(lambda truth, scores: precision_recall_curve(truth, scores)[1::-1])

    def worst(self, count: int) -> list[Mistake]:
        """Return up to ``count`` mistakes: the largest error first, then the least probable true grade."""
        grades, predicted = self.predictions.grades.numpy(), self.predictions.predicted.numpy()
        probabilities = self.predictions.probabilities.double().numpy()
        distance = np.abs(predicted - grades)
        order = np.lexsort((probabilities[np.arange(len(grades)), grades], -distance))
        ids = self.collection.photographs["image_id"]
        mistakes = []
        for k in order[:count][distance[order[:count]] > 0]:
            row = int(self.predictions.index[k])
            grade, called = int(grades[k]), int(predicted[k])
            mistakes.append(Mistake(str(ids.iloc[row]), grade, called, probabilities[k], self._image(row)))
        return mistakes

    def _curves(
        self, curve: Callable[[npt.NDArray[np.bool_], Floats], tuple[Floats, Floats]]
    ) -> list[GradeCurve]:
        grades = self.predictions.grades.numpy()
        probabilities = self.predictions.probabilities.double().numpy()
        curves = []
        for grade in range(probabilities.shape[1]):
            truth = grades == grade
            if truth.any() and not truth.all():
                x, y = curve(truth, probabilities[:, grade])
                kept = np.unique(np.linspace(0, len(x) - 1, _MAX_POINTS).round().astype(int))
                curves.append(GradeCurve(grade, x[kept], y[kept]))
        return curves

    def _image(self, row: int) -> npt.NDArray[np.uint8]:
        for store in self.collection.stores:
            if row < len(store):
                return np.array(store.images[row])
            row -= len(store)
        raise IndexError(row)


def caption(mistake: Mistake) -> str:
    """Describe a mistake in one line."""
    probability = mistake.probabilities[mistake.grade]
    return f"grade {mistake.grade} (p = {probability:.2f}), predicted {mistake.predicted}"


@runtime_checkable
class Tracker(Protocol):
    """A logger that draws evaluations and records the final status of the run."""

    def log_evaluation(self, evaluation: Evaluation) -> None:
        """Log confusion matrix, curves and worst photographs of an evaluated set."""

    def finish_run(self, ending: Ending, record: Mapping[str, object]) -> None:
        """Close the run and log its outcome; ``record`` is the content of ``metrics.json``."""


@dataclass
class TrackedRun:
    """A run that is being tracked.

    Attributes:
        logger: For the trainer; False in all processes but the first.
        record: Content of ``metrics.json``, set before the run ends.
    """

    logger: Logger | Literal[False]
    record: Mapping[str, object] = field(default_factory=dict)


@contextmanager
def tracked_run(
    cfg: DictConfig, folder: Path, facts: Mapping[str, object], resumed: bool = False
) -> Iterator[TrackedRun]:
    """Start a run's logger with the config, and report the final status of the run to it.

    Args:
        cfg: The run's config, which is logged :func:`without_paths`.
        folder: The run's folder.
        facts: Further settings to log: hashes of data, split and encoder.
        resumed: The run is resumed, and its logger continues the same run.

    Yields:
        The tracked run; set its ``record`` before the context ends.
    """
    if not is_main_process():
        yield TrackedRun(False)
        return
    if not resumed:
        (folder / TRACKING).unlink(missing_ok=True)
    logger = _make_logger(cfg.logger, facts)
    settings = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    # The setting init does not name a weights file.
    more = {name: value for name, value in facts.items() if name not in cfg or name == "init"}
    logger.log_hyperparams(without_paths({**cast(dict[str, Any], settings), **more}))  # starts the run
    tracked = TrackedRun(logger)
    try:
        yield tracked
    except BaseException as error:
        if isinstance(logger, Tracker):
            record = without_paths(failure_record(error))
            logger.finish_run(cast(Ending, record["status"]), record)
        raise
    if isinstance(logger, Tracker):
        logger.finish_run("finished", without_paths(tracked.record))


def _make_logger(node: DictConfig, facts: Mapping[str, object]) -> Logger:
    """Make the logger; the first weights are those of the facts, which name a weights file."""
    if "about" in node and "init" in facts:
        about = cast(dict[str, Any], OmegaConf.to_container(node.about, resolve=True))
        logger = instantiate(node, about={**about, "init": facts["init"]})
    else:
        logger = instantiate(node)
    assert isinstance(logger, Logger)
    return logger


def without_paths(value: Any) -> Any:
    """Shorten absolute paths to their last part, and drop user names and passwords of addresses.

    Args:
        value: Text, or lists and mappings that contain text.

    Example:
        >>> without_paths(["/home/alice/eyes", "cannot read /data/a.jpg", "https://alice:key@host/a"])
        ['.../eyes', 'cannot read .../a.jpg', 'https://host/a']
    """
    if isinstance(value, Mapping):
        return {key: without_paths(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [without_paths(each) for each in value]
    if not isinstance(value, str):
        return value
    if _ABSOLUTE.match(value) and "\n" not in value and Path(value).name:  # may contain blanks
        return f".../{Path(value).name}"
    return _PATH.sub(r".../\1", _USER.sub(r"\1", value))


def failure_record(error: BaseException) -> dict[str, str]:
    """Return the content of ``metrics.json`` for a run that ended with an exception."""
    if not isinstance(error, Exception):  # Ctrl-C, or the end of the process
        return {"status": "interrupted"}
    return {"status": "failed", "error": f"{type(error).__name__}: {error}"}


def log_evaluation(
    loggers: Sequence[Logger], name: str, predictions: Predictions, collection: Collection, step: int
) -> None:
    """Log an evaluation with the loggers that can draw it.

    Args:
        loggers: Loggers of the run; empty in all processes but the first.
        name: ``val``, ``test`` or ``external/NAME``.
        predictions: Predictions on all photographs of the set.
        collection: Photographs whose rows the predictions name.
        step: Number of optimiser steps before the evaluation.
    """
    for logger in loggers:
        if isinstance(logger, Tracker):
            logger.log_evaluation(Evaluation(name, predictions, collection, step))


def final_name(name: str) -> str:
    """Return the name of a metric of ``metrics.json`` among the run's final metrics.

    ``val/qwk`` names a curve whose best point a summary keeps; the value of the tested checkpoint is
    ``final/val/qwk``. ``test/qwk`` is final as it is.
    """
    return f"final/{name}" if name.startswith(("train/", "val/")) else name


def read_run_id(folder: Path, service: str) -> str | None:
    """Read the id that a service (``wandb`` or ``mlflow``) has given to a run; None if it has given none.

    Raises:
        DataError: If ``tracking.json`` is damaged.
    """
    run_id = _read_run_ids(folder).get(service)
    return None if run_id is None else str(run_id)


def write_run_id(folder: Path, service: str, run_id: str) -> None:
    """Keep the id that a service (``wandb`` or ``mlflow``) has given to a run."""
    write_text(folder / TRACKING, json.dumps({**_read_run_ids(folder), service: run_id}, indent=2) + "\n")


def _read_run_ids(folder: Path) -> dict[str, Any]:
    return read_json(folder / TRACKING, "remove it to log the run as a new one")


@dataclass(frozen=True)
class RunDescription:
    """Name and labels of a run in an experiment logger.

    Attributes:
        folder: The run's folder.
        name: Name of the cell in a sweep, or the name in the config.
        group: Name of the sweep; None for a single run.
        job_type: ``grading`` or ``pretext``.
        facts: Method, data, protocol, init, label_fraction, fold and scale.
        tags: Tags of the user.
    """

    folder: Path
    name: str
    group: str | None
    job_type: str
    facts: Mapping[str, str]
    tags: tuple[str, ...]

    @property
    def all_tags(self) -> list[str]:
        """The facts as tags (``rotation``, ``init=ssl``, ``10%``, ``fold=3``), and the user's tags."""
        named = [_tag(name, value) for name, value in self.facts.items()]
        return list(dict.fromkeys([*named, *self.tags]))

    @property
    def curve(self) -> str:
        """Name shared by the runs of one curve over label fractions: ``rotation, init=ssl, published``."""
        protocol = self.facts.get("protocol", "pretext")
        return ", ".join([self.facts["method"], f"init={self.facts['init']}", protocol])


def describe_run(
    save_dir: str,
    name: str,
    group: str | None,
    job_type: str,
    about: Mapping[str, Any],
    tags: Sequence[str] = (),
) -> RunDescription:
    """Describe a run by its settings; a pre-training without those of fine-tuning.

    Args:
        save_dir: The run's folder.
        name: Name in the config.
        group: Name of the sweep, if the run belongs to one.
        job_type: ``grading`` or ``pretext``.
        about: method, model and encoder (the first that is not None names the method), data, protocol, init,
            label_fraction, fold, scale and pretrain_on.
        tags: Further tags.
    """
    folder = Path(save_dir)
    facts = {
        "method": about["method"] or about["model"] or str(about["encoder"]).rsplit(".", 1)[-1].lower(),
        "data": about["data"],
        "scale": about["scale"],
        "init": "/".join(Path(str(about["init"])).parts[-2:]),
    }
    if job_type == "grading":
        facts |= {"protocol": about["protocol"], "label_fraction": f"{100 * about['label_fraction']:.6g}%"}
    if job_type == "grading" or about["pretrain_on"] == "train":
        facts["fold"] = about["fold"]
    texts = {fact: str(value) for fact, value in facts.items()}
    return RunDescription(
        folder, folder.name if group else name, group, job_type, texts, tuple(map(str, tags))
    )


def _tag(name: str, value: str) -> str:
    text = value if name in ("method", "data", "protocol", "label_fraction") else f"{name}={value}"
    half = _MAX_TAG_LENGTH // 2
    return text if len(text) <= _MAX_TAG_LENGTH else f"{text[: half - 1]}…{text[-half:]}"
