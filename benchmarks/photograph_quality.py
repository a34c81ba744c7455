"""Fit and evaluate the rule that tells fundus photographs from other images.

    python benchmarks/photograph_quality.py --idrid ../shared/data/idrid
    python benchmarks/photograph_quality.py --write drgrade/data/appearance.json
    python benchmarks/photograph_quality.py --picture docs/images/quality.jpg

Positives are the photographs of IDRiD and the demo, unchanged and with changes of colour, size, field,
blur, noise and compression. Negatives are the images in installed packages (screenshots, icons, animals,
people, tissue), parts of them, parts cut out as discs and tinted like a fundus, and drawings. All variants
of an image are on one side of the split: the rule is fitted on one half of the images, and the figures are
those of the other half. The rule is also fitted without one of the two data sets, to test it on an unknown
camera. With --write it is fitted on all images. Prints the tables of docs/quality.md.
"""

import json
import tempfile
import zlib
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from common import ORIGINALS, Pixels, blur, list_photographs, make_parser
from sklearn.linear_model import LogisticRegression

from drgrade.data.crops import ExtractedDisc
from drgrade.data.disc_detection import find_disc
from drgrade.data.fundus_check import Appearance, FundusRule, Verdict, judge, measure_appearance
from drgrade.data.geometry import NoFundus, crop_disc
from drgrade.data.image_reader import IMAGE_EXTENSIONS, DecodedImage, UnreadablePhotograph, read_photograph
from drgrade.data.sources.base import Source
from drgrade.data.sources.demo import Demo
from drgrade.data.sources.idrid import IDRiD

Numbers = np.random.Generator

PACKAGES = Path(torch.__file__).parents[1]
FUNDUS = ("retina.jpg", "microaneurysms.png")  # scikit-image's
SMALLEST, PIECES, DRAWN = 64, 6, 20
GRADED = 96
"""Side of the prepared photographs, below which a disc is tiny."""

REACH, PENALTY = 6.0, 0.05


class Picture(NamedTuple):
    """An image or a variant of it."""

    fundus: bool
    group: str
    name: str
    pixels: Pixels


def photographs(source: Source, rng: Numbers) -> Iterator[Picture]:
    """Yield every photograph of a source, and every second one with several changes."""
    for number, path in enumerate(source.read().manifest["path"]):
        pixels = read_photograph(source.root / path).pixels
        yield Picture(True, source.name, path, pixels)
        if number % 2:
            continue
        changed = recoloured(pixels, rng)
        side = rng.uniform(80, 200) / pixels.shape[0]
        small = cv2.resize(pixels, None, fx=side, fy=side, interpolation=cv2.INTER_AREA)
        for what, variant in {
            "other colours": changed,
            "worse": worsened(changed, rng),
            "small": np.asarray(small, np.uint8),
            "inner field": inner(pixels, rng),
            "inner field on black": disc_of(inner(pixels, rng), rng),
        }.items():
            yield Picture(True, f"{source.name}, {what}", path, variant)


def others(packages: Path, rng: Numbers) -> Iterator[Picture]:
    """Yield images of installed packages and variants of them, and drawings."""
    for name, pixels in package_pictures(packages):
        yield Picture(False, "pictures", name, pixels)
        for _ in range(PIECES if min(pixels.shape[:2]) >= 2 * SMALLEST else 0):
            piece = cut_out(pixels, rng)
            for group, variant in {
                "pieces": piece,
                "pieces as discs": disc_of(piece, rng),
                "orange pieces": orange(piece),
                "orange discs": disc_of(orange(piece), rng),
                "warm discs": disc_of(warm(piece, rng), rng),
                "duotone discs": disc_of(duotone(piece, rng), rng),
            }.items():
                yield Picture(False, group, name, variant)
    for number in range(DRAWN):
        for group, draw in DRAWINGS.items():
            drawn = draw(rng)
            yield Picture(False, group, f"{group} {number}", drawn)
            yield Picture(False, f"{group}, as disc", f"{group} {number}", disc_of(drawn, rng))


def package_pictures(packages: Path) -> Iterator[tuple[str, Pixels]]:
    """Yield name and pixels of each distinct image in the installed packages."""
    known: set[bytes] = set()
    for path in sorted(packages.rglob("*")):
        if path.suffix.lower() not in IMAGE_EXTENSIONS or path.name in FUNDUS:
            continue
        try:
            pixels = read_photograph(path).pixels
        except UnreadablePhotograph:
            continue
        if min(pixels.shape[:2]) >= SMALLEST and pixels.tobytes() not in known:
            known.add(pixels.tobytes())
            yield path.name, pixels


