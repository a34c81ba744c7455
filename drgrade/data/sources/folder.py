"""Any folder of photographs, with or without a CSV file of grades."""

from functools import partial
from pathlib import Path

from drgrade.data.dicom import DICOM_EXTENSIONS, DicomLabels, read_labels
from drgrade.data.image_reader import IMAGE_EXTENSIONS
from drgrade.data.sources.base import (
    About,
    Entry,
    Item,
    Source,
    parse_eye,
    parse_grade,
    parse_split,
    parse_text,
    read_folder,
    read_rows,
)
from drgrade.data.sources.label_files import LabelFile, LabelRow, PhotoFinder, read_label_file
from drgrade.errors import DataError
from drgrade.files import require_regular


class Folder(Source):
    """Folder of photographs with a CSV file (or .xlsx sheet) that has one row per photograph.

    Patient and eye of a DICOM file are those in its header, unless the label file has them. The image_id of a
    photograph is its path below ``images`` without extension. Rows that cannot be used are
    left out and reported.

    Args:
        root: The folder. Files outside it are not read.
        csv: Label file, relative to ``root`` or absolute. None: all photographs in the folder, ungraded.
        image_column: Column of file names or paths, with or without extension, relative to ``images``.
        grade_column: Column of grades 0-4; empty cells are ungraded photographs. None: no grades.
        patient_column: Column of patient ids, by which splits keep photographs of a patient together.
        eye_column: Column with left/right, L/R or OS/OD.
        split_column: Column with the published split, train/val/test.
        images: Folder of the photographs, relative to ``root``.
        include_unlisted: Add photographs without a row as ungraded ones.
        extensions: Extensions of photographs.
        name: Name of the data set.
    """

    about = About(
        title="a folder of photographs",
        terms="not known to drgrade; ask the owner of the photographs",
        cameras="Not known to drgrade.",
        public=False,
    )
    how_to_get = """\
data=folder reads your own photographs: data.root=DIR is their folder, data.csv=FILE their grades
(data.csv=null: none), data.image_column and data.grade_column its columns."""

    def __init__(
        self,
        root: str | Path,
        csv: str | Path | None = "labels.csv",
        image_column: str = "image",
        grade_column: str | None = "grade",
        patient_column: str | None = None,
        eye_column: str | None = None,
        split_column: str | None = None,
        images: str = ".",
        include_unlisted: bool = False,
        extensions: tuple[str, ...] = IMAGE_EXTENSIONS,
        name: str = "folder",
    ) -> None:
        super().__init__(root, name)
        self.csv = None if csv is None else self.root / csv
        self.image_column = image_column
        self.grade_column = grade_column
        self.patient_column = patient_column
        self.eye_column = eye_column
        self.split_column = split_column
        self.images = images
        self.include_unlisted = include_unlisted
        self.extensions = tuple(extension.lower() for extension in extensions)

    def items(self) -> list[Item]:
        """Read the label file and find its photographs; there must be at least one."""
        if not self.root.is_dir():
            state = "is not a folder" if self.root.exists() else "does not exist"
            raise DataError(f"{self.root} {state}: expected a folder of photographs there. Set data.root=DIR")
        if not (self.root / self.images).is_dir():
            raise DataError(
                f"{self.root / self.images} is not a folder: set data.images=DIR, relative to data.root"
            )
        finder = PhotoFinder(self.root, self.images, self.extensions)
        items: list[Item] = []
        if self.csv is not None:
            items += read_rows(
                self._label_file(), self.image_column, finder, partial(self._entry, finder=finder)
            )
        if self.csv is None or self.include_unlisted:
            listed = {item.path for item in items if isinstance(item, Entry)}
            items += read_folder(finder, partial(self._unlisted_entry, finder=finder), skip=listed)
        if not items:
            raise DataError(f"{self.csv or self.root} contains no photographs")
        return items

    def photograph_folders(self) -> tuple[str, ...]:
        """Return the folders that hold the photographs; see the base class."""
        return (self.images,)

    def _label_file(self) -> LabelFile:
        assert self.csv is not None
        if not require_regular(self.csv).is_file():
            there = ", ".join(sorted(path.name for path in self.root.glob("*.csv"))) or "none"
            raise DataError(
                f"the label file {self.csv} does not exist (CSV files in {self.root}: {there}). Set "
                "data.csv=FILE, or data.csv=null for photographs without labels"
            )
        labels = read_label_file(self.csv)
        labels.require(
            image_column=self.image_column,
            grade_column=self.grade_column,
            patient_column=self.patient_column,
            eye_column=self.eye_column,
            split_column=self.split_column,
        )
        return labels

    def _entry(self, row: LabelRow, path: str, finder: PhotoFinder) -> Entry:
        def cell(column: str | None) -> str:
            return row.cells[column] if column is not None else ""

        header = self._header(path)
        return Entry(
            image_id=self._image_id(path, finder),
            path=path,
            grade=parse_grade(cell(self.grade_column)),
            patient_id=parse_text(cell(self.patient_column)) or header.patient,
            eye=parse_eye(cell(self.eye_column)) or header.eye,
            split=parse_split(cell(self.split_column)),
        )

    def _unlisted_entry(self, path: str, finder: PhotoFinder) -> Entry:
        header = self._header(path)
        return Entry(self._image_id(path, finder), path, patient_id=header.patient, eye=header.eye)

    def _header(self, path: str) -> DicomLabels:
        is_dicom = path.lower().endswith(DICOM_EXTENSIONS)
        return read_labels(self.root / path) if is_dicom else DicomLabels()

    def _image_id(self, path: str, finder: PhotoFinder) -> str:
        below = Path(self.root, path).relative_to(self.root / self.images)
        return finder.stem(below.as_posix())
