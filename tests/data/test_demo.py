"""Tests of the synthetic demo data set."""

import hashlib
import subprocess
import sys
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
from scipy.stats import chi2_contingency

from drgrade.data.sources import demo
from drgrade.data.sources.base import MANIFEST_COLUMNS
from drgrade.data.sources.demo import Demo
from drgrade.errors import ConfigError, DataError
from drgrade.synthetic.canvas import CAMERAS, FOVEA, aim_camera
from drgrade.synthetic.drawing import (
    APTOS_COUNTS,
    PlannedPhotograph,
    draw_photograph,
    grade_counts,
    plan_photographs,
)
from drgrade.synthetic.lesions import Lesion

SIZE = 128
COUNT = 24


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    source = Demo(tmp_path_factory.mktemp("demo"), count=COUNT, size=SIZE, workers=1)
    source.read()
    return source


@pytest.fixture(scope="module", params=range(5))
def masks(request: pytest.FixtureRequest) -> tuple[int, list[np.ndarray]]:
    """Return four lesion masks of one grade from different cameras."""
    grade = request.param
    eyes = [PlannedPhotograph(patient, "left", grade, camera=2 * patient) for patient in range(4)]
    return grade, [draw_photograph(eye, SIZE, seed=3).lesions for eye in eyes]


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def test_manifest_lists_every_photograph(drawn: Demo):
    table = drawn.read()
    manifest = table.manifest
    assert list(manifest.columns) == list(MANIFEST_COLUMNS)
    assert table.problems == ()
    assert len(manifest) == COUNT
    assert manifest["image_id"].is_unique
    assert manifest["image_id"].is_monotonic_increasing
    assert str(manifest["grade"].dtype) == "Int64"
    assert manifest["split"].isna().all()
    assert set(manifest["dataset"]) == {"demo"}
    assert (manifest["image_id"] == manifest["patient_id"] + "_" + manifest["eye"]).all()


def test_files_are_colour_photographs_with_masks_of_the_same_shape(drawn: Demo):
    for row in drawn.read().manifest.itertuples():
        picture = cv2.imread(str(drawn.root / row.path), cv2.IMREAD_UNCHANGED)
        mask = cv2.imread(str(drawn.root / "lesions" / f"{row.image_id}.png"), cv2.IMREAD_UNCHANGED)
        assert picture.dtype == mask.dtype == np.uint8
        assert picture.shape == (*mask.shape, 3)
        assert picture.shape[0] == SIZE
        assert picture.shape[1] >= SIZE
        assert picture[..., 2].mean() > picture[..., 0].mean() + 10, "not reddish"


def test_bytes_do_not_depend_on_the_number_of_workers(drawn: Demo, tmp_path: Path):
    again = Demo(tmp_path, count=COUNT, size=SIZE, workers=2)
    again.read()
    assert digests(again.root) == digests(drawn.root)


def test_another_seed_gives_other_pixels():
    photograph = plan_photographs(1, 0)[0]
    first, second = (draw_photograph(photograph, SIZE, seed).pixels for seed in (0, 1))
    assert not np.array_equal(first, second)


def test_eyes_of_a_patient_differ_in_their_vessels():
    left, right = (
        draw_photograph(PlannedPhotograph(0, eye, 0, 2), SIZE, 0).pixels for eye in ("left", "right")
    )
    assert left.shape == right.shape
    assert np.abs(left.astype(int) - right[:, ::-1]).mean() > 3


def test_concurrent_processes_draw_one_folder(tmp_path: Path):
    with ProcessPoolExecutor(2) as pool:
        asked = [pool.submit(_read, tmp_path) for _ in range(2)]
        first, second = (len(future.result()) for future in asked)
    assert first == second == 6
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == [Demo(tmp_path, 6, 64).root.name]


def _read(root: Path) -> list[str]:
    return Demo(root, count=6, size=64, workers=1).read().manifest["image_id"].tolist()


