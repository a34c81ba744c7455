"""Hydra launcher for Ray: each cell is a task in its own process.

The launcher of hydra-ray-launcher abandons the other cells when a process is killed, and leaves Ray running.
"""

import logging
import os
from collections.abc import Sequence
from typing import Any, cast

from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus, setup_globals
from hydra_plugins.hydra_ray_launcher.ray_launcher import RayLauncher as PluginLauncher
from omegaconf import OmegaConf

from drgrade.errors import ConfigError, DrgradeError
from drgrade.sweeps.cells import progress
from drgrade.sweeps.launcher import ComposedCell, compose_cells

log = logging.getLogger("drgrade")


class RayLauncher(PluginLauncher):
    """Runs cells on a Ray cluster (``conf/hydra/launcher/ray.yaml``)."""

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run the cells; a failure does not stop the others.

        Raises:
            ConfigError: If Ray cannot be started or reached.
        """
        import ray

        assert self.config is not None
        assert self.hydra_context is not None
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        setup_globals()
        settings = cast(dict[str, Any], OmegaConf.to_container(self.ray_cfg.init, resolve=True))
        try:
            ray.init(**settings)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise ConfigError(
                f"Ray does not start with hydra.launcher.ray.init={settings}: {error}"
            ) from error
        try:
            cells = list(compose_cells(self.hydra_context, self.config, job_overrides, initial_job_idx))
            tasks = [self._submit(cell) for cell in cells]
            waiting = dict(zip(tasks, cells, strict=True))
            while waiting:
                (task,), _ = ray.wait(list(waiting), num_returns=1)
                folder = waiting.pop(task).folder
                done = len(tasks) - len(waiting)
                log.info("[%d/%d] %s  %s", done, len(tasks), folder.name, progress(folder).status)
            return [_job_return(task, cell) for task, cell in zip(tasks, cells, strict=True)]
        finally:
            ray.shutdown()

    def _submit(self, cell: ComposedCell) -> Any:
        from hydra_plugins.hydra_ray_launcher._launcher_util import launch_job_on_ray

        assert self.hydra_context is not None
        assert self.task_function is not None
        return launch_job_on_ray(
            self.hydra_context, self.ray_cfg.remote, cell.config, self.task_function, Singleton.get_state()
        )


def _job_return(task: Any, cell: ComposedCell) -> JobReturn:
    import ray

    try:
        done = ray.get(task)
    except ray.exceptions.RayError as error:  # its process was killed, or ran out of memory
        done = JobReturn(overrides=cell.overrides, working_dir=str(cell.folder), status=JobStatus.FAILED)
        done.return_value = DrgradeError(f"cell {cell.folder.name}: {error}")
    assert isinstance(done, JobReturn)
    return done
