"""How well two views of a photograph find each other by what should not tell them.

No network: among a batch of photographs, views are matched by nearest neighbour: by silhouette, by mean
colour, and by mean and spread of each colour in the metric that serves this best (learnt on other
photographs). What a distance finds, a network finds too. Prints the table of docs/pretexts/simclr.md:

    python benchmarks/crop_shortcuts.py --idrid ../shared/data/idrid
"""

import argparse
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import cv2
import hydra
import numpy as np

from drgrade.config import CONF
from drgrade.data.augmentation import FundusAugmentation
from drgrade.data.sources.demo import Demo
from drgrade.data.sources.idrid import IDRiD
from drgrade.data.store import Store, prepare
from drgrade.data.transforms import MultiView, SquareView, ViewTransform

Array = np.ndarray
BATCH = 64
"""Photographs among which one is to be found; chance is 1/64."""


class Score(NamedTuple):
    """Share of the views whose partner is the nearest, and its standard error over photographs."""

    share: float
    error: float

    def __str__(self) -> str:
        return f"{100 * self.share:.1f} ± {100 * self.error:.1f}"


# --- views


JITTER = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.05}


def whole_photographs(image: Array, clear: float, seed: int | None) -> tuple[Array, ...]:
    """The stored square twice, rim and black and all, mirrored or not, its colours jittered."""
    augment = FundusAugmentation(horizontal_flip=True, vertical_flip=True, **JITTER)
    rng = np.random.default_rng(seed)
    return tuple(augment(image, int(rng.integers(2**32))) for _ in range(2))


def plain_squares() -> ViewTransform:
    """Two squares from inside what was recorded, in the colours of the photograph."""
    return MultiView([SquareView(area=(0.3, 1.0), vertical_flip=True, rotate=180)], [2])


def configured(pretext: str) -> ViewTransform:
    """The views of ``conf/pretext/NAME.yaml``."""
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = hydra.compose("train", [f"pretext={pretext}"])
    views: ViewTransform = hydra.utils.instantiate(cfg.pretext.views)
    return views


def pairs_of(store: Store, views: ViewTransform, seed: int = 0) -> Array:
    """(N, 2, S, S, 3): the two views of each photograph."""
    clear = store.manifest["clear"]
    return np.stack(
        [views(np.array(image), float(clear[i]), 100_000 * seed + i) for i, image in enumerate(store.images)]
    )


# --- what is known of a view: (..., S, S, 3) -> (..., D)


def silhouette(views: Array, dark: int = 8) -> Array:
    """Where something was recorded: all that is not black; as its mirror images see it too, at 16 by 16."""
    shown = (views.max(axis=-1) > dark).astype(np.float64)
    for axis in (-2, -1):
        shown = shown + np.flip(shown, axis)
    cell = views.shape[-2] // 16
    grid = shown[..., : 16 * cell, : 16 * cell].reshape(*shown.shape[:-2], 16, cell, 16, cell)
    return np.asarray(grid.mean(axis=(-3, -1)).reshape(*shown.shape[:-2], -1))


def mean_colour(views: Array) -> Array:
    """The mean of red, green and blue."""
    return np.asarray(views.mean(axis=(-3, -2)))


def colours(views: Array) -> Array:
    """Logarithms of mean and spread of each colour, which a factor only shifts."""
    spread = views.std(axis=(-3, -2))
    return np.log(np.concatenate([views.mean(axis=(-3, -2)), spread], axis=-1) + 1)


# --- matching


def matched(known: Array, batch: int = BATCH, draws: int = 100, seed: int = 0) -> Score:
    """How often the nearest second view in a batch is the partner of a first view, and the other way round.

    Args:
        known: (N, 2, D).
        batch: Photographs among which one is to be found.
        draws: Batches.
        seed: Of the batches.

    Returns:
        Where several are equally near, each counts for its share: views that are all alike give 1 / batch.
    """
    rng = np.random.default_rng(seed)
    found, seen = np.zeros(len(known)), np.zeros(len(known))
    for _ in range(draws):
        rows = rng.choice(len(known), batch, replace=False)
        first, second = known[rows, 0], known[rows, 1]
        distances = ((first[:, None] - second[None]) ** 2).sum(axis=-1)
        for table in (distances, distances.T):
            nearest = table <= table.min(axis=1, keepdims=True)
            found[rows] += nearest.diagonal() / nearest.sum(axis=1)
            seen[rows] += 1
    shares = found[seen > 0] / seen[seen > 0]
    return Score(float(shares.mean()), float(shares.std() / len(shares) ** 0.5))


def best_metric(known: Array) -> tuple[Array, Array]:
    """Fit the metric in which the two views of each photograph differ by as much in all directions.

    Fitted on one half of the photographs, for use on the other: (N / 2, 2, D) each, in that metric.
    """
    order = np.random.default_rng(0).permutation(len(known))
    halves = order[: len(order) // 2], order[len(order) // 2 :]
    result = []
    for fit, use in (halves, halves[::-1]):
        apart = known[fit, 0] - known[fit, 1]
        covariance = apart.T @ apart / len(apart) + 1e-9 * np.eye(known.shape[-1])
        result.append(known[use] @ np.linalg.cholesky(np.linalg.inv(covariance)))
    return result[0], result[1]


def by_best_metric(known: Array) -> Score:
    """As :func:`matched`, in the metric learnt on the other half of the photographs."""
    scores = [matched(half) for half in best_metric(known)]
    return Score(
        float(np.mean([score.share for score in scores])),
        float(np.hypot(scores[0].error, scores[1].error) / 2),
    )


TELLS: dict[str, Callable[[Array], Score]] = {
    "silhouette": lambda pairs: matched(silhouette(pairs)),
    "mean colour": lambda pairs: matched(mean_colour(pairs)),
    "mean and spread of colours, learnt metric": lambda pairs: by_best_metric(colours(pairs)),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--idrid", type=Path, help="folder of IDRiD; only the demo data without it")
    parser.add_argument("--size", type=int, default=96, help="side of the views in px")
    parser.add_argument("--count", type=int, default=400, help="number of demo photographs")
    parser.add_argument("--folder", type=Path, help="for the stores; a temporary one without it")
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    folder = arguments.folder or Path(tempfile.mkdtemp())
    sources = [Demo(folder / "demo", count=arguments.count, size=256)]
    sources += [IDRiD(arguments.idrid)] if arguments.idrid else []
    kinds: dict[str, Callable[[], ViewTransform]] = {
        "whole": lambda: whole_photographs,
        "squares": plain_squares,
    }
    kinds |= {name: partial(configured, name) for name in ("exemplar", "simclr")}
    print(f"| data | by | {' | '.join(kinds)} |\n|---|---|{'---|' * len(kinds)}")
    for source in sources:
        store = prepare(source, folder / "stores", image_size=arguments.size)
        pairs = {kind: pairs_of(store, make()) for kind, make in kinds.items()}
        for name, tell in TELLS.items():
            print(f"| {source.name} | {name} |", *(f"{tell(of_kind)} |" for of_kind in pairs.values()))


if __name__ == "__main__":
    main()
