"""DeepDRiD: the regular (45 degree) photographs of the ISBI 2020 challenge."""

import re
from collections.abc import Iterator

from drgrade.data.sources.base import About, Entry, Item, Source, parse_grade, parse_text, read_rows
from drgrade.data.sources.label_files import LabelFile, LabelRow, PhotoFinder, RowError, read_label_file

PART = "regular_fundus_images"
UNGRADABLE = 5
"""Grade of photographs of insufficient quality."""

_SETS = {
    "train": ("regular-fundus-training", ("regular-fundus-training.csv",)),
    "val": ("regular-fundus-validation", ("regular-fundus-validation.csv",)),
    "test": (
        "Online-Challenge1&2-Evaluation",
        ("Challenge1_labels.csv", "Challenge1_labels.xlsx", "Challenge1_upload.csv"),
    ),
}
_IMAGES = "Images"
_IMAGE = "image_id"
_EYES = {"left": "left_eye_DR_Level", "right": "right_eye_DR_Level"}
_GRADE = ("DR_Levels", "DR_Level")
_NAME = re.compile(r"(?P<patient>\d+)_(?P<eye>[lr])\d+")


class DeepDRiD(Source):
    """DeepDRiD: 2,000 photographs of 500 patients, two of each eye, in a training, validation and test set.

    Names contain patient and eye: ``12_l1``, ``12_l2``, ``12_r1``, ``12_r2``. If the label file has the
    grade of the other eye, the grade is kept and the eye is unknown. The root contains
    ``regular_fundus_images`` or is that folder.
    """

    name = "deepdrid"
    about = About(
        title="DeepDRiD, regular fundus photographs",
        terms="none stated; the authors ask for the paper to be cited",
        url="https://github.com/deepdrdoc/DeepDRiD",
        citations=("R. Liu et al., Patterns 3(6):100512, 2022, doi 10.1016/j.patter.2022.100512",),
        cameras="Three screening projects in China; the cameras are not given.",
        limits=("Many photographs are of poor quality.",),
    )
    how_to_get = f"""\
DeepDRiD is on GitHub (terms: none stated there but to cite the paper):
  git clone https://github.com/deepdrdoc/DeepDRiD
data.root is the clone, which contains
  {PART}/regular-fundus-training/regular-fundus-training.csv and Images/PATIENT/PATIENT_l1.jpg
  {PART}/regular-fundus-validation/regular-fundus-validation.csv and Images/...
  {PART}/Online-Challenge1&2-Evaluation/Challenge1_labels.xlsx (or .csv) and Images/...
{about.cite}"""

    def items(self) -> Iterator[Item]:
        """Read the three label files; without labels (``Challenge1_upload.csv``) the test set is ungraded."""
        part = self._part()
        files = {split: self._need_set(part, split) for split in _SETS}
        for split, file in files.items():
            yield from self._read_set(part, split, file)

    def photograph_folders(self) -> tuple[str, ...]:
        """Return the folders that hold the photographs; see the base class."""
        return tuple(f"{self._part()}{folder}/{_IMAGES}" for folder, _ in _SETS.values())

    def _part(self) -> str:
        first = _SETS["train"][0]
        return self.need(f"{PART}/{first}", first).removesuffix(first)

    def _need_set(self, part: str, split: str) -> str:
        folder, files = _SETS[split]
        self.need(f"{part}{folder}/{_IMAGES}")
        return self.need(*(f"{part}{folder}/{file}" for file in files))

    def _read_set(self, part: str, split: str, file: str) -> Iterator[Item]:
        labels = read_label_file(self.root / file)
        image = labels.column(_IMAGE)
        grades = _grade_columns(labels, split)
        finder = PhotoFinder(self.root, f"{part}{_SETS[split][0]}/{_IMAGES}", loose=True)

        def entry(row: LabelRow, path: str) -> Entry:
            match = _NAME.fullmatch(finder.stem(row.cells[image]))
            if match is None:
                raise RowError(f'the name "{row.cells[image]}" does not say patient and eye (12_l1, 12_r2)')
            named = "left" if match["eye"] == "l" else "right"
            graded = [eye for eye, column in grades.items() if parse_text(row.cells[column]) is not None]
            if len(graded) > 1:
                raise RowError("it has a grade of the left and of the right eye")
            text = row.cells[grades[graded[0]]] if graded else ""
            eye = None if graded and graded[0] not in (named, "") else named
            return Entry(
                match[0], path, parse_grade(text, ungradable=UNGRADABLE), match["patient"], eye, split
            )

        yield from read_rows(labels, image, finder, entry, locate=_below_patient)


def _grade_columns(labels: LabelFile, split: str) -> dict[str, str]:
    """Return the column of the grades for each eye; "" means either eye."""
    if split == "test":
        return {"": labels.column(*_GRADE)}
    return {eye: labels.column(column) for eye, column in _EYES.items()}


def _below_patient(name: str) -> str:
    """Return the path below the folder of the patient; the column image_path names no existing path."""
    return f"{name.partition('_')[0]}/{name}"
