"""The Indian Diabetic Retinopathy Image Dataset (IDRiD), part B: disease grading."""

from collections.abc import Iterator
from pathlib import Path

from drgrade.data.sources.base import (
    Entry,
    PhotoFinder,
    Problem,
    RowError,
    Source,
    SourceTable,
    parse_grade,
    source_table,
)
from drgrade.data.sources.labels import read_label_file
from drgrade.errors import DataError

PART = "B. Disease Grading"
_SETS = {
    "train": ("a. Training Set", "a. IDRiD_Disease Grading_Training Labels.csv"),
    "test": ("b. Testing Set", "b. IDRiD_Disease Grading_Testing Labels.csv"),
}
_IMAGES, _LABELS = "1. Original Images", "2. Groundtruths"
_IMAGE_COLUMN, _GRADE_COLUMN = "Image name", "Retinopathy grade"

HOW_TO_GET = f"""\
IDRiD is free (CC BY 4.0): IEEE DataPort, "Indian Diabetic Retinopathy Image Dataset (IDRiD)",
doi 10.21227/H25W98; download "{PART}.zip", unpack it, and set data.root=DIR to the folder that then holds
  {PART}/{_IMAGES}/a. Training Set/IDRiD_001.jpg ... IDRiD_413.jpg
  {PART}/{_IMAGES}/b. Testing Set/IDRiD_001.jpg ... IDRiD_103.jpg
  {PART}/{_LABELS}/a. IDRiD_Disease Grading_Training Labels.csv
  {PART}/{_LABELS}/b. IDRiD_Disease Grading_Testing Labels.csv
Cite: P. Porwal et al., Data 3(3):25, 2018, doi 10.3390/data3030025."""


class IDRiD(Source):
    """413 training and 103 test photographs of one clinic and one camera, 4288 x 2848 pixels, grades 0-4.

    Names repeat between the two sets, so an image_id is ``train/IDRiD_001`` or ``test/IDRiD_001``. The
    patients are not published; the authors' split is given in ``split``.

    Args:
        root: Folder that holds "B. Disease Grading", or that folder itself.
        name: Name of the data set.
    """

    def __init__(self, root: str | Path, name: str = "idrid") -> None:
        self.root = Path(root)
        self.name = name

    def read(self) -> SourceTable:
        """Read both label files.

        Raises:
            DataError: If a folder or a label file of the official layout is missing.
        """
        part = self._part()
        entries: list[Entry] = []
        problems: list[Problem] = []
        for split in _SETS:
            for item in self._read_set(part, split):
                (entries if isinstance(item, Entry) else problems).append(item)  # type: ignore[arg-type]
        return source_table(entries, problems, self.name)

    def _part(self) -> Path:
        """The folder of part B; archives are often unpacked one level deeper than meant."""
        for candidate in (self.root, self.root / PART, self.root / PART / PART):
            if (candidate / _IMAGES).is_dir():
                return candidate
        state = "holds no IDRiD disease grading" if self.root.is_dir() else "is not a folder"
        raise DataError(f"{self.root} {state}.\n{HOW_TO_GET}")

    def _read_set(self, part: Path, split: str) -> Iterator[Entry | Problem]:
        image_folder, label_file = part / _IMAGES / _SETS[split][0], part / _LABELS / _SETS[split][1]
        for needed in (image_folder, label_file):
            if not needed.exists():
                raise DataError(f"IDRiD is incomplete: {needed} is not there.\n{HOW_TO_GET}")
        labels = read_label_file(label_file)
        labels.require(image_column=_IMAGE_COLUMN, grade_column=_GRADE_COLUMN)
        finder = PhotoFinder(self.root, image_folder.relative_to(self.root).as_posix())
        for row in labels.rows:
            name, where = row.cells[_IMAGE_COLUMN], f"{label_file.name}:{row.line}"
            try:
                if not name:
                    raise RowError(f'empty id (column "{_IMAGE_COLUMN}")')
                path, grade = finder.find(name), parse_grade(row.cells[_GRADE_COLUMN])
                yield Entry(f"{split}/{finder.stem(name)}", path, grade, split=split, where=where)
            except RowError as error:
                yield Problem(f"{split}/{name}", where, str(error), "left out")
