"""Grouping of runs by method, and names of methods."""

import re

import pytest
import yaml
from synthetic import RANDOM, ROTATION, FakeMethod, change_config, change_json, write_runs

from drgrade.reporting.study import build_study
from drgrade.runs.settings import WITHOUT_EFFECT, flat, method_key, method_settings


def labels(folder) -> list[str]:
    return [method.label for method in build_study([folder], resamples=10).methods]


def config_of(run) -> dict:
    return yaml.load((run / "config.yaml").read_text(), Loader=yaml.CSafeLoader)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A pre-trained run."""
    return write_runs(tmp_path_factory.mktemp("one"), [ROTATION], [1.0])[0]


def changed(config: dict, name: str, value: object) -> dict:
    """Return a copy with changed values; ``a__b`` is ``a.b``."""
    first, _, rest = name.partition("__")
    return {**config, first: changed(config[first], rest, value) if rest else value}


SAME = {
    "label_fraction": 0.25,
    "fold": 3,
    "seed": 7,
    "pretext__seed": 7,
    "grading__datamodule__seed": 7,
    "pretraining__datamodule__seed": 7,
    "callbacks__seed_each_epoch__seed": 7,
    "name": "another",
    "sweep": "another",
    "resume": "auto",
    "data__root": "/elsewhere",
    "data__source__root": "/elsewhere",
    "paths__outputs": "/elsewhere",
    "data__workers": 9,
    "data__num_workers": 9,
    "grading__datamodule__num_workers": 9,
    "trainer__accelerator": "gpu",
    "trainer__devices": 4,
    "trainer__strategy": {"_target_": "x"},
    "logger": {"_target_": "x"},
    "callbacks__progress": {"_target_": "x"},
}
OTHER = {
    "trainer__precision": "bf16-mixed",
    "trainer__max_epochs": 5,
    "protocol__epochs": 5,
    "protocol__frozen_epochs": 0,
    "optimizer__lr": 0.1,
    "data__batch_size": 4,
    "data__balanced": True,
    "pretext__epochs": 99,
    "pretrain_on": "train",
    "split__val_fraction": 0.2,
    "head__dropout": 0.1,
    "encoder__growth_rate": 99,
    "augment__zoom": [1, 1],
    "callbacks__stopping": {"_target_": "x"},
    "init": "imagenet",
    "method": "another",
}


@pytest.mark.parametrize("name", SAME)
def test_settings_without_effect_do_not_distinguish_methods(run, name):
    config = config_of(run)
    assert method_key(changed(config, name, SAME[name])) == method_key(config)


@pytest.mark.parametrize("name", OTHER)
def test_settings_that_change_results_distinguish_methods(run, name):
    config = config_of(run)
    assert method_key(changed(config, name, OTHER[name])) != method_key(config)


def test_trainer_settings_without_effect_are_ignored():
    names = {f"trainer.{name}" for name in WITHOUT_EFFECT if name != "_target_"}
    config = {"init": "ssl", "trainer": {name.removeprefix("trainer."): 1 for name in names}}
    assert set(flat(config)) > names
    assert set(method_settings(config)) == {"init"}


def test_key_is_a_file_name_and_independent_of_the_report(tmp_path, run):
    key = build_study([run], resamples=10).methods[0].key
    write_runs(tmp_path / "both", [RANDOM, ROTATION], [1.0])
    assert key in [method.key for method in build_study([tmp_path / "both"], resamples=10).methods]
    assert re.fullmatch(r"rotation-ssl-published-[0-9a-f]{8}", key)


def test_pretext_is_ignored_without_pre_training(tmp_path):
    first = write_runs(tmp_path / "a", [RANDOM], [1.0])[0]
    change_config(first, pretext__epochs=99, pretrain_on="train", protocol__pretrain_on="train")
    assert labels(tmp_path / "a") == ["rotation, random init"]


def test_pretrained_methods_come_before_random_ones(tmp_path):
    write_runs(tmp_path, [RANDOM, ROTATION], [1.0])
    study = build_study([tmp_path], resamples=10)
    assert [method.label for method in study.methods] == ["rotation, pre-trained", "rotation, random init"]
    assert [method.init for method in study.methods] == ["ssl", "random"]
    assert [method.saw_test for method in study.methods] == [True, False]
    assert all(method.settings == {} for method in study.methods)


def test_random_weights_that_an_earlier_version_froze_are_another_method(tmp_path):
    runs = write_runs(tmp_path / "a", [RANDOM, ROTATION], [1.0], folds=(0, 1))
    assert len(build_study([tmp_path], resamples=10).methods) == 2
    change_config(runs[0], grading__task__frozen_epochs=3)
    found = labels(tmp_path)
    assert len(found) == 3
    assert any("frozen_epochs=3" in label for label in found)


def test_unnamed_method_is_labelled_by_its_encoder(tmp_path):
    write_runs(tmp_path, [FakeMethod(), FakeMethod(("encoder=msssl", "init=imagenet"))], [1.0])
    assert labels(tmp_path) == ["MsSSL, ImageNet weights", "densenet121, random init"]


def test_weights_of_another_training_than_imagenet_are_named(tmp_path):
    name = "encoder.name=vit_tiny_patch16_224.augreg_in21k"
    write_runs(tmp_path, [FakeMethod(("encoder=timm", name, "init=imagenet"))], [1.0])
    assert labels(tmp_path) == [
        "vit_tiny_patch16_224.augreg_in21k, vit_tiny_patch16_224.augreg_in21k weights"
    ]


def test_two_protocols_are_two_rows(tmp_path):
    write_runs(tmp_path, [RANDOM, FakeMethod((*RANDOM.overrides, "protocol=matched"))], [1.0])
    study = build_study([tmp_path], resamples=10)
    assert [method.label for method in study.methods] == [
        "rotation, random init, published",
        "rotation, random init, matched",
    ]
    assert [method.protocol for method in study.methods] == ["published", "matched"]
    assert len(study.rows) == 2
    assert {protocol for protocol, *_ in study.splits} == {"published", "matched"}


def test_changed_protocol_is_another_protocol(tmp_path):
    write_runs(tmp_path, [RANDOM, FakeMethod((*RANDOM.overrides, "protocol.epochs=5"))], [1.0])
    study = build_study([tmp_path], resamples=10)
    assert sorted(method.protocol for method in study.methods) == [
        "published (epochs=20)",
        "published (epochs=5)",
    ]
    assert len({method.label for method in study.methods}) == 2
    assert {method.settings["protocol.epochs"] for method in study.methods} == {5, 20}


def test_equal_labels_are_extended_by_the_fewest_settings(tmp_path):
    more = ("head=softmax", "optimizer.lr=0.5")
    write_runs(
        tmp_path,
        [
            RANDOM,
            FakeMethod((*RANDOM.overrides, more[0])),
            FakeMethod((*RANDOM.overrides, more[1])),
            FakeMethod((*RANDOM.overrides, *more)),
        ],
        [1.0],
    )
    study = build_study([tmp_path], resamples=10)
    assert sorted(method.label for method in study.methods) == [
        "rotation, random init, lr=0.001, head=CumulativeHead",
        "rotation, random init, lr=0.001, head=SoftmaxHead",
        "rotation, random init, lr=0.5, head=CumulativeHead",
        "rotation, random init, lr=0.5, head=SoftmaxHead",
    ]
    assert all(set(method.settings) == {"head", "optimizer.lr"} for method in study.methods)


RESNET = ("encoder=timm", "encoder.name=resnet18")
FILE = "encoder.weights=/somewhere/lite.safetensors"


@pytest.mark.parametrize("init", ["random", "imagenet"])
def test_weights_from_a_file_are_called_neither_random_nor_imagenet(tmp_path, init):
    runs = write_runs(tmp_path, [FakeMethod((*RESNET, f"init={init}", FILE))], [1.0])
    for run in runs:
        change_json(run / "metrics.json", weights_hash="a" * 64, weights_says="source=ImageNet-1k")
    study = build_study([tmp_path], resamples=10)
    (method,) = study.methods
    assert (method.label, method.init) == ("resnet18, from lite.safetensors", "lite.safetensors")
    assert method.key.startswith("resnet18-lite-safetensors-published-")
    assert (
        "resnet18, from lite.safetensors starts from lite.safetensors, SHA-256 aaaaaaaaaaaa, "
        "says: source=ImageNet-1k." in study.notes
    )


def test_weights_from_a_file_are_no_reference_and_are_compared_with_random_ones(tmp_path):
    methods = [FakeMethod((*RESNET, "init=random", *more)) for more in ((), (FILE,))]
    imagenet = FakeMethod((*RESNET, "init=imagenet", FILE))
    write_runs(tmp_path, [*methods, imagenet], [1.0])
    study = build_study([tmp_path], resamples=10)
    random = next(method for method in study.methods if method.init == "random")
    assert random.label == "resnet18, random init"
    assert random.reference == ""
    assert {method.reference for method in study.methods if method != random} == {random.key}
    assert len({method.key for method in study.methods}) == len(study.methods) == 2


def test_runs_from_different_content_of_one_file_are_noted(tmp_path):
    runs = write_runs(tmp_path, [FakeMethod((*RESNET, "init=random", FILE))], [1.0])
    for digit, run in zip("abc", runs, strict=True):
        change_json(run / "metrics.json", weights_hash=digit * 64)
    notes = build_study([tmp_path], resamples=10).notes
    assert any("weights files with different content" in note for note in notes)


def test_pretraining_that_starts_from_a_file_is_named_so(tmp_path):
    write_runs(tmp_path, [FakeMethod((*RESNET, "init=ssl", FILE))], [1.0])
    assert labels(tmp_path) == ["resnet18, pre-trained from lite.safetensors"]
