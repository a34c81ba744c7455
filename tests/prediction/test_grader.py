"""A loaded run prepares the same pixels and predicts the same as in training."""

import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from omegaconf import OmegaConf

from drgrade.data.store import Store
from drgrade.errors import ConfigError, EncoderError
from drgrade.models.calibration import Calibration
from drgrade.prediction.checkpoint import load_model
from drgrade.prediction.grader import TTA_VIEWS, Grader
from drgrade.publishing.hub import save_pretrained
from drgrade.training.build import make_photographs

P = [f"p{k}" for k in range(5)]
ENCODERS = ["encoder=densenet", "encoder=msssl"]


def _tested(folder):
    """Return the predictions of a run and its test photographs: store and rows."""
    predictions = pd.read_csv(folder / "predictions.csv")
    photographs = make_photographs(OmegaConf.load(folder / "config.yaml"))
    (store,) = photographs.stores
    assert isinstance(store, Store)
    rows = [store.manifest["image_id"].tolist().index(each) for each in predictions["image_id"]]
    return predictions, photographs, store, rows


@pytest.mark.parametrize("encoder", ENCODERS)
def test_predictions_equal_those_of_the_run(finished_run, encoder):
    folder = finished_run(encoder)
    predictions, _, store, rows = _tested(folder)
    graded = Grader.load([folder], device="cpu").grade(store.images[rows])
    np.testing.assert_allclose(graded.raw.numpy(), predictions[P].to_numpy(), atol=2e-6)
    assert graded.grades.tolist() == predictions["predicted"].tolist()


def test_preparation_equals_the_pixels_of_the_store(finished_run):
    folder = finished_run()
    _, photographs, store, rows = _tested(folder)
    trained = load_model(folder)
    for row in rows[:5]:
        crop = trained.preparation.prepare(photographs.source.root / store.manifest["path"].iloc[row]).crop
        np.testing.assert_array_equal(crop.pixels, store.images[row])
        assert crop.facts.file_sha256 == store.manifest["file_sha256"].iloc[row]


def test_a_loaded_model_is_calibrated_and_in_evaluation_mode(finished_run):
    trained = load_model(finished_run())
    assert trained.calibration.photographs >= 10
    assert not trained.model.training


def test_drawings_are_recognised_in_earlier_runs_and_published_models(finished_run, tmp_path):
    trained = load_model(finished_run())
    assert trained.drawings == ["demo"]
    earlier = {name: value for name, value in trained.record.items() if name != "drawings"}
    assert replace(trained, record=earlier).drawings == ["demo"]
    renamed = trained.config.copy()
    renamed.data.name = "ours"
    assert replace(trained, record=earlier, config=renamed).drawings == ["ours"]
    published = load_model(save_pretrained(finished_run(), tmp_path / "published"))
    assert published.drawings == ["demo"]
    assert replace(published, record=earlier).drawings == ["demo"]  # of an earlier version
    joined = trained.config.copy()
    joined.data.source._target_ = "drgrade.data.sources.folder.Folder"
    joined.data.name, joined.data.labelled = "clinic", ["demo", "../../secret"]
    assert replace(trained, record=earlier, config=joined).drawings == ["demo"]
    joined.data.labelled = []
    real = replace(trained, record=earlier, config=joined)
    assert real.drawings == []
    assert Grader([real], device="cpu").warning == ""
    assert "TRAINED ON DRAWINGS (demo)" in Grader([real, trained], device="cpu").warning


@pytest.mark.parametrize("head", ["softmax", "regression_fitted", "corn"])
def test_heads_are_loaded(finished_run, head):
    folder = finished_run(f"head={head}")
    predictions, _, store, rows = _tested(folder)
    graded = Grader.load([folder], device="cpu").grade(store.images[rows])
    assert graded.grades.tolist() == predictions["predicted"].tolist()


