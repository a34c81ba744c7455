"""Messidor-2 with the adjudicated grades of Krause et al. (2018)."""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from drgrade.data.sources.base import (
    About,
    Entry,
    Item,
    Problem,
    Source,
    parse_grade,
    parse_text,
    read_rows,
)
from drgrade.data.sources.label_files import LabelRow, PhotoFinder, RowError, read_label_file
from drgrade.errors import DataError

GRADES_FILE = "messidor_data.csv"
_IMAGES = ("IMAGES", "images", "messidor-2/messidor-2/preprocess", "messidor-2/preprocess")
_IMAGE = ("image_id", "id_code")
_GRADE = ("adjudicated_dr_grade", "diagnosis")
_GRADABLE = "adjudicated_gradable"


class _Place(NamedTuple):
    """Line of the pairs file that names a photograph; ``line`` is counted from 1."""

    patient: str
    eye: str
    line: int
    name: str


class Messidor2(Source):
    """Messidor-2: 874 examinations with one photograph per eye; 1,744 of 1,748 have an adjudicated grade.

    Each pair of the pairs file is one patient. A photograph without a pair is treated as a patient of its
    own and reported. Names in the label files and on disk are matched without case and extension. There is no
    published split.

    Args:
        root: Folder that contains ``IMAGES`` and ``messidor_data.csv``.
        pairs: The pairs file, relative to ``root``. None: every photograph is treated as a patient of its
            own, and the two eyes of a patient may be on two sides of a split.
        name: Name of the data set.
    """

    about = About(
        title="Messidor-2, with adjudicated grades",
        terms="for research and teaching, on request; no redistribution, acknowledgement required",
        url="https://www.adcis.net/en/third-party/messidor2/",
        citations=(
            "E. Decenciere et al., Image Anal Stereol 33:231-234, 2014, doi 10.5566/ias.1155",
            "M. D. Abramoff et al., JAMA Ophthalmol 131:351-357, 2013, doi 10.1001/jamaophthalmol.2013.1743",
            "grades: J. Krause et al., Ophthalmology 125:1264-1272, 2018, doi 10.1016/j.ophtha.2018.01.034",
        ),
        cameras="Hospitals in France; one camera model: Topcon TRC NW6, 45 degrees.",
    )
    how_to_get = f"""\
Messidor-2 is free for research and teaching, on request (terms: no redistribution, acknowledgement):
the photographs and the pairs file from https://www.adcis.net/en/third-party/messidor2/, the grades with
  kaggle datasets download -d google-brain/messidor2-dr-grades
(with your own token). Put them together as
  IMAGES/20051020_43808_0100_PP.png ... IMAGES/IM004832.JPG
  {GRADES_FILE} (image_id,adjudicated_dr_grade,adjudicated_dme,adjudicated_gradable)
  messidor-2.csv (left;right: the pairs; data.pairs=null if you do not have it)
{about.cite}"""

    def __init__(
        self, root: str | Path, pairs: str | None = "messidor-2.csv", name: str = "messidor2"
    ) -> None:
        super().__init__(root, name)
        self.pairs = pairs

    def photograph_folders(self) -> tuple[str, ...]:
        """Return the folders that hold the photographs; see the base class."""
        return (self.need(*_IMAGES),)

    def items(self) -> Iterator[Item]:
        """Read the grades and the pairs; at least one photograph must be in the pairs."""
        labels = read_label_file(self.root / self.need(GRADES_FILE))
        finder = PhotoFinder(self.root, self.need(*_IMAGES), loose=True)
        image, grade = labels.column(*_IMAGE), labels.column(*_GRADE)
        places, problems = self._places()
        yield from problems
        listed = {finder.stem(row.cells[image]).casefold() for row in labels.rows}
        yield from self._unmatched(places, listed)

        def entry(row: LabelRow, path: str) -> Entry:
            gradable = parse_text(row.cells.get(_GRADABLE, ""))
            if gradable is not None and gradable not in ("1", "1.0"):
                raise RowError(f"ungradable ({_GRADABLE} {gradable})")
            name = finder.stem(row.cells[image])
            place = places.get(name.casefold())
            patient, eye = (place.patient, place.eye) if place else (None, None)
            return Entry(name, path, parse_grade(row.cells[grade]), patient, eye)

        for item in read_rows(labels, image, finder, entry):
            yield item
            if self.pairs is not None and isinstance(item, Entry) and item.patient_id is None:
                reason = f"in no pair of {self.pairs}: taken for a patient of its own"
                yield Problem(item.image_id, item.where, reason, "converted", item.path)

    def _unmatched(self, places: dict[str, _Place], listed: set[str]) -> Iterator[Problem]:
        """Report names of the pairs file without a grade; raise DataError if no name has one."""
        if self.pairs is not None and not places.keys() & listed:
            raise DataError(
                f"{self.root / self.pairs} names no photograph of {self.root / GRADES_FILE}. Set "
                "data.pairs=FILE to the pairs file of Messidor-2, or data.pairs=null to treat every "
                "photograph as a patient of its own"
            )
        for key, place in places.items():
            if key not in listed:
                reason = f"its photograph is not in {GRADES_FILE}"
                yield Problem(place.name, f"{self.pairs}:{place.line}", reason, "left out")

    def _places(self) -> tuple[dict[str, _Place], list[Problem]]:
        """Return patient and eye by the lower-case name of the photograph without extension."""
        if self.pairs is None:
            return {}, []
        pairs = read_label_file(self.root / self.need(self.pairs))
        columns = {eye: self._pairs_column(pairs.columns, eye) for eye in ("left", "right")}
        places: dict[str, _Place] = {}
        problems: list[Problem] = []
        for row in pairs.rows:
            names = {eye: PurePosixPath(row.cells[column]).stem for eye, column in columns.items()}
            patient = names["left"] or names["right"]
            where = f"{self.pairs}:{row.line}"
            for eye, name in names.items():
                place = _Place(patient, eye, row.line, name)
                first = places.setdefault(name.casefold(), place) if name else place
                if first != place:
                    reason = f"paired twice: line {first.line} is kept ({first.eye} eye of {first.patient})"
                    problems.append(Problem(name, where, reason, "converted"))
        return places, problems

    def _pairs_column(self, columns: tuple[str, ...], eye: str) -> str:
        for column in columns:
            if eye in column.lower():
                return column
        raise DataError(
            f"{self.root / str(self.pairs)} has no column for the {eye} eye; its columns are "
            f"{', '.join(columns)}. Expected left;right"
        )
