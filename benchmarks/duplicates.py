"""Measure how well and how fast duplicates are found, on labelled pairs of the demo data and IDRiD.

Positives are copies of whole photographs (re-encoded, resized, mirrored, ...) that are written to a file,
read and prepared like any photograph. Negatives are all pairs of different photographs and of their copies,
the two eyes of a patient, and two exposures of one eye that differ in pose, light and noise. The thresholds
of drgrade.data.duplicates were chosen on one half of the photographs, by the hash of their ids
(``--half choose`` prints the distributions); the figures are those of the other half (``--half state``).

Two exposures are made in two ways. For the demo's eyes, a scene larger than the field is painted once and
photographed twice. For other photographs, two round fields of 0.86 of the radius are cut out of the retina,
with new light. Poses are drawn from normal distributions: 1 or 0.4 times 3 % of the field's radius in each
direction and 2 degrees, for each exposure. Prints the tables of docs/audit-duplicates.md:

    python benchmarks/duplicates.py
    python benchmarks/duplicates.py --timing 400 5000 --retrieval 20000
"""

import hashlib
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import combinations
from math import comb
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pandas as pd
from common import make_parser, print_header, print_row
from scipy.stats import binomtest

from drgrade.data.crops import CropMaker
from drgrade.data.disc_detection import find_disc
from drgrade.data.duplicate_features import TURNS, coarse_detail, descriptor, orient, orient_descriptors
from drgrade.data.duplicates import Portrait, candidates, compare, find_duplicates
from drgrade.data.geometry import THUMBNAIL_SIZE
from drgrade.data.image_reader import MAX_PIXELS, read_photograph
from drgrade.data.sources.base import Source
from drgrade.data.sources.demo import Demo
from drgrade.data.sources.idrid import IDRiD
from drgrade.synthetic.canvas import CAMERAS, FloatImage, View, aim_camera, take_photograph
from drgrade.synthetic.drawing import PlannedPhotograph, Stream, plan_photographs, stream
from drgrade.synthetic.lesions import LesionPainter, draw_burden
from drgrade.synthetic.retina import Pigmentation, grow_vessels, paint_background, paint_disc, paint_vessels

Pixels = npt.NDArray[np.uint8]
Rng = np.random.Generator
Change = Callable[[Pixels, Rng], tuple[Pixels, float]]
"""Makes a copy of a photograph; returns its pixels and the JPEG quality of the file."""

POSES = (1.0, 0.4)

# --- copies


def reencoded(pixels: Pixels, rng: Rng) -> tuple[Pixels, float]:
    return pixels, rng.uniform(30, 95)


def resized(pixels: Pixels, rng: Rng) -> tuple[Pixels, float]:
    return _resize(pixels, rng.uniform(0.3, 0.9)), 95


def mirrored(pixels: Pixels, rng: Rng) -> tuple[Pixels, float]:
    return pixels[:, ::-1], 95


def turned_copy(pixels: Pixels, rng: Rng) -> tuple[Pixels, float]:
    return np.rot90(pixels, int(rng.integers(1, 4))), 95


def cropped(pixels: Pixels, rng: Rng) -> tuple[Pixels, float]:
    return _crop(pixels, rng, 0.02, 0.08), 95


def cropped_more(pixels: Pixels, rng: Rng) -> tuple[Pixels, float]:
    return _crop(pixels, rng, 0.08, 0.15), 95


def toned(pixels: Pixels, rng: Rng) -> tuple[Pixels, float]:
    curve = 255 * np.clip((np.arange(256) / 255) ** rng.uniform(0.8, 1.25) * rng.uniform(0.8, 1.2), 0, 1)
    return curve.round().astype(np.uint8)[pixels], 95


def squashed(pixels: Pixels, rng: Rng) -> tuple[Pixels, float]:
    side = min(pixels.shape[:2])
    return np.asarray(cv2.resize(pixels, (side, side), interpolation=cv2.INTER_AREA), np.uint8), 95


def combined(pixels: Pixels, rng: Rng) -> tuple[Pixels, float]:
    if rng.random() < 0.5:
        pixels = pixels[:, ::-1]
    pixels, _ = toned(_crop(pixels, rng, 0.02, 0.08), rng)
    return _resize(pixels, rng.uniform(0.4, 0.9)), rng.uniform(40, 90)


