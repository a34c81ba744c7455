"""An example study with four methods, five fractions, five folds and one missing run."""

from pathlib import Path

import numpy as np

from drgrade.reporting.schema import (
    Method,
    MethodComparison,
    Missing,
    PretrainingCost,
    PublishedRow,
    Referral,
    ResultRow,
    Selective,
    Study,
)
from drgrade.reporting.selective import SELECTIVE
from drgrade.stats.curves import ReliabilityCurve, RocCurve
from drgrade.stats.estimates import Estimate, Interval, Range
from drgrade.stats.selective import RiskCoverage

FRACTIONS = (0.05, 0.1, 0.25, 0.5, 1.0)
MEANS = {
    "rotation-ssl": (0.294, 0.432, 0.575, 0.680, 0.725),
    "rotation-random": (0.190, 0.330, 0.500, 0.640, 0.712),
    "msssl-ssl": (0.352, 0.490, 0.634, 0.718, 0.771),
    "msssl-random": (-0.012, 0.241, 0.448, 0.601, 0.742),
}
PUBLISHED = (
    (0.05, 0.1751, 0.2944, 0.4670),
    (0.1, 0.2889, 0.4321, 0.5085),
    (0.25, 0.4738, 0.5754, 0.6937),
    (0.5, 0.6116, 0.6798, 0.7365),
    (1.0, 0.6956, 0.7247, 0.7556),
)
METHODS = (
    Method("rotation-ssl", "rotation, ssl", "published", "ssl", {"init": "ssl", "method": "rotation"}, True),
    Method("rotation-random", "rotation, random", "published", "random", {"init": "random"}, False),
    Method("msssl-ssl", "MsSSL, ssl", "matched", "ssl", {"init": "ssl", "method": "msssl"}, False),
    Method("msssl-random", "MsSSL, random", "matched", "random", {"init": "random"}, None),
)
GRADES = np.array([1805, 370, 999, 193, 295])
NAN = float("nan")


def around(value, width):
    return Estimate(value, Interval(value - width, value + width))


def make_selective(mean):
    coverage = np.linspace(0.05, 1, 20)
    return Selective(
        {name: around(max(mean, 0) / 2, 0.03) for name in SELECTIVE},
        RiskCoverage(coverage, (1 - mean) * coverage / 2, np.full(20, mean)),
        [Referral(0.8, Range(-1.0, 0.5), 4, 5, around(0.6, 0.1), around(0.75, 0.1))],
    )


def make_row(method, fraction, mean, rng, missing=False):
    spread = 0.06 * (1.2 - fraction)
    values = rng.normal(mean, spread, 5)
    values += mean - values.mean()
    folds = {str(fold): float(value) for fold, value in enumerate(values) if not (missing and fold == 4)}
    kept = np.array(list(folds.values()))
    skill = 0.35 + 0.6 * max(mean, 0)
    shares = skill * np.eye(5) + (1 - skill) * rng.dirichlet(np.ones(5) * 2, 5)
    confusion = np.array([rng.multinomial(n, p / p.sum()) for n, p in zip(GRADES, shares, strict=True)])
    recall = [around(float(r), 0.05) for r in np.diag(confusion) / confusion.sum(axis=1)]
    if method == "msssl-random" and fraction == 0.05:
        recall[3] = Estimate(NAN, Interval(NAN, NAN))
        confusion[3] = 0
    x = np.linspace(0, 1, 200)
    auroc = 0.6 + 0.4 * max(mean, 0)
    confidence = np.linspace(0.05, 0.95, 10)
    confidence[:2] = NAN
    accuracy = np.clip(confidence - 0.1 + rng.normal(0, 0.03, 10), 0, 1)
    count = np.where(np.isnan(confidence), 0, rng.integers(20, 900, 10))
    measured = not (method == "rotation-random" and fraction == 0.1)
    return ResultRow(
        method=method,
        label_fraction=fraction,
        folds=folds,
        replicates=((0, 0), (1, 1)),
        minimum=float(kept.min()),
        mean=around(float(kept.mean()), 0.6 * spread + 0.01),
        maximum=float(kept.max()),
        sd=float(kept.std(ddof=1)),
        metrics={
            "accuracy": 0.4 + 0.5 * max(mean, 0),
            "auroc": 0.6 + 0.4 * max(mean, 0),
            "mae": 1.1 - mean,
            "ece": 0.11,
        },
        confusion=confusion,
        recall=recall,
        calibration=ReliabilityCurve(confidence, accuracy, count, 0.1 + 0.05 * rng.random()),
        roc=RocCurve(x, x ** ((1 - auroc) / auroc)),
        referable_auroc=around(auroc, 0.02),
        selective=make_selective(mean),
        labels=2929 * fraction,
        labels_used=2929 * fraction + 155,
        seconds=3000 * fraction + 300 if measured else NAN,
        images_per_second=412.3 if measured else NAN,
        peak_memory=5_400_000_000 if measured else None,
        complete=not missing,
    )


