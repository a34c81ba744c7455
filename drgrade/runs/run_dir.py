"""Files of a run's folder: names, writers and readers.

A writer replaces a file in one step, so that a reader sees the old content or the new one. Importing this
module does not import torch.
"""

import io
import json
import logging
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from omegaconf import DictConfig, OmegaConf

from drgrade.artefacts import is_number, read_object, read_text, read_yaml, shortened
from drgrade.errors import ConfigError, DataError
from drgrade.files import checkpoint_fault, is_path, read_csv, remove_partial_files, to_csv, write_text
from drgrade.grades import NUM_GRADES
from drgrade.renames import current
from drgrade.runs.settings import changed_settings, partial_settings

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

    from drgrade.metrics.distributed import Predictions
    from drgrade.models.calibration import Calibration

log = logging.getLogger(__name__)

CONFIG, METRICS, PROVENANCE = "config.yaml", "metrics.json", "provenance.json"
SPLIT, HASHES, SEEN = "split.csv", "photographs.json", "seen.txt"
PREDICTIONS, CONFUSION = "predictions.csv", "confusion.csv"
VALIDATION, CALIBRATION = "validation.csv", "calibration.json"
CHECKPOINTS = "checkpoints"
LAST, BEST = "last", "best"
"""Names of the checkpoints, and values of ``protocol.checkpoint``."""

FINISHED, TRIAL = "finished", "trial"
ENDED = (FINISHED, TRIAL)
"""Values of ``status`` of a run that has reached its end; a trial only tries the code, and is no result."""

AUTO = "auto"
"""Value of ``resume``: resume from the run's own folder if it holds a started run."""

_PACKAGES = (
    *("drgrade", "torch", "torchvision", "timm", "pytorch-lightning", "torchmetrics"),
    *("hydra-core", "albumentations", "numpy", "opencv-python-headless"),
)


def resolve_run_dir(cfg: DictConfig) -> tuple[Path, Path | None]:
    """Return the run's folder and the checkpoint to resume from.

    Args:
        cfg: The run's config. ``resume`` names the folder of an earlier run, which then is the folder of this
            run too; with ``resume=auto`` it is ``paths.run``.

    Returns:
        The folder, and ``checkpoints/last.ckpt`` in it, which does not exist yet while a run chooses its
        learning rate; None if the run starts from the beginning.

    Raises:
        ConfigError: If ``resume`` names no started run, or the folder holds a run with other settings.
    """
    if cfg.resume is None:
        return Path(cfg.paths.run), None
    folder = Path(cfg.paths.run if cfg.resume == AUTO else cfg.resume)
    checkpoint = folder / CHECKPOINTS / f"{LAST}.ckpt"
    # A search for a learning rate has checkpoints in a folder of each training.
    started = any((folder / CHECKPOINTS).rglob(checkpoint.name)) and (folder / CONFIG).is_file()
    if cfg.resume == AUTO and started and not intact_checkpoints(folder):
        started = False
    if cfg.resume != AUTO and not started:
        raise ConfigError(
            f"resume={cfg.resume} is not a run's folder with {CONFIG} and {checkpoint.relative_to(folder)}"
        )
    if not (folder / CONFIG).is_file():
        return folder, None
    changed = changed_settings(read_config(folder), cfg)
    if changed:
        raise ConfigError(
            f"resume={cfg.resume}: {folder} holds another run ({'; '.join(changed[:5])}); "
            "repeat its command and add resume="
        )
    return folder, checkpoint if started else None


def intact_checkpoints(folder: Path) -> bool:
    """Return True if every checkpoint of a run has its checksums; a warning names one that has not."""
    for path in sorted((folder / CHECKPOINTS).rglob("*.ckpt")):
        fault = checkpoint_fault(path)
        if fault is not None:
            log.warning("%s is damaged (%s): the run starts from the beginning", path, fault)
            return False
    return True


def read_config(folder: Path) -> DictConfig:
    """Read ``config.yaml``; dotted names of earlier versions are replaced by the present ones.

    The folder may come from anybody: interpolations are refused, and nothing of the config may be
    instantiated without a check (:mod:`drgrade.models.grading_model`).

    Raises:
        DataError: If the file is damaged.
    """
    content: dict[str, Any] = current(read_yaml(folder / CONFIG, "run it again, or leave it out"))
    return OmegaConf.create(content)


