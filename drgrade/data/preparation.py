"""From a file to what a trained run takes: by the code that prepared its training photographs."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from drgrade.data.crops import Crop, CropMaker, make_crops
from drgrade.data.fundus_check import Verdict, blank, judge, unreadable
from drgrade.data.geometry import NoFundus
from drgrade.data.image_reader import MAX_PIXELS, UnreadablePhotograph, hash_file


@dataclass(frozen=True)
class Prepared:
    """One photograph, ready to be graded, or the reason why it is not.

    Attributes:
        crop: What training would have seen; its pixels are None if the photograph cannot be used.
        verdict: Whether it can be graded. Where ``crop.pixels`` is None it abstains.
    """

    crop: Crop
    verdict: Verdict


@dataclass(frozen=True)
class Preparer:
    """Prepares one photograph and judges it; travels to the workers.

    The file is decoded once. The plain crop is judged, the one that the light was normalised of is graded.

    Attributes:
        maker: Makes the crop.
    """

    maker: CropMaker

    def __call__(self, path: Path) -> Prepared:
        """Read a photograph, cut out its disc, judge it."""
        sha256 = ""
        try:
            sha256 = hash_file(path)
            seen = self.maker.extract(path)
            return Prepared(self.maker.crop(path, sha256, seen), judge(seen))
        except UnreadablePhotograph as error:
            return Prepared(Crop(sha256, failure=str(error)), unreadable(str(error)))
        except NoFundus as error:
            return Prepared(Crop(sha256, failure=str(error)), blank(str(error)))


@dataclass(frozen=True)
class Preparation:
    """How the photographs of a run were prepared.

    Attributes:
        image_size: Side of the square crops in pixels.
        illumination: Normalisation of the light, a name of :mod:`drgrade.data.illumination`.
        max_pixels: Larger photographs are refused.
    """

    image_size: int
    illumination: str = "none"
    max_pixels: int = MAX_PIXELS

    @property
    def maker(self) -> CropMaker:
        """Makes the crop of one photograph; the same object that fills a store."""
        return CropMaker(self.image_size, self.max_pixels, self.illumination)

    def prepare(self, path: Path) -> Prepared:
        """Prepare one photograph.

        Args:
            path: The file.

        Returns:
            Its crop, (S, S, 3) uint8, or the reason why there is none; and whether it can be graded.
        """
        return Preparer(self.maker)(path)

    def prepare_all(self, paths: Iterable[Path], workers: int | None = None) -> Iterator[Prepared]:
        """Prepare many photographs, in their order, a few of them in memory at a time.

        Args:
            paths: The files.
            workers: Number of processes; None for one per CPU.

        Yields:
            A crop and a verdict for each path.

        Raises:
            DataError: If a worker process was killed.
        """
        yield from make_crops(Preparer(self.maker), paths, workers)