def make_rows():
    rng = np.random.default_rng(0)
    return [
        make_row(key, fraction, mean, rng, missing=(key, fraction) == ("msssl-ssl", 0.5))
        for key, means in MEANS.items()
        for fraction, mean in zip(FRACTIONS, means, strict=True)
    ]


def compare(first, second):
    common = [fold for fold in first.folds if fold in second.folds]
    differences = np.array([first.folds[fold] - second.folds[fold] for fold in common])
    mean = float(differences.mean())
    won = float(((differences > 0) + 0.5 * (differences == 0)).mean())
    p_value = min(1.0, float(np.exp(-40 * abs(mean))))
    return MethodComparison(
        first.method,
        second.method,
        first.label_fraction,
        len(common),
        2,
        around(mean, 0.04),
        won,
        p_value,
        min(1.0, 30 * p_value),
        0.06,
    )


def make_comparisons(rows):
    by_key = {(row.method, row.label_fraction): row for row in rows}
    keys = list(MEANS)
    return [
        compare(by_key[first, fraction], by_key[second, fraction])
        for number, first in enumerate(keys)
        for second in keys[number + 1 :]
        for fraction in FRACTIONS
    ]


def example_study() -> Study:
    rows = make_rows()
    source = "2022, APTOS 2019, 5 folds, published protocol"
    return Study(
        title="Rotation and MsSSL on APTOS 2019",
        runs=[
            Path(f"outputs/sweeps/table/{row.method}_{row.label_fraction}_fold-{fold}")
            for row in rows
            for fold in row.folds
        ],
        missing=[Missing("msssl-ssl_0.5_fold-4", "failed", "CUDA out of memory <at step 7>")],
        data={"data set": "aptos2019", "hash": "e90ca835fcbf", "photographs": "3662", "image size": "224 px"},
        provenance={
            "command": "python train.py -m +experiment=rotation_table,msssl_table data=aptos2019",
            "commit": "6444ead",
            "versions": "drgrade 0.1.0, torch 2.15, Python 3.11",
            "hardware": "NVIDIA H100 80GB HBM3",
            "seeds": "0",
        },
        splits={
            (protocol, fraction, 0, str(fold)): f"{abs(hash((protocol, fraction, fold))) % 16**12:012x}"
            + "0" * 52
            for protocol in ("published", "matched")
            for fraction in FRACTIONS
            for fold in range(5)
        },
        grades=GRADES,
        methods=METHODS,
        rows=rows,
        comparisons=make_comparisons(rows),
        published=[
            PublishedRow("rotation (Taleb et al.)", source, f, mean, low, high)
            for f, low, mean, high in PUBLISHED
        ]
        + [PublishedRow("another paper", "a mean alone", 1.0, 0.81)],
        pretrainings=[
            PretrainingCost("rotation-ssl", "rotation-densenet121-1a2b", 41_000.0, 640.0, 7_800_000_000),
            PretrainingCost("msssl-ssl", "rotation-msssl-3c4d", 88_000.0, NAN, None),
        ],
        notes=["Pre-training of rotation, ssl used the test photographs, without their grades."],
    )
