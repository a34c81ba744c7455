"""int8: what is measured on, what is chosen, what is said of its cost."""

import json
import shutil

import numpy as np
import onnx
import pandas as pd
import pytest
from omegaconf import OmegaConf
from PIL import Image
from sklearn.metrics import cohen_kappa_score

from drgrade.cli.export import summary
from drgrade.data.sources.demo import Demo
from drgrade.errors import ConfigError, DataError
from drgrade.exporting import int8 as cost
from drgrade.exporting.export import export
from drgrade.exporting.int8 import RECIPES, Images, calibration_images, own_images
from drgrade.exporting.onnx_file import onnx_runner
from drgrade.prediction.checkpoint import load_trained
from drgrade.settings import ExportSettings


@pytest.fixture(scope="module")
def int8(finished_run, tmp_path_factory):
    """The tiny DenseNet in eight bits."""
    out = tmp_path_factory.mktemp("int8") / "small.onnx"
    return export(
        ExportSettings.compose(checkpoint=finished_run(), format="onnx", out=out, int8=True, resamples=200)
    )


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """A folder of photographs of 256 px: those of 64 px are too small to be graded."""
    demo = Demo(tmp_path_factory.mktemp("drawn"), count=16, size=256, workers=1)
    demo.read()
    return demo.root / "images"


def test_keeps_the_recipe_whose_logits_stay_nearest(int8):
    tried = int8.int8.tried
    assert set(tried) == set(RECIPES)
    assert tried[int8.int8.recipe] == min(tried.values())


def test_weights_are_8_bit_and_what_follows_the_logits_is_not_quantised(int8):
    graph = onnx.load(int8.path).graph
    kinds = {each.data_type for each in graph.initializer if len(each.dims) == 4}
    assert kinds == {onnx.TensorProto.INT8}
    reached, after = {"logits"}, []
    for node in graph.node:  # in an order in which everything is computed before it is used
        if reached & set(node.input):
            reached |= set(node.output)
            after.append(node.op_type)
    assert {"probabilities", "grade", "expected_grade", "p_referable"} <= reached
    assert not {"QuantizeLinear", "DynamicQuantizeLinear", "MatMulInteger"} & set(after)


def test_takes_any_number_of_photographs(int8):
    run = onnx_runner(int8.path.read_bytes())
    pixels = np.random.default_rng(0).integers(0, 255, (7, 32, 32, 3), np.uint8)
    whole = run(pixels)
    assert whole["logits"].shape == (7, 5)
    if int8.int8.recipe.startswith("static"):  # ranges of "mixed" are those of the batch
        np.testing.assert_allclose(run(pixels[:1])["logits"], whole["logits"][:1], atol=1e-4)


def test_states_qwk_before_and_after_on_the_test_photographs(int8, finished_run):
    images = own_images(load_trained(finished_run()), "test")
    grades = images.table["grade"].to_numpy()
    pixels = images.take(np.arange(len(images)))
    predictions = pd.read_csv(finished_run() / "predictions.csv").set_index("image_id")
    before = predictions.loc[images.table["image_id"], "predicted"].to_numpy()  # as the run has graded them
    said = (before, onnx_runner(int8.path.read_bytes())(pixels)["grade"])
    kappas, agreement = int8.int8.kappas, int8.int8.agreement
    for found, grade in zip((kappas.before, kappas.after), said, strict=True):
        assert found.value == pytest.approx(cohen_kappa_score(grades, grade, weights="quadratic"), abs=1e-6)
        assert found.interval.low <= found.value <= found.interval.high
    assert kappas.change.value == pytest.approx(kappas.after.value - kappas.before.value)
    assert agreement.grades == pytest.approx(np.mean(said[0] == said[1]))
    assert agreement.photographs == len(images)


def test_is_told_in_the_description_and_on_the_terminal(int8):
    beside = json.loads(int8.description.read_text())
    assert beside["precision"] == "int8"
    assert beside["int8"]["recipe"] == int8.int8.recipe
    assert any("QWK" in line for line in summary(int8))


