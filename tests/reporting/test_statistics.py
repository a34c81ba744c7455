"""Rows agree with scikit-learn, scipy and NumPy on the stored predictions."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from scipy import stats
from sklearn import metrics
from synthetic import (
    RANDOM,
    ROTATION,
    FakeMethod,
    change_config,
    change_json,
    remove_run,
    write_runs,
)

from drgrade.reporting.study import build_study
from drgrade.reporting.tables import main_table, metrics_table
from drgrade.stats.curves import RocCurve, average_roc, roc_curve
from drgrade.stats.hierarchical import FoldRuns, resample_mean

SEEDS = (0, 1)
FOLDS = (0, 1, 2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Two methods, two fractions, three folds, two seeds."""
    folder = tmp_path_factory.mktemp("study")
    write_runs(folder, seeds=SEEDS)
    return folder


@pytest.fixture(scope="module")
def study(folder):
    return build_study([folder], resamples=200)


@pytest.fixture(scope="module")
def row(study):
    """Random init, 10 % of the labels."""
    return study.rows[2]


@pytest.fixture(scope="module")
def tables(folder) -> dict[tuple[int, int], pd.DataFrame]:
    """Read predictions.csv of the row, by fold and seed."""
    return {(fold, seed): read(folder, fold, seed) for fold in FOLDS for seed in SEEDS}


def read(folder: Path, fold: int, seed: int) -> pd.DataFrame:
    name = f"method-rotation_init-random_label_fraction-0.1_fold-{fold}_seed-{seed}"
    return pd.read_csv(folder / name / "predictions.csv", dtype={"image_id": str})


def over_folds(tables, figure) -> list[float]:
    """Compute a value of each fold, mean over its seeds."""
    return [float(np.mean([figure(tables[fold, seed]) for seed in SEEDS])) for fold in FOLDS]


def qwk(table) -> float:
    return metrics.cohen_kappa_score(table["grade"], table["predicted"], labels=range(5), weights="quadratic")


def referable_auroc(table) -> float:
    return metrics.roc_auc_score(table["grade"] >= 2, table[["p2", "p3", "p4"]].sum(axis=1))


def test_qwk_of_folds_and_their_summary_equal_scikit_learn_and_scipy(row, tables):
    expected = over_folds(tables, qwk)
    assert list(row.folds) == ["0", "1", "2"]
    assert list(row.folds.values()) == pytest.approx(expected, abs=1e-12)
    described = stats.describe(expected, ddof=1)
    assert (row.minimum, row.maximum) == pytest.approx(described.minmax, abs=1e-12)
    assert row.mean.value == pytest.approx(described.mean, abs=1e-12)
    assert row.sd == pytest.approx(math.sqrt(described.variance), abs=1e-12)
    assert row.replicates == [(0, 0), (1, 0)]


def test_other_metrics_equal_scikit_learn(row, tables):
    expected = {
        "accuracy": lambda table: metrics.accuracy_score(table["grade"], table["predicted"]),
        "mae": lambda table: metrics.mean_absolute_error(table["grade"], table["predicted"]),
        "macro_f1": lambda table: metrics.f1_score(table["grade"], table["predicted"], average="macro"),
        "referable_auroc": referable_auroc,
        "referable_sensitivity": lambda table: metrics.recall_score(
            table["grade"] >= 2, table["predicted"] >= 2
        ),
        "auroc_0": lambda table: metrics.roc_auc_score(table["grade"] == 0, table["p0"]),
    }
    for name, figure in expected.items():
        assert row.metrics[name] == pytest.approx(np.mean(over_folds(tables, figure)), abs=1e-9)
    assert row.referable_auroc.value == pytest.approx(row.metrics["referable_auroc"], abs=1e-12)
    assert "qwk" not in row.metrics


