"""Split given as a file: a published one, or the ``split.csv`` of a run.

A CSV file with a column ``image_id`` and one of

- ``subset`` or ``split``: train, val, test (usual spellings), or unlabelled, external, excluded;
- ``fold``: a whole number, the test fold of the photograph.

A column ``grade`` is compared with the grades of the data; other columns are ignored.
"""

from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TypeVar

import pandas as pd

from drgrade.data.image_reader import IMAGE_EXTENSIONS
from drgrade.data.sources.base import parse_grade, parse_split
from drgrade.data.sources.label_files import SURPLUS, LabelFile, LabelRow, RowError, read_label_file
from drgrade.data.splits.remarks import examples
from drgrade.data.splits.spec import SUBSETS, SplitFile, SplitSpec
from drgrade.errors import DataError
from drgrade.files import require_regular

_Value = TypeVar("_Value")

_PLACES = ("subset", "split", "fold")


def read_split_file(table: pd.DataFrame, spec: SplitSpec) -> SplitFile:
    """Read ``spec.file`` and match it with photographs (columns image_id, dataset, grade, duplicate).

    Names may have the extension of an image file and, with or without it, the data set as prefix
    (``idrid/...``), if they match only one photograph.

    Raises:
        DataError: If the file cannot be read or used.
    """
    path = Path(str(spec.file))
    if not require_regular(path).is_file():
        raise DataError(
            f"split.file={path} does not exist: give a CSV file with image_id and subset (or fold)"
        )
    file = read_label_file(path)
    column = _place_column(file)
    rows, unknown = _matched(file, table)
    if not rows:
        raise DataError(
            f"{path} names none of the photographs: it has {examples(unknown)}, the data have "
            f"{examples(table['image_id'])}. Is it a split of another data set?"
        )
    folds: tuple[int, ...] = ()
    if column == "fold":
        numbers = {image_id: _one(path, image_id, own, _fold) for image_id, own in rows.items()}
        folds = tuple(sorted(set(numbers.values())))
        if spec.fold not in folds:
            raise DataError(f"{path} has the folds {', '.join(map(str, folds))}: set fold to one of them")
        subsets = {name: "test" if number == spec.fold else "train" for name, number in numbers.items()}
    else:
        parse = partial(_subset, column=column)
        subsets = {image_id: _one(path, image_id, own, parse) for image_id, own in rows.items()}
    grades = _grades(path, rows, table) if "grade" in file.columns else None
    return SplitFile(path, subsets, grades, tuple(unknown), folds)


def _place_column(file: LabelFile) -> str:
    present = [column for column in _PLACES if column in file.columns]
    if "image_id" not in file.columns or not present:
        missing = "image_id" if "image_id" not in file.columns else "subset (or split, or fold)"
        raise DataError(
            f"{file.path} has no column {missing}; its columns are {', '.join(file.columns)}. "
            "A split file needs image_id and subset (or fold): rename them"
        )
    if len(present) > 1:
        raise DataError(f"{file.path} has the columns {' and '.join(present)}: keep one of them")
    return present[0]


def _matched(file: LabelFile, table: pd.DataFrame) -> tuple[dict[str, list[LabelRow]], list[str]]:
    """Return the rows of each photograph, and names that match no photograph."""
    ids = set(table["image_id"])
    aliases = _aliases(table)
    rows: defaultdict[str, list[LabelRow]] = defaultdict(list)
    unknown = []
    for row in file.rows:
        name = row.cells["image_id"]
        if row.surplus:
            raise DataError(f"{file.path}:{row.line} {SURPLUS}")
        matches = {name} if name in ids else aliases.get(name) or aliases.get(_stem(name), set())
        if len(matches) > 1:
            raise DataError(
                f"{file.path}:{row.line}: {name} fits several photographs {examples(matches)}: "
                "write the image_id in full"
            )
        if not matches:
            unknown.append(name)
        for image_id in matches:
            rows[image_id].append(row)
    return dict(rows), unknown


def _aliases(table: pd.DataFrame) -> dict[str, set[str]]:
    """Return photographs by alternative names: without extension, with or without the data set."""
    aliases: defaultdict[str, set[str]] = defaultdict(set)
    for image_id, dataset in zip(table["image_id"], table["dataset"], strict=True):
        stem = _stem(image_id)
        for name in (stem, f"{dataset}/{stem}", stem.removeprefix(f"{dataset}/")):
            aliases[name].add(image_id)
    return aliases


def _stem(name: str) -> str:
    ending = PurePosixPath(name).suffix
    return name.removesuffix(ending) if ending.lower() in IMAGE_EXTENSIONS else name


def _one(path: Path, image_id: str, rows: list[LabelRow], parse: Callable[[LabelRow], _Value]) -> _Value:
    """Parse the rows of a photograph, which must agree."""
    values = {}
    for row in rows:
        try:
            values[parse(row)] = row.line
        except RowError as error:
            raise DataError(f"{path}:{row.line}: {image_id}: {error}") from None
    if len(values) > 1:
        listed = "; ".join(f"line {line}: {value}" for value, line in values.items())
        raise DataError(f"{path} names {image_id} more than once and differently ({listed}): keep one row")
    return next(iter(values))


def _subset(row: LabelRow, column: str) -> str:
    text = row.cells[column]
    name = text.lower().replace("unlabeled", "unlabelled")
    subset = name if name in SUBSETS else parse_split(text)
    if subset is None:
        raise RowError(f"no {column} is given; write one of {', '.join(SUBSETS)}")
    return subset


def _fold(row: LabelRow) -> int:
    text = row.cells["fold"]
    try:
        number = float(text.replace(",", "."))
    except ValueError:
        raise RowError(f'fold "{text}" is not a number') from None
    if not number.is_integer():
        raise RowError(f"fold {text} is not a whole number")
    return int(number)


def _grades(path: Path, rows: dict[str, list[LabelRow]], table: pd.DataFrame) -> dict[str, int]:
    """Return the grades in the file, after comparing them with those of the data."""
    given = {}
    for name, own in rows.items():
        grade = _one(path, name, own, lambda row: parse_grade(row.cells["grade"]))
        if grade is not None:
            given[name] = grade
    _check_grades(path, given, table)
    return given


def _check_grades(path: Path, given: dict[str, int], table: pd.DataFrame) -> None:
    """Compare grades with those of the data; for copies that disagree, any of their grades is accepted."""
    graded = table[table["grade"].notna()]
    cluster = graded["duplicate"].fillna("")
    by_cluster = graded.groupby("duplicate")["grade"].agg(set).to_dict()
    other = []
    for image_id, own, copies in zip(graded["image_id"], graded["grade"], cluster, strict=True):
        grade = given.get(image_id)
        if grade is not None and grade != own and grade not in by_cluster.get(copies, ()):
            other.append(f"{image_id}: {grade} there, {own} in the data")
    if other:
        raise DataError(
            f"{path} has other grades than the data for {len(other)} of {len(given)} photographs "
            f"{examples(other)}: it was made for other data or labels. To use its subsets anyway, "
            "delete its column grade"
        )
