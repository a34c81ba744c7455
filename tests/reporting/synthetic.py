"""Synthetic run folders: predictions of a given accuracy, without training and photographs."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import pandas as pd
import torch
import yaml
from omegaconf import DictConfig, OmegaConf

from drgrade.config import CONF
from drgrade.data.splits.split import split_hash
from drgrade.files import write_text
from drgrade.metrics.distributed import Predictions
from drgrade.metrics.functional import grading_metrics
from drgrade.models.calibration import fit_calibration
from drgrade.runs.run_dir import write_metrics, write_predictions, write_split

DATA_HASH = "d" * 64
COMMIT = "c" * 40
SHARES = (0.45, 0.1, 0.25, 0.1, 0.1)


@dataclass(frozen=True)
class FakeMethod:
    """A method of a synthetic study.

    Attributes:
        overrides: Overrides of the config, such as ``("init=ssl",)``.
        skill: Share of correctly graded photographs with all labels; it decreases with fewer labels.
        encoder: Folder of the pre-trained encoder in ``provenance.json``; ``{fold}`` is the fold.
        saw_test: ``pretraining_saw_test`` in ``metrics.json``.
    """

    overrides: tuple[str, ...] = ("init=random",)
    skill: float = 0.6
    encoder: str | None = None
    saw_test: bool | None = False


ROTATION = FakeMethod(("method=rotation", "init=ssl"), skill=0.8, saw_test=True)
RANDOM = FakeMethod(("method=rotation", "init=random"), skill=0.5)


def write_runs(
    folder: Path,
    methods: Sequence[FakeMethod] = (ROTATION, RANDOM),
    fractions: Sequence[float] = (0.1, 1.0),
    folds: Sequence[int | str] = (0, 1, 2),
    seeds: Sequence[int] = (0,),
    photographs: int = 90,
    split_seed: int = 0,
    label_seeds: Sequence[int] = (0,),
    data_hash: str = DATA_HASH,
    sweep: str | None = "study",
) -> list[Path]:
    """Write the folder of a finished sweep.

    Args:
        folder: Target of ``sweep.json`` and a folder for each cell.
        methods: Methods of the sweep.
        fractions: Label fractions.
        folds: Test folds; ``("published",)`` for a published test set (the first third of the photographs).
        seeds: Training seeds.
        photographs: Number of photographs in all folds together, in groups of one or two.
        split_seed: ``split.seed``, which determines the folds.
        label_seeds: ``split.label_seed``, which determines the drawn labels.
        data_hash: ``data_hash`` in ``metrics.json``.
        sweep: Name of the sweep; None for single runs without ``sweep.json``.

    Returns:
        The folders of the runs, in the order of ``sweep.json``.
    """
    table = _photographs(photographs, max(3, len(folds)), split_seed)
    cells: dict[str, list[str]] = {}
    runs = []
    for method in methods:
        for fraction in fractions:
            for fold in folds:
                for seed, draw in product(seeds, label_seeds):
                    axes = [f"label_fraction={fraction}", f"fold={fold}", f"seed={seed}"]
                    axes += [f"split.label_seed={draw}"] if draw else []
                    overrides = [*method.overrides, *axes]
                    name = "_".join(overrides).replace("=", "-").replace("/", "-")
                    cells[name] = overrides
                    of_cell = (method.overrides, fraction, fold, len(folds), seed, split_seed, draw)
                    text = _config_text(*of_cell).replace("run: unset", f"run: {folder / name}")
                    write_text(folder / name / "config.yaml", text.replace("sweep: null", f"sweep: {sweep}"))
                    _write_run(folder / name, _config(*of_cell), method, table, data_hash)
                    runs.append(folder / name)
    if sweep is not None:
        listed = [{"name": name, "overrides": overrides} for name, overrides in cells.items()]
        record = {"name": sweep, "command": ["train.py", "-m", "+experiment=study"], "cells": listed}
        write_text(folder / "sweep.json", json.dumps(record))
    return runs


def fail_run(run: Path, error: str = "RuntimeError: out of memory", status: str = "failed") -> None:
    """Turn a finished run into a failed or interrupted one."""
    for name in ("predictions.csv", "confusion.csv", "provenance.json"):
        (run / name).unlink()
    reason = {"error": error} if status == "failed" else {}
    write_metrics(run, {"status": status, **reason})


def stop_run(run: Path) -> None:
    """Turn a finished run into one without a result."""
    for name in ("predictions.csv", "confusion.csv", "provenance.json", "metrics.json"):
        (run / name).unlink()


def remove_run(run: Path) -> None:
    """Turn a finished run into one that has not started."""
    shutil.rmtree(run)


def change_json(path: Path, **changes: Any) -> None:
    """Change entries of a JSON file; None adds null."""
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, **changes}, indent=2))


def change_config(run: Path, **changes: Any) -> None:
    """Change entries of ``config.yaml``; ``a__b=1`` is ``a.b``."""
    config = yaml.safe_load((run / "config.yaml").read_text())
    for name, value in changes.items():
        *parents, last = name.split("__")
        node = config
        for parent in parents:
            node = node[parent]
        node[last] = value
    (run / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))


def _photographs(count: int, folds: int, seed: int) -> pd.DataFrame:
    """Make photographs in groups of one or two; with enough photographs, each fold has all grades."""
    rng = np.random.default_rng([seed, 1])
    sizes = np.random.default_rng(0).integers(1, 3, size=count)
    group = np.repeat(np.arange(count), sizes)[:count]
    fold_of_group = rng.permutation(np.arange(count) % folds)
    grades = np.random.default_rng(2).choice(5, size=count, p=SHARES)
    return pd.DataFrame(
        {
            # Readers must keep identifiers of digits as text.
            "image_id": [f"{row:04d}" for row in range(count)],
            "group": [f"patient:p{number:03d}" for number in group],
            "grade": grades,
            "fold": fold_of_group[group],
            "order": rng.random(count)[group],
        }
    )


def _write_run(run: Path, cfg: DictConfig, method: FakeMethod, table: pd.DataFrame, data_hash: str) -> None:
    split = _split(table, cfg)
    tested = np.flatnonzero(split["subset"] == "test")
    predictions = _predictions(table, tested, method.skill * cfg.label_fraction**0.2, cfg)
    parts = (predictions.probabilities, predictions.predicted, predictions.grades)
    hashes = {"data_hash": data_hash, "split_hash": split_hash(split)}
    metrics = {f"test/{name}": value for name, value in grading_metrics(*parts).items()}
    facts = {name: cfg[name] for name in ("label_fraction", "fold", "folds", "seed", "init")}
    facts["label_seed"] = cfg.split.label_seed
    facts |= {"protocol": cfg.protocol.name, "data": cfg.data.name, "pretraining_saw_test": method.saw_test}
    write_split(run, split)
    write_predictions(run, predictions, table["image_id"])
    write_metrics(run, {**metrics, **facts, **hashes, "checkpoint": "last.ckpt", "status": "finished"})
    trained = 0 if cfg.protocol.get("probe") else _steps(cfg, int((split["subset"] == "train").sum()))
    provenance = {
        "command": ["train.py", *method.overrides],
        "versions": {"python": "3.11.7", "drgrade": "0.1.0", "torch": "2.15.0"},
        "commit": COMMIT,
        "machine": {"processor": "x86_64", "cores": 2, "threads": 1, "gpu": None},
        "seconds": 60.0 + cfg.seed,
        "images": 32 * trained,
        "steps": trained,
        "devices": 1,
        "images_per_second": 100.0,
        "peak_memory": 10**9 + cfg.seed,
        "encoder": method.encoder and method.encoder.format(fold=cfg.fold),
    }
    write_text(run / "provenance.json", json.dumps(provenance, indent=2) + "\n")


def _steps(cfg: DictConfig, photographs: int) -> int:
    return int(cfg.protocol.epochs) * int(cfg.protocol.steps_per_epoch or -(-photographs // 32))


def write_encoder(folder: Path, steps: int, encoder_inputs: float, seconds: float = 100.0) -> None:
    """Write the card and provenance of an encoder, without weights."""
    images = 32 * steps
    card = {"steps": steps, "images": images, "encoder_inputs": encoder_inputs}
    cost = {"seconds": seconds, "images": images, "peak_memory": 10**9, "devices": 1}
    write_text(folder / "encoder.json", json.dumps(card))
    write_text(folder / "provenance.json", json.dumps(cost))


def _split(table: pd.DataFrame, cfg: DictConfig) -> pd.DataFrame:
    fold = 0 if cfg.fold == "published" else cfg.fold
    val = cfg.protocol.val_fraction
    # An order of the training side, without the prefix of validation, for each label seed.
    turn = 0.618 * cfg.split.label_seed * (1 - val)
    order = np.where(table["order"] < val, 0, val + (table["order"] - val + turn) % (1 - val))
    subset = np.where(order < val + (1 - val) * cfg.label_fraction, "train", "unlabelled")
    subset = np.where(table["order"] < val, "val", subset)
    return table.assign(subset=np.where(table["fold"] == fold, "test", subset))


def _predictions(table: pd.DataFrame, tested: np.ndarray, skill: float, cfg: DictConfig) -> Predictions:
    fold = 99 if cfg.fold == "published" else cfg.fold
    entropy = [cfg.seed, fold, int(1000 * cfg.label_fraction), int(1e6 * skill)]
    rng = np.random.default_rng([*entropy, *([cfg.split.label_seed] if cfg.split.label_seed else [])])
    grades = table["grade"].to_numpy()[tested]
    predicted = np.where(rng.random(len(tested)) < skill, grades, rng.choice(5, size=len(tested)))
    weights = rng.random((len(tested), 5)) + 2 * np.eye(5)[predicted]
    probabilities = weights / weights.sum(axis=1, keepdims=True)
    return Predictions(
        torch.from_numpy(tested),
        torch.from_numpy(probabilities).float(),
        torch.from_numpy(predicted),
        torch.from_numpy(grades),
    )


@cache
def _composed(overrides: tuple[str, ...]) -> DictConfig:
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        return hydra.compose("train", [*overrides, "logger=none", "trainer=cpu", "paths.run=unset"])


@cache
def _config(
    overrides: tuple[str, ...],
    fraction: float,
    fold: int | str,
    folds: int,
    seed: int,
    split_seed: int,
    label_seed: int,
) -> DictConfig:
    """Return the resolved config; cached because composing is slow."""
    cfg = _composed(overrides).copy()
    cfg.label_fraction, cfg.fold, cfg.folds, cfg.seed = fraction, fold, max(2, folds), seed
    cfg.split.seed, cfg.split.label_seed = split_seed, label_seed
    OmegaConf.resolve(cfg)
    return cfg


@cache
def _config_text(*args: Any) -> str:
    return OmegaConf.to_yaml(_config(*args))


def calibrate_run(run: Path, seed: int = 0, count: int = 60) -> None:
    """Write the calibration of an overconfident grader, fitted on random predictions."""
    rng = np.random.default_rng(seed)
    grades = rng.choice(5, size=count, p=SHARES)
    distance = np.abs(np.arange(5) - (grades + rng.normal(0, 1, count))[:, None])
    probabilities = torch.softmax(torch.from_numpy(-4 * distance), dim=1)
    calibration = fit_calibration(probabilities, torch.from_numpy(grades))
    write_text(run / "calibration.json", calibration.to_json())
