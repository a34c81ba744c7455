"""Trained runs have the same files as the synthetic runs of the other tests."""

import json
from pathlib import Path

import hydra
import pytest
import yaml
from synthetic import RANDOM, write_runs

from drgrade.config import CONF
from drgrade.reporting.study import build_study
from drgrade.runs.settings import flat

TINY = (
    "data.count=60",
    "data.size=64",
    "data.image_size=32",
    "data.workers=1",
    "scale.batch_size=8",
    "scale.densenet.growth_rate=4",
    "scale.densenet.block_config=[1,1,1,1]",
    "scale.head_width=16",
    "scale.published_epochs=1",
    "logger=none",
    "trainer=cpu",
    "method=rotation",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Train two folds with random initialisation at a tiny scale."""
    from drgrade.training.run import train

    folder = tmp_path_factory.mktemp("real")
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        for fold in (0, 1):
            places = [f"paths.outputs={folder}", f"paths.run={folder}/runs/fold-{fold}"]
            train(hydra.compose("train", [*TINY, f"fold={fold}", *places]))
    return folder / "runs"


def test_report_of_trained_runs(folder):
    study = build_study([folder], resamples=50)
    (row,) = study.rows
    for fold in ("0", "1"):
        metrics = json.loads((folder / f"fold-{fold}" / "metrics.json").read_text())
        assert row.folds[fold] == pytest.approx(metrics["test/qwk"], abs=1e-12)
    assert study.methods[0].label == "rotation, random init"
    assert row.complete
    assert row.seconds > 0
    assert study.data["folds"] == "0, 1 of 5"


def test_synthetic_runs_have_the_files_of_trained_runs(folder, tmp_path):
    real, made_up = folder / "fold-0", write_runs(tmp_path, [RANDOM], [1.0])[0]
    read = {file.name for file in made_up.iterdir()}
    assert read <= {file.name for file in real.iterdir()}
    assert _config(made_up).keys() == _config(real).keys()
    for file in ("metrics.json", "provenance.json"):
        assert json.loads((made_up / file).read_text()).keys() <= json.loads((real / file).read_text()).keys()
    for file in ("predictions.csv", "split.csv", "confusion.csv"):
        assert (made_up / file).read_text().splitlines()[0] == (real / file).read_text().splitlines()[0]


def _config(run: Path) -> dict[str, object]:
    return flat(yaml.safe_load((run / "config.yaml").read_text()))
