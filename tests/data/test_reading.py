import contextlib
import io
import os
import socket
import struct
import time
import warnings
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageFile
from synthetic_photographs import disc_photograph, save

from drgrade.data.decoder_process import DecoderEnded, DecoderProcess
from drgrade.data.image_reader import UnreadablePhotograph, hash_file, read_photograph, read_photograph_here
from drgrade.errors import DataError
from drgrade.files import require_regular

RGB = disc_photograph((160, 120))


def test_ordinary_png_is_read_exactly(tmp_path):
    photo = read_photograph(save(tmp_path / "a.png", RGB))
    assert np.array_equal(photo.pixels, RGB)
    assert photo.conversions == ()
    assert photo.full_size == (160, 120)


def convertible():
    grey = RGB[..., 0]
    alpha = np.full_like(grey, 255)
    holes = np.where(grey > 20, 255, 0).astype(np.uint8)
    palette = Image.fromarray(RGB).convert("P", palette=Image.Palette.ADAPTIVE)
    return [
        ("grey.png", Image.fromarray(grey), "greyscale to RGB"),
        ("grey.jpg", Image.fromarray(grey), "greyscale to RGB"),
        ("two.png", Image.fromarray(grey).convert("1"), "greyscale to RGB"),
        ("sixteen.png", Image.fromarray(grey.astype(np.uint16) * 257), "16 bit to 8 bit"),
        ("sixteen.tif", Image.fromarray(grey.astype(np.uint16) * 257), "16 bit to 8 bit"),
        ("twelve.png", Image.fromarray(grey.astype(np.uint16) * 16), "16 bit to 8 bit"),
        ("rgba.png", Image.fromarray(np.dstack((RGB, alpha))), "alpha dropped"),
        ("holes.png", Image.fromarray(np.dstack((RGB, holes))), "transparent pixels turned black"),
        ("la.png", Image.fromarray(np.dstack((grey, alpha))), "alpha dropped"),
        ("cmyk.jpg", Image.fromarray(RGB).convert("CMYK"), "CMYK to RGB"),
        ("cmyk.tif", Image.fromarray(RGB).convert("CMYK"), "CMYK to RGB"),
        ("palette.png", palette, "palette to RGB"),
    ]


