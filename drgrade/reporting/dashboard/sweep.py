"""Facts about a sweep that a dashboard shows."""

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf

from drgrade.errors import DataError
from drgrade.runs.run_dir import CONFIG, PROVENANCE
from drgrade.sweeps.cells import FINISHED, SWEEP, Cell, progress, read_sweep

_DEFAULT_PROJECT = "drgrade"
_OFFLINE = "wandb/offline-run-*"


@dataclass(frozen=True)
class DashboardSweep:
    """A sweep in W&B.

    Attributes:
        name: W&B group of its runs.
        entity: User or team; None for the default.
        project: W&B project of its runs.
        cells: Number of cells.
        finished: Number of finished cells.
        worst: The runs log their worst photographs.
        offline: Shell patterns of the folders of offline W&B runs, including pre-training.
    """

    name: str
    entity: str | None
    project: str
    cells: int
    finished: int
    worst: bool
    offline: tuple[str, ...]


def read_dashboard_sweep(
    folder: Path, entity: str | None = None, project: str | None = None
) -> DashboardSweep:
    """Read the folder of a sweep.

    Args:
        folder: Folder with ``sweep.json`` and a folder for each cell.
        entity: Overrides the entity of the cells.
        project: Overrides the project of the cells.

    Raises:
        DataError: If the folder is not that of a sweep, or no cell logged to W&B.
    """
    if not (folder / SWEEP).is_file():
        raise DataError(f"{folder} is not the folder of a sweep: it has no {SWEEP}")
    cells = read_sweep(folder)
    loggers = [found for cell in cells if (found := _logger(folder / cell.name)) is not None]
    if not loggers:
        raise DataError(
            f"{folder}: none of its {len(cells)} cells logged to W&B; run the sweep with logger=wandb"
        )
    projects = {(logger["entity"], logger["project"]) for logger in loggers}
    if len(projects) > 1 and project is None:
        listed = ", ".join(f"{named or ''}/{where}" for named, where in sorted(projects, key=str))
        raise DataError(
            f"{folder}: its cells are in several W&B projects ({listed}): select one with project="
        )
    return DashboardSweep(
        name=str(json.loads((folder / SWEEP).read_text(encoding="utf-8")).get("name", folder.name)),
        entity=entity or loggers[0]["entity"],
        project=project or loggers[0]["project"] or _DEFAULT_PROJECT,
        cells=len(cells),
        finished=sum(progress(folder / cell.name).status == FINISHED for cell in cells),
        worst=any(logger.get("worst_photographs") for logger in loggers),
        offline=_offline(folder, cells),
    )


def _offline(folder: Path, cells: Sequence[Cell]) -> tuple[str, ...]:
    patterns = [f"{shlex.quote(str(folder))}/*/{_OFFLINE}"] if any(folder.glob(f"*/{_OFFLINE}")) else []
    found = {encoder for cell in cells if (encoder := _encoder(folder / cell.name)) is not None}
    offline = [encoder for encoder in sorted(found) if any(encoder.glob(_OFFLINE))]
    return (*patterns, *(f"{shlex.quote(str(encoder))}/{_OFFLINE}" for encoder in offline))


def _encoder(cell: Path) -> Path | None:
    """Return the encoder folder of a finished cell."""
    path = cell / PROVENANCE
    if not path.is_file():
        return None
    try:
        named = json.loads(path.read_text(encoding="utf-8")).get("encoder")
    except (ValueError, AttributeError) as error:
        raise DataError(f"{path} cannot be read ({error}); remove it and run the sweep again") from error
    return Path(named) if named else None


def _logger(cell: Path) -> dict[str, Any] | None:
    """Return the settings of the W&B logger of a cell; None for other loggers or if it has not started."""
    if not (cell / CONFIG).is_file():
        return None
    cfg = OmegaConf.load(cell / CONFIG)
    assert isinstance(cfg, DictConfig)
    logger = cast(dict[str, Any], OmegaConf.to_container(cfg.logger))
    known = str(logger.get("_target_", "")).endswith(".wandb_logger")
    return {"entity": None, "project": None, **logger} if known else None
