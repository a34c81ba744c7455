"""Patients on both sides of a published split."""

from collections.abc import Iterator

import pandas as pd

from drgrade.audit.findings import Finding
from drgrade.audit.pairs import rows

_PATIENT = ["dataset", "patient_id"]
_DESCRIBED = ("image_id", "grade", "split", "path")


def patient_findings(manifest: pd.DataFrame) -> Iterator[Finding]:
    """Patients with photographs in the published test set of a data set and in its train or val.

    A published val is training side, as in :mod:`drgrade.data.splits`; so train and val are not told apart.
    Patients of two data sets are never the same.

    Args:
        manifest: Columns image_id, path, grade, patient_id, dataset, split. Photographs whose patient or
            split is not known take no part.

    Yields:
        One finding for each patient, with the first tested photograph, and as the other one the first of the
        training side; in the order of the tested photographs.
    """
    known = _sided(manifest)
    across = known[known.groupby(_PATIENT)["tested"].transform("nunique") > 1]
    counts = across.groupby([*_PATIENT, "split"]).size().to_dict()
    first, other = (across[across["tested"] == tested].drop_duplicates(_PATIENT) for tested in (True, False))
    for pair in rows(first.merge(other, on=_PATIENT, suffixes=("", "_other"))):
        dataset, patient = pair["dataset"], pair["patient_id"]
        numbers = {split: counts.get((dataset, patient, split), 0) for split in ("train", "val", "test")}
        listed = ", ".join(f"{number} {split}" for split, number in numbers.items() if number)
        yield Finding(
            "patient_across_splits",
            dataset=dataset,
            other_dataset=dataset,
            **{name: pair[name] for name in _DESCRIBED},
            **{f"other_{name}": pair[f"{name}_other"] for name in _DESCRIBED},
            detail=f"patient {patient}: {listed}",
        )


def patients_comparable(manifest: pd.DataFrame) -> bool:
    """Whether a data set has a published split with two sides, and patients known on both.

    Args:
        manifest: As for :func:`patient_findings`.
    """
    known = _sided(manifest)
    return bool(set(known["dataset"][known["tested"]]) & set(known["dataset"][~known["tested"]]))


def _sided(manifest: pd.DataFrame) -> pd.DataFrame:
    """Photographs whose patient and published split are known, with a column ``tested``."""
    known = manifest[manifest["patient_id"].notna() & manifest["split"].notna()]
    return known.assign(tested=(known["split"] == "test").astype(bool))
