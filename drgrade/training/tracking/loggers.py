"""The loggers of ``conf/logger``. What they need is imported when a run uses them."""

import netrc
import os
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from pytorch_lightning.loggers import Logger, TensorBoardLogger

from drgrade.errors import ConfigError
from drgrade.training.tracking.base import Ending, make_card
from drgrade.training.tracking.evaluation import Evaluation, figures


class TensorBoardTracker(TensorBoardLogger):
    """TensorBoard, with pictures of evaluations and a text on how the run ended."""

    def __init__(self, save_dir: str, name: str, worst_photographs: int = 0) -> None:
        """Log into one folder; a run that goes on adds a file to it.

        Args:
            save_dir: The run's folder.
            name: Of the folder in it.
            worst_photographs: How many of the worst test photographs to show.
        """
        super().__init__(save_dir=save_dir, name=name, version="")
        self._worst = worst_photographs

    def show(self, evaluation: Evaluation) -> None:
        """See :class:`~drgrade.training.tracking.base.Tracker`."""
        for name, figure in figures(evaluation, self._worst).items():
            self.experiment.add_figure(f"{evaluation.name}/{name}", figure, evaluation.step)

    def conclude(self, ending: Ending, record: Mapping[str, object]) -> None:
        """See :class:`~drgrade.training.tracking.base.Tracker`."""
        self.experiment.add_text("status", str(record.get("error", ending)))
        self.finalize("success" if ending == "finished" else "failed")


def wandb_logger(
    project: str,
    offline: bool | None = None,
    worst_photographs: int = 0,
    entity: str | None = None,
    **card: Any,
) -> Logger:
    """Weights & Biases, offline when nobody is logged in.

    Args:
        project: In W&B.
        offline: Keep the run on this machine; None to decide by whether somebody is logged in. ``WANDB_MODE``
            wins.
        worst_photographs: How many of the worst test photographs to show, which uploads them.
        entity: User or team in W&B; None: the user's default.
        **card: See :func:`~drgrade.training.tracking.base.make_card`.

    Returns:
        The logger. W&B itself starts with the first thing that is logged.
    """
    from drgrade.training.tracking.wandb_logger import WandbTracker

    if "WANDB_MODE" in os.environ:
        offline = False  # wandb reads the variable
    else:
        os.environ.setdefault("WANDB_SILENT", "true")
    if offline is None:
        offline = not logged_in()
    return WandbTracker(make_card(**card), project, offline, worst_photographs, entity=entity)


def mlflow_logger(
    project: str, folder: str, tracking_uri: str | None = None, worst_photographs: int = 0, **card: Any
) -> Logger:
    """MLflow, by default a data base on this machine.

    Args:
        project: The experiment, in MLflow's words.
        folder: Of the data base and its pictures.
        tracking_uri: Another data base or a server; None: ``MLFLOW_TRACKING_URI``, else the folder.
        worst_photographs: How many of the worst test photographs to show.
        **card: See :func:`~drgrade.training.tracking.base.make_card`.

    Returns:
        The logger.

    Raises:
        ConfigError: If MLflow is not installed.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    if not all(map(find_spec, ("mlflow", "sqlalchemy", "alembic"))):
        raise ConfigError("logger=mlflow needs packages: pip install 'drgrade[mlflow]'")
    from drgrade.training.tracking.mlflow_store import MlflowTracker

    worst = worst_photographs
    tracking_uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
    if tracking_uri:
        return MlflowTracker(make_card(**card), project, tracking_uri, None, worst)
    artifacts = Path(folder).absolute() / "artifacts"
    artifacts.mkdir(parents=True, exist_ok=True)
    # SQLite makes a process wait while another one writes, here for up to a minute.
    uri = f"sqlite:///{artifacts.parent / 'mlflow.db'}?timeout=60"
    return MlflowTracker(make_card(**card), project, uri, artifacts, worst)


def tensorboard_logger(save_dir: str, name: str = "tensorboard", worst_photographs: int = 0) -> Logger:
    """TensorBoard.

    Args:
        save_dir: The run's folder.
        name: Of the folder in it.
        worst_photographs: How many of the worst test photographs to show.

    Returns:
        The logger.
    """
    return TensorBoardTracker(save_dir, name, worst_photographs)


def logged_in() -> bool:
    """Look where ``wandb login`` puts its key, without importing wandb or asking its server."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    path = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).netloc
    try:
        return netrc.netrc(path).authenticators(host) is not None
    except (FileNotFoundError, netrc.NetrcParseError):
        return False
