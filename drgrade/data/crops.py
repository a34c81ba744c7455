"""From files to square crops: the part of preparation that runs in worker processes.

Little is imported here, as every worker imports it.
"""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import chain, islice
from math import ceil
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import cv2
import numpy as np
import numpy.typing as npt

from drgrade.data.duplicates.thumbnail import THUMBNAIL_SIZE, make_thumbnail
from drgrade.data.geometry import Disc, NoFundus, crop_disc, find_disc
from drgrade.data.illumination import illuminate
from drgrade.data.image_reader import DecodedImage, UnreadablePhotograph, hash_file, read_photograph
from drgrade.errors import DataError

Made = TypeVar("Made")

_FEW = 24
"""So few photographs are prepared faster than worker processes start."""

_GRID = 64

_DECODED_OVER = 1.5
"""Photographs are decoded at no less than this multiple of what is cut out: shrinking the rest averages."""


class Facts(NamedTuple):
    """What is known of one photograph: the columns of a store's manifest after the source's.

    Attributes:
        width: Of the original, upright, in pixels.
        height: Of the original, in pixels.
        file_size: In bytes.
        file_sha256: Of the file's content.
        circle_x: Centre of the disc from the left edge of the original, in its pixels.
        circle_y: Centre of the disc from its top edge.
        circle_r: Radius of the disc; see :class:`~drgrade.data.geometry.Disc` for squashed photographs.
        stretch: Horizontal over vertical semi-axis of the disc as found in the file; 1 unless squashed.
        clear: Radius of the largest centred circle without padding, as a share of the disc's.
        border: Share of the original outside the recorded part of the disc, in [0, 1].
        brightness: Mean of all channels over the whole original, 0-255.
    """

    width: int
    height: int
    file_size: int
    file_sha256: str
    circle_x: float
    circle_y: float
    circle_r: float
    stretch: float
    clear: float
    border: float
    brightness: float


@dataclass(frozen=True)
class Crop:
    """What is kept of one photograph.

    Attributes:
        sha256: Of the file's content; "" if it could not be read.
        pixels: RGB, uint8 of shape (S, S, 3); None if the photograph cannot be used, or is known.
        thumbnail: Grey, uint8 of shape (T, T), for the search for duplicates; None likewise.
        facts: None likewise.
        conversions: What had to be changed, in words.
        failure: Why the photograph cannot be used; "" if it can.
    """

    sha256: str = ""
    pixels: npt.NDArray[np.uint8] | None = None
    thumbnail: npt.NDArray[np.uint8] | None = None
    facts: Facts | None = None
    conversions: tuple[str, ...] = ()
    failure: str = ""

    @property
    def is_known(self) -> bool:
        """Whether the file's content was known to the maker, so that nothing was decoded."""
        return self.pixels is None and not self.failure


class Seen(NamedTuple):
    """A decoded photograph and what was cut out of it, before its light is normalised.

    Attributes:
        photo: As decoded.
        disc: In its pixels.
        plain: RGB, uint8 of shape (S, S, 3).
    """

    photo: DecodedImage
    disc: Disc
    plain: npt.NDArray[np.uint8]


@dataclass(frozen=True)
class CropMaker:
    """Makes the crop of one photograph; travels to the workers.

    Attributes:
        image_size: Side of the crops in pixels.
        max_pixels: Larger photographs are refused.
        illumination: Normalisation of the light, a name of :mod:`drgrade.data.illumination`.
        known: SHA-256 of contents that need not be decoded again.
    """

    image_size: int
    max_pixels: int
    illumination: str = "none"
    known: frozenset[str] = frozenset()

    def __call__(self, path: Path) -> Crop:
        """Read a photograph, find its disc and cut it out."""
        sha256 = ""
        try:
            sha256 = hash_file(path)
            return Crop(sha256) if sha256 in self.known else self._crop(path, sha256)
        except (UnreadablePhotograph, NoFundus) as error:
            return Crop(sha256, failure=str(error))

    def see(self, path: Path) -> Seen:
        """Decode a photograph and cut out its disc.

        Args:
            path: The file.

        Raises:
            UnreadablePhotograph: If it cannot be decoded.
            NoFundus: If it is black or of one colour.
        """
        photo, disc = self._decode(path)
        return Seen(photo, disc, crop_disc(photo.pixels, disc, self.image_size))

    def crop(self, path: Path, sha256: str, seen: Seen) -> Crop:
        """Make the crop of what was seen.

        Args:
            path: The file.
            sha256: Of its content.
            seen: What :meth:`see` returned for it.
        """
        photo, disc, plain = seen
        return Crop(
            sha256,
            illuminate(self.illumination, plain, disc),
            make_thumbnail(photo.pixels, disc),
            _facts(photo, disc, path.stat().st_size, sha256),
            (*photo.conversions, *_squash_note(disc)),
        )

    def _crop(self, path: Path, sha256: str) -> Crop:
        return self.crop(path, sha256, self.see(path))

    def _decode(self, path: Path) -> tuple[DecodedImage, Disc]:
        """Decode at no more pixels than the crop needs, where the file allows that."""
        wanted = _DECODED_OVER * max(self.image_size, THUMBNAIL_SIZE)
        photo = self._read(path, ceil(wanted))
        disc = find_disc(photo.pixels)
        across = 2 * disc.radius * min(1, disc.stretch)
        if across < wanted / _DECODED_OVER and photo.pixels.shape[1] < photo.full_size[0]:
            # A small disc in a large frame.
            photo = self._read(path, ceil(wanted * min(photo.pixels.shape[:2]) / across))
            disc = find_disc(photo.pixels)
        return photo, disc

    def _read(self, path: Path, at_least: int) -> DecodedImage:
        return read_photograph(path, max_pixels=self.max_pixels, at_least=at_least)


