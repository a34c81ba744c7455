"""How well the rotation can be told from parts of a view that should not tell it.

A small network is trained on one part of the views of some photographs, all four turns of each, and tested on
others. Chance is 25 %. Prints the table of docs/rotation.md:

    python benchmarks/rotation_shortcuts.py --idrid ../shared/data/idrid
"""

import argparse
import tempfile
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from drgrade.data.sources.demo import Demo
from drgrade.data.sources.idrid import IDRiD
from drgrade.data.store import Store, prepare
from drgrade.data.transforms import FILL, MAX_MASK_RADIUS, MaskedView, circular_mask, zoom_about_centre
from drgrade.pretext.rotation import four_turns

Images = np.ndarray
View = Callable[[Images, float, int | None], Images]


class Score(NamedTuple):
    """Accuracy on held-out photographs, and its standard error over photographs, not turns."""

    accuracy: float
    error: float

    def __str__(self) -> str:
        return f"{100 * self.accuracy:.1f} ± {100 * self.error:.1f}"


# --- views: (S, S, 3) of the store, clear, seed -> (S, S, 3)


def whole_crop(image: Images, clear: float, seed: int | None) -> Images:
    """No protection at all: the crop of the store, mirrored for odd seeds."""
    return image[:, ::-1] if seed and seed % 2 else image


def hard_mask(image: Images, clear: float, seed: int | None) -> Images:
    """A mask and nothing else: content up to its edge, light as the camera left it."""
    zoom = 1.0 if seed is None else np.random.default_rng(seed).uniform(1, 1.15 / 0.85)
    view = zoom_about_centre(whole_crop(image, clear, seed), zoom / clear)
    return np.where(circular_mask(len(image))[:, :, None], view, np.array(FILL, np.uint8))


# --- parts: (..., S, S, 3) -> the same, with all but one part constant


def silhouette(views: Images) -> Images:
    """Where something is shown: not FILL, not the black of the padding."""
    shown = (views != FILL).any(axis=-1, keepdims=True) & (views.max(axis=-1, keepdims=True) > 8)
    return np.broadcast_to(np.where(shown, 255, 0).astype(np.uint8), views.shape)


def outside(views: Images) -> Images:
    """What surrounds the mask."""
    return np.where(circular_mask(views.shape[-2])[:, :, None], np.uint8(128), views)


def ring(views: Images, width: float) -> Images:
    """The outermost ring under the mask; ``width`` is a share of the mask's radius."""
    size = views.shape[-2]
    kept = circular_mask(size) & ~circular_mask(size, MAX_MASK_RADIUS * (1 - width))
    return np.where(kept[:, :, None], views, np.uint8(128))


def four_colours(views: Images) -> Images:
    """The mean colour of each quarter of the disc shown: light only, no structure."""
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
    """Everything."""
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
    """Small CNN that knows where in the image a feature is."""

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
    """(N, len(seeds), S, S, 3)."""
    clear = store.manifest["clear"]
    return np.stack(
        [
            [view(np.array(image), float(clear[i]), None if s is None else 1000 * i + s) for s in seeds]
            for i, image in enumerate(store.images)
        ]
    )


def tells(train: Images, test: Images, epochs: int = 8, seed: int = 0, batch: int = 32) -> Score:
    """Train on all turns of some views, and test on all turns of others.

    Args:
        train: (N, K, S, S, 3) uint8, K views of each photograph.
        test: (M, S, S, 3) uint8, of other photographs.
        epochs: Passes over the training views.
        seed: Of the network and the order.
        batch: Views in a batch, each in four turns.
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


def halves(count: int) -> tuple[Images, Images]:
    """Rows to train on and rows to test on, at random."""
    order = np.random.default_rng(0).permutation(count)
    return order[: count // 2], order[count // 2 :]


def score(views: Images, part: Callable[[Images], Images], epochs: int) -> Score:
    """Cross-fitted: every photograph is held out once. The last view of each is the one to test on."""
    shown = part(views)
    one, other = halves(len(shown))
    scores = [tells(shown[a, :-1], shown[b, -1], epochs) for a, b in ((one, other), (other, one))]
    accuracies, errors = zip(*scores, strict=True)
    return Score(float(np.mean(accuracies)), float(np.hypot(*errors) / 2))


def turns_alike(shown: Images) -> bool:
    """Whether all four turns of every image are one and the same."""
    return all(np.array_equal(shown, np.rot90(shown, k, axes=(-3, -2))) for k in (1, 2, 3))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--idrid", type=Path, help="folder of IDRiD; only the demo data without it")
    parser.add_argument("--size", type=int, default=64, help="side of the views in px")
    parser.add_argument("--count", type=int, default=400, help="number of demo photographs")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--folder", type=Path, help="for the stores; a temporary one without it")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    folder = arguments.folder or Path(tempfile.mkdtemp())
    sources = [Demo(folder / "demo", count=arguments.count, size=256)]
    sources += [IDRiD(arguments.idrid)] if arguments.idrid else []
    kinds: dict[str, View] = {"crop": whole_crop, "hard mask": hard_mask, "views": MaskedView()}
    print(f"| data | part | {' | '.join(kinds)} |\n|---|---|{'---|' * len(kinds)}")
    for source in sources:
        store = prepare(source, folder / "stores", image_size=arguments.size)
        views = {kind: views_of(store, view, [1, 2, 3, 4]) for kind, view in kinds.items()}
        for name, part in PARTS.items():
            print(f"| {source.name} | {name} |", end="", flush=True)
            for of_kind in views.values():
                exact = turns_alike(part(of_kind))
                print(
                    f" {'25 exactly' if exact else score(of_kind, part, arguments.epochs)} |",
                    end="",
                    flush=True,
                )
            print()


if __name__ == "__main__":
    main()
