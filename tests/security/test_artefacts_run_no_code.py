"""Runs and published folders from somebody else: no code, no environment, no other files, no huge models."""

import json
import shutil
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file

import drgrade
from drgrade.errors import ConfigError, DataError, DrgradeError, EncoderError
from drgrade.exporting.export import export
from drgrade.files import file_sha256
from drgrade.model_card.card import write_model_card
from drgrade.models.grading_model import model_class
from drgrade.prediction.checkpoint import load_model
from drgrade.prediction.grader import Grader
from drgrade.prediction.own_photographs import run_photographs
from drgrade.publishing.hub import save_pretrained
from drgrade.runs.reader import RunLocation, read_run
from drgrade.runs.run_dir import read_config, resolve_run_dir
from drgrade.settings import ExportSettings

PIXELS = np.zeros((1, 32, 32, 3), np.uint8)


@pytest.fixture(scope="session")
def published_once(finished_run, tmp_path_factory):
    return save_pretrained(finished_run(), tmp_path_factory.mktemp("published") / "grader")


@pytest.fixture(params=["run", "published"])
def folder(request, finished_run, published_once, tmp_path):
    """A copy of a finished run, and of a published folder."""
    source = finished_run() if request.param == "run" else published_once
    return Path(shutil.copytree(source, tmp_path / request.param))


@pytest.fixture
def run(finished_run, tmp_path):
    """A copy of a finished run."""
    return Path(shutil.copytree(finished_run(), tmp_path / "run"))


