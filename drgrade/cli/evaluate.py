"""``drgrade evaluate``: a trained run, or an ensemble, tested on its own photographs or on others."""

import logging
import re
import sys

from omegaconf import DictConfig

from drgrade.cli.hydra_command import run


def work(cfg: DictConfig) -> None:
    """Evaluate, and say what came out.

    Args:
        cfg: The composed config (``conf/evaluate.yaml``).
    """
    from drgrade.evaluation.evaluation import evaluate
    from drgrade.evaluation.intervals import lines
    from drgrade.training.distributed import check_processes, is_main_process

    check_processes(cfg.trainer)
    found = evaluate(cfg)
    if is_main_process():
        table = "\n".join(lines(found.estimates))
        log = logging.getLogger("drgrade")
        log.info("%s\n%s: %s", table, found.metrics["status"], cfg.paths.run)


def listed(argument: str) -> str:
    """Write ``checkpoint=A,B`` as Hydra writes a list; it would take it for a sweep.

    Args:
        argument: Of the command line.

    Returns:
        ``checkpoint=[A,B]``; anything else as it is.
    """
    found = re.fullmatch(r"checkpoint=([^\[\]\"']+,[^\[\]\"']+)", argument)
    return f"checkpoint=[{found[1]}]" if found else argument


def main() -> None:
    """Run from the command line."""
    sys.argv[1:] = [listed(argument) for argument in sys.argv[1:]]
    run(work, "evaluate")


if __name__ == "__main__":
    main()
