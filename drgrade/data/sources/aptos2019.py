"""APTOS 2019 Blindness Detection (Aravind Eye Hospital, Kaggle)."""

from collections.abc import Iterator

from drgrade.data.sources.base import About, Entry, Item, Problem, Source, parse_grade, read_rows
from drgrade.data.sources.label_files import LabelRow, PhotoFinder, read_label_file

_SETS = {
    "train": (("train.csv", "train_1.csv"), "train_images"),
    "val": (("valid.csv",), "val_images"),
    "test": (("test.csv",), "test_images"),
}
"""Label files and image folder of each set, of the competition and of the common re-split."""

_IMAGE, _GRADE = "id_code", "diagnosis"


class APTOS2019(Source):
    """APTOS 2019: 3,662 graded photographs of several cameras and 1,928 ungraded test photographs.

    Patients and eyes are not published. The common re-split of the 3,662 into ``train_1.csv``, ``valid.csv``
    and ``test.csv`` is also supported. The root contains ``train.csv`` and ``train_images``.
    """

    name = "aptos2019"
    about = About(
        title="APTOS 2019 Blindness Detection",
        terms="the rules of the Kaggle competition; no redistribution",
        url="https://www.kaggle.com/c/aptos2019-blindness-detection",
        citations=("Asia Pacific Tele-Ophthalmology Society, APTOS 2019 Blindness Detection, Kaggle, 2019",),
        cameras="Aravind Eye Hospital, India: several clinics and cameras, not given by photograph.",
        limits=(
            "Patients are not published: both eyes of a patient may be on two sides of a split.",
            "Size and framing of the photographs correlate with the grade; a model can learn the camera "
            "instead.",
            "Each photograph was graded by one clinician.",
        ),
    )
    how_to_get = f"""\
APTOS 2019 is available to everyone who accepts the rules of its Kaggle competition (terms: no
redistribution):
  kaggle competitions download -c aptos2019-blindness-detection
(https://www.kaggle.com/c/aptos2019-blindness-detection, with your own token). The archive contains
  train.csv (id_code,diagnosis), train_images/ID.png, test.csv (id_code) and test_images/ID.png.
{about.cite}"""

    def items(self) -> Iterator[Item]:
        """Read the label files of all sets that exist; the training set must exist."""
        self.need(*_SETS["train"][0])
        self.need(_SETS["train"][1])
        for split in _SETS:
            yield from self._read_set(split)

    def photograph_folders(self) -> tuple[str, ...]:
        """Return the folders that hold the photographs; see the base class."""
        return tuple(folder for _, folder in _SETS.values())

    def _read_set(self, split: str) -> Iterator[Item]:
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
        finder = PhotoFinder(self.root, self.innermost(folder), loose=True)

        def entry(row: LabelRow, path: str) -> Entry:
            name, grade = finder.stem(row.cells[column]), row.cells[graded] if graded else ""
            return Entry(name, path, parse_grade(grade), split=split)

        yield from read_rows(labels, column, finder, entry)
