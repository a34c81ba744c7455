"""CSV and JSON files of a report, with all digits; unknown values are empty or null."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from pydantic_core import to_json

from drgrade.files import to_csv
from drgrade.reporting.figures.details import row_shares
from drgrade.reporting.schema import (
    Budget,
    Method,
    MethodComparison,
    PretrainingCost,
    PublishedRow,
    Reached,
    Referral,
    ResultRow,
    Study,
)
from drgrade.stats.curves import ReliabilityCurve
from drgrade.stats.estimates import Estimate, Range

Record = dict[str, Any]


def csv_files(study: Study) -> dict[str, str]:
    """Return the text of each CSV file by file name."""
    files: dict[str, list[Record]] = defaultdict(list)
    for row in study.rows:
        keys = {**_method_keys(study, row.method), "label_fraction": row.label_fraction}
        for name, records in _row_records(study, row).items():
            files[name] += [keys | record for record in records]
    files["table.csv"] += map(_published, study.published)
    files["costs.csv"] += [_pretraining(study, cost) for cost in study.pretrainings]
    files["comparisons.csv"] = [_comparison(study, comparison) for comparison in study.comparisons]
    files["selective_comparisons.csv"] = [
        {"metric": each.statistic, **_comparison(study, each)} for each in study.selective_comparisons
    ]
    files["budget.csv"] = [
        _method_keys(study, budget.method) | {"label_fraction": share} | _budget(budget, share)
        for budget in study.budgets
        for share in budget.steps
    ]
    files["cross_data.csv"] = [
        {
            "method": each.method,
            "label_fraction": each.label_fraction,
            "trained": each.trained,
            "tested": each.tested,
            **_estimate("qwk", each.qwk),
            "photographs": each.photographs,
            "runs": each.runs,
        }
        for each in study.cross
    ]
    return {name: to_csv(pd.DataFrame(records)) for name, records in files.items() if records}


def _method_keys(study: Study, key: str) -> Record:
    return {"method": study.labels.get(key, key), "key": key}


def _row_records(study: Study, row: ResultRow) -> dict[str, list[Record]]:
    """Return the records of a row of the main table by file name."""
    method = next(method for method in study.methods if method.key == row.method)
    roc = zip(row.roc.x, row.roc.y, strict=True)
    totals = row.confusion.sum(axis=1).tolist()
    records = {
        "table.csv": [_main_record(method, row)],
        "folds.csv": [
            {"fold": fold, "qwk": qwk, "split_hash": _split_hashes(study, method, row, fold)}
            for fold, qwk in row.folds.items()
        ],
        "confusion.csv": _confusion(row),
        "calibration.csv": _bins(row.calibration),
        "recall.csv": [
            {"grade": grade, **_estimate("recall", recall), "count": totals[grade]}
            for grade, recall in enumerate(row.recall)
        ],
        "roc.csv": [{"false_positive_rate": x, "true_positive_rate": y} for x, y in roc],
        "selective.csv": _selective(row),
        "risk_coverage.csv": [
            {"coverage": coverage, "risk": risk, "qwk": qwk}
            for coverage, risk, qwk in zip(*vars(row.selective.curve).values(), strict=True)
        ],
        "referral.csv": list(map(_referral, row.selective.referrals)),
        "costs.csv": [{"what": "run", **_costs(row)}],
        "learning_rates.csv": [
            {"learning_rate": rate, "runs": chosen} for rate, chosen in row.learning_rates.items()
        ],
    }
    if row.calibrated:
        temperatures = row.calibrated.temperatures.items()
        records |= {
            "calibrated.csv": _bins(row.calibrated.reliability),
            "temperatures.csv": [{"fold": fold, "temperature": value} for fold, value in temperatures],
            "operating_points.csv": list(map(_operating_point, row.calibrated.points)),
        }
    return records


def _split_hashes(study: Study, method: Method, row: ResultRow, fold: str) -> str:
    """Return the split hashes of a fold of a row, by ascending label seed."""
    cells = study.splits.items()
    return " ".join(
        code
        for (*of_row, _, name), code in cells
        if (*of_row, name) == (method.protocol, row.label_fraction, fold)
    )


def _main_record(method: Method, row: ResultRow) -> Record:
    return {
        "published": False,
        "source": "",
        "protocol": method.protocol,
        "init": method.init,
        "labels": row.labels,
        "labels_used": row.labels_used,
        "val_within_fraction": row.val_within_fraction,
        "folds": len(row.folds),
        "seeds": " ".join(map(str, row.seeds)),
        "label_seeds": " ".join(map(str, row.label_seeds)),
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
    record: Record = {"ece_calibrated": row.calibrated.ece}
    changes = {
        "nll_calibrated": row.calibrated.nll,
        "brier_calibrated": row.calibrated.brier,
        "qwk_thresholds": row.calibrated.qwk,
    }
    for name, change in changes.items():
        ends = change.difference.interval
        record |= {name: change.after, f"{name}_change_low": ends.low, f"{name}_change_high": ends.high}
    return record


def _published(row: PublishedRow) -> Record:
    return {
        "method": row.label,
        "label_fraction": row.label_fraction,
        "published": True,
        "source": row.source,
        "data": row.data,
        "caveat": row.caveat,
        "beside": row.beside,
        "min": row.minimum,
        "mean": row.mean,
        "max": row.maximum,
    }


def _comparison(study: Study, comparison: MethodComparison) -> Record:
    return {
        "first": study.labels[comparison.first],
        "second": study.labels[comparison.second],
        "first_key": comparison.first,
        "second_key": comparison.second,
        "label_fraction": comparison.label_fraction,
        "folds": comparison.folds,
        "seeds": comparison.seeds,
        **_estimate("difference", comparison.difference),
        "won": comparison.won,
        "p_value": comparison.p_value,
        "p_holm": comparison.p_holm,
        "detectable": comparison.detectable,
    }


def _confusion(row: ResultRow) -> list[Record]:
    shares = row_shares(row)
    return [
        {
            "grade": true,
            "predicted": predicted,
            "count": int(row.confusion[true, predicted]),
            "share": float(shares[true, predicted]),
        }
        for true, predicted in np.ndindex(row.confusion.shape)
    ]


def _bins(curve: ReliabilityCurve) -> list[Record]:
    bins = zip(curve.confidence, curve.accuracy, curve.count.tolist(), strict=True)
    return [
        {"bin": number, "confidence": confidence, "accuracy": accuracy, "count": count, "ece": curve.ece}
        for number, (confidence, accuracy, count) in enumerate(bins)
    ]


def _selective(row: ResultRow) -> list[Record]:
    return [
        {"metric": name, "value": each.value, "low": each.interval.low, "high": each.interval.high}
        for name, each in row.selective.metrics.items()
    ]


def _referral(referral: Referral) -> Record:
    return {
        "wanted_qwk": referral.wanted,
        **_ends("limit", referral.limits),
        "reached": referral.reached,
        "runs": referral.runs,
        **_estimate("referred", referral.referred),
        **_estimate("qwk", referral.qwk),
    }


def _operating_point(point: Reached) -> Record:
    return {
        "wanted": point.target,
        **_ends("threshold", point.threshold),
        **_estimate("sensitivity", point.sensitivity),
        **_estimate("specificity", point.specificity),
    }


def _costs(cost: ResultRow | PretrainingCost) -> Record:
    return {
        "seconds": cost.seconds,
        "images_per_second": cost.images_per_second,
        "peak_memory_bytes": cost.peak_memory,
    }


def _pretraining(study: Study, cost: PretrainingCost) -> Record:
    keys = {**_method_keys(study, cost.method), "what": "pre-training", "encoder": cost.encoder}
    counts = {"steps": cost.steps, "images": cost.images, "encoder_inputs": cost.encoder_inputs}
    return {**keys, **_costs(cost), **counts}


def _budget(budget: Budget, share: float) -> Record:
    return {
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
        {"protocol": protocol, "label_fraction": share, "label_seed": draw, "fold": fold, "split_hash": code}
        for (protocol, share, draw, fold), code in study.splits.items()
    ]
    record = {**vars(study), "splits": splits, "files": sorted(files)}
    text = to_json(record, indent=1, inf_nan_mode="null", fallback=np.ndarray.tolist)
    return text.decode("utf-8") + "\n"