def test_confusion_and_recall_are_of_all_folds_and_seeds_together(row, tables):
    pooled = pd.concat(tables.values())
    assert np.array_equal(
        row.confusion, metrics.confusion_matrix(pooled["grade"], pooled["predicted"], labels=range(5))
    )
    expected = metrics.recall_score(pooled["grade"], pooled["predicted"], labels=range(5), average=None)
    assert [recall.value for recall in row.recall] == pytest.approx(expected, abs=1e-12)
    assert all(recall.interval.low <= recall.value <= recall.interval.high for recall in row.recall)


def test_roc_is_the_mean_of_the_curves_of_the_runs(row, tables):
    """Scores of different models have no common scale, so they are not pooled."""
    assert (row.roc.x[0], row.roc.y[0], row.roc.x[-1], row.roc.y[-1]) == (0, 0, 1, 1)
    assert metrics.auc(row.roc.x, row.roc.y) == pytest.approx(row.referable_auroc.value, abs=1e-12)
    for rate in (0.013, 0.4567, 0.9):  # between the corners, where a curve has one value
        expected = np.mean(over_folds(tables, lambda table, x=rate: np.interp(x, *_sklearn_roc(table))))
        assert np.interp(rate, row.roc.x, row.roc.y) == pytest.approx(expected, abs=1e-12)


def _sklearn_roc(table):
    scores = table[["p2", "p3", "p4"]].to_numpy().sum(axis=1)
    return metrics.roc_curve(table["grade"] >= 2, scores, drop_intermediate=False)[:2]


def test_roc_does_not_depend_on_the_scale_of_the_scores_of_a_model():
    rng = np.random.default_rng(0)
    positive = rng.random((2, 50)) < 0.4
    scores = rng.random((2, 50)) + 0.8 * positive
    curves = [roc_curve(*case) for case in zip(scores, positive, strict=True)]
    squeezed = [curves[0], roc_curve(scores[1] / 1000, positive[1])]
    for one, other in ((curves, squeezed), (curves, curves[::-1])):
        mean, again = average_roc(one, [1, 1]), average_roc(other, [1, 1])
        assert np.array_equal(mean.x, again.x)
        assert mean.y == pytest.approx(again.y)
    alone = average_roc([curves[0], RocCurve(np.zeros(0), np.zeros(0))], [1, 1])
    assert metrics.auc(alone.x, alone.y) == pytest.approx(metrics.auc(curves[0].x, curves[0].y))
    weighted = average_roc(curves, [3, 1])
    areas = [metrics.auc(curve.x, curve.y) for curve in curves]
    assert metrics.auc(weighted.x, weighted.y) == pytest.approx(0.75 * areas[0] + 0.25 * areas[1])


def test_roc_leaves_out_only_points_on_a_straight_line():
    rng = np.random.default_rng(0)
    scores, positive = rng.integers(0, 300, 200) / 300, rng.random(200) < 0.3
    curve = roc_curve(scores, positive)
    false, true, _ = metrics.roc_curve(positive, scores, drop_intermediate=False)
    slopes = np.diff(curve.y) / np.maximum(np.diff(curve.x), 1e-15)
    assert len(curve.x) < len(false)
    assert (np.diff(slopes) != 0).all()
    assert metrics.auc(curve.x, curve.y) == pytest.approx(metrics.auc(false, true), abs=1e-12)


def test_roc_of_one_class_is_empty():
    curve = roc_curve(np.array([0.1, 0.2]), np.array([True, True]))
    assert len(curve.x) == len(curve.y) == 0


def test_calibration_is_a_table_of_bins(row, tables):
    pooled = pd.concat(tables.values())
    probabilities = pooled[[f"p{grade}" for grade in range(5)]].to_numpy()
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == pooled["grade"]
    bins = pd.cut(confidence, np.linspace(0, 1, 16), right=True, labels=False, include_lowest=True)
    for number in range(15):
        inside = bins == number
        assert row.calibration.count[number] == inside.sum()
        if inside.any():
            assert row.calibration.confidence[number] == pytest.approx(confidence[inside].mean())
            assert row.calibration.accuracy[number] == pytest.approx(right[inside].mean())
        else:
            assert np.isnan(row.calibration.confidence[number])
    assert row.calibration.ece == row.metrics["ece"]


