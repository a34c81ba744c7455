"""Output folder of an audit: tables and an HTML page without scripts."""

import base64
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import pandas as pd

from drgrade.auditing.audit import Audit
from drgrade.auditing.checks import PAIR_COLUMNS, rows
from drgrade.auditing.findings import COLUMNS, FINDINGS
from drgrade.auditing.shortcut import SIGNIFICANT, Probe
from drgrade.data.store import Store
from drgrade.errors import ConfigError, DataError
from drgrade.files import replacing_folder, restore_folder, to_csv, write_text
from drgrade.html.templates import fill_page
from drgrade.stats.formatting import DASH

_SIDE = 168  # px of a photograph on the page
_JPEG_QUALITY = 82
_IN_GALLERY, _IN_LIST = 24, 100
_SIDE_FIELDS = ("image_id", "grade", "split", "dataset", "path")

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

_TILES: dict[str, tuple[str, tuple[str, ...]]] = {
    "Copies": ("pairs", ("identical", "near_duplicate")),
    "Conflicts": ("pairs", ("conflicting_grades", "across_patients")),
    "Leaks": ("pairs", ("across_splits", "across_datasets", "train_val_copies")),
    "Patients": ("patients", ("patient_across_splits",)),
    "Files": ("lists", ("unreadable", "converted")),
    "Labels": ("lists", ("image_missing", "label_invalid", "label_missing", "label_repeated")),
    "Photographs": ("galleries", _GALLERIES),
}
"""Anchor on the page, and findings counted, by title of the tile."""


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
    """Render the page of an audit; long tables and galleries are truncated with a note."""
    data_uri = _image_encoder(audit)
    return fill_page(
        "drgrade.auditing",
        audit=audit,
        kinds=FINDINGS,
        verdict=_verdict(audit),
        tiles=[*_tiles(audit), _probe_tile(audit)],
        stores=[_store(store, root) for store, root in zip(audit.stores, audit.roots, strict=True)],
        pairs=_pairs(audit, data_uri),
        patients=_patients(audit),
        galleries=[gallery for kind in _GALLERIES if (gallery := _gallery(audit, kind, data_uri))],
        lists=[entries for kind in _LISTS if (entries := _list(audit, kind))],
        probes=[_chart(result) for result in audit.probes],
    )


def _image_encoder(audit: Audit) -> Callable[[int], str]:
    """Return a cached function that encodes the photograph of a manifest row as a data URI."""

    @cache
    def data_uri(row: int) -> str:
        bgr = cv2.cvtColor(audit.pixels(row), cv2.COLOR_RGB2BGR)
        if len(bgr) > _SIDE:
            bgr = cv2.resize(bgr, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA)
        _, encoded = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
        return f"data:image/jpeg;base64,{base64.b64encode(encoded.tobytes()).decode('ascii')}"

    return data_uri


def _verdict(audit: Audit) -> tuple[str, str]:
    """Return the state and the sentence at the top of the page."""
    if audit.failing:
        listed = ", ".join(f"{FINDINGS[kind].title.lower()} ({audit.counts[kind]})" for kind in audit.failing)
        return "error", f"Failed: {listed}"
    severities = {FINDINGS[kind].severity for kind, count in audit.counts.items() if count}
    if severities & {"error", "warning"}:
        return "warning", "Passed, with findings to be checked"
    return "good", "Passed: no errors or warnings"


def _tiles(audit: Audit) -> list[Tile]:
    tiles = []
    for title, (anchor, kinds) in _TILES.items():
        if not audit.searched and anchor == "pairs":
            tiles.append(Tile(title, DASH, "not searched for", "off", anchor))
            continue
        if title == "Patients" and not audit.patients_compared:
            tiles.append(Tile(title, DASH, "patients or published split unknown", "off", anchor))
            continue
        present = [kind for kind in kinds if audit.counts[kind]]
        severities = {FINDINGS[kind].severity for kind in present}
        state = next((name for name in ("error", "warning", "note") if name in severities), "good")
        listed = ", ".join(f"{audit.counts[kind]} {kind.replace('_', ' ')}" for kind in present)
        number = sum(audit.counts[kind] for kind in present)
        tiles.append(Tile(title, str(number), listed or "nothing found", state, anchor))
    return tiles


def _probe_tile(audit: Audit) -> Tile:
    results = [result for result in audit.probes if not result.skipped]
    if not results:
        return Tile("Shortcuts", DASH, "too few graded photographs", "off", "shortcuts")
    worst = max(results, key=lambda result: result.qwk)
    if audit.counts["shortcut"]:
        state, verdict = "warning", "QWK without the retina"
    elif worst.p_value <= SIGNIFICANT:
        state, verdict = "note", "QWK without the retina: small but significant"
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


