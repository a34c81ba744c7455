"""Overlay images and HTML pages of ``drgrade predict overlays=true``."""

import hashlib
import logging
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from drgrade.data.image_reader import UnreadablePhotograph, read_photograph
from drgrade.errors import DataError
from drgrade.explanation.explainer import Explainer
from drgrade.explanation.overlay import Pixels, draw_legend, draw_overlay, resize_to
from drgrade.files import write_bytes
from drgrade.html.templates import fill_page
from drgrade.prediction.results import NOTICE, PredictionRow, ProcessedFile, ResultWriter
from drgrade.stats.formatting import GRADE_NAMES

log = logging.getLogger(__name__)

FOLDER, INDEX = "overlays", "index.html"
PER_PAGE = 50
OVERLAY_SIDE = 1024
"""Longer side of an overlay in pixels; heat has no finer detail."""

_OWN_FILES = (INDEX, "page-[0-9]*.html", "*-????????????.jpg", "*-????????????.png")
_PHOTOGRAPH_SIDE = 640
_JPEG_QUALITY = 85
_PNG_COMPRESSION = 3  # a few per cent larger than the best, several times faster
_MAX_NAME = 60


@dataclass(frozen=True)
class PhotographCard:
    """One photograph on a page.

    Attributes:
        row: Its result.
        photograph: File name of the photograph; empty if there is none.
        overlay: File name of the overlay; empty if there is none.
    """

    row: PredictionRow
    photograph: str
    overlay: str


@dataclass(frozen=True)
class PageLinks:
    """Position of a page.

    Attributes:
        number: Number of the page, from 1.
        is_last: True if no page follows.
    """

    number: int
    is_last: bool

    @property
    def previous(self) -> str:
        """File name of the previous page; empty if there is none."""
        return page_name(self.number - 1) if self.number > 1 else ""

    @property
    def following(self) -> str:
        """File name of the next page; empty if there is none."""
        return "" if self.is_last else page_name(self.number + 1)


@dataclass
class PageSummary:
    """Counts of one page, or of all.

    Attributes:
        first: Name of the first photograph.
        last: Name of the last photograph.
        statuses: Rows by status.
        grades: Rows by grade.
        referable: Referable rows.
    """

    first: str = ""
    last: str = ""
    statuses: Counter[str] = field(default_factory=Counter)
    grades: Counter[int] = field(default_factory=Counter)
    referable: int = 0

    def add(self, row: PredictionRow) -> None:
        """Count a row."""
        self.first, self.last = self.first or row.image_id, row.image_id
        self.statuses[row.status] += 1
        if row.result is not None:
            self.grades[row.result.predicted] += 1
            self.referable += row.result.referable


def page_name(number: int) -> str:
    """Return the file name of a page.

    Args:
        number: From 1.
    """
    return f"page-{number:04d}.html"