class RunRecord(dict[str, Any]):
    """Metrics of a run, read from a file; a value that is missing raises a DataError."""

    def __init__(self, content: Mapping[str, Any], origin: object, repair: str) -> None:
        """Store the metrics; ``origin`` and ``repair`` are for the message."""
        super().__init__(content)
        self._origin, self._repair = origin, repair

    def __missing__(self, name: str) -> NoReturn:
        raise DataError(f"{self._origin} is damaged ({name} is missing); {self._repair}")


def read_metrics(folder: Path) -> RunRecord:
    """Read ``metrics.json``; empty if there is no such file.

    Raises:
        DataError: If the file is not one flat JSON object.
    """
    repair = "remove it to run this again"
    return checked_metrics(read_json(folder / METRICS, repair), folder / METRICS, repair)


def checked_metrics(content: Mapping[str, Any], origin: object, repair: str) -> RunRecord:
    """Return metrics; raise DataError unless they are flat, with numbers below names with a slash."""
    for name, value in content.items():
        if isinstance(value, dict | list) or ("/" in name and isinstance(value, str | bool)):
            raise DataError(f"{origin} is damaged ({shortened(name)}={shortened(value)}); {repair}")
    return RunRecord(content, origin, repair)


def read_json(path: Path, repair: str) -> dict[str, Any]:
    """Read a file with a JSON object; empty if there is no such file.

    Args:
        path: The file.
        repair: Remedy for a damaged file, for the message.

    Raises:
        DataError: If the file is not a JSON object.
    """
    return read_object(path, repair) if path.exists() else {}


def read_finished(
    folder: Path, record: Mapping[str, Any] | None = None
) -> tuple[DictConfig, Mapping[str, Any]]:
    """Read ``config.yaml`` and ``metrics.json`` of a finished grading run.

    Args:
        folder: The run's folder.
        record: Content of ``metrics.json``, if it is not written yet.

    Raises:
        ConfigError: If the folder holds no finished grading run.
        DataError: If its ``metrics.json`` is damaged.
    """
    if not (folder / CONFIG).is_file() or not (record or (folder / METRICS).is_file()):
        raise ConfigError(f"checkpoint={folder} is not a run's folder (no {CONFIG} or {METRICS} in it)")
    record = record or read_metrics(folder)
    if record.get("status") != FINISHED or "checkpoint" not in record or "evaluated" in record:
        raise ConfigError(
            f"checkpoint={folder} is not a finished grading run (status: {record.get('status')})"
            + ("; run it again without debug=default" if record.get("status") == TRIAL else "")
        )
    cfg = read_config(folder)
    partial = partial_settings(cfg)
    if partial:
        raise ConfigError(
            f"checkpoint={folder} is a trial run on a part of its photographs ({partial[0]}); run it again "
            "without this setting"
        )
    return cfg, record


def read_provenance(folder: Path) -> dict[str, Any]:
    """Read ``provenance.json``; empty if there is no such file.

    Raises:
        DataError: If the file is damaged.
    """
    path, repair = folder / PROVENANCE, "run it again, or leave it out"
    content = read_json(path, repair)
    for name in ("seconds", "images", "images_per_second", "peak_memory", "devices"):
        if not (content.get(name) is None or is_number(content[name])):
            raise DataError(f"{path} is damaged ({name} is not a number): {repair}")
    for name, kind in {
        "command": list,
        "versions": dict,
        "machine": dict,
        "commit": str,
        "encoder": str,
    }.items():
        value = content.get(name)
        if not isinstance(value, kind | None):
            raise DataError(f"{path} is damaged ({name}={shortened(value)}): {repair}")
    if not is_path(content.get("encoder") or ""):
        raise DataError(f"{path} is damaged (encoder={shortened(content['encoder'])} is no path): {repair}")
    return content


def read_calibration(folder: Path) -> "Calibration":
    """Read ``calibration.json`` as :func:`read_fitted`.

    Raises:
        DataError: If a file is damaged.
    """
    return read_fitted(folder, {})[0]