CHANGES: dict[str, Change] = {
    "re-encoded, JPEG quality 30-95": reencoded,
    "resized to 0.3-0.9": resized,
    "mirrored": mirrored,
    "turned by 90, 180 or 270": turned_copy,
    "cropped by 2-8 % at each side": cropped,
    "gain 0.8-1.2, gamma 0.8-1.25": toned,
    "mirrored or not, cropped, toned, 0.4-0.9, quality 40-90": combined,
    "cropped by 8-15 % at each side (beyond the specification)": cropped_more,
    "squashed to a square (beyond the specification)": squashed,
}


def _resize(pixels: Pixels, factor: float) -> Pixels:
    small = cv2.resize(pixels, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)
    return np.asarray(small, np.uint8)


def _crop(pixels: Pixels, rng: Rng, least: float, most: float) -> Pixels:
    height, width = pixels.shape[:2]
    top, bottom, left, right = rng.uniform(least, most, 4)
    rows = slice(int(top * height), height - int(bottom * height))
    return pixels[rows, int(left * width) : width - int(right * width)]


# --- two exposures of one eye


@dataclass(frozen=True)
class Pose:
    """Rotation and then shift of the retina in the field."""

    turn: float  # radians
    shift: npt.NDArray[np.float64]  # (2,), in radii of the field

    @classmethod
    def draw(cls, rng: Rng, spread: float) -> "Pose":
        """Draw the pose of one exposure."""
        shift = rng.normal(0, 0.03 * spread, 2)
        return cls(
            float(np.deg2rad(rng.normal(0, 2 * spread))), shift / max(1.0, float(np.hypot(*shift)) / 0.1)
        )

    def to_scene(
        self, centre: tuple[float, float], scene_centre: tuple[float, float], radius: float
    ) -> npt.NDArray[np.float64]:
        """(2, 3) map from the pixels of the field to those of the scene, for cv2.WARP_INVERSE_MAP."""
        cos, sin = np.cos(self.turn), np.sin(self.turn)
        linear = np.array([[cos, -sin], [sin, cos]])
        offset = np.array(scene_centre) + radius * self.shift - linear @ np.array(centre)
        return np.column_stack((linear, offset))


