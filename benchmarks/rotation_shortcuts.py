"""Measure how well the rotation can be predicted without looking at the retina.

A small network is trained on one part of the views of some photographs, all four turns of each, and tested
on other photographs. Chance is 25 %. Prints the table of docs/rotation.md:

    python benchmarks/rotation_shortcuts.py --idrid ../shared/data/idrid
"""

from collections.abc import Callable
from functools import partial
from itertools import pairwise

import numpy as np
import torch
from common import Score, add_data_options, halves, make_parser, open_sources, print_header, print_row
from torch import Tensor, nn
from torch.nn import functional

from drgrade.data.store import Store, prepare
from drgrade.data.transforms import FILL, MAX_MASK_RADIUS, MaskedView, circular_mask, zoom_about_centre
from drgrade.pretext.rotation import four_turns

Images = np.ndarray
View = Callable[[Images, float, int | None], Images]


# --- views: (S, S, 3) of the store, clear, seed -> (S, S, 3)


def whole_crop(image: Images, clear: float, seed: int | None) -> Images:
    """Return the crop of the store without protection, mirrored for odd seeds."""
    return image[:, ::-1] if seed and seed % 2 else image


def hard_mask(image: Images, clear: float, seed: int | None) -> Images:
    """Apply a circular mask and nothing else: no band at its edge, no levelling of the light."""
    zoom = 1.0 if seed is None else np.random.default_rng(seed).uniform(1, 1.15 / 0.85)
    view = zoom_about_centre(whole_crop(image, clear, seed), zoom / clear)
    return np.where(circular_mask(len(image))[:, :, None], view, np.array(FILL, np.uint8))


# --- parts: (..., S, S, 3) -> the same, with all but one part constant


def silhouette(views: Images) -> Images:
    """Keep only the area that is neither FILL nor black."""
    shown = (views != FILL).any(axis=-1, keepdims=True) & (views.max(axis=-1, keepdims=True) > 8)
    return np.broadcast_to(np.where(shown, 255, 0).astype(np.uint8), views.shape)


def outside(views: Images) -> Images:
    """Keep only the surroundings of the mask."""
    return np.where(circular_mask(views.shape[-2])[:, :, None], np.uint8(128), views)


def ring(views: Images, width: float) -> Images:
    """Keep only the outermost ring under the mask; ``width`` is a share of the mask's radius."""
    size = views.shape[-2]
    kept = circular_mask(size) & ~circular_mask(size, MAX_MASK_RADIUS * (1 - width))
    return np.where(kept[:, :, None], views, np.uint8(128))


def four_colours(views: Images) -> Images:
    """Replace each quarter of the disc by its mean colour: light without structure."""
    size = views.shape[-2]
    core = circular_mask(size, 0.9 * MAX_MASK_RADIUS)
    half = size // 2
    result = np.empty_like(views)
    for rows in (slice(0, half), slice(half, size)):
        for columns in (slice(0, half), slice(half, size)):
            part = views[..., rows, columns, :][..., core[rows, columns], :]
            result[..., rows, columns, :] = part.mean(axis=-2)[..., None, None, :].round()
    return result


def whole(views: Images) -> Images:
    """Keep the whole view."""
    return views


PARTS: dict[str, Callable[[Images], Images]] = {
    "silhouette": silhouette,
    "outside the mask": outside,
    "rim: outer 5 % of the radius": partial(ring, width=0.05),
    "rim: outer 10 %": partial(ring, width=0.1),
    "outer 15 %": partial(ring, width=0.15),
    "outer 20 %": partial(ring, width=0.2),
    "mean colours of the 4 quarters": four_colours,
    "whole view": whole,
}

# --- the probe


