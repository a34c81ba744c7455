"""Hydra's launcher for Ray: every cell is a task in a process of its own.

The plugin's own launcher gives up the other cells when one's process is killed, and leaves Ray running.
"""

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus, setup_globals
from hydra_plugins.hydra_ray_launcher.ray_launcher import RayLauncher as PluginLauncher
from omegaconf import OmegaConf, open_dict

from drgrade.errors import ConfigError, DrgradeError
from drgrade.sweeps.cells import progress

log = logging.getLogger("drgrade")


class RayLauncher(PluginLauncher):
    """Runs cells on a Ray cluster, or on one of this machine that ends with the sweep."""

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run the cells; one that fails does not stop the others.

        Args:
            job_overrides: Of each cell.
            initial_job_idx: Number of the first.

        Returns:
            Of each cell, in their order: its metrics, or what it failed of.

        Raises:
            ConfigError: If Ray cannot be started or reached.
        """
        import ray

        os.environ.setdefault(
            "RAY_USAGE_STATS_ENABLED", "0"
        )  # nothing about patients' machines goes anywhere
        setup_globals()
        settings = cast(dict[str, Any], OmegaConf.to_container(self.ray_cfg.init, resolve=True))
        try:
            ray.init(**settings)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise ConfigError(
                f"Ray does not start with hydra.launcher.ray.init={settings}: {error}"
            ) from error
        try:
            tasks = [
                self._submit(overrides, initial_job_idx + n) for n, overrides in enumerate(job_overrides)
            ]
            waiting = dict(tasks)
            while waiting:
                (task,), _ = ray.wait(list(waiting), num_returns=1)
                folder = waiting.pop(task)
                log.info(
                    "[%d/%d] %s  %s",
                    len(tasks) - len(waiting),
                    len(tasks),
                    folder.name,
                    progress(folder).status,
                )
            return [
                _returned(task, list(overrides), folder)
                for overrides, (task, folder) in zip(job_overrides, tasks, strict=True)
            ]
        finally:
            ray.shutdown()

    def _submit(self, overrides: Sequence[str], number: int) -> tuple[Any, Path]:
        """Ray's handle of a cell, and the cell's folder."""
        from hydra_plugins.hydra_ray_launcher._launcher_util import launch_job_on_ray

        assert self.config is not None
        assert self.hydra_context is not None
        assert self.task_function is not None
        cfg = self.hydra_context.config_loader.load_sweep_config(self.config, list(overrides))
        with open_dict(cfg):
            cfg.hydra.job.num, cfg.hydra.job.id = number, str(number)
        remote = self.ray_cfg.remote
        task = launch_job_on_ray(self.hydra_context, remote, cfg, self.task_function, Singleton.get_state())
        return task, Path(cfg.hydra.sweep.dir) / str(cfg.hydra.sweep.subdir)


def _returned(task: Any, overrides: list[str], folder: Path) -> JobReturn:
    """What became of a cell."""
    import ray

    try:
        done = ray.get(task)
    except ray.exceptions.RayError as error:  # its process was killed, or ran out of memory
        done = JobReturn(overrides=overrides, working_dir=str(folder), status=JobStatus.FAILED)
        done.return_value = DrgradeError(f"cell {folder.name}: {error}")
    assert isinstance(done, JobReturn)
    return done
