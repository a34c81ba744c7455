"""The Indian Diabetic Retinopathy Image Dataset (IDRiD), part B: disease grading."""

import re
import shutil
from collections.abc import Hashable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import pandas as pd

from drgrade.data.sources.base import (
    About,
    Entry,
    Item,
    Source,
    build_once,
    needs_extra,
    parse_grade,
    read_rows,
)
from drgrade.data.sources.label_files import LabelRow, PhotoFinder, read_label_file
from drgrade.errors import DataError
from drgrade.grades import NUM_GRADES
from drgrade.progress import say

PART = "B. Disease Grading"
REPOSITORY = "amin-nejad/idrid-disease-grading"
"""Copy on Hugging Face: parquet files with columns ``image`` (bytes, path) and ``label`` (0-4)."""

PUBLISHED = {"train": [134, 20, 136, 74, 49], "test": [34, 5, 32, 19, 13]}
"""Number of photographs of grade 0-4 in each set (Porwal et al. 2018)."""

_SETS = {
    "train": ("a. Training Set", "a. IDRiD_Disease Grading_Training Labels.csv"),
    "test": ("b. Testing Set", "b. IDRiD_Disease Grading_Testing Labels.csv"),
}
_IMAGES, _LABELS = "1. Original Images", "2. Groundtruths"
_IMAGE_COLUMN, _GRADE_COLUMN = "Image name", "Retinopathy grade"
_NAME = re.compile(r"IDRiD_\d{3}\.jpg", re.IGNORECASE)
_DOWNLOAD = ".download"


class IDRiD(Source):
    """IDRiD: 413 training and 103 test photographs of one clinic and one camera, 4288 x 2848 pixels.

    Both sets use the same names, so an image_id is ``train/IDRiD_001`` or ``test/IDRiD_001``. Patients are
    not published. The root contains "B. Disease Grading" or is that folder.
    """

    name = "idrid"
    about = About(
        title="Indian Diabetic Retinopathy Image Dataset (IDRiD), B: disease grading",
        terms="CC BY 4.0",
        licence="cc-by-4.0",
        url="https://doi.org/10.21227/H25W98",
        citations=("P. Porwal et al., Data 3(3):25, 2018, doi 10.3390/data3030025",),
        cameras="One eye clinic in Nanded, India, and one camera: Kowa VX-10 alpha, 50 degrees.",
        limits=("Patients are not published: both eyes of a patient may be on two sides of a split.",),
        hub=REPOSITORY,
    )
    how_to_get = f"""\
IDRiD is free (CC BY 4.0): IEEE DataPort, "Indian Diabetic Retinopathy Image Dataset (IDRiD)",
doi 10.21227/H25W98; download "{PART}.zip" and unpack it. data.root then contains
  {PART}/{_IMAGES}/a. Training Set/IDRiD_001.jpg ... IDRiD_413.jpg
  {PART}/{_IMAGES}/b. Testing Set/IDRiD_001.jpg ... IDRiD_103.jpg
  {PART}/{_LABELS}/a. IDRiD_Disease Grading_Training Labels.csv
  {PART}/{_LABELS}/b. IDRiD_Disease Grading_Testing Labels.csv
{about.cite}"""

    def items(self) -> Iterator[Item]:
        """Read both label files."""
        part = self._part()
        for split in _SETS:
            yield from self._read_set(part, split)

    def photograph_folders(self) -> tuple[str, ...]:
        """Return the folders that hold the photographs; see the base class."""
        return tuple(f"{self._part()}{_IMAGES}/{folder}" for folder, _ in _SETS.values())

    def download(self) -> None:
        """Download the copy on Hugging Face (200 MB) and write it in the official layout.

        Downloaded files stay in ``.download`` until everything is written, so that a second attempt resumes.

        Raises:
            DataError: If part of the data set exists, the download fails, or the copy does not have the
                published number of photographs of each grade.
        """
        if any((self.root / choice).exists() for choice in (PART, _IMAGES)):
            self._check_complete()
            say(f"data={self.name} exists already: {self.root}")
            return
        build_once(self.root / PART, self._fetch)
        shutil.rmtree(self.root / _DOWNLOAD, ignore_errors=True)
        say(f"data={self.name}: wrote {self.root / PART}")

    def _part(self) -> str:
        choices = (f"{PART}/", f"{PART}/{PART}/", "")
        return self.need(*(f"{choice}{_IMAGES}" for choice in choices)).removesuffix(_IMAGES)

    def _check_complete(self) -> None:
        try:
            self.read()
        except DataError as error:
            raise DataError(
                f"{self.root} contains part of IDRiD: complete it, or delete that part to download the "
                f"whole data set. {error}"
            ) from error

    def _read_set(self, part: str, split: str) -> Iterator[Item]:
        folder, file = _SETS[split]
        images = self.need(f"{part}{_IMAGES}/{folder}")
        labels = read_label_file(self.root / self.need(f"{part}{_LABELS}/{file}"))
        image, grade = labels.column(_IMAGE_COLUMN), labels.column(_GRADE_COLUMN)
        finder = PhotoFinder(self.root, images, loose=True)

        def entry(row: LabelRow, path: str) -> Entry:
            name = f"{split}/{finder.stem(row.cells[image])}"
            return Entry(name, path, parse_grade(row.cells[grade]), split=split)

        yield from read_rows(labels, image, finder, entry, prefix=f"{split}/")

    def _fetch(self, part: Path) -> None:
        """Download the copy and write it into the folder of part B."""
        say(f"data={self.name}: downloading {REPOSITORY} from Hugging Face (200 MB)")
        copy = _snapshot(self.root / _DOWNLOAD)
        (part / _LABELS).mkdir()
        for split, (folder, file) in _SETS.items():
            images = part / _IMAGES / folder
            images.mkdir(parents=True)
            rows = [row for parquet in sorted(copy.glob(f"data/{split}-*.parquet")) for row in _rows(parquet)]
            counts = [sum(grade == row["label"] for row in rows) for grade in range(NUM_GRADES)]
            if counts != PUBLISHED[split]:
                raise DataError(
                    f"{REPOSITORY} has changed: its {split} set has {counts} photographs of grade 0-4, not "
                    f"{PUBLISHED[split]} as published. Only {self.root / _DOWNLOAD} was kept; download the "
                    f"data set by hand.\n{self.how_to_get}"
                )
            labels = pd.DataFrame(_write(rows, images), columns=[_IMAGE_COLUMN, _GRADE_COLUMN])
            labels.sort_values(_IMAGE_COLUMN).to_csv(part / _LABELS / file, index=False)


