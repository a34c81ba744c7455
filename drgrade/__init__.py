"""Grade diabetic retinopathy with few labels.

The functions below are the public API. ``*overrides`` are written as on the command line
(``"data.root=DIR"``); ``**settings`` are settings at the top level as Python values (``fold=1``).
docs/configuration.md lists all settings. The caller needs neither an initialised Hydra nor
``if __name__ == "__main__"``.

Example:
    >>> import drgrade
    >>> metrics = drgrade.train("+experiment=rotation_10pct", "data=demo", fold=1)  # doctest: +SKIP
    >>> grader = drgrade.load(metrics["folder"])  # doctest: +SKIP
    >>> grader.predict("photograph.jpg")[0].grade  # doctest: +SKIP
    2
"""

import os
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drgrade.errors import DrgradeError

__version__ = version("drgrade")

# Threads that spin while they wait make the work many times slower beside other processes (docs/speed.md).
# libgomp reads the variable when torch or scikit-learn is imported; child processes inherit it.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")

if TYPE_CHECKING:
    from drgrade.auditing.audit import Audit
    from drgrade.data.store import Store
    from drgrade.evaluation.evaluation import EvaluationResult
    from drgrade.prediction.prediction import PredictionSummary, Predictor
    from drgrade.settings import Reading

__all__ = [
    "DrgradeError",
    "__version__",
    "audit",
    "evaluate",
    "load",
    "predict",
    "prepare",
    "report",
    "train",
]


def train(*overrides: str, **settings: object) -> dict[str, Any]:
    """Train and test one run, as ``python train.py`` with these overrides and settings.

    A run on several devices (``trainer=ddp``) is started as a command of its own.

    Returns:
        The content of ``metrics.json``, and ``folder``, the absolute path of the run's folder.

    Raises:
        DrgradeError: If a setting, the data or an earlier run in the folder does not allow the run.

    Example:
        >>> small = ["data=demo", "data.count=40", "data.size=96", "protocol.epochs=1", "logger=none"]
        >>> metrics = train(*small, seed=1)  # doctest: +SKIP
        >>> metrics["status"]  # doctest: +SKIP
        'finished'
    """
    from drgrade.cli.command import in_job, run_training
    from drgrade.runs.run_dir import read_metrics
    from drgrade.settings import TrainSettings

    with in_job(TrainSettings, overrides, settings) as cfg:
        folder = Path(cfg.paths.run)
        if "strategy" in cfg.trainer:
            run_training(overrides, settings, folder)
            return {**read_metrics(folder), "folder": str(folder)}
        from drgrade.training.run import train as train_run

        return {**train_run(cfg), "folder": str(cfg.paths.run)}


def load(
    checkpoint: Path | str | Sequence[Path | str],
    device: str = "auto",
    tta: str = "none",
    sensitivity: float | None = None,
    abstain: bool = True,
    reading: "Reading" = "head",
) -> "Predictor":
    """Load a trained model, or several as an ensemble.

    Args:
        checkpoint: Folder of a finished grading run or of a published model; several form an ensemble.
        device: ``auto`` for a GPU if there is one, or any device of torch.
        tta: Test-time augmentation: ``none``, ``flips`` (4 views) or ``dihedral`` (8 views).
        sensitivity: Refer from the probability that reached this sensitivity on the validation photographs;
            None for the default of the run, 90 % if it has operating points, else refer from 0.5.
        abstain: Do not grade photographs of insufficient quality.
        reading: Rule that reads the grades: that of the ``head``, or ``thresholds`` fitted on validation
            photographs.

    Returns:
        An object that grades and explains photographs given as paths, arrays (H, W, 3) uint8 or PIL images.

    Raises:
        DrgradeError: If a model cannot be loaded, or the models do not fit together.

    Example:
        >>> grader = load("outputs/runs/rotation_10pct/RUN")  # doctest: +SKIP
        >>> row, = grader.predict("photograph.jpg")  # doctest: +SKIP
        >>> row.grade, row.quality  # doctest: +SKIP
        (2, 'good')
    """
    from drgrade.prediction.grader import Grader
    from drgrade.prediction.prediction import Predictor
    from drgrade.progress import say

    grader = Grader.load(checkpoint, device, tta, reading)
    if grader.warning:
        say(f"WARNING: {grader.warning}")
    return Predictor(grader, sensitivity, abstain)