def as_bytes(values: npt.NDArray[np.floating]) -> Pixels:
    """Clip to 0-255."""
    return np.asarray(np.clip(values, 0, 255), np.uint8)


def recoloured(pixels: Pixels, rng: Numbers) -> Pixels:
    """Change the colours as another camera might."""
    gain = np.array([rng.uniform(0.75, 1.3), rng.uniform(0.8, 1.25), rng.uniform(0.5, 1.8)])
    return as_bytes(255 * (pixels / 255.0) ** rng.uniform(0.75, 1.35) * gain)


def worsened(pixels: Pixels, rng: Numbers) -> Pixels:
    """Add a little blur and noise, and compress."""
    sigma = rng.uniform(0.1, 1.2) * pixels.shape[0] / 224
    noisy = cv2.GaussianBlur(pixels, (0, 0), sigma) + rng.normal(0, rng.uniform(0, 5), pixels.shape)
    quality = [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(50, 95))]
    coded = cv2.imencode(".jpg", as_bytes(noisy), quality)[1]
    return np.asarray(cv2.imdecode(coded, cv2.IMREAD_COLOR), np.uint8)


def inner(pixels: Pixels, rng: Numbers) -> Pixels:
    """Cut a square from the middle of the field, without its rim."""
    height, width = pixels.shape[:2]
    side = int(height * rng.uniform(0.55, 0.95))
    top, left = (height - side) // 2, (width - side) // 2
    return pixels[top : top + side, left : left + side]


def cut_out(pixels: Pixels, rng: Numbers) -> Pixels:
    """Cut a square from a random place."""
    height, width = pixels.shape[:2]
    side = max(SMALLEST, int(rng.uniform(0.4, 0.9) * min(height, width)))
    top, left = rng.integers(height - side + 1), rng.integers(width - side + 1)
    return pixels[top : top + side, left : left + side]


def disc_of(pixels: Pixels, rng: Numbers) -> Pixels:
    """Cut out the largest disc and put it on a black frame."""
    side = min(pixels.shape[:2])
    frame = np.zeros((side, int(side * rng.uniform(1.0, 1.35)), 3), np.uint8)
    left = (frame.shape[1] - side) // 2
    offsets = np.arange(side) + 0.5 - side / 2
    within = np.hypot(offsets[:, None], offsets) < 0.48 * side
    frame[:, left : left + side] = pixels[:side, :side] * within[..., None]
    return frame


def orange(pixels: Pixels) -> Pixels:
    """Show the brightness in one colour."""
    grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY).astype(float)
    return as_bytes(grey[..., None] * np.array([1.25, 0.62, 0.3]))


def warm(pixels: Pixels, rng: Numbers) -> Pixels:
    """Multiply the colours by an orange tint."""
    return as_bytes(pixels * np.array([rng.uniform(1.1, 1.4), rng.uniform(0.55, 0.8), rng.uniform(0.2, 0.5)]))


def duotone(pixels: Pixels, rng: Numbers) -> Pixels:
    """Show the brightness with red, green and blue detail of different strength, as in a fundus."""
    grey = 0.35 + 0.5 * cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY).astype(float) / 255
    red = 200 * (grey / 0.6) ** rng.uniform(0.3, 0.6)
    return as_bytes(
        np.stack([red, 150 * grey, 40 * (grey / 0.6) ** 0.9], 2) + rng.normal(0, 1.5, pixels.shape)
    )


def shaded(rng: Numbers, side: int = 300) -> Pixels:
    """Draw orange that darkens towards the rim and to one side."""
    across = (np.arange(side) + 0.5) / side - 0.5
    down = across[:, None]
    light = 1 - rng.uniform(0.3, 1) * (across**2 + down**2) + 0.3 * (across * rng.normal() + down)
    return as_bytes(light[..., None] * [rng.uniform(140, 220), rng.uniform(60, 110), rng.uniform(15, 60)])


def clouded(rng: Numbers) -> Pixels:
    """Draw orange with clouds of a random size."""
    grain = rng.uniform(0.3, 8)
    clouds = cv2.GaussianBlur(rng.normal(0, 1, (300, 300)), (0, 0), grain) * (2 * grain + 1)
    return as_bytes(shaded(rng) + rng.uniform(5, 20) * clouds[..., None])