def change(folder, edit):
    """Edit the settings of a run or of a published folder."""
    if (folder / "config.yaml").is_file():
        settings = yaml.safe_load((folder / "config.yaml").read_text())
        edit(settings)
        (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    else:
        record = json.loads((folder / "config.json").read_text())
        edit(record["settings"])
        (folder / "config.json").write_text(json.dumps(record))


def setting(name, value):
    def edit(settings):
        *groups, last = name.split(".")
        for group in groups:
            settings = settings[group]
        settings[last] = value

    return edit


CODE = [
    {"_target_": "os.system", "command": "touch OWNED"},
    {
        "_target_": "pathlib.Path.write_text",
        "self": {"_target_": "pathlib.Path", "_args_": ["OWNED"]},
        "data": "",
    },
    {"_target_": "shutil.copy", "src": "SOURCE", "dst": "OWNED"},
    {"_target_": "torch.load", "f": "BOMB", "weights_only": False},
    {"_target_": "numpy.load", "file": "BOMB", "allow_pickle": True},
    {"_target_": "pandas.read_pickle", "filepath_or_buffer": "BOMB"},
    {"_target_": "torch.hub.load", "repo_or_dir": "mallory/repo", "model": "x"},
    {"_target_": "drgrade.sweeps.subprocesses.run", "command": ["touch", "OWNED"]},
    {"_target_": "drgrade.models.encoder.save_encoder", "folder": "OWNED"},
    {"_target_": "drgrade.models.encoder.nn.Module"},
    {"_target_": "drgrade.models.encoder.Encoder"},
    {"_target_": ["drgrade.models.encoder.TimmEncoder"]},
    {"_target_": None},
    "text",
    None,
    -7,
]
PLACES = ["encoder", "encoder.options", "grading.task.head", "grading.task.head.hidden", "protocol.probe"]


class Bomb:
    """Touches a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.fixture
def bombs(tmp_path, monkeypatch):
    """Return code to put into a config, and a check that none of it has run."""
    owned, bomb = tmp_path / "owned", tmp_path / "bomb"
    torch.save(Bomb(owned), bomb)
    source = tmp_path / "source"
    source.write_text("")
    names = {"OWNED": str(owned), "BOMB": str(bomb), "SOURCE": str(source)}

    def armed(node):
        text = json.dumps(node)
        for name, path in names.items():
            text = text.replace(name, path)
        return json.loads(text)

    yield armed
    assert not owned.exists()


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("code", CODE, ids=str)
def test_only_encoders_and_heads_of_drgrade_are_built(folder, place, code, bombs):
    if place in ("encoder.options", "protocol.probe") and code is None:
        pytest.skip("the same as without the setting")
    change(folder, setting(place, bombs(code)))
    with pytest.raises(
        DataError, match=r"config\.(yaml|json) is refused: its (encoder|head)|its head"
    ) as error:
        load_model(folder)
    assert "\n" not in str(error.value)


REFUSED = {
    "encoder.name": ["hf-hub:mallory/model", "local-dir:/tmp", "nothing", "../x", 5, None, "resnet18\n"],
    "encoder.pretrained": ["yes", 1],
    "encoder.image_size": [0, -5, 10**9, 1e3, "32", True, [32], None],
    "encoder.growth_rate": [10**9, -1, {"a": 1}, "a/b", float("inf")],
    "encoder.block_config": [[1] * 1000, [10**6], [[1]], ["x"]],
    "encoder.checkpoint_path": ["weights.pth"],
    "encoder.pretrained_cfg": [{"file": "x"}, "x"],
    "encoder.cache_dir": ["/tmp"],
    "encoder.unknown": [1],
    "encoder._args_": [[1]],
    "encoder._partial_": [True],
    "encoder._recursive_": [False],
    "encoder.options": [{"drop": {"_target_": "os.getcwd"}}, {"checkpoint_path": "x"}, [1]],
    "grading.task.head.hidden": [-1, 10**9, "16", 1.5],
    "grading.task.head.num_grades": [4, 10**6],
    "grading.task.head.num_outputs": [7],
    "grading.task.head.dropout": [1.0, -1, float("nan")],
    "grading.task.head._partial_": ["yes", 2],
    "photographs.image_size": [0, -5, 10**9, 32.5, "32", None, True],
    "photographs.max_pixels": [0, -1, "many", None, 1.5],
    "photographs.illumination": ["sun", 5, None, ["none"]],
}


@pytest.mark.parametrize(
    ("name", "value"), [(name, each) for name, values in REFUSED.items() for each in values]
)
def test_settings_outside_their_bounds_are_refused(folder, name, value):
    change(folder, setting(name, value))
    if name == "encoder.pretrained" and (folder / "config.yaml").is_file():
        load_model(folder)  # a run may have started from published weights; its checkpoint replaces them
        return
    with pytest.raises(DataError, match=r"is refused|cannot be read"):
        load_model(folder)


@pytest.mark.parametrize(
    "value", ["${oc.env:SECRET}", "a${oc.env:SECRET,b}", "${seed}", "${oc.decode:'{a: 1}'}", "${.", "???"]
)
def test_interpolations_of_an_artefact_are_not_resolved(folder, value, monkeypatch):
    monkeypatch.setenv("SECRET", "hunter2")
    change(folder, setting("method", value))
    with pytest.raises(DataError, match=r"method=.* is an interpolation") as error:
        load_model(folder)
    assert "hunter2" not in str(error.value)


def test_environment_is_not_published_and_not_compared(run, monkeypatch):
    monkeypatch.setenv("SECRET", "hunter2")
    before = OmegaConf.load(run / "config.yaml")
    change(run, setting("method", "${oc.env:SECRET}"))
    for read in (write_model_card, read_config, lambda each: save_pretrained(each, run / "out")):
        with pytest.raises(DataError, match="method="):
            read(run)
    before.resume = str(run)
    with pytest.raises(DataError, match="method="):
        resolve_run_dir(before)
    with pytest.raises(DataError, match="method="):
        read_run(RunLocation(run))


def test_limit_of_pixels_is_never_lifted(folder):
    change(folder, setting("photographs.max_pixels", 10**12))
    assert load_model(folder).preparation.max_pixels == 100_000_000
    change(folder, setting("photographs.max_pixels", 5000))
    assert load_model(folder).preparation.max_pixels == 5000


def test_models_far_larger_than_their_weights_are_not_built(folder):
    change(folder, setting("encoder.growth_rate", 4096))
    with pytest.raises(EncoderError, match=r"far larger|does not fit"):
        load_model(folder)


def test_options_that_timm_cannot_build_are_one_line(folder):
    change(folder, setting("encoder.block_config", []))
    with pytest.raises(EncoderError, match=r"cannot be built|does not fit") as error:
        load_model(folder)
    assert "\n" not in str(error.value)


def _set_tensor(folder, edit):
    """Edit the tensors of the head's first matrix in a run or published folder."""
    if (folder / "model.safetensors").is_file():
        tensors = load_file(folder / "model.safetensors")
        edit(tensors)
        save_file(tensors, folder / "model.safetensors")
        record = json.loads((folder / "config.json").read_text())
        record["weights"]["sha256"] = file_sha256(folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps(record))
    else:
        name = json.loads((folder / "metrics.json").read_text())["checkpoint"]
        content = torch.load(folder / "checkpoints" / name, weights_only=True)
        edit(content["state_dict"])
        torch.save(content, folder / "checkpoints" / name)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_refused(folder, value):
    def edit(tensors):
        name = next(name for name in tensors if name.startswith("head.") and name.endswith("weight"))
        tensors[name].view(-1)[3] = value

    _set_tensor(folder, edit)
    with pytest.raises(EncoderError, match=r"weights that are not finite numbers \(head\."):
        load_model(folder)


def test_outputs_that_are_not_finite_are_not_graded(folder):
    def edit(tensors):
        for name, tensor in tensors.items():
            if name.startswith("encoder.") and name.endswith("running_var"):
                tensor.fill_(-1.0)

    _set_tensor(folder, edit)
    with pytest.raises(EncoderError, match="not finite, so nothing is graded"):
        Grader([load_model(folder)], device="cpu").grade(PIXELS)


@pytest.mark.parametrize(
    "name", ["../../other.ckpt", "/etc/passwd", "..", "", "a/b.ckpt", "last.ckpt\n", 5, None]
)
def test_checkpoint_lies_in_the_folder_of_checkpoints(run, name):
    record = json.loads((run / "metrics.json").read_text())
    (run / "metrics.json").write_text(json.dumps({**record, "checkpoint": name}))
    with pytest.raises(DataError, match="is not the name of a checkpoint"):
        load_model(run)


def test_tensors_whose_values_are_not_in_the_file_are_refused(run):
    def edit(tensors):
        name = next(name for name in tensors if name.startswith("head."))
        tensors[name] = torch.zeros(1).expand(10**6, 10**6)

    _set_tensor(run, edit)
    with pytest.raises(DataError, match="is not a stored tensor"):
        load_model(run)


SOURCES = [each for each in CODE if isinstance(each, dict)] + [
    {"_target_": "drgrade.data.sources.base.Source", "root": "x"},
    {"_target_": "drgrade.data.sources.demo.Demo", "root": {"_target_": "os.getcwd"}},
    {"_target_": "drgrade.data.sources.demo.Demo", "root": "x", "_args_": [1]},
    {"_target_": "clinic.sources.Ours", "root": "x"},
]


@pytest.mark.parametrize("source", SOURCES, ids=str)
def test_photographs_are_read_only_through_sources_of_drgrade(run, source, bombs, monkeypatch):
    change(run, lambda settings: settings["photographs"].update(source=bombs(source), _target_="os.system"))
    trained = load_model(run)
    with pytest.raises(DataError, match="its source"):
        run_photographs(trained.config, trained.record, run)


@pytest.mark.parametrize("role", ["labelled", "unlabelled", "external"])
def test_further_data_sets_run_no_code(run, role, bombs):
    entry = {"data": "demo", "name": bombs(CODE[0])}
    change(run, setting(f"data.{role}", [entry]))
    trained = load_model(run)
    with pytest.raises(DataError, match="is not allowed"):
        run_photographs(trained.config, trained.record, run)


def test_photographs_of_a_run_need_an_explicit_setting(finished_run, tmp_path):
    overrides = ["trainer=cpu", f"paths.outputs={tmp_path}", f"paths.run={tmp_path / 'evaluation'}"]
    with pytest.raises(ConfigError, match="if the run is your own, add own_run=true"):
        drgrade.evaluate(*overrides, checkpoint=[str(finished_run())])
    options = {"checkpoint": finished_run(), "out": tmp_path / "grader.onnx", "int8": True}
    with pytest.raises(ConfigError, match="if the run is your own, add own_run=true"):
        export(ExportSettings.compose(**options))
    assert not list(tmp_path.iterdir())


def test_publishing_imports_no_module_that_a_run_names(run, tmp_path, monkeypatch):
    (tmp_path / "trap.py").write_text(f"open({str(tmp_path / 'owned')!r}, 'w')")
    monkeypatch.syspath_prepend(tmp_path)
    change(run, lambda settings: settings["data"]["source"].update(_target_="trap.Source"))
    write_model_card(run)
    save_pretrained(run, tmp_path / "out", seen=False)
    assert not (tmp_path / "owned").exists()


CLINIC = """
import pathlib
from drgrade.models.heads import CumulativeHead

pathlib.Path(__file__).with_name("imported").touch()

class ClinicHead(CumulativeHead):
    pass

class Other:
    pass
"""


@pytest.fixture
def clinic(tmp_path, monkeypatch):
    """A module with a head, which a function offers as entry points; and the mark of its import."""
    (tmp_path / "clinic_heads.py").write_text(CLINIC)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "clinic_heads", raising=False)

    def offer(*values):
        entries = [EntryPoint(value, value, "drgrade.models") for value in values]
        monkeypatch.setattr("drgrade.artefacts.entry_points", lambda group: entries)

    yield offer, tmp_path / "imported"
    sys.modules.pop("clinic_heads", None)


