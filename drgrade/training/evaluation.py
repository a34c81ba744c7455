"""Testing a run again from what it left in its folder."""

import json
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from drgrade.errors import ConfigError, DataError
from drgrade.training.artefacts import write_config, write_metrics
from drgrade.training.calibrating import read_calibration
from drgrade.training.folder import CONFIG, METRICS
from drgrade.training.processes import is_main_process
from drgrade.training.quiet import quieten
from drgrade.training.run import test, validate
from drgrade.training.setup import grading_task, make, make_photographs, make_trainer, weights_files


def evaluate(cfg: DictConfig) -> dict[str, Any]:
    """Test the checkpoint that a run has chosen, on the run's own validation and test photographs.

    Args:
        cfg: The composed config (``conf/evaluate.yaml``).

    Returns:
        What its ``metrics.json`` holds.

    Raises:
        ConfigError: If the folder holds no finished grading run.
        DataError: If the photographs, or their split, are not those of the run any more.
    """
    quieten()
    run, record = read_run(Path(cfg.checkpoint))
    run.init = "random"  # the checkpoint replaces every weight
    for setting in weights_files(run.encoder):  # nor are files needed that they came from
        OmegaConf.update(run.encoder, setting, None)
    if cfg.paths.stores is not None:
        run.photographs.folder = cfg.paths.stores
    photographs = make_photographs(run)
    for name, found in (("data_hash", photographs.sha256), ("split_hash", photographs.split_hash)):
        if found != record[name]:
            raise DataError(
                f"{name} is {found[:12]}, the run had {record[name][:12]}: not the photographs that "
                f"{cfg.checkpoint} was split on"
            )
    task = grading_task(run, make(run.encoder))
    folder = Path(cfg.paths.run)
    trainer, _ = make_trainer(cfg, folder)
    data = make(run.grading.datamodule, photographs=photographs)
    checkpoint = Path(cfg.checkpoint) / "checkpoints" / record["checkpoint"]
    calibration = read_calibration(Path(cfg.checkpoint))
    validated = validate(trainer, task, data, checkpoint)
    tested = test(trainer, task, data, checkpoint, folder, calibration)
    metrics = {**record, **validated, **tested, "evaluated": str(cfg.checkpoint)}
    if is_main_process():
        write_config(folder, run)
        write_metrics(folder, metrics)
    return metrics


def read_run(folder: Path) -> tuple[DictConfig, dict[str, Any]]:
    """Read a grading run's config and metrics.

    Args:
        folder: The run's folder.

    Returns:
        The config, and what ``metrics.json`` holds.

    Raises:
        ConfigError: If there is no finished grading run.
    """
    if not (folder / CONFIG).is_file() or not (folder / METRICS).is_file():
        raise ConfigError(f"checkpoint={folder} is not a run's folder (no {CONFIG} or {METRICS} in it)")
    record: dict[str, Any] = json.loads((folder / METRICS).read_text(encoding="utf-8"))
    if record["status"] == "finished" and "val/qwk" in record and "test/qwk" not in record:
        raise ConfigError(
            f"checkpoint={folder} was run with test=false, as the trials of a search are: its test "
            "photographs stay unseen; run its settings with test=true"
        )
    if record["status"] != "finished" or "test/qwk" not in record:
        raise ConfigError(f"checkpoint={folder} is not a finished grading run (status: {record['status']})")
    cfg = OmegaConf.load(folder / CONFIG)
    assert isinstance(cfg, DictConfig)
    return cfg, record
