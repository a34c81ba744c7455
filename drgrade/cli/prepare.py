"""``drgrade prepare``: photographs -> store."""

import logging

from omegaconf import DictConfig

from drgrade.cli.app import run


def work(cfg: DictConfig) -> None:
    """Prepare, and say what there is.

    Args:
        cfg: The composed config (``conf/prepare.yaml``).
    """
    from hydra.utils import instantiate

    store = instantiate(cfg.store)
    grades = store.manifest["grade"]
    counts = ", ".join(
        f"{count} of grade {grade}" for grade, count in grades.value_counts().sort_index().items()
    )
    ungraded = f", {grades.isna().sum()} ungraded" if grades.isna().any() else ""
    logging.getLogger("drgrade").info(
        "%d photographs at %d px: %s%s\n%s", len(store), store.image_size, counts, ungraded, store.folder
    )


def main() -> None:
    """Run from the command line."""
    run(work, "prepare")


if __name__ == "__main__":
    main()
