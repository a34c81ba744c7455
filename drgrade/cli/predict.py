"""``drgrade predict``: grade photographs with a trained run."""

from omegaconf import DictConfig

from drgrade.cli.command import run
from drgrade.settings import PredictSettings


def work(cfg: DictConfig) -> None:
    """Grade photographs and print a summary and the paths of the results."""
    from drgrade.prediction.prediction import predict

    print(*predict(PredictSettings.read(cfg)).lines, sep="\n")


def main() -> None:
    """Run from the command line."""
    run(work, PredictSettings)


if __name__ == "__main__":
    main()
