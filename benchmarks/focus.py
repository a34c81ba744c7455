"""How much blur the audit finds, and how often it calls a sharp photograph blurred.

    python benchmarks/focus.py --idrid ../shared/data/idrid

Every second photograph of IDRiD and of the demo is blurred at full size by a Gaussian whose standard
deviation is given in pixels of the prepared photograph at 224 px, then prepared at 224 and 96 px and
measured. Found are counted by the fixed threshold alone, and as the one blurred photograph in a data set
of sharp ones.
"""

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pandas as pd

from drgrade.auditing.findings import Settings
from drgrade.data.duplicates.thumbnail import make_thumbnail
from drgrade.data.geometry import crop_disc, find_disc
from drgrade.data.image_reader import read_photograph
from drgrade.data.quality import measure
from drgrade.data.sources.base import Source
from drgrade.data.sources.demo import Demo
from drgrade.data.sources.idrid import IDRiD

SIGMAS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0)
SIZES = (224, 96)
NOISE = 4.0
"""Standard deviation, in grey levels, of the noise that is added after the blur in the last rows."""


def measured(source: Source) -> Iterator[tuple[int, float, float, float]]:
    """Size, sigma, noise and focus of every second photograph."""
    rng = np.random.default_rng(0)
    for path in source.read().manifest["path"][::2]:
        pixels = read_photograph(source.root / path).pixels
        disc = find_disc(pixels)
        recorded = make_thumbnail(pixels, disc) > 0
        for sigma in SIGMAS:
            blurred = gaussian(pixels, sigma * 2 * disc.radius / 224)
            for size in SIZES:
                crop = crop_disc(blurred, disc, size)
                yield size, sigma, 0.0, measure(crop, recorded, 2 * disc.radius).focus
                noisy = np.clip(crop + rng.normal(0, NOISE, crop.shape), 0, 255).astype(np.uint8)
                yield size, sigma, NOISE, measure(noisy, recorded, 2 * disc.radius).focus


def gaussian(pixels: npt.NDArray[np.uint8], sigma: float) -> npt.NDArray[np.uint8]:
    """Blur; nothing for 0."""
    return np.asarray(cv2.GaussianBlur(pixels, (0, 0), sigma), np.uint8) if sigma else pixels


def report(name: str, table: pd.DataFrame) -> None:
    """Print the shares that are found."""
    settings = Settings()
    for size in SIZES:
        of_size = table[table["size"] == size]
        sharp = np.log(of_size.loc[(of_size["sigma"] == 0) & (of_size["noise"] == 0), "focus"])
        spread = 1.4826 * (sharp - sharp.median()).abs().median()
        limit = min(np.exp(sharp.median() - settings.outlying_deviations * spread), settings.outlying_below)
        for (noise, sigma), focus in of_size.groupby(["noise", "sigma"])["focus"]:
            fixed, outlying = focus < settings.blurred_below, focus < limit
            print(
                f"{name} at {size} px, sigma {sigma}, noise {noise}: found {fixed.mean():.0%}, "
                f"among sharp ones {(fixed | outlying).mean():.0%} of {len(focus)}"
            )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Blur that the audit finds.")
    parser.add_argument("--idrid", type=Path, default=Path("../shared/data/idrid"))
    parser.add_argument("--demo", type=int, default=400, help="photographs to draw")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        for source in (IDRiD(args.idrid), Demo(scratch, count=args.demo)):
            columns = ["size", "sigma", "noise", "focus"]
            report(source.name, pd.DataFrame(measured(source), columns=columns))


if __name__ == "__main__":
    main()