def _pairs(audit: Audit, data_uri: Callable[[int], str]) -> dict[str, Any]:
    cards = []
    for pair in rows(audit.pairs.head(audit.settings.pairs_on_page)):
        sides = []
        for number, other in (("first", ""), ("second", "other_")):
            side = {
                name: pair[f"{other}{name}"] for name in ("image_id", "grade", "split", "dataset", "path")
            }
            sides.append({**side, "image": data_uri(pair[number])})
        kinds = [(name, FINDINGS[name].severity) for name in pair["findings"].split()]
        differs = "conflicting_grades" in pair["findings"]
        cards.append({"sides": sides, "kinds": kinds, "grades_differ": differs, "note": _note(pair)})
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
    patients = _of_kind(audit, "patient_across_splits")
    listed = rows(patients.head(_IN_LIST))
    return {"rows": listed, "total": len(patients), "compared": audit.patients_compared}


def _gallery(audit: Audit, kind: str, data_uri: Callable[[int], str]) -> dict[str, Any] | None:
    """Return the findings with a photograph in the store; None without any."""
    visible = _of_kind(audit, kind).dropna(subset="row")
    if visible.empty:
        return None
    items = [{**item, "image": data_uri(item["row"])} for item in rows(visible.head(_IN_GALLERY))]
    return {"kind": kind, "items": items, "total": len(visible)}


def _list(audit: Audit, kind: str) -> dict[str, Any] | None:
    """Return the findings without a photograph in the store, and their reasons; None without any."""
    findings = _of_kind(audit, kind)
    unseen = findings[findings["row"].isna()]
    if unseen.empty:
        return None
    reasons = unseen["detail"].str.split(r"[:(]", n=1, regex=True).str[0].str.strip().value_counts()
    listed = rows(unseen.head(_IN_LIST))
    return {"kind": kind, "rows": listed, "total": len(unseen), "reasons": reasons.to_dict()}


_CHART_LEFT, _CHART_WIDTH, _BAR_STEP = 110.0, 360.0, 26.0


def _chart(result: Probe) -> dict[str, Any]:
    """Return the chart of a probe for the template, with QWK on the horizontal axis."""
    if result.skipped:
        return {"probe": result, "bars": []}
    bars = [_bar(0, "all six", result.qwk)._replace(whisker=(_at(result.low), _at(result.high)))]
    for number, (name, value) in enumerate(_descending(result.single), start=1):
        bar = _bar(number, name.replace("_", " "), value)
        if name in result.constant:
            bar = bar._replace(value="does not vary", value_at=_at(0) + 8)
        bars.append(bar)
    return {
        "probe": result,
        "bars": bars,
        "ticks": [(_at(tick / 5), f"{tick / 5:.1f}") for tick in range(6)],
        "zero": _at(0),
        "chance": _at(max(result.chance_high, 0)) - _at(0),
        "height": len(bars) * _BAR_STEP + 8,
        "importance": [(name.replace("_", " "), fall) for name, fall in _descending(result.importance)],
    }


def _bar(number: int, label: str, qwk: float) -> Bar:
    """Return the bar of a QWK; number 0 is that of all features, with a gap below it."""
    start, end = _at(min(qwk, 0)), _at(max(qwk, 0))
    top = number * _BAR_STEP + (8 if number else 0)
    return Bar(label, f"{round(qwk, 2) + 0.0:.2f}", _at(1) + 20, top, start, end - start, None, number == 0)


def _descending(values: dict[str, float]) -> list[tuple[str, float]]:
    return sorted(values.items(), key=lambda item: -item[1])


def _at(qwk: float) -> float:
    """Return the position of a QWK on the axis, which starts at -0.2."""
    return round(_CHART_LEFT + _CHART_WIDTH * (min(max(qwk, -0.2), 1.0) + 0.2) / 1.2, 1)


PAGE, FINDINGS_FILE, PAIRS_FILE = "index.html", "findings.csv", "pairs.csv"
QUALITY_FILE, FACTS_FILE = "quality.csv", "audit.json"


def write_audit(audit: Audit, folder: Path) -> Path:
    """Write the folder of an audit atomically, replace an earlier audit in it, and return the page.

    The folder contains ``index.html``, ``findings.csv``, ``pairs.csv``, ``quality.csv`` and ``audit.json``.

    Raises:
        ConfigError: If the folder exists and holds something other than an audit.
        DataError: If it cannot be written.
    """
    check_target(folder)
    try:
        with replacing_folder(folder) as fresh:
            fresh.mkdir()
            _write(audit, fresh)
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
    restore_folder(folder)
    if (
        folder.exists()
        and not (folder / FACTS_FILE).is_file()
        and (folder.is_file() or any(folder.iterdir()))
    ):
        raise ConfigError(f"paths.audit={folder} contains other files than an audit: choose another folder")


def _write(audit: Audit, folder: Path) -> None:
    _write_table(audit.findings[list(COLUMNS)], folder / FINDINGS_FILE)
    _write_table(audit.pairs[list(PAIR_COLUMNS)], folder / PAIRS_FILE)
    named = pd.concat([audit.manifest[["image_id", "dataset", "path"]], audit.qualities], axis=1)
    _write_table(named, folder / QUALITY_FILE)
    (folder / FACTS_FILE).write_text(json.dumps(audit.facts(), indent=2) + "\n", encoding="utf-8")
    (folder / PAGE).write_text(render(audit), encoding="utf-8")


def _write_table(table: pd.DataFrame, path: Path) -> None:
    write_text(path, to_csv(table, float_format="%.4f"))
