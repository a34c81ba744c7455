"""Hydra's launcher for SLURM: every cell is a job, submitted and requeued by submitit.

The plugin's own launcher stops waiting at the first job that was killed, and never notices that one was where
the cluster keeps no accounts (``sacct``). This one asks ``squeue``, waits for all, and finds the jobs that an
earlier command has left in the queue instead of submitting their cells once more.
"""

import json
import logging
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
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
from drgrade.sweeps.cells import progress

log = logging.getLogger("drgrade")

JOBS = "jobs.json"
"""Cell: job, beside submitit's files in the sweep's folder."""

_GRACE = 15.0
"""Seconds that a job's result may take to be seen here after the job has left the queue."""

_LONGEST_PAUSE = 30.0
"""Seconds between two looks at the queue, when the sweep has gone on for long."""


@dataclass
class _Job:
    """A cell and its job."""

    overrides: list[str]
    number: int
    folder: Path
    job: Any = None
    gone: float = 0.0

    @property
    def results(self) -> list[Path]:
        """Where submitit's processes leave what they return, one for each task."""
        return [self.job.task(task).paths.result_pickle for task in range(self.job.num_tasks)]

    @property
    def log(self) -> Path:
        """Output of its first task."""
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
        """Run one cell, in the job.

        Raises:
            Exception: What the cell raised, so that the job counts as failed and its other tasks are ended.
        """
        # Where SLURM signals a whole process group, loaders would requeue the job once more each.
        os.register_at_fork(after_in_child=_ignore_requeueing)
        _requeue_apart()
        done: JobReturn = super().__call__(sweep_overrides, job_dir_key, job_num, job_id, singleton_state)
        if done.status == JobStatus.FAILED:
            raise done._return_value
        return done

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Submit the cells, and wait for all of them.

        Args:
            job_overrides: Of each cell.
            initial_job_idx: Number of the first.

        Returns:
            Of each cell, in their order: what it returned, or what it failed of.

        Raises:
            ConfigError: If there is no SLURM here, or it refuses the jobs.
        """
        assert self.config is not None
        self.params["submitit_folder"] = (
            self.config.hydra.launcher.submitit_folder
        )  # the sweep's, known by now
        jobs = list(self._jobs(job_overrides, initial_job_idx))
        home = self._home()
        known = _read_jobs(home)
        queue = _queue()
        if queue is None:
            raise ConfigError(
                "hydra/launcher=slurm: squeue does not answer; is this a machine of a SLURM cluster?"
            )
        new = [each for each in jobs if not self._join(each, known.get(each.folder.name), queue)]
        try:
            if new:
                self._submit(new)
        finally:  # what has been submitted must be found again
            submitted = {each.folder.name: each.job.job_id for each in jobs if each.job is not None}
            write_text(home / JOBS, json.dumps(known | submitted, indent=2))
        try:
            self._wait(jobs)
        except KeyboardInterrupt:
            log.warning(
                "the jobs stay in the queue: the same command waits for them again, scancel ends them"
            )
            raise
        return [_returned(each) for each in jobs]

    def _jobs(self, job_overrides: Sequence[Sequence[str]], first: int) -> Iterator[_Job]:
        assert self.config is not None
        assert self.hydra_context is not None
        for number, overrides in enumerate(job_overrides, start=first):
            cfg = self.hydra_context.config_loader.load_sweep_config(self.config, list(overrides))
            yield _Job(list(overrides), number, Path(cfg.hydra.sweep.dir) / str(cfg.hydra.sweep.subdir))

    def _home(self) -> Path:
        """Submitit's folder, as far as it is the same for all jobs."""
        from submitit.core.utils import JobPaths

        return JobPaths.get_first_id_independent_folder(self.params["submitit_folder"])

    def _join(self, cell: _Job, job_id: str | None, queue: set[str]) -> bool:
        """Take the job that an earlier command has submitted for a cell, if it is still in the queue."""
        from submitit.slurm.slurm import SlurmJob

        if job_id is None or job_id not in queue:
            return False
        tasks = self.params["nodes"] * self.params["tasks_per_node"]
        cell.job = SlurmJob(self.params["submitit_folder"], job_id, range(tasks))
        log.info("  %s  job %s of an earlier command", cell.folder.name, job_id)
        return True

    def _submit(self, cells: Sequence[_Job]) -> None:
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        state = Singleton.get_state()
        arguments = [
            (each.overrides, "hydra.sweep.dir", each.number, str(each.number), state) for each in cells
        ]
        try:
            jobs = self._executor().map_array(self, *zip(*arguments, strict=True))
        except (FailedJobError, FailedSubmissionError) as error:
            raise ConfigError(f"SLURM refuses the jobs: {error}") from error
        for cell, job in zip(cells, jobs, strict=True):
            cell.job = job
            log.info("  %s  job %s", cell.folder.name, job.job_id)

    def _executor(self) -> Any:
        """Submitit's executor with the settings of the launcher."""
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

    def _wait(self, jobs: Sequence[_Job]) -> None:
        """Wait until every job has left its results, or the queue."""
        waiting, done, started = list(jobs), 0, time.monotonic()
        while waiting:
            queue = _queue()
            for each in list(waiting):
                if not _over(each, queue):
                    continue
                waiting.remove(each)
                done += 1
                found = progress(each.folder)
                log.info("[%d/%d] %s  %s", done, len(jobs), each.folder.name, found.status)
                if not all(path.exists() for path in each.results):
                    log.warning(
                        "        job %s has left no result; its output: %s", each.job.job_id, each.log
                    )
            time.sleep(min(_LONGEST_PAUSE, 1 + (time.monotonic() - started) / 20) if waiting else 0)


