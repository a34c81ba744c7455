"""From a file to what a trained run takes: by the code that prepared its training photographs."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from drgrade.data.crops import Crop, CropMaker, make_crops
from drgrade.data.reading import MAX_PIXELS


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

    def prepare(self, path: Path) -> Crop:
        """Prepare one photograph.

        Args:
            path: The file.

        Returns:
            Its crop: (S, S, 3) uint8, or the reason why there is none.
        """
        return self.maker(path)

    def prepare_all(self, paths: Sequence[Path], workers: int | None = None) -> Iterator[Crop]:
        """Prepare many photographs, in their order, a few of them in memory at a time.

        Args:
            paths: The files.
            workers: Number of processes; None for one per CPU.

        Yields:
            A crop for each path.

        Raises:
            DataError: If a worker process was killed.
        """
        yield from make_crops(self.maker, paths, workers)