def read_fitted(folder: Path, record: Mapping[str, Any]) -> tuple["Calibration", Mapping[str, Any]]:
    """Read ``calibration.json``, and the uncertainty limits of the run that belong to it.

    A calibration in the form of earlier versions is fitted again to the photographs of ``validation.csv``,
    and so are the limits.

    Args:
        folder: Folder of a run.
        record: Content of its ``metrics.json``.

    Returns:
        The calibration, the identity if there is no such file, and ``record`` with its limits.

    Raises:
        DataError: If a file is damaged.
    """
    from drgrade.models.calibration import FORMER_NOTE, selective_uncertainty
    from drgrade.models.cross_fitting import fit_and_cross_fit
    from drgrade.stats.selective import fit_limits, read_limits, without_limits

    calibration = _stored_calibration(folder / CALIBRATION)
    if calibration.note != FORMER_NOTE:
        return calibration, record
    limits: dict[str, float] = {}
    if (folder / VALIDATION).is_file():
        log.info(
            "%s has the form of an earlier version: it is fitted again to %s",
            folder / CALIBRATION,
            VALIDATION,
        )
        probabilities, predicted, grades, groups = _read_validation(folder)
        calibration = fit_and_cross_fit(probabilities, grades, groups)[0]
        if read_limits(record):
            uncertainty = selective_uncertainty(probabilities, calibration)
            limits = fit_limits(uncertainty, predicted.numpy(), grades.numpy())
    return calibration, RunRecord({**without_limits(record), **limits}, folder / METRICS, "run it again")


def _stored_calibration(path: Path) -> "Calibration":
    from drgrade.models.calibration import Calibration

    if not path.exists():
        return Calibration(note="the run was made before runs were calibrated; run it again")
    try:
        return Calibration.from_json(read_text(path, "run it again"))
    except DataError as error:
        raise DataError(f"{path}: {error}") from error


def _read_validation(folder: Path) -> tuple["Tensor", "Tensor", "Tensor", list[str]]:
    """Return probabilities (N, 5), predicted and true grades and groups (N,) of ``validation.csv``."""
    import torch

    names = [f"p{grade}" for grade in range(NUM_GRADES)]
    table = read_table(folder / VALIDATION, ["image_id", "grade", "predicted", *names], "run it again")
    probabilities, grades = table[names].to_numpy(float), table[["predicted", "grade"]].to_numpy(float)
    valid = bool(((probabilities >= 0) & (probabilities <= 1)).all()) and bool(
        (abs(probabilities.sum(axis=1) - 1) < 1e-3).all()
    )
    if not (valid and set(grades.ravel().tolist()) <= set(range(NUM_GRADES))):
        raise DataError(f"{folder / VALIDATION} is damaged (values that are no grade or probability)")
    predicted, truth = torch.from_numpy(grades).long().T
    split = read_split(folder)
    known = dict(zip(split["image_id"], split["group"], strict=True))
    groups = [str(known.get(each, each)) for each in table["image_id"]]
    return torch.from_numpy(probabilities), predicted, truth, groups


def write_metrics(folder: Path, metrics: Mapping[str, object]) -> None:
    """Write ``metrics.json``: one flat object with sorted keys, without times."""
    write_text(folder / METRICS, json.dumps(dict(sorted(metrics.items())), indent=2, allow_nan=False) + "\n")


def write_config(folder: Path, cfg: DictConfig) -> None:
    """Write ``config.yaml``: the composed config with every interpolation resolved."""
    write_text(folder / CONFIG, OmegaConf.to_yaml(cfg, resolve=True))


def start_run_dir(
    folder: Path,
    cfg: DictConfig,
    split: "pd.DataFrame",
    hashes: Mapping[str, str],
    seen: Iterable[str],
    checkpoint: Path | None,
) -> None:
    """Write the files of a run that starts: split, hashes, photographs seen, and config.

    Args:
        folder: The run's folder.
        cfg: The run's config.
        split: The columns image_id, group, grade and subset are written to ``split.csv``.
        hashes: Hashes of photographs and split, for ``photographs.json``.
        seen: SHA-256 of every file that the run trains on or validates with, for ``seen.txt``.
        checkpoint: Checkpoint that the run resumes from; None removes the checkpoints of an earlier run.

    Raises:
        DataError: If the run to resume used other photographs or another split.
    """
    if checkpoint is None:
        shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
    else:
        _check_hashes(folder, hashes)
    for each in (folder, folder / CHECKPOINTS):
        remove_partial_files(each)
    write_split(folder, split)
    write_text(folder / HASHES, json.dumps(dict(hashes), indent=2) + "\n")
    write_text(folder / SEEN, "".join(f"{sha256}\n" for sha256 in sorted(set(seen))))
    write_config(folder, cfg)


def _check_hashes(folder: Path, hashes: Mapping[str, str]) -> None:
    """Raise DataError if the hashes differ from those in ``photographs.json``."""
    before = read_object(folder / HASHES, f"resume={folder}: without it the photographs cannot be compared")
    if before != hashes:
        raise DataError(
            f"resume={folder}: the photographs, their grades or their split differ from those the run "
            "started with"
        )