def lined(rng: Numbers) -> Pixels:
    """Draw orange with dark straight lines."""
    drawn = shaded(rng).copy()
    for start, end in rng.integers(0, 300, (int(rng.integers(4, 40)), 2, 2)):
        cv2.line(drawn, start.tolist(), end.tolist(), (90, 40, 20), int(rng.integers(1, 5)), cv2.LINE_AA)
    return drawn


def noise(rng: Numbers) -> Pixels:
    """Draw independent pixel values."""
    return rng.integers(0, 256, (300, 300, 3), dtype=np.uint8)


def text(rng: Numbers) -> Pixels:
    """Draw a page of text."""
    page = np.full((300, 300, 3), 245, np.uint8)
    for row in range(13):
        letters = "".join(chr(int(each)) for each in rng.integers(97, 123, 26))
        place = (8, 25 + row * 20)
        cv2.putText(page, letters, place, cv2.FONT_HERSHEY_SIMPLEX, 0.45, (20, 20, 20), 1, cv2.LINE_AA)
    return page


def tissue(rng: Numbers) -> Pixels:
    """Draw cells under a microscope."""
    ground = cv2.GaussianBlur(rng.normal(0, 1, (300, 300, 3)), (0, 0), 6) * 60 + [232, 190, 214]
    drawn = as_bytes(ground)
    for place in rng.integers(0, 300, (250, 2)):
        colour = (int(rng.uniform(80, 130)), 60, int(rng.uniform(120, 160)))
        axes = rng.integers(3, 7, 2).tolist()
        cv2.ellipse(drawn, place.tolist(), axes, float(rng.uniform(0, 180)), 0, 360, colour, -1, cv2.LINE_AA)
    return drawn


def eye(rng: Numbers) -> Pixels:
    """Draw an eye from outside."""
    drawn = as_bytes(np.full((300, 300, 3), (200, 150, 130)) * rng.uniform(0.7, 1.1))
    cv2.ellipse(drawn, (150, 150), (140, 90), 0, 0, 360, (225, 220, 215), -1, cv2.LINE_AA)
    colour = rng.uniform((60, 50, 20), (150, 120, 140))
    cv2.circle(drawn, (150, 150), 80, colour.tolist(), -1, cv2.LINE_AA)
    for angle in rng.uniform(0, 2 * np.pi, 120):
        start, end = ((150 + r * np.cos(angle), 150 + r * np.sin(angle)) for r in (34, 78))
        shade = (colour * rng.uniform(0.6, 1.4)).tolist()
        cv2.line(drawn, tuple(map(int, start)), tuple(map(int, end)), shade, 1, cv2.LINE_AA)
    cv2.circle(drawn, (150, 150), int(rng.uniform(20, 40)), (8, 6, 6), -1, cv2.LINE_AA)
    cv2.circle(drawn, (130, 130), 9, (250, 250, 250), -1)
    return as_bytes(cv2.GaussianBlur(drawn, (0, 0), 1.2) + rng.normal(0, 3, drawn.shape))


def tomogram(rng: Numbers) -> Pixels:
    """Draw layers with speckle, as in optical coherence tomography."""
    y, x = np.mgrid[:300, :300]
    top = 120 + 15 * np.cos((x - 150) / 90.0)
    layers = ((0, 150, 6), (20, 90, 14), (45, 120, 8), (60, 200, 5), (72, 140, 12))
    light = sum(value * np.exp(-(((y - top - depth) / width) ** 2)) for depth, value, width in layers)
    speckled = light * rng.gamma(3, 1 / 3, light.shape) + rng.gamma(1, 6, light.shape)
    return np.repeat(as_bytes(speckled)[..., None], 3, axis=2)


DRAWINGS: dict[str, Callable[[Numbers], Pixels]] = {
    "drawn: plain orange": shaded,
    "drawn: orange clouds": clouded,
    "drawn: orange with lines": lined,
    "drawn: noise": noise,
    "drawn: text": text,
    "drawn: tissue": tissue,
    "drawn: eye from outside": eye,
    "drawn: tomogram": tomogram,
}

SHOWN = ("drawn: eye from outside", "drawn: tissue", "drawn: orange with lines", "drawn: plain orange")


def focus_lost(sigma: float) -> Callable[[Pixels], Pixels]:
    """Blur; sigma in pixels of the disc at 224 px."""
    return lambda pixels: blur(pixels, sigma, 2 * find_disc(pixels).radius)