def cut_exposures(pixels: Pixels, rng: Rng, spread: float) -> Iterator[Pixels]:
    """Cut two exposures out of a photograph."""
    disc = find_disc(pixels)
    radius = 0.86 * disc.radius
    side = int(2 * radius)
    centre = ((side - 1) / 2, (side - 1) / 2)
    y, x = (np.mgrid[:side, :side] - centre[0]) / radius
    for _ in range(2):
        warp = Pose.draw(rng, spread).to_scene(centre, (disc.x - 0.5, disc.y - 0.5), disc.radius)
        scene = cv2.warpAffine(pixels, warp, (side, side), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
        (left, up), fall = rng.normal(0, 0.14, 2), 0.35 * rng.uniform(0.5, 1.3)
        light = np.clip(1 - fall * ((x - left) ** 2 + (y - up) ** 2), 0.2, 2) * rng.uniform(0.85, 1.15)
        field = np.clip((1 - np.hypot(x, y)) * radius + 0.5, 0, 1)
        noise = rng.normal(0, 2, scene.shape)
        lit = (scene * light[..., None] + noise) * field[..., None]
        wide = np.pad(lit, ((8, 8), (side // 8, side // 8), (0, 0)))
        yield np.clip(wide, 0, 255).astype(np.uint8)


def painted_exposures(photograph: PlannedPhotograph, size: int, rng: Rng, spread: float) -> Iterator[Pixels]:
    """Paint one of the demo's eyes with some retina around the field, and photograph it twice."""
    patient = stream(Stream.PATIENT, 0, photograph.patient)
    eye, exposure = Pigmentation.draw(patient), patient.uniform(0.85, 1.12)
    eye_rng = stream(Stream.EYE, 0, photograph.patient, int(photograph.eye == "right"))
    camera = CAMERAS[photograph.camera]
    view = aim_camera(eye_rng, camera, size, mirrored=photograph.eye == "right")
    margin = size // 5
    shape = (view.shape[0] + 2 * margin, view.shape[1] + 2 * margin)
    wide = replace(view, shape=shape, centre=(view.centre[0] + margin, view.centre[1] + margin))
    scene = _paint(eye_rng, wide, photograph.grade, eye)
    for _ in range(2):
        warp = Pose.draw(rng, spread).to_scene(view.centre, wide.centre, view.radius)
        flags = cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
        seen = cv2.warpAffine(scene, warp, view.shape[::-1], flags=flags, borderMode=cv2.BORDER_REFLECT)
        yield take_photograph(
            rng, camera, view, np.asarray(seen, np.float32), float(exposure * rng.uniform(0.92, 1.08))
        )


def _paint(rng: Rng, view: View, grade: int, eye: Pigmentation) -> FloatImage:
    """Paint the retina as drgrade.synthetic.drawing does."""
    painter = LesionPainter(rng, view, draw_burden(rng, grade), grow_vessels(rng))
    retina = paint_background(rng, view, eye)
    paint_disc(rng, retina, view, eye)
    painter.paint_deep(retina)
    paint_vessels(retina, view, painter.vessels, eye.redness)
    painter.paint_shallow(retina)
    return retina


# --- samples


@dataclass(frozen=True)
class Sample:
    """A prepared file."""

    photograph: str
    kind: str
    thumbnail: Pixels
    diameter: float
    sha256: str
    patient: str | None


class Preparation:
    """Saves and prepares photographs."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "copy.jpg"

    def of_file(
        self, path: Path, photograph: str, kind: str, patient: str | None, image_size: int = 224
    ) -> Sample:
        """Prepare a file."""
        crop = CropMaker(image_size, MAX_PIXELS)(path)
        if crop.thumbnail is None or crop.facts is None:
            raise RuntimeError(f"{photograph}, {kind}: {crop.failure}")
        return Sample(photograph, kind, crop.thumbnail, 2 * crop.facts.circle_r, crop.sha256, patient)

    def of_pixels(self, pixels: Pixels, quality: float, photograph: str, kind: str, rng: Rng) -> Sample:
        """Save pixels as JPEG and prepare the file at a random image size, which must not matter."""
        bgr = cv2.cvtColor(np.ascontiguousarray(pixels), cv2.COLOR_RGB2BGR)
        encoded = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, int(quality)])[1]
        self._path.write_bytes(encoded.tobytes())
        return self.of_file(self._path, photograph, kind, None, int(rng.choice((64, 224))))


def in_half(photograph: str, half: str) -> bool:
    chosen = hashlib.sha256(photograph.encode()).digest()[0] % 2 == 0
    return chosen == (half == "choose")


def rng_of(*words: str) -> Rng:
    return np.random.default_rng(list(hashlib.sha256("/".join(words).encode()).digest()))


def copies_of(source: Source, half: str, prepare: Preparation) -> list[Sample]:
    """Return the photographs of a half and one copy of each kind."""
    samples = []
    for entry in source.read().manifest.itertuples():
        name = f"{source.name}/{entry.image_id}"
        if not in_half(name, half):
            continue
        samples.append(_original(source, entry, prepare))
        pixels = read_photograph(source.root / str(entry.path)).pixels
        for kind, change in CHANGES.items():
            rng = rng_of(name, kind)
            samples.append(prepare.of_pixels(*change(pixels, rng), name, kind, rng))
    return samples


def _original(source: Source, entry: Any, prepare: Preparation) -> Sample:
    patient = None if pd.isna(entry.patient_id) else str(entry.patient_id)
    name = f"{source.name}/{entry.image_id}"
    return prepare.of_file(source.root / entry.path, name, "original", patient)


def exposures_of(source: Source, half: str, prepare: Preparation) -> list[Sample]:
    """Return two exposures of each eye of a half, made in each way and with each spread of poses."""
    samples = []
    planned = {p.image_id: p for p in plan_photographs(source.count, 0)} if isinstance(source, Demo) else {}
    for entry in source.read().manifest.itertuples():
        name = f"{source.name}/{entry.image_id}"
        if not in_half(name, half):
            continue
        pixels = read_photograph(source.root / str(entry.path)).pixels
        for spread in POSES:
            rng = rng_of(name, "exposures", str(spread))
            made = {"cut": cut_exposures(pixels, rng, spread)}
            if planned:
                made["painted"] = painted_exposures(planned[str(entry.image_id)], 256, rng, spread)
            for way, two in made.items():
                kind = f"two exposures, {way}, pose x {spread}"
                samples += [prepare.of_pixels(each, 92, f"{name}/{kind}", kind, rng) for each in two]
    return samples


# --- figures


def row(data: str, what: str, hits: int, count: int) -> None:
    """Print a share with its 95 % interval (Wilson)."""
    if count:
        low, high = binomtest(hits, count).proportion_ci(method="wilson")
        share = f"{100 * hits / count:.4f} % ({100 * low:.4f} - {100 * high:.4f})"
        print_row(data, what, f"{hits} / {count}", share)


def find(samples: list[Sample]) -> list[tuple[int, int]]:
    """Return the pairs that are found as near-duplicates."""
    thumbnails = np.stack([sample.thumbnail for sample in samples])
    diameters = np.array([sample.diameter for sample in samples])
    pairs = find_duplicates(thumbnails, [sample.sha256 for sample in samples], diameters)
    pairs = pairs[pairs["kind"] == "near"]
    return list(zip(pairs["first"], pairs["second"], strict=True))


def figures_on_copies(name: str, samples: list[Sample]) -> None:
    """Print the recall of each kind of copy and the false alarms among all other pairs."""
    pairs = find(samples)
    found = {
        (samples[i].photograph, samples[i].kind, samples[j].photograph, samples[j].kind) for i, j in pairs
    }
    either_way = found | {(c, d, a, b) for a, b, c, d in found}
    photographs = sorted({sample.photograph for sample in samples})
    for kind in CHANGES:
        hits = sum((one, "original", one, kind) in either_way for one in photographs)
        row(name, f"recall: {kind}", hits, len(photographs))
    files = _files(samples)
    false = sorted({(a, c) for a, _, c, _ in found if files[a] != files[c]})
    wrong = sum(files[a] != files[c] for a, _, c, _ in found)
    alike = pd.Series([files[sample.photograph] for sample in samples]).value_counts()
    different = comb(len(samples), 2) - sum(comb(count, 2) for count in alike)
    row(name, "false alarms: different photographs, and their copies", wrong, different)
    row(name, "precision: of all pairs found among copies", len(found) - wrong, len(found))
    for one, other in false:
        print(f"false alarm: {one} {other}")


def _files(samples: list[Sample]) -> dict[str, str]:
    """Return the hash of each original: byte-identical photographs count as one."""
    return {sample.photograph: sample.sha256 for sample in samples if sample.kind == "original"}


def figures_on_photographs(source: Source, prepare: Preparation) -> None:
    """Print the pairs found in the unchanged data set (both halves: no threshold depends on them)."""
    manifest = source.read().manifest
    samples = [_original(source, entry, prepare) for entry in manifest.itertuples()]
    found = set(find(samples))
    patients = [sample.patient for sample in samples]
    eyes = {
        (i, j)
        for i, j in combinations(range(len(samples)), 2)
        if patients[i] is not None and patients[i] == patients[j]
    }
    row(source.name, "false alarms: two eyes of a patient, all photographs", len(found & eyes), len(eyes))
    row(source.name, "near-duplicates among all photographs", len(found), comb(len(samples), 2))
    for i, j in sorted(found):
        print(f"to inspect: {samples[i].photograph} {samples[j].photograph}")


def figures_on_exposures(name: str, samples: list[Sample]) -> None:
    """Print how often exposures of one eye, or of two eyes, are taken for copies."""
    pairs = [(samples[i], samples[j]) for i, j in find(samples)]
    of_one_eye = [a.kind for a, b in pairs if a.photograph == b.photograph]
    kinds = sorted(sample.kind for sample in samples)
    for kind in dict.fromkeys(kinds):
        row(name, f"false alarms: {kind}", of_one_eye.count(kind), kinds.count(kind) // 2)
    # Exposures made of one photograph in several ways also show one eye: they are not counted.
    wrong = sum(_eye(a) != _eye(b) for a, b in pairs)
    same = sum(comb(count, 2) for count in pd.Series(map(_eye, samples)).value_counts())
    row(name, "false alarms: exposures of different eyes", wrong, comb(len(samples), 2) - same)


def _eye(exposure: Sample) -> str:
    return exposure.photograph.removesuffix(f"/{exposure.kind}")


def margins(name: str, samples: list[Sample]) -> None:
    """Print the distributions of the measures of copies and exposures, by which thresholds are chosen."""
    spectra = np.stack([descriptor(coarse_detail(sample.thumbnail)) for sample in samples])
    by_photograph: dict[str, list[int]] = {}
    for row, sample in enumerate(samples):
        by_photograph.setdefault(sample.photograph, []).append(row)
    rows = []
    for first, *others in by_photograph.values():
        for other in others:
            scores = [
                float(spectra[first] @ orient_descriptors(spectra[other], turn)) for turn in range(TURNS)
            ]
            turn = int(np.argmax(scores))
            second = Portrait.of(orient(samples[other].thumbnail, turn))
            match = compare(Portrait.of(samples[first].thumbnail), second)
            if match is not None:
                rows.append({"kind": samples[other].kind, "score": max(scores)} | match._asdict())
    table = pd.DataFrame(rows)
    table["rotation"], table["scale"] = table["rotation"].abs(), np.log(table["scale"]).abs()
    for measure in ("score", "similarity", "light", "rotation", "scale", "shift"):
        summary = table.groupby("kind")[measure].describe(percentiles=[0.005, 0.02, 0.5, 0.98, 0.995])
        print(f"\n{name}: {measure}\n{summary.drop(columns=['mean', 'std']).round(4).to_string()}")


# --- speed


def distinct_thumbnails(samples: list[Sample], count: int, rng: Rng) -> Pixels:
    """Return dissimilar thumbnails: real ones, rotated by any angle and enlarged."""
    result = np.empty((count, THUMBNAIL_SIZE, THUMBNAIL_SIZE), np.uint8)
    middle = (THUMBNAIL_SIZE - 1) / 2
    for row in range(count):
        warp = cv2.getRotationMatrix2D((middle, middle), rng.uniform(0, 360), rng.uniform(1.0, 1.3))
        warp[:, 2] += rng.uniform(-10, 10, 2)
        picture = samples[rng.integers(len(samples))].thumbnail
        result[row] = cv2.warpAffine(picture, warp, picture.shape, borderMode=cv2.BORDER_REFLECT)
    return result


@contextmanager
def clock() -> Iterator[Callable[[], str]]:
    """Time a block in wall-clock time and in CPU time of all threads."""
    wall, cpu = time.perf_counter(), time.process_time()
    yield lambda: f"{time.perf_counter() - wall:.1f} s, {time.process_time() - cpu:.1f} s of CPU time"


def timing(samples: list[Sample], count: int, rng: Rng) -> None:
    """Time the search among ``count`` thumbnails, a tenth of which have a copy."""
    thumbnails = distinct_thumbnails(samples, count, rng)
    tenth = count // 10
    last = thumbnails[-tenth:]
    noisy = np.clip(last + rng.normal(0, 2, last.shape), 1, 255)
    thumbnails[:tenth] = np.where(last > 0, noisy, 0).astype(np.uint8)
    hashes = [hashlib.sha256(str(row).encode()).hexdigest() for row in range(count)]
    with clock() as taken:
        pairs = find_duplicates(thumbnails, hashes, np.full(count, 500.0))
    print(f"{count} photographs, {len(pairs)} pairs: {taken()}", flush=True)


def timing_of_retrieval(samples: list[Sample], count: int, rng: Rng) -> None:
    """Time the retrieval, whose cost is quadratic, on descriptors of noise."""
    numbers = len(descriptor(coarse_detail(samples[0].thumbnail)))
    noise = rng.standard_normal((count, numbers), dtype=np.float32)
    noise /= np.linalg.norm(noise, axis=1, keepdims=True)
    with clock() as taken:
        candidates(noise)
    print(f"retrieval alone, {count} photographs: {taken()}")


def report(sources: list[Source], half: str, prepare: Preparation) -> None:
    """Print the figures of one half of the photographs."""
    if half == "state":
        print_header("data", "what", "pairs", "share (95 % interval)")
    for source in sources:
        copies, exposures = copies_of(source, half, prepare), exposures_of(source, half, prepare)
        if half == "choose":
            margins(source.name, copies)
            margins(source.name, exposures)
        else:
            figures_on_copies(source.name, copies)
            figures_on_exposures(source.name, exposures)
            figures_on_photographs(source, prepare)


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument(
        "--idrid", type=Path, default=Path("../shared/data/idrid"), help="left out if missing"
    )
    parser.add_argument("--count", type=int, default=400, help="number of demo photographs")
    parser.add_argument("--half", choices=("choose", "state"), default="state", help="of the photographs")
    parser.add_argument(
        "--timing", type=int, nargs="*", metavar="N", help="only time the search among N photographs"
    )
    parser.add_argument(
        "--retrieval", type=int, metavar="N", help="with --timing: also time the retrieval among N"
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        demo = Demo(Path(folder) / "demo", count=arguments.count, size=256)
        prepare = Preparation(Path(folder))
        sources: list[Source] = [demo, *([IDRiD(arguments.idrid)] if arguments.idrid.is_dir() else [])]
        if arguments.timing is None:
            cv2.setNumThreads(1)
            report(sources, arguments.half, prepare)
            return
        originals = [
            _original(source, entry, prepare)
            for source in sources
            for entry in source.read().manifest.itertuples()
        ]
        for count in arguments.timing:
            timing(originals, count, np.random.default_rng(0))
        if arguments.retrieval:
            timing_of_retrieval(originals, arguments.retrieval, np.random.default_rng(0))


if __name__ == "__main__":
    main()
