"""Figures of papers, from ``published.yaml`` beside this file."""

from pathlib import Path
from typing import Any

import yaml

from drgrade.report.contents import PublishedRow

DATA = "aptos2019"
"""Name of the data set that all of them are of."""

_FILE = Path(__file__).with_name("published.yaml")


def published_rows() -> list[PublishedRow]:
    """Read the figures.

    Returns:
        Rows, by paper and method, then label fraction.
    """
    papers: list[dict[str, Any]] = yaml.safe_load(_FILE.read_text(encoding="utf-8"))
    return [
        _row(paper["label"], paper["source"], fraction, figures)
        for paper in papers
        for fraction, figures in sorted(paper["qwk"].items())
    ]


def _row(label: str, source: str, fraction: float, figures: float | list[float]) -> PublishedRow:
    if isinstance(figures, list):
        minimum, mean, maximum = figures
        return PublishedRow(label, source, fraction, mean, minimum, maximum)
    return PublishedRow(label, source, fraction, figures)
