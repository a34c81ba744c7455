"""``drgrade audit``: what is wrong with photographs and labels."""

import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from drgrade.cli.hydra_command import run
from drgrade.errors import ConfigError

if TYPE_CHECKING:
    from drgrade.auditing.audit import Audit

log = logging.getLogger("drgrade")

FOUND = 3
"""Exit status if something was found that ``fail_on`` names; 1 is an error of the audit itself."""


def work(cfg: DictConfig) -> None:
    """Audit, write, and say what was found.

    Args:
        cfg: The composed config (``conf/audit.yaml``).

    Raises:
        ConfigError: If a setting does not apply to an audit.
        SystemExit: With status 3 if something was found that ``fail_on`` names.
    """
    from hydra.utils import instantiate

    from drgrade.auditing.audit import audit
    from drgrade.auditing.html_report import check_target, write_audit
    from drgrade.config import further_sources

    _refuse(cfg)
    settings, folder = instantiate(cfg.audit), Path(cfg.paths.audit)
    check_target(folder)
    collection = instantiate(cfg.photographs, **further_sources(cfg))
    found = audit(collection, settings, searched=cfg.data.duplicates)
    page = write_audit(found, folder)
    log.info("%s\n%s\n%s", found.summary(), _verdict(found), page)
    if found.failing:
        sys.exit(FOUND)


def _refuse(cfg: DictConfig) -> None:
    """Settings of a data set that would change what an audit sees, or are not its business."""
    if cfg.data.illumination != "none":
        raise ConfigError(
            f"data.illumination={cfg.data.illumination}: an audit looks at photographs as the camera wrote "
            "them; leave it at none"
        )
    if cfg.data.strict:
        raise ConfigError(
            "data.strict=true: an audit reports what that would stop at; its exit status follows fail_on"
        )


def _verdict(found: "Audit") -> str:
    if not found.failing:
        return "passed"
    return "failed: " + ", ".join(f"{found.counts[kind]} {kind}" for kind in found.failing)


def main() -> None:
    """Run from the command line."""
    run(work, "audit")


if __name__ == "__main__":
    main()
