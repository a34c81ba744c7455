"""Overlays and pages of ``drgrade predict overlays=true``: for people who would rather look than read."""

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt

from drgrade.data.reading import UnreadablePhotograph
from drgrade.errors import DataError
from drgrade.files import write_bytes
from drgrade.inference.explaining.explainer import Explainer
from drgrade.inference.explaining.pages import (
    INDEX,
    PAGES,
    Around,
    Card,
    Overview,
    Summary,
    page_name,
    render,
)
from drgrade.inference.explaining.pictures import file_name, reduced, write_overlay, write_photograph
from drgrade.inference.predicting.job import Record
from drgrade.inference.predicting.rows import Row

Heat = npt.NDArray[np.float32]

log = logging.getLogger(__name__)

FOLDER = "overlays"

PICTURES = ("*-????????????.jpg", "*-????????????.png")
"""What the names of the pictures look like."""

PER_PAGE = 50
LONGEST = 1024
"""Longer side of an overlay in pixels: heat has no finer detail."""

_PHOTOGRAPH = 640
"""Longer side in pixels of the photograph beside it."""


class Overlays:
    """Writes ``overlays/``: a PNG for each graded photograph, and pages that show all.

    A consumer of :class:`drgrade.inference.predicting.job.Job`. A photograph is decoded once more, because
    nobody keeps originals in memory.

    Attributes:
        folder: Where they are.
        index: The first page.
    """

    def __init__(
        self, folder: Path, explainer: Explainer, longest: int = LONGEST, per_page: int = PER_PAGE
    ) -> None:
        """Say where.

        Args:
            folder: Of the results; ``overlays/`` is made in it.
            explainer: Of the grader that the job grades with.
            longest: Longer side of an overlay in pixels; 0 for that of the photograph.
            per_page: Photographs on a page, at least 1.
        """
        self.folder = folder / FOLDER
        self.index = self.folder / INDEX
        self._explainer, self._longest, self._per_page = explainer, longest, per_page

    def take(self, batch: Sequence[Record]) -> None:
        """Write the pictures of a batch.

        Args:
            batch: Of what was worked on.

        Raises:
            DataError: If they cannot be written.
        """
        heats = self._heats(batch)
        for record in batch:
            if record.row.status != "failed":
                self._write(record, heats.get(record.row.path))

    def finish(self, rows: Iterable[Row]) -> None:
        """Write the pages; of a job that fits on one page, one.

        Args:
            rows: All, in the order of the inputs. No more than two pages of them are held in memory.

        Raises:
            DataError: If they cannot be written.
        """
        pages: list[Summary] = []
        total = Summary()
        remaining = iter(rows)
        chunk = list(islice(remaining, self._per_page))
        following = list(islice(remaining, self._per_page))
        only = [self._card(row) for row in chunk] if not following else []
        while chunk:
            pages.append(_summary(chunk, total))
            if not only:
                around = Around(len(pages), is_last=not following)
                self._save(
                    page_name(len(pages)),
                    render([self._card(row) for row in chunk], self._main, self._explainer.meaning, around),
                )
            chunk, following = following, list(islice(remaining, self._per_page))
        overview = Overview(total, [] if only else pages)
        self._save(INDEX, render(only, self._main, self._explainer.meaning, overview=overview))
        self._drop_pages_after(len(overview.pages))

    @property
    def _main(self) -> str:
        return self._explainer.names[0]

    def _heats(self, batch: Sequence[Record]) -> dict[str, Heat]:
        """Heat of each photograph, by its path."""
        found = [
            (record.row.path, record.prepared.crop.pixels, record.row.said.predicted)
            for record in batch
            if record.row.said is not None and record.prepared.crop.pixels is not None
        ]
        if not found:
            return {}
        paths, pixels, grades = zip(*found, strict=True)
        return dict(zip(paths, self._explainer.heat(np.stack(pixels), grades)[self._main], strict=True))

    def _write(self, record: Record, heat: Heat | None) -> None:
        """Write the pictures of one photograph."""
        row, facts = record.row, record.prepared.crop.facts
        name = file_name(row.path, row.image_id)
        try:
            pixels = reduced(Path(row.path), self._longest, self._explainer.grader.preparation.max_pixels)
        except UnreadablePhotograph as error:  # it could be read when it was graded
            log.warning("%s has no overlay: %s", row.path, error)
            return
        with _as_data_errors(self.folder):
            write_photograph(self.folder / f"{name}.jpg", pixels, _PHOTOGRAPH)
            if heat is not None and facts is not None:
                write_overlay(self.folder / f"{name}.png", pixels, facts, heat)

    def _card(self, row: Row) -> Card:
        """A row with what pictures there are of it."""
        name = file_name(row.path, row.image_id)
        photograph, painted = f"{name}.jpg", f"{name}.png"
        return Card(
            row,
            photograph if row.status != "failed" and (self.folder / photograph).is_file() else "",
            painted if row.said is not None and (self.folder / painted).is_file() else "",
        )

    def _save(self, name: str, html: str) -> None:
        with _as_data_errors(self.folder):
            # File names may be no text; what they are instead is shown.
            write_bytes(self.folder / name, html.encode("utf-8", "backslashreplace"))

    def _drop_pages_after(self, count: int) -> None:
        """Remove pages of an earlier job with more photographs."""
        while (stale := self.folder / page_name(count + 1)).exists():
            stale.unlink()
            count += 1


def clear(folder: Path) -> None:
    """Remove what an earlier job left in ``overlays/``, and nothing else.

    Args:
        folder: Of the results.
    """
    made = folder / FOLDER
    for pattern in (INDEX, PAGES, *PICTURES):
        for path in made.glob(pattern):
            path.unlink()
    if made.is_dir() and not any(made.iterdir()):
        made.rmdir()


def _summary(rows: Sequence[Row], total: Summary) -> Summary:
    """Count the rows of a page, there and in total."""
    own = Summary()
    for row in rows:
        own.add(row)
        total.add(row)
    return own


@contextmanager
def _as_data_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(
            f"{folder} cannot be written ({error.strerror}); when that is mended, the same command goes on"
        ) from error
