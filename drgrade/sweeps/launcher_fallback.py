"""Stand-in for a launcher whose Hydra plugin is not installed."""

from typing import Any, NoReturn

from hydra.plugins.launcher import Launcher

from drgrade.errors import ConfigError


class MissingLauncher(Launcher):
    """Raises an error that names the package to install.

    Attributes:
        needs: Name of the package on PyPI.
    """

    needs = ""

    def __init__(self, **settings: Any) -> None:
        raise ConfigError(f"this launcher needs a package that is not installed: pip install {self.needs}")

    def setup(self, **arguments: Any) -> NoReturn:
        """Unreachable; required by the base class."""
        raise NotImplementedError

    def launch(self, *arguments: Any) -> NoReturn:
        """Unreachable; required by the base class."""
        raise NotImplementedError
