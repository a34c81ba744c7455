"""Output folder of an audit: tables and an HTML page without scripts."""

import base64
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import pandas as pd

from drgrade.auditing.audit import Audit
from drgrade.auditing.checks import PAIR_COLUMNS, counts_by_reason, rows
from drgrade.auditing.findings import COLUMNS, FINDINGS
from drgrade.auditing.shortcut import FEATURES, SIGNIFICANT, Probe
from drgrade.data.store import Store
from drgrade.errors import ConfigError, DataError
from drgrade.html.templates import fill_page

_SIDE = 168  # px of a photograph on the page
_JPEG_QUALITY = 82
_IN_GALLERY, _IN_LIST = 24, 100

_COPIES = (
    "identical",
    "near_duplicate",
    "conflicting_grades",
    "across_splits",
    "across_datasets",
    "across_patients",
    "train_val_copies",
)
_GALLERIES = ("blank", "dark", "over_exposed", "out_of_focus", "tiny")
_LISTS = (
    "unreadable",
    "image_missing",
    "label_invalid",
    "blank",
    "label_missing",
    "label_repeated",
    "converted",
)

_CHECKS: dict[str, tuple[str, ...]] = {
    "Copies": ("identical", "near_duplicate"),
    "Conflicts": ("conflicting_grades", "across_patients"),
    "Leaks": ("across_splits", "across_datasets", "train_val_copies"),
    "Patients": ("patient_across_splits",),
    "Files": ("unreadable", "converted"),
    "Labels": ("image_missing", "label_invalid", "label_missing", "label_repeated"),
    "Photographs": _GALLERIES,
}
"""Findings counted by each tile."""

_ANCHORS = {
    "Copies": "pairs",
    "Conflicts": "pairs",
    "Leaks": "pairs",
    "Patients": "patients",
    "Files": "lists",
    "Labels": "lists",
    "Photographs": "galleries",
    "Shortcuts": "shortcuts",
}


class Tile(NamedTuple):
    """Summary of a check; ``state`` is good, note, warning, error or off."""

    title: str
    figure: str
    verdict: str
    state: str
    anchor: str


class Bar(NamedTuple):
    """Bar of the chart of a probe; lengths are in units of the chart."""

    label: str
    value: str
    value_at: float
    y: float
    start: float
    length: float
    whisker: tuple[float, float] | None
    all_features: bool


def render(audit: Audit) -> str:
    """Render the page of an audit.

    Args:
        audit: Result of the audit.

    Returns:
        HTML of bounded size: pairs, galleries and lists are truncated with a note.
    """
    picture = _pictures(audit)
    return fill_page(
        "drgrade.auditing",
        audit=audit,
        kinds=FINDINGS,
        verdict=_verdict(audit),
        tiles=[*_tiles(audit), _probe_tile(audit)],
        stores=[_store(store, root) for store, root in zip(audit.stores, audit.roots, strict=True)],
        pairs=_pairs(audit, picture),
        patients=_patients(audit),
        galleries=[found for kind in _GALLERIES if (found := _gallery(audit, kind, picture))],
        lists=[found for kind in _LISTS if (found := _list(audit, kind))],
        probes=[_chart(found) for found in audit.probes],
    )


def _pictures(audit: Audit) -> Callable[[int], str]:
    """Return a cached function that encodes the photograph of a manifest row as a data URI."""

    @cache
    def picture(row: int) -> str:
        bgr = cv2.cvtColor(audit.pixels(row), cv2.COLOR_RGB2BGR)
        if len(bgr) > _SIDE:
            bgr = cv2.resize(bgr, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA)
        _, encoded = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
        return f"data:image/jpeg;base64,{base64.b64encode(encoded.tobytes()).decode('ascii')}"

    return picture


