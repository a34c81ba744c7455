"""DICOM files in preparation and prediction."""

import io
import shutil
import sys

import cv2
import numpy as np
import pytest
from PIL import Image
from source_layouts import files, rows
from synthetic_photographs import disc_photograph, save

from drgrade.data.dicom import read_labels
from drgrade.data.image_reader import (
    NO_PYDICOM,
    UnreadablePhotograph,
    read_photograph,
    read_photograph_here,
)
from drgrade.data.sources.folder import Folder
from drgrade.data.store import prepare

pydicom = pytest.importorskip("pydicom")

RGB = disc_photograph((160, 120))
GREY = RGB[..., 0]


def write(path, pixels, form="RGB", *, bits=8, syntax="1.2.840.10008.1.2.1", content=None, **tags):
    """Write a DICOM file; ``content`` replaces the bytes of the pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    meta = pydicom.dataset.FileMetaDataset()
    meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = syntax, "1.2.840.10008.5.1.4.1.1.77.1.5.1"
    meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
    data = pydicom.dataset.Dataset()
    data.file_meta, data.Modality = meta, "OP"
    allocated = 8 if bits <= 8 else 16
    data.Rows, data.Columns, data.SamplesPerPixel = *pixels.shape[:2], 3 if pixels.ndim == 3 else 1
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = allocated, bits, bits - 1, 0
    data.PhotometricInterpretation = form
    if pixels.ndim == 3:
        data.PlanarConfiguration = 0
    data.PixelData = pixels.astype(f"<u{allocated // 8}").tobytes() if content is None else content
    for name, value in tags.items():
        if value is None:
            delattr(data, name)
        else:
            setattr(data, name, value)
    data.save_as(path, enforce_file_format=True)
    return path


def jpeg(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=95)
    return pydicom.encaps.encapsulate([buffer.getvalue()])


def reason(path):
    with pytest.raises(UnreadablePhotograph) as error:
        read_photograph(path)
    return str(error.value)


def test_colour_is_read_exactly(tmp_path):
    photo = read_photograph(write(tmp_path / "a.dcm", RGB))
    assert np.array_equal(photo.pixels, RGB)
    assert (photo.conversions, photo.full_size) == ((), (160, 120))


@pytest.mark.parametrize("form", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_grey_of_any_depth_is_scaled_and_upright_in_brightness(tmp_path, form, bits):
    grey = GREY.astype(np.uint16) << (bits - 8)
    stored = (1 << bits) - 1 - grey if form == "MONOCHROME1" else grey
    photo = read_photograph(write(tmp_path / "a.dcm", stored, form, bits=bits))
    assert np.abs(photo.pixels.astype(int) - GREY[..., None]).max() <= 1
    assert photo.conversions[-1] == f"{form} to RGB"


def test_twelve_bits_declared_as_sixteen_are_scaled(tmp_path):
    photo = read_photograph(write(tmp_path / "a.dcm", RGB.astype(np.uint16) << 4, bits=16))
    assert np.array_equal(photo.pixels, RGB)
    assert photo.conversions == ("16 bit to 8 bit (12 bits used)",)


def test_uncompressed_ybr_becomes_rgb(tmp_path):
    ybr = cv2.cvtColor(RGB, cv2.COLOR_RGB2YCrCb)[..., [0, 2, 1]]
    photo = read_photograph(write(tmp_path / "a.dcm", ybr, "YBR_FULL"))
    assert np.abs(photo.pixels.astype(int) - RGB).max() <= 3


@pytest.mark.parametrize("form", ["YBR_FULL_422", "RGB"])
def test_encapsulated_jpeg_is_read(tmp_path, form):
    path = write(tmp_path / "a", RGB, form, syntax="1.2.840.10008.1.2.4.50", content=jpeg(RGB))
    assert np.abs(read_photograph(path).pixels.astype(int) - RGB).mean() < 3


def test_first_of_several_frames_is_used_and_reported(tmp_path):
    frames = np.stack([RGB, 255 - RGB])
    photo = read_photograph(write(tmp_path / "a.dcm", RGB, content=frames.tobytes(), NumberOfFrames=2))
    assert np.array_equal(photo.pixels, RGB)
    assert photo.conversions == ("first of 2 frames",)


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ({"PixelData": None}, "DICOM without pixel data"),
        ({"Modality": "OPT"}, "DICOM of tomography (modality OPT), not a photograph"),
        ({"PhotometricInterpretation": "HSV"}, "DICOM with 3 channels of HSV is not supported"),
        ({"Rows": 65535, "Columns": 65535}, "too many pixels: 65535 x 65535"),
        ({"HighBit": 40}, "DICOM with 41 of 8 bits is not supported"),
        ({"PixelData": RGB.tobytes()[:999]}, "DICOM that cannot be decoded: The number of bytes"),
        ({"BitsStored": None}, "DICOM that cannot be decoded: "),
    ],
)
def test_what_is_no_photograph_has_a_reason(tmp_path, tags, expected):
    assert reason(write(tmp_path / "a.dcm", RGB, **tags)).startswith(expected)


def test_compression_without_a_decoder_has_a_reason(tmp_path):
    path = write(tmp_path / "a", RGB, syntax="1.2.840.10008.1.2.4.70", content=jpeg(RGB))
    assert "JPEG Lossless" in reason(path)
    (tmp_path / "b.dcm").write_bytes(b"no DICOM")
    assert reason(tmp_path / "b.dcm") == "not an image (it looks like text)"


def test_missing_pydicom_is_named(tmp_path, monkeypatch):
    path = write(tmp_path / "a.dcm", RGB)
    monkeypatch.setitem(sys.modules, "pydicom", None)
    assert read_photograph_here(path, 10**6, None) == (None, NO_PYDICOM)
    assert read_labels(path) == (None, None)


def test_random_damage_gives_a_reason_or_pixels(tmp_path):
    rng = np.random.default_rng(0)
    jpegs = write(tmp_path / "j", RGB, "YBR_FULL_422", syntax="1.2.840.10008.1.2.4.50", content=jpeg(RGB))
    for original in (write(tmp_path / "a", RGB, PatientID="p"), jpegs):
        for _ in range(100):
            content = bytearray(original.read_bytes())
            for position in rng.integers(132, 1000, 4):
                content[position] = rng.integers(256)
            (tmp_path / "x.dcm").write_bytes(content[: rng.integers(500, len(content))])
            pixels, value = read_photograph_here(tmp_path / "x.dcm", 10**6, None)
            assert value if pixels is None else pixels.ndim == 3
            read_labels(tmp_path / "x.dcm")


def test_patient_and_eye_are_those_of_the_header(tmp_path):
    for name, eye in (("a", "R"), ("b", "L")):
        write(tmp_path / f"{name}.dcm", RGB, PatientID="Smith 1", ImageLaterality=eye)
    write(tmp_path / "c.DCM", RGB, Laterality="B")
    store = prepare(Folder(tmp_path, csv=None), tmp_path / "stores", image_size=48)
    first, second, third = rows(store, "image_id", "patient_id", "eye")
    assert (first[0], first[2], second[2]) == ("a", "right", "left")
    assert first[1] == second[1] != "Smith 1"
    assert third == ("c", None, None)
    labels = "image,grade,patient,eye\na,1,p1,L\nb,2,,\n"
    (tmp_path / "labels.csv").write_text(labels)
    table = Folder(tmp_path, patient_column="patient", eye_column="eye").read()
    assert rows(table, "patient_id", "eye") == [("p1", "left"), (first[1], "left")]


def test_a_copy_beside_a_usual_photograph_is_not_a_second_one(tmp_path):
    save(tmp_path / "a.jpg")
    shutil.copy(write(tmp_path / "b.dcm", RGB), tmp_path / "A.dcm")
    files(tmp_path, "c.jfif")
    paths = [("a", "a.jpg"), ("b", "b.dcm"), ("c", "c.jfif")]
    assert rows(Folder(tmp_path, csv=None).read(), "image_id", "path") == paths
    (tmp_path / "labels.csv").write_text("image,grade\na,1\nb,2\nc,0\n")
    assert rows(Folder(tmp_path).read(), "image_id", "path") == paths
    (tmp_path / "labels.csv").write_text("image,grade\nA.dcm,1\n")
    assert rows(Folder(tmp_path).read(), "path") == [("A.dcm",)]
