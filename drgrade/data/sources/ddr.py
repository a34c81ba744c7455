"""DDR: 13,673 photographs from China, the grading part."""

from collections.abc import Iterator

from drgrade.data.sources.base import About, Entry, Item, Source, parse_grade, read_rows
from drgrade.data.sources.label_files import LabelRow, PhotoFinder, read_list_file

PART = "DR_grading"
UNGRADABLE = 5
"""Grade of an ungradable photograph in the lists."""

_SETS = {"train": "train", "val": "valid", "test": "test"}


class DDR(Source):
    """DDR: 6,835 training, 2,733 validation and 4,105 test photographs of many cameras; 12,522 are graded.

    1,151 photographs that the authors found ungradable (grade 5) are left out. Patients and eyes are not
    published. The root contains ``DR_grading`` or ``DDR-dataset/DR_grading``, or is that folder.
    """

    name = "ddr"
    about = About(
        title="DDR, grading part",
        terms="none stated for the photographs; the repository has the MIT licence",
        url="https://github.com/nkicsl/DDR-dataset",
        citations=("T. Li et al., Information Sciences 501:511-522, 2019, doi 10.1016/j.ins.2019.06.011",),
        cameras="Many hospitals in China and many camera models, not given by photograph.",
        limits=("Patients are not published: photographs of a patient may be on two sides of a split.",),
    )
    how_to_get = f"""\
DDR is free to download (terms: none stated for the photographs; its repository has the MIT licence):
https://github.com/nkicsl/DDR-dataset links to the archive, whose parts must be joined. It contains
  {PART}/train.txt, valid.txt, test.txt (lines "NAME.jpg GRADE", 5: ungradable)
  {PART}/train/NAME.jpg, {PART}/valid/NAME.jpg, {PART}/test/NAME.jpg
{about.cite}"""

    def items(self) -> Iterator[Item]:
        """Read the three lists."""
        part = self._part()
        for folder in _SETS.values():
            self.need(f"{part}{folder}.txt")
            self.need(f"{part}{folder}")
        for split, folder in _SETS.items():
            yield from self._read_set(f"{part}{folder}", split)

    def photograph_folders(self) -> tuple[str, ...]:
        """Return the folders that hold the photographs; see the base class."""
        return tuple(f"{self._part()}{folder}" for folder in _SETS.values())

    def _part(self) -> str:
        choices = (f"{PART}/", f"DDR-dataset/{PART}/", "")
        return self.need(*(f"{choice}train.txt" for choice in choices)).removesuffix("train.txt")

    def _read_set(self, folder: str, split: str) -> Iterator[Item]:
        labels = read_list_file(self.root / f"{folder}.txt", ("image", "grade"))
        finder = PhotoFinder(self.root, folder, loose=True)

        def entry(row: LabelRow, path: str) -> Entry:
            grade = parse_grade(row.cells["grade"], ungradable=UNGRADABLE)
            return Entry(finder.stem(row.cells["image"]), path, grade, split=split)

        yield from read_rows(labels, "image", finder, entry)