def _verdict(audit: Audit) -> tuple[str, str]:
    """Return the state and the sentence at the top of the page."""
    if audit.failing:
        listed = ", ".join(f"{FINDINGS[kind].title.lower()} ({audit.counts[kind]})" for kind in audit.failing)
        return "error", f"Failed: {listed}"
    found = [kind for kind, count in audit.counts.items() if count]
    severities = {FINDINGS[kind].severity for kind in found}
    if severities & {"error", "warning"}:
        return "warning", "Passed, with findings that are worth a look"
    return "good", "Passed: nothing found that makes numbers wrong"


def _tiles(audit: Audit) -> list[Tile]:
    tiles = []
    for title, kinds in _CHECKS.items():
        if not audit.searched and _ANCHORS[title] == "pairs":
            tiles.append(Tile(title, "–", "not searched for", "off", _ANCHORS[title]))  # noqa: RUF001
            continue
        if title == "Patients" and not audit.patients_compared:
            tiles.append(Tile(title, "–", "not known, or no published split", "off", _ANCHORS[title]))  # noqa: RUF001
            continue
        found = [kind for kind in kinds if audit.counts[kind]]
        state = next(
            (s for s in ("error", "warning", "note") for k in found if FINDINGS[k].severity == s), "good"
        )
        listed = ", ".join(f"{audit.counts[kind]} {kind.replace('_', ' ')}" for kind in found)
        number = sum(audit.counts[kind] for kind in found)
        tiles.append(Tile(title, str(number), listed or "nothing found", state, _ANCHORS[title]))
    return tiles


def _probe_tile(audit: Audit) -> Tile:
    known = [found for found in audit.probes if not found.skipped]
    if not known:
        return Tile("Shortcuts", "–", "too few grades to tell", "off", "shortcuts")  # noqa: RUF001
    worst = max(known, key=lambda found: found.qwk)
    if audit.counts["shortcut"]:
        state, verdict = "warning", "QWK without the retina"
    elif worst.p_value <= SIGNIFICANT:
        state, verdict = "note", "QWK without the retina: small, but no chance"
    else:
        state, verdict = "good", "QWK without the retina: not more than chance"
    return Tile("Shortcuts", f"{round(worst.qwk, 2) + 0.0:.2f}", verdict, state, "shortcuts")


def _store(store: Store, root: Path) -> dict[str, Any]:
    grades = store.manifest["grade"]
    return {
        "name": store.name,
        "photographs": len(store),
        "grades": [int((grades == grade).sum()) for grade in range(5)],
        "ungraded": int(grades.isna().sum()),
        "size": store.image_size,
        "root": str(root),
        "sha256": store.sha256[:12],
    }


def _pairs(audit: Audit, picture: Callable[[int], str]) -> dict[str, Any]:
    shown = audit.pairs.head(audit.settings.pairs_on_page)
    cards = []
    for pair in rows(shown):
        sides = [
            {
                "picture": picture(pair[number]),
                "grade_differs": "conflicting_grades" in pair["findings"],
                **{
                    name: pair[f"{other}{name}"] for name in ("image_id", "grade", "split", "dataset", "path")
                },
            }
            for number, other in (("first", ""), ("second", "other_"))
        ]
        kinds = [(name, FINDINGS[name].severity) for name in pair["findings"].split()]
        cards.append({"sides": sides, "kinds": kinds, "note": _note(pair)})
    counts = {kind: audit.counts[kind] for kind in _COPIES if audit.counts[kind]}
    return {"cards": cards, "total": len(audit.pairs), "counts": counts}


def _note(pair: dict[str, Any]) -> str:
    """Describe how the second photograph of a near-duplicate differs."""
    if pair["kind"] == "identical":
        return ""
    notes = ["mirrored"] if pair["mirrored"] else []
    notes += [f"turned by {pair['turned']}°"] if pair["turned"] else []
    return ", ".join([*notes, f"similarity {pair['similarity']:.3f}"])


def _of_kind(audit: Audit, kind: str) -> pd.DataFrame:
    return audit.findings[audit.findings["finding"] == kind]