@pytest.mark.parametrize(
    ("name", "image", "note"), convertible(), ids=lambda v: v if isinstance(v, str) else ""
)
@pytest.mark.parametrize("at_least", [None, 20])
def test_conversions_are_made_and_reported(tmp_path, name, image, note, at_least):
    image.save(tmp_path / name)
    photo = read_photograph(tmp_path / name, at_least=at_least)
    assert any(note in conversion for conversion in photo.conversions)
    assert photo.pixels.dtype == np.uint8
    assert photo.pixels.shape[2] == 3
    assert photo.full_size == (160, 120)
    middle = photo.pixels[photo.pixels.shape[0] // 2, photo.pixels.shape[1] // 2]
    assert abs(int(middle[0]) - int(RGB[60, 80, 0])) < 90
    assert photo.pixels[0, 0].max() < 30


def test_sixteen_bit_colour_is_reported(tmp_path):

    cv2.imwrite(str(tmp_path / "a.png"), RGB[..., ::-1].astype(np.uint16) * 257)
    photo = read_photograph(tmp_path / "a.png")
    assert photo.conversions == ("16 bit to 8 bit (16 bits used)",)
    assert np.array_equal(photo.pixels, RGB)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_undone(tmp_path, orientation):
    lying = np.zeros((120, 160, 3), np.uint8)
    lying[:40, :40] = 255  # a mark in one corner, in the file's own orientation
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(lying).save(tmp_path / "a.jpg", quality=95, exif=exif)
    corner = {1: (0, 0), 2: (0, -1), 3: (-1, -1), 4: (-1, 0), 5: (0, 0), 6: (0, -1), 7: (-1, -1), 8: (-1, 0)}
    for at_least in (None, 20):
        photo = read_photograph(tmp_path / "a.jpg", at_least=at_least)
        height, width = photo.pixels.shape[:2]
        assert (width > height) == (orientation < 5)
        assert photo.full_size == ((160, 120) if orientation < 5 else (120, 160))
        assert photo.pixels[corner[orientation]].min() > 240
        assert sum(photo.pixels[c].min() > 200 for c in ((0, 0), (0, -1), (-1, 0), (-1, -1))) == 1
        assert photo.conversions == (
            () if orientation == 1 else (f"turned upright by EXIF orientation {orientation}",)
        )


@pytest.mark.parametrize(
    ("at_least", "expected"), [(None, (800, 600)), (301, (800, 600)), (300, (400, 300)), (75, (100, 75))]
)
def test_jpegs_are_decoded_small_but_never_below_at_least(tmp_path, at_least, expected):
    path = save(tmp_path / "a.jpg", disc_photograph((800, 600)), quality=90)
    photo = read_photograph(path, at_least=at_least)
    assert photo.pixels.shape[1::-1] == expected
    assert photo.full_size == (800, 600)


@pytest.mark.parametrize("size", [(801, 601), (333, 999), (1001, 1003)])
@pytest.mark.parametrize("at_least", [40, 100, 150])
def test_reduced_jpeg_keeps_the_minimum_shorter_side(tmp_path, size, at_least):
    path = save(tmp_path / "a.jpg", disc_photograph(size))
    photo = read_photograph(path, at_least=at_least)
    assert min(photo.pixels.shape[:2]) >= at_least


@pytest.mark.parametrize("at_least", [None, 64])
@pytest.mark.parametrize("kept", [0.02, 0.3, 0.6, 0.9, 0.99])
@pytest.mark.parametrize("kind", ["a.jpg", "progressive.jpg", "a.png", "a.tif", "a.bmp", "a.webp"])
def test_truncated_files_are_refused(tmp_path, kind, kept, at_least):
    rng = np.random.default_rng(0)
    noisy = rng.integers(0, 255, (512, 512, 3)).astype(np.uint8)
    path = save(tmp_path / kind, noisy, **({"progressive": True} if "prog" in kind else {}))
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
    with pytest.raises(UnreadablePhotograph, match=r"truncated|damaged"):
        read_photograph(path, at_least=at_least)


def test_truncated_files_are_refused_despite_global_pillow_setting(tmp_path, monkeypatch):
    path = save(tmp_path / "a.jpg")
    path.write_bytes(path.read_bytes()[:-500])
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(UnreadablePhotograph, match="truncated"):
        read_photograph(path)
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty file"),
        (b"Dear Sir,\nplease find enclosed\n", "looks like text"),
        (bytes(range(256)) * 8, "not an image"),
        (b"\xff\xd8\xff", "truncated or damaged in its header"),
        (b"\x89PNG\r\n\x1a\n" + bytes(30), "damaged|truncated"),
    ],
)
def test_other_files_are_refused_with_a_reason(tmp_path, content, reason):
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(UnreadablePhotograph, match=reason):
        read_photograph(tmp_path / "a.jpg")


def test_missing_files_and_folders_are_refused(tmp_path):
    with pytest.raises(UnreadablePhotograph, match="not there"):
        read_photograph(tmp_path / "a.jpg")
    (tmp_path / "b.jpg").mkdir()
    with pytest.raises(UnreadablePhotograph, match="folder"):
        read_photograph(tmp_path / "b.jpg")


