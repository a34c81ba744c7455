"""Overlay images and HTML pages of ``drgrade predict overlays=true``."""

import hashlib
import logging
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain, islice, pairwise
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from drgrade.data.image_reader import UnreadablePhotograph, read_photograph
from drgrade.errors import DataError
from drgrade.explanation.explainer import Explainer
from drgrade.explanation.overlay import Pixels, draw_legend, draw_overlay, heat_gradient, resize_to
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


@dataclass
class PageSummary:
    """Names of the first and the last photograph of a page, and counts of its rows."""

    first: str = ""
    last: str = ""
    statuses: Counter[str] = field(default_factory=Counter)
    grades: Counter[int] = field(default_factory=Counter)
    referable: int = 0

    def add(self, rows: Iterable[PredictionRow]) -> None:
        """Count rows."""
        for row in rows:
            self.first, self.last = self.first or row.image_id, row.image_id
            self.statuses[row.status] += 1
            if row.result is not None:
                self.grades[row.result.predicted] += 1
                self.referable += row.result.referable


def page_name(number: int) -> str:
    """Return the file name of a page; numbers start at 1."""
    return f"page-{number:04d}.html"


class OverlayPages(ResultWriter):
    """Writes ``overlays/``: a PNG for each graded photograph, and pages that show all photographs.

    Photographs are decoded a second time, because originals are not kept in memory. ``index`` is the path of
    the first page.
    """

    def __init__(
        self,
        folder: Path,
        explainer: Explainer,
        max_pixels: int,
        longest: int = OVERLAY_SIDE,
        per_page: int = PER_PAGE,
        warning: str = "",
    ) -> None:
        """Set the output and its format.

        Args:
            folder: Folder of the results; ``overlays/`` is created in it.
            explainer: Explainer of the grader that grades the photographs.
            max_pixels: Larger photographs are refused.
            longest: Longer side of an overlay in pixels; 0 for that of the photograph.
            per_page: Photographs per page, at least 1.
            warning: Shown on top of every page and beside every grade; empty for none.
        """
        self.folder = folder / FOLDER
        self.index = self.folder / INDEX
        self._explainer, self._max_pixels = explainer, max_pixels
        self._longest, self._per_page, self._warning = longest, per_page, warning

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
        total = PageSummary()
        links: list[tuple[str, PageSummary]] = []
        only: list[PredictionRow] = []
        remaining = iter(rows)
        chunks = iter(lambda: list(islice(remaining, self._per_page)), [])
        for number, (chunk, following) in enumerate(pairwise(chain(chunks, [[]])), start=1):
            total.add(chunk)
            if number == 1 and not following:
                only = chunk
                break
            summary = PageSummary()
            summary.add(chunk)
            links.append((page_name(number), summary))
            around = {
                "number": number,
                "previous": page_name(number - 1) if number > 1 else "",
                "following": page_name(number + 1) if following else "",
            }
            self._save_page(page_name(number), chunk, around=around)
        self._save_page(INDEX, only, overview={"total": total, "links": links})
        self._delete_pages_after(len(links))

    def _heats(self, batch: Sequence[ProcessedFile]) -> dict[str, npt.NDArray[np.float32]]:
        """Compute the heat of each graded photograph, by its path."""
        graded = [
            (each.row.path, each.prepared.crop.pixels, each.row.result.predicted)
            for each in batch
            if each.row.result is not None and each.prepared.crop.pixels is not None
        ]
        if not graded:
            return {}
        paths, pixels, grades = zip(*graded, strict=True)
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
                overlay = np.concatenate((draw_overlay(pixels, facts, heat), draw_legend(pixels.shape[1])))
                options = [cv2.IMWRITE_PNG_COMPRESSION, _PNG_COMPRESSION]
                write_image(self.folder / f"{name}.png", overlay, options)

    def _card(self, row: PredictionRow) -> dict[str, object]:
        """Combine a row with the names of its images that exist."""
        name = image_name(row.path, row.image_id)
        photograph, overlay = f"{name}.jpg", f"{name}.png"
        return {
            "row": row,
            "photograph": photograph if row.status != "failed" and self._exists(photograph) else "",
            "overlay": overlay if row.result is not None and self._exists(overlay) else "",
        }

    def _exists(self, name: str) -> bool:
        return (self.folder / name).is_file()

    def _save_page(
        self,
        name: str,
        rows: Iterable[PredictionRow],
        around: Mapping[str, object] | None = None,
        overview: Mapping[str, object] | None = None,
    ) -> None:
        """Write a page with links to the pages around it, or the first one with an overview."""
        page = fill_page(
            "drgrade.prediction",
            cards=[self._card(row) for row in rows],
            map_name=self._explainer.names[0],
            meaning=self._explainer.meaning,
            around=around,
            overview=overview,
            names=GRADE_NAMES,
            notice=NOTICE,
            warning=self._warning,
            ramp=heat_gradient(),
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
    """Delete the files that an earlier job wrote to ``overlays/`` in a folder of results, and no others."""
    overlays = folder / FOLDER
    for pattern in _OWN_FILES:
        for path in overlays.glob(pattern):
            path.unlink()
    if overlays.is_dir() and not any(overlays.iterdir()):
        overlays.rmdir()


def image_name(path: str, image_id: str) -> str:
    """Return a file name without ending for the images of a photograph; each path has its own.

    It consists of letters, digits and ``._-``, valid in every file system and URL.
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
    """Write an RGB image atomically, with an error if the disk is full; ``cv2.imwrite`` does neither.

    The ending of the path selects the format; ``options`` are OpenCV's.
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
