"""``drgrade export``: write a trained run as one file."""

from omegaconf import DictConfig

from drgrade.cli.command import run
from drgrade.settings import ExportSettings


def work(cfg: DictConfig) -> None:
    """Export a run and print a summary."""
    from drgrade.exporting.export import export

    print(*export(ExportSettings.read(cfg)).summary(), sep="\n")


def main() -> None:
    """Run from the command line."""
    run(work, ExportSettings)


if __name__ == "__main__":
    main()
