"""What a run leaves in its folder (DESIGN.md, section 4), each file written whole or not at all."""

import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pandas as pd
import torch
from omegaconf import DictConfig, OmegaConf

from drgrade import __version__
from drgrade.errors import DataError
from drgrade.files import write_text
from drgrade.metrics import Predictions, confusion_matrix
from drgrade.runs.run_dir import (
    CONFIG,
    CONFUSION,
    HASHES,
    METRICS,
    PREDICTIONS,
    PROVENANCE,
    SEEN,
    SPLIT,
    VALIDATION,
)

_PACKAGES = (
    "torch",
    "torchvision",
    "timm",
    "pytorch-lightning",
    "torchmetrics",
    "hydra-core",
    "albumentations",
    "numpy",
    "opencv-python-headless",
)


def write_metrics(folder: Path, metrics: Mapping[str, object]) -> None:
    """Write ``metrics.json``: one flat object, keys sorted, nothing that depends on the clock.

    Args:
        folder: The run's folder.
        metrics: ``test/qwk`` and the like, ``status``, hashes.
    """
    write_text(folder / METRICS, json.dumps(dict(sorted(metrics.items())), indent=2, allow_nan=False) + "\n")


def write_config(folder: Path, cfg: DictConfig) -> None:
    """Write the composed config with every interpolation resolved.

    Args:
        folder: The run's folder.
        cfg: The config.
    """
    write_text(folder / CONFIG, OmegaConf.to_yaml(cfg, resolve=True))


def write_split(folder: Path, split: pd.DataFrame) -> None:
    """Write ``split.csv``.

    Args:
        folder: The run's folder.
        split: Columns image_id, group, grade, subset.
    """
    write_text(folder / SPLIT, split[["image_id", "group", "grade", "subset"]].to_csv(index=False))


def write_hashes(folder: Path, **hashes: str) -> None:
    """Write ``photographs.json``: what a run that goes on has to find unchanged.

    Args:
        folder: The run's folder.
        **hashes: Of the photographs, and of what they are used for.
    """
    write_text(folder / HASHES, json.dumps(hashes, indent=2) + "\n")


def check_hashes(folder: Path, **hashes: str) -> None:
    """Compare with what :func:`write_hashes` wrote.

    Args:
        folder: Of the run that is to go on.
        **hashes: As they are now.

    Raises:
        DataError: If there is nothing to compare with, or something is different.
    """
    try:
        before = json.loads((folder / HASHES).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(
            f"resume={folder}: its {HASHES} cannot be read, so that nobody can tell whether it would go on "
            f"with the same photographs ({error})"
        ) from error
    if before != hashes:
        raise DataError(
            f"resume={folder}: the photographs, their grades, or their split are not those that the run "
            "began with"
        )


def write_seen(folder: Path, file_hashes: Iterable[str]) -> None:
    """Write ``seen.txt``: SHA-256 of the content of each file that a run has learnt from.

    Of a pre-training run what it has looked at; of a grading run its training and validation photographs.

    Args:
        folder: The run's folder.
        file_hashes: Of these files.
    """
    write_text(folder / SEEN, "".join(f"{sha256}\n" for sha256 in sorted(set(file_hashes))))


def write_predictions(folder: Path, predictions: Predictions, image_ids: pd.Series, name: str = "") -> None:
    """Write ``predictions.csv``, in the order of the manifest, and ``confusion.csv``, rows the true grade.

    Args:
        folder: The run's folder.
        predictions: N results, indexed by row in the manifest.
        image_ids: image_id of every row of the manifest.
        name: Goes into the names of the files: ``predictions_NAME.csv``.
    """
    predictions_file, confusion_file = (
        (folder / file).with_stem(f"{Path(file).stem}_{name}" if name else Path(file).stem)
        for file in (PREDICTIONS, CONFUSION)
    )
    write_text(predictions_file, _table(predictions, image_ids))
    confusion = pd.DataFrame(confusion_matrix(predictions.predicted, predictions.grades).numpy())
    write_text(confusion_file, confusion.rename_axis("grade").add_prefix("predicted_").to_csv())


def write_validation(folder: Path, predictions: Predictions, image_ids: pd.Series) -> None:
    """Write ``validation.csv``: as ``predictions.csv``, of the validation photographs.

    Args:
        folder: The run's folder.
        predictions: N results, indexed by row in the manifest.
        image_ids: image_id of every row of the manifest.
    """
    write_text(folder / VALIDATION, _table(predictions, image_ids))


def _table(predictions: Predictions, image_ids: pd.Series) -> str:
    """Predictions as CSV, in the order of the manifest."""
    probabilities = pd.DataFrame(
        predictions.probabilities.double().numpy(), columns=[f"p{k}" for k in range(5)]
    )
    table = pd.DataFrame(
        {
            "image_id": image_ids.iloc[predictions.index.numpy()].to_numpy(),
            "grade": predictions.grades.numpy(),
            "predicted": predictions.predicted.numpy(),
        }
    )
    return table.join(probabilities).to_csv(index=False, float_format="%.6f")


def write_provenance(folder: Path, **facts: object) -> None:
    """Write ``provenance.json``: command, hardware, versions, and what depends on the clock.

    Args:
        folder: The run's folder.
        **facts: Further facts, JSON-serialisable.
    """
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    record = {
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "versions": versions(),
        "commit": _commit(),
        "machine": {
            "processor": platform.machine(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "gpu": gpu,
        },
        **facts,
    }
    write_text(folder / PROVENANCE, json.dumps(record, indent=2) + "\n")


def versions() -> dict[str, str]:
    """Versions of Python, drgrade and the packages that figures depend on.

    Returns:
        Name: version, of those that are installed.
    """
    own = {"python": platform.python_version(), "drgrade": __version__}
    return own | {name: found for name in _PACKAGES if (found := _version(name))}


def _commit() -> str | None:
    """Commit of the checkout that drgrade runs from, with ``+`` if it has changes; None if there is none."""
    command = [
        "git",
        "-C",
        str(Path(__file__).parent),
        "describe",
        "--always",
        "--abbrev=40",
        "--dirty=+",
        "--exclude=*",
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:  # no git
        return None
    return done.stdout.strip() or None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