class Probe(nn.Sequential):
    """Small CNN that keeps the position of features."""

    def __init__(self, size: int, width: int = 12) -> None:
        widths = [3, width, 2 * width, 4 * width, 4 * width]
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Conv2d(before, after, 3, 2, 1), nn.BatchNorm2d(after), nn.ReLU()]
        cells = (-(-size // 16)) ** 2
        layers += [
            nn.Flatten(),
            nn.Dropout(0.3),
            nn.Linear(widths[-1] * cells, 64),
            nn.ReLU(),
            nn.Linear(64, 4),
        ]
        super().__init__(*layers)


def views_of(store: Store, view: View, seeds: list[int | None]) -> Images:
    """Return a view of each photograph for each seed, (N, len(seeds), S, S, 3)."""
    clear = store.manifest["clear"]
    return np.stack(
        [
            [view(np.array(image), float(clear[i]), None if s is None else 1000 * i + s) for s in seeds]
            for i, image in enumerate(store.images)
        ]
    )


def tells(train: Images, test: Images, epochs: int = 8, seed: int = 0, batch: int = 32) -> Score:
    """Train on all turns of some views and test on all turns of others.

    Args:
        train: K views of each photograph, (N, K, S, S, 3) uint8.
        test: Views of other photographs, (M, S, S, 3) uint8.
        epochs: Passes over the training views.
        seed: Seed of the network and the order.
        batch: Views in a batch, each in four turns.

    Returns:
        Accuracy on the test views; the error is over photographs, not over turns.
    """
    torch.manual_seed(seed)
    images, held_out = _tensor(train.reshape(-1, *train.shape[2:])), _tensor(test)
    probe = Probe(images.shape[-1])
    steps = epochs * (len(images) // batch)
    optimizer = torch.optim.AdamW(probe.parameters(), weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=steps)
    for _ in range(epochs):
        for chosen in torch.randperm(len(images))[: len(images) // batch * batch].split(batch):
            views, targets = four_turns(images[chosen])
            optimizer.zero_grad()
            functional.cross_entropy(probe(views), targets).backward()
            optimizer.step()
            schedule.step()
    probe.eval()
    with torch.no_grad():
        right = [probe(torch.rot90(held_out, k, (2, 3))).argmax(1) == k for k in range(4)]
    per_photograph = torch.stack(right).float().mean(dim=0)  # (M,)
    return Score(float(per_photograph.mean()), float(per_photograph.std() / len(per_photograph) ** 0.5))


def _tensor(images: Images) -> Tensor:
    return (torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() - 110) / 60


def score(views: Images, part: Callable[[Images], Images], epochs: int) -> Score:
    """Compute the cross-fitted accuracy: every photograph is tested once, on its last view."""
    shown = part(views)
    one, other = halves(len(shown))
    scores = [tells(shown[a, :-1], shown[b, -1], epochs) for a, b in ((one, other), (other, one))]
    accuracies, errors = zip(*scores, strict=True)
    return Score(float(np.mean(accuracies)), float(np.hypot(*errors) / 2))


def turns_alike(shown: Images) -> bool:
    """Return whether the four turns of every image are equal."""
    return all(np.array_equal(shown, np.rot90(shown, k, axes=(-3, -2))) for k in (1, 2, 3))


def main() -> None:
    parser = make_parser(__doc__)
    add_data_options(parser, size=64)
    parser.add_argument("--epochs", type=int, default=6)
    arguments = parser.parse_args()
    kinds: dict[str, View] = {"crop": whole_crop, "hard mask": hard_mask, "views": MaskedView()}
    print_header("data", "part", *kinds)
    with open_sources(arguments) as (sources, stores):
        for source in sources:
            store = prepare(source, stores, image_size=arguments.size)
            views = {kind: views_of(store, view, [1, 2, 3, 4]) for kind, view in kinds.items()}
            for name, part in PARTS.items():
                cells = [
                    "25 exactly" if turns_alike(part(of_kind)) else score(of_kind, part, arguments.epochs)
                    for of_kind in views.values()
                ]
                print_row(source.name, name, *cells)


if __name__ == "__main__":
    main()
