"""``drgrade audit``: check the photographs and labels of a data set."""

import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from drgrade.cli.command import run
from drgrade.errors import ConfigError
from drgrade.settings import AuditSettings, AuditThresholds

if TYPE_CHECKING:
    from drgrade.auditing.audit import Audit

log = logging.getLogger("drgrade")

FOUND = 3
"""Exit status if something was found that ``fail_on`` names; 1 is an error of the audit itself."""


def work(cfg: DictConfig) -> None:
    """Audit a data set, write the results, and print a summary.

    Raises:
        SystemExit: With status 3 if something was found that ``fail_on`` names.
    """
    result, page = audit_data(cfg)
    failing = ", ".join(f"{result.counts[kind]} {kind}" for kind in result.failing)
    log.info("%s\n%s\n%s", result.summary(), f"failed: {failing}" if failing else "passed", page)
    if failing:
        sys.exit(FOUND)


def audit_data(cfg: DictConfig) -> tuple["Audit", Path]:
    """Audit a data set, write the results, and return the findings and the HTML page.

    Raises:
        ConfigError: If a setting does not apply to an audit.
    """
    from hydra.utils import instantiate

    from drgrade.auditing.audit import audit
    from drgrade.auditing.html_report import check_target, write_audit
    from drgrade.config import further_sources

    _refuse_idle(cfg)
    settings, folder = AuditThresholds.read(cfg.audit), Path(cfg.paths.audit)
    check_target(folder)
    collection = instantiate(cfg.photographs, **further_sources(cfg))
    result = audit(collection, settings, searched=cfg.data.duplicates)
    return result, write_audit(result, folder)


def _refuse_idle(cfg: DictConfig) -> None:
    """Refuse settings of a data set that would change the audited photographs, or have no effect."""
    if cfg.data.illumination != "none":
        raise ConfigError(
            f"data.illumination={cfg.data.illumination}: an audit checks photographs as the camera wrote "
            "them; leave it at none"
        )
    if cfg.data.strict:
        raise ConfigError(
            "data.strict=true would stop the audit if a row is left out; leave it at false and choose with "
            "fail_on which findings give exit status 3"
        )


def main() -> None:
    """Run from the command line."""
    run(work, AuditSettings)


if __name__ == "__main__":
    main()
