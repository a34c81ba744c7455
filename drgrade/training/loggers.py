"""Loggers that need more than their constructor."""

import netrc
import os
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from pytorch_lightning.loggers import Logger


def wandb_logger(save_dir: str, offline: bool | None = None, **settings: Any) -> Logger:
    """Weights & Biases, offline when nobody is logged in.

    Args:
        save_dir: The run's folder; W&B writes below it.
        offline: Keep the run on this machine; None to decide by whether somebody is logged in. ``WANDB_MODE``
            wins.
        **settings: For :class:`pytorch_lightning.loggers.WandbLogger`: project, entity, name, group, tags.

    Returns:
        The logger. W&B itself starts with the first thing that is logged.
    """
    from pytorch_lightning.loggers import WandbLogger

    if "WANDB_MODE" in os.environ:
        return WandbLogger(save_dir=save_dir, **settings)
    os.environ.setdefault("WANDB_SILENT", "true")
    if offline is None:
        offline = not _logged_in()
    return WandbLogger(save_dir=save_dir, offline=offline, **settings)


def _logged_in() -> bool:
    """Look where ``wandb login`` puts its key, without importing wandb or asking its server."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    path = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).netloc
    try:
        return netrc.netrc(path).authenticators(host) is not None
    except (FileNotFoundError, netrc.NetrcParseError):
        return False