def test_decompression_bombs_are_refused(tmp_path):
    Image.new("1", (20_000, 20_000)).save(tmp_path / "bomb.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UnreadablePhotograph, match="too many pixels: 20000 x 20000"):
            read_photograph(tmp_path / "bomb.png")


def test_pixel_limit_is_that_of_the_caller(tmp_path, monkeypatch):
    path = save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert read_photograph(path).full_size == (160, 120)
    assert Image.MAX_IMAGE_PIXELS == 100
    with pytest.raises(UnreadablePhotograph, match="more than the limit of 19,199"):
        read_photograph(path, max_pixels=160 * 120 - 1)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_random_damage_raises_unreadable_photograph(tmp_path):
    rng = np.random.default_rng(0)
    for kind in ("JPEG", "PNG", "TIFF", "WEBP", "BMP"):
        buffer = io.BytesIO()
        Image.fromarray(RGB).save(buffer, kind)
        for _ in range(40):
            content = bytearray(buffer.getvalue())
            for position in rng.integers(0, min(len(content), 400), 6):
                content[position] = rng.integers(256)
            (tmp_path / "x").write_bytes(content)
            with contextlib.suppress(UnreadablePhotograph):
                assert read_photograph(tmp_path / "x", max_pixels=10**6).pixels.ndim == 3


def deep_colour(path, bits, **options):
    """Save RGB with ``bits`` bits in the lower part of 16."""
    deep = RGB[..., ::-1].astype(np.uint16)
    deep = deep * 257 if bits == 16 else deep << (bits - 8)
    if options.get("alpha"):
        deep = np.dstack((deep, np.full(deep.shape[:2], options["alpha"], np.uint16)))
    cv2.imwrite(str(path), deep[..., 1] if options.get("grey") else deep)
    return path


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.ppm"])
@pytest.mark.parametrize("options", [{}, {"grey": True}, {"alpha": 65535}], ids=["colour", "grey", "alpha"])
def test_bits_used_of_sixteen_are_scaled_to_eight(tmp_path, name, bits, options):
    if name == "a.ppm" and options:
        pytest.skip("only colour")
    photo = read_photograph(deep_colour(tmp_path / name, bits, **options))
    assert np.array_equal(photo.pixels, np.dstack([RGB[..., 1]] * 3) if options.get("grey") else RGB)
    assert photo.conversions[0] == f"16 bit to 8 bit ({bits} bits used)"


@pytest.mark.parametrize("bits", [10, 12, 14])
def test_bits_used_of_sixteen_are_scaled_in_jpeg_2000(tmp_path, bits):
    photo = read_photograph(deep_colour(tmp_path / "a.jp2", bits))
    assert abs(photo.pixels.mean() - RGB.mean()) < 1
    dark = save(tmp_path / "b.jp2", RGB // 4)  # 8 bits stay as they are
    assert abs(read_photograph(dark).pixels.mean() - (RGB // 4).mean()) < 1


def test_alpha_of_twelve_bit_colour_has_its_own_range(tmp_path):
    assert np.array_equal(read_photograph(deep_colour(tmp_path / "a.png", 12, alpha=4095)).pixels, RGB)


def test_twelve_bit_grey_with_alpha_is_read(tmp_path):
    pairs = np.dstack((RGB[..., 0].astype(np.uint16) << 4, np.full(RGB.shape[:2], 65535, np.uint16)))
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pairs)
    header = struct.pack(">IIBBBBB", 160, 120, 16, 4, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    packed = (struct.pack(">I", len(c)) + n + c + struct.pack(">I", zlib.crc32(n + c)) for n, c in chunks)
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(packed))
    photo = read_photograph(tmp_path / "a.png")
    assert np.array_equal(photo.pixels, np.dstack([RGB[..., 0]] * 3))


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("options", [{}, {"compression": "zlib", "predictor": True}, {"tile": (16, 16)}])
def test_twelve_bit_tiff_of_any_layout_is_read(tmp_path, order, options):
    tifffile = pytest.importorskip("tifffile")
    deep = RGB.astype(np.uint16) << 4
    tifffile.imwrite(tmp_path / "a.tif", deep, byteorder=order, photometric="rgb", **options)
    assert np.array_equal(read_photograph(tmp_path / "a.tif").pixels, RGB)


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_sixteen_bit_planes_that_pillow_misreads_are_refused(tmp_path, compression):
    tifffile = pytest.importorskip("tifffile")
    planes = np.moveaxis(RGB, -1, 0).astype(np.uint16) << 4
    options = {"photometric": "rgb", "planarconfig": "separate", "compression": compression}
    tifffile.imwrite(tmp_path / "a.tif", planes, **options)
    with pytest.raises(UnreadablePhotograph, match="16 bit in separate planes: save it"):
        read_photograph(tmp_path / "a.tif")


@pytest.fixture
def special_files(tmp_path):
    """Paths of a pipe, a socket, a device, files of the kernel, and links to them, with their kinds."""
    os.mkfifo(tmp_path / "pipe.jpg")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "socket.jpg"))
    (tmp_path / "zero.jpg").symlink_to("/dev/zero")
    (tmp_path / "memory.jpg").symlink_to("/proc/self/mem")
    return [
        (tmp_path / "pipe.jpg", "a pipe"),
        (tmp_path / "socket.jpg", "a socket"),
        (Path("/dev/zero"), "a device"),
        (tmp_path / "zero.jpg", "a device"),
        (Path("/proc/self/status"), "a file of the kernel"),
        (tmp_path / "memory.jpg", "a file of the kernel"),
    ]


def test_pipes_devices_and_kernel_files_are_named_and_not_opened(special_files):
    for path, kind in special_files:
        for read in (read_photograph, hash_file):
            with pytest.raises(UnreadablePhotograph, match=kind):
                read(path)
        with pytest.raises(DataError, match=f"is {kind}"):
            require_regular(path)


def test_a_huge_sparse_file_is_refused_before_reading(tmp_path):
    with (tmp_path / "a.jpg").open("wb") as file:
        file.truncate(10**12)
    for read in (read_photograph, hash_file):
        with pytest.raises(UnreadablePhotograph, match="too large: 1,000,000,000,000 bytes"):
            read(tmp_path / "a.jpg")


def costly_files(folder):
    """Write files of small size that take very long or much memory to decode, with their reasons."""
    path = save(folder / "scans.jpg", RGB, progressive=True)
    content = path.read_bytes()
    last = content.rindex(b"\xff\xda")
    path.write_bytes(content[:last] + content[last:-2] * 5000 + content[-2:])
    yield path, "5,00. scans in a JPEG"

    directory = save(folder / "a.tif").read_bytes()
    count = 100_000
    chain = b"".join(struct.pack("<HI", 0, len(directory) + 6 * (n + 1)) for n in range(count))
    first = struct.unpack("<I", directory[4:8])[0]
    end = first + 2 + 12 * struct.unpack("<H", directory[first : first + 2])[0]
    chained = directory[:end] + struct.pack("<I", len(directory)) + directory[end + 4 :] + chain
    (folder / "directories.tif").write_bytes(chained)
    yield folder / "directories.tif", "directories in a TIFF"

    Image.fromarray(np.zeros((10_000, 10_000), np.uint16)).save(folder / "large.png", compress_level=1)
    yield folder / "large.png", "with 16 bits per channel"

    # Every entry of this directory holds the same four million bytes.
    data = bytes(4_000_000)
    entries = b"".join(struct.pack("<HHII", 40_000 + n, 7, len(data), 8) for n in range(5000))
    head = b"II*\0" + struct.pack("<I", 8 + len(data))
    (folder / "entries.tif").write_bytes(head + data + struct.pack("<H", 5000) + entries + bytes(4))
    yield folder / "entries.tif", "memory"


def test_costly_files_are_refused_in_seconds(tmp_path):
    for path, reason in costly_files(tmp_path):
        start = time.monotonic()
        with pytest.raises(UnreadablePhotograph, match=reason):
            read_photograph(path)
        assert time.monotonic() - start < 20
    assert read_photograph(save(tmp_path / "a.png", RGB)).full_size == (160, 120)


@pytest.mark.parametrize(("work", "reason"), [("loop", "more than 0.2 s"), ("crash", "ended by signal SIG")])
def test_decoder_that_hangs_or_crashes_is_replaced(work, reason):
    decoder = DecoderProcess("hostile_decoders:decode", seconds=0.2)
    for _ in range(2):
        with pytest.raises(DecoderEnded, match=reason):
            decoder.call(work)
        assert decoder.call("greet")[1] == "hello"
    decoder.close()


@pytest.mark.parametrize(
    ("work", "reason"),
    [("fail", "^damaged: ZeroDivisionError: division by zero$"), ("exit", "ended with status 3")],
)
def test_exception_in_the_decoder_is_the_reason_of_one_file(work, reason):
    decoder = DecoderProcess("hostile_decoders:decode")
    with pytest.raises(DecoderEnded, match=reason):
        decoder.call(work)
    assert decoder.call("greet")[1] == "hello"
    decoder.close()


def test_decoder_that_does_not_start_is_an_error_of_the_job():
    for _ in range(2):
        with pytest.raises(DataError, match="does not start"):
            DecoderProcess("hostile_decoders:missing").call("greet")


@pytest.mark.parametrize("error", [ZeroDivisionError, AssertionError, AttributeError, RecursionError])
@pytest.mark.parametrize("name", ["a.jpg", "a.png"])
def test_unexpected_error_of_a_decoder_is_the_reason_of_one_file(tmp_path, monkeypatch, name, error):
    def fail(*_):
        raise error("unexpected")

    path = save(tmp_path / name, RGB)
    monkeypatch.setattr(ImageFile.ImageFile, "load", fail)
    monkeypatch.setattr(DecoderProcess, "call", lambda _, *arguments: read_photograph_here(*arguments))
    with pytest.raises(UnreadablePhotograph, match="damaged: unexpected"):
        read_photograph(path)


def test_memory_of_the_decoder_is_limited():
    decoder = DecoderProcess("hostile_decoders:decode", memory=2**30)
    assert decoder.call("allocate") == (None, "MemoryError")
    decoder.close()