def _over(cell: _Job, queue: set[str] | None) -> bool:
    """Whether nothing is to be expected of a job any more."""
    if queue is None or cell.job.job_id in queue:  # no answer is no news; a requeued job is in the queue
        cell.gone = 0.0
        return False
    cell.gone = cell.gone or time.monotonic()
    return all(path.exists() for path in cell.results) or time.monotonic() - cell.gone > _GRACE


def _queue() -> set[str] | None:
    """This user's jobs that wait, run or end at the moment; None if SLURM does not answer."""
    command = ["squeue", "--me", "--array", "--noheader", "--format=%i"]
    try:
        asked = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return None
    return set(asked.stdout.split()) if asked.returncode == 0 else None


def _returned(cell: _Job) -> JobReturn:
    """What became of a cell: of its first task, if it has several."""
    failed = JobReturn(overrides=cell.overrides, working_dir=str(cell.folder))
    failed.status = JobStatus.FAILED
    from submitit.core.utils import UncompletedJobError

    if not all(path.exists() for path in cell.results):
        failed.return_value = DrgradeError(
            f"job {cell.job.job_id} has left no result; its output: {cell.log}"
        )
        return failed
    try:
        done = cell.job.results()[0]
    except UncompletedJobError as error:  # submitit tells what the cell raised as a stack trace
        raised = re.findall(r"^drgrade\.errors\.\w+: (.+)$", str(error), re.MULTILINE)
        failed.return_value = DrgradeError(raised[-1]) if raised else error
        return failed
    assert isinstance(done, JobReturn)
    return done


def _read_jobs(home: Path) -> dict[str, str]:
    path = home / JOBS
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


def _requeue_apart() -> None:
    """Let a job ask for its requeueing in a process group of its own.

    SLURM answers by ending the job's processes, and would end the asking one before it has heard that:
    submitit would then count the job as failed, while SLURM starts it again.
    """
    from submitit.slurm.slurm import SlurmJobEnvironment

    def requeue(environment: Any, countdown: int) -> None:
        command = ["scontrol", "requeue", environment.job_id]
        subprocess.run(command, check=True, timeout=60, start_new_session=True)
        log.info("Requeued job %s (%d more timeouts)", environment.job_id, countdown)

    SlurmJobEnvironment._requeue = requeue  # type: ignore[method-assign, assignment]


def _ignore_requeueing() -> None:
    from submitit.core.job_environment import JobEnvironment

    signal.signal(JobEnvironment._usr_sig(), signal.SIG_IGN)
