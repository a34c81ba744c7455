"""Square crops of photographs and their illumination: the part of preparation that runs in worker processes.

Few modules are imported here, because every worker imports them.
"""

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from itertools import chain, islice
from math import ceil
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import cv2
import numpy as np
import numpy.typing as npt

from drgrade.data.disc_detection import find_disc
from drgrade.data.geometry import (
    THUMBNAIL_SIZE,
    Disc,
    Mask,
    NoFundus,
    Pixels,
    crop_disc,
    make_thumbnail,
    only_disc,
    recorded_mask,
    refuse_noise,
)
from drgrade.data.image_reader import (
    MAX_PIXELS,
    DecodedImage,
    UnreadablePhotograph,
    hash_file,
    read_photograph,
)
from drgrade.errors import ConfigError, DataError
from drgrade.processes import end_with_pool

Made = TypeVar("Made")

IN_PROCESS_LIMIT = 24
"""Up to this number, photographs are prepared faster than worker processes start."""

_CHUNK = 4
"""Number of photographs that a worker process gets at a time."""

LEAST_SIDE = 16
"""Smallest side of a photograph in pixels."""

_GRID = 64
_OVERSAMPLING = 1.5  # photographs are decoded at no less than this multiple of the size of the crop


class Facts(NamedTuple):
    """Measurements of one photograph: the columns of a store's manifest after those of the source.

    Attributes:
        width: Width of the upright original in pixels.
        height: Height of the original in pixels.
        file_size: Size of the file in bytes.
        file_sha256: SHA-256 of the file.
        circle_x: Centre of the disc from the left edge, in pixels of the original.
        circle_y: Centre of the disc from the top edge.
        circle_r: Radius of the disc; see :class:`~drgrade.data.geometry.Disc` for squashed photographs.
        stretch: Horizontal over vertical semi-axis of the disc in the file; 1 unless squashed.
        clear: Radius of the largest centred circle without padding, as a share of the radius of the disc.
        border: Share of the original outside the recorded part of the disc, in [0, 1].
        brightness: Mean of all channels over the whole original, in [0, 255].
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
    """Result for one photograph.

    Attributes:
        sha256: SHA-256 of the file; "" if it could not be read.
        pixels: RGB, uint8 (S, S, 3). This and the next two are None if the photograph cannot be used, or,
            without a failure, if its content is known and nothing was decoded.
        thumbnail: Grey, uint8 (T, T), for the search for duplicates.
        facts: Measurements.
        conversions: Changes made to the decoded image.
        failure: Why the photograph cannot be used; "" if it can.
    """

    sha256: str = ""
    pixels: npt.NDArray[np.uint8] | None = None
    thumbnail: npt.NDArray[np.uint8] | None = None
    facts: Facts | None = None
    conversions: tuple[str, ...] = ()
    failure: str = ""


class ExtractedDisc(NamedTuple):
    """A decoded photograph and the square around its disc, before illumination normalisation.

    Attributes:
        photo: The decoded photograph.
        disc: The disc, in pixels of ``photo``.
        plain: RGB, uint8 (S, S, 3).
    """

    photo: DecodedImage
    disc: Disc
    plain: npt.NDArray[np.uint8]


@dataclass(frozen=True)
class CropMaker:
    """Make the crop of one photograph. Picklable, for worker processes.

    Attributes:
        image_size: Side of the crops in pixels.
        max_pixels: Photographs with more pixels are refused.
        illumination: Illumination normalisation, a name of :mod:`drgrade.data.crops`.
    """

    image_size: int
    max_pixels: int = MAX_PIXELS
    illumination: str = "none"

    def __call__(self, path: Path, known: frozenset[str] = frozenset()) -> Crop:
        """Read a photograph, find its disc and crop it.

        Args:
            path: File of the photograph.
            known: SHA-256 of contents that need not be decoded again.
        """
        sha256 = ""
        try:
            sha256 = hash_file(path)
            return Crop(sha256) if sha256 in known else self.crop(path, sha256, self.extract(path))
        except (UnreadablePhotograph, NoFundus) as error:
            return Crop(sha256, failure=str(error))

    def extract(self, path: Path) -> ExtractedDisc:
        """Decode a photograph, find its disc and crop it.

        Raises:
            UnreadablePhotograph: If it cannot be decoded.
            NoFundus: If it is black, has one colour or is a strip.
        """
        wanted = _OVERSAMPLING * max(self.image_size, THUMBNAIL_SIZE)
        photo = read_photograph(path, max_pixels=self.max_pixels, at_least=ceil(wanted))
        if min(photo.full_size) < LEAST_SIDE:
            raise NoFundus(f"no fundus photograph: {photo.full_size[0]} x {photo.full_size[1]} pixels")
        disc = find_disc(photo.pixels)
        across = 2 * disc.radius * min(1, disc.stretch)
        if across < wanted / _OVERSAMPLING and photo.pixels.shape[1] < photo.full_size[0]:
            # The disc is small in its frame: decode at a larger size.
            at_least = ceil(wanted * min(photo.pixels.shape[:2]) / across)
            photo = read_photograph(path, max_pixels=self.max_pixels, at_least=at_least)
            disc = find_disc(photo.pixels)
        if disc.framed:
            photo = replace(photo, pixels=only_disc(photo.pixels, disc))
        return ExtractedDisc(photo, disc, crop_disc(photo.pixels, disc, self.image_size))

    def crop(self, path: Path, sha256: str, extracted: ExtractedDisc) -> Crop:
        """Complete the result of :meth:`extract`: normalise the illumination and measure the photograph."""
        photo, disc, plain = extracted
        conversions = photo.conversions
        if disc.stretch != 1:
            conversions += (f"squashed by earlier processing ({disc.stretch:.2f} : 1), undone",)
        conversions += ("bright surround turned black",) if disc.framed else ()
        conversions += (disc.doubt,) if disc.doubt else ()
        thumbnail = make_thumbnail(photo.pixels, disc)
        refuse_noise(thumbnail, 2 * disc.radius * min(1, disc.stretch))
        return Crop(
            sha256,
            illuminate(self.illumination, plain, disc),
            thumbnail,
            _facts(photo, disc, path.stat().st_size, sha256),
            conversions,
        )


def _facts(photo: DecodedImage, disc: Disc, file_size: int, sha256: str) -> Facts:
    height, width = photo.pixels.shape[:2]
    original = disc.scaled(photo.full_size[0] / width, photo.full_size[1] / height)
    return Facts(
        *photo.full_size,
        file_size,
        sha256,
        circle_x=round(original.x, 2),
        circle_y=round(original.y, 2),
        circle_r=round(original.radius, 2),
        stretch=round(original.stretch, 4),
        clear=round(max(original.clear_radius, 0.0) / original.radius, 5),
        border=round(_border(disc, height, width), 4),
        brightness=round(float(np.mean(cv2.mean(photo.pixels)[:3])), 2),
    )


def _border(disc: Disc, height: int, width: int) -> float:
    """Estimate the share of a photograph outside its recorded disc from a grid of points."""
    y, x = (np.arange(_GRID) + 0.5)[:, None] * height / _GRID, (np.arange(_GRID) + 0.5) * width / _GRID
    inside = np.hypot((x - disc.x) / disc.stretch, y - disc.y) <= disc.radius
    inside &= (x >= disc.left) & (x <= disc.right) & (y >= disc.top) & (y <= disc.bottom)
    return 1 - float(inside.mean())


def make_crops(maker: Callable[[Path], Made], paths: Iterable[Path], workers: int | None) -> Iterator[Made]:
    """Apply a function to many photographs in order, in worker processes if there are many.

    Args:
        maker: The function, for example a :class:`CropMaker`; must be picklable.
        paths: Files of the photographs, consumed a few ahead.
        workers: Number of processes; None for one per CPU. This process works alone if it is 1 or there are
            few photographs.

    Raises:
        DataError: If a worker process was killed.
    """
    return chain.from_iterable(_make_in_chunks(maker, iter(paths), workers or os.cpu_count() or 1))


def _make_in_chunks(
    maker: Callable[[Path], Made], paths: Iterator[Path], workers: int
) -> Iterator[Iterable[Made]]:
    first = [] if workers == 1 else list(islice(paths, IN_PROCESS_LIMIT + 1))
    if len(first) <= IN_PROCESS_LIMIT:
        yield map(maker, chain(first, paths))
        return
    try:
        with ProcessPoolExecutor(workers, _start_method(), _start_worker, (maker,)) as pool:
            yield from _map_in_order(pool, chain(first, paths), ahead=2 * workers)
    except BrokenProcessPool:
        raise DataError(
            f"a worker process was killed while preparing photographs, perhaps for lack of memory: "
            f"use fewer than {workers} processes with data.workers=N (drgrade predict: workers=N). Prepared "
            "photographs are kept"
        ) from None


def _map_in_order(pool: ProcessPoolExecutor, paths: Iterator[Path], ahead: int) -> Iterator[list[Any]]:
    """Map like ``pool.map``, with the results of at most ``ahead`` chunks in memory."""
    waiting: deque[Future[list[Any]]] = deque()
    try:
        while chunk := list(islice(paths, _CHUNK)):
            waiting.append(pool.submit(_make, chunk))
            if len(waiting) >= ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _start_method() -> multiprocessing.context.BaseContext:
    # Not fork: it would copy locks that threads of the caller (torch, progress bars) hold.
    methods = multiprocessing.get_all_start_methods()
    return multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")


_makers: list[Callable[[Path], Any]] = []
"""Function of this worker process; sent once, because known contents may take megabytes."""


def _start_worker(maker: Callable[[Path], Any]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the parent stops them
    cv2.setNumThreads(1)  # one process per CPU already
    _makers[:] = [maker]
    end_with_pool()


def _make(paths: Sequence[Path]) -> list[Any]:
    return [_makers[0](path) for path in paths]


Illumination = Callable[[Pixels, Mask], Pixels]

GRAHAM_GAIN, GRAHAM_SIGMA, GRAHAM_GREY = 4.0, 1 / 30, 128.0
"""Factor on the difference from the local mean, standard deviation of the blur in radii of the disc, and
level that the local mean is mapped to."""

CLAHE_CLIP, CLAHE_GRID = 2.0, 8
"""Clip limit as a multiple of the mean count of a level in a tile; number of tiles along each side."""

_RIM = 0.03  # width, in radii, of the edge where the disc fades into the surround


def ben_graham(crop: Pixels, mask: Mask) -> Pixels:
    """Subtract the local mean colour.

    B. Graham, Kaggle Diabetic Retinopathy Detection competition report (winner), 2015: 4 I - 4 (G * I) + 128
    for each channel, with a Gaussian G whose standard deviation is 1/30 of the disc's radius. Here the mean
    is taken over the disc only (normalised convolution: G * (w I) / (G * w), with w = 1 inside), so that the
    black surround causes no glow along the rim.
    """
    radius = len(crop) / 2
    weight = _without_rim(mask, radius).astype(np.float32)[..., None]
    total = _blurred(weight * crop, GRAHAM_SIGMA * radius)
    # Beyond the reach of the kernel from any pixel with weight, nothing is subtracted.
    share = _blurred(weight, GRAHAM_SIGMA * radius)[..., None]
    mean = np.divide(total, share, out=crop.astype(np.float32), where=share > 1e-6)
    result = GRAHAM_GAIN * (crop - mean) + GRAHAM_GREY
    return _masked(np.clip(np.rint(result), 0, 255).astype(np.uint8), mask)


def clahe(crop: Pixels, mask: Mask) -> Pixels:
    """Equalise the histogram of lightness locally with limited contrast; keep the colours.

    K. Zuiderveld, Graphics Gems IV, 1994, on the L channel of CIELAB, with OpenCV's tiles and limit. The
    disc is first extended beyond its edge by reflection, so that no tile counts the black surround.
    """
    lab = cv2.cvtColor(reflected(crop, _without_rim(mask, len(crop) / 2)), cv2.COLOR_RGB2LAB)
    equaliser = cv2.createCLAHE(CLAHE_CLIP, (CLAHE_GRID, CLAHE_GRID))
    lab[..., 0] = equaliser.apply(np.ascontiguousarray(lab[..., 0]))
    return _masked(np.asarray(cv2.cvtColor(lab, cv2.COLOR_LAB2RGB), dtype=np.uint8), mask)


ILLUMINATIONS: dict[str, Illumination | None] = {"none": None, "ben_graham": ben_graham, "clahe": clahe}
"""Choices of ``data.illumination``; None keeps the crop unchanged."""


def check_illumination(name: str) -> None:
    """Check the value of ``data.illumination``.

    Raises:
        ConfigError: If the name is unknown.
    """
    if name not in ILLUMINATIONS:
        raise ConfigError(f"data.illumination={name} is unknown: choose one of {', '.join(ILLUMINATIONS)}")


def illuminate(name: str, crop: Pixels, disc: Disc) -> Pixels:
    """Normalise the illumination of a crop of :func:`~drgrade.data.geometry.crop_disc`.

    Args:
        name: One of :data:`ILLUMINATIONS`.
        crop: RGB, uint8 (S, S, 3).
        disc: Disc of the crop.

    Raises:
        ConfigError: If the name is unknown.
    """
    check_illumination(name)
    normalise = ILLUMINATIONS[name]
    return crop if normalise is None else normalise(crop, recorded_mask(disc, len(crop)))


def reflected(crop: Pixels, mask: Mask) -> Pixels:
    """Extend the inside of a mask beyond its edge by reflection.

    Each pixel outside the mask is replaced by its reflection at the nearest pixel inside, or by the nearest
    pixel if the reflection is not inside. With an empty mask the crop is unchanged.
    """
    from scipy import ndimage  # imported here to keep the start of preparation workers fast

    if not mask.any():
        return crop
    nearest = ndimage.distance_transform_edt(~mask, return_distances=False, return_indices=True)
    y, x = np.clip(2 * nearest - np.indices(mask.shape), 0, np.array(mask.shape)[:, None, None] - 1)
    y, x = np.where(mask[y, x], (y, x), nearest)
    extended: Pixels = crop[y, x]
    return extended


def _without_rim(mask: Mask, radius: float) -> Mask:
    """Remove the rim from a mask, where the disc fades into the surround."""
    place = (np.arange(len(mask)) + 0.5) / radius - 1
    return np.asarray(mask & (place[:, None] ** 2 + place**2 <= (1 - _RIM) ** 2))


def _blurred(values: npt.NDArray[np.float32], sigma: float) -> npt.NDArray[np.float32]:
    return np.asarray(
        cv2.GaussianBlur(values, (0, 0), sigma, borderType=cv2.BORDER_CONSTANT), dtype=np.float32
    )


def _masked(pixels: Pixels, mask: Mask) -> Pixels:
    black: Pixels = np.zeros_like(pixels)
    black[mask] = pixels[mask]
    return black
