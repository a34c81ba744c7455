"""Export: outputs equal to the model's, description, use without drgrade, refused settings."""

import ast
import hashlib
import importlib.util
import json
import shutil
import subprocess
import sys
from functools import cache

import numpy as np
import onnx
import onnxruntime
import pandas as pd
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from tiny_run import REPOSITORY

from drgrade.cli.export import work
from drgrade.config import compose
from drgrade.data.transforms import MEAN, STD
from drgrade.errors import ConfigError
from drgrade.exporting import export as job
from drgrade.exporting import graph
from drgrade.exporting.export import export
from drgrade.exporting.graph import OUTPUTS, ExportedGrader, ParityError, check_parity, random_discs
from drgrade.models.encoder import TimmEncoder
from drgrade.models.grading_model import GradingModel
from drgrade.models.heads import CornHead, CumulativeHead, RegressionHead, SoftmaxHead
from drgrade.prediction.checkpoint import load_model
from drgrade.prediction.grader import Grader
from drgrade.settings import ExportSettings
from drgrade.training.build import make_photographs

EXAMPLE = REPOSITORY / "examples" / "grade_photograph.py"
BATCHES = (1, 2, 7)

WITHOUT_DRGRADE = "import sys; sys.modules['drgrade'] = None; sys.path.pop(0); "
"""Makes ``import drgrade`` an ImportError."""


@pytest.fixture(scope="module")
def exported(finished_run, tmp_path_factory):
    """``exported("onnx", "encoder=msssl")``: the exported file of such a run, written once."""

    @cache
    def export_once(file_format, *more):
        out = tmp_path_factory.mktemp("exported") / f"grader{job.ENDINGS[file_format]}"
        return export(ExportSettings.compose(checkpoint=finished_run(*more), format=file_format, out=out))

    return export_once


