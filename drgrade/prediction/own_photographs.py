"""Photographs of a run, read from the folders that its config names.

A run may come from somebody else, and its config names folders to read and write. Its photographs are
therefore read only if the user states that the run is their own (``own_run=true``).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from drgrade.artefacts import leaves, select, shortened
from drgrade.config import ROLES, further_sources
from drgrade.data.photographs import Photographs
from drgrade.data.sources.base import make_source
from drgrade.data.splits.spec import SplitSpec
from drgrade.errors import ConfigError, DataError
from drgrade.prediction.checkpoint import read_preparation
from drgrade.prediction.published_folder import is_published
from drgrade.runs.run_dir import CONFIG

OWN_RUN = (
    "its photographs are in folders that its config.yaml names; if the run is your own, add own_run=true"
)
"""Part of messages: how to use the photographs of a run."""

_SWITCHES = ("find_duplicates", "strict", "download")


def run_photographs(
    cfg: DictConfig,
    record: Mapping[str, Any],
    folder: Path,
    stores: Path | str | None = None,
    download: bool = False,
) -> Photographs:
    """Return the photographs of a run with its split; the user has stated that the run is their own.

    Args:
        cfg: Config of the run; it is not changed.
        record: Content of its ``metrics.json``.
        folder: Run folder.
        stores: Folder of the prepared photographs; None for that of the run.
        download: Download the data set if it is missing.

    Raises:
        DataError: If the config names no data set of drgrade, or photographs or split are not those of the
            run.
    """
    if is_published(folder):
        raise DataError(f"{folder} is a published model, which does not include its photographs and split")
    try:
        photographs = _photographs(cfg, stores, download)
    except DataError as error:
        raise DataError(f"{folder / CONFIG}: {error}") from error
    for name, now in (("data_hash", photographs.sha256), ("split_hash", photographs.split_hash)):
        if now != record.get(name):
            raise DataError(
                f"{name} is {now[:12]}, but the run has {str(record.get(name))[:12]}: the photographs, their "
                f"grades or their split are not those of {folder}"
            )
    return photographs


def stores_of(cfg: DictConfig) -> Path:
    """Return the folder of the prepared photographs that a run names; raise DataError without one."""
    folder = select(cfg, "photographs.folder")
    if not isinstance(folder, str) or "\0" in folder:
        raise DataError(f"photographs.folder={shortened(folder)} is not a folder")
    return Path(folder)


def _photographs(cfg: DictConfig, stores: Path | str | None, download: bool) -> Photographs:
    settings: Any = OmegaConf.to_container(cfg)
    preparation = read_preparation(settings)
    node, data = settings["photographs"], settings.get("data")
    for role in ROLES:
        for name, value in leaves(data.get(role) if isinstance(data, dict) else None):
            if name.count(".") > 1 or "_target_" in name:
                raise DataError(f"data.{role}.{name}={shortened(value)} is not allowed")
    switches = {name: node.get(name, False) for name in _SWITCHES}
    if not all(isinstance(value, bool) for value in switches.values()):
        raise DataError(f"its photographs have {shortened(switches)}, which are not all true or false")
    try:
        further: Any = further_sources(cfg)
        spec = SplitSpec(**{name: value for name, value in node["split"].items() if name != "_target_"})
        return Photographs(
            make_source(node.get("source")),
            spec,
            stores_of(cfg) if stores is None else stores,
            preparation.image_size,
            illumination=preparation.illumination,
            max_pixels=node["max_pixels"],
            workers=node.get("workers"),
            find_duplicates=switches["find_duplicates"],
            strict=switches["strict"],
            download=download or switches["download"],
            **further,
        )
    except (TypeError, ValueError, LookupError, AttributeError) as error:
        raise DataError(f"its photographs have settings that are not allowed: {error!r}") from error
    except ConfigError as error:
        raise DataError(str(error)) from error
