"""The pages that show what was graded: no script, nothing from elsewhere, for a phone and in the dark too."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from drgrade.inference.notice import NOTICE
from drgrade.inference.predicting.rows import Row
from drgrade.pages import fill_page
from drgrade.report.words import GRADE_NAMES

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
        "drgrade.inference.explaining",
        cards=cards,
        map_name=map_name,
        meaning=meaning,
        around=around,
        overview=overview,
        names=GRADE_NAMES,
        notice=NOTICE,
    )
