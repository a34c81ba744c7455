"""Which photograph is used for what: test folds, validation, and nested label fractions.

A split depends on the photographs, their groups and grades, ``split.seed`` and, if one is given, the split
file; never on the training seed, on the number of processes, or on the order of rows in a file.

:mod:`~drgrade.data.splits.groups` says what must stay together,
:mod:`~drgrade.data.splits.disagreement` which grades count, :mod:`~drgrade.data.splits.drawing` draws (in the
:mod:`~drgrade.data.splits.order` that keeps proportions; :mod:`~drgrade.data.splits.rare` keeps rare grades),
:mod:`~drgrade.data.splits.files` reads a split that somebody else made, and
:mod:`~drgrade.data.splits.making` puts it together. The reasons are in ``docs/splits.md``.
"""

from drgrade.data.splits.groups import groups_of
from drgrade.data.splits.making import (
    Split,
    has_grades,
    make_split,
    split_hash,
    split_or_sides,
    split_with_remarks,
    ungraded_split,
)
from drgrade.data.splits.order import proportional_order
from drgrade.data.splits.remarks import Remark
from drgrade.data.splits.spec import PUBLISHED, ROLES, SUBSETS, SplitSpec

__all__ = [
    "PUBLISHED",
    "ROLES",
    "SUBSETS",
    "Remark",
    "Split",
    "SplitSpec",
    "groups_of",
    "has_grades",
    "make_split",
    "proportional_order",
    "split_hash",
    "split_or_sides",
    "split_with_remarks",
    "ungraded_split",
]
