"""Manifests without photographs, and helpers to read a split."""

import numpy as np
import pandas as pd
from hypothesis import strategies as st

from drgrade.data.splits.spec import SUBSETS, SplitSpec
from drgrade.data.splits.split import make_split
from drgrade.errors import DataError
from drgrade.synthetic.drawing import plan_photographs


def manifest_of(groups, split=None):
    """Return a manifest with one patient per list: ``[[0, None], [2]]`` has one ungraded photograph."""
    rows = [(number, grade) for number, grades in enumerate(groups) for grade in grades]
    frame = pd.DataFrame(
        {
            "image_id": [f"i{row:04d}" for row in range(len(rows))],
            "grade": pd.array([grade for _, grade in rows], dtype="Int64"),
            "patient_id": pd.array([f"p{number}" for number, _ in rows], dtype="string"),
            "split": pd.array([None] * len(rows), dtype="string"),
        }
    )
    return frame if split is None else frame.assign(split=pd.array(split, dtype="string"))


def singletons(counts):
    return manifest_of([[grade] for grade, count in counts.items() for _ in range(count)])


def with_columns(manifest, **columns):
    """Add columns of strings; None is missing."""
    return manifest.assign(**{name: pd.array(values, dtype="string") for name, values in columns.items()})


def demo_manifest(count=400):
    """Return the manifest of the demo without drawing it."""
    plan = plan_photographs(count, 0)
    frame = pd.DataFrame(
        {"image_id": [p.image_id for p in plan], "patient_id": [p.patient_id for p in plan], "split": pd.NA}
    )
    return frame.assign(grade=pd.array([p.grade for p in plan], dtype="Int64"))


def counts(split, *subsets):
    """Return the number of photographs of each grade in some subsets, (5,)."""
    grades = split.loc[split["subset"].isin(subsets or SUBSETS), "grade"].dropna().astype(int)
    return np.bincount(grades, minlength=5)


def ids(split, *subsets):
    return set(split.loc[split["subset"].isin(subsets), "image_id"])


def split_table(manifest, spec):
    return make_split(manifest, spec).table


def try_split(manifest, **spec):
    try:
        return split_table(manifest, SplitSpec(**spec))
    except DataError:
        return None


_photograph = st.fixed_dictionaries(
    {
        "grade": st.sampled_from([0, 0, 1, 2, 3, 4, None]),
        "patient_id": st.sampled_from([*"abcdefghijkl", None, None, None, None, None, None]),
        "duplicate": st.sampled_from([*"uvwxyz", None, None, None, None, None, None, None]),
        "role": st.sampled_from(["labelled", "labelled", "labelled", None, "unlabelled", "external"]),
        "split": st.sampled_from(["test", "train", None]),
    }
)


def _manifest_from(rows):
    manifest = manifest_of([[row["grade"]] for row in rows])
    return with_columns(
        manifest,
        **{name: [row[name] for row in rows] for name in ("patient_id", "duplicate", "role", "split")},
    )


manifests_of_all_kinds = st.lists(_photograph, min_size=30, max_size=80).map(_manifest_from)
