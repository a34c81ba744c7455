"""Reading of single photographs from disk, with conversion to upright 8-bit RGB."""

import os
import struct
import sys
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from drgrade.data.decoder_process import DECODE_BYTES, DecoderEnded, DecoderProcess
from drgrade.errors import DataError
from drgrade.files import file_sha256, special_kind

MAX_PIXELS = 100_000_000
"""Limit in pixels; larger photographs are refused before decoding. Fundus cameras write 5-25 million."""

MAX_FILE_BYTES = 1_000_000_000
"""Limit of the size of a file; larger ones are refused before reading."""

FURTHER_EXTENSIONS = (".jfif", ".jpe", ".jp2", ".dcm", ".dicom")
"""Extensions of which a file is not searched for if a file of the same name has another extension."""

IMAGE_EXTENSIONS = (
    *(".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp", ".ppm"),
    *FURTHER_EXTENSIONS,
)
"""Extensions of photographs, in lower case. Not .gif, because data sets have masks in it."""

NO_PERMISSION = "no permission to read the file"

NO_MEMORY = "not enough memory to decode it"
"""The only reason that may not recur in another attempt."""

NO_PYDICOM = "DICOM needs the package pydicom: pip install 'drgrade[dicom]'"

_SEPARATE_PLANES = "16 bit in separate planes: save it with interleaved channels"
_FORMATS = ("JPEG", "PNG", "TIFF", "BMP", "WEBP", "PPM", "GIF", "JPEG2000")
_BY_OPENCV = ("PPM", "JPEG2000")  # whose 16-bit colour Pillow reduces to 8 bits in its decoder
_EXIF_ORIENTATION, _TIFF_BITS, _TIFF_PLANES = 0x0112, 258, 284
_MOST_SCANS, _MOST_DIRECTORIES = 200, 1_000  # of a JPEG and a TIFF; cameras write at most about 10
# A JPEG within these limits is decoded in this process, which bounds neither time nor memory. Its costs grow
# with pixels times scans, and the orientation is searched in one segment of 64 kB (Exif).
_PLAIN_BYTES, _PLAIN_SCANS, _PLAIN_PIXELS = 32_000_000, 20, 30_000_000
# Raised by Pillow's decoders on damaged files; struct.error and zlib.error have no common base.
_DECODER_ERRORS = (
    *(OSError, SyntaxError, ValueError, TypeError, LookupError, ArithmeticError, EOFError),
    *(AttributeError, AssertionError, RuntimeError),
)

_pillow_settings = threading.RLock()


class UnreadablePhotograph(DataError):
    """Unusable file; the message is the reason, without the path."""


@dataclass(frozen=True)
class DecodedImage:
    """A decoded photograph.

    Attributes:
        pixels: RGB, uint8 of shape (H, W, 3), upright.
        conversions: Descriptions of the conversions; empty for an ordinary 8-bit RGB file.
        full_size: (width, height) in pixels of the upright photograph at full size. ``pixels`` may be
            smaller: see ``at_least`` in :func:`read_photograph`.
    """

    pixels: npt.NDArray[np.uint8]
    conversions: tuple[str, ...]
    full_size: tuple[int, int]


def read_photograph(path: Path, *, max_pixels: int = MAX_PIXELS, at_least: int | None = None) -> DecodedImage:
    """Decode a photograph to upright 8-bit RGB.

    Args:
        path: The file.
        max_pixels: Limit in pixels; larger photographs are refused after reading the header.
        at_least: If given, a JPEG may be decoded at 1/2, 1/4 or 1/8 of its size, which is several times
            faster, as long as its shorter side keeps at least this many pixels.

    Raises:
        UnreadablePhotograph: If the file is missing, empty, truncated, damaged, too large or not an image.
    """
    with _errors_as_reasons(path):
        size = _check_file(path)
        if size == 0:
            raise UnreadablePhotograph("empty file (0 bytes)")
        if _is_plain_jpeg(path, size):
            with _strict_pillow(), Image.open(path, formats=_known_formats()) as image:
                if not (_is_progressive(image) and image.width * image.height > _PLAIN_PIXELS):
                    return _decode(image, path, max_pixels, at_least)
    try:
        pixels, value = _decoder().call(path.absolute(), max_pixels, at_least)
    except DecoderEnded as error:
        raise UnreadablePhotograph(str(error)) from None
    if pixels is None:
        raise UnreadablePhotograph(value)
    return DecodedImage(pixels, *value)


