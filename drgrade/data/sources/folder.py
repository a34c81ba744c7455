"""Any folder of photographs, with a CSV file of grades or without."""

from functools import partial
from pathlib import Path

from drgrade.data.image_reader import IMAGE_EXTENSIONS
from drgrade.data.sources.base import (
    About,
    Entry,
    PhotoFinder,
    Problem,
    Source,
    SourceTable,
    collect,
    parse_eye,
    parse_grade,
    parse_split,
    parse_text,
    read_folder,
    read_rows,
    require_folder,
)
from drgrade.data.sources.label_files import LabelFile, LabelRow, read_label_file
from drgrade.errors import DataError


class Folder(Source):
    """A folder of photographs, and a CSV file (or .xlsx sheet) with a row for each.

    A photograph's image_id is its path as the CSV file names it, without the ending. An empty grade means
    that the photograph has no label. A row that cannot be used is left out with its reason.

    Args:
        root: The folder. Nothing outside it is read.
        csv: Label file, relative to ``root`` or absolute; None for a folder without labels: all
            photographs in it and below.
        image_column: Column with file names or paths, with or without ending, relative to ``images``.
        grade_column: Column with grades 0-4; empty cells are photographs without a label. None: no grades.
        patient_column: Column that names the patient, so that splits keep one patient's photographs together.
        eye_column: Column with left/right (or L/R, OS/OD).
        split_column: Column with train/val/test as published.
        images: Folder of the photographs, relative to ``root``.
        include_unlisted: Add photographs that no row names, without a grade. Otherwise they are ignored.
        extensions: Endings that are taken for photographs.
        name: Name of the data set.
    """

    about = About(
        title="a folder of photographs",
        terms="not known to drgrade: ask who gave you the photographs",
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
        self.name = name
        self.root = Path(root)
        self.csv = None if csv is None else self.root / csv
        self.image_column = image_column
        self.grade_column = grade_column
        self.patient_column = patient_column
        self.eye_column = eye_column
        self.split_column = split_column
        self.images = images
        self.include_unlisted = include_unlisted
        self.extensions = tuple(extension.lower() for extension in extensions)

    def read(self) -> SourceTable:
        """Read the label file, and find its photographs.

        Raises:
            DataError: If the folder, the label file or a column is missing, or there is no photograph at all.
        """
        require_folder(self.root, "a folder of photographs")
        if not (self.root / self.images).is_dir():
            raise DataError(
                f"{self.root / self.images} is not a folder: set data.images=DIR, relative to data.root"
            )
        finder = PhotoFinder(self.root, self.images, self.extensions)
        items: list[Entry | Problem] = []
        if self.csv is not None:
            items += read_rows(
                self._label_file(), self.image_column, finder, partial(self._entry, finder=finder)
            )
        if self.csv is None or self.include_unlisted:
            listed = {item.path for item in items if isinstance(item, Entry)}
            items += read_folder(finder, lambda path: Entry(self._image_id(path, finder), path), skip=listed)
        if not items:
            raise DataError(f"{self.csv or self.root} names no photograph: it is empty")
        return collect(items, self.name)

    def photograph_folders(self) -> tuple[str, ...]:
        """See :meth:`Source.photograph_folders`."""
        return (self.images,)

    def _label_file(self) -> LabelFile:
        assert self.csv is not None
        if not self.csv.is_file():
            there = ", ".join(sorted(path.name for path in self.root.glob("*.csv"))) or "none"
            raise DataError(
                f"no label file {self.csv} (CSV files in {self.root}: {there}). Name it with data.csv=FILE, "
                "or set data.csv=null for photographs without labels"
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

        return Entry(
            image_id=self._image_id(path, finder),
            path=path,
            grade=parse_grade(cell(self.grade_column)),
            patient_id=parse_text(cell(self.patient_column)),
            eye=parse_eye(cell(self.eye_column)),
            split=parse_split(cell(self.split_column)),
        )

    def _image_id(self, path: str, finder: PhotoFinder) -> str:
        """The path below the folder of photographs, without its ending."""
        below = (
            Path(self.root, path).relative_to(self.root / self.images) if self.images != "." else Path(path)
        )
        return finder.stem(below.as_posix())
