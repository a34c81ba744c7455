"""How long sweeps will take on this machine: what is to be done, at speeds measured by short runs."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from drgrade.progress import say
from drgrade.sweeps.estimate import Estimate, Rates, cell_seconds, training_seconds
from drgrade.sweeps.probing import probe, probe_folder
from drgrade.sweeps.workload import Job, Sweep, Workload, workload

_PROBE, _START = 1.0, 9.0
"""Seconds of a probe, and of the start of its process if it has one: too few to be worth a measurement."""


def forecast(sweeps: Sequence[Sweep], seconds: float) -> list[Estimate]:
    """Estimate what sweeps still need, the pre-trainings that several of them ask for counted once.

    Args:
        sweeps: In the order in which they will run.
        seconds: Of training in each short run.

    Returns:
        An estimate of each.

    Raises:
        DrgradeError: If photographs, split or a short run fail.
    """
    loads = [workload(sweep) for sweep in sweeps]  # all of them before any is measured: errors come first
    seen: set[Path] = set()
    estimates = []
    for sweep, load in zip(sweeps, loads, strict=True):
        missing = {folder: job for folder, job in load.pretrainings.items() if folder not in seen}
        seen.update(missing)
        estimates.append(_estimate(sweep, replace(load, pretrainings=missing), seconds))
    return estimates


def _estimate(sweep: Sweep, load: Workload, seconds: float) -> Estimate:
    pretrainings = list(load.pretrainings.values())
    with probe_folder(sweep.outputs) as folder:
        graded = _rates(sweep, load.cells, "grading", seconds, folder)
        pretrained = _rates(sweep, pretrainings, "pretext", seconds, folder)
    takes = sum(cell_seconds(job.training, graded[job.group]) for job in load.cells)
    takes += sum(training_seconds(job.training, pretrained[job.group]) for job in pretrainings)
    takes += load.probes * (_PROBE if sweep.inline else _PROBE + _START)
    cells = len(load.cells) + load.probes
    return Estimate(sweep.experiment, cells, len(pretrainings), takes, sweep.parallel)


def _rates(
    sweep: Sweep, jobs: Sequence[Job], task: Literal["grading", "pretext"], seconds: float, folder: Path
) -> dict[tuple[str, ...], Rates]:
    """Speeds of every group of jobs, measured on the largest of each."""
    found = {}
    for number, job in enumerate(_largest(jobs)):
        what = "grading" if task == "grading" else "pre-training"
        say(f"measuring the speed of {what} in {sweep.experiment}: {job.cell.name}")
        found[job.group] = probe(
            job.cell,
            sweep.plan.configs[job.cell],
            task,
            sweep.hydra_overrides,
            sweep.parallel,
            seconds,
            folder / f"{task}-{number}",
        )
    return found


def _largest(jobs: Iterable[Job]) -> list[Job]:
    """Of each group the job with most images: the one with the fullest batches."""
    largest: dict[tuple[str, ...], Job] = {}
    for job in jobs:
        known = largest.get(job.group)
        if known is None or job.training.length.images > known.training.length.images:
            largest[job.group] = job
    return list(largest.values())
