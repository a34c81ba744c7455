"""Pool of ungraded photographs from six openly licensed data sets, for pre-training."""

from collections.abc import Iterator
from pathlib import Path

from drgrade.data.sources.base import About, Entry, Item, Source, parse_eye, parse_text, read_rows
from drgrade.data.sources.label_files import LabelRow, PhotoFinder, read_label_file

LIST_FILE, IMAGES = "pool.csv", "images"


class OpenPool(Source):
    """Pool of 2,611 photographs of RFMiD 2.0, HYGD, GRAPE, toxoplasmosis, MFIDDR and HRF.

    All photographs are ungraded: the DR grades and findings in ``pool.csv`` are not read. Patients and eyes
    are read where they are known. Copies are found when the data are prepared; patients who share one are
    one group of a split.

    Args:
        root: Folder that contains ``pool.csv`` and ``images``.
        name: Name of the data set.
    """

    name = "open_pool"
    about = About(
        title="pool of six openly licensed data sets",
        terms="CC BY 4.0 (RFMiD 2.0, toxoplasmosis, HRF), ODC-BY 1.0 (HYGD), CC0 1.0 (GRAPE), MIT (MFIDDR)",
        citations=(
            "RFMiD 2.0: S. Panchal et al., Data 8(2):29, 2023, doi 10.3390/data8020029",
            "HYGD: O. Abramovich et al., PhysioNet, doi 10.13026/z0ak-km33, and A. Goldberger et al., "
            "Circulation 101(23), 2000",
            "GRAPE: X. Huang et al., Scientific Data 10:520, 2023, doi 10.1038/s41597-023-02424-4",
            "toxoplasmosis: O. Cardozo et al., Data in Brief 48:109056, 2023",
            "MFIDDR: X. Luo et al., the MFIDDR repository",
            "HRF: A. Budai et al., International Journal of Biomedical Imaging 2013:154860",
        ),
        cameras="Clinics and cameras of six data sets in several countries, not given by photograph.",
        limits=(
            "Patients are known for HYGD, GRAPE and MFIDDR only; other photographs of one patient may be on "
            "two sides of a split.",
            "Most photographs show glaucoma, toxoplasmosis or other diseases than diabetic retinopathy.",
            "The longer side of a photograph has at most 288 pixels.",
        ),
    )
    how_to_get = f"""\
The pool consists of six data sets that are free to download, terms:
{about.terms}.
It is not published as one archive. data.root contains
  {LIST_FILE} (image,dataset,patient,eye; further columns are not read)
  {IMAGES}/rfmid2/*.jpg, hygd/*.jpg, grape/*.jpg, toxo/*.jpg, mfiddr/*.jpg, hrf/*.jpg
docs/datasets/open_pool.md describes both.
{about.cite}"""

    def items(self) -> Iterator[Item]:
        """Read the list of photographs; none has a grade."""
        labels = read_label_file(self.root / self.need(LIST_FILE))
        finder = PhotoFinder(self.root, self.need(IMAGES), loose=True)
        image, patient, eye = (labels.column(name) for name in ("image", "patient", "eye"))

        def entry(row: LabelRow, path: str) -> Entry:
            cells = row.cells
            below = Path(path).relative_to(IMAGES).as_posix()
            return Entry(
                finder.stem(below),
                path,
                patient_id=parse_text(cells[patient]),
                eye=parse_eye(cells[eye]),
            )

        yield from read_rows(labels, image, finder, entry)

    def photograph_folders(self) -> tuple[str, ...]:
        """Return the folders that hold the photographs; see the base class."""
        return (self.need(IMAGES),)