def predict(*overrides: str, **settings: object) -> "PredictionSummary":
    """Grade files and folders, as ``drgrade predict``; return the folder and the counts of the results.

    Raises:
        DrgradeError: If there is nothing to grade, or a model cannot be loaded.

    Example:
        >>> summary = predict(checkpoint="outputs/runs/NAME/RUN", input="photographs")  # doctest: +SKIP
        >>> summary.counts["graded"]  # doctest: +SKIP
        12
    """
    from drgrade.cli.command import in_job
    from drgrade.prediction.prediction import predict as predict_files
    from drgrade.settings import PredictSettings

    with in_job(PredictSettings, overrides, settings) as cfg:
        return predict_files(PredictSettings.read(cfg))


def evaluate(*overrides: str, **settings: object) -> "EvaluationResult":
    """Test a trained run, or an ensemble, as ``drgrade evaluate``; return metrics with 95 % intervals.

    ``"data=NAME"`` selects another data set than the run's own.

    Raises:
        DrgradeError: If a run is not finished, or was trained on photographs that it is to be tested on.

    Example:
        >>> result = evaluate("data=idrid", "data.root=DIR", checkpoint=["RUN"])  # doctest: +SKIP
        >>> result.estimates["test/qwk"].interval.low  # doctest: +SKIP
        0.41
    """
    from drgrade.cli.command import in_job
    from drgrade.evaluation.evaluation import evaluate as evaluate_runs
    from drgrade.settings import EvaluateSettings

    with in_job(EvaluateSettings, overrides, settings) as cfg:
        return evaluate_runs(cfg)


def prepare(*overrides: str, **settings: object) -> list["Store"]:
    """Prepare the photographs of a data set, as ``drgrade prepare``.

    Returns:
        A store for each data set: a manifest and square photographs (N, S, S, 3) uint8.

    Raises:
        DrgradeError: If the data set is missing or cannot be read.

    Example:
        >>> store, = prepare("data=demo", "data.count=40")  # doctest: +SKIP
        >>> len(store), store.image_size  # doctest: +SKIP
        (40, 96)
    """
    from drgrade.cli.command import in_job
    from drgrade.cli.prepare import work
    from drgrade.settings import PrepareSettings

    with in_job(PrepareSettings, overrides, settings) as cfg:
        return work(cfg)


def audit(*overrides: str, **settings: object) -> "Audit":
    """Check the photographs and labels of a data set, as ``drgrade audit``; write and return the findings.

    Raises:
        DrgradeError: If the data set is missing, or a setting does not apply to an audit.

    Example:
        >>> print(audit("data=demo", "data.count=40").summary())  # doctest: +SKIP
    """
    from drgrade.cli.audit import audit_data
    from drgrade.cli.command import in_job
    from drgrade.settings import AuditSettings

    with in_job(AuditSettings, overrides, settings) as cfg:
        return audit_data(cfg)[0]


def report(*runs: Path | str, **settings: object) -> Path:
    """Write tables, figures and a page from the folders of runs and sweeps, as ``drgrade report``.

    Args:
        *runs: Folders of runs or sweeps.
        **settings: Settings of ``drgrade report``: ``out``, ``resamples``, ``title``, ...

    Returns:
        The HTML page.

    Raises:
        DrgradeError: If a folder holds no finished run, or the runs must not be compared.

    Example:
        >>> page = report("outputs/sweeps/rotation_table-idrid")  # doctest: +SKIP
    """
    from drgrade.cli.command import in_job
    from drgrade.cli.report import make_report
    from drgrade.settings import ReportSettings

    with in_job(ReportSettings, (), {"runs": runs, **settings}) as cfg:
        return make_report(ReportSettings.read(cfg))
