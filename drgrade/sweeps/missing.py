"""What stands in for a launcher whose plugin is not installed."""

from typing import Any, NoReturn

from hydra.plugins.launcher import Launcher

from drgrade.errors import ConfigError


class MissingLauncher(Launcher):
    """Says what to install."""

    needs = ""
    """What pip calls the plugin."""

    def __init__(self, **settings: Any) -> None:
        """Say it.

        Raises:
            ConfigError: Always.
        """
        raise ConfigError(f"this launcher needs a package that is not installed: pip install {self.needs}")

    def setup(self, **given: Any) -> NoReturn:
        """Never reached."""
        raise NotImplementedError

    def launch(self, *given: Any) -> NoReturn:
        """Never reached."""
        raise NotImplementedError
