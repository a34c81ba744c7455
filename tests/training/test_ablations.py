"""Ablation experiments differ from msssl_10pct only in the part that they remove."""

import hydra
import pytest
from omegaconf import OmegaConf

from drgrade.config import CONF, initialized_hydra
from drgrade.runs.settings import changed_settings

PARTS = ("vit", "fpn", "deep_learner", "cbam")
COMBINATIONS = ("rotation_simclr", "rotation_inpainting")


@pytest.mark.parametrize("part", PARTS)
def test_ablation_removes_exactly_one_part(part, compose):
    full, without = compose("+experiment=msssl_10pct"), compose(f"+experiment=msssl_without_{part}")
    assert changed_settings(full, without) == [f"encoder.use_{part} was True and is False"]
    assert without.method == f"msssl_without_{part}" != full.method


@pytest.mark.parametrize("combination", COMBINATIONS)
def test_combination_experiment_changes_only_the_pretext(combination, compose):
    full, combined = compose("+experiment=msssl_10pct"), compose(f"+experiment=msssl_{combination}")
    changed = {setting.split(".")[0] for setting in changed_settings(full, combined)}
    assert changed == {"pretext", "pretraining"}
    assert (combined.pretext.name, combined.method) == (combination, f"msssl_{combination}")


def test_ablation_table_rows_match_the_experiments(compose):
    table = OmegaConf.load(CONF / "experiment" / "msssl_ablation_table.yaml")
    rows = table.hydra.sweeper.rows
    assert list(rows) == ["msssl", *(f"msssl_without_{part}" for part in PARTS)]
    for name, row in rows.items():
        cell = compose(
            "+experiment=msssl_ablation_table",
            "label_fraction=0.1",
            *(f"{key}={str(value).lower()}" for key, value in row.items()),
        )
        experiment = "msssl_10pct" if name == "msssl" else name
        assert changed_settings(compose(f"+experiment={experiment}"), cell) == []


def test_ablation_table_covers_all_fractions_and_folds():
    with initialized_hydra():
        cfg = hydra.compose("train", ["+experiment=msssl_ablation_table"], return_hydra_config=True)
    assert cfg.hydra.sweeper.params == {"fold": "0,1,2,3,4", "label_fraction": "0.05,0.1,0.25,0.5,1.0"}
