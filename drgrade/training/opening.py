"""What a grading run says and writes before it learns anything."""

import logging
from pathlib import Path

from omegaconf import DictConfig

from drgrade.data.photographs import Photographs
from drgrade.data.splits import SUBSETS
from drgrade.training.artefacts import check_hashes, write_config, write_hashes, write_seen, write_split
from drgrade.training.processes import is_main_process
from drgrade.training.setup import start_afresh

log = logging.getLogger(__name__)


def warn_of_idle_data(cfg: DictConfig) -> None:
    """Say so if photographs were named that nothing learns from.

    Args:
        cfg: Config with ``task: grading``.
    """
    if cfg.data.unlabelled and cfg.init != "ssl" and is_main_process():
        log.warning(
            "data.unlabelled is not learnt from: init=%s pre-trains nothing (init=ssl does)",
            cfg.init,
        )


def open_folder(cfg: DictConfig, photographs: Photographs, folder: Path, checkpoint: Path | None) -> None:
    """Tell what the run learns from and is tested on, and write that into its folder.

    Args:
        cfg: Config with ``task: grading``.
        photographs: Of the run.
        folder: The run's folder.
        checkpoint: What the run goes on from.

    Raises:
        DataError: If it goes on from a run of other photographs, or another split of them.
    """
    if not is_main_process():
        return
    log.info("photographs: %s", _counts(photographs))
    for remark in photographs.remarks:
        log.log(logging.WARNING if remark.serious else logging.INFO, "split: %s", remark.text)
    hashes = {"data_hash": photographs.sha256, "split_hash": photographs.split_hash}
    if checkpoint is not None:
        check_hashes(folder, **hashes)
    start_afresh(folder, checkpoint)
    write_split(folder, photographs.split)
    write_hashes(folder, **hashes)
    learnt = photographs.split["subset"].isin(["train", "val"]).to_numpy()
    write_seen(folder, photographs.manifest["file_sha256"][learnt])
    write_config(folder, cfg)


def _counts(photographs: Photographs) -> str:
    counts = photographs.split["subset"].value_counts()
    listed = ", ".join(f"{subset} {counts[subset]}" for subset in SUBSETS if subset in counts)
    return f"{listed} (split {photographs.split_hash[:12]})"
