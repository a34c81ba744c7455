"""Judges what :mod:`drgrade.data.quality` has measured of the photographs of a store."""

from collections.abc import Iterator

import numpy as np
import pandas as pd

from drgrade.audit.findings import Finding, plain
from drgrade.audit.settings import Settings
from drgrade.data.quality import Quality, measure
from drgrade.data.store import Store
from drgrade.progress import track

_LEAST_RANKED = 20  # photographs that an outlier can be told from


def measure_all(store: Store) -> pd.DataFrame:
    """Measure every photograph of a store, one in memory at a time.

    Returns:
        Columns of :class:`Quality`; row i is image i.
    """
    diameters = 2 * store.manifest["circle_r"].to_numpy(dtype=float)
    rows = track(range(len(store)), len(store), "looking at", f"photographs of {store.name}")
    found = [measure(np.asarray(store.images[i]), store.thumbnails[i] > 0, diameters[i]) for i in rows]
    return pd.DataFrame(found, columns=list(Quality._fields), dtype="float64")


def quality_findings(
    manifest: pd.DataFrame, qualities: pd.DataFrame, image_size: int, settings: Settings
) -> Iterator[Finding]:
    """Judge what was measured; of each kind the worst come first.

    Args:
        manifest: Row i describes photograph i.
        qualities: Columns of :class:`Quality`, row i of photograph i.
        image_size: Side of the prepared photographs in pixels.
        settings: The thresholds.
    """
    least = max(settings.tiny_below, image_size)
    blank = qualities["contrast"] < settings.blank_below
    tests = {
        "blank": (blank, qualities["contrast"], "contrast {:.4f}"),
        "dark": (qualities["level"] < settings.dark_below, qualities["level"], "level {:.0f} of 255"),
        "over_exposed": (
            qualities["over_exposed"] > settings.over_exposed_above,
            -qualities["over_exposed"],
            "{:.0%} of the disc",
        ),
        "out_of_focus": (
            _out_of_focus(manifest["dataset"], qualities["focus"], settings) & ~blank,
            qualities["focus"],
            "focus {:.2f}",
        ),
        "tiny": (
            qualities["diameter"] < least,
            qualities["diameter"],
            f"disc {{:.0f}} px across, {least:.0f} wanted",
        ),
    }
    for kind, (found, badness, text) in tests.items():
        for row in badness[found].sort_values(kind="stable").index:
            yield _finding(kind, manifest, int(row), text.format(abs(badness[row])))


def _out_of_focus(datasets: pd.Series, focus: pd.Series, settings: Settings) -> pd.Series:
    """Blurred outright, or an outlier among the photographs of its data set."""
    found = focus < settings.blurred_below
    logarithm = np.log(focus.where(focus > 0))
    for _, values in logarithm.groupby(datasets):
        known = values.dropna()
        if len(known) >= _LEAST_RANKED:
            spread = 1.4826 * float((known - known.median()).abs().median())
            limit = float(known.median()) - settings.outlying_deviations * spread
            outlying = known.index[(known < limit) & (focus[known.index] < settings.outlying_below)]
            found[outlying] = True
    return found


def _finding(kind: str, manifest: pd.DataFrame, row: int, detail: str) -> Finding:
    values = {
        name: plain(manifest[name].iloc[row]) for name in ("image_id", "dataset", "grade", "split", "path")
    }
    return Finding(kind, **values, detail=detail, row=row)
