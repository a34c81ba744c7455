"""The built-in data set: photographs that the project draws itself."""

import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import cv2
import pandas as pd
from filelock import FileLock

from drgrade.data.sources.base import MANIFEST_COLUMNS, About, Source, SourceTable
from drgrade.errors import ConfigError, DataError
from drgrade.progress import track
from drgrade.synthetic.cohort import PlannedPhotograph, plan_photographs
from drgrade.synthetic.drawing import ART_VERSION, draw_photograph

LABELS = "labels.csv"
IMAGES = "images"
LESIONS = "lesions"

SMALLEST = 64
"""Height in px below which lesions would be smaller than a pixel."""


class Demo(Source):
    """Photographs drawn on first use; the same ones for the same count, size and seed.

    Beside the photographs lie their lesion masks, ``lesions/IMAGE_ID.png``, of
    :class:`~drgrade.synthetic.lesions.Lesion` labels.

    Args:
        root: Folder that drawn data sets are kept in, each in a folder of its own.
        count: Number of photographs, at least 1. Grades are as common as in APTOS 2019.
        size: Height of the photographs in px, at least 64; the width depends on the camera.
        seed: Seed of the data set, at least 0.
        workers: Processes that draw; None for one per CPU. The result does not depend on it.
        name: Name of the data set.

    Raises:
        ConfigError: If one of the numbers is out of range.
    """

    about = About(
        title="drgrade's demo data",
        terms="MIT, as drgrade",
        licence="mit",
        cameras="No camera: the photographs are drawn by drgrade, as of eight cameras.",
        limits=(
            "The photographs are drawn: figures say that the software works, and mean nothing for patients.",
        ),
        drawn=True,
    )

    def __init__(
        self,
        root: str | Path,
        count: int = 400,
        size: int = 256,
        seed: int = 0,
        workers: int | None = None,
        name: str = "demo",
    ) -> None:
        self.name = name
        bounds = {"count": (count, 1), "size": (size, SMALLEST), "seed": (seed, 0), "workers": (workers, 1)}
        for setting, (value, least) in bounds.items():
            if value is not None and value < least:
                raise ConfigError(f"data=demo: {setting} is {value}, but must be at least {least}")
        self.root = Path(root) / f"demo-{count}-{size}-{seed}-v{ART_VERSION}"
        self.count, self.size, self.seed = count, size, seed
        self.workers = workers or os.cpu_count() or 1

    def read(self) -> SourceTable:
        """Draw the photographs unless they are there already, and list them.

        Raises:
            DataError: If the folder exists but is not complete, or cannot be written.
        """
        if not (self.root / LABELS).exists():
            self._draw_once()
        manifest = pd.read_csv(self.root / LABELS, dtype={"grade": "Int64", "split": "string"})
        return SourceTable(manifest[list(MANIFEST_COLUMNS)].assign(dataset=self.name))

    def download(self) -> None:
        """Nothing is to be fetched: :meth:`read` draws."""

    def photograph_folders(self) -> tuple[str, ...]:
        """Without the masks of the lesions."""
        return (IMAGES,)

    def _draw_once(self) -> None:
        """Draw the data set, unless another process has done so while this one waited for the lock."""
        parent = self.root.parent
        try:
            parent.mkdir(parents=True, exist_ok=True)
            with FileLock(parent / f".{self.root.name}.lock"):
                if (self.root / LABELS).exists():
                    return
                if self.root.exists():
                    raise DataError(f"{self.root}: has no {LABELS}; delete the folder to have it drawn again")
                self._draw_under_lock(parent)
        except OSError as error:
            raise DataError(f"{parent}: the demo data set cannot be drawn here: {error}") from error

    def _draw_under_lock(self, parent: Path) -> None:
        """Draw beside the final folder and rename, so that no half-drawn data set is ever seen."""
        prefix = f".{self.root.name}-"
        for leftover in parent.glob(f"{prefix}*"):
            # We hold the lock: whoever made this folder was killed.
            shutil.rmtree(leftover)
        unfinished = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        try:
            unfinished.chmod(0o755)
            photographs = plan_photographs(self.count, self.seed)
            (unfinished / IMAGES).mkdir()
            (unfinished / LESIONS).mkdir()
            self._draw_all(photographs, unfinished)
            _labels(photographs).to_csv(unfinished / LABELS, index=False)
            unfinished.rename(self.root)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)

    def _draw_all(self, photographs: list[PlannedPhotograph], folder: Path) -> None:
        """Draw the photographs, in several processes where that pays."""
        draw = partial(_draw_to_files, folder=folder, size=self.size, seed=self.seed)
        workers = min(self.workers, len(photographs))
        if workers == 1:
            with _one_opencv_thread():
                self._wait_for(map(draw, photographs), len(photographs))
            return
        # 0, not 1: a forked worker would wait for its parent's OpenCV threads to end, which it does not have.
        with ProcessPoolExecutor(workers, initializer=cv2.setNumThreads, initargs=(0,)) as pool:
            try:
                self._wait_for(pool.map(draw, photographs, chunksize=4), len(photographs))
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise

    def _wait_for(self, drawn: Iterable[None], total: int) -> None:
        for _ in track(drawn, total, "Drawing", f"demo photographs to {self.root}"):
            pass


@contextmanager
def _one_opencv_thread() -> Iterator[None]:
    """Keep OpenCV to one thread: the pictures are too small for more to pay."""
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(before)


def _draw_to_files(photograph: PlannedPhotograph, folder: Path, size: int, seed: int) -> None:
    """Draw one photograph and its lesion mask."""
    drawing = draw_photograph(photograph, size, seed)
    bgr = cv2.cvtColor(drawing.pixels, cv2.COLOR_RGB2BGR)
    quality = [cv2.IMWRITE_JPEG_QUALITY, drawing.jpeg_quality]
    _write(folder / IMAGES / f"{photograph.image_id}.jpg", cv2.imencode(".jpg", bgr, quality))
    _write(folder / LESIONS / f"{photograph.image_id}.png", cv2.imencode(".png", drawing.lesions))


def _write(path: Path, encoded: tuple[bool, "cv2.typing.MatLike"]) -> None:
    """Write an encoded picture; unlike ``cv2.imwrite`` this says when the disk is full."""
    path.write_bytes(encoded[1].tobytes())


def _labels(photographs: list[PlannedPhotograph]) -> pd.DataFrame:
    """Make the manifest's table."""
    rows = [
        {
            "image_id": photograph.image_id,
            "path": f"{IMAGES}/{photograph.image_id}.jpg",
            "grade": photograph.grade,
            "patient_id": photograph.patient_id,
            "eye": photograph.eye,
            "dataset": "demo",
            "split": pd.NA,
        }
        for photograph in photographs
    ]
    return pd.DataFrame(rows, columns=list(MANIFEST_COLUMNS))