def test_a_difference_is_resampled_on_the_same_draws():
    """Two files that say the same differ by 0 in every resample, however wide their own intervals are."""
    rng = np.random.default_rng(0)
    table = pd.DataFrame(
        {"image_id": list("gfedcba"), "group": list("xxyyzzw"), "grade": [0, 1, 2, 3, 4, 0, 1]}
    )
    said = {
        "grade": rng.integers(0, 5, 7),
        "probabilities": np.full((7, 5), 0.2),
        "expected_grade": np.full(7, 2.0),
    }
    images = Images(table, [np.zeros((7, 2, 2, 3), np.uint8)], np.arange(7))
    agreement, kappas = cost.compare_graded(lambda _: said, lambda _: said, images, 200, 0)
    assert (kappas.change.value, kappas.change.interval.low, kappas.change.interval.high) == (0, 0, 0)
    assert kappas.before.interval.low < kappas.before.interval.high
    assert agreement.grades == 1


def test_images_are_read_from_the_store_that_they_lie_in():
    arrays = [np.full((n, 1, 1, 3), n, np.uint8) for n in (2, 3, 4)]
    arrays[1][2] = 77
    images = Images(pd.DataFrame({"image_id": list("abcd")}), arrays, np.array([8, 4, 0, 2]))
    assert images.take(np.arange(4))[:, 0, 0, 0].tolist() == [4, 77, 2, 3]
    assert [len(each) for each in images.batches(3)] == [3, 1]


def test_ranges_are_measured_on_training_photographs_only(finished_run):
    trained = load_trained(finished_run())
    train = own_images(trained, "train")
    split = pd.read_csv(finished_run() / "split.csv")
    assert set(train.table["image_id"]) == set(split[split["subset"] == "train"]["image_id"])
    pixels = calibration_images(trained, None, count=1000, seed=0)
    known = {each.tobytes() for each in train.take(np.arange(len(train)))}
    assert {each.tobytes() for each in pixels} == known


def test_ranges_are_measured_on_a_folder(finished_run, drawn):
    trained = load_trained(finished_run())
    pixels = calibration_images(trained, drawn, count=9, seed=0)
    assert pixels.shape == (9, 32, 32, 3)
    assert not np.array_equal(pixels, calibration_images(trained, drawn, count=9, seed=1))


def test_what_is_no_photograph_does_not_count(finished_run, tmp_path):
    trained = load_trained(finished_run())
    for number in range(9):
        Image.new("RGB", (64, 64)).save(tmp_path / f"black{number}.png")
    with pytest.raises(ConfigError, match="0 usable photographs"):
        calibration_images(trained, tmp_path, count=9, seed=0)


def test_a_folder_that_is_not_there_is_refused(finished_run, tmp_path):
    with pytest.raises(ConfigError, match="is no folder"):
        calibration_images(load_trained(finished_run()), tmp_path / "none", count=9, seed=0)


def _moved(finished_run, tmp_path, **changes):
    """The run with other places in its config."""
    folder = tmp_path / "run"
    shutil.copytree(finished_run(), folder, ignore=shutil.ignore_patterns("export"))
    cfg = OmegaConf.load(folder / "config.yaml")
    for name, value in changes.items():
        OmegaConf.update(cfg, name.replace("__", "."), value)
    OmegaConf.save(cfg, folder / "config.yaml")
    return folder


def test_without_the_photographs_of_the_run_a_folder_is_asked_for(finished_run, tmp_path):
    folder = _moved(finished_run, tmp_path, photographs__source__root=str(tmp_path / "gone"))
    with pytest.raises(ConfigError, match=r"gone is not there.*photographs=DIR"):
        export(ExportSettings.compose(checkpoint=folder, format="onnx", int8=True))
    assert not (tmp_path / "gone").exists()
    assert not (folder / "export").exists()


def test_other_photographs_than_the_run_had_are_not_taken_for_its_own(finished_run, tmp_path):
    folder = _moved(finished_run, tmp_path)
    record = json.loads((folder / "metrics.json").read_text())
    (folder / "metrics.json").write_text(json.dumps(record | {"data_hash": "0" * 64}))
    with pytest.raises(DataError, match="does not hold the photographs of the run any more"):
        own_images(load_trained(folder), "test")


@pytest.mark.slow
def test_without_test_photographs_agreement_is_measured_on_those_held_out(finished_run, drawn, tmp_path):
    folder = _moved(finished_run, tmp_path, photographs__source__root=str(tmp_path / "gone"))
    options = {"out": tmp_path / "a.onnx", "int8": True, "photographs": drawn, "count": 9}
    made = export(ExportSettings.compose(checkpoint=folder, **options))
    assert made.int8.kappas is None
    assert made.int8.agreement.photographs == made.int8.chosen_on == 2
    assert "gone is not there" in summary(made)[-1]
