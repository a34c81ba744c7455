"""``drgrade prepare``: write the prepared photographs of a data set to a store."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from drgrade.cli.command import run
from drgrade.settings import PrepareSettings

if TYPE_CHECKING:
    from drgrade.data.store import Store

log = logging.getLogger("drgrade")


def work(cfg: DictConfig) -> list["Store"]:
    """Prepare the photographs, print a summary, and return the stores: one for each data set."""
    from hydra.utils import instantiate

    from drgrade.config import further_sources

    photographs = instantiate(cfg.photographs, **further_sources(cfg))
    for store, (source, _) in zip(photographs.stores, photographs.roles, strict=True):
        log.info("%s", _counts(store))
        if cfg.preview:
            _preview(store, source.root, cfg)
    return list(photographs.stores)


def _counts(store: "Store") -> str:
    grades = store.manifest["grade"]
    counts = [f"{count} of grade {grade}" for grade, count in grades.value_counts().sort_index().items()]
    ungraded = [f"{grades.isna().sum()} ungraded"] if grades.isna().any() else []
    listed = ", ".join(counts + ungraded)
    return f"{len(store)} photographs at {store.image_size} px: {listed}\n{store.folder}"


def _preview(store: "Store", root: Path, cfg: DictConfig) -> None:
    from drgrade.data.preview import write_preview

    folder = Path(cfg.paths.previews) / store.folder.name
    sheets = write_preview(
        store.manifest, root, store.images, folder, cfg.preview, max_pixels=cfg.data.max_pixels
    )
    log.info("%s", "\n".join(map(str, sheets)))


def main() -> None:
    """Run from the command line."""
    run(work, PrepareSettings)


if __name__ == "__main__":
    main()
