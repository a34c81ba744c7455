"""Synthetic photographs and folders for tests."""

from pathlib import Path

import numpy as np
from PIL import Image


def disc_photograph(
    size=(160, 120),
    centre=None,
    radius=None,
    background=0,
    noise=0.0,
    brightness=170,
    seed=0,
):
    """Draw a textured disc, RGB uint8 (H, W, 3); ``size`` is (width, height), coordinates are continuous."""
    width, height = size
    x, y = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    centre = centre or (width / 2, height / 2)
    radius = radius or 0.45 * min(size)
    distance = np.hypot(x - centre[0], y - centre[1]) / radius
    rng = np.random.default_rng(seed)
    retina = brightness * (1 - 0.4 * distance**2) * (1 + 0.1 * np.sin(x / 9) * np.sin(y / 7))
    cover = np.clip((1 - distance) * radius + 0.5, 0, 1)
    level = background + cover * retina + rng.normal(0, noise or 1e-9, distance.shape)
    return np.clip(level[..., None] * (1.0, 0.55, 0.25), 0, 255).astype(np.uint8)


def save(path: Path, pixels=None, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(disc_photograph() if pixels is None else pixels).save(path, **options)
    return path


def write_labels(path: Path, *rows: str, header="image,grade") -> Path:
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return path


def labelled_folder(root: Path, number=6) -> Path:
    """Write a folder with ``number`` PNG photographs p0..., grades 0-4 in turn."""
    for i in range(number):
        save(root / f"p{i}.png", disc_photograph(seed=i, brightness=120 + 10 * i))
    write_labels(root / "labels.csv", *(f"p{i}.png,{i % 5}" for i in range(number)))
    return root