@pytest.mark.parametrize("protocol", ["knn", "linear"])
def test_probes_are_loaded(finished_run, protocol):
    folder = finished_run(f"protocol={protocol}")
    predictions, _, store, rows = _tested(folder)
    graded = Grader.load([folder], device="cpu").grade(store.images[rows])
    np.testing.assert_allclose(graded.raw.numpy(), predictions[P].to_numpy(), atol=1e-5)


def test_an_ensemble_is_the_mean_of_its_members(finished_run):
    folders = [finished_run(), finished_run("seed=1")]
    _, _, store, rows = _tested(folders[0])
    both = Grader.load(folders, device="cpu").grade(store.images[rows])
    each = [Grader.load([folder], device="cpu").grade(store.images[rows]) for folder in folders]
    torch.testing.assert_close(both.probabilities, (each[0].probabilities + each[1].probabilities) / 2)
    assert both.logits is None
    assert (both.disagreement > 0).any()
    assert (each[0].disagreement == 0).all()


def test_views_of_a_symmetric_photograph_agree(finished_run):
    """No flip and no quarter turn changes the image."""
    pixels = np.full((1, 32, 32, 3), 90, np.uint8)
    pixels[:, 8:24, 8:24] = 160
    alone = Grader.load([finished_run()], device="cpu").grade(pixels)
    for tta in TTA_VIEWS:
        turned = Grader.load([finished_run()], device="cpu", tta=tta).grade(pixels)
        torch.testing.assert_close(turned.probabilities, alone.probabilities, atol=1e-6, rtol=0)


def test_flips_are_averaged(finished_run):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 255, (2, 32, 32, 3), np.uint8)
    plain = Grader.load([finished_run()], device="cpu")
    mirrored = [pixels, pixels[:, :, ::-1], pixels[:, ::-1], pixels[:, ::-1, ::-1]]
    expected = torch.stack([plain.grade(each.copy()).probabilities for each in mirrored]).mean(dim=0)
    averaged = Grader.load([finished_run()], device="cpu", tta="flips").grade(pixels).probabilities
    torch.testing.assert_close(averaged, expected)


def test_fitted_thresholds_read_the_expected_grade(finished_run):
    folder = finished_run()
    _, _, store, rows = _tested(folder)
    graded = Grader.load([folder], device="cpu", reading="thresholds").grade(store.images[rows])
    thresholds = load_model(folder).calibration.thresholds
    naive = [sum(value >= cut for cut in thresholds) for value in graded.expected.tolist()]
    assert graded.grades.tolist() == naive


def test_members_with_another_preparation_are_refused(finished_run):
    with pytest.raises(ConfigError, match="members of an ensemble need the same preparation"):
        Grader.load([finished_run(), finished_run("data.image_size=40")], device="cpu")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tta": "rotate"}, "tta=rotate"),
        ({"reading": "best"}, "reading=best"),
        ({"device": "abacus"}, "abacus"),
    ],
)
def test_unknown_settings_are_refused(finished_run, settings, message):
    with pytest.raises(ConfigError, match=message):
        Grader.load([finished_run()], **{"device": "cpu", **settings})


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"is not a run's folder"):
        load_model(tmp_path)


def test_a_checkpoint_of_another_model_is_refused(finished_run, tmp_path):
    folder = tmp_path / "mixed"
    shutil.copytree(finished_run(), folder)
    shutil.copytree(finished_run("encoder=msssl") / "checkpoints", folder / "checkpoints", dirs_exist_ok=True)
    with pytest.raises(EncoderError, match="does not fit the model of its config"):
        load_model(folder)


def test_runs_without_calibration_file_are_not_calibrated(finished_run, tmp_path):
    folder = tmp_path / "old"
    shutil.copytree(finished_run(), folder)
    (folder / "calibration.json").unlink()
    assert load_model(folder).calibration == Calibration(note=load_model(folder).calibration.note)
    with pytest.raises(ConfigError, match="no operating points"):
        Grader.load([folder], device="cpu").referral(0.9)
