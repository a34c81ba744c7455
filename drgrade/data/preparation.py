"""Preparation of photographs for a trained model, with the code that prepared its training photographs."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from drgrade.data.crops import Crop, CropMaker, make_crops
from drgrade.data.fundus_check import Verdict, blank, judge, unreadable
from drgrade.data.geometry import NoFundus
from drgrade.data.image_reader import MAX_PIXELS, UnreadablePhotograph, hash_file


@dataclass(frozen=True)
class PreparedPhotograph:
    """Crop and quality verdict of one photograph.

    Attributes:
        crop: Crop as in training; its pixels are None if the photograph cannot be used.
        verdict: Quality verdict; it abstains where ``crop.pixels`` is None.
    """

    crop: Crop
    verdict: Verdict


@dataclass(frozen=True)
class Preparer:
    """Prepares and judges one photograph; picklable for worker processes.

    The file is decoded once. The verdict is on the crop before its illumination is normalised.

    Attributes:
        maker: Makes the crop.
    """

    maker: CropMaker

    def __call__(self, path: Path) -> PreparedPhotograph:
        """Read a photograph, crop its disc and judge it."""
        sha256 = ""
        try:
            sha256 = hash_file(path)
            seen = self.maker.extract(path)
            return PreparedPhotograph(self.maker.crop(path, sha256, seen), judge(seen))
        except UnreadablePhotograph as error:
            return PreparedPhotograph(Crop(sha256, failure=str(error)), unreadable(str(error)))
        except NoFundus as error:
            return PreparedPhotograph(Crop(sha256, failure=str(error)), blank(str(error)))


@dataclass(frozen=True)
class Preparation:
    """Settings with which the photographs of a run were prepared.

    Attributes:
        image_size: Side S of the square crops in pixels.
        illumination: Illumination normalisation, a name of :mod:`drgrade.data.illumination`.
        max_pixels: Larger photographs are refused.
    """

    image_size: int
    illumination: str = "none"
    max_pixels: int = MAX_PIXELS

    @property
    def maker(self) -> CropMaker:
        """Crop maker with these settings, as used to fill a store."""
        return CropMaker(self.image_size, self.max_pixels, self.illumination)

    def prepare(self, path: Path) -> PreparedPhotograph:
        """Prepare one photograph.

        Args:
            path: The file.

        Returns:
            Crop of shape (S, S, 3) uint8, or the reason why there is none, and the quality verdict.
        """
        return Preparer(self.maker)(path)

    def prepare_all(self, paths: Iterable[Path], workers: int | None = None) -> Iterator[PreparedPhotograph]:
        """Prepare many photographs in order, with a few of them in memory at a time.

        Args:
            paths: The files.
            workers: Number of processes; None for one per CPU.

        Raises:
            DataError: If a worker process was killed.
        """
        yield from make_crops(Preparer(self.maker), paths, workers)
