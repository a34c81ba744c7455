"""``python train.py``: one run, or with ``-m`` a sweep."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from drgrade.cli.command import fail, run
from drgrade.config import choices
from drgrade.errors import DrgradeError
from drgrade.processes import run_child
from drgrade.runs.run_dir import METRICS, write_metrics
from drgrade.settings import ReportSettings, TrainSettings
from drgrade.sweeps.cells import cell_command, progress
from drgrade.sweeps.sweeper import SweepOutcome, outcome


def work(cfg: DictConfig) -> None:
    """Train one model, or start the cell of a sweep."""
    from drgrade.training.distributed import check_process_count, is_main_process, started_together

    log = logging.getLogger("drgrade")
    check_process_count(cfg.trainer)
    if is_sweep() and "strategy" in cfg.trainer and not started_together():
        run_alone(HydraConfig.get())
        return
    if not is_main_process():
        logging.getLogger().setLevel(logging.WARNING)
    log.info("%s", headline(cfg))
    with _interruption_recorded(Path(cfg.paths.run)):
        from drgrade.training.run import train

        metrics = train(cfg)
    if is_main_process():
        log.info("%s", summary(metrics, cfg.paths.run))


@contextmanager
def _interruption_recorded(folder: Path) -> Iterator[None]:
    """Write ``metrics.json`` with status interrupted if a signal comes before the run has begun."""
    from drgrade.training.distributed import is_main_process

    try:
        yield
    except KeyboardInterrupt:
        if is_main_process() and not (folder / METRICS).exists():
            write_metrics(folder, {"status": "interrupted"})
        raise


def is_sweep() -> bool:
    """Return True if this run is a cell of a sweep (``-m``)."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def run_alone(hydra_cfg: Any) -> None:
    """Run one cell of a sweep as a command of its own.

    Lightning starts the further processes of a DDP run by repeating the command line. That of a sweep would
    start the whole sweep in each of them, and that of a launcher's worker is not a command of drgrade.

    Raises:
        DrgradeError: If the cell failed.
    """
    own = [each for each in hydra_cfg.overrides.hydra if not each.startswith("hydra.sweep.")]
    command = cell_command([*own, *hydra_cfg.overrides.task], Path(hydra_cfg.runtime.output_dir))
    status = run_child(command)
    if status:
        cell = progress(Path(hydra_cfg.runtime.output_dir))
        raise DrgradeError(f"{cell.status} (exit status {status}): {cell.reason or 'see above'}")


def headline(cfg: DictConfig) -> str:
    """Return the first lines of output: name, data and scale of the run."""
    what = f"drgrade: {cfg.name}, data={cfg.data.name} at {cfg.data.image_size} px, scale={cfg.scale.name}"
    if cfg.scale.name == "paper":
        return what
    lines = [what]
    if cfg.scale.name == "demo":
        lines.append(
            "This is the demo scale: drawn photographs, small backbones, short runs. "
            "Results do not apply to patients."
        )
    else:
        lines.append("This is the small scale: small backbones and images for two CPU cores.")
    experiment = f"+experiment={cfg.name} " if cfg.name in choices("experiment") else ""
    command = f"python train.py {experiment}data=idrid data.root=DIR scale=paper trainer=gpu"
    lines.append(f"Real photographs at paper scale: {command}")
    return "\n".join(lines)


def summary(metrics: dict[str, object], folder: str) -> str:
    """Return the last lines of output: the main metrics and the folder of the run."""
    names = ("test/qwk", "test/accuracy", "test/auroc", "test/mae", "val/qwk", "val/accuracy")
    figures = "  ".join(f"{name} {metrics[name]:.4f}" for name in names if name in metrics)
    return f"{metrics['status']}: {figures}\n{folder}"


def main() -> None:
    """Run from the command line."""
    try:
        run(work, TrainSettings)
    except SystemExit:
        # An error of the sweep itself, or Ctrl-C; the message is printed already.
        done = outcome()
        if done and done.begun and done.failures:
            print(done.failures, file=sys.stderr)
        raise
    done = outcome()
    if done:
        _report(done)


def _report(done: SweepOutcome) -> None:
    """Write the report of a sweep and list its failures; exit with status 1 if a cell is not finished."""
    log = logging.getLogger("drgrade")
    try:
        if done.report:
            from drgrade.cli.report import make_report

            make_report(ReportSettings.compose(runs=[done.folder]))
    except DrgradeError as error:  # the sweep itself has run
        log.warning("no report of this sweep: %s", error)
    finally:
        if done.then:
            log.info("%s", done.then)
        if done.failures:
            print(done.failures, file=sys.stderr)
    if done.failures:
        fail("the sweep is not complete; repeat the command to run the missing cells")


if __name__ == "__main__":
    main()
