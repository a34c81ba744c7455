"""Mutated photographs through `drgrade prepare` and the preparation of `drgrade predict`."""

import io
import resource
import time

import numpy as np
import pytest
from PIL import Image

from drgrade.data.fundus_check import Preparation
from drgrade.data.sources.demo import Demo
from drgrade.data.sources.folder import Folder
from drgrade.data.store import prepare

FORMATS = {
    "jpg": {"format": "JPEG", "quality": 85},
    "jpeg": {"format": "JPEG", "progressive": True},
    "png": {"format": "PNG"},
    "tif": {"format": "TIFF"},
    "tiff": {"format": "TIFF", "compression": "tiff_lzw"},
    "webp": {"format": "WEBP"},
    "bmp": {"format": "BMP"},
}


@pytest.fixture(scope="module")
def contents(tmp_path_factory):
    """Return the same three drawn photographs as files of each format: ending and content."""
    source = Demo(tmp_path_factory.mktemp("drawn"), count=3, size=256, workers=1)
    files = []
    for path in source.read().manifest["path"]:
        for ending, options in FORMATS.items():
            buffer = io.BytesIO()
            Image.open(source.root / path).save(buffer, **options)
            files.append((ending, buffer.getvalue()))
    return files


def mutate(rng, content, other):
    """Return a damaged copy: changed bytes, limits of numbers, parts cut, repeated or of another file."""
    damaged = bytearray(content)
    for _ in range(rng.choice([1, 1, 3, 20])):
        reach = rng.choice([64, 600, len(damaged)])
        start = rng.randrange(min(reach, len(damaged)))
        stop = start + rng.choice([1, 2, 4, 100, 5000])
        kind = rng.randrange(6)
        if kind == 0:
            damaged[start:stop] = rng.randbytes(len(damaged[start:stop]))
        elif kind == 1:
            damaged[start : start + 4] = rng.choice(
                [b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff", b"\0\0\0\1"]
            )
        elif kind == 2:
            del damaged[start:stop]
        elif kind == 3:
            damaged[start:start] = damaged[start:stop] * rng.choice([1, 10, 200])
        elif kind == 4:
            damaged[start:stop] = other[start:stop]
        else:
            damaged = damaged[: max(start, 1)]
            break
        damaged = damaged or bytearray(b"\0")
    return bytes(damaged)


@pytest.mark.campaign
def test_mutated_photographs_are_prepared_or_rows_with_reasons(contents, scale, rng, tmp_path):
    count, grader = 500 * scale, Preparation(64)
    (tmp_path / "photos").mkdir()
    results, slowest = {"used": 0, "refused": 0}, 0.0
    for number in range(count):
        ending, content = rng.choice(contents)
        path = tmp_path / "photos" / f"{number:05d}.{ending}"
        path.write_bytes(mutate(rng, content, rng.choice(contents)[1]))
        start = time.monotonic()
        prepared = grader.prepare(path)
        slowest = max(slowest, time.monotonic() - start)
        usable = prepared.crop.pixels is not None
        assert usable != bool(prepared.crop.failure), path.name
        assert usable or prepared.verdict.abstains, path.name
        results["used" if usable else "refused"] += 1
    store = prepare(Folder(tmp_path / "photos", csv=None), tmp_path / "stores", image_size=64, workers=2)
    assert len(store) + len(store.left_out) == count
    assert len(store) == results["used"]
    assert np.isfinite(store.manifest[["circle_x", "circle_y", "circle_r", "clear"]].to_numpy(float)).all()
    memory = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    print(
        f"mutated photographs: {count} tried, {results['used']} used, "
        f"{results['refused']} rows with a reason, 0 lost; "
        f"slowest {slowest:.1f} s, a decoder used up to {memory:.0f} MiB"
    )