def _facts(photo: DecodedImage, disc: Disc, file_size: int, sha256: str) -> Facts:
    height, width = photo.pixels.shape[:2]
    whole = disc.scaled(photo.full_size[0] / width, photo.full_size[1] / height)
    return Facts(
        *photo.full_size,
        file_size,
        sha256,
        circle_x=round(whole.x, 2),
        circle_y=round(whole.y, 2),
        circle_r=round(whole.radius, 2),
        stretch=round(whole.stretch, 4),
        clear=round(max(whole.clear_radius, 0.0) / whole.radius, 5),
        border=round(_border(disc, height, width), 4),
        brightness=round(float(np.mean(cv2.mean(photo.pixels)[:3])), 2),
    )


def _border(disc: Disc, height: int, width: int) -> float:
    """Share of a photograph outside the recorded part of its disc, by a grid of points."""
    y, x = (np.arange(_GRID) + 0.5)[:, None] * height / _GRID, (np.arange(_GRID) + 0.5) * width / _GRID
    inside = np.hypot((x - disc.x) / disc.stretch, y - disc.y) <= disc.radius
    inside &= (x >= disc.left) & (x <= disc.right) & (y >= disc.top) & (y <= disc.bottom)
    return 1 - float(inside.mean())


def _squash_note(disc: Disc) -> list[str]:
    if disc.stretch == 1:
        return []
    return [f"squashed by earlier processing ({disc.stretch:.2f} : 1), undone"]


def make_crops(maker: Callable[[Path], Made], paths: Iterable[Path], workers: int | None) -> Iterator[Made]:
    """Make the crops of many photographs, or something else of each, in their order.

    Args:
        maker: Makes one; must be picklable.
        paths: The files; they are asked for a few ahead, however many there are.
        workers: Number of processes; None for one per CPU. One, or few photographs, means none but this.

    Raises:
        DataError: If a worker process was killed.
    """
    workers, paths = workers or os.cpu_count() or 1, iter(paths)
    first = [] if workers == 1 else list(islice(paths, _FEW + 1))
    if len(first) <= _FEW:
        yield from map(maker, chain(first, paths))
        return
    try:
        with ProcessPoolExecutor(workers, _start_method(), _start_worker, (maker,)) as pool:
            yield from _in_order(pool, chain(first, paths), ahead=4 * workers)
    except BrokenProcessPool:
        raise DataError(
            f"a worker process was killed while preparing photographs, perhaps for lack of memory: "
            f"try fewer than {workers} with data.workers=N (drgrade predict: workers=N). What was prepared "
            "is kept, and is not done again"
        ) from None


def _in_order(pool: ProcessPoolExecutor, paths: Iterable[Path], ahead: int) -> Iterator[Any]:
    """Like ``pool.map``, with at most ``ahead`` results in memory."""
    waiting: deque[Future[Any]] = deque()
    try:
        for path in paths:
            waiting.append(pool.submit(_make, path))
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


_makers: list[Callable[[Path], Any]] = []
"""The maker of this worker process: sent once, as what it knows may be megabytes."""


def _start_worker(maker: Callable[[Path], Any]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the parent ends them
    cv2.setNumThreads(1)  # one process per CPU already
    _makers[:] = [maker]
    threading.Thread(target=_follow_parent, daemon=True).start()


def _make(path: Path) -> Any:
    return _makers[0](path)


def _follow_parent() -> None:
    """End with the parent: a worker whose parent was killed would wait for work for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
