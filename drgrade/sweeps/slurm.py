"""Hydra launcher for SLURM: each cell is a job, submitted and requeued by submitit.

The launcher of hydra-submitit-launcher stops waiting at the first job that is killed, and does not notice it
on clusters without accounting (``sacct``). This one asks ``squeue``, waits for all jobs, and finds the jobs
that an earlier command left in the queue instead of submitting their cells again.
"""

import json
import logging
import os
import re
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus
from hydra_plugins.hydra_submitit_launcher.config import BaseQueueConf  # type: ignore[import-untyped]
from hydra_plugins.hydra_submitit_launcher.submitit_launcher import (  # type: ignore[import-untyped]
    SlurmLauncher as SubmititLauncher,
)
from omegaconf import OmegaConf

from drgrade.errors import ConfigError, DrgradeError
from drgrade.files import write_text
from drgrade.runs.run_dir import read_json
from drgrade.sweeps.cells import progress
from drgrade.sweeps.launcher import ComposedCell, compose_cells

log = logging.getLogger("drgrade")

JOBS = "jobs.json"
"""File with the job of each cell, in submitit's folder."""

_GRACE_SECONDS = 15.0
"""Delay after which the result of a job that has left the queue must be visible on this machine."""

_MAX_PAUSE_SECONDS = 30.0
"""Maximum time between two queries of the queue."""


@dataclass
class _CellJob:
    """A cell, its submitit job, and the time at which the job left the queue."""

    cell: ComposedCell
    number: int
    job: Any = None
    gone: float = 0.0

    def has_results(self) -> bool:
        """Return True if all tasks of the job have written their results."""
        tasks = range(self.job.num_tasks)
        return all(self.job.task(task).paths.result_pickle.exists() for task in tasks)

    @property
    def log(self) -> Path:
        """Output of the first task."""
        return Path(self.job.task(0).paths.stderr)


