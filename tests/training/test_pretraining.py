"""init=ssl finds a matching encoder, or pre-trains it once."""

import json
import os
import subprocess
import sys

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from drgrade.errors import ConfigError, DrgradeError, EncoderError
from drgrade.training.build import make_photographs
from drgrade.training.pretraining import encoder_dir, pretext_config
from drgrade.training.run import train

DENSENET = ("+experiment=rotation_50pct",)


def folder_of(cfg):
    photographs = make_photographs(cfg)
    return encoder_dir(pretext_config(cfg, photographs), photographs).name


def test_grading_run_pretrains_once_and_later_runs_reuse_it(compose, tmp_path, caplog):
    caplog.set_level("INFO")
    train(compose(*DENSENET, run="first"))
    assert "not found for these settings" in caplog.text
    caplog.clear()
    train(compose(*DENSENET, "label_fraction=0.25", run="second"))
    assert "encoder: found" in caplog.text
    (folder,) = [path for path in (tmp_path / "encoders").iterdir() if path.is_dir()]
    record = json.loads((tmp_path / "second" / "metrics.json").read_text())
    assert record["encoder_hash"] == json.loads((folder / "encoder.json").read_text())["sha256"]


def test_grading_run_finds_and_starts_from_the_pretrained_weights(compose, tmp_path, caplog):
    caplog.set_level("INFO")
    train(compose("+experiment=rotation_pretrain", run="pretraining"))
    pretrained = load_file(tmp_path / "pretraining" / "encoder.safetensors")
    # One frozen epoch leaves them as they were, whether they are found or given by their path.
    for init in ("ssl", str(tmp_path / "pretraining"), str(tmp_path / "pretraining" / "encoder.safetensors")):
        train(compose(*DENSENET, f"init={init}", "protocol.frozen_epochs=1", "trainer.max_epochs=1"))
        state = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        assert all(torch.equal(state[f"encoder.{name}"], value) for name, value in pretrained.items())
    assert "not found for these settings" not in caplog.text


def test_encoder_is_shared_only_with_equal_pretext_settings(compose):
    shared = ("label_fraction=0.05", "head=softmax", "trainer.max_epochs=7", "optimizer.lr=1")
    own = (
        "data.image_size=64",
        "pretext.epochs=2",
        "pretext.optimizer.lr=1",
        "pretext.views.mask_radius=0.8",
        "scale.densenet.growth_rate=8",
        "seed=1",
        "data.count=50",
        "trainer.gradient_clip_val=1",
        "trainer=ddp_cpu",  # every process normalises its own part of a batch
    )
    plain = folder_of(compose(*DENSENET))
    same = {override: folder_of(compose(*DENSENET, override)) == plain for override in (*shared, *own)}
    assert same == dict.fromkeys(shared, True) | dict.fromkeys(own, False)


def test_pretrain_on_decides_whether_folds_share_an_encoder(compose):
    for seen, same in (("all", True), ("train", False)):
        folds = {folder_of(compose(*DENSENET, f"pretrain_on={seen}", f"fold={fold}")) for fold in range(2)}
        assert (len(folds) == 1) == same


def test_pretraining_photographs_are_recorded(compose, tmp_path):
    for seen, saw in (("all", True), ("train", False)):
        metrics = train(compose(*DENSENET, f"pretrain_on={seen}", run=seen))
        assert metrics["pretraining_saw_test"] is saw
        split = pd.read_csv(tmp_path / seen / "split.csv", index_col="image_id")["subset"]
        (folder,) = [
            path.parent
            for path in (tmp_path / "encoders").glob("*/encoder.json")
            if json.loads(path.read_text())["pretrain_on"] == seen
        ]
        pretext = pd.read_csv(folder / "split.csv", index_col="image_id")["subset"]
        learnt = pretext.index[pretext != "test"]
        assert set(split[learnt]) == (
            {"train", "unlabelled", "val", "test"} if saw else {"train", "unlabelled", "val"}
        )
    assert train(compose(*DENSENET, "init=random", run="random"))["pretraining_saw_test"] is False


