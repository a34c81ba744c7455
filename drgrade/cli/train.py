"""``python train.py``: one run, or with ``-m`` a sweep."""

import logging

from omegaconf import DictConfig

from drgrade.cli.app import run


def work(cfg: DictConfig) -> None:
    """Announce and run.

    Args:
        cfg: The composed config.
    """
    from drgrade.training.processes import is_main_process

    log = logging.getLogger("drgrade")
    if not is_main_process():
        logging.getLogger().setLevel(logging.WARNING)
    log.info("%s", headline(cfg))
    from drgrade.training.run import train

    metrics = train(cfg)
    if is_main_process():
        log.info("%s", summary(metrics, cfg.paths.run))


def headline(cfg: DictConfig) -> str:
    """First lines of output: what runs, and at which scale.

    Args:
        cfg: The composed config.

    Returns:
        One to four lines.
    """
    what = f"drgrade: {cfg.name}, data={cfg.data.name} at {cfg.data.image_size} px, scale={cfg.scale.name}"
    if cfg.scale.name == "paper":
        return what
    lines = [what]
    if cfg.scale.name == "demo":
        lines.append(
            "This is the demo scale: drawn photographs, small backbones, short runs; no result for patients."
        )
    else:
        lines.append("This is the small scale: small backbones and images for two CPU cores.")
    command = f"python train.py +experiment={cfg.name} data=idrid data.root=DIR scale=paper trainer=gpu"
    lines.append(f"Real photographs at paper scale: {command}")
    return "\n".join(lines)


def summary(metrics: dict[str, object], folder: str) -> str:
    """Last lines of output.

    Args:
        metrics: What the run returned.
        folder: Its folder.

    Returns:
        A few lines.
    """
    shown = [
        name
        for name in ("test/qwk", "test/accuracy", "test/auroc", "test/mae", "val/qwk", "val/accuracy")
        if name in metrics
    ]
    figures = "  ".join(f"{name} {metrics[name]:.4f}" for name in shown)
    return f"{metrics['status']}: {figures}\n{folder}"


def main() -> None:
    """Run from the command line."""
    run(work, "train")


if __name__ == "__main__":
    main()