def _snapshot(folder: Path) -> Path:
    """Download the parquet files that are missing."""
    from huggingface_hub import snapshot_download

    try:
        # Without a token: the data set is public and does not need the user's credentials.
        copy = snapshot_download(
            REPOSITORY, repo_type="dataset", allow_patterns=["data/*.parquet"], local_dir=folder, token=False
        )
    except Exception as error:  # the client raises errors of several HTTP libraries
        raise DataError(
            f"{REPOSITORY} cannot be downloaded from Hugging Face ({type(error).__name__}: "
            f"{str(error).splitlines()[0] if str(error) else 'no message'}). Try again, or download the data "
            f"set by hand.\n{IDRiD.how_to_get}"
        ) from error
    return Path(str(copy))


def _rows(parquet: Path) -> list[dict[Hashable, Any]]:
    """Read a parquet file: ``image`` is a dictionary of ``bytes`` and ``path``, ``label`` a grade."""
    try:
        table = pd.read_parquet(parquet, engine="pyarrow", columns=["image", "label"])
    except ImportError:
        raise needs_extra("download=true of data=idrid", "pyarrow") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{parquet} is damaged ({error}): delete it and try again") from error
    return table.to_dict("records")


def _write(rows: list[dict[Hashable, Any]], folder: Path) -> list[tuple[str, int]]:
    """Write the files of photographs and return their names and grades.

    Without official names they are called ``row_001``, ..., unlike any number of the authors.
    """
    names = [PurePosixPath(row["image"]["path"] or "").name for row in rows]
    if len(set(names)) < len(names) or not all(map(_NAME.fullmatch, names)):
        names = [f"row_{number:03d}.jpg" for number in range(1, len(rows) + 1)]
    for row, name in zip(rows, names, strict=True):
        (folder / name).write_bytes(row["image"]["bytes"])
    return [(name.rpartition(".")[0], int(row["label"])) for row, name in zip(rows, names, strict=True)]
