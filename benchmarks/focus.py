"""Measure how much blur the audit detects, and how often it flags a sharp photograph.

Every second photograph of IDRiD and of the demo is blurred at full size with a Gaussian whose standard
deviation is given in pixels of the prepared photograph at 224 px, then prepared at 224 and 96 px and
measured. Detections are counted with the fixed threshold alone, and with the outlier rule for a data set in
which only this photograph is blurred. Prints the figures of docs/audit.md:

    python benchmarks/focus.py --idrid ../shared/data/idrid
"""

import tempfile
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from common import blur, make_parser

from drgrade.data.disc_detection import find_disc
from drgrade.data.geometry import crop_disc, make_thumbnail
from drgrade.data.image_reader import read_photograph
from drgrade.data.quality import measure
from drgrade.data.sources.base import Source
from drgrade.data.sources.demo import Demo
from drgrade.data.sources.idrid import IDRiD
from drgrade.settings import AuditThresholds

SIGMAS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0)
SIZES = (224, 96)
NOISE = 4.0
"""Standard deviation, in grey levels, of the noise that is added after the blur in the last rows."""


def measure_focus(source: Source) -> Iterator[tuple[int, float, float, float]]:
    """Yield size, sigma, noise and focus of every second photograph."""
    rng = np.random.default_rng(0)
    for path in source.read().manifest["path"][::2]:
        pixels = read_photograph(source.root / path).pixels
        disc = find_disc(pixels)
        recorded = make_thumbnail(pixels, disc) > 0
        for sigma in SIGMAS:
            blurred = blur(pixels, sigma, 2 * disc.radius)
            for size in SIZES:
                crop = crop_disc(blurred, disc, size)
                yield size, sigma, 0.0, measure(crop, recorded, 2 * disc.radius).focus
                noisy = np.clip(crop + rng.normal(0, NOISE, crop.shape), 0, 255).astype(np.uint8)
                yield size, sigma, NOISE, measure(noisy, recorded, 2 * disc.radius).focus


def report(name: str, table: pd.DataFrame) -> None:
    """Print the shares that are detected."""
    settings = AuditThresholds()
    for size in SIZES:
        of_size = table[table["size"] == size]
        sharp = np.log(of_size.loc[(of_size["sigma"] == 0) & (of_size["noise"] == 0), "focus"])
        spread = 1.4826 * (sharp - sharp.median()).abs().median()
        limit = min(np.exp(sharp.median() - settings.outlying_deviations * spread), settings.outlying_below)
        for (noise, sigma), focus in of_size.groupby(["noise", "sigma"])["focus"]:
            fixed, outlying = focus < settings.blurred_below, focus < limit
            print(
                f"{name} at {size} px, sigma {sigma}, noise {noise}: {fixed.mean():.0%} below the threshold, "
                f"{(fixed | outlying).mean():.0%} with the outlier rule, of {len(focus)}"
            )


def list_sources(args: Namespace, scratch: str) -> list[Source]:
    """Return IDRiD, if its folder is there, and the demo data."""
    demo = Demo(scratch, count=args.count)
    return [IDRiD(args.idrid), demo] if args.idrid.is_dir() else [demo]


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument(
        "--idrid", type=Path, default=Path("../shared/data/idrid"), help="left out if missing"
    )
    parser.add_argument("--count", type=int, default=400, help="number of demo photographs")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        for source in list_sources(args, scratch):
            columns = ["size", "sigma", "noise", "focus"]
            report(source.name, pd.DataFrame(measure_focus(source), columns=columns))


if __name__ == "__main__":
    main()