def test_interval_equals_that_of_naive_resamples(folder, study, row, tables):
    """Repeat the drawn photographs one by one and use the kappa of scikit-learn."""
    runs = []
    for fold in FOLDS:
        groups = counts_of_groups(folder, fold)
        own = [tables[fold, seed].set_index("image_id") for seed in SEEDS]
        samples = [[qwk(table.loc[repeated(groups, b)]) for b in range(200)] for table in own]
        values = np.array([qwk(tables[fold, seed]) for seed in SEEDS])
        runs.append(FoldRuns([(seed, 0) for seed in SEEDS], values, np.array(samples), len(groups[0])))
    ends = resample_mean(runs, 0).percentile_interval
    assert (row.mean.interval.low, row.mean.interval.high) == pytest.approx((ends.low, ends.high), abs=1e-12)


def test_label_draws_are_averaged_like_seeds(tmp_path):
    runs = write_runs(tmp_path, [RANDOM], [0.1], seeds=SEEDS, label_seeds=(0, 1, 2))
    (row,) = build_study([tmp_path], resamples=50).rows
    values = [json.loads((run / "metrics.json").read_text())["test/qwk"] for run in runs]
    assert list(row.folds.values()) == pytest.approx(np.reshape(values, (3, 6)).mean(axis=1).tolist())
    assert (row.seeds, row.label_seeds, row.trainings, row.complete) == ([0, 1], [0, 1, 2], "2 x 3", True)


def test_fold_without_a_label_draw_of_the_others_makes_the_row_incomplete(tmp_path):
    runs = write_runs(tmp_path, [RANDOM], [0.1], label_seeds=(0, 1), sweep=None)
    remove_run(runs[1])
    (row,) = build_study([tmp_path], resamples=50).rows
    assert (row.label_seeds, row.complete) == ([0], False)


def test_label_seed_of_all_labels_is_the_same_run(tmp_path):
    write_runs(tmp_path, [RANDOM], [1.0], sweep=None)
    for run in tmp_path.iterdir():
        shutil.copytree(run, tmp_path / f"{run.name}-again")
        change_config(tmp_path / f"{run.name}-again", split__label_seed=1)
        change_json(tmp_path / f"{run.name}-again" / "metrics.json", label_seed=0)
    study = build_study([tmp_path], resamples=50)
    assert study.rows[0].replicates == [(0, 0)]
    assert sum("with equal results" in note for note in study.notes) == 3


def test_earlier_runs_have_the_first_label_draw(tmp_path):
    for run in write_runs(tmp_path, [RANDOM], [0.1]):
        config = yaml.safe_load((run / "config.yaml").read_text())
        del config["split"]["label_seed"]
        (run / "config.yaml").write_text(yaml.safe_dump(config))
        record = json.loads((run / "metrics.json").read_text())
        del record["label_seed"]
        (run / "metrics.json").write_text(json.dumps(record))
    assert build_study([tmp_path], resamples=50).rows[0].replicates == [(0, 0)]


def test_labels_used_include_validation(row, folder):
    split = [
        pd.read_csv(folder / f"method-rotation_init-random_label_fraction-0.1_fold-{fold}_seed-0/split.csv")
        for fold in FOLDS
    ]
    assert row.labels_used == np.mean([each["subset"].isin(["train", "val"]).sum() for each in split])
    assert row.labels_used > row.labels
    assert row.share == "10 %"


def test_rows_whose_labels_include_validation_say_so(tmp_path):
    write_runs(tmp_path, [FakeMethod(("init=random", "protocol.val_within_fraction=true"))], [0.1])
    study = build_study([tmp_path], resamples=50)
    assert study.rows[0].share == "10 % incl. val."
    for table in (main_table(study), metrics_table(study)):
        assert next(line[0] for group in table.groups for line in group.lines) == "10 % incl. val."


