"""RetinaMNIST: small versions of the training and validation photographs of DeepDRiD."""

import hashlib
import importlib
import shutil
import zipfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pandas as pd
from filelock import FileLock

from drgrade.data.sources.base import (
    About,
    Entry,
    Item,
    Source,
    build_once,
    needs_extra,
    parse_grade,
    parse_split,
    read_rows,
)
from drgrade.data.sources.label_files import LabelRow, PhotoFinder, read_label_file
from drgrade.errors import ConfigError, DataError
from drgrade.files import require_regular
from drgrade.progress import say

SIZES = (28, 64, 128, 224)
"""Published sides of the photographs in pixels."""

_SETS = ("train", "val", "test")
_LABELS = "labels.csv"
_URL = "https://zenodo.org/records/10519652"


class RetinaMNIST(Source):
    """RetinaMNIST: 1,080 training, 120 validation and 400 test photographs, cropped to a square and resized.

    The photographs are arrays in one file (``retinamnist_224.npz``). On first use they are written as PNG
    files to a folder beside it, named after the content of the file. Patients and eyes are not published.

    Args:
        root: Folder that contains the .npz file.
        size: Side of the photographs in pixels, one of :data:`SIZES`.
        name: Name of the data set.

    Raises:
        ConfigError: If the size is unknown.
    """

    about = About(
        title="RetinaMNIST (MedMNIST v2)",
        terms="CC BY 4.0",
        licence="cc-by-4.0",
        url=_URL,
        citations=(
            "J. Yang et al., Scientific Data 10:41, 2023, doi 10.1038/s41597-022-01721-8",
            "R. Liu et al., Patterns 3(6):100512, 2022, doi 10.1016/j.patter.2022.100512",
        ),
        cameras="Made of DeepDRiD: three screening projects in China; the cameras are not given.",
        limits=(
            "Patients are not published: folds almost certainly share patients; the published test set "
            "does not.",
            "The photographs are small; lesions of grade 1 are hardly visible.",
        ),
    )
    how_to_get = f"""\
RetinaMNIST is free (CC BY 4.0): part of MedMNIST, {_URL}
data.root contains retinamnist_224.npz (or retinamnist_128.npz, retinamnist_64.npz, or retinamnist.npz for 28
px; selected by data.size). The official client (pip install medmnist) also downloads it:
  python -c "import medmnist; medmnist.RetinaMNIST('train', download=True, root='DIR', size=224)"
{about.cite}"""

    def __init__(self, root: str | Path, size: int = 224, name: str = "retinamnist") -> None:
        if size not in SIZES:
            raise ConfigError(f"data.size={size} is not one of {', '.join(map(str, SIZES))}")
        super().__init__(root, name)
        self.size = size

    @property
    def file(self) -> str:
        """Name of the .npz file."""
        return "retinamnist.npz" if self.size == 28 else f"retinamnist_{self.size}.npz"

    def items(self) -> Iterator[Item]:
        """Write the photographs to files unless they exist, and list them."""
        folder = self._folder()
        build_once(self.root / folder, partial(_unpack, self.root / self.file, self.size))
        labels = read_label_file(self.root / folder / _LABELS)
        finder = PhotoFinder(self.root, folder)

        def entry(row: LabelRow, path: str) -> Entry:
            grade, split = parse_grade(row.cells["grade"]), parse_split(row.cells["split"])
            return Entry(finder.stem(row.cells["image"]), path, grade, split=split)

        return read_rows(labels, "image", finder, entry)

    def photograph_folders(self) -> tuple[str, ...]:
        """Return the folders that hold the photographs; see the base class."""
        return (self._folder(),)

    def download(self) -> None:
        """Download the .npz file from Zenodo with the package medmnist, which checks its MD5.

        Raises:
            DataError: If medmnist is not installed or the download fails.
        """
        target, folder = self.root / self.file, self.root / ".download"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with FileLock(self.root / f".{self.file}.lock"):
                if target.exists():
                    say(f"data={self.name} exists already: {target}")
                else:
                    say(f"data={self.name}: downloading {self.file} from {_URL}")
                    _fetch(folder, self.size)
                    (folder / self.file).replace(target)
                shutil.rmtree(folder, ignore_errors=True)
        except OSError as error:
            raise DataError(f"{target} cannot be written: {error}") from error

    def _folder(self) -> str:
        """Return the folder of the unpacked photographs, named after the checksums of the archive."""
        path = require_regular(self.root / self.need(self.file))
        try:
            with zipfile.ZipFile(path) as archive:
                content = sorted((member.filename, member.CRC) for member in archive.infolist())
        except (OSError, zipfile.BadZipFile) as error:
            raise _damaged(path, str(error)) from error
        return f"retinamnist-{self.size}-{hashlib.sha256(repr(content).encode()).hexdigest()[:8]}"


def _fetch(folder: Path, size: int) -> None:
    try:
        medmnist = importlib.import_module("medmnist")
    except ImportError:
        raise needs_extra("download=true of data=retinamnist", "medmnist") from None
    try:
        medmnist.RetinaMNIST(split="train", download=True, root=str(folder), size=size)
    except Exception as error:  # medmnist raises a RuntimeError without the cause for any failure
        cause = error.__context__ or error
        if isinstance(cause, KeyboardInterrupt):
            raise cause from None
        raise DataError(
            f"RetinaMNIST cannot be downloaded with medmnist ({type(cause).__name__}: {cause}). Try again, "
            f"or download it by hand.\n{RetinaMNIST.how_to_get}"
        ) from error


def _unpack(path: Path, size: int, folder: Path) -> None:
    """Write every photograph as PNG, and a label file."""
    rows: list[tuple[str, int, str]] = []
    for split in _SETS:
        images, grades = _read_set(path, split, size)
        for number, (image, grade) in enumerate(zip(images, grades, strict=True)):
            name = f"{split}_{number:04d}"
            png = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1]
            (folder / f"{name}.png").write_bytes(png.tobytes())
            rows.append((name, int(grade), split))
    pd.DataFrame(rows, columns=["image", "grade", "split"]).to_csv(folder / _LABELS, index=False)


def _read_set(path: Path, split: str, size: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.integer]]:
    """Read images (N, size, size, 3) uint8 and grades (N,) of one set."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            images, grades = archive[f"{split}_images"], archive[f"{split}_labels"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise _damaged(path, str(error)) from error
    if images.shape[1:] != (size, size, 3) or images.dtype != np.uint8 or grades.shape != (len(images), 1):
        raise _damaged(path, f"{split}: images {images.dtype} {images.shape}, labels {grades.shape}")
    return images, grades[:, 0]


def _damaged(path: Path, reason: str) -> DataError:
    return DataError(
        f"{path} is damaged or not a file of RetinaMNIST ({reason}): delete it and download it again.\n"
        f"{RetinaMNIST.how_to_get}"
    )
