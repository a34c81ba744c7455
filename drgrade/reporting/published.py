"""Results of papers, read from ``published.yaml``."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from drgrade.reporting.costs import is_trained
from drgrade.reporting.methods import Grouped
from drgrade.reporting.schema import PublishedRow

DATA = "aptos2019"
"""Data set of all published results."""

_FILE = Path(__file__).with_name("published.yaml")


def published_rows() -> list[PublishedRow]:
    """Read the published results, by paper, method and label fraction."""
    papers: list[dict[str, Any]] = yaml.safe_load(_FILE.read_text(encoding="utf-8"))
    return [
        _row(paper, fraction, figures)
        for paper in papers
        for fraction, figures in sorted(paper["qwk"].items())
    ]


def match_methods(rows: Sequence[PublishedRow], grouped: Grouped) -> list[PublishedRow]:
    """Set ``beside`` to the line of the first fine-tuned method with the same weights and encoder family."""
    lines: dict[str, Mapping[str, str]] = {}
    for method in grouped.methods:
        run = grouped.runs[method.key][0]
        if is_trained(run):
            lines.setdefault(method.name, _describe(run.config))
    return [
        replace(
            row,
            beside=next((name for name, description in lines.items() if _matches(row.of, description)), ""),
        )
        for row in rows
    ]


def _describe(config: Mapping[str, Any]) -> Mapping[str, str]:
    pretext = config["pretext"]["name"] if config["init"] == "ssl" else ""
    encoder = f"{config['encoder']['_target_']} {config['encoder'].get('name', '')}"
    return {"init": str(config["init"]), "pretext": str(pretext), "encoder": encoder.lower()}


def _matches(published: Mapping[str, str], method: Mapping[str, str]) -> bool:
    same = published["init"] == method["init"] and published.get("pretext", "") == method["pretext"]
    return same and published["encoder"] in method["encoder"]


def _row(paper: Mapping[str, Any], fraction: float, figures: float | list[float]) -> PublishedRow:
    minimum, mean, maximum = figures if isinstance(figures, list) else (None, figures, None)
    return PublishedRow(paper["label"], paper["source"], fraction, mean, minimum, maximum, of=paper["of"])
