"""Measure how well two views of a photograph can be matched without looking at the retina.

No network is trained. In batches of photographs, views are matched by nearest neighbour: by silhouette, by
mean colour, and by mean and spread of each colour in the best metric (learnt on other photographs). A
network can learn whatever such a distance finds. Prints the table of docs/pretexts/simclr.md:

    python benchmarks/crop_shortcuts.py --idrid ../shared/data/idrid
"""

from collections.abc import Callable
from functools import partial

import hydra
import numpy as np
from common import Score, add_data_options, make_parser, open_sources, print_header, print_row

from drgrade.config import CONF
from drgrade.data.store import Store, prepare
from drgrade.data.transforms import FundusAugmentation, MultiView, SquareView, ViewTransform

Array = np.ndarray
BATCH = 64
"""Photographs in a batch; chance is 1/64."""


# --- views


JITTER = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.05}


def whole_photographs(image: Array, clear: float, seed: int | None) -> tuple[Array, ...]:
    """Return two views of the whole stored square, each mirrored at random and with jittered colours."""
    augment = FundusAugmentation(horizontal_flip=True, vertical_flip=True, **JITTER)
    rng = np.random.default_rng(seed)
    return tuple(augment(image, int(rng.integers(2**32))) for _ in range(2))


def plain_squares() -> ViewTransform:
    """Return views of two squares inside the recorded disc, with the colours of the photograph."""
    return MultiView([SquareView(area=(0.3, 1.0), vertical_flip=True, rotate=180)], [2])


def configured(pretext: str) -> ViewTransform:
    """Return the views of ``conf/pretext/NAME.yaml``."""
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = hydra.compose("train", [f"pretext={pretext}"])
    views: ViewTransform = hydra.utils.instantiate(cfg.pretext.views)
    return views


def pairs_of(store: Store, views: ViewTransform, seed: int = 0) -> Array:
    """Return the two views of each photograph, (N, 2, S, S, 3)."""
    clear = store.manifest["clear"]
    return np.stack(
        [views(np.array(image), float(clear[i]), 100_000 * seed + i) for i, image in enumerate(store.images)]
    )


# --- features of a view: (..., S, S, 3) -> (..., D)


def silhouette(views: Array, dark: int = 8) -> Array:
    """Return the recorded area (all that is not black) at 16 x 16, averaged over the mirror images."""
    shown = (views.max(axis=-1) > dark).astype(np.float64)
    for axis in (-2, -1):
        shown = shown + np.flip(shown, axis)
    cell = views.shape[-2] // 16
    grid = shown[..., : 16 * cell, : 16 * cell].reshape(*shown.shape[:-2], 16, cell, 16, cell)
    return np.asarray(grid.mean(axis=(-3, -1)).reshape(*shown.shape[:-2], -1))


def mean_colour(views: Array) -> Array:
    """Return the means of red, green and blue."""
    return np.asarray(views.mean(axis=(-3, -2)))


def colours(views: Array) -> Array:
    """Return the logarithms of mean and spread of each colour, which a gain only shifts."""
    spread = views.std(axis=(-3, -2))
    return np.log(np.concatenate([views.mean(axis=(-3, -2)), spread], axis=-1) + 1)


# --- matching


def matched(known: Array, batch: int = BATCH, draws: int = 100, seed: int = 0) -> Score:
    """Compute how often the nearest view in a batch is of the same photograph, in both directions.

    Args:
        known: Features, (N, 2, D).
        batch: Photographs in a batch.
        draws: Number of batches.
        seed: Seed of the batches.

    Returns:
        Share of correct matches. Ties count in part: identical views give 1 / batch.
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
    """Whiten the features by the differences between the two views of a photograph.

    Each half of the photographs, (N / 2, 2, D), is transformed with the covariance of the other half.
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
    """Compute :func:`matched` in the metric that is learnt on the other half of the photographs."""
    scores = [matched(half) for half in best_metric(known)]
    return Score(
        float(np.mean([score.share for score in scores])),
        float(np.hypot(scores[0].error, scores[1].error) / 2),
    )


MATCHERS: dict[str, Callable[[Array], Score]] = {
    "silhouette": lambda pairs: matched(silhouette(pairs)),
    "mean colour": lambda pairs: matched(mean_colour(pairs)),
    "mean and spread of colours, learnt metric": lambda pairs: by_best_metric(colours(pairs)),
}


def main() -> None:
    parser = make_parser(__doc__)
    add_data_options(parser, size=96)
    arguments = parser.parse_args()
    kinds: dict[str, Callable[[], ViewTransform]] = {
        "whole": lambda: whole_photographs,
        "squares": plain_squares,
    }
    kinds |= {name: partial(configured, name) for name in ("exemplar", "simclr")}
    print_header("data", "by", *kinds)
    with open_sources(arguments) as (sources, stores):
        for source in sources:
            store = prepare(source, stores, image_size=arguments.size)
            pairs = {kind: pairs_of(store, make()) for kind, make in kinds.items()}
            for name, match in MATCHERS.items():
                print_row(source.name, name, *map(match, pairs.values()))


if __name__ == "__main__":
    main()
