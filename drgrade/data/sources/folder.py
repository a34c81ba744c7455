"""Any folder of photographs, with a CSV file of grades or without."""

from collections.abc import Iterator
from pathlib import Path

from drgrade.data.reading import IMAGE_EXTENSIONS
from drgrade.data.sources.base import (
    Entry,
    PhotoFinder,
    Problem,
    RowError,
    Source,
    SourceTable,
    parse_eye,
    parse_grade,
    parse_split,
    parse_text,
    require_folder,
    source_table,
)
from drgrade.data.sources.labels import LabelFile, LabelRow, read_label_file
from drgrade.errors import DataError


class Folder(Source):
    """A folder of photographs, and a CSV file with a row for each.

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
        entries: list[Entry] = []
        problems: list[Problem] = []
        if self.csv is not None:
            for item in self._listed(self._label_file(), finder):
                (entries if isinstance(item, Entry) else problems).append(item)  # type: ignore[arg-type]
        if self.csv is None or self.include_unlisted:
            for item in self._unlisted({entry.path for entry in entries}, finder):
                (entries if isinstance(item, Entry) else problems).append(item)  # type: ignore[arg-type]
        if not entries and not problems:
            raise DataError(f"{self.csv or self.root} names no photograph: it is empty")
        return source_table(entries, problems, self.name)

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

    def _listed(self, labels: LabelFile, finder: PhotoFinder) -> Iterator[Entry | Problem]:
        for row in labels.rows:
            where = f"{labels.path.name}:{row.line}"
            try:
                yield self._entry(row, where, finder)
            except RowError as error:
                yield Problem(finder.stem(row.cells[self.image_column]), where, str(error), "left out")

    def _entry(self, row: LabelRow, where: str, finder: PhotoFinder) -> Entry:
        if row.surplus:
            raise RowError(f"{row.surplus} more values than columns")
        name = row.cells[self.image_column]
        if not name:
            raise RowError(f'empty id (column "{self.image_column}")')

        def cell(column: str | None) -> str:
            return row.cells[column] if column is not None else ""

        path = finder.find(name)
        return Entry(
            image_id=self._image_id(path, finder),
            path=path,
            grade=parse_grade(cell(self.grade_column)),
            patient_id=parse_text(cell(self.patient_column)),
            eye=parse_eye(cell(self.eye_column)),
            split=parse_split(cell(self.split_column)),
            where=where,
        )

    def _unlisted(self, listed: set[str], finder: PhotoFinder) -> Iterator[Entry | Problem]:
        for path in finder.all_photographs():
            if path in listed:
                continue
            image_id = self._image_id(path, finder)
            try:
                finder.find((self.root / path).absolute().as_posix())
            except RowError as error:
                yield Problem(image_id, path, str(error), "left out")
            else:
                yield Entry(image_id, path, where=path)

    def _image_id(self, path: str, finder: PhotoFinder) -> str:
        """The path below the folder of photographs, without its ending."""
        below = (
            Path(self.root, path).relative_to(self.root / self.images) if self.images != "." else Path(path)
        )
        return finder.stem(below.as_posix())