def test_second_read_draws_nothing(drawn: Demo, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(demo, "draw_photograph", lambda *_: pytest.fail("drawn again"))
    again = Demo(drawn.root.parent, count=COUNT, size=SIZE)
    assert len(again.read().manifest) == COUNT


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, OSError("disk full")])
def test_interrupted_drawing_leaves_nothing_half_written(tmp_path: Path, monkeypatch, interruption):
    calls = []

    def stop_at_the_third(*args: object) -> object:
        calls.append(args)
        if len(calls) == 3:
            raise interruption
        return draw_photograph(*args)

    source = Demo(tmp_path, count=5, size=64, workers=1)
    monkeypatch.setattr(demo, "draw_photograph", stop_at_the_third)
    with pytest.raises((KeyboardInterrupt, DataError)):
        source.read()
    assert [path for path in tmp_path.iterdir() if path.is_dir()] == []
    monkeypatch.undo()
    assert len(source.read().manifest) == 5


def test_leftovers_of_a_killed_drawing_are_removed(tmp_path: Path):
    source = Demo(tmp_path, count=2, size=64, workers=1)
    leftover = tmp_path / f".{source.root.name}-abc"
    leftover.mkdir()
    source.read()
    assert not leftover.exists()


def test_folder_without_labels_is_an_error(tmp_path: Path):
    source = Demo(tmp_path, count=2, size=64, workers=1)
    source.root.mkdir()
    with pytest.raises(DataError, match=r"labels\.csv"):
        source.read()


