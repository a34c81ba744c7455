"""EyePACS: Kaggle's Diabetic Retinopathy Detection of 2015."""

import re
from collections.abc import Iterator
from pathlib import Path

from drgrade.data.sources.base import (
    About,
    Entry,
    Item,
    Problem,
    Source,
    parse_grade,
    read_folder,
    read_rows,
)
from drgrade.data.sources.label_files import LabelRow, PhotoFinder, RowError, read_label_file

_SETS = {"train": ("trainLabels.csv", "train"), "test": ("retinopathy_solution.csv", "test")}
_IMAGE, _GRADE = "image", "level"
_NAME = re.compile(r"(?P<patient>.+)_(?P<eye>left|right)", re.IGNORECASE)


class EyePACS(Source):
    """EyePACS: 35,126 training and 53,576 test photographs, two per patient, of many clinics and cameras.

    Names contain patient and eye: ``PATIENT_left`` or ``PATIENT_right``. The test set is ungraded without
    ``retinopathy_solution.csv``. The root contains ``trainLabels.csv``, ``train`` and optionally ``test``.
    """

    name = "eyepacs"
    about = About(
        title="EyePACS (Kaggle, Diabetic Retinopathy Detection)",
        terms="the rules of the Kaggle competition; no redistribution",
        url="https://www.kaggle.com/c/diabetic-retinopathy-detection",
        citations=("Kaggle and EyePACS, Diabetic Retinopathy Detection, 2015",),
        cameras="Many clinics of the screening platform EyePACS; different cameras, not named.",
        limits=(
            "Each photograph has one grade by one clinician; the competition warns of noise in photographs "
            "and labels.",
            "About a quarter of the photographs is reported to be ungradable (bioRxiv 225508, 2017).",
        ),
    )
    how_to_get = f"""\
EyePACS is available to everyone who accepts the rules of its Kaggle competition (terms: no redistribution):
  kaggle competitions download -c diabetic-retinopathy-detection
(https://www.kaggle.com/c/diabetic-retinopathy-detection, with your own token). The archives come in parts:
join them (cat train.zip.* > train.zip) and unpack them. data.root then contains
  trainLabels.csv (image,level), train/PATIENT_left.jpeg and _right.jpeg, and for the test set
  test/*.jpeg and retinopathy_solution.csv (image,level,Usage; published on the forum after the competition).
{about.cite}"""

    def items(self) -> Iterator[Item]:
        """Read the label files, or list the test photographs without one; the training set must exist."""
        for needed in _SETS["train"]:
            self.need(needed)
        for split in _SETS:
            yield from self._read_set(split)

    def photograph_folders(self) -> tuple[str, ...]:
        """Return the folders that hold the photographs; see the base class."""
        return tuple(folder for _, folder in _SETS.values())

    def _read_set(self, split: str) -> Iterator[Item]:
        file, folder = _SETS[split]
        if not (self.root / folder).is_dir():
            if (self.root / file).is_file():
                reason = f"none of its photographs is there: no folder {folder}"
                yield Problem("", file, reason, "left out")
            return
        finder = PhotoFinder(self.root, self.innermost(folder), loose=True)
        if not (self.root / file).is_file():
            yield from read_folder(finder, lambda path: _entry(Path(path).stem, path, None, split))
            return
        labels = read_label_file(self.root / file)
        image, level = labels.column(_IMAGE), labels.column(_GRADE)

        def entry(row: LabelRow, path: str) -> Entry:
            return _entry(finder.stem(row.cells[image]), path, parse_grade(row.cells[level]), split)

        yield from read_rows(labels, image, finder, entry)


def _entry(name: str, path: str, grade: int | None, split: str) -> Entry:
    match = _NAME.fullmatch(name)
    if match is None:
        raise RowError(f'the name "{name}" does not say patient and eye (PATIENT_left, PATIENT_right)')
    return Entry(name, path, grade, match["patient"], match["eye"].lower(), split)
