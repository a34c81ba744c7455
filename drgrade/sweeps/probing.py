"""Short real runs that measure how fast this machine is."""

import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Literal

from omegaconf import DictConfig

from drgrade.errors import DrgradeError
from drgrade.sweeps.cells import Cell, error_line
from drgrade.sweeps.children import run_child
from drgrade.sweeps.command import cell_command
from drgrade.sweeps.estimate import Length, Rates, Training, cell_seconds
from drgrade.sweeps.grammar import as_override
from drgrade.sweeps.launcher import share_of_cores
from drgrade.sweeps.stopwatch import Measured, Stopwatch, read_measured

_BATCHES = 6
"""Of a short epoch and of its validation: so that even a slow machine sees the end of two epochs."""


def rates(measured: Measured, frozen_epochs: int, wall: float) -> Rates:
    """Turn what a short run took into speeds.

    The first step, and the first one with a thawed encoder, are left out of the speeds: they find memory and
    choose kernels. What they took beside that of a usual step is part of ``start``, so that the run itself,
    estimated with its own rates, takes what it took.

    Args:
        measured: By the stopwatch; at least one step with everything trained.
        frozen_epochs: Epochs of the short run with a frozen encoder.
        wall: Seconds of its process, from beginning to end.

    Returns:
        The speeds.
    """
    thawed = [step for step in measured.steps if step[0] >= frozen_epochs]
    frozen = [step for step in measured.steps if step[0] < frozen_epochs]
    trained = _speed(thawed[1:] or thawed)
    while_frozen = _speed(frozen[1:] or frozen) if frozen else trained
    evaluated = [each for each in measured.evaluations if each[0]]
    images, seconds = sum(each[0] for each in evaluated), sum(each[1] for each in evaluated)
    stepping = sum(step[2] for step in measured.steps)
    epoch = max(0.0, measured.training - stepping - measured.validation) / measured.epochs
    # Without a validation to measure: no slower than training.
    found = Rates(trained, while_frozen, images / seconds if images else trained, epoch, 0.0)
    length = Length(measured.epochs, sum(step[1] for step in measured.steps), sum(step[1] for step in frozen))
    return replace(found, start=max(0.0, wall - cell_seconds(Training(length, images), found)))


def _speed(steps: Sequence[tuple[int, int, float]]) -> float:
    return sum(step[1] for step in steps) / sum(step[2] for step in steps)


@contextmanager
def probe_folder(outputs: Path) -> Iterator[Path]:
    """A folder for short runs, which is removed with all that is in it.

    Args:
        outputs: Where: short runs write to the disk that the cells will write to.

    Yields:
        The folder.
    """
    outputs.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=".probe-", dir=outputs))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def probe(
    cell: Cell,
    cfg: DictConfig,
    task: Literal["grading", "pretext"],
    hydra_overrides: Sequence[str],
    parallel: int,
    seconds: float,
    folder: Path,
) -> Rates:
    """Run a cell, or its pre-training, for some seconds, as a process of its own.

    Args:
        cell: To be measured; it learns from random weights, which takes as long as from others.
        cfg: Its config.
        task: What of it.
        hydra_overrides: Overrides of Hydra's own settings.
        parallel: Cells at the same time; a short run gets the cores of one of them.
        seconds: Of training, after which the short run ends; slow steps make it longer.
        folder: Of the short run; there is nothing yet.

    Returns:
        The speeds.

    Raises:
        DrgradeError: If the run fails, as the cells would.
    """
    folder.mkdir(parents=True)
    frozen = min(1, int(cfg.protocol.frozen_epochs)) if task == "grading" else 0
    record, output = folder / "measured.json", folder / "output.log"
    own = _overrides(task, frozen, record, seconds, folder)
    replaced = {_key(each) for each in own}
    kept = [each for each in cell.overrides if _key(each) not in replaced]
    command = cell_command([*hydra_overrides, *kept, *own], folder)
    began = time.monotonic()
    with output.open("wb") as stream:
        status = run_child(command, stdout=stream, env=share_of_cores(parallel))
    wall = time.monotonic() - began
    if status or not record.is_file():
        raise DrgradeError(f"a short run to measure the speed has failed: {_said(output)}")
    return rates(read_measured(record), frozen, wall)


def _overrides(task: str, frozen: int, record: Path, seconds: float, folder: Path) -> list[str]:
    watch = {
        "_target_": f"{Stopwatch.__module__}.{Stopwatch.__qualname__}",
        "path": str(record),
        "seconds": seconds,
        "frozen_epochs": frozen,
    }
    return [
        f"task={task}",
        "init=random",
        "test=false",
        "logger=none",
        f"protocol.frozen_epochs={frozen}",
        "trainer.max_epochs=1000",
        "trainer.max_steps=-1",
        "trainer.num_sanity_val_steps=0",
        f"++trainer.limit_train_batches={_BATCHES}",
        f"++trainer.limit_val_batches={_BATCHES}",
        f"++callbacks.stopwatch={as_override(watch)}",
        f"paths.encoders={as_override(str(folder / 'encoders'))}",
    ]


def _key(override: str) -> str:
    return override.lstrip("+~").split("=", 1)[0]


def _said(output: Path) -> str:
    """What a run said in the end, or its error if it named one."""
    text = output.read_text(encoding="utf-8", errors="replace")
    return error_line(text) or text.strip().rsplit("\n", 1)[-1].strip() or "it said nothing"
