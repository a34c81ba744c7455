"""DICOM files: pixels of ophthalmic photographs, and patient and eye from the header. Needs pydicom."""

import hashlib
import logging
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from drgrade.data.image_reader import (
    MAX_FILE_BYTES,
    NO_PYDICOM,
    DecodedImage,
    UnreadablePhotograph,
    used_bits,
)

DICOM_EXTENSIONS = (".dcm", ".dicom")

_DEFLATED = "1.2.840.10008.1.2.1.99"
# Raised by pydicom on damaged files, like two errors of its own.
_ERRORS = (OSError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RuntimeError)
_FURTHER_ERRORS = (EOFError, AssertionError, struct.error, zlib.error)


class DicomLabels(NamedTuple):
    """Labels in the header of a DICOM file; None if unknown.

    Attributes:
        patient: First 16 digits of the SHA-256 of the PatientID, which may identify a person.
        eye: "left" or "right".
    """

    patient: str | None = None
    eye: str | None = None


def is_dicom(path: Path) -> bool:
    """Return True for a file with the mark of DICOM; a TIFF may have both marks."""
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM" and path.suffix.lower() not in (".tif", ".tiff")


def read_dicom(path: Path, max_pixels: int) -> DecodedImage:
    """Decode the first frame of a DICOM file to 8-bit RGB.

    Args:
        path: The file.
        max_pixels: Limit in pixels; larger photographs are refused after reading the header.

    Raises:
        UnreadablePhotograph: If pydicom is missing, or the file is damaged or is no photograph.
    """
    try:
        import pydicom
        from pydicom.pixels.utils import pixel_array
    except ImportError:
        raise UnreadablePhotograph(NO_PYDICOM) from None
    with _quiet_pydicom():
        data = pydicom.dcmread(path)
        _check(data, max_pixels)
        values = pixel_array(data, index=0)
    frames, form = int(data.get("NumberOfFrames") or 1), str(data.PhotometricInterpretation)
    conversions = [f"first of {frames} frames"] if frames > 1 else []
    if form == "PALETTE COLOR":
        from pydicom.pixels.processing import apply_color_lut

        values, form = apply_color_lut(values, data), "RGB of a palette"
        bits = 8 * values.dtype.itemsize
    else:
        bits = int(data.get("HighBit", data.BitsStored - 1)) + 1
        values = values.astype(np.int32) + ((1 << bits - 1) if data.get("PixelRepresentation") else 0)
    pixels, used = _to_eight_bit(values, bits)
    if form == "MONOCHROME1":
        pixels = 255 - pixels
    if used != 8:
        conversions.append(f"{bits} bit to 8 bit ({used} bits used)")
    if form != "RGB":
        conversions.append(f"{form} to RGB")
    if pixels.ndim == 2:
        pixels = np.repeat(pixels[..., None], 3, axis=2)
    height, width = pixels.shape[:2]
    return DecodedImage(np.ascontiguousarray(pixels), tuple(conversions), (width, height))


def read_labels(path: Path) -> DicomLabels:
    """Read patient and eye from a header; unknown if the file is damaged or pydicom is missing."""
    try:
        import pydicom
    except ImportError:
        return DicomLabels()
    if path.stat().st_size > MAX_FILE_BYTES:
        return DicomLabels()
    try:
        with _quiet_pydicom():
            if pydicom.filereader.read_file_meta_info(path).get("TransferSyntaxUID") == _DEFLATED:
                return DicomLabels()  # may unpack to any size
            tags = ["PatientID", "ImageLaterality", "Laterality"]
            data = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=tags)
            patient = str(data.get("PatientID") or "").strip()
            eye = str(data.get("ImageLaterality") or data.get("Laterality") or "").strip()
    except UnreadablePhotograph:  # reading its pixels gives the reason
        return DicomLabels()
    digest = hashlib.sha256(patient.encode("utf-8", "backslashreplace")).hexdigest()[:16]
    return DicomLabels(digest if patient else None, {"L": "left", "R": "right"}.get(eye))


def _check(data: Any, max_pixels: int) -> None:
    """Refuse what is no photograph, before it is decoded."""
    if "PixelData" not in data:
        raise UnreadablePhotograph("DICOM without pixel data")
    modality = str(data.get("Modality") or "")
    if modality.startswith("OPT"):
        raise UnreadablePhotograph(f"DICOM of tomography (modality {modality}), not a photograph")
    bits = int(data.get("HighBit", data.BitsStored - 1)) + 1
    if not 1 <= bits <= int(data.BitsAllocated) <= 16:
        raise UnreadablePhotograph(f"DICOM with {bits} of {data.BitsAllocated} bits is not supported")
    limit = max_pixels if data.BitsAllocated <= 8 else max_pixels // 2
    if data.Rows * data.Columns > limit:
        raise UnreadablePhotograph(
            f"too many pixels: {data.Columns} x {data.Rows} is more than the limit of {limit:,}"
        )
    form, samples = str(data.PhotometricInterpretation), int(data.SamplesPerPixel)
    expected = 1 if form.startswith("MONOCHROME") or form == "PALETTE COLOR" else 3
    known = form in ("MONOCHROME1", "MONOCHROME2", "RGB", "PALETTE COLOR") or form.startswith("YBR_")
    if not known or samples != expected:
        raise UnreadablePhotograph(f"DICOM with {samples} channels of {form} is not supported")
    syntax = data.file_meta.TransferSyntaxUID
    if syntax.is_compressed and not _has_decoder(syntax):
        raise UnreadablePhotograph(f"DICOM with {syntax.name}, which the installed packages do not read")


def _has_decoder(syntax: Any) -> bool:
    from pydicom.pixels.decoders.base import get_decoder

    try:
        return bool(get_decoder(syntax).is_available)
    except NotImplementedError:
        return str(syntax) == _DEFLATED


def _to_eight_bit(values: npt.NDArray[Any], bits: int) -> tuple[npt.NDArray[np.uint8], int]:
    """Scale values of ``bits`` bits to 8, or fewer bits if 16 are declared and not used."""
    used = used_bits(int(values.max(initial=0))) if bits == 16 else bits
    if used < 8:
        return (values * 255 // ((1 << used) - 1)).astype(np.uint8), used
    return np.clip(values >> (used - 8), 0, 255).astype(np.uint8), used


@contextmanager
def _quiet_pydicom() -> Iterator[None]:
    """Convert errors of pydicom to :class:`UnreadablePhotograph`, and silence its warnings."""
    from pydicom.errors import BytesLengthException, InvalidDicomError

    logging.getLogger("pydicom").setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except InvalidDicomError:
        raise UnreadablePhotograph("not a DICOM file, or damaged in its header") from None
    except (*_ERRORS, *_FURTHER_ERRORS, BytesLengthException) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UnreadablePhotograph(f"DICOM that cannot be decoded: {reason}") from error