def exposed(gain: float) -> Callable[[Pixels], Pixels]:
    """Multiply the brightness."""
    return lambda pixels: as_bytes(pixels * float(gain))


def toned(gamma: float) -> Callable[[Pixels], Pixels]:
    """Apply a gamma; above 1 the middle tones are darker."""
    return lambda pixels: as_bytes(255 * (pixels / 255.0) ** gamma)


CHANGES: dict[str, Callable[[Pixels], Pixels]] = {
    "unchanged": lambda pixels: pixels,
    **{f"blur {sigma:g}": focus_lost(sigma) for sigma in (0.5, 1, 1.5, 2, 3, 4)},
    **{f"light x {gain:g}": exposed(gain) for gain in (0.5, 0.35, 0.25, 0.15, 0.1, 1.5, 2, 3, 4)},
    **{f"gamma {gamma:g}": toned(gamma) for gamma in (0.6, 1.6, 2.5)},
    "half size": lambda pixels: np.asarray(cv2.resize(pixels, None, fx=0.5, fy=0.5), np.uint8),
}


def measure_images(pictures: Iterator[Picture]) -> pd.DataFrame:
    """Return a row for each image with its measures; NaN if no disc is found."""
    rows = []
    for picture in pictures:
        try:
            found = measure_appearance(picture.pixels, find_disc(picture.pixels))
        except NoFundus:
            found = None
        rows.append((*picture[:3], *(found or [np.nan] * len(Appearance._fields))))
    return pd.DataFrame(rows, columns=["fundus", "group", "name", *Appearance._fields])


def fit(table: pd.DataFrame) -> FundusRule:
    """Fit a logistic regression on the standardised measures and their products, groups weighted equally."""
    table = table.dropna()
    values = table[list(Appearance._fields)].to_numpy()
    mean, scale = values.mean(axis=0), values.std(axis=0)
    z = np.clip((values - mean) / scale, -REACH, REACH)
    rows, columns = np.triu_indices(z.shape[1])
    terms = np.concatenate([z, z[:, rows] * z[:, columns]], axis=1)
    centre, spread = terms.mean(axis=0), terms.std(axis=0)
    sizes = table.groupby(["fundus", "group"])["name"].transform("size")
    groups = table.groupby("fundus")["group"].transform("nunique")
    model = LogisticRegression(C=PENALTY, max_iter=10_000)
    model.fit((terms - centre) / spread, table["fundus"], sample_weight=len(table) / (2 * sizes * groups))
    weights = model.coef_[0] / spread
    constant = float(model.intercept_[0] - weights @ centre)
    quadratic = np.zeros((z.shape[1], z.shape[1]))
    quadratic[rows, columns] = weights[z.shape[1] :]
    return FundusRule(mean, scale, constant, weights[: z.shape[1]], quadratic, REACH)


def passing(rule: FundusRule, table: pd.DataFrame) -> pd.Series:
    """Return which rows the rule accepts."""
    known = table[list(Appearance._fields)].notna().all(axis=1)
    scores = [rule.score(Appearance(*row)) for row in table[list(Appearance._fields)].fillna(0).to_numpy()]
    return known & (np.array(scores) > 0)


def report(title: str, rule: FundusRule, table: pd.DataFrame) -> None:
    """Print the accepted shares."""
    passed = passing(rule, table).groupby([~table["fundus"], table["group"]])
    print(f"\n{title}\n{pd.DataFrame({'pass': passed.mean().round(3), 'of': passed.size()}).to_string()}")


def report_changes(source: Source) -> None:
    """Print the verdicts on every eighth photograph with each change."""
    rows = []
    for path in source.read().manifest["path"][1::8]:
        pixels = read_photograph(source.root / path).pixels
        rows += [(what, verdict_on(change(pixels)).flag) for what, change in CHANGES.items()]
    table = pd.DataFrame(rows, columns=["change", "flag"])
    print(f"\n{source.name}\n{pd.crosstab(table['change'], table['flag']).loc[list(CHANGES)].to_string()}")


def report_verdicts(table: pd.DataFrame) -> None:
    """Print the verdicts on images that show no fundus, light and focus included."""
    counts = pd.crosstab(table["group"], table["flag"])
    print(f"\nverdicts on other images\n{counts.to_string()}")
    passed = table[~table["abstains"]].groupby(["group", "name"]).size()
    print(f"\nwrongly accepted\n{passed.to_string()}")


