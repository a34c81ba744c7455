"""The Python interface: paths, arrays and PIL images have the same results as in the command."""

import csv

import numpy as np
import pytest
from PIL import Image

import drgrade
from drgrade.data.sources.demo import Demo
from drgrade.errors import ConfigError
from drgrade.prediction.prediction import predict
from drgrade.settings import PredictSettings


@pytest.fixture(scope="module")
def photograph(tmp_path_factory):
    """A synthetic photograph, large enough for a quality verdict."""
    source = Demo(tmp_path_factory.mktemp("synthetic"), count=1, size=256, workers=1)
    return source.root / source.read().manifest["path"].iloc[0]


@pytest.fixture(scope="module")
def predictor(finished_run):
    return drgrade.load(finished_run(), device="cpu")


def test_paths_arrays_and_pil_images_have_the_same_result(predictor, photograph):
    image = Image.open(photograph)
    rows = predictor.predict([photograph, str(photograph), np.asarray(image), image])
    assert len({row.grade for row in rows}) == 1
    for row in rows:
        np.testing.assert_allclose(row.probabilities, rows[0].probabilities, atol=2e-3)
        assert (row.status, row.quality) == ("graded", "good")
        assert 0 <= row.uncertainty <= 1
    assert [row.path for row in rows] == [str(photograph), str(photograph), "", ""]
    assert rows[0].image_id == photograph.stem
    assert predictor.predict(photograph) == rows[:1]


def test_the_result_equals_that_of_the_command(predictor, finished_run, photograph, tmp_path):
    settings = {"checkpoint": finished_run(), "input": photograph, "out": tmp_path / "out", "device": "cpu"}
    summary = predict(PredictSettings.compose(**settings))
    assert summary.counts["graded"] == 1
    (row,) = predictor.predict(photograph)
    line = (tmp_path / "out" / "predictions.csv").read_text().splitlines()[1]
    (written,) = csv.reader([line])
    assert written == row.cells(predictor.grader.warning)


def test_pil_images_are_turned_upright(predictor, photograph):
    image = Image.open(photograph)
    turned = image.transpose(Image.Transpose.ROTATE_90)
    turned.getexif()[0x0112] = 6
    (upright,), (same,) = predictor.predict(image), predictor.predict(turned)
    np.testing.assert_allclose(upright.probabilities, same.probabilities, atol=2e-3)


def test_unsuitable_photographs_have_no_grade(predictor, photograph, finished_run, tmp_path):
    dark = (np.asarray(Image.open(photograph)) // 10).astype(np.uint8)
    rows = predictor.predict([dark, photograph, tmp_path / "missing.jpg"])
    assert [row.status for row in rows] == ["abstained", "graded", "failed"]
    assert rows[0].grade is None
    assert rows[0].probabilities is None
    assert rows[0].uncertainty is None
    assert "not there" in rows[2].reason
    never_abstains = drgrade.load([finished_run()], device="cpu", abstain=False)
    assert never_abstains.predict(dark)[0].status in ("graded", "abstained")
    assert predictor.predict([]) == []


def test_a_photograph_is_explained(predictor, photograph):
    pixels = np.asarray(Image.open(photograph))
    explained, missing = predictor.explain([pixels, np.zeros((200, 200, 3), np.uint8)], map_name="c3")
    assert explained.prediction.grade == predictor.predict(photograph)[0].grade
    assert explained.heat.shape == (32, 32)
    assert explained.overlay.shape == pixels.shape
    assert (explained.overlay != pixels).any() == (explained.heat > 0).any()  # heat may be 0 everywhere
    assert explained.map_name == "c3"
    assert "raise the expected grade" in explained.meaning
    assert missing.heat is None
    assert missing.prediction.status == "abstained"
    with pytest.raises(ConfigError, match="maps=c9"):
        predictor.explain(photograph, map_name="c9")


def test_sensitivity_and_ensembles(finished_run, photograph):
    runs = [finished_run(), finished_run("seed=1")]
    both = drgrade.load(runs, device="cpu", tta="flips", sensitivity=0.9)
    assert both.rule == both.grader.referral(0.9)
    (row,) = both.predict(photograph)
    assert row.result.threshold == round(both.rule.threshold, 6)
    assert row.result.logits is None
