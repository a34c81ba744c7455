"""From files to square crops: the part of preparation that runs in worker processes.

Little is imported here, as every worker imports it.
"""

import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from drgrade.data.geometry import Disc, NoFundus, crop_disc, find_disc
from drgrade.data.reading import Photograph, UnreadablePhotograph, read_photograph
from drgrade.errors import DataError

_FEW = 24
"""So few photographs are prepared faster than worker processes start."""

_DECODED_OVER = 2
"""Photographs are decoded at no less than this multiple of the crop's size: shrinking the rest averages."""


@dataclass(frozen=True)
class Crop:
    """What is kept of one photograph.

    Attributes:
        pixels: RGB, uint8 of shape (S, S, 3); None if the photograph cannot be used.
        size: (width, height) of the whole photograph.
        disc: The disc in pixels of the whole photograph; None if the photograph cannot be used.
        conversions: What had to be changed, in words.
        failure: Why the photograph cannot be used; "" if it can.
    """

    pixels: npt.NDArray[np.uint8] | None
    size: tuple[int, int] = (0, 0)
    disc: Disc | None = None
    conversions: tuple[str, ...] = ()
    failure: str = ""


@dataclass(frozen=True)
class CropMaker:
    """Makes the crop of one photograph; travels to the workers.

    Attributes:
        image_size: Side of the crops in pixels.
        max_pixels: Larger photographs are refused.
    """

    image_size: int
    max_pixels: int

    def __call__(self, path: Path) -> Crop:
        """Read a photograph, find its disc and cut it out."""
        try:
            photo = self._read(path, _DECODED_OVER * self.image_size)
            disc = find_disc(photo.pixels)
            if 2 * disc.radius < self.image_size and photo.pixels.shape[1] < photo.full_size[0]:
                photo = self._read(path, None)
                disc = find_disc(photo.pixels)
        except (UnreadablePhotograph, NoFundus) as error:
            return Crop(None, failure=str(error))
        pixels = crop_disc(photo.pixels, disc, self.image_size)
        height, width = photo.pixels.shape[:2]
        whole = disc.scaled(photo.full_size[0] / width, photo.full_size[1] / height)
        return Crop(pixels, photo.full_size, whole, photo.conversions)

    def _read(self, path: Path, at_least: int | None) -> Photograph:
        return read_photograph(path, max_pixels=self.max_pixels, at_least=at_least)


def make_crops(maker: Callable[[Path], Crop], paths: Sequence[Path], workers: int | None) -> Iterator[Crop]:
    """Make the crops of many photographs, in their order.

    Args:
        maker: Makes one; must be picklable.
        paths: The files.
        workers: Number of processes; None for one per CPU. One, or few photographs, means none but this.

    Raises:
        DataError: If a worker process was killed.
    """
    workers = min(workers or os.cpu_count() or 1, len(paths))
    if workers <= 1 or len(paths) <= _FEW:
        yield from map(maker, paths)
        return
    try:
        with ProcessPoolExecutor(workers, _start_method(), _start_worker) as pool:
            yield from _in_order(pool, maker, paths, ahead=4 * workers)
    except BrokenProcessPool:
        raise DataError(
            f"a worker process was killed while preparing photographs, perhaps for lack of memory: "
            f"try fewer than {workers} with data.workers=N"
        ) from None


def _in_order(
    pool: ProcessPoolExecutor, maker: Callable[[Path], Crop], paths: Sequence[Path], ahead: int
) -> Iterator[Crop]:
    """Like ``pool.map``, with at most ``ahead`` results in memory."""
    waiting: deque[Future[Crop]] = deque()
    try:
        for path in paths:
            waiting.append(pool.submit(maker, path))
            if len(waiting) >= ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _start_method() -> multiprocessing.context.BaseContext:
    """Not ``fork``: it would copy locks that the caller's threads (torch, progress bars) hold."""
    methods = multiprocessing.get_all_start_methods()
    return multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")


def _start_worker() -> None:
    cv2.setNumThreads(1)  # one process per CPU already
    threading.Thread(target=_follow_parent, daemon=True).start()


def _follow_parent() -> None:
    """End with the parent: a worker whose parent was killed would wait for work for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
