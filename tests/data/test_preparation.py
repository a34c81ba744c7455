"""Tests of the preparation of photographs for a trained model."""

import cv2
import numpy as np
import pytest

from drgrade.data import crops
from drgrade.data.crops import CropMaker
from drgrade.data.fundus_check import Preparation
from drgrade.data.sources.demo import Demo


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Four drawn photographs of 256 px."""
    source = Demo(tmp_path_factory.mktemp("drawn"), count=4, size=256, workers=1)
    return [source.root / path for path in source.read().manifest["path"]]


@pytest.mark.parametrize("illumination", ["none", "ben_graham", "clahe"])
def test_crop_equals_that_of_the_store(photographs, illumination):
    for path in photographs:
        crop = Preparation(64, illumination=illumination).prepare(path).crop
        trained = CropMaker(64, illumination=illumination)(path)
        np.testing.assert_array_equal(crop.pixels, trained.pixels)
        np.testing.assert_array_equal(crop.thumbnail, trained.thumbnail)
        assert (crop.facts, crop.sha256) == (trained.facts, trained.sha256)


def test_verdict_does_not_depend_on_illumination_normalisation(photographs):
    for path in photographs:
        plain, *others = (
            Preparation(64, illumination=illumination).prepare(path).verdict
            for illumination in ("none", "ben_graham", "clahe")
        )
        assert others == [plain, plain]


def test_photograph_is_decoded_once(photographs, monkeypatch):
    read, original = [], crops.read_photograph

    def spy(path, **options):
        read.append(path)
        return original(path, **options)

    monkeypatch.setattr(crops, "read_photograph", spy)
    Preparation(64).prepare(photographs[0])
    assert read == photographs[:1]


def test_prepare_all_keeps_the_order_and_gives_verdicts(photographs, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    paths = [photographs[1], broken, photographs[0]]
    prepared = list(Preparation(64).prepare_all(paths, workers=1))
    assert [each.verdict.flag for each in prepared] == ["good", "unreadable", "good"]
    assert prepared[1].verdict.reason == prepared[1].crop.failure
    assert prepared[0].crop.facts == Preparation(64).prepare(photographs[1]).crop.facts


def test_worker_processes_give_the_same_results(photographs, monkeypatch):
    monkeypatch.setattr("drgrade.data.crops.IN_PROCESS_LIMIT", 1)
    here = list(Preparation(64).prepare_all(photographs, workers=1))
    there = list(Preparation(64).prepare_all(photographs, workers=2))
    assert [each.verdict for each in there] == [each.verdict for each in here]
    for one, other in zip(here, there, strict=True):
        np.testing.assert_array_equal(one.crop.pixels, other.crop.pixels)


@pytest.mark.parametrize(("side", "flag", "abstains"), [(100, "tiny", False), (48, "tiny", True)])
def test_small_discs_are_cautioned_and_tiny_ones_refused(photographs, tmp_path, side, flag, abstains):
    pixels = cv2.imread(str(photographs[0]))
    scale = side / pixels.shape[0]
    small = cv2.resize(pixels, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    path = tmp_path / "small.png"
    cv2.imwrite(str(path), small)
    verdict = Preparation(128).prepare(path).verdict
    assert (verdict.flag, verdict.abstains) == (flag, abstains)
    assert f"{verdict.measures['diameter']:.0f} px" in verdict.reason


def _colour(side, level=(200, 90, 40)):
    return np.full((side, side, 3), level, np.uint8)


@pytest.mark.parametrize("side", [20, 64, 130, 700])
def test_noise_is_no_fundus_photograph(tmp_path, side):
    pixels = np.random.default_rng(side).integers(0, 256, (side, side, 3)).astype(np.uint8)
    cv2.imwrite(str(tmp_path / "a.png"), pixels)
    assert "noise" in CropMaker(64)(tmp_path / "a.png").failure


@pytest.mark.parametrize(
    ("pixels", "reason"),
    [
        (_colour(300)[:1], "300 x 1 pixels"),
        (_colour(300)[:, :3], "3 x 300 pixels"),
        (_colour(300), "colour"),
        (cv2.circle(_colour(300, (0, 0, 0)), (150, 150), 140, (40, 90, 200), -1), "one colour"),
        (cv2.circle(_colour(300, (255, 255, 255)), (150, 150), 140, (40, 90, 200), -1), "one colour"),
    ],
)
def test_strips_and_plain_colours_are_no_fundus_photographs(tmp_path, pixels, reason):
    cv2.imwrite(str(tmp_path / "a.png"), pixels)
    prepared = Preparation(64).prepare(tmp_path / "a.png")
    assert reason in CropMaker(64)(tmp_path / "a.png").failure
    assert prepared.verdict.abstains
    assert prepared.crop.failure == prepared.verdict.reason


def test_bright_surrounds_and_missing_rims_are_reported(photographs, tmp_path):
    pixels = cv2.imread(str(photographs[0]))
    paper = np.where(cv2.blur(pixels, (9, 9)).max(axis=2, keepdims=True) > 25, pixels, 255)
    cv2.imwrite(str(tmp_path / "paper.png"), np.pad(paper, ((0, 0), (90, 90), (0, 0)), constant_values=255))
    cv2.imwrite(str(tmp_path / "part.png"), pixels[70:-70, 70:-70])
    on_paper, part = (Preparation(64).prepare(tmp_path / name) for name in ("paper.png", "part.png"))
    assert on_paper.crop.conversions == ("bright surround turned black",)
    assert on_paper.crop.pixels[0, 0].max() == 0
    assert on_paper.verdict.flag == Preparation(64).prepare(photographs[0]).verdict.flag
    assert part.crop.conversions == ("no rim was found: the disc is a guess",)
    assert (part.verdict.flag, part.verdict.reason) == ("uncertain_disc", part.crop.conversions[0])
    assert not part.verdict.abstains