def counts_of_groups(folder, fold) -> tuple[list[list[str]], np.ndarray]:
    """Return the test photographs of each group of a fold, and how often each group is drawn."""
    from drgrade.stats.bootstrap import TestFold, draws

    split = pd.read_csv(
        folder / f"method-rotation_init-random_label_fraction-0.1_fold-{fold}_seed-0/split.csv", dtype=str
    )
    tested = split[split["subset"] == "test"]
    groups = tested.groupby("group")["image_id"].apply(list).tolist()
    numbers = np.repeat(np.arange(len(groups)), [len(group) for group in groups])
    stand_in = TestFold(str(fold), np.empty(len(numbers), str), numbers, np.zeros(len(numbers), int))
    return groups, np.concatenate(list(draws(stand_in, 200, seed=0))).astype(int)


def repeated(drawn: tuple[list[list[str]], np.ndarray], b: int) -> list[str]:
    groups, counts = drawn
    return [image_id for group, count in zip(groups, counts[b], strict=True) for image_id in group * count]


def test_costs_and_labels_are_means_over_runs(row, folder):
    assert row.seconds == 60.5
    assert row.images_per_second == 100
    assert row.peak_memory == 10**9 + 1
    splits = [
        pd.read_csv(folder / f"method-rotation_init-random_label_fraction-0.1_fold-{fold}_seed-0/split.csv")
        for fold in FOLDS
    ]
    assert row.labels == pytest.approx(np.mean([(split["subset"] == "train").sum() for split in splits]))


def test_single_fold_has_no_standard_deviation(tmp_path):
    write_runs(tmp_path, [RANDOM], [1.0], folds=("published",))
    study = build_study([tmp_path], resamples=50)
    (row,) = study.rows
    assert math.isnan(row.sd)
    assert row.minimum == row.mean.value == row.maximum
    assert list(row.folds) == ["published"]
    assert study.data["folds"] == "the published test set"
    assert any(note.startswith("A single fold has no standard deviation") for note in study.notes)


def test_fold_with_more_seeds_does_not_count_more(tmp_path):
    runs = write_runs(tmp_path, [ROTATION], [1.0], seeds=SEEDS, sweep=None)
    remove_run(runs[1])  # fold 0, seed 1
    (row,) = build_study([tmp_path], resamples=50).rows
    assert row.mean.value == pytest.approx(np.mean(list(row.folds.values())))
    assert row.replicates == [(0, 0)]
    assert not row.complete


def test_grade_that_does_not_occur_has_no_recall(tmp_path):
    from drgrade.data.splits.split import split_hash

    for run in write_runs(tmp_path, [RANDOM], [1.0], folds=(0, 1, 2)):
        for file in ("split.csv", "predictions.csv"):
            table = pd.read_csv(run / file, dtype={"image_id": str})
            table.assign(grade=table["grade"].replace(4, 3)).to_csv(run / file, index=False)
        table = pd.read_csv(run / "predictions.csv")
        split = pd.read_csv(run / "split.csv", dtype={"image_id": str})
        change_json(run / "metrics.json", **{"test/qwk": qwk(table), "split_hash": split_hash(split)})
    (row,) = build_study([tmp_path], resamples=50).rows
    assert np.isnan(row.recall[4].value)
    assert np.isnan(row.recall[4].interval.low)
    assert row.recall[3].value == pytest.approx(row.confusion[3, 3] / row.confusion[3].sum())


def test_intervals_of_two_seeds_stay_in_the_range_of_the_metric(tmp_path):
    write_runs(tmp_path, [FakeMethod(ROTATION.overrides, skill=0.99)], [1.0], folds=(0,), seeds=SEEDS)
    row = build_study([tmp_path], resamples=100).rows[0]
    for each in (row.mean, row.referable_auroc, *row.recall, *row.selective.metrics.values()):
        assert math.isnan(each.interval.low) or -1 <= each.interval.low <= each.interval.high <= 1
