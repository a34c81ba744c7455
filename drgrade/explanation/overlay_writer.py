"""Overlays and pages of ``drgrade predict overlays=true``: for people who would rather look than read."""

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt

from drgrade.data.image_reader import UnreadablePhotograph
from drgrade.errors import DataError
from drgrade.explanation.explainer import Explainer
from drgrade.explanation.overlay import file_name, reduced, write_overlay, write_photograph
from drgrade.files import write_bytes
from drgrade.html.templates import fill_page
from drgrade.prediction.job_manifest import NOTICE
from drgrade.prediction.rows import Row
from drgrade.prediction.runner import Record
from drgrade.stats.formatting import GRADE_NAMES

INDEX = "index.html"

PAGES = "page-[0-9]*.html"


def page_name(number: int) -> str:
    """File name of a page.

    Args:
        number: From 1.
    """
    return f"page-{number:04d}.html"


@dataclass(frozen=True)
class Card:
    """One photograph on a page.

    Attributes:
        row: What is said of it.
        photograph: File name of its picture; "" if there is none.
        overlay: File name of its overlay; "" if there is none.
    """

    row: Row
    photograph: str
    overlay: str


@dataclass(frozen=True)
class Around:
    """Where a page stands among the others.

    Attributes:
        number: From 1.
        is_last: Whether none follows.
    """

    number: int
    is_last: bool

    @property
    def previous(self) -> str:
        """File name of the page before; "" if there is none."""
        return page_name(self.number - 1) if self.number > 1 else ""

    @property
    def following(self) -> str:
        """File name of the page after; "" if there is none."""
        return "" if self.is_last else page_name(self.number + 1)


@dataclass
class Summary:
    """What is on a page, or on all of them.

    Attributes:
        first: Name of the first photograph.
        last: Name of the last one.
        statuses: Rows of each status.
        grades: Rows of each grade.
        referable: Rows that are referred.
    """

    first: str = ""
    last: str = ""
    statuses: Counter[str] = field(default_factory=Counter)
    grades: Counter[int] = field(default_factory=Counter)
    referable: int = 0

    def add(self, row: Row) -> None:
        """Count a row.

        Args:
            row: Of the predictions.
        """
        self.first, self.last = self.first or row.image_id, row.image_id
        self.statuses[row.status] += 1
        if row.said is not None:
            self.grades[row.said.predicted] += 1
            self.referable += row.said.referable


@dataclass(frozen=True)
class Overview:
    """What stands on the first page.

    Attributes:
        total: Of all rows.
        pages: Of each further page; none if all is on this one.
    """

    total: Summary
    pages: Sequence[Summary]

    @property
    def links(self) -> list[tuple[str, Summary]]:
        """File name and summary of each further page."""
        return [(page_name(number), page) for number, page in enumerate(self.pages, start=1)]


def render(
    cards: Sequence[Card],
    map_name: str,
    meaning: str,
    around: Around | None = None,
    overview: Overview | None = None,
) -> str:
    """Make a page.

    Args:
        cards: Photographs on it.
        map_name: Name of the map that the heat is of.
        meaning: What heat marks, in words.
        around: Its neighbours; None for the first page.
        overview: Of all; None for further pages.

    Returns:
        HTML.
    """
    return fill_page(
        "drgrade.explanation",
        cards=cards,
        map_name=map_name,
        meaning=meaning,
        around=around,
        overview=overview,
        names=GRADE_NAMES,
        notice=NOTICE,
    )


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

    A consumer of :class:`drgrade.prediction.runner.Job`. A photograph is decoded once more, because
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
