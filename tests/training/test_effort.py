"""Cost of pre-training and fine-tuning: optimiser steps, photographs and images are counted."""

import json
import subprocess

import pytest
from pytorch_lightning.callbacks import Callback

import drgrade.training.pretraining as pretraining_module
from drgrade.training.run import train

SETTINGS = ("+experiment=rotation_pretrain", "pretext.max_steps=13", "pretext.epochs=-1")
BATCH = 8
"""Batch size of the tiny runs."""


class StopAfter(Callback):
    def __init__(self, epoch):
        self.epoch = epoch

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == self.epoch:
            raise RuntimeError("power cut")


def card(folder):
    return json.loads((folder / "encoder.json").read_text())


def test_interrupted_pretraining_counts_all_images(compose, tmp_path, train_with):
    train(compose(*SETTINGS, run="whole"))
    with pytest.raises(RuntimeError, match="power cut"):
        train_with(StopAfter(1), compose(*SETTINGS, "resume=auto"), pretraining_module)
    assert not (tmp_path / "run" / "encoder.json").exists()
    train(compose(*SETTINGS, "resume=auto"))
    for name in ("whole", "run"):
        found = card(tmp_path / name)
        assert found["steps"] == 13
        assert found["images"] == 13 * BATCH
        assert found["encoder_inputs"] == 4
        provenance = json.loads((tmp_path / name / "provenance.json").read_text())
        assert (provenance["steps"], provenance["images"]) == (13, 13 * BATCH)


@pytest.mark.slow
def test_two_processes_count_images_together(command, tmp_path):
    given = command(*SETTINGS, "trainer=ddp_cpu", f"paths.run={tmp_path / 'run'}", "pretext.max_steps=3")
    done = subprocess.run(given, capture_output=True, text=True, cwd=tmp_path, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (card(tmp_path / "run")["steps"], card(tmp_path / "run")["images"]) == (3, 3 * BATCH)


def test_fine_tuning_records_its_steps(compose, tmp_path):
    train(compose("init=random", "protocol=matched", "label_fraction=0.5"))
    provenance = json.loads((tmp_path / "run" / "provenance.json").read_text())
    assert provenance["steps"] == 2 * 2
    assert provenance["images"] == 2 * 2 * BATCH
