"""int8: the photographs that ranges are measured on, the quantised nodes, and the reported cost."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import onnx
import pandas as pd
import pytest
from omegaconf import OmegaConf
from PIL import Image
from sklearn.metrics import cohen_kappa_score

from drgrade.data.sources.demo import Demo
from drgrade.errors import ConfigError, DataError
from drgrade.exporting.export import export
from drgrade.exporting.int8 import (
    calibration_photographs,
    load_run_photographs,
    measure_cost,
    read_pixels,
    rows_of,
)
from drgrade.exporting.onnx_file import onnx_runner
from drgrade.prediction.checkpoint import load_model
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


def test_weights_are_8_bit_and_what_follows_the_logits_is_not_quantised(int8):
    graph = onnx.load(int8.path).graph
    kinds = {each.data_type for each in graph.initializer if len(each.dims) == 4}
    assert kinds == {onnx.TensorProto.INT8}
    reached, after = {"logits"}, []
    for node in graph.node:  # topologically sorted
        if reached & set(node.input):
            reached |= set(node.output)
            after.append(node.op_type)
    assert {"probabilities", "grade", "expected_grade", "p_referable"} <= reached
    assert "QuantizeLinear" not in after


def test_the_batch_does_not_change_the_result(int8):
    run = onnx_runner(int8.path.read_bytes())
    pixels = np.random.default_rng(0).integers(0, 255, (7, 32, 32, 3), np.uint8)
    whole = run(pixels)
    assert whole["logits"].shape == (7, 5)
    np.testing.assert_allclose(run(pixels[:1])["logits"], whole["logits"][:1], atol=1e-4)


def test_the_cost_is_measured_on_the_test_photographs(int8, finished_run):
    photographs = load_run_photographs(load_model(finished_run()))
    rows = rows_of(photographs, "test")
    split = photographs.split.iloc[rows]
    predictions = pd.read_csv(finished_run() / "predictions.csv").set_index("image_id")
    before = predictions.loc[split["image_id"], "predicted"].to_numpy()
    after = onnx_runner(int8.path.read_bytes())(read_pixels(photographs, rows))["grade"]
    grades, cost = split["grade"].to_numpy(int), int8.int8.cost
    for found, predicted in ((cost.qwk_float32, before), (cost.qwk_int8, after)):
        expected = cohen_kappa_score(grades, predicted, weights="quadratic")
        assert found.value == pytest.approx(expected, abs=1e-6)
        assert found.interval.low <= found.value <= found.interval.high
    assert cost.qwk_change.value == pytest.approx(cost.qwk_int8.value - cost.qwk_float32.value)
    assert cost.same_grade == pytest.approx(np.mean(before == after))
    assert cost.photographs == len(rows)
    assert json.loads(int8.description.read_text())["int8"]["cost"]["photographs"] == len(rows)
    assert any("QWK" in line for line in int8.summary())


class _Store:
    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)


def _photographs(split, arrays):
    return SimpleNamespace(split=split, stores=[_Store(array) for array in arrays])


def test_a_difference_is_resampled_on_the_same_draws():
    """Two equal files differ by 0 in every resample, however wide their own intervals are."""
    split = pd.DataFrame(
        {
            "image_id": list("gfedcba"),
            "group": list("xxyyzzw"),
            "grade": [0, 1, 2, 3, 4, 0, 1],
            "subset": "test",
        }
    )
    outputs = {
        "grade": np.random.default_rng(0).integers(0, 5, 7),
        "probabilities": np.full((7, 5), 0.2),
        "expected_grade": np.full(7, 2.0),
    }
    photographs = _photographs(split, [np.zeros((7, 2, 2, 3), np.uint8)])
    cost = measure_cost(lambda _: outputs, lambda _: outputs, photographs, 200, 0)
    assert (cost.qwk_change.value, cost.qwk_change.interval.low, cost.qwk_change.interval.high) == (0, 0, 0)
    assert cost.qwk_float32.interval.low < cost.qwk_float32.interval.high
    assert cost.same_grade == 1


def test_pixels_are_read_from_the_store_that_holds_them():
    arrays = [np.full((n, 1, 1, 3), n, np.uint8) for n in (2, 3, 4)]
    arrays[1][2] = 77
    pixels = read_pixels(_photographs(None, arrays), np.array([8, 4, 0, 2]))
    assert pixels[:, 0, 0, 0].tolist() == [4, 77, 2, 3]


def test_ranges_are_measured_on_training_photographs_only(finished_run):
    model = load_model(finished_run())
    photographs = load_run_photographs(model)
    split = pd.read_csv(finished_run() / "split.csv")
    train = photographs.split.iloc[rows_of(photographs, "train")]
    assert set(train["image_id"]) == set(split[split["subset"] == "train"]["image_id"])
    pixels = calibration_photographs(model, None, count=1000, seed=0)
    known = {each.tobytes() for each in read_pixels(photographs, rows_of(photographs, "train"))}
    assert {each.tobytes() for each in pixels} == known


def test_ranges_are_measured_on_a_folder(finished_run, drawn, tmp_path):
    model = load_model(finished_run())
    pixels = calibration_photographs(model, drawn, count=9, seed=0)
    assert pixels.shape == (9, 32, 32, 3)
    assert not np.array_equal(pixels, calibration_photographs(model, drawn, count=9, seed=1))
    for number in range(9):
        Image.new("RGB", (64, 64)).save(tmp_path / f"black{number}.png")
    with pytest.raises(ConfigError, match="there are 0 usable photographs"):
        calibration_photographs(model, tmp_path, count=9, seed=0)
    with pytest.raises(ConfigError, match="is not a folder"):
        calibration_photographs(model, tmp_path / "none", count=9, seed=0)


def _moved(finished_run, tmp_path, **changes):
    """The run with other paths in its config."""
    folder = tmp_path / "run"
    shutil.copytree(finished_run(), folder, ignore=shutil.ignore_patterns("export"))
    cfg = OmegaConf.load(folder / "config.yaml")
    for name, value in changes.items():
        OmegaConf.update(cfg, name.replace("__", "."), value)
    OmegaConf.save(cfg, folder / "config.yaml")
    return folder


def test_without_the_photographs_of_the_run_a_folder_is_needed(finished_run, tmp_path):
    folder = _moved(finished_run, tmp_path, photographs__source__root=str(tmp_path / "gone"))
    with pytest.raises(ConfigError, match=r"gone does not exist.*photographs=DIR"):
        export(ExportSettings.compose(checkpoint=folder, format="onnx", int8=True))
    assert not (tmp_path / "gone").exists()
    assert not (folder / "export").exists()


@pytest.mark.slow
def test_without_test_photographs_the_cost_is_unknown(finished_run, drawn, tmp_path):
    folder = _moved(finished_run, tmp_path, photographs__source__root=str(tmp_path / "gone"))
    options = {"out": tmp_path / "a.onnx", "int8": True, "photographs": drawn, "count": 9}
    made = export(ExportSettings.compose(checkpoint=folder, **options))
    assert made.int8.cost is None
    assert "gone does not exist" in made.summary()[-1]


def test_photographs_that_have_changed_are_refused(finished_run, tmp_path):
    folder = _moved(finished_run, tmp_path)
    record = json.loads((folder / "metrics.json").read_text())
    (folder / "metrics.json").write_text(json.dumps(record | {"data_hash": "0" * 64}))
    with pytest.raises(DataError, match="data_hash is"):
        load_run_photographs(load_model(folder))
