"""The demo as a user runs it. Minutes, so only with `make test-slow`."""

import json

import hydra
import pytest

from drgrade.config import CONF
from drgrade.training.run import train


@pytest.mark.slow
@pytest.mark.parametrize("experiment", ["msssl_10pct", "rotation_10pct"])
def test_demo_with_all_labels_reaches_a_high_qwk(experiment, tmp_path):
    settings = ["label_fraction=1.0", "logger=none", f"paths.outputs={tmp_path}"]
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = hydra.compose("train", [f"+experiment={experiment}", *settings, f"paths.run={tmp_path}/run"])
    train(cfg)
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["test/qwk"] >= 0.7


@pytest.mark.slow
def test_compiled_encoder_keeps_checkpoint_names(compose, tmp_path):
    import torch

    train(compose("compile=true", "trainer.max_steps=2"))
    state = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert not any("_orig_mod" in name for name in state)
