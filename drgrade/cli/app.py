"""``drgrade app``: try a trained run on a local web page."""

import importlib.util

from omegaconf import DictConfig

from drgrade.cli.command import run
from drgrade.errors import ConfigError
from drgrade.settings import AppSettings


def work(cfg: DictConfig) -> None:
    """Serve the page until Ctrl-C.

    Raises:
        DrgradeError: If a run cannot be loaded, the port is taken, or Gradio is not installed.
    """
    for name in ("gradio", "fastapi", "uvicorn"):
        if importlib.util.find_spec(name) is None:
            raise ConfigError("drgrade app needs gradio, which is not installed: pip install 'drgrade[app]'")

    from drgrade.app import isolation

    isolation.disable_telemetry()  # before other libraries are imported
    isolation.block_external_connections()

    from drgrade.app.server import run_app

    run_app(AppSettings.read(cfg))


def main() -> None:
    """Run from the command line."""
    run(work, AppSettings)


if __name__ == "__main__":
    main()
