"""An exported file says what the model says, without drgrade; what cannot be exported leaves nothing."""

import ast
import hashlib
import importlib.util
import json
import shutil
import subprocess
import sys

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
from drgrade.data.normalisation import MEAN, STD
from drgrade.errors import ConfigError
from drgrade.exporting import export as job
from drgrade.exporting import graph as torch_file
from drgrade.exporting import onnx_file
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
    """``exported("onnx", "encoder=msssl")``: an exported file of such a run; the same one once."""
    made = {}

    def make(file_format, *more):
        if (file_format, *more) not in made:
            out = tmp_path_factory.mktemp("exported") / f"grader{job.ENDINGS[file_format]}"
            made[(file_format, *more)] = export(
                ExportSettings.compose(checkpoint=finished_run(*more), format=file_format, out=out)
            )
        return made[(file_format, *more)]

    return make


def _run(path, pixels):
    """What onnxruntime says, by name."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_outputs()]
    return dict(zip(names, session.run(None, {"photographs": pixels}), strict=True))


def _tested(folder):
    """Prepared test photographs of a run."""
    photographs = make_photographs(OmegaConf.load(folder / "config.yaml"))
    (store,) = photographs.stores
    ids = pd.read_csv(folder / "predictions.csv")["image_id"]
    return store.images[[store.manifest["image_id"].tolist().index(each) for each in ids]]


def _same(found, graded):
    np.testing.assert_allclose(found["logits"], graded.logits.numpy(), atol=1e-4)
    np.testing.assert_allclose(found["probabilities"], graded.probabilities.numpy(), atol=1e-5)
    np.testing.assert_allclose(found["expected_grade"], graded.expected.numpy(), atol=1e-4)
    np.testing.assert_allclose(found["p_referable"], graded.referable.numpy(), atol=1e-5)
    assert found["grade"].tolist() == graded.grades.tolist()


@pytest.mark.parametrize("more", [(), ("encoder=msssl",)])
def test_onnxruntime_says_what_the_grader_says(exported, finished_run, more):
    pixels = _tested(finished_run(*more))
    grader = Grader.load([finished_run(*more)], device="cpu")
    for batch in BATCHES:
        _same(_run(exported("onnx", *more).path, pixels[:batch]), grader.grade(pixels[:batch]))


def test_torch_export_says_what_the_grader_says(exported, finished_run):
    pixels = _tested(finished_run())
    module = torch.export.load(exported("torch").path).module()
    grader = Grader.load([finished_run()], device="cpu")
    for batch in BATCHES:
        found = module(torch.from_numpy(pixels[:batch]))
        named = {name: each.detach().numpy() for name, each in zip(OUTPUTS, found, strict=True)}
        _same(named, grader.grade(pixels[:batch]))


HEADS = {
    "cumulative": CumulativeHead,
    "softmax": SoftmaxHead,
    "regression": RegressionHead,
    "fitted": lambda width, hidden: RegressionHead(width, hidden=hidden, thresholds="fitted"),
    "corn": CornHead,
}


def _with_head(finished_run, head, encoder=None):
    """The tiny trained run with another model, whose weights are drawn; made to say all sorts of grades."""
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


def _reference(head, logits):
    """Grade and probabilities of one row of logits by the definition of the head, in plain Python."""
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
    grader = _with_head(finished_run, HEADS[head])
    if head == "fitted":
        grader.model.head.thresholds.copy_(torch.tensor([0.3, 0.9, 2.2, 2.3]))
    data = onnx_file.onnx_bytes(job.trace(grader, 32))
    runner = onnx_file.onnx_runner(data)
    assert check_parity(grader, runner, 32).logits < 1e-4
    temperature = grader.calibration.temperature
    found = runner(random_discs(7, 32, seed=5))
    for row, said, grade in zip(found["logits"], found["probabilities"], found["grade"], strict=True):
        raised = np.clip(_reference(head, row), 1e-6, None) ** (1 / temperature)
        np.testing.assert_allclose(said, raised / raised.sum(), atol=2e-5)
        if head == "fitted":
            assert grade == sum(float(row[0]) >= cut for cut in (0.3, 0.9, 2.2, 2.3))


@pytest.mark.slow
def test_a_vision_transformer_is_exported_to_onnx(finished_run):
    vit = TimmEncoder("vit_tiny_patch16_224", image_size=32, depth=2)
    grader = _with_head(finished_run, SoftmaxHead, vit)
    runner = onnx_file.onnx_runner(onnx_file.onnx_bytes(job.trace(grader, 32)))
    assert check_parity(grader, runner, 32).logits < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize(
    "protocol", [("protocol=knn",), ("protocol=linear",), ("protocol=few_shot", "protocol.shots=1")]
)
def test_probes_are_exported_to_onnx(finished_run, tmp_path, protocol):
    folder = finished_run(*protocol)
    path = export(ExportSettings.compose(checkpoint=folder, format="onnx", out=tmp_path / "probe.onnx")).path
    pixels = _tested(folder)
    _same(_run(path, pixels), Grader.load([folder], device="cpu").grade(pixels))


def test_what_does_not_look_at_photographs_is_refused(finished_run):
    trained = load_model(finished_run())
    trained.model.head.needs_features = False
    with pytest.raises(ConfigError, match="nothing to export"):
        ExportedGrader(trained)


def test_the_file_takes_raw_pixels(exported, finished_run):
    """Normalisation is inside: against the model on pixels normalised here."""
    pixels = _tested(finished_run())[:2]
    trained = load_model(finished_run())
    normalised = (pixels / 255 - np.array(MEAN)) / np.array(STD)
    with torch.inference_mode():
        logits = trained.model(torch.tensor(normalised.transpose(0, 3, 1, 2), dtype=torch.float32))
    np.testing.assert_allclose(_run(exported("onnx").path, pixels)["logits"], logits.numpy(), atol=1e-4)


def test_the_file_describes_itself_as_the_json_beside_it(exported, finished_run):
    made, folder = exported("onnx"), finished_run()
    beside = json.loads(made.description.read_text())
    entries = {each.key: each.value for each in onnx.load(made.path).metadata_props}
    inside = json.loads(entries["drgrade"])
    assert {name: beside[name] for name in inside} == inside
    assert beside["file"]["sha256"] == hashlib.sha256(made.path.read_bytes()).hexdigest()
    assert beside["calibration"]["points"] == json.loads((folder / "calibration.json").read_text())["points"]
    assert beside["preparation"]["image_size"] == 32 == int(entries["image_size"])
    record = json.loads((folder / "metrics.json").read_text())
    assert beside["run"]["data_hash"] == record["data_hash"]
    assert beside["metrics"]["test/qwk"] == record["test/qwk"]
    checkpoint = folder / "checkpoints" / record["checkpoint"]
    assert beside["run"]["weights_sha256"] == hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    assert "No medical device" in entries["notice"]
    dimension = onnx.load(made.path).graph.input[0].type.tensor_type.shape.dim[0]
    assert dimension.dim_param == "batch"


def test_the_torch_file_describes_itself(exported):
    made = exported("torch")
    extra = {"drgrade.json": ""}
    torch.export.load(made.path, extra_files=extra)
    inside = json.loads(extra["drgrade.json"])
    assert inside["run"] == json.loads(made.description.read_text())["run"]


def test_the_torch_file_is_loaded_without_drgrade(exported, tmp_path):
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


def test_the_example_grades_a_photograph_without_drgrade(exported, finished_run, tmp_path):
    """A drawn photograph of which the disc is known: the model is asked about exactly that crop."""
    pixels = np.zeros((200, 260, 3), np.uint8)
    y, x = np.mgrid[:200, :260]
    inside = (x + 0.5 - 120) ** 2 + (y + 0.5 - 90) ** 2 <= 64**2
    pixels[inside] = np.random.default_rng(0).integers(90, 200, (int(inside.sum()), 3))
    photograph = tmp_path / "photograph.png"
    Image.fromarray(pixels).save(photograph)
    done = _example(exported("onnx").path, photograph, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    said = ast.literal_eval(done.stdout)
    square = Image.fromarray(pixels[90 - 64 : 90 + 64, 120 - 64 : 120 + 64])
    crop = np.array(square.resize((32, 32), Image.Resampling.BOX))
    graded = Grader.load([finished_run()], device="cpu").grade(crop[None])
    assert said["grade"] == graded.grades.item()
    np.testing.assert_allclose(said["probabilities"], graded.probabilities[0].numpy(), atol=1e-5)


def test_the_example_has_twenty_lines_at_most():
    assert len(EXAMPLE.read_text().splitlines()) <= 20


def test_the_example_refuses_photographs_that_it_cannot_prepare(exported, tmp_path):
    model = onnx.load(exported("onnx").path)
    for each in model.metadata_props:
        if each.key == "illumination":
            each.value = "clahe"
    onnx.save(model, tmp_path / "clahe.onnx")
    done = _example(tmp_path / "clahe.onnx", "none.jpg", cwd=tmp_path)
    assert done.returncode != 0
    assert "illumination=none only" in done.stderr


def test_a_file_that_is_there_is_not_replaced_unasked(exported, finished_run):
    path = exported("onnx").path
    before = path.read_bytes()
    with pytest.raises(ConfigError, match="overwrite=true"):
        export(ExportSettings.compose(checkpoint=finished_run(), format="onnx", out=path))
    assert path.read_bytes() == before


def test_nothing_is_kept_of_a_file_that_says_something_else(finished_run, tmp_path, monkeypatch):
    def off_by_little(data):
        runner = torch_file.torch_runner(data)
        return lambda pixels: {n: v + (3e-4 if n == "logits" else 0) for n, v in runner(pixels).items()}

    monkeypatch.setattr(job, "torch_runner", off_by_little)
    with pytest.raises(ParityError, match="logits of 1 photographs"):
        export(ExportSettings.compose(checkpoint=finished_run(), format="torch", out=tmp_path / "grader.pt2"))
    assert not list(tmp_path.iterdir())


def test_grades_that_do_not_follow_from_the_logits_are_noticed(finished_run):
    grader = ExportedGrader(load_model(finished_run())).eval()

    def wrong(pixels):
        with torch.inference_mode():
            found = grader(torch.from_numpy(pixels))
        named = {name: each.numpy() for name, each in zip(OUTPUTS, found, strict=True)}
        return named | {"grade": (named["grade"] + 1) % 5}

    with pytest.raises(ParityError, match="grade"):
        check_parity(grader, wrong, 32)


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
def test_settings_that_make_no_sense_are_refused(tmp_path, wanted, message):
    with pytest.raises(ConfigError, match=message):
        export(ExportSettings.compose(**{"checkpoint": tmp_path, **wanted}))


def test_a_missing_package_is_named(monkeypatch, tmp_path):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "onnxscript" else find(name)
    )
    with pytest.raises(ConfigError, match=r"onnxscript: pip install 'drgrade\[export\]'"):
        export(ExportSettings.compose(checkpoint=tmp_path, format="onnx"))


def test_by_default_the_file_is_in_the_run_folder_and_replaced_on_request(finished_run, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(finished_run(), folder, ignore=shutil.ignore_patterns("export"))
    (folder / "export").mkdir()
    (folder / "export" / "grader.pt2").write_text("old")
    work(compose("export", checkpoint=folder, format="torch", overwrite=True))
    torch.export.load(folder / "export" / "grader.pt2")
    assert (folder / "export" / "grader.pt2.json").is_file()
    said = capsys.readouterr().out
    assert "at most" in said
    assert "int8" not in said