def test_only_classes_of_installed_entry_points_are_imported_and_built(run, clinic):
    offer, imported = clinic
    change(run, setting("grading.task.head._target_", "clinic_heads.ClinicHead"))
    offer("another_package:Head")
    with pytest.raises(DataError, match=r"its head is clinic_heads\.ClinicHead, which is not in"):
        load_model(run)
    assert not imported.exists()
    offer("clinic_heads:ClinicHead")
    assert type(load_model(run).model.head).__name__ == "ClinicHead"
    assert imported.exists()
    change(run, setting("grading.task.head.hidden", "os.system(1)"))
    with pytest.raises(DataError, match="its head has hidden="):
        load_model(run)


@pytest.mark.parametrize("name", ["clinic_heads.Other", "os.system", "drgrade.models.heads.Head"])
def test_entry_points_that_are_no_encoder_or_head_are_not_built(clinic, name):
    offer, _ = clinic
    offer("clinic_heads:Other", "os:system")
    assert model_class(name) is None


YAML_BOMB = "a: &a [x, x, x]\n" + "\n".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join([f'*{chr(97 + i)}'] * 9)}]" for i in range(20)
)
DAMAGED_YAML = {
    "aliases": YAML_BOMB,
    "nested": "a: " + "[" * 5000 + "]" * 5000,
    "nested blocks": "\n".join(f"{' ' * i}a:" for i in range(500)),
    "sequences": "a:\n  " + "- " * 5000 + "1",
    "a tag": "a: !!python/object/apply:os.system [ls]",
    "a path": "a: !!python/object/apply:pathlib.PosixPath [x]",
    "a date": "seed: 2026-01-01",
    "bytes": "seed: !!binary aGk=",
    "a list": "[1, 2]",
    "text": "hello",
    "nothing": "",
    "key": "? [a, b]\n: 1",
    "number key": "1: 2",
    "large": "a: " + "x" * 1_100_000,
    "no YAML": "a: [",
    "latin": "a: é".encode("latin-1"),
}


@pytest.mark.parametrize("damage", DAMAGED_YAML)
def test_damaged_config_is_one_line(run, damage):
    text = DAMAGED_YAML[damage]
    (run / "config.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    for read in (load_model, read_config, write_model_card):
        with pytest.raises(DataError, match=r"config\.yaml") as error:
            read(run)
        assert "\n" not in str(error.value)
        assert len(str(error.value)) < 1000


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"a":' * 5000 + "1" + "}" * 5000, '{"a": NaN}', "[]", "1" * 5000]
)
@pytest.mark.parametrize("name", ["metrics.json", "calibration.json", "provenance.json"])
def test_damaged_json_is_one_line(run, name, text):
    (run / name).write_text(text)
    read = write_model_card if name == "provenance.json" else load_model
    with pytest.raises(DrgradeError) as error:
        read(run)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 1000


def test_runs_of_the_project_are_accepted(finished_run):
    for overrides in ([], ["encoder=msssl"], ["protocol=linear"], ["protocol=knn"], ["encoder=vit"]):
        assert load_model(finished_run(*overrides)).batch_size == 8
