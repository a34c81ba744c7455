"""Writing an audit: tables, figures for scripts, and the page."""

import json
import os
import shutil
import tempfile
from pathlib import Path

import pandas as pd

from drgrade.audit.auditing import Audit
from drgrade.audit.findings import COLUMNS
from drgrade.audit.page import render
from drgrade.audit.pairs import PAIR_COLUMNS
from drgrade.errors import ConfigError, DataError

PAGE, FINDINGS_FILE, PAIRS_FILE = "index.html", "findings.csv", "pairs.csv"
QUALITY_FILE, FACTS_FILE = "quality.csv", "audit.json"


def write_audit(audit: Audit, folder: Path) -> Path:
    """Write an audit's folder, whole or not at all; an earlier audit in it is replaced.

    Args:
        audit: What was found.
        folder: Where: ``index.html``, ``findings.csv``, ``pairs.csv``, ``quality.csv``, ``audit.json``.

    Returns:
        The page.

    Raises:
        ConfigError: If the folder is there and holds something else.
        DataError: If it cannot be written.
    """
    check_target(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        try:
            unfinished.chmod(0o755)
            _write(audit, unfinished)
            _replace(unfinished, folder)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    except OSError as error:
        raise DataError(
            f"cannot write the audit to {folder}: {error.strerror or error}. Choose another folder with "
            "paths.audit=DIR"
        ) from error
    return folder / PAGE


def check_target(folder: Path) -> None:
    """Check that nothing but an audit would be replaced.

    Raises:
        ConfigError: If something would.
    """
    if (
        folder.exists()
        and not (folder / FACTS_FILE).is_file()
        and (folder.is_file() or any(folder.iterdir()))
    ):
        raise ConfigError(f"paths.audit={folder} holds something else than an audit: choose another folder")


def _write(audit: Audit, folder: Path) -> None:
    audit.findings[list(COLUMNS)].to_csv(folder / FINDINGS_FILE, index=False, float_format="%.4f")
    audit.pairs[list(PAIR_COLUMNS)].to_csv(folder / PAIRS_FILE, index=False, float_format="%.4f")
    named = pd.concat([audit.manifest[["image_id", "dataset", "path"]], audit.qualities], axis=1)
    named.to_csv(folder / QUALITY_FILE, index=False, float_format="%.4f")
    (folder / FACTS_FILE).write_text(json.dumps(audit.facts(), indent=2) + "\n", encoding="utf-8")
    (folder / PAGE).write_text(render(audit), encoding="utf-8")


def _replace(unfinished: Path, folder: Path) -> None:
    if folder.is_dir():
        old = Path(tempfile.mkdtemp(prefix=f".{folder.name}-old-", dir=folder.parent))
        os.replace(folder, old)  # noqa: PTH105  (Path.replace is the same; an empty folder may be replaced)
        unfinished.rename(folder)
        shutil.rmtree(old)
    else:
        unfinished.rename(folder)
