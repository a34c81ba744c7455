"""Figures of papers, from ``published.yaml`` beside this file."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from drgrade.reporting.costs import is_trained
from drgrade.reporting.methods import Grouped
from drgrade.reporting.schema import PublishedRow

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
        _row(paper, fraction, figures)
        for paper in papers
        for fraction, figures in sorted(paper["qwk"].items())
    ]


def beside(rows: Sequence[PublishedRow], grouped: Grouped) -> list[PublishedRow]:
    """Find the methods of a report that papers give figures of.

    Args:
        rows: Of papers.
        grouped: Methods and their runs.

    Returns:
        The rows, with the line of the first method that is fine-tuned from the same first weights, in an
        encoder of the same kind.
    """
    lines: dict[str, Mapping[str, str]] = {}
    for method in grouped.methods:
        run = grouped.runs[method.key][0]
        if is_trained(run):
            lines.setdefault(method.name, _what_it_is(run.config))
    return [
        replace(row, beside=next((name for name, it in lines.items() if _fits(row.of, it)), ""))
        for row in rows
    ]


def _what_it_is(config: Mapping[str, Any]) -> Mapping[str, str]:
    pretext = config["pretext"]["name"] if config["init"] == "ssl" else ""
    encoder = f"{config['encoder']['_target_']} {config['encoder'].get('name', '')}"
    return {"init": str(config["init"]), "pretext": str(pretext), "encoder": encoder.lower()}


def _fits(of: Mapping[str, str], it: Mapping[str, str]) -> bool:
    same = of["init"] == it["init"] and of.get("pretext", "") == it["pretext"]
    return same and of["encoder"] in it["encoder"]


def _row(paper: Mapping[str, Any], fraction: float, figures: float | list[float]) -> PublishedRow:
    minimum, mean, maximum = figures if isinstance(figures, list) else (None, figures, None)
    return PublishedRow(paper["label"], paper["source"], fraction, mean, minimum, maximum, of=paper["of"])