class SlurmLauncher(SubmititLauncher):  # type: ignore[misc]
    """Runs cells as SLURM jobs (``conf/hydra/launcher/slurm.yaml``)."""

    def __call__(
        self,
        sweep_overrides: list[str],
        job_dir_key: str,
        job_num: int,
        job_id: str,
        singleton_state: dict[type, Singleton],
    ) -> JobReturn:
        """Run one cell inside its job; raise its exception, so that SLURM counts the job as failed."""
        # If SLURM signals the whole process group, each data loader would requeue the job again.
        os.register_at_fork(after_in_child=_ignore_requeue_signal)
        _requeue_in_own_group()
        done: JobReturn = super().__call__(sweep_overrides, job_dir_key, job_num, job_id, singleton_state)
        if done.status == JobStatus.FAILED:
            raise done._return_value
        return done

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Submit the cells, and wait for all of them.

        Raises:
            ConfigError: If SLURM is not available here, or refuses the jobs.
        """
        from submitit.core.utils import JobPaths

        assert self.config is not None
        assert self.hydra_context is not None
        self.params["submitit_folder"] = self.config.hydra.launcher.submitit_folder  # depends on the sweep
        cells = compose_cells(self.hydra_context, self.config, job_overrides, initial_job_idx)
        jobs = [_CellJob(cell, number) for number, cell in enumerate(cells, start=initial_job_idx)]
        path = JobPaths.get_first_id_independent_folder(self.params["submitit_folder"]) / JOBS
        known = read_json(path, "remove it once no job of the sweep is in the queue")
        queue = _queue()
        if queue is None:
            raise ConfigError(
                "hydra/launcher=slurm: squeue does not answer; is this machine in a SLURM cluster?"
            )
        new = [each for each in jobs if not self._join(each, known.get(each.cell.folder.name), queue)]
        try:
            if new:
                self._submit(new)
        finally:  # also after an error, so that the next command finds the submitted jobs
            submitted = {each.cell.folder.name: each.job.job_id for each in jobs if each.job is not None}
            write_text(path, json.dumps(known | submitted, indent=2))
        try:
            self._wait(jobs)
        except KeyboardInterrupt:
            log.warning(
                "the jobs stay in the queue: the same command waits for them again, scancel ends them"
            )
            raise
        return [_job_return(each) for each in jobs]

    def _join(self, job: _CellJob, job_id: str | None, queue: set[str]) -> bool:
        """Join the job that an earlier command submitted for a cell, if it is still in the queue."""
        from submitit.slurm.slurm import SlurmJob

        if job_id is None or job_id not in queue:
            return False
        tasks = self.params["nodes"] * self.params["tasks_per_node"]
        job.job = SlurmJob(self.params["submitit_folder"], job_id, range(tasks))
        log.info("  %s  job %s of an earlier command", job.cell.folder.name, job_id)
        return True

    def _submit(self, jobs: Sequence[_CellJob]) -> None:
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        state = Singleton.get_state()
        arguments = [
            (each.cell.overrides, "hydra.sweep.dir", each.number, str(each.number), state) for each in jobs
        ]
        try:
            submitted = self._executor().map_array(self, *zip(*arguments, strict=True))
        except (FailedJobError, FailedSubmissionError) as error:
            raise ConfigError(f"SLURM refuses the jobs: {error}") from error
        for each, job in zip(jobs, submitted, strict=True):
            each.job = job
            log.info("  %s  job %s", each.cell.folder.name, job.job_id)

    def _executor(self) -> Any:
        import submitit

        own = {"submitit_folder", "max_num_timeout"}
        executor = submitit.AutoExecutor(
            folder=self.params["submitit_folder"],
            cluster="slurm",
            slurm_max_num_timeout=self.params["max_num_timeout"],
        )
        shared = set(OmegaConf.structured(BaseQueueConf).keys())
        settings = {
            name if name in shared else f"slurm_{name}": value
            for name, value in self.params.items()
            if name not in own
        }
        executor.update_parameters(**settings)
        return executor

    def _wait(self, jobs: Sequence[_CellJob]) -> None:
        waiting, done, started = list(jobs), 0, time.monotonic()
        while waiting:
            queue = _queue()
            for each in [each for each in waiting if _has_ended(each, queue)]:
                waiting.remove(each)
                done += 1
                folder = each.cell.folder
                log.info("[%d/%d] %s  %s", done, len(jobs), folder.name, progress(folder).status)
                if not each.has_results():
                    log.warning("        job %s has no result; its output: %s", each.job.job_id, each.log)
            time.sleep(min(_MAX_PAUSE_SECONDS, 1 + (time.monotonic() - started) / 20) if waiting else 0)


def _has_ended(job: _CellJob, queue: set[str] | None) -> bool:
    if queue is None or job.job.job_id in queue:  # squeue did not answer, or the job runs or was requeued
        job.gone = 0.0
        return False
    job.gone = job.gone or time.monotonic()
    return job.has_results() or time.monotonic() - job.gone > _GRACE_SECONDS


def _queue() -> set[str] | None:
    """Return this user's jobs that wait or run; None if SLURM does not answer."""
    command = ["squeue", "--me", "--array", "--noheader", "--format=%i"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return None
    return set(done.stdout.split()) if done.returncode == 0 else None


def _job_return(job: _CellJob) -> JobReturn:
    """Return the result of a job's first task."""
    from submitit.core.utils import UncompletedJobError

    failed = JobReturn(overrides=job.cell.overrides, working_dir=str(job.cell.folder))
    failed.status = JobStatus.FAILED
    if not job.has_results():
        failed.return_value = DrgradeError(f"job {job.job.job_id} has no result; its output: {job.log}")
        return failed
    try:
        done = job.job.results()[0]
    except UncompletedJobError as error:  # contains the cell's exception as a stack trace
        raised = re.findall(r"^drgrade\.errors\.\w+: (.+)$", str(error), re.MULTILINE)
        failed.return_value = DrgradeError(raised[-1]) if raised else error
        return failed
    assert isinstance(done, JobReturn)
    return done


def _requeue_in_own_group() -> None:
    """Run ``scontrol requeue`` in its own process group.

    SLURM ends the processes of the job in response. It would also end scontrol before it has received the
    answer, and submitit would count the job as failed while SLURM starts it again.
    """
    from submitit.slurm.slurm import SlurmJobEnvironment

    def requeue(environment: Any, countdown: int) -> None:
        command = ["scontrol", "requeue", environment.job_id]
        subprocess.run(command, check=True, timeout=60, start_new_session=True)
        log.info("Requeued job %s (%d more timeouts)", environment.job_id, countdown)

    SlurmJobEnvironment._requeue = requeue  # type: ignore[method-assign, assignment]


def _ignore_requeue_signal() -> None:
    from submitit.core.job_environment import JobEnvironment

    signal.signal(JobEnvironment._usr_sig(), signal.SIG_IGN)