class OverlayPages(ResultWriter):
    """Writes ``overlays/``: a PNG for each graded photograph, and pages that show all photographs.

    Photographs are decoded a second time, because originals are not kept in memory.

    Attributes:
        folder: Folder of images and pages.
        index: The first page.
    """

    def __init__(
        self,
        folder: Path,
        explainer: Explainer,
        max_pixels: int,
        longest: int = OVERLAY_SIDE,
        per_page: int = PER_PAGE,
    ) -> None:
        """Set the output.

        Args:
            folder: Folder of the results; ``overlays/`` is created in it.
            explainer: Explainer of the grader that grades the photographs.
            max_pixels: Larger photographs are refused.
            longest: Longer side of an overlay in pixels; 0 for that of the photograph.
            per_page: Photographs per page, at least 1.
        """
        self.folder = folder / FOLDER
        self.index = self.folder / INDEX
        self._explainer, self._max_pixels = explainer, max_pixels
        self._longest, self._per_page = longest, per_page

    def add_batch(self, batch: Sequence[ProcessedFile]) -> None:
        """Write the images of a batch.

        Raises:
            DataError: If they cannot be written.
        """
        heats = self._heats(batch)
        for processed in batch:
            if processed.row.status != "failed":
                self._write_images(processed, heats.get(processed.row.path))

    def finish(self, rows: Iterable[PredictionRow]) -> None:
        """Write the pages; a job that fits on one page gets one. At most two pages of rows are in memory.

        Raises:
            DataError: If they cannot be written.
        """
        pages: list[PageSummary] = []
        total = PageSummary()
        remaining = iter(rows)
        chunk = list(islice(remaining, self._per_page))
        following = list(islice(remaining, self._per_page))
        only = [self._card(row) for row in chunk] if not following else []
        while chunk:
            pages.append(PageSummary())
            for row in chunk:
                pages[-1].add(row)
                total.add(row)
            if not only:
                links = PageLinks(len(pages), is_last=not following)
                self._save_page(page_name(len(pages)), [self._card(row) for row in chunk], around=links)
            chunk, following = following, list(islice(remaining, self._per_page))
        links_to = [] if only else [(page_name(number), page) for number, page in enumerate(pages, start=1)]
        self._save_page(INDEX, only, overview={"total": total, "links": links_to})
        self._delete_pages_after(len(links_to))

    def _heats(self, batch: Sequence[ProcessedFile]) -> dict[str, npt.NDArray[np.float32]]:
        """Compute the heat of each graded photograph, by its path."""
        found = [
            (each.row.path, each.prepared.crop.pixels, each.row.result.predicted)
            for each in batch
            if each.row.result is not None and each.prepared.crop.pixels is not None
        ]
        if not found:
            return {}
        paths, pixels, grades = zip(*found, strict=True)
        heat = self._explainer.heat(np.stack(pixels), grades)[self._explainer.names[0]]
        return dict(zip(paths, heat, strict=True))

    def _write_images(self, processed: ProcessedFile, heat: npt.NDArray[np.float32] | None) -> None:
        """Write photograph and overlay of one file."""
        row, facts = processed.row, processed.prepared.crop.facts
        name = image_name(row.path, row.image_id)
        try:
            pixels = read_reduced(Path(row.path), self._longest, self._max_pixels)
        except UnreadablePhotograph as error:  # it was readable when it was graded
            log.warning("%s has no overlay: %s", row.path, error)
            return
        small = resize_to(pixels, _PHOTOGRAPH_SIDE)
        with _write_errors(self.folder):
            write_image(self.folder / f"{name}.jpg", small, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
            if heat is not None and facts is not None:
                painted = np.concatenate((draw_overlay(pixels, facts, heat), draw_legend(pixels.shape[1])))
                options = [cv2.IMWRITE_PNG_COMPRESSION, _PNG_COMPRESSION]
                write_image(self.folder / f"{name}.png", painted, options)

    def _card(self, row: PredictionRow) -> PhotographCard:
        """Combine a row with the images that exist."""
        name = image_name(row.path, row.image_id)
        photograph, painted = f"{name}.jpg", f"{name}.png"
        return PhotographCard(
            row,
            photograph if row.status != "failed" and (self.folder / photograph).is_file() else "",
            painted if row.result is not None and (self.folder / painted).is_file() else "",
        )

    def _save_page(
        self,
        name: str,
        cards: Sequence[PhotographCard],
        around: PageLinks | None = None,
        overview: dict[str, object] | None = None,
    ) -> None:
        page = fill_page(
            "drgrade.prediction",
            cards=cards,
            map_name=self._explainer.names[0],
            meaning=self._explainer.meaning,
            around=around,
            overview=overview,
            names=GRADE_NAMES,
            notice=NOTICE,
        )
        with _write_errors(self.folder):
            # File names that are not valid text are shown with escapes.
            write_bytes(self.folder / name, page.encode("utf-8", "backslashreplace"))

    def _delete_pages_after(self, count: int) -> None:
        """Delete pages of an earlier job with more photographs."""
        while (stale := self.folder / page_name(count + 1)).exists():
            stale.unlink()
            count += 1


def delete_overlays(folder: Path) -> None:
    """Delete the files that an earlier job wrote to ``overlays/``, and nothing else.

    Args:
        folder: Folder of the results.
    """
    overlays = folder / FOLDER
    for pattern in _OWN_FILES:
        for path in overlays.glob(pattern):
            path.unlink()
    if overlays.is_dir() and not any(overlays.iterdir()):
        overlays.rmdir()


def image_name(path: str, image_id: str) -> str:
    """Return a file name without ending for the images of a photograph.

    Args:
        path: Path of the photograph; different paths have different names.
        image_id: Readable part of the name.

    Returns:
        Letters, digits and ``._-``, valid in every file system and URL.
    """
    readable = re.sub(r"[^A-Za-z0-9._-]+", "_", image_id).strip("._")[-_MAX_NAME:]
    return f"{readable or 'photograph'}-{hashlib.sha256(os.fsencode(path)).hexdigest()[:12]}"


def read_reduced(path: Path, longest: int, max_pixels: int) -> Pixels:
    """Decode a photograph at reduced size.

    Args:
        path: The file.
        longest: Longer side in pixels; 0 keeps the size.
        max_pixels: Larger photographs are refused.

    Returns:
        RGB, uint8 of shape (H, W, 3), upright.

    Raises:
        UnreadablePhotograph: If it cannot be decoded.
    """
    return resize_to(read_photograph(path, max_pixels=max_pixels, at_least=longest or None).pixels, longest)


def write_image(path: Path, pixels: Pixels, options: Sequence[int]) -> None:
    """Write an image atomically, with an error if the disk is full (``cv2.imwrite`` does neither).

    Args:
        path: File whose ending is the format.
        pixels: RGB, uint8 of shape (H, W, 3).
        options: Encoder options of OpenCV.
    """
    _, encoded = cv2.imencode(path.suffix, cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), list(options))
    write_bytes(path, encoded.tobytes())


@contextmanager
def _write_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(
            f"{folder} cannot be written ({error.strerror}); once this is fixed, the same command resumes"
        ) from error
