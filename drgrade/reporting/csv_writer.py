"""CSV and JSON files of a report, with all digits; unknown values are empty or null."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from drgrade.reporting.figures.details import row_shares
from drgrade.reporting.schema import ResultRow, Study
from drgrade.stats.curves import ReliabilityCurve
from drgrade.stats.estimates import Estimate, Range

Record = dict[str, Any]


def csv_files(study: Study) -> dict[str, str]:
    """Return the text of each CSV file by file name."""
    made = {
        "table.csv": [*_rows(study), *_published(study)],
        "folds.csv": list(_folds(study)),
        "comparisons.csv": list(_comparisons(study)),
        "confusion.csv": list(_confusion(study)),
        "calibration.csv": [bin_ for row in study.rows for bin_ in _bins(study, row, row.calibration)],
        "calibrated.csv": [
            bin_
            for row in study.rows
            if row.calibrated
            for bin_ in _bins(study, row, row.calibrated.reliability)
        ],
        "temperatures.csv": list(_temperatures(study)),
        "operating_points.csv": list(_operating_points(study)),
        "recall.csv": list(_recall(study)),
        "roc.csv": list(_roc(study)),
        "costs.csv": [*_costs(study), *_pretrainings(study)],
        "budget.csv": list(_budgets(study)),
    }
    return {name: pd.DataFrame(records).to_csv(index=False) for name, records in made.items() if records}


def _row_keys(study: Study, row: ResultRow) -> Record:
    return {
        "method": study.labels[row.method],
        "key": row.method,
        "label_fraction": row.label_fraction,
    }


def _rows(study: Study) -> Iterator[Record]:
    methods = {method.key: method for method in study.methods}
    for row in study.rows:
        yield {
            **_row_keys(study, row),
            "published": False,
            "source": "",
            "protocol": methods[row.method].protocol,
            "init": methods[row.method].init,
            "labels": row.labels,
            "folds": len(row.folds),
            "seeds": " ".join(map(str, row.seeds)),
            "complete": row.complete,
            "min": row.minimum,
            **_estimate("mean", row.mean),
            "max": row.maximum,
            "sd": row.sd,
            **_estimate("referable_auroc", row.referable_auroc),
            **row.metrics,
            **_changes(row),
        }


def _changes(row: ResultRow) -> Record:
    """Return metrics before and after calibration; QWK before is the mean of the row."""
    if row.calibrated is None:
        return {}
    record: Record = {"nll": row.calibrated.nll.before}
    changes = {
        "nll_calibrated": row.calibrated.nll,
        "ece_calibrated": row.calibrated.ece,
        "qwk_thresholds": row.calibrated.qwk,
    }
    for name, change in changes.items():
        ends = change.difference.interval
        record |= {name: change.after, f"{name}_change_low": ends.low, f"{name}_change_high": ends.high}
    return record


def _published(study: Study) -> Iterator[Record]:
    for row in study.published:
        yield {
            "method": row.label,
            "label_fraction": row.label_fraction,
            "published": True,
            "source": row.source,
            "beside": row.beside,
            "min": row.minimum,
            "mean": row.mean,
            "max": row.maximum,
        }


def _folds(study: Study) -> Iterator[Record]:
    protocols = {method.key: method.protocol for method in study.methods}
    for row in study.rows:
        for fold, qwk in row.folds.items():
            split = study.splits.get((protocols[row.method], row.label_fraction, fold), "")
            yield {**_row_keys(study, row), "fold": fold, "qwk": qwk, "split_hash": split}


def _comparisons(study: Study) -> Iterator[Record]:
    names = study.labels
    for comparison in study.comparisons:
        yield {
            "first": names[comparison.first],
            "second": names[comparison.second],
            "first_key": comparison.first,
            "second_key": comparison.second,
            "label_fraction": comparison.label_fraction,
            "folds": comparison.folds,
            **_estimate("difference", comparison.difference),
            "won": comparison.won,
            "p_value": comparison.p_value,
            "p_holm": comparison.p_holm,
        }


def _confusion(study: Study) -> Iterator[Record]:
    for row in study.rows:
        shares = row_shares(row)
        for true, predicted in np.ndindex(row.confusion.shape):
            yield {
                **_row_keys(study, row),
                "grade": true,
                "predicted": predicted,
                "count": int(row.confusion[true, predicted]),
                "share": float(shares[true, predicted]),
            }


def _temperatures(study: Study) -> Iterator[Record]:
    for row in study.rows:
        if row.calibrated:
            for fold, temperature in row.calibrated.temperatures.items():
                yield {**_row_keys(study, row), "fold": fold, "temperature": temperature}


def _operating_points(study: Study) -> Iterator[Record]:
    for row in study.rows:
        for point in row.calibrated.points if row.calibrated else ():
            yield {
                **_row_keys(study, row),
                "wanted": point.target,
                **_ends("threshold", point.threshold),
                **_estimate("sensitivity", point.sensitivity),
                **_estimate("specificity", point.specificity),
            }


def _bins(study: Study, row: ResultRow, found: ReliabilityCurve) -> Iterator[Record]:
    bins = zip(found.confidence, found.accuracy, found.count, strict=True)
    for number, (confidence, accuracy, count) in enumerate(bins):
        yield {
            **_row_keys(study, row),
            "bin": number,
            "confidence": confidence,
            "accuracy": accuracy,
            "count": int(count),
            "ece": found.ece,
        }


def _recall(study: Study) -> Iterator[Record]:
    for row in study.rows:
        for grade, recall in enumerate(row.recall):
            yield {
                **_row_keys(study, row),
                "grade": grade,
                **_estimate("recall", recall),
                "count": int(row.confusion[grade].sum()),
            }


def _roc(study: Study) -> Iterator[Record]:
    for row in study.rows:
        for x, y in zip(row.roc.x, row.roc.y, strict=True):
            yield {**_row_keys(study, row), "false_positive_rate": x, "true_positive_rate": y}


def _costs(study: Study) -> Iterator[Record]:
    for row in study.rows:
        yield {
            **_row_keys(study, row),
            "what": "run",
            "seconds": row.seconds,
            "images_per_second": row.images_per_second,
            "peak_memory_bytes": row.peak_memory,
        }


def _pretrainings(study: Study) -> Iterator[Record]:
    names = study.labels
    for cost in study.pretrainings:
        yield {
            "method": names.get(cost.method, cost.method),
            "key": cost.method,
            "what": "pre-training",
            "encoder": cost.encoder,
            "seconds": cost.seconds,
            "images_per_second": cost.images_per_second,
            "peak_memory_bytes": cost.peak_memory,
            "steps": cost.steps,
            "images": cost.images,
            "encoder_inputs": cost.encoder_inputs,
        }


def _budgets(study: Study) -> Iterator[Record]:
    names = study.labels
    for budget in study.budgets:
        for share in budget.steps:
            yield {
                "method": names[budget.method],
                "key": budget.method,
                "label_fraction": share,
                "encoders": budget.encoders,
                "pretraining_seconds": budget.pretraining_seconds,
                "trained": budget.trained,
                **_ends("pretraining_steps", budget.pretraining_steps),
                **_ends("pretraining_images", budget.pretraining_images),
                **_ends("pretraining_inputs", budget.pretraining_inputs),
                **_ends("steps", budget.steps[share]),
                **_ends("images", budget.images[share]),
            }


def _estimate(name: str, estimate: Estimate) -> Record:
    ends = estimate.interval
    return {name: estimate.value, f"{name}_low": ends.low, f"{name}_high": ends.high}


def _ends(name: str, ends: Range) -> Record:
    return {f"{name}_least": ends.low, f"{name}_greatest": ends.high}


def render_json(study: Study, files: Sequence[str]) -> str:
    """Render a study as JSON; NaN becomes null, and ``splits`` a list of objects."""
    splits = [
        {"protocol": protocol, "label_fraction": share, "fold": fold, "split_hash": code}
        for (protocol, share, fold), code in study.splits.items()
    ]
    record = {
        field.name: _plain(getattr(study, field.name)) for field in fields(study) if field.name != "splits"
    }
    return json.dumps({**record, "splits": splits, "files": sorted(files)}, indent=1, allow_nan=False) + "\n"


def _plain(value: Any) -> Any:
    """Convert a value to JSON types.

    Raises:
        TypeError: If the type is not supported.
    """
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, np.generic | np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, Path):
        return str(value)
    if is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, Sequence | Set):
        return [_plain(item) for item in value]
    raise TypeError(f"a report cannot hold {value!r} of {type(value).__name__}")