def test_root_that_is_a_file_is_an_error(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot be written"):
        Demo(tmp_path / "file", count=1, size=64, workers=1).read()


@pytest.mark.parametrize("setting", [{"count": 0}, {"size": 32}, {"seed": -1}, {"workers": 0}])
def test_settings_out_of_range_are_refused(tmp_path: Path, setting: dict[str, int]):
    with pytest.raises(ConfigError, match=next(iter(setting))):
        Demo(tmp_path, **setting)


@pytest.mark.parametrize("count", [1, 7, 60, 61, 400, 3662])
def test_grades_are_as_common_as_in_aptos(count: int):
    planned = Counter(photograph.grade for photograph in plan_photographs(count, seed=5))
    counts = [planned[grade] for grade in range(5)]
    assert counts == list(grade_counts(count))
    assert sum(counts) == count
    shares = np.array(APTOS_COUNTS) / sum(APTOS_COUNTS)
    assert np.abs(counts - count * shares).max() < 1
    if count >= 60:
        assert min(counts) > 0


def test_eyes_of_a_patient_share_the_camera_and_nearly_the_grade():
    plan = plan_photographs(400, seed=0)
    patients: dict[int, list[PlannedPhotograph]] = {}
    for photograph in plan:
        patients.setdefault(photograph.patient, []).append(photograph)
    pairs = [eyes for eyes in patients.values() if len(eyes) == 2]
    assert {len(eyes) for eyes in patients.values()} == {1, 2}
    assert all({eye.eye for eye in eyes} == {"left", "right"} for eyes in pairs)
    assert all(eyes[0].camera == eyes[1].camera for eyes in pairs)
    differences = np.array([abs(eyes[0].grade - eyes[1].grade) for eyes in pairs])
    assert differences.max() <= 1
    assert 0.6 < (differences == 0).mean() < 0.95


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_camera_is_independent_of_the_grade(seed: int):
    table = np.zeros((len(CAMERAS), 5))
    for photograph in plan_photographs(2000, seed):
        table[photograph.camera, photograph.grade] += 1
    assert chi2_contingency(table).pvalue > 0.05
    assert table.sum(1).min() > 0.7 * table.sum(1).mean()


def test_lesions_follow_the_severity_scale(masks: tuple[int, list[np.ndarray]]):
    grade, drawings = masks
    for mask in drawings:
        kinds = {Lesion(int(label)) for label in np.unique(mask)} - {Lesion.NONE}
        if grade == 0:
            assert kinds == set()
        if grade == 1:
            assert kinds == {Lesion.MICROANEURYSM}
        if grade == 2:
            assert {Lesion.MICROANEURYSM, Lesion.HAEMORRHAGE, Lesion.HARD_EXUDATE} <= kinds
            assert kinds <= {*range(1, 5)}
        if grade == 3:
            assert {Lesion.HAEMORRHAGE, Lesion.VENOUS_BEADING} <= kinds
        proliferative = {Lesion.NEW_VESSELS, Lesion.PRERETINAL_HAEMORRHAGE}
        assert bool(kinds & proliferative) == (grade == 4)


@pytest.mark.parametrize("camera", range(len(CAMERAS)))
def test_severe_eyes_bleed_in_all_four_quadrants(camera: int):
    mask = draw_photograph(PlannedPhotograph(camera, "right", 3, camera), SIZE, seed=4).lesions
    upper, lower = np.array_split(mask == Lesion.HAEMORRHAGE, 2, axis=0)
    quadrants = [part for half in (upper, lower) for part in np.array_split(half, 2, axis=1)]
    # A blot of SIZE = 128 px covers about ten pixels.
    assert min(part.sum() for part in quadrants) > 20


def test_lesions_lie_on_the_visible_retina(masks: tuple[int, list[np.ndarray]]):
    grade, _ = masks
    drawing = draw_photograph(PlannedPhotograph(9, "right", grade, 5), SIZE, seed=3)
    assert not (drawing.lesions[drawing.pixels.max(axis=2) < 20]).any()


@pytest.mark.parametrize("camera", CAMERAS, ids=lambda camera: camera.name)
@pytest.mark.parametrize("eye", ["left", "right"])
def test_disc_is_on_the_nasal_side_and_in_the_field_with_the_fovea(camera, eye):
    for seed in range(20):
        view = aim_camera(np.random.default_rng(seed), camera, SIZE, mirrored=eye == "right")
        places = view.to_pixels([(0.0, 0.0), FOVEA])
        assert view.shows(places, margin=0.05).all()
        assert (places[0, 0] < places[1, 0]) == (eye == "left")


@pytest.mark.parametrize("eye", ["left", "right"])
def test_brightest_part_of_a_healthy_eye_is_its_disc(eye):
    drawing = draw_photograph(PlannedPhotograph(1, eye, 0, 2), SIZE, seed=0)
    green = cv2.GaussianBlur(drawing.pixels[..., 1].astype(np.float32), (0, 0), SIZE / 40)
    column = np.unravel_index(green.argmax(), green.shape)[1]
    assert (column < green.shape[1] / 2) == (eye == "left")


@pytest.mark.parametrize("size", [64, 100, 400])
def test_any_size_can_be_drawn(size: int):
    for camera in range(len(CAMERAS)):
        drawing = draw_photograph(PlannedPhotograph(0, "right", 4, camera), size, seed=1)
        assert drawing.pixels.shape[0] == size
        assert drawing.pixels.shape[:2] == drawing.lesions.shape


def test_drawing_in_forked_processes_does_not_hang(tmp_path):
    # After OpenCV used threads in the parent, a forked worker limited to one thread sometimes hangs.
    code = (
        "import sys, cv2, numpy as np\n"
        "from drgrade.data.sources.demo import Demo\n"
        "cv2.setNumThreads(4)\n"
        "for i in range(3):\n"
        "    cv2.GaussianBlur(np.zeros((2000, 2000, 3), np.uint8), (0, 0), 5)\n"
        "    Demo(sys.argv[1], count=20, size=64, seed=i, workers=2).read()\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False, timeout=120)
    assert done.returncode == 0
    assert len(list(tmp_path.glob("demo-20-*/labels.csv"))) == 3