def verdict_on(pixels: Pixels) -> Verdict:
    """Return the verdict on decoded pixels."""
    try:
        disc = find_disc(pixels)
    except NoFundus as error:
        return Verdict("blank", str(error), abstains=True)
    photo = DecodedImage(pixels, (), (pixels.shape[1], pixels.shape[0]))
    return judge(ExtractedDisc(photo, disc, crop_disc(pixels, disc, GRADED)))


def verdicts(pictures: Iterator[Picture]) -> pd.DataFrame:
    """Return flag and rejection of each image."""
    rows = []
    for picture in pictures:
        verdict = verdict_on(picture.pixels)
        rows.append((picture.group, picture.name, verdict.flag, verdict.abstains))
    return pd.DataFrame(rows, columns=["group", "name", "flag", "abstains"])


def draw_picture(source: Source, path: Path) -> None:
    """Write the documentation's picture: photographs, changed ones and other drawings with their verdicts."""
    rng = np.random.default_rng(1)
    files = source.read().manifest["path"]
    tiles = [read_photograph(source.root / each).pixels for each in files[:4]]
    original = read_photograph(source.root / files[4]).pixels
    tiles += [CHANGES[each](original) for each in ("blur 1", "blur 2", "light x 0.15", "light x 4")]
    tiles += [disc_of(DRAWINGS[each](rng), rng) for each in SHOWN]
    labelled = [_tile(pixels, verdict_on(pixels)) for pixels in tiles]
    rows = [np.concatenate(labelled[start : start + 4], axis=1) for start in range(0, len(labelled), 4)]
    page = cv2.cvtColor(np.concatenate(rows), cv2.COLOR_RGB2BGR)
    cv2.imwrite(str(path), page, [cv2.IMWRITE_JPEG_QUALITY, 85])


def _tile(pixels: Pixels, verdict: Verdict) -> Pixels:
    height = 200
    width = round(pixels.shape[1] * height / pixels.shape[0])
    small = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)[:, :280]
    tile = np.full((height + 34, 290, 3), 255, np.uint8)
    left = (290 - small.shape[1]) // 2
    tile[:height, left : left + small.shape[1]] = small
    colour = (170, 20, 20) if verdict.abstains else (20, 110, 40)
    place = (8, height + 22)
    cv2.putText(tile, verdict.flag, place, cv2.FONT_HERSHEY_SIMPLEX, 0.6, colour, 1, cv2.LINE_AA)
    return tile


def evaluate(args: Namespace, sources: Sequence[Source]) -> None:
    """Fit the rule on one half of the images, and print the figures of the other half."""
    rng = np.random.default_rng(0)
    known = {source.name: measure_images(photographs(source, rng)) for source in sources}
    for source in sources:
        report_changes(source)
    originals = measure_images(
        Picture(True, "originals", path.name, read_photograph(path).pixels)
        for path in list_photographs(args.originals)
    )
    table = pd.concat([*known.values(), measure_images(others(args.packages, rng))], ignore_index=True)
    first = table["name"].map(lambda name: zlib.crc32(name.encode()) % 2 == 0)
    report("the other half", fit(table[first]), pd.concat([table[~first], originals]))
    for name, own in known.items() if len(known) > 1 else ():
        without = table[first & ~table["group"].str.startswith(name)]
        report(f"fitted without {name}", fit(without), own if name == "demo" else pd.concat([own, originals]))
    report_verdicts(verdicts(others(args.packages, np.random.default_rng(0))))
    if args.write:
        args.write.write_text(fit(table).to_json(), encoding="utf-8")
        print(json.dumps({"written": str(args.write), "images": len(table)}))


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument(
        "--idrid", type=Path, default=Path("../shared/data/idrid"), help="left out if missing"
    )
    parser.add_argument("--originals", type=Path, default=ORIGINALS, help="folder of original photographs")
    parser.add_argument("--count", type=int, default=400, help="number of demo photographs")
    parser.add_argument("--packages", type=Path, default=PACKAGES, help="folder of the other images")
    parser.add_argument("--write", type=Path, help="file for the rule that is fitted on all images")
    parser.add_argument("--picture", type=Path, help="only write the documentation's picture")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        if args.picture:
            draw_picture(Demo(scratch, count=12), args.picture)
        else:
            evaluate(args, [*([IDRiD(args.idrid)] if args.idrid.is_dir() else []), Demo(scratch, args.count)])


if __name__ == "__main__":
    main()
