"""Tests of the search for duplicates: copies are found; other eyes, exposures and blank images are not."""

import hashlib
import os
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic_photographs import disc_photograph

from drgrade.data import duplicates as retrieval
from drgrade.data import duplicates as search
from drgrade.data.disc_detection import find_disc
from drgrade.data.duplicate_features import TURNS, coarse_detail, descriptor, orient, orient_descriptors
from drgrade.data.duplicates import CopyMatch, Portrait, clusters, compare, find_duplicates
from drgrade.data.geometry import THUMBNAIL_SIZE, Disc, make_thumbnail
from drgrade.synthetic.drawing import draw_photograph, plan_photographs

EYES = 14


@pytest.fixture(scope="module")
def photographs():
    """Draw photographs, with both eyes of most patients."""
    return [draw_photograph(photograph, 256, seed=0).pixels for photograph in plan_photographs(EYES, seed=0)]


@pytest.fixture(scope="module")
def originals(photographs):
    return prepared(photographs)


def saved(pixels, quality=95):
    """Return the pixels after JPEG compression."""
    encoded = cv2.imencode(".jpg", np.ascontiguousarray(pixels), [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    return cv2.imdecode(encoded, cv2.IMREAD_COLOR)


def prepared(photographs):
    """Return thumbnails (N, T, T) and diameters (N,)."""
    discs = [find_disc(pixels) for pixels in photographs]
    thumbnails = [make_thumbnail(pixels, disc) for pixels, disc in zip(photographs, discs, strict=True)]
    return np.stack(thumbnails), np.array([2 * disc.radius for disc in discs])


def names(count, start=0):
    """Return hashes of different files."""
    return [hashlib.sha256(str(number).encode()).hexdigest() for number in range(start, start + count)]


def search_among(*sets, hashes=None):
    """Search the union of sets of (thumbnails, diameters)."""
    thumbnails, diameters = (np.concatenate(parts) for parts in zip(*sets, strict=True))
    return find_duplicates(thumbnails, hashes or names(len(thumbnails)), diameters)


def pairs_of(table):
    return list(zip(table["first"], table["second"], strict=True))


def resized(pixels, factor):
    return cv2.resize(pixels, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)


def cropped(pixels, top, bottom, left, right):
    height, width = pixels.shape[:2]
    return pixels[
        int(top * height) : int((1 - bottom) * height), int(left * width) : int((1 - right) * width)
    ]


def toned(pixels, gain, gamma):
    curve = 255 * np.clip(gain * (np.arange(256) / 255) ** gamma, 0, 1)
    return curve.round().astype(np.uint8)[pixels]


COPIES = {
    "same pixels": lambda p: p,
    "quality 30": lambda p: saved(p, 30),
    "quality 80": lambda p: saved(p, 80),
    "0.35 times": lambda p: saved(resized(p, 0.35)),
    "0.8 times": lambda p: saved(resized(p, 0.8)),
    "mirrored": lambda p: saved(p[:, ::-1]),
    "upside down": lambda p: saved(p[::-1]),
    "turned by 90": lambda p: saved(np.rot90(p)),
    "turned by 180": lambda p: saved(np.rot90(p, 2)),
    "turned by 270": lambda p: saved(np.rot90(p, 3)),
    "cropped evenly": lambda p: saved(cropped(p, 0.05, 0.05, 0.05, 0.05)),
    "cropped unevenly": lambda p: saved(cropped(p, 0.02, 0.08, 0.07, 0.03)),
    "brighter": lambda p: saved(toned(p, 1.15, 0.85)),
    "darker": lambda p: saved(toned(p, 0.85, 1.2)),
    "all at once": lambda p: saved(
        resized(toned(cropped(p, 0.03, 0.05, 0.06, 0.02), 0.9, 0.9)[:, ::-1], 0.5), 60
    ),
}


# Copies


@pytest.mark.parametrize("kind", COPIES)
def test_search_finds_exactly_the_copies(kind, photographs, originals):
    copies = prepared([COPIES[kind](pixels) for pixels in photographs])
    found = search_among(originals, copies)
    assert pairs_of(found) == [(row, row + EYES) for row in range(EYES)]
    assert (found["kind"] == "near").all()
    assert found["similarity"].between(0.78, 1).all()


@pytest.mark.parametrize("turn", range(TURNS))
@pytest.mark.parametrize("swapped", [False, True])
def test_pairs_report_the_turn_of_the_second(turn, swapped, originals):
    thumbnails, diameters = originals
    other = np.stack([orient(picture, turn) for picture in thumbnails])
    sets = [(other, diameters), originals] if swapped else [originals, (other, diameters)]
    for row in search_among(*sets).itertuples():
        second = np.concatenate([pictures for pictures, _ in sets])[row.second]
        if row.mirrored:
            second = np.fliplr(second)
        first = np.concatenate([pictures for pictures, _ in sets])[row.first]
        np.testing.assert_array_equal(np.rot90(second, row.turned // 90), first)
        assert row.mirrored == (turn >= 4)


def test_pairs_report_scale_and_shift_of_the_retina(originals):
    thumbnails, diameters = originals
    warp = cv2.getRotationMatrix2D(((THUMBNAIL_SIZE - 1) / 2,) * 2, 0, 1.02)
    warp[0, 2] += 0.01 * THUMBNAIL_SIZE
    larger = np.stack([cv2.warpAffine(picture, warp, picture.shape) for picture in thumbnails])
    for sets, scale in (
        ([originals, (larger, diameters)], 1.02),
        ([(larger, diameters), originals], 1 / 1.02),
    ):
        found = search_among(*sets)
        assert len(found) == EYES
        assert found["scale"].to_numpy() == pytest.approx(scale, abs=0.006)
        assert found["shift"].to_numpy() == pytest.approx(0.01, abs=0.003)


def test_three_copies_give_three_pairs(photographs, originals):
    one = prepared([COPIES["quality 30"](photographs[5]), COPIES["mirrored"](photographs[5])])
    assert pairs_of(search_among(originals, one)) == [(5, EYES), (5, EYES + 1), (EYES, EYES + 1)]


def test_copies_decoded_at_another_size_are_found(photographs, originals):
    decoded = prepared([cv2.resize(pixels, None, fx=1.7, fy=1.7) for pixels in photographs])
    assert pairs_of(search_among(originals, decoded)) == [(row, row + EYES) for row in range(EYES)]


# Other photographs


def test_different_eyes_are_not_copies(originals):
    """The photographs include both eyes of some patients."""
    patients = [photograph.patient for photograph in plan_photographs(EYES, seed=0)]
    assert len(set(patients)) < EYES
    assert search_among(originals).empty


def field(photograph, turn=0.0, shift=(0.0, 0.0), light=(0.0, 0.0)):
    """Draw a smaller field of the retina, turned (degrees), shifted and lit from another side (radii)."""
    disc = find_disc(photograph)
    radius = 0.8 * disc.radius
    side = int(2.2 * radius)
    warp = cv2.getRotationMatrix2D((disc.x + shift[0] * radius, disc.y + shift[1] * radius), turn, 1.0)
    warp[:, 2] += side / 2 - np.array((disc.x, disc.y)) - np.array(shift) * radius
    seen = cv2.warpAffine(photograph, warp, (side, side))
    y, x = (np.mgrid[:side, :side] + 0.5 - side / 2) / radius
    lit = 1.05 - 0.3 * ((x - light[0]) ** 2 + (y - light[1]) ** 2)
    inside = np.clip((1 - np.hypot(x, y)) * radius + 0.5, 0, 1)
    return saved(np.clip(seen * (lit * inside)[..., None], 0, 255).astype(np.uint8))


@pytest.mark.parametrize(
    ("second", "is_copy"),
    [
        ({}, True),
        ({"turn": 1.0}, False),
        ({"turn": -2.0, "shift": (0.03, 0.02), "light": (0.1, 0.0)}, False),
        ({"light": (0.12, -0.1)}, False),
        ({"shift": (0.08, 0.03)}, False),
    ],
)
def test_two_exposures_of_one_eye_are_not_copies(second, is_copy, photographs):
    """The exposures differ in pose, in light, or in both."""
    first = prepared([field(pixels) for pixels in photographs])
    again = prepared([field(pixels, **second) for pixels in photographs])
    expected = [(row, row + EYES) for row in range(EYES)] if is_copy else []
    assert pairs_of(search_among(first, again)) == expected


def test_two_exposures_of_one_eye_match_in_detail(photographs):
    """Pose and light distinguish them, not a failed alignment."""
    thumbnails, _ = prepared([field(photographs[0]), field(photographs[0], turn=1.0, light=(0.1, 0.0))])
    match = compare(Portrait.of(thumbnails[0]), Portrait.of(thumbnails[1]))
    assert match is not None
    assert match.similarity > 0.9
    assert abs(match.rotation) == pytest.approx(1.0, abs=0.1)
    assert not match.one_exposure


ALIKE = CopyMatch(similarity=0.95, light=0.004, scale=1.005, rotation=-0.1, shift=0.004)


@pytest.mark.parametrize(
    "difference",
    [
        {"similarity": 0.7},
        {"light": 0.02},
        {"scale": 1.05},
        {"scale": 0.95},
        {"rotation": -0.6},
        {"rotation": 0.6},
        {"shift": 0.03},
    ],
)
def test_match_fails_if_any_measure_differs(difference):
    assert ALIKE.one_exposure
    assert not ALIKE._replace(**difference).one_exposure


def test_photographs_that_cannot_be_aligned_are_not_copies(originals):
    """Includes a negative, for which the alignment diverges."""
    one, other = originals[0][:2]
    negative = np.where(one > 0, 255 - one // 2, 0).astype(np.uint8)
    for picture in (negative, other, np.zeros_like(one)):
        assert compare(Portrait.of(one), Portrait.of(picture)) is None


def idrid(*files):
    default = Path(__file__).parents[2] / ".." / "shared" / "data"
    root = Path(os.environ.get("DRGRADE_TEST_DATA", default)) / "idrid" / "B. Disease Grading"
    if not root.is_dir():
        pytest.skip(f"{root} is not there")
    return [cv2.imread(str(root / "1. Original Images" / "a. Training Set" / name)) for name in files]


def test_real_copies_are_found_and_second_exposures_are_not():
    """IDRiD_013 and IDRiD_397 are one eye, exposed twice: 0.8 degrees and 2 % of light apart."""
    photographs = idrid("IDRiD_013.jpg", "IDRiD_397.jpg", "IDRiD_001.jpg", "IDRiD_002.jpg")
    copies = [COPIES[kind](p) for kind in ("all at once", "quality 30") for p in photographs]
    found = search_among(prepared(photographs), prepared(copies))
    assert pairs_of(found) == [(a, b) for a, b in combinations(range(12), 2) if (b - a) % 4 == 0]


# Images with too little detail


def blank_ones():
    y, x = np.mgrid[:240, :320]
    disc = np.hypot(x - 160, y - 120) < 110
    smooth = disc * (150 - 60 * ((x - 160) ** 2 + (y - 120) ** 2) / 110**2)
    stripes = disc * (120 + 60 * np.sin(x / 4))
    dark = disc * 20.0
    return [np.repeat(picture[..., None], 3, axis=2).astype(np.uint8) for picture in (smooth, stripes, dark)]


def test_images_without_a_retina_are_not_near_duplicates():
    blank = blank_ones() + [disc_photograph(brightness=brightness) for brightness in (120, 130, 150, 170)]
    noisy = [saved(pixels, quality) for pixels in blank for quality in (95, 70)]
    assert search_among(prepared(blank), prepared(noisy)).empty


def test_black_and_white_thumbnails_are_not_near_duplicates():
    thumbnails = np.zeros((6, THUMBNAIL_SIZE, THUMBNAIL_SIZE), np.uint8)
    thumbnails[2:4], thumbnails[4:] = 255, 1
    assert find_duplicates(thumbnails, names(6), np.full(6, 500.0)).empty


def test_noise_images_are_not_near_duplicates():
    rng = np.random.default_rng(0)
    thumbnails = rng.integers(1, 256, (20, THUMBNAIL_SIZE, THUMBNAIL_SIZE), dtype=np.uint8)
    assert find_duplicates(thumbnails, names(20), np.full(20, 500.0)).empty


def test_small_photographs_are_compared_by_bytes_only(originals):
    small = (originals[0], np.full(EYES, 60.0))
    assert search_among(originals, small).empty
    again = search_among(originals, small, hashes=names(EYES) * 2)
    assert set(again["kind"]) == {"identical"}
    assert len(again) == EYES


# Identical files


def test_identical_files_are_found_without_detail(originals):
    thumbnails, diameters = originals
    nothing = np.zeros_like(thumbnails)
    hashes = names(EYES) + names(EYES, start=100) + names(EYES, start=100)
    found = search_among(originals, (nothing, diameters), (nothing, diameters), hashes=hashes)
    assert pairs_of(found) == [(row, row + EYES) for row in range(EYES, 2 * EYES)]
    assert set(found["kind"]) == {"identical"}
    assert (found["similarity"] == 1).all()


def test_copy_of_a_repeated_file_is_paired_with_both(photographs, originals):
    copy = prepared([COPIES["quality 80"](photographs[0])])
    twice = (originals[0][:1], originals[1][:1])
    found = search_among(originals, twice, copy, hashes=[*names(EYES), names(1)[0], "copy"])
    assert pairs_of(found) == [(0, EYES), (0, EYES + 1), (EYES, EYES + 1)]
    assert found["kind"].tolist() == ["identical", "near", "near"]


def test_frequent_file_is_one_cluster_of_few_pairs(originals):
    often = 3 * search.MOST_LISTED
    thumbnails = np.repeat(originals[0][:1], often, axis=0)
    found = find_duplicates(thumbnails, names(1) * often, np.full(often, 500.0))
    assert pairs_of(found) == [(0, row) for row in range(1, often)]
    assert (clusters(found, often) == 0).all()


# The order of rows


@settings(max_examples=8, deadline=None)
@given(st.randoms(use_true_random=False))
def test_result_does_not_depend_on_the_order_of_photographs(mixed, shuffler):
    thumbnails, hashes, diameters = mixed
    order = list(range(len(hashes)))
    shuffler.shuffle(order)
    shuffled = find_duplicates(thumbnails[order], [hashes[row] for row in order], diameters[order])
    expected = find_duplicates(thumbnails, hashes, diameters)
    assert described(shuffled, order) == described(expected, range(len(hashes)))


@pytest.fixture(scope="module")
def mixed(photographs, originals):
    """Photographs, copies of some, repeated files, and blank images."""
    few = photographs[:8]
    copies = [
        COPIES[kind](pixels) for kind in ("all at once", "turned by 90", "0.35 times") for pixels in few[:4]
    ]
    sets = [prepared(few), prepared(copies), prepared(few[6:]), prepared(blank_ones())]
    thumbnails, diameters = (np.concatenate(parts) for parts in zip(*sets, strict=True))
    return thumbnails, [*names(20), *names(2, start=6), *names(3, start=50)], diameters


def described(table, order):
    """Return pairs by original row numbers, independent of the order of the two."""
    return {
        (
            *sorted((order[row.first], order[row.second])),
            *(row.kind, row.similarity, row.mirrored, row.shift),
            row.turned if row.mirrored else min(row.turned, -row.turned % 360),
            round(abs(np.log(row.scale)), 12),
        )
        for row in table.itertuples()
    }


def test_pairs_are_ordered(mixed):
    found = pairs_of(find_duplicates(*mixed))
    assert all(first < second for first, second in found)
    assert found == sorted(set(found))
    assert len(found) > 20


# Parts


@pytest.mark.parametrize("turn", range(TURNS))
def test_orient_descriptors_equals_orient_of_the_thumbnail(turn, originals):
    for thumbnail in originals[0][:4]:
        direct = descriptor(coarse_detail(orient(thumbnail, turn)))
        np.testing.assert_allclose(
            orient_descriptors(descriptor(coarse_detail(thumbnail)), turn), direct, atol=1e-5
        )


def test_eight_orientations_have_different_descriptors(originals):
    spectrum = descriptor(coarse_detail(originals[0][0]))
    scores = [float(spectrum @ orient_descriptors(spectrum, turn)) for turn in range(TURNS)]
    assert scores[0] == pytest.approx(1, abs=1e-5)
    assert max(scores[1:]) < 0.5


def naive_candidates(descriptors):
    """Return each pair above the least score with its best turn, by two loops."""
    found = {}
    for i, j in combinations(range(len(descriptors)), 2):
        scores = [float(descriptors[i] @ orient_descriptors(descriptors[j], turn)) for turn in range(TURNS)]
        if max(scores) >= retrieval.LEAST_SCORE:
            found[i, j] = int(np.argmax(scores))
    return found


@pytest.mark.parametrize("block", [1, 4, 7, 100])
def test_candidates_equal_those_of_two_loops(block, monkeypatch, originals):
    monkeypatch.setattr(retrieval, "_BLOCK", block)
    spectra = np.stack([descriptor(coarse_detail(thumbnail)) for thumbnail in originals[0][:9]])
    rng = np.random.default_rng(0)
    noisy = orient_descriptors(spectra, 3) + rng.normal(0, 0.02, spectra.shape).astype(np.float32)
    noisy /= np.linalg.norm(noisy, axis=1, keepdims=True)
    together = np.concatenate((spectra, noisy, orient_descriptors(spectra[:3], 6)))
    first, second, turn = retrieval.candidates(together)
    assert dict(zip(zip(first, second, strict=True), turn, strict=True)) == naive_candidates(together)
    assert len(first) == len(set(zip(first, second, strict=True))) > 9


def test_many_copies_stay_connected_in_few_pairs(monkeypatch, originals):
    monkeypatch.setattr(retrieval, "MOST_PER_PHOTOGRAPH", 3)
    monkeypatch.setattr(retrieval, "_BLOCK", 8)
    spectra = np.stack([descriptor(coarse_detail(thumbnail)) for thumbnail in originals[0][:2]])
    together = np.repeat(spectra, 20, axis=0)
    first, second, _ = retrieval.candidates(together)
    assert np.bincount(first).max() == 3
    labels = clusters(pd.DataFrame({"first": first, "second": second}), 40)
    assert labels.tolist() == [0] * 20 + [20] * 20


def naive_clusters(pairs, count):
    """Return clusters by union-find."""
    parent = list(range(count))

    def root(row):
        while parent[row] != row:
            row = parent[row]
        return row

    for first, second in pairs:
        a, b = sorted((root(first), root(second)))
        parent[b] = a
    return [root(row) for row in range(count)]


@given(
    st.integers(1, 40).flatmap(
        lambda n: st.tuples(st.just(n), st.lists(st.tuples(*[st.integers(0, n - 1)] * 2)))
    )
)
def test_clusters_equal_those_of_union_find(case):
    count, pairs = case
    table = pd.DataFrame(pairs, columns=["first", "second"], dtype="int64")
    found = clusters(table, count)
    assert found.dtype == np.int64
    assert found.tolist() == naive_clusters(pairs, count)


def test_empty_input_gives_no_pairs_and_clusters():
    found = find_duplicates(np.zeros((0, 1, 1), np.uint8), [], np.zeros(0))
    assert found.empty
    assert {"first", "second", "kind", "similarity", "mirrored"} <= set(found.columns)
    assert found["mirrored"].dtype == bool
    assert clusters(found, 3).tolist() == [0, 1, 2]
    assert clusters(found, 0).tolist() == []


def test_memory_mapped_thumbnails_give_the_same_pairs(tmp_path, originals):
    thumbnails, diameters = (np.concatenate((part, part)) for part in originals)
    np.save(tmp_path / "thumbnails.npy", thumbnails)
    mapped = np.load(tmp_path / "thumbnails.npy", mmap_mode="r")
    expected = find_duplicates(thumbnails, names(2 * EYES), diameters)
    pd.testing.assert_frame_equal(find_duplicates(mapped, names(2 * EYES), diameters), expected)
    assert len(expected) == EYES


def test_progress_is_shown_on_stderr(capsys, originals):
    search_among(originals)
    assert capsys.readouterr() == ("", "")
    find_duplicates(originals[0], names(EYES), originals[1], progress=True)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert str(EYES) in shown.err


@pytest.mark.parametrize(
    ("shape", "hashes", "diameters", "wrong"),
    [
        ((2, 64, 64), 2, 2, "thumbnails"),
        ((2, 128, 128), 3, 3, "thumbnails"),
        ((2, 128, 128), 2, 1, "diameters"),
    ],
)
def test_inconsistent_shapes_are_refused(shape, hashes, diameters, wrong):
    with pytest.raises(ValueError, match=wrong):
        find_duplicates(np.zeros(shape, np.uint8), names(hashes), np.ones(diameters))


# Thumbnails


def test_thumbnail_is_zero_exactly_outside_the_recorded_disc():
    pixels = np.zeros((200, 300, 3), np.uint8)
    disc = Disc(x=150, y=100, radius=80, left=0, top=40, right=200, bottom=200)
    thumbnail = make_thumbnail(pixels, disc)
    assert thumbnail.shape == (THUMBNAIL_SIZE, THUMBNAIL_SIZE)
    assert thumbnail.dtype == np.uint8
    for row, column in np.ndindex(*thumbnail.shape):
        x = disc.x + ((column + 0.5) / THUMBNAIL_SIZE * 2 - 1) * disc.radius
        y = disc.y + ((row + 0.5) / THUMBNAIL_SIZE * 2 - 1) * disc.radius
        inside = np.hypot(x - disc.x, y - disc.y) < disc.radius and x < disc.right and y > disc.top
        assert thumbnail[row, column] == inside


def test_thumbnail_is_the_green_channel():
    pixels = np.full((256, 256, 3), (10, 77, 200), np.uint8)
    thumbnail = make_thumbnail(pixels, Disc(128, 128, 100, 0, 0, 256, 256))
    assert set(np.unique(thumbnail)) == {0, 77}


def test_squashed_disc_is_round_on_the_thumbnail():
    pixels = np.full((256, 384, 3), 90, np.uint8)
    wide = make_thumbnail(pixels, Disc(192, 128, 100, 0, 0, 384, 256, stretch=1.5))
    np.testing.assert_array_equal(wide, make_thumbnail(pixels, Disc(192, 128, 100, 0, 0, 384, 256)))
    cut = make_thumbnail(pixels, Disc(192, 128, 100, 192, 0, 384, 256, stretch=1.5))
    np.testing.assert_array_equal(cut, np.where(np.arange(THUMBNAIL_SIZE) < THUMBNAIL_SIZE // 2, 0, wide))


def test_geometry_import_does_not_load_pandas_or_torch():
    code = (
        "import sys, drgrade.data.geometry\n"
        "print([m for m in ('pandas', 'scipy', 'torch', 'rich') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