def _run_onnx(path, pixels):
    """Return the outputs of onnxruntime by name."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_outputs()]
    return dict(zip(names, session.run(None, {"photographs": pixels}), strict=True))


def _test_pixels(folder):
    """Return the prepared test photographs of a run."""
    photographs = make_photographs(OmegaConf.load(folder / "config.yaml"))
    (store,) = photographs.stores
    ids = pd.read_csv(folder / "predictions.csv")["image_id"]
    assert len(ids) >= max(BATCHES)
    return store.images[[store.manifest["image_id"].tolist().index(each) for each in ids]]


def _assert_same_outputs(outputs, graded):
    np.testing.assert_allclose(outputs["logits"], graded.logits.numpy(), atol=1e-4)
    np.testing.assert_allclose(outputs["probabilities"], graded.probabilities.numpy(), atol=1e-5)
    np.testing.assert_allclose(outputs["expected_grade"], graded.expected.numpy(), atol=1e-4)
    np.testing.assert_allclose(outputs["p_referable"], graded.referable.numpy(), atol=1e-5)
    assert outputs["grade"].tolist() == graded.grades.tolist()


@pytest.mark.parametrize("more", [(), ("encoder=msssl",)])
def test_onnx_file_matches_the_grader(exported, finished_run, more):
    pixels = _test_pixels(finished_run(*more))
    grader = Grader.load([finished_run(*more)], device="cpu")
    for batch in BATCHES:
        _assert_same_outputs(
            _run_onnx(exported("onnx", *more).path, pixels[:batch]), grader.grade(pixels[:batch])
        )


def test_torch_file_matches_the_grader(exported, finished_run):
    pixels = _test_pixels(finished_run())
    module = torch.export.load(exported("torch").path).module()
    grader = Grader.load([finished_run()], device="cpu")
    for batch in BATCHES:
        outputs = module(torch.from_numpy(pixels[:batch]))
        named = {name: each.detach().numpy() for name, each in zip(OUTPUTS, outputs, strict=True)}
        _assert_same_outputs(named, grader.grade(pixels[:batch]))


HEADS = {
    "cumulative": CumulativeHead,
    "softmax": SoftmaxHead,
    "regression": RegressionHead,
    "fitted": lambda width, hidden: RegressionHead(width, hidden=hidden, thresholds="fitted"),
    "corn": CornHead,
}


def _grader_with_head(finished_run, head, encoder=None):
    """Return the tiny run with another model, with random weights that predict different grades."""
    trained = load_model(finished_run())
    torch.manual_seed(0)
    encoder = encoder or TimmEncoder("test_resnet", image_size=32)
    model = GradingModel(encoder, head(encoder.num_features, hidden=8)).eval()
    features = encoder.eval()(torch.randn(16, 3, 32, 32)).detach()
    with torch.no_grad():
        last = model.head.layers[-1]
        logits = model.head(features)
        last.weight.mul_(2 / logits.std())
        last.bias.copy_(torch.linspace(2, 0, len(last.bias)))
    object.__setattr__(trained, "model", model)
    return ExportedGrader(trained).eval()


def _reference_probabilities(head, logits):
    """Compute the probabilities of one row of logits by the definition of the head, in plain Python."""
    sigmoid = [1 / (1 + np.exp(-float(each))) for each in logits]
    if head in ("regression", "fitted"):
        value = min(max(float(logits[0]), 0), 4)
        return [max(0, 1 - abs(value - grade)) for grade in range(5)]
    if head == "softmax":
        raised = [np.exp(float(each) - float(max(logits))) for each in logits]
        return [each / sum(raised) for each in raised]
    above = sigmoid[1:] if head == "cumulative" else sigmoid
    at_least = [1.0]
    for each in above:
        at_least.append(min(at_least[-1], each) if head == "cumulative" else at_least[-1] * each)
    return [a - b for a, b in zip(at_least, [*at_least[1:], 0], strict=True)]


@pytest.mark.parametrize(
    "head",
    [
        *("fitted", "corn"),
        # The cumulative one is that of the runs above.
        *(pytest.param(head, marks=pytest.mark.slow) for head in ("cumulative", "softmax", "regression")),
    ],
)
def test_every_head_is_exported_to_onnx(finished_run, head):
    grader = _grader_with_head(finished_run, HEADS[head])
    if head == "fitted":
        grader.model.head.thresholds.copy_(torch.tensor([0.3, 0.9, 2.2, 2.3]))
    data = graph.onnx_bytes(graph.trace(grader, 32))
    runner = graph.onnx_runner(data)
    assert check_parity(grader, runner, 32).logits < 1e-4
    calibration = grader.calibration
    outputs = runner(random_discs(7, 32, seed=5))
    columns = [outputs[name] for name in ("logits", "probabilities", "grade")]
    for row, probabilities, grade in zip(*columns, strict=True):
        at_least = np.cumsum(_reference_probabilities(head, row)[::-1])[::-1][1:]
        odds = np.log(1e-4 + 0.9998 * at_least) - np.log(1e-4 + 0.9998 * (1 - at_least))
        scaled = -np.diff(1 / (1 + np.exp(-odds / calibration.temperature)), prepend=1, append=0)
        weight = calibration.weight
        expected = (1 - weight) * scaled + weight * np.array(calibration.frequencies)
        np.testing.assert_allclose(probabilities, expected, atol=2e-4)
        if head == "fitted":
            assert grade == sum(float(row[0]) >= cut for cut in (0.3, 0.9, 2.2, 2.3))


@pytest.mark.slow
def test_a_vision_transformer_is_exported_to_onnx(finished_run):
    vit = TimmEncoder("vit_tiny_patch16_224", image_size=32, depth=2)
    grader = _grader_with_head(finished_run, SoftmaxHead, vit)
    runner = graph.onnx_runner(graph.onnx_bytes(graph.trace(grader, 32)))
    assert check_parity(grader, runner, 32).logits < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize(
    "protocol", [("protocol=knn",), ("protocol=linear",), ("protocol=few_shot", "protocol.shots=1")]
)
def test_probes_are_exported_to_onnx(finished_run, tmp_path, protocol):
    folder = finished_run(*protocol)
    path = export(ExportSettings.compose(checkpoint=folder, format="onnx", out=tmp_path / "probe.onnx")).path
    pixels = _test_pixels(folder)
    _assert_same_outputs(_run_onnx(path, pixels), Grader.load([folder], device="cpu").grade(pixels))


def test_head_that_ignores_photographs_is_refused(finished_run):
    trained = load_model(finished_run())
    trained.model.head.needs_features = False
    with pytest.raises(ConfigError, match="nothing to export"):
        ExportedGrader(trained)


def test_normalisation_is_part_of_the_file(exported, finished_run):
    pixels = _test_pixels(finished_run())[:2]
    trained = load_model(finished_run())
    normalised = (pixels / 255 - np.array(MEAN)) / np.array(STD)
    with torch.inference_mode():
        logits = trained.model(torch.tensor(normalised.transpose(0, 3, 1, 2), dtype=torch.float32))
    np.testing.assert_allclose(_run_onnx(exported("onnx").path, pixels)["logits"], logits.numpy(), atol=1e-4)


def test_onnx_metadata_equal_the_json_description(exported, finished_run):
    file, folder = exported("onnx"), finished_run()
    model = onnx.load(file.path)
    description = json.loads(file.description.read_text())
    entries = {each.key: each.value for each in model.metadata_props}
    stored = json.loads(entries["drgrade"])
    assert {name: description[name] for name in stored} == stored
    assert description["file"]["sha256"] == hashlib.sha256(file.path.read_bytes()).hexdigest()
    assert (
        description["calibration"]["points"]
        == json.loads((folder / "calibration.json").read_text())["points"]
    )
    assert description["preparation"]["image_size"] == 32 == int(entries["image_size"])
    record = json.loads((folder / "metrics.json").read_text())
    assert description["run"]["data_hash"] == record["data_hash"]
    assert description["metrics"]["test/qwk"] == record["test/qwk"]
    checkpoint = folder / "checkpoints" / record["checkpoint"]
    assert description["run"]["weights_sha256"] == hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    assert "Not a medical device" in entries["notice"]
    dimension = model.graph.input[0].type.tensor_type.shape.dim[0]
    assert dimension.dim_param == "batch"


def test_torch_file_contains_its_description(exported):
    file = exported("torch")
    extra = {"drgrade.json": ""}
    torch.export.load(file.path, extra_files=extra)
    assert json.loads(extra["drgrade.json"])["run"] == json.loads(file.description.read_text())["run"]


def test_torch_file_loads_without_drgrade(exported, tmp_path):
    code = (
        f"{WITHOUT_DRGRADE}import torch; program = torch.export.load({str(exported('torch').path)!r}); "
        "print(list(program.module()(torch.zeros(3, 32, 32, 3, dtype=torch.uint8))[1].shape))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout.strip() == "[3, 5]", done.stderr


def _example(*arguments, cwd):
    code = f"{WITHOUT_DRGRADE}import runpy; sys.modules['torch'] = None; runpy.run_path({str(EXAMPLE)!r})"
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd)


def test_example_grades_a_photograph_without_drgrade(exported, finished_run, tmp_path):
    """On a photograph with a known disc, the example grades exactly the crop of the disc."""
    pixels = np.zeros((200, 260, 3), np.uint8)
    y, x = np.mgrid[:200, :260]
    inside = (x + 0.5 - 120) ** 2 + (y + 0.5 - 90) ** 2 <= 64**2
    pixels[inside] = np.random.default_rng(0).integers(90, 200, (int(inside.sum()), 3))
    photograph = tmp_path / "photograph.png"
    Image.fromarray(pixels).save(photograph)
    done = _example(exported("onnx").path, photograph, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    printed = ast.literal_eval(done.stdout)
    square = Image.fromarray(pixels[90 - 64 : 90 + 64, 120 - 64 : 120 + 64])
    crop = np.array(square.resize((32, 32), Image.Resampling.BOX))
    graded = Grader.load([finished_run()], device="cpu").grade(crop[None])
    assert printed["grade"] == graded.grades.item()
    np.testing.assert_allclose(printed["probabilities"], graded.probabilities[0].numpy(), atol=1e-5)


def test_example_has_at_most_twenty_lines():
    assert len(EXAMPLE.read_text().splitlines()) <= 20


def test_example_refuses_runs_with_illumination_correction(exported, tmp_path):
    model = onnx.load(exported("onnx").path)
    for each in model.metadata_props:
        if each.key == "illumination":
            each.value = "clahe"
    onnx.save(model, tmp_path / "clahe.onnx")
    done = _example(tmp_path / "clahe.onnx", "none.jpg", cwd=tmp_path)
    assert done.returncode != 0
    assert "illumination=none only" in done.stderr


def test_existing_file_is_replaced_only_with_overwrite(exported, finished_run):
    path = exported("onnx").path
    before = path.read_bytes()
    with pytest.raises(ConfigError, match="overwrite=true"):
        export(ExportSettings.compose(checkpoint=finished_run(), format="onnx", out=path))
    assert path.read_bytes() == before


def test_file_that_differs_from_the_model_is_not_written(finished_run, tmp_path, monkeypatch):
    def shifted_logits(data):
        runner = graph.torch_runner(data)
        return lambda pixels: {n: v + (3e-4 if n == "logits" else 0) for n, v in runner(pixels).items()}

    monkeypatch.setattr(job, "torch_runner", shifted_logits)
    with pytest.raises(ParityError, match="logits of 1 photographs"):
        export(ExportSettings.compose(checkpoint=finished_run(), format="torch", out=tmp_path / "grader.pt2"))
    assert not list(tmp_path.iterdir())


def test_grades_that_do_not_follow_from_the_logits_are_refused(finished_run):
    grader = ExportedGrader(load_model(finished_run())).eval()

    def shifted_grades(pixels):
        with torch.inference_mode():
            outputs = grader(torch.from_numpy(pixels))
        named = {name: each.numpy() for name, each in zip(OUTPUTS, outputs, strict=True)}
        return named | {"grade": (named["grade"] + 1) % 5}

    with pytest.raises(ParityError, match="grade"):
        check_parity(grader, shifted_grades, 32)


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"format": "torch", "int8": True}, "format=onnx"),
        ({"photographs": REPOSITORY}, "int8=true"),
        ({"int8": True, "count": 4}, "count=4"),
        ({"int8": True, "resamples": 5}, "resamples=5 is not allowed: whole number ≥ 100"),
        ({"out": REPOSITORY / "grader.pt2"}, r"ends in \.onnx"),
        ({"out": REPOSITORY / "no" / "grader.txt"}, r"ends in \.onnx"),
        ({"checkpoint": [REPOSITORY, REPOSITORY]}, "ensembles are not exported"),
    ],
)
def test_contradictory_settings_are_refused(tmp_path, wanted, message):
    with pytest.raises(ConfigError, match=message):
        export(ExportSettings.compose(**{"checkpoint": tmp_path, **wanted}))


def test_missing_package_is_named(monkeypatch, tmp_path):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "onnxscript" else find(name)
    )
    with pytest.raises(ConfigError, match=r"onnxscript: pip install 'drgrade\[export\]'"):
        export(ExportSettings.compose(checkpoint=tmp_path, format="onnx"))


def test_default_file_is_in_the_run_folder_and_replaced_with_overwrite(finished_run, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(finished_run(), folder, ignore=shutil.ignore_patterns("export"))
    (folder / "export").mkdir()
    (folder / "export" / "grader.pt2").write_text("old")
    work(compose("export", checkpoint=folder, format="torch", overwrite=True))
    torch.export.load(folder / "export" / "grader.pt2")
    assert (folder / "export" / "grader.pt2.json").is_file()
    summary = capsys.readouterr().out
    assert "at most" in summary
    assert "int8" not in summary
