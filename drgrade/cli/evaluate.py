"""``drgrade evaluate``: test a run again."""

import logging

from omegaconf import DictConfig

from drgrade.cli.hydra_command import run
from drgrade.cli.train import summary


def work(cfg: DictConfig) -> None:
    """Evaluate, and say what came out.

    Args:
        cfg: The composed config (``conf/evaluate.yaml``).
    """
    from drgrade.training.evaluation import evaluate
    from drgrade.training.processes import is_main_process
    from drgrade.training.together import check_processes

    check_processes(cfg.trainer)
    metrics = evaluate(cfg)
    if is_main_process():
        logging.getLogger("drgrade").info("%s", summary(metrics, cfg.paths.run))


def main() -> None:
    """Run from the command line."""
    run(work, "evaluate")


if __name__ == "__main__":
    main()