def read_photograph_here(
    path: Path, max_pixels: int, at_least: int | None
) -> tuple[npt.NDArray[np.uint8] | None, Any]:
    """Decode a photograph in this process; for the process of :func:`read_photograph`.

    Returns:
        The pixels, and the other attributes of :class:`DecodedImage`; or None, and the reason.
    """
    from drgrade.data.dicom import is_dicom, read_dicom

    try:
        with _errors_as_reasons(path), _strict_pillow():
            if is_dicom(path):
                decoded = read_dicom(path, max_pixels)
                return decoded.pixels, (decoded.conversions, decoded.full_size)
            _check_directories(path)
            with Image.open(path, formats=_known_formats()) as image:
                decoded = _decode(image, path, max_pixels, at_least)
    except UnreadablePhotograph as error:
        limit = f"needs more than {DECODE_BYTES / 2**30:.0f} GiB of memory to decode"
        return None, limit if str(error) == NO_MEMORY else str(error)
    return decoded.pixels, (decoded.conversions, decoded.full_size)


@cache
def _decoder() -> DecoderProcess:
    """Return the process that decodes photographs for this one; it starts with the first call."""
    return DecoderProcess(f"{__name__}:{read_photograph_here.__name__}")


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file's content as hexadecimal digits.

    Raises:
        UnreadablePhotograph: If the file cannot be read.
    """
    with _errors_as_reasons(path):
        _check_file(path)
        return file_sha256(path)


def _check_file(path: Path) -> int:
    """Refuse what must not be opened, and files that are too large; return the size in bytes."""
    kind = special_kind(path)
    if kind:
        raise UnreadablePhotograph(f"{kind}, not a file")
    size = path.stat().st_size
    if size > MAX_FILE_BYTES:
        raise UnreadablePhotograph(f"too large: {size:,} bytes, the limit is {MAX_FILE_BYTES:,}")
    return size


def _is_plain_jpeg(path: Path, size: int) -> bool:
    """Return True for a JPEG whose costs are bounded by its size; refuse one with thousands of scans."""
    with path.open("rb") as file:
        if file.read(3) != b"\xff\xd8\xff":
            return False
        if size > _PLAIN_BYTES:
            return False
        content = file.read(_PLAIN_BYTES)
    scans = content.count(b"\xff\xda")  # not inside a scan, where 0 follows 0xff
    if scans > _MOST_SCANS:
        raise UnreadablePhotograph(f"{scans:,} scans in a JPEG, the limit is {_MOST_SCANS}")
    return scans <= _PLAIN_SCANS and content.count(b"Exif\0\0") <= 1


def _is_progressive(image: Image.Image) -> bool:
    return bool(image.info.get("progressive"))


def _check_directories(path: Path) -> None:
    """Refuse a TIFF with thousands of directories, which Pillow would read one by one."""
    with path.open("rb") as file:
        order = {b"II*\0": "<", b"MM\0*": ">"}.get(file.read(4), "")
        for _ in range(_MOST_DIRECTORIES if order else 0):
            pointer = file.read(4)
            position = struct.unpack(f"{order}I", pointer)[0] if len(pointer) == 4 else 0
            file.seek(position)
            count = file.read(2)
            if not position or len(count) < 2:
                return
            file.seek(12 * struct.unpack(f"{order}H", count)[0], os.SEEK_CUR)
    if order:
        raise UnreadablePhotograph(f"more than {_MOST_DIRECTORIES:,} directories in a TIFF")


def _decode(image: ImageFile.ImageFile, path: Path, max_pixels: int, at_least: int | None) -> DecodedImage:
    width, height = image.size
    if width * height > max_pixels:
        raise UnreadablePhotograph(
            f"too many pixels: {width} x {height} is more than the limit of {max_pixels:,}"
        )
    sixteen_bit = _is_sixteen_bit(image)
    if sixteen_bit and 2 * width * height > max_pixels:
        raise UnreadablePhotograph(
            f"too many pixels: {width} x {height} with 16 bits per channel is more than the limit of "
            f"{max_pixels // 2:,}"
        )
    frames = 1 if image.format in ("JPEG", "MPO") else int(getattr(image, "n_frames", 1))
    conversions = [f"first of {frames} frames"] if frames > 1 else []
    tiles = tuple(image.tile)
    if at_least is not None and image.format in ("JPEG", "MPO"):
        _shrink_while_decoding(image, at_least)
    if not sixteen_bit and _has_separate_planes(image):
        raise UnreadablePhotograph(_SEPARATE_PLANES)
    image.load()
    unknown_bits = image.format == "JPEG2000" and image.mode in ("RGB", "RGBA")
    bits = _use_lower_bits(image, tiles, path) if sixteen_bit or unknown_bits else 0
    orientation = image.getexif().get(_EXIF_ORIENTATION, 1)
    turned = orientation in range(2, 9)
    pixels, changes = _to_rgb(ImageOps.exif_transpose(image) if turned else image, bits)
    conversions += changes
    if turned:
        conversions.append(f"turned upright by EXIF orientation {orientation}")
    full_size = (height, width) if orientation in range(5, 9) else (width, height)
    return DecodedImage(pixels, tuple(conversions), full_size)


@contextmanager
def _strict_pillow() -> Iterator[None]:
    """Configure Pillow to refuse truncated files and disable its pixel limit; restore both afterwards.

    Both settings are globals of Pillow. Its pixel limit is replaced by ``max_pixels`` because it only warns
    below twice the limit.
    """
    with _pillow_settings:
        truncated, limit = ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS
        ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS = False, None
        try:
            yield
        finally:
            ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS = truncated, limit


@contextmanager
def _errors_as_reasons(path: Path) -> Iterator[None]:
    """Convert errors of a file to :class:`UnreadablePhotograph`."""
    try:
        yield
    except FileNotFoundError:
        raise UnreadablePhotograph("the file is not there") from None
    except IsADirectoryError:
        raise UnreadablePhotograph("a folder, not a file") from None
    except PermissionError:
        raise UnreadablePhotograph(NO_PERMISSION) from None
    except MemoryError:
        raise UnreadablePhotograph(NO_MEMORY) from None
    except UnidentifiedImageError:
        raise UnreadablePhotograph(_why_unidentified(path)) from None
    except (*_DECODER_ERRORS, struct.error, zlib.error) as error:
        raise UnreadablePhotograph(_reason(error)) from error


@cache
def _known_formats() -> tuple[str, ...]:
    """Return the supported formats that this build of Pillow reads."""
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _why_unidentified(path: Path) -> str:
    with path.open("rb") as file:
        head = file.read(512)
    if head.startswith((b"\xff\xd8\xff", b"\x89PNG", b"II*\0", b"MM\0*")):
        return "truncated or damaged in its header"
    if b"\0" not in head and not any(byte > 0xF4 for byte in head):
        return "not an image (it looks like text)"
    return "not an image in a known format"


def _reason(error: BaseException) -> str:
    text = str(error) or type(error).__name__
    signs = ("truncated", "not enough", "premature", "unexpected end", "eof")
    return f"truncated: {text}" if any(sign in text.lower() for sign in signs) else f"damaged: {text}"


def _shrink_while_decoding(image: Image.Image, at_least: int) -> None:
    """Select the smallest JPEG decoding scale, 1 to 1/8, whose shorter side keeps ``at_least`` pixels."""
    shorter = min(image.size)
    scale = max((s for s in (1, 2, 4, 8) if shorter // s >= at_least), default=1)
    if scale > 1:
        # draft() takes the minimum size. Mode None keeps the colours.
        image.draft(None, (image.width // scale, image.height // scale))


def _is_sixteen_bit(image: Image.Image) -> bool:
    """Return True for 16 bits per channel; Pillow silently reduces them to 8 when it loads colour."""
    tiles = getattr(image, "tile", None) or []
    return image.mode.startswith("I") or any(
        ";16" in str(tile.args) or tile.args == ("RGB", 65535) for tile in tiles
    )


def _to_rgb(image: Image.Image, bits: int) -> tuple[npt.NDArray[np.uint8], list[str]]:
    """Convert any mode to (H, W, 3) uint8; return the pixels and descriptions of the conversions."""
    if image.mode.startswith("I"):
        image, bits = _to_eight_bit(image)
    changes = [f"16 bit to 8 bit ({bits} bits used)"] if bits else []
    if image.mode == "F":
        raise ValueError("floating-point pixels, not a photograph")
    if image.mode in ("P", "PA"):
        changes.append("palette to RGB")
        image = image.convert("RGBA" if image.mode == "PA" or "transparency" in image.info else "RGB")
    if image.mode in ("LA", "La", "RGBA", "RGBa"):
        image, note = _without_alpha(image)
        changes.append(note)
    if image.mode in ("1", "L"):
        changes.append("greyscale to RGB")
    elif image.mode not in ("RGB", "RGBX"):
        changes.append(f"{image.mode} to RGB")
    return np.array(image if image.mode == "RGB" else image.convert("RGB")), changes


def used_bits(highest: int) -> int:
    """Return how many bits of 16 a photograph uses, given its highest value: 8, 10, 12, 14 or 16."""
    return next((bits for bits in (8, 10, 12, 14) if highest < 1 << bits), 16)


def _to_eight_bit(image: Image.Image) -> tuple[Image.Image, int]:
    """Reduce 16-bit grey to 8 bits; also return the number of bits used."""
    values = np.clip(np.asarray(image).astype(np.int64), 0, 65535)
    bits = used_bits(int(values.max(initial=0)))
    return Image.fromarray((values >> (bits - 8)).astype(np.uint8)), bits


def _use_lower_bits(image: ImageFile.ImageFile, tiles: tuple[ImageFile._Tile, ...], path: Path) -> int:
    """Rescale 16-bit colour, of which Pillow loads the upper bytes, if its highest bits are not used.

    Returns the number of bits used; 0 for a file of 8 bits.
    """
    if image.mode.startswith("I"):
        return 16
    colours = sum(band not in "Aa" for band in image.getbands())
    if used_bits(256 * int(np.asarray(image)[..., :colours].max(initial=0))) == 16:
        return 0 if image.format == "JPEG2000" else 16  # Pillow does not tell its bits
    if _has_separate_planes(image):
        raise UnreadablePhotograph(_SEPARATE_PLANES)
    values = _by_opencv(path) if image.format in _BY_OPENCV else _by_exchanged_bytes(image, tiles, path)
    if len(values) != len(image.getbands()) or values[0].shape != (image.height, image.width):
        return 0
    bits = used_bits(max(int(each.max()) for each in values[:colours]))
    shifts = [bits - 8] * colours + [used_bits(int(alpha.max())) - 8 for alpha in values[colours:]]
    channels = [(each >> shift).astype(np.uint8) for each, shift in zip(values, shifts, strict=True)]
    image.paste(Image.merge(image.mode, [Image.fromarray(channel) for channel in channels]))
    return bits


def _by_exchanged_bytes(
    image: Image.Image, tiles: tuple[ImageFile._Tile, ...], path: Path
) -> list[npt.NDArray[np.uint16]]:
    """Return the 16-bit channels of a PNG or TIFF, of which Pillow has loaded the upper bytes."""
    with Image.open(path, formats=_known_formats()) as lower:
        lower.tile = [tile._replace(args=_with_lower_bytes(tile.args)) for tile in tiles]
        lower.load()
        bands = lower.split()
    if any(tile.args == "LA;16B" for tile in tiles):  # decoded as both bytes of grey, both bytes of alpha
        bands = (bands[1], bands[1], bands[1], bands[3])
    pairs = zip(image.split(), bands, strict=True)
    return [np.asarray(upper).astype(np.uint16) << 8 | np.asarray(low) for upper, low in pairs]


def _by_opencv(path: Path) -> list[npt.NDArray[np.uint16]]:
    """Return the channels of a file in the order of Pillow; none if it has 8 bits."""
    import cv2

    try:
        pixels = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:
        pixels = None
    if pixels is None or pixels.dtype != np.uint16 or pixels.ndim != 3:
        return []
    return [pixels[..., channel].astype(np.uint16) for channel in (2, 1, 0, 3)[: pixels.shape[2]]]


def _has_separate_planes(image: ImageFile.ImageFile) -> bool:
    """Return True for a TIFF of 16 bits whose channels are stored one after the other."""
    tags = getattr(image, "tag_v2", {})
    return tags.get(_TIFF_PLANES) == 2 and max(tags.get(_TIFF_BITS, (8,))) > 8


def _with_lower_bytes(args: Any) -> Any:
    """Exchange the byte order in the arguments of a 16-bit decoder."""
    if not isinstance(args, str):
        return (_with_lower_bytes(args[0]), *args[1:])
    native = "B" if sys.byteorder == "little" else "L"
    return "RGBA" if args == "LA;16B" else args[:-1] + {"B": "L", "L": "B", "N": native}[args[-1]]


def _without_alpha(image: Image.Image) -> tuple[Image.Image, str]:
    """Drop the alpha channel; transparent pixels become black, like the surround of a fundus photograph."""
    colour = "L" if image.mode.lower().startswith("l") else "RGB"
    image = image.convert("LA" if colour == "L" else "RGBA")
    alpha = image.getchannel("A")
    if alpha.getextrema() == (255, 255):
        return image.convert(colour), "alpha dropped"
    black = Image.new(colour, image.size)
    black.paste(image.convert(colour), mask=alpha)
    return black, "transparent pixels turned black, alpha dropped"
