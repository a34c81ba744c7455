"""What a dashboard has to know of a sweep; read from its folder."""

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
class Sweep:
    """A sweep, as W&B knows it.

    Attributes:
        name: The group of its runs.
        entity: User or team; None: not said.
        project: Where its runs are.
        cells: How many it is to have.
        finished: How many are finished.
        worst: Whether photographs were asked for.
        offline: Patterns of the folders of W&B's runs that were offline, those of pre-trainings included,
            as a shell reads them.
    """

    name: str
    entity: str | None
    project: str
    cells: int
    finished: int
    worst: bool
    offline: tuple[str, ...]


def read(folder: Path, entity: str | None = None, project: str | None = None) -> Sweep:
    """Read a sweep's folder.

    Args:
        folder: With ``sweep.json`` and a folder for each cell.
        entity: Wins over what the cells were run with.
        project: Wins over what the cells were run with.

    Returns:
        The sweep.

    Raises:
        DataError: If it is no sweep's folder, or none of its cells was watched by W&B.
    """
    if not (folder / SWEEP).is_file():
        raise DataError(f"{folder} is not a sweep's folder: there is no {SWEEP} in it")
    cells = read_sweep(folder)
    loggers = [found for cell in cells if (found := _logger(folder / cell.name)) is not None]
    if not loggers:
        raise DataError(
            f"{folder}: none of its {len(cells)} cells was watched by W&B; run the sweep with logger=wandb"
        )
    projects = {(logger["entity"], logger["project"]) for logger in loggers}
    if len(projects) > 1 and project is None:
        listed = ", ".join(f"{named or ''}/{where}" for named, where in sorted(projects, key=str))
        raise DataError(
            f"{folder}: its cells are in several projects of W&B ({listed}): choose one with project="
        )
    return Sweep(
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
    """Folder of the pre-training that a finished cell began with."""
    path = cell / PROVENANCE
    if not path.is_file():
        return None
    try:
        named = json.loads(path.read_text(encoding="utf-8")).get("encoder")
    except (ValueError, AttributeError) as error:
        raise DataError(
            f"{path} cannot be read ({error}); remove it and repeat the sweep's command"
        ) from error
    return Path(named) if named else None


def _logger(cell: Path) -> dict[str, Any] | None:
    """Settings of a cell's logger if that is W&B's; None if it is another one or the cell was not begun."""
    if not (cell / CONFIG).is_file():
        return None
    cfg = OmegaConf.load(cell / CONFIG)
    assert isinstance(cfg, DictConfig)
    logger = cast(dict[str, Any], OmegaConf.to_container(cfg.logger))
    known = str(logger.get("_target_", "")).endswith(".wandb_logger")
    return {"entity": None, "project": None, **logger} if known else None