def _patients(audit: Audit) -> dict[str, Any]:
    """Return the table of patients on both sides of a published split."""
    found = _of_kind(audit, "patient_across_splits")
    return {"rows": rows(found.head(_IN_LIST)), "total": len(found), "compared": audit.patients_compared}


def _gallery(audit: Audit, kind: str, picture: Callable[[int], str]) -> dict[str, Any] | None:
    found = _of_kind(audit, kind)
    visible = found[found["row"].notna()]
    if visible.empty:
        return None
    items = [{**item, "picture": picture(item["row"])} for item in rows(visible.head(_IN_GALLERY))]
    return {"kind": kind, "items": items, "total": len(visible)}


def _list(audit: Audit, kind: str) -> dict[str, Any] | None:
    """Return the findings without a photograph in the store."""
    found = _of_kind(audit, kind)
    unseen = found[found["row"].isna()]
    if unseen.empty:
        return None
    reasons = counts_by_reason(unseen)
    return {"kind": kind, "rows": rows(unseen.head(_IN_LIST)), "total": len(unseen), "reasons": reasons}


_CHART_LEFT, _CHART_WIDTH, _BAR_STEP = 110.0, 360.0, 26.0


def _chart(found: Probe) -> dict[str, Any]:
    """Return the chart of a probe for the template, with QWK on the horizontal axis."""
    if found.skipped:
        return {"probe": found, "bars": []}
    ordered = sorted(FEATURES, key=lambda name: -found.single[name])
    interval: tuple[float, float] | None = (found.low, found.high)
    entries = [("", "all six", found.qwk, interval)]
    entries += [(name, name.replace("_", " "), found.single[name], None) for name in ordered]
    bars = [
        Bar(
            label,
            "does not vary" if name in found.constant else f"{round(value, 2) + 0.0:.2f}",
            _at(0) + 8 if name in found.constant else _at(1) + 20,
            number * _BAR_STEP + (8 if number else 0),
            _at(min(value, 0)),
            _at(max(value, 0)) - _at(min(value, 0)),
            (_at(ends[0]), _at(ends[1])) if ends else None,
            number == 0,
        )
        for number, (name, label, value, ends) in enumerate(entries)
    ]
    ticks = [(_at(tick / 5), f"{tick / 5:.1f}") for tick in range(6)]
    importance = [(name.replace("_", " "), found.importance[name]) for name in _sorted(found.importance)]
    return {
        "probe": found,
        "bars": bars,
        "ticks": ticks,
        "zero": _at(0),
        "chance": _at(max(found.chance_high, 0)) - _at(0),
        "height": len(bars) * _BAR_STEP + 8,
        "importance": importance,
    }


def _sorted(values: dict[str, float]) -> Sequence[str]:
    return sorted(values, key=lambda name: -values[name])


def _at(qwk: float) -> float:
    """Return the position of a QWK on the axis, which starts at -0.2."""
    return round(_CHART_LEFT + _CHART_WIDTH * (min(max(qwk, -0.2), 1.0) + 0.2) / 1.2, 1)


PAGE, FINDINGS_FILE, PAIRS_FILE = "index.html", "findings.csv", "pairs.csv"
QUALITY_FILE, FACTS_FILE = "quality.csv", "audit.json"


def write_audit(audit: Audit, folder: Path) -> Path:
    """Write the folder of an audit atomically; replace an earlier audit in it.

    Args:
        audit: Result of the audit.
        folder: Output folder: ``index.html``, ``findings.csv``, ``pairs.csv``, ``quality.csv`` and
            ``audit.json``.

    Returns:
        Path of the page.

    Raises:
        ConfigError: If the folder exists and holds something other than an audit.
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
    """Check that the folder is missing, empty or an audit.

    Raises:
        ConfigError: If it holds something else.
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
        os.replace(folder, old)  # noqa: PTH105  (Path.replace is equivalent; the target is an empty folder)
        unfinished.rename(folder)
        shutil.rmtree(old)
    else:
        unfinished.rename(folder)
