"""APTOS 2019 Blindness Detection (Aravind Eye Hospital, Kaggle)."""

from collections.abc import Iterator
from pathlib import Path

from drgrade.data.sources.base import (
    About,
    Entry,
    PhotoFinder,
    Problem,
    Source,
    SourceTable,
    collect,
    parse_grade,
    read_rows,
)
from drgrade.data.sources.label_files import LabelRow, read_label_file

_SETS = {
    "train": (("train.csv", "train_1.csv"), "train_images"),
    "val": (("valid.csv",), "val_images"),
    "test": (("test.csv",), "test_images"),
}
"""Label files and image folder of each set: the competition's, and those of the common re-split."""

_IMAGE, _GRADE = "id_code", "diagnosis"


class APTOS2019(Source):
    """3,662 graded photographs of several cameras, and the 1,928 of the competition's test, without grades.

    Patients and eyes are not published. The re-split of the 3,662 into ``train_1.csv``, ``valid.csv`` and
    ``test.csv`` is read, too; its ``split`` is then given.

    Args:
        root: Folder that holds ``train.csv`` and ``train_images``.
        name: Name of the data set.
    """

    about = About(
        title="APTOS 2019 Blindness Detection",
        terms="the rules of the Kaggle competition; not to be passed on",
        url="https://www.kaggle.com/c/aptos2019-blindness-detection",
        citations=("Asia Pacific Tele-Ophthalmology Society, APTOS 2019 Blindness Detection, Kaggle, 2019",),
        cameras="Aravind Eye Hospital, India: several clinics and cameras, not given by photograph.",
        limits=(
            "Patients are not published: both eyes of one may stand on two sides of the split.",
            "Size and framing of the photographs go with the grade; a model can learn the camera instead.",
            "Each photograph was graded by one clinician.",
        ),
    )
    how_to_get = f"""\
APTOS 2019 is for those who accept the rules of its Kaggle competition (terms: there; not to be passed on):
  kaggle competitions download -c aptos2019-blindness-detection
(https://www.kaggle.com/c/aptos2019-blindness-detection, with your own token). Unpacked, it holds
  train.csv (id_code,diagnosis), train_images/ID.png, test.csv (id_code) and test_images/ID.png.
{about.cite}"""

    def __init__(self, root: str | Path, name: str = "aptos2019") -> None:
        self.root = Path(root)
        self.name = name

    def read(self) -> SourceTable:
        """Read the label files.

        Raises:
            DataError: If the training set is not there, or a label file lacks a column.
        """
        self.need(*_SETS["train"][0])
        self.need(_SETS["train"][1])
        return collect((item for split in _SETS for item in self._read_set(split)), self.name)

    def photograph_folders(self) -> tuple[str, ...]:
        """See :meth:`Source.photograph_folders`."""
        return tuple(folder for _, folder in _SETS.values())

    def _read_set(self, split: str) -> Iterator[Entry | Problem]:
        files, folder = _SETS[split]
        file = next((file for file in files if (self.root / file).is_file()), None)
        if file is None:
            return
        if not (self.root / folder).is_dir():
            yield Problem("", file, f"none of its photographs is there: no folder {folder}", "left out")
            return
        labels = read_label_file(self.root / file)
        column = labels.column(_IMAGE)
        graded = labels.column(_GRADE) if split != "test" or _GRADE in labels.columns else None
        nested = f"{folder}/{folder}"
        finder = PhotoFinder(self.root, nested if (self.root / nested).is_dir() else folder, loose=True)

        def entry(row: LabelRow, path: str) -> Entry:
            name, grade = finder.stem(row.cells[column]), row.cells[graded] if graded else ""
            return Entry(name, path, parse_grade(grade), split=split)

        yield from read_rows(labels, column, finder, entry)
