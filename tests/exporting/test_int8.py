"""int8 export: photographs for the ranges, quantised nodes, and the reported cost."""

import json
import shutil
from dataclasses import asdict
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
from drgrade.exporting.graph import onnx_runner
from drgrade.exporting.int8 import (
    calibration_photographs,
    load_run_photographs,
    measure_cost,
    read_pixels,
    rows_of,
)
from drgrade.prediction.checkpoint import load_model
from drgrade.settings import ExportSettings


@pytest.fixture(scope="module")
def int8(finished_run, tmp_path_factory):
    """Export the tiny DenseNet with 8 bits."""
    out = tmp_path_factory.mktemp("int8") / "small.onnx"
    return export(
        ExportSettings.compose(
            checkpoint=finished_run(), format="onnx", out=out, int8=True, own_run=True, resamples=200
        )
    )


@pytest.fixture(scope="module")
def synthetic_folder(tmp_path_factory):
    """Return a folder of photographs of 256 px; those of 64 px are too small to be graded."""
    demo = Demo(tmp_path_factory.mktemp("synthetic_folder"), count=16, size=256, workers=1)
    demo.read()
    return demo.root / "images"


def test_weights_are_8_bit_and_nodes_after_the_logits_are_not_quantised(int8):
    graph = onnx.load(int8.path).graph
    kinds = {each.data_type for each in graph.initializer if len(each.dims) == 4}
    assert kinds == {onnx.TensorProto.INT8}
    values, operators = {"logits"}, []
    for node in graph.node:  # topologically sorted
        if values & set(node.input):
            values |= set(node.output)
            operators.append(node.op_type)
    assert {"probabilities", "grade", "expected_grade", "p_referable"} <= values
    assert "QuantizeLinear" not in operators


def test_batch_size_does_not_change_the_outputs(int8):
    run = onnx_runner(int8.path.read_bytes())
    pixels = np.random.default_rng(0).integers(0, 255, (7, 32, 32, 3), np.uint8)
    whole = run(pixels)
    assert whole["logits"].shape == (7, 5)
    np.testing.assert_allclose(run(pixels[:1])["logits"], whole["logits"][:1], atol=1e-4)


def test_export_reports_the_cost_on_the_test_photographs(int8, finished_run):
    predictions, cost = pd.read_csv(finished_run() / "predictions.csv"), int8.int8.cost
    assert cost.photographs == len(predictions) > 0
    assert 0 <= cost.same_grade <= 1
    assert json.loads(int8.description.read_text())["int8"]["cost"] == asdict(cost)
    assert any("QWK" in line for line in int8.summary())


class _Store:
    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)


def _photographs(split, arrays):
    return SimpleNamespace(split=split, stores=[_Store(array) for array in arrays])


def _file(grades, expected):
    """Return a file whose outputs for a photograph are found by its number, the value of its pixels."""

    def run(pixels):
        numbers = pixels[:, 0, 0, 0]
        probabilities = np.eye(5)[grades[numbers]]
        return {"grade": grades[numbers], "probabilities": probabilities, "expected_grade": expected[numbers]}

    return run


