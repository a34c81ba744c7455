"""What an exported file takes, gives and comes from, as JSON: in the file, and beside it for people."""

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from drgrade import __version__
from drgrade.data.normalisation import MEAN, STD
from drgrade.exporting.graph import INPUT, OUTPUTS
from drgrade.files import file_sha256
from drgrade.prediction.checkpoint import Trained
from drgrade.prediction.job_manifest import NOTICE
from drgrade.runs.run_dir import CONFIG, versions

FORMAT = 1
"""Of the description; counts up when a reader has to know."""

_DISC = (
    "The disc of the fundus is found as a circle (drgrade.data.disc_detection.find_disc, docs/geometry.md); "
    "the square around it is cut out, black where it reaches over the photograph; a squashed disc becomes "
    "round"
)
_RESIZED = "to image_size by averaging areas; linear where the disc is smaller"
_EXACT = "drgrade prepare gives exactly these pixels"
_ORIGINS = ("data", "data_hash", "split_hash", "encoder_hash", "protocol", "seed", "fold", "folds", "init")
_MORE_ORIGINS = ("label_fraction", "pretraining_saw_test", "checkpoint")


def describe(trained: Trained) -> dict[str, Any]:
    """Describe what is exported of a run.

    Args:
        trained: The run.

    Returns:
        JSON-serialisable; the same for all formats.
    """
    size, record = trained.preparation.image_size, trained.record
    return {
        "drgrade_export": FORMAT,
        "notice": NOTICE,
        "input": {
            "name": INPUT,
            "type": "uint8",
            "shape": ["batch", size, size, 3],
            "layout": "RGB, 0-255, channels last, upright, prepared as below; normalised inside",
        },
        "outputs": dict(OUTPUTS),
        "preparation": {
            "image_size": size,
            "illumination": trained.preparation.illumination,
            "max_pixels": trained.preparation.max_pixels,
            "disc": _DISC,
            "resized": _RESIZED,
            "exactly": _EXACT,
        },
        "normalisation": {"where": "in the file", "scale": 255, "mean": list(MEAN), "std": list(STD)},
        "calibration": {"where": "in the file, but for thresholds and points", **asdict(trained.calibration)},
        "model": {
            "encoder": str(trained.config.encoder.get("name") or type(trained.model.encoder).__name__),
            "head": type(trained.model.head).__name__,
            "parameters": sum(each.numel() for each in trained.model.parameters()),
        },
        "run": {name: record[name] for name in (*_ORIGINS, *_MORE_ORIGINS) if name in record}
        | {"folder": trained.folder.resolve().name}
        | _hashes(trained),
        "metrics": _figures(record),
        "made_with": {"drgrade": __version__, **versions()},
    }


def flat(description: Mapping[str, Any]) -> dict[str, str]:
    """The entries that readers of ONNX files show without understanding JSON.

    Args:
        description: Of :func:`describe`.

    Returns:
        Key: text.
    """
    run, preparation = description["run"], description["preparation"]
    return {
        "notice": NOTICE,
        "image_size": str(preparation["image_size"]),
        "illumination": str(preparation["illumination"]),
        "data": str(run.get("data", "")),
        "data_hash": str(run.get("data_hash", "")),
        "weights_sha256": str(run["weights_sha256"]),
        "drgrade_version": __version__,
    }


def _hashes(trained: Trained) -> dict[str, str]:
    found = {"weights_sha256": file_sha256(trained.weights_file)}
    config = trained.folder / CONFIG  # a published grader has another
    return found | ({"config_sha256": file_sha256(config)} if config.is_file() else {})


def _figures(record: Mapping[str, Any]) -> dict[str, float | None]:
    """The run's metrics; JSON has no number for what is undefined."""
    return {
        name: (float(value) if math.isfinite(value) else None)
        for name, value in record.items()
        if "/" in name and isinstance(value, int | float)
    }