def read_split(folder: Path) -> "pd.DataFrame":
    """Read ``split.csv``: image_id, group and subset as text, grade as a number, NaN if missing.

    Raises:
        DataError: If it is missing or damaged.
    """
    return read_table(folder / SPLIT, ["image_id", "group", "grade", "subset"], "run it again")


def read_table(path: Path, columns: Sequence[str], repair: str) -> "pd.DataFrame":
    """Read columns of a CSV file of a run; image_id, group and subset stay text, the others are numbers.

    Raises:
        DataError: If it is missing or damaged; ``repair`` says what to do.
    """
    import pandas as pd

    numeric = [name for name in columns if name not in ("image_id", "group", "subset")]
    text = read_text(path, repair)
    try:
        # Read everything as text first: a photograph may be called NA or 001.
        table = read_csv(io.StringIO(text), dtype=str, keep_default_na=False)[list(columns)]
        return table.assign(**{name: pd.to_numeric(table[name]) for name in numeric})
    except (ValueError, TypeError, LookupError, OverflowError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{path} is damaged ({reason}): {repair}") from error


def write_split(folder: Path, split: "pd.DataFrame") -> None:
    """Write ``split.csv``: the columns image_id, group, grade and subset."""
    write_text(folder / SPLIT, to_csv(split[["image_id", "group", "grade", "subset"]]))


def write_predictions(
    folder: Path, predictions: "Predictions", image_ids: "pd.Series", name: str = ""
) -> None:
    """Write ``predictions.csv`` and ``confusion.csv`` (rows: true grade).

    Args:
        folder: The run's folder.
        predictions: N predictions, indexed by row of the manifest.
        image_ids: image_id of every row of the manifest.
        name: External data set; the files are called ``predictions_NAME.csv`` and ``confusion_NAME.csv``.
    """
    import pandas as pd

    from drgrade.metrics.functional import confusion_matrix

    confusion = pd.DataFrame(confusion_matrix(predictions.predicted, predictions.grades).numpy())
    confusion = confusion.rename_axis("grade").add_prefix("predicted_")
    write_text(predictions_file(folder, name), _predictions_csv(predictions, image_ids))
    write_text(folder / (f"confusion_{name}.csv" if name else CONFUSION), confusion.to_csv())


def predictions_file(folder: Path, name: str = "") -> Path:
    """Return the file with the predictions of a run for its test set, or for an external data set."""
    return folder / (f"predictions_{name}.csv" if name else PREDICTIONS)


def write_validation(folder: Path, predictions: "Predictions", image_ids: "pd.Series") -> None:
    """Write ``validation.csv``: predictions on the validation photographs, as in ``predictions.csv``."""
    write_text(folder / VALIDATION, _predictions_csv(predictions, image_ids))


def _predictions_csv(predictions: "Predictions", image_ids: "pd.Series") -> str:
    import pandas as pd

    probabilities = predictions.probabilities.double().numpy()
    table = pd.DataFrame(
        {
            "image_id": image_ids.iloc[predictions.index.numpy()].to_numpy(),
            "grade": predictions.grades.numpy(),
            "predicted": predictions.predicted.numpy(),
            **{f"p{grade}": probabilities[:, grade] for grade in range(probabilities.shape[1])},
        }
    )
    return to_csv(table, float_format="%.6f")


def write_provenance(folder: Path, **facts: object) -> None:
    """Write ``provenance.json``: command, versions, hardware, and further facts that depend on time."""
    import torch

    record = {
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "versions": versions(),
        "commit": _commit(),
        "machine": {
            "processor": platform.machine(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
        **facts,
    }
    write_text(folder / PROVENANCE, json.dumps(record, indent=2) + "\n")


def versions() -> dict[str, str]:
    """Return the versions of Python, drgrade and the installed packages that results depend on."""
    installed = {"python": platform.python_version()}
    for package in _PACKAGES:
        with suppress(PackageNotFoundError):
            installed[package] = version(package)
    return installed


def _commit() -> str | None:
    """Return the commit of the checkout, with ``+`` for uncommitted changes; None without a checkout."""
    options = ["--always", "--abbrev=40", "--dirty=+", "--exclude=*"]
    command = ["git", "-C", str(Path(__file__).parent), "describe", *options]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:  # git is not installed
        return None
    return done.stdout.strip() or None
