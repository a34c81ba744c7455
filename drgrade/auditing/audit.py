"""Audit of a collection: all checks, their summary and figures."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from drgrade.auditing.checks import (
    file_findings,
    measure_all,
    pair_findings,
    pair_table,
    patient_findings,
    patients_comparable,
    quality_findings,
)
from drgrade.auditing.findings import FINDINGS, finding_table
from drgrade.auditing.shortcut import Probe, probe, probe_findings
from drgrade.data.photographs import Collection
from drgrade.data.store import Store
from drgrade.progress import say
from drgrade.settings import AuditThresholds

_PACKAGES = ("drgrade", "numpy", "opencv-python-headless", "pandas", "pillow", "scikit-learn", "scipy")


@dataclass(frozen=True)
class Audit:
    """Result of an audit.

    Attributes:
        name: Name of the first data set.
        stores: The prepared data sets.
        roots: Present folder of the photographs of each data set.
        manifest: Manifest of the collection.
        findings: Columns of :func:`~drgrade.auditing.findings.finding_table`.
        pairs: Columns of :func:`~drgrade.auditing.checks.pair_table`.
        qualities: Columns of :class:`~drgrade.data.quality.Quality`; row i is photograph i.
        probes: The shortcut probe of each data set with grades.
        settings: Settings of the audit.
        searched: Whether copies were searched for.
    """

    name: str
    stores: Sequence[Store]
    roots: Sequence[Path]
    manifest: pd.DataFrame
    findings: pd.DataFrame
    pairs: pd.DataFrame
    qualities: pd.DataFrame
    probes: Sequence[Probe]
    settings: AuditThresholds
    searched: bool = True

    @cached_property
    def counts(self) -> dict[str, int]:
        """Number of findings of each kind, including zeros."""
        counted = self.findings["finding"].value_counts()
        return {kind: int(counted.get(kind, 0)) for kind in FINDINGS}

    @property
    def failing(self) -> list[str]:
        """Kinds in ``fail_on`` that were found."""
        return [kind for kind, count in self.counts.items() if count and kind in self.settings.fail_on]

    @property
    def patients_compared(self) -> bool:
        """True if patients are known on both sides of a published split."""
        return patients_comparable(self.manifest)

    def pixels(self, row: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """Return the prepared photograph of a row of the manifest, uint8 (S, S, 3)."""
        for store in self.stores:
            if row < len(store):
                return np.asarray(store.images[row])
            row -= len(store)
        raise IndexError(f"row {row} of {len(self.manifest)}")

    def summary(self) -> str:
        """Return a summary for the terminal."""
        names = ", ".join(store.name for store in self.stores)
        lines = [f"{len(self.manifest)} photographs of {names}"]
        lines += [
            f"  {count:6d}  {kind:24}{FINDINGS[kind].severity}"
            for kind, count in self.counts.items()
            if count
        ]
        if not self.findings.shape[0]:
            lines.append("  nothing found")
        if not self.searched:
            lines.append("  copies were not searched for (data.duplicates=false)")
        return "\n".join([*lines, *(f"  {result.sentence}" for result in self.probes)])

    def facts(self) -> dict[str, Any]:
        """Return one flat dictionary: counts, results of the probes, hashes, settings and versions."""
        facts: dict[str, Any] = {
            "status": "failed" if self.failing else "passed",
            "failing": " ".join(self.failing),
            "photographs": len(self.manifest),
            "pairs": len(self.pairs),
            "duplicates_searched": self.searched,
            "patients_compared": self.patients_compared,
        }
        facts |= {f"findings/{kind}": count for kind, count in self.counts.items()}
        for store in self.stores:
            facts[f"data/{store.name}/photographs"] = len(store)
            facts[f"data/{store.name}/image_size"] = store.image_size
            facts[f"data/{store.name}/sha256"] = store.sha256
        for result in self.probes:
            facts |= _probe_facts(result)
        facts |= {
            f"settings/{name}": int(value) if isinstance(value, float) and value.is_integer() else value
            for name, value in vars(self.settings).items()
            if name != "fail_on"
        }
        facts["settings/fail_on"] = " ".join(self.settings.fail_on)
        return facts | {f"versions/{package}": version(package) for package in _PACKAGES}


def _probe_facts(result: Probe) -> dict[str, Any]:
    prefix = f"probe/{result.dataset}"
    facts: dict[str, Any] = {f"{prefix}/photographs": result.photographs, f"{prefix}/skipped": result.skipped}
    if result.skipped:
        return facts
    for name in ("qwk", "low", "high", "chance", "chance_high", "p_value"):
        facts[f"{prefix}/{name}"] = round(getattr(result, name), 4)
    for feature, value in result.single.items():
        facts[f"{prefix}/single/{feature}"] = round(value, 4)
        facts[f"{prefix}/importance/{feature}"] = round(result.importance[feature], 4)
    return facts


def audit(collection: Collection, settings: AuditThresholds | None = None, *, searched: bool = True) -> Audit:
    """Run all checks on a collection.

    Args:
        collection: Data sets prepared without illumination normalisation.
        settings: Thresholds; None for the defaults.
        searched: True if the collection searches for copies; only for the report.

    Raises:
        DataError: If a source cannot be used.
    """
    settings = settings or AuditThresholds()
    stores, manifest = collection.stores, collection.manifest
    qualities = pd.concat([measure_all(store) for store in stores], ignore_index=True)
    pairs = pair_table(manifest, collection.duplicates)
    graded = manifest[(manifest["role"] != "unlabelled") & manifest["grade"].notna()]
    if len(graded):
        say("probing for shortcuts")
    probes = [probe(rows, settings) for _, rows in graded.groupby("dataset", sort=False)]
    findings = finding_table(
        [
            *pair_findings(pairs),
            *patient_findings(manifest),
            *file_findings(collection),
            *quality_findings(manifest, qualities, stores[0].image_size, settings),
            *probe_findings(probes, settings),
        ]
    )
    return Audit(
        name=collection.source.name,
        stores=stores,
        roots=[source.root.absolute() for source, _ in collection.roles],
        manifest=manifest,
        findings=findings,
        pairs=pairs,
        qualities=qualities,
        probes=probes,
        settings=settings,
        searched=searched,
    )
