"""Preparation of photographs for a trained model, with the code that prepared its training photographs."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from drgrade.data.crops import Crop, CropMaker, make_crops
from drgrade.data.fundus_check import Flag, Verdict, judge
from drgrade.data.geometry import NoFundus
from drgrade.data.image_reader import UnreadablePhotograph, hash_file


@dataclass(frozen=True)
class PreparedPhotograph:
    """Crop and quality verdict of one photograph.

    Attributes:
        crop: Crop as in training; its pixels are None if the photograph cannot be used.
        verdict: Quality verdict; it abstains where ``crop.pixels`` is None.
    """

    crop: Crop
    verdict: Verdict


class Preparation(CropMaker):
    """Prepares and judges photographs with the settings of a run; picklable for worker processes."""

    def prepare(self, path: Path) -> PreparedPhotograph:
        """Decode one photograph once, crop its disc, and judge it before its illumination is normalised."""
        sha256 = ""
        try:
            sha256 = hash_file(path)
            extracted = self.extract(path)
            return PreparedPhotograph(self.crop(path, sha256, extracted), judge(extracted))
        except (UnreadablePhotograph, NoFundus) as error:
            flag: Flag = "blank" if isinstance(error, NoFundus) else "unreadable"
            verdict = Verdict(flag, str(error), abstains=True)
            return PreparedPhotograph(Crop(sha256, failure=str(error)), verdict)

    def prepare_all(self, paths: Iterable[Path], workers: int | None = None) -> Iterator[PreparedPhotograph]:
        """Prepare many photographs in order, with a few of them in memory at a time.

        Args:
            paths: The files.
            workers: Number of processes; None for one per CPU.

        Raises:
            DataError: If a worker process was killed.
        """
        yield from make_crops(self.prepare, paths, workers)
