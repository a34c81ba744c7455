"""Evaluations in loggers: curves as in scikit-learn, the worst photographs first."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn import metrics as reference

from drgrade.metrics.distributed import Predictions
from drgrade.training.tracking.figure_loggers import draw_evaluation
from drgrade.training.tracking.tracker import Evaluation, describe_run


def evaluation(seed=0, size=500, grades=5):
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, grades, size)
    logits = rng.normal(size=(size, 5)) + 1.5 * np.eye(5)[truth]
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    index = np.sort(rng.choice(2 * size, size, replace=False))
    found = Predictions(*map(torch.from_numpy, (index, probabilities, probabilities.argmax(axis=1), truth)))
    halves = [
        np.arange(size * 12).reshape(size, 2, 2, 3) % 251,
        np.arange(size * 12).reshape(size, 2, 2, 3) % 13,
    ]
    ids = pd.DataFrame({"image_id": [f"photo{row}" for row in range(2 * size)]})

    class Half(SimpleNamespace):
        def __len__(self):
            return len(self.images)

    collection = SimpleNamespace(
        photographs=ids, stores=[Half(images=half.astype(np.uint8)) for half in halves]
    )
    return Evaluation("test", found, collection, 7), np.concatenate(halves)


def test_thinned_curves_keep_ends_and_area():
    result, _ = evaluation()
    truth, scores = result.predictions.grades.numpy(), result.predictions.probabilities.numpy()
    assert [curve.grade for curve in result.roc] == list(range(5))
    for curve in result.roc:
        assert len(curve.x) <= 200
        assert (curve.x[0], curve.y[0], curve.x[-1], curve.y[-1]) == (0, 0, 1, 1)
        area = reference.roc_auc_score(truth == curve.grade, scores[:, curve.grade])
        assert reference.auc(curve.x, curve.y) == pytest.approx(area, abs=0.01)
    for curve in result.precision_recall:
        want = reference.average_precision_score(truth == curve.grade, scores[:, curve.grade])
        assert reference.auc(curve.x, curve.y) == pytest.approx(want, abs=0.02)


def test_missing_grade_has_no_curve():
    result, _ = evaluation(grades=3)
    assert [curve.grade for curve in result.roc] == [0, 1, 2]


def test_worst_mistakes_come_first_with_their_images():
    result, images = evaluation()
    predictions = result.predictions
    rows = sorted(
        range(len(predictions.grades)),
        key=lambda k: (
            -abs(int(predictions.predicted[k]) - int(predictions.grades[k])),
            float(predictions.probabilities[k, predictions.grades[k]]),
        ),
    )
    worst = result.worst(20)
    assert [each.image_id for each in worst] == [f"photo{int(predictions.index[k])}" for k in rows[:20]]
    for each, k in zip(worst, rows, strict=False):
        np.testing.assert_array_equal(each.image, images[int(predictions.index[k])])
    assert all(each.grade != each.predicted for each in result.worst(10_000))


def test_figures_are_drawn_without_pyplot():
    result, _ = evaluation(size=40)
    drawn = draw_evaluation(result, worst=5)
    assert set(drawn) == {"confusion", "roc", "precision_recall", "worst"}
    assert len(drawn["worst"].axes) == 5
    counts = [int(text.get_text()) for text in drawn["confusion"].axes[0].texts]
    assert counts == result.confusion.ravel().tolist()


def test_tags_are_at_most_64_characters_long():
    about = {
        "method": "m",
        "model": None,
        "encoder": "a.b.MsSSL",
        "data": "idrid",
        "protocol": "published",
        "init": f"/somewhere/{'long' * 30}/encoder.safetensors",
        "label_fraction": 0.025,
        "fold": 3,
        "scale": "paper",
        "pretrain_on": "all",
    }
    tags = describe_run("out/cell", "name", "sweep", "grading", about).all_tags
    assert {"m", "idrid", "published", "2.5%", "fold=3", "scale=paper"} <= set(tags)
    assert max(map(len, tags)) == 64
    about["method"] = None
    assert "msssl" in describe_run("out/cell", "name", "sweep", "grading", about).all_tags