def _split(count):
    """Return photographs in random order, the last quarter of them for training, and their grades."""
    rng = np.random.default_rng(0)
    ids = [f"{number:03d}" for number in rng.permutation(count)]
    subsets = np.where(np.arange(count) < 3 * count // 4, "test", "train")
    grades = rng.integers(0, 5, count)
    split = pd.DataFrame({"image_id": ids, "group": rng.integers(0, 20, count), "grade": grades})
    images = np.zeros((count, 1, 1, 3), np.uint8) + np.arange(count, dtype=np.uint8)[:, None, None, None]
    return _photographs(split.assign(subset=subsets), [images]), grades


def test_cost_compares_two_files_on_the_test_photographs():
    photographs, grades = _split(80)
    rng, test = np.random.default_rng(1), slice(0, 60)
    before, after = (np.where(rng.random(80) < share, grades, rng.integers(0, 5, 80)) for share in (0.7, 0.4))
    expected = rng.uniform(0, 4, (2, 80))
    cost = measure_cost(_file(before, expected[0]), _file(after, expected[1]), photographs, 200, 0)
    for estimate, predicted in ((cost.qwk_float32, before), (cost.qwk_int8, after)):
        reference = cohen_kappa_score(grades[test], predicted[test], weights="quadratic")
        assert estimate.value == pytest.approx(reference, abs=1e-6)
        assert estimate.interval.low < estimate.value < estimate.interval.high
    assert cost.qwk_change.value == pytest.approx(cost.qwk_int8.value - cost.qwk_float32.value)
    assert cost.same_grade == pytest.approx(np.mean(before[test] == after[test]))
    assert cost.expected_grade == pytest.approx(np.abs(expected[0] - expected[1])[test].mean())
    assert cost.photographs == 60


def test_change_of_equal_files_is_0_in_every_resample():
    photographs, grades = _split(40)
    file = _file(np.random.default_rng(1).permutation(grades), np.full(40, 2.0))
    cost = measure_cost(file, file, photographs, 200, 0)
    assert (cost.qwk_change.value, cost.qwk_change.interval.low, cost.qwk_change.interval.high) == (0, 0, 0)
    assert cost.qwk_float32.interval.low < cost.qwk_float32.interval.high
    assert cost.same_grade == 1


def test_pixels_are_read_from_the_right_store():
    arrays = [np.full((n, 1, 1, 3), n, np.uint8) for n in (2, 3, 4)]
    arrays[1][2] = 77
    pixels = read_pixels(_photographs(None, arrays), np.array([8, 4, 0, 2]))
    assert pixels[:, 0, 0, 0].tolist() == [4, 77, 2, 3]


def test_ranges_are_measured_on_training_photographs_only(finished_run):
    model = load_model(finished_run())
    photographs = load_run_photographs(model, own_run=True)
    split = pd.read_csv(finished_run() / "split.csv")
    train = photographs.split.iloc[rows_of(photographs, "train")]
    assert set(train["image_id"]) == set(split[split["subset"] == "train"]["image_id"])
    pixels = calibration_photographs(model, None, count=1000, seed=0, own_run=True)
    known = {each.tobytes() for each in read_pixels(photographs, rows_of(photographs, "train"))}
    assert {each.tobytes() for each in pixels} == known


def test_ranges_are_measured_on_a_folder(finished_run, synthetic_folder, tmp_path):
    model = load_model(finished_run())
    pixels = calibration_photographs(model, synthetic_folder, count=9, seed=0, own_run=False)
    assert pixels.shape == (9, 32, 32, 3)
    assert not np.array_equal(
        pixels, calibration_photographs(model, synthetic_folder, count=9, seed=1, own_run=False)
    )
    for number in range(9):
        Image.new("RGB", (64, 64)).save(tmp_path / f"black{number}.png")
    with pytest.raises(ConfigError, match="there are 0 usable photographs"):
        calibration_photographs(model, tmp_path, count=9, seed=0, own_run=True)
    with pytest.raises(ConfigError, match="is not a folder"):
        calibration_photographs(model, tmp_path / "none", count=9, seed=0, own_run=True)


def _moved(finished_run, tmp_path, **changes):
    """Copy the run and change its config."""
    folder = tmp_path / "run"
    shutil.copytree(finished_run(), folder, ignore=shutil.ignore_patterns("export"))
    cfg = OmegaConf.load(folder / "config.yaml")
    for name, value in changes.items():
        OmegaConf.update(cfg, name.replace("__", "."), value)
    OmegaConf.save(cfg, folder / "config.yaml")
    return folder


def test_missing_photographs_of_the_run_require_a_folder(finished_run, tmp_path):
    folder = _moved(finished_run, tmp_path, photographs__source__root=str(tmp_path / "gone"))
    with pytest.raises(ConfigError, match=r"gone does not exist.*photographs=DIR"):
        export(ExportSettings.compose(checkpoint=folder, format="onnx", int8=True, own_run=True))
    assert not (tmp_path / "gone").exists()
    assert not (folder / "export").exists()


@pytest.mark.slow
def test_cost_is_unknown_without_test_photographs(finished_run, synthetic_folder, tmp_path):
    folder = _moved(finished_run, tmp_path, photographs__source__root=str(tmp_path / "gone"))
    options = {
        "out": tmp_path / "a.onnx",
        "int8": True,
        "photographs": synthetic_folder,
        "count": 9,
        "own_run": True,
    }
    made = export(ExportSettings.compose(checkpoint=folder, **options))
    assert made.int8.cost is None
    assert "gone does not exist" in made.summary()[-1]


def test_changed_photographs_are_refused(finished_run, tmp_path):
    folder = _moved(finished_run, tmp_path)
    record = json.loads((folder / "metrics.json").read_text())
    (folder / "metrics.json").write_text(json.dumps(record | {"data_hash": "0" * 64}))
    with pytest.raises(DataError, match="data_hash is"):
        load_run_photographs(load_model(folder), own_run=True)