def test_encoder_of_another_size_is_refused(finished_run, compose):
    pretraining = finished_run("+experiment=rotation_pretrain")
    with pytest.raises(EncoderError, match="of another shape"):
        train(compose(*DENSENET, f"init={pretraining}", "scale.densenet.growth_rate=8"))


def test_encoder_card_describes_its_pretraining(finished_run):
    pretraining = finished_run("+experiment=rotation_pretrain")
    card = json.loads((pretraining / "encoder.json").read_text())
    assert card["image_size"] == 32
    assert card["data"] == "demo"
    assert card["pretext"]["head"]["_target_"] == "drgrade.pretext.rotation.Rotation"
    assert card["steps"] > 0
    metrics = json.loads((pretraining / "metrics.json").read_text())
    assert {"train/accuracy", "val/accuracy", "val/confusion_0_180", "val/confusion_90_270"} <= metrics.keys()
    assert metrics["status"] == "finished"


@pytest.mark.parametrize("length", [["pretext.epochs=2"], ["pretext.epochs=-1", "pretext.max_steps=11"]])
def test_interrupted_pretraining_is_resumed(length, compose, tmp_path, train_with):
    from pytorch_lightning import Callback

    from drgrade.training import pretraining

    class PowerCut(Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            if trainer.current_epoch == 1:
                raise RuntimeError("power cut")

    settings = (*DENSENET, *length)
    train(compose(*settings, f"paths.encoders={tmp_path / 'straight'}", run="straight_run"))
    with pytest.raises(RuntimeError, match="power cut"):
        train_with(PowerCut(), compose(*settings, run="broken"), pretraining)
    train(compose(*settings))
    (straight,) = (tmp_path / "straight").glob("*/encoder.safetensors")
    (resumed,) = (tmp_path / "encoders").glob("*/encoder.safetensors")
    before, after = load_file(straight), load_file(resumed)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_concurrent_runs_pretrain_once_and_import_no_unused_logger(command, tmp_path):
    heavy = ("wandb", "sklearn", "tensorboard", "mlflow", "wandb_workspaces")
    code = (
        "import runpy, sys\n"
        "sys.argv = sys.argv[1:]\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
        f"print('LOADED', *(name for name in {heavy} if name in sys.modules))\n"
    )
    settings = (*DENSENET, "trainer.max_steps=1", "logger=csv", "augment=none")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", code, *command(*settings, f"label_fraction={fraction}")[1:]],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=tmp_path,
            env=environment,
        )
        for fraction in (0.5, 1.0)
    ]
    outputs = [run.communicate(timeout=300)[0] for run in runs]
    assert [run.returncode for run in runs] == [0, 0], outputs
    assert sum("not found for these settings" in output for output in outputs) == 1
    assert sum("encoder: found" in output for output in outputs) == 1
    assert all("\nLOADED\n" in output for output in outputs), outputs


def test_encoder_key_depends_on_first_weights(compose):
    keys = []
    for init in ("random", "imagenet"):
        cfg = compose("+experiment=rotation_pretrain", f"init={init}")
        keys.append(encoder_dir(cfg, make_photographs(cfg)).name)
    assert keys[0] != keys[1]


@pytest.mark.parametrize("init", ["ssl", "some/folder"])
def test_pretraining_refuses_other_values_of_init(init, compose):
    with pytest.raises(ConfigError, match="init=random or init=imagenet"):
        train(compose("+experiment=rotation_pretrain", f"init={init}"))


def test_diverged_pretraining_is_refused_every_time(compose, tmp_path):
    for attempt in range(2):
        with pytest.raises(DrgradeError, match="diverged"):
            train(compose(*DENSENET, "pretext.optimizer.lr=1e30", run=f"try{attempt}"))
    assert not list((tmp_path / "encoders").glob("*/encoder.json"))


def test_encoder_that_saw_test_photographs_is_refused(compose, tmp_path):
    train(compose("+experiment=rotation_pretrain", "pretrain_on=all", run="pretraining"))
    init = f"init={tmp_path / 'pretraining'}"
    with pytest.raises(ConfigError, match="has seen photographs that this run tests on"):
        train(compose(*DENSENET, init, "pretrain_on=train"))
    assert train(compose(*DENSENET, init, "pretrain_on=all"))["pretraining_saw_test"] is True
