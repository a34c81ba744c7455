"""Demo data set of synthetic photographs."""

import io
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import cv2
import pandas as pd

from drgrade.artefacts import read_text
from drgrade.data.sources.base import MANIFEST_COLUMNS, About, Source, SourceTable, build_once
from drgrade.errors import ConfigError, DataError
from drgrade.processes import end_with_pool
from drgrade.progress import track
from drgrade.synthetic.drawing import ART_VERSION, PlannedPhotograph, draw_photograph, plan_photographs

LABELS = "labels.csv"
IMAGES = "images"
LESIONS = "lesions"

SMALLEST = 64
"""Height in pixels below which lesions would be smaller than a pixel."""


class Demo(Source):
    """Synthetic photographs, drawn on first use; determined by count, size and seed.

    ``lesions/IMAGE_ID.png`` has the labels of :class:`~drgrade.synthetic.lesions.Lesion` as pixel values.

    Args:
        root: Folder of drawn data sets, each in its own folder.
        count: Number of photographs, at least 1. Grades are as frequent as in APTOS 2019.
        size: Height of the photographs in pixels, at least 64. The width depends on the camera.
        seed: Seed of the data set, at least 0.
        workers: Number of processes; None for one per CPU. The result does not depend on it.
        name: Name of the data set.

    Raises:
        ConfigError: If a number is out of range.
    """

    about = About(
        title="drgrade's demo data",
        terms="MIT, as drgrade",
        licence="mit",
        cameras="None: the photographs are drawn by drgrade, imitating eight cameras.",
        limits=(
            "The photographs are synthetic: results show that the software works and do not apply to "
            "patients.",
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
        bounds = {"count": (count, 1), "size": (size, SMALLEST), "seed": (seed, 0), "workers": (workers, 1)}
        for setting, (value, least) in bounds.items():
            if value is not None and value < least:
                raise ConfigError(f"data=demo: {setting} is {value}, but must be at least {least}")
        super().__init__(Path(root) / f"demo-{count}-{size}-{seed}-v{ART_VERSION}", name)
        self.count, self.size, self.seed = count, size, seed
        self.workers = workers or os.cpu_count() or 1

    def read(self) -> SourceTable:
        """Draw the photographs unless they exist, and list them.

        Raises:
            DataError: If the folder exists but is incomplete, or cannot be written.
        """
        if self.root.exists() and not (self.root / LABELS).exists():
            raise DataError(f"{self.root} has no {LABELS}: delete the folder to draw the photographs again")
        build_once(self.root, self._draw)
        repair = f"delete {self.root} to draw the photographs again"
        text = read_text(self.root / LABELS, repair)
        try:
            manifest = pd.read_csv(io.StringIO(text), dtype={"grade": "Int64", "split": "string"})
            return SourceTable(manifest[list(MANIFEST_COLUMNS)].assign(dataset=self.name))
        except (ValueError, TypeError, LookupError) as error:
            raise DataError(f"{self.root / LABELS} is damaged ({error}); {repair}") from error

    def download(self) -> None:
        """Do nothing: :meth:`read` draws the photographs."""

    def photograph_folders(self) -> tuple[str, ...]:
        """Return the folder of the photographs, without that of the lesion masks."""
        return (IMAGES,)

    def _draw(self, folder: Path) -> None:
        photographs = plan_photographs(self.count, self.seed)
        (folder / IMAGES).mkdir()
        (folder / LESIONS).mkdir()
        draw = partial(_draw_to_files, folder=folder, size=self.size, seed=self.seed)
        drawn = _run(draw, photographs, min(self.workers, len(photographs)))
        for _ in track(drawn, len(photographs), "drawing", f"demo photographs to {self.root}"):
            pass
        _label_table(photographs).to_csv(folder / LABELS, index=False)


def _run(
    draw: Callable[[PlannedPhotograph], None], photographs: list[PlannedPhotograph], workers: int
) -> Iterator[None]:
    """Draw the photographs in worker processes, or in this one if there is one worker."""
    if workers == 1:
        with _one_opencv_thread():
            yield from map(draw, photographs)
        return
    with ProcessPoolExecutor(workers, initializer=_start_worker) as pool:
        try:
            yield from pool.map(draw, photographs, chunksize=4)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _start_worker() -> None:
    end_with_pool()
    cv2.setNumThreads(0)  # not 1: a forked worker would wait for OpenCV threads of its parent


@contextmanager
def _one_opencv_thread() -> Iterator[None]:
    """Limit OpenCV to one thread, which is faster for small images."""
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
    # Unlike cv2.imwrite, write_bytes raises an error if the disk is full.
    _, jpeg = cv2.imencode(".jpg", bgr, quality)
    (folder / IMAGES / f"{photograph.image_id}.jpg").write_bytes(jpeg.tobytes())
    _, png = cv2.imencode(".png", drawing.lesions)
    (folder / LESIONS / f"{photograph.image_id}.png").write_bytes(png.tobytes())


def _label_table(photographs: list[PlannedPhotograph]) -> pd.DataFrame:
    rows = [
        (p.image_id, f"{IMAGES}/{p.image_id}.jpg", p.grade, p.patient_id, p.eye, "demo", pd.NA)
        for p in photographs
    ]
    return pd.DataFrame(rows, columns=list(MANIFEST_COLUMNS))
