"""``drgrade evaluate``: test a trained run, or an ensemble, on its own photographs or on others."""

import logging

from omegaconf import DictConfig

from drgrade.cli.command import run
from drgrade.settings import EvaluateSettings


def work(cfg: DictConfig) -> None:
    """Evaluate and print the estimates."""
    from drgrade.evaluation.evaluation import evaluate
    from drgrade.evaluation.intervals import table_lines
    from drgrade.training.distributed import check_process_count, is_main_process

    check_process_count(cfg.trainer)
    found = evaluate(cfg)
    if is_main_process():
        table = "\n".join(table_lines(found.estimates))
        log = logging.getLogger("drgrade")
        log.info("%s\n%s\n%s: %s", table, found.referral, found.metrics["status"], cfg.paths.run)


def main() -> None:
    """Run from the command line."""
    run(work, EvaluateSettings)


if __name__ == "__main__":
    main()
