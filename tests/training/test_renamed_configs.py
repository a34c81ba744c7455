"""Runs and encoders made under earlier class names are loaded, resumed and found by key."""

import json
import shutil
from pathlib import Path

import hydra
import numpy as np
import pandas as pd
import pytest

from drgrade.config import CONF
from drgrade.prediction.grader import Grader
from drgrade.training.run import train

BEFORE = Path(__file__).parents[1] / "fixtures" / "before_redesign"
(ENCODER,) = (BEFORE / "encoders").iterdir()
PROBABILITIES = [f"p{grade}" for grade in range(5)]

# Settings of the old runs; unlike tests/tiny_run.py, they must not change.
OVERRIDES = (
    "+experiment=rotation_100pct",
    "data.count=60",
    "data.size=64",
    "data.image_size=32",
    "data.workers=1",
    "scale.batch_size=8",
    "scale.densenet.growth_rate=4",
    "scale.densenet.block_config=[1,1,1,1]",
    "scale.head_width=8",
    "scale.pretext_head=[8]",
    "scale.pretext_epochs=1",
    "scale.pretext_steps=2",
    "scale.published_epochs=2",
    "protocol.val_fraction=0.25",
    "protocol.frozen_epochs=1",
    "logger=none",
    "trainer=cpu",
)


@pytest.fixture
def compose(shared, tmp_path):
    shutil.copytree(BEFORE, tmp_path, dirs_exist_ok=True)

    def make(*overrides):
        given = [
            *OVERRIDES,
            *shared,
            f"paths.outputs={tmp_path}",
            f"paths.run={tmp_path / 'new'}",
            *overrides,
        ]
        with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
            return hydra.compose("train", given)

    return make


@pytest.fixture
def photographs(make_photographs):
    """Photographs of the old run; drawings differ by single pixels between some processors."""
    drawn = make_photographs(val_fraction=0.25)
    if drawn.sha256 != json.loads((BEFORE / "grading" / "metrics.json").read_text())["data_hash"]:
        pytest.skip("the demo photographs are drawn differently on this processor")
    return drawn


def assert_same_predictions(found, recorded):
    pd.testing.assert_frame_equal(found[["image_id", "grade"]], recorded[["image_id", "grade"]])
    np.testing.assert_allclose(found[PROBABILITIES], recorded[PROBABILITIES], atol=2e-3)


def test_old_run_gives_the_same_grades(photographs):
    recorded = pd.read_csv(BEFORE / "grading" / "predictions.csv")
    (store,) = photographs.stores
    rows = store.manifest.reset_index().set_index("image_id").loc[recorded["image_id"], "index"]
    graded = Grader.load([BEFORE / "grading"], device="cpu").grade(np.array(store.images[rows.to_numpy()]))
    found = pd.DataFrame(graded.raw.numpy(), columns=PROBABILITIES)
    assert_same_predictions(found.assign(**recorded[["image_id", "grade"]]), recorded)


def test_old_run_is_resumed(photographs, compose, tmp_path):
    metrics = train(compose("trainer.max_epochs=2", f"resume={tmp_path / 'grading'}"))
    recorded = pd.read_csv(BEFORE / "resumed_predictions.csv")
    assert metrics["status"] == "finished"
    assert_same_predictions(pd.read_csv(tmp_path / "grading" / "predictions.csv"), recorded)


def test_old_encoder_is_found_by_its_key(photographs, compose, tmp_path):
    metrics = train(compose("trainer.max_epochs=1"))
    old = json.loads((BEFORE / "grading" / "metrics.json").read_text())
    assert [path.name for path in (tmp_path / "encoders").iterdir() if path.is_dir()] == [ENCODER.name]
    assert metrics["encoder_hash"] == old["encoder_hash"]
    assert_same_predictions(
        pd.read_csv(tmp_path / "new" / "predictions.csv"), pd.read_csv(BEFORE / "grading" / "predictions.csv")
    )


def test_old_encoder_is_loaded_by_its_path(photographs, compose, tmp_path):
    metrics = train(compose("trainer.max_epochs=1", f"init={tmp_path / 'encoders' / ENCODER.name}"))
    assert metrics["encoder_hash"] == json.loads((ENCODER / "encoder.json").read_text())["sha256"]
