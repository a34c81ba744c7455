"""How well the pretexts about patches can be solved from parts of a patch that should not solve them.

A pretext is trained with an encoder that is shown one part of each patch only, on some photographs, and
tested on others. And patches are put together as a jigsaw solver without any training does it, by which edges
go on across a gap. Prints the tables of docs/pretexts/{relative_patch,jigsaw,cpc}.md:

    python benchmarks/patch_shortcuts.py --pretext jigsaw --idrid ../shared/data/idrid
"""

import argparse
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from rotation_shortcuts import Images, Score, View, halves, views_of, whole_crop
from torch import Tensor, nn
from torch.nn import functional

from drgrade.data.datamodules import normalise
from drgrade.data.sources.demo import Demo
from drgrade.data.sources.idrid import IDRiD
from drgrade.data.store import prepare
from drgrade.data.transforms import SquareView
from drgrade.models.encoder import Encoder
from drgrade.pretext.base import Pretext
from drgrade.pretext.cpc import CPC
from drgrade.pretext.jigsaw import Jigsaw, distant_permutations
from drgrade.pretext.patches import Patches
from drgrade.pretext.relative_patch import RelativePatch

Part = Callable[[Tensor], Tensor]

# --- parts: (N, 3, s, s) -> (N, F)


def mean_colour(patches: Tensor) -> Tensor:
    """The mean of each colour."""
    return patches.mean(dim=(-2, -1))


def four_colours(patches: Tensor) -> Tensor:
    """The mean colour of each quarter: light and its slope, no structure."""
    return functional.avg_pool2d(patches, patches.shape[-1] // 2).flatten(1)


def border(patches: Tensor, width: float = 0.125) -> Tensor:
    """The pixels of the outermost ring; ``width`` is a share of the side."""
    inside = round(width * patches.shape[-1])
    ring = torch.ones(patches.shape[-2:], dtype=torch.bool)
    ring[inside:-inside, inside:-inside] = False
    return patches[..., ring].flatten(1)


PARTS: dict[str, Part | None] = {
    "mean colour": mean_colour,
    "colours of the 4 quarters": four_colours,
    "border: outer 1/8": border,
    "whole patch": None,
}

# --- what protects


@dataclass(frozen=True)
class Protection:
    """How views are made and patches cut."""

    view: View
    apart: bool  # gap and jitter
    normalise: bool
    level: bool
    colour_drop: float = 0.0


class Mixed(Patches):
    """Patch m of a view comes from the photograph m further on in the batch: nothing goes on in anything."""

    def __call__(
        self, views: Tensor, generator: torch.Generator | None = None, cells: Tensor | None = None
    ) -> Tensor:
        """See :class:`Patches`."""
        every = super().__call__(views, generator)
        mixed = torch.stack([every[:, m].roll(m, 0) for m in range(every.shape[1])], dim=1)
        if cells is None:
            return mixed
        return mixed.gather(1, cells[..., None, None, None].expand(-1, -1, *every.shape[2:]))


square = SquareView(vertical_flip=True)

PROTECTIONS: dict[str, Protection] = {
    "crop": Protection(whole_crop, apart=False, normalise=False, level=False),
    "square": Protection(square, apart=False, normalise=False, level=False),
    "gap, jitter": Protection(square, apart=True, normalise=False, level=False),
    "normalised": Protection(square, apart=True, normalise=True, level=False),
    "levelled": Protection(square, apart=True, normalise=True, level=True),
    "all": Protection(square, apart=True, normalise=True, level=True, colour_drop=0.3),
}


@dataclass(frozen=True)
class Task:
    """A pretext as it is measured."""

    make: Callable[..., Pretext]
    grid: int
    gap: float  # with protection
    scores: tuple[str, ...]
    chance: tuple[float, ...]
    group: int  # photographs that are tested together
    cut: type[Patches] = Patches

    def patches(self, size: int, protection: Protection) -> Patches:
        """How views of a size are cut."""
        return self.cut(
            size,
            self.grid,
            gap=self.gap if protection.apart else min(self.gap, 0.0),
            jitter=0.15 if protection.apart else 0.0,
            normalise=protection.normalise,
            level=protection.level,
            colour_drop=protection.colour_drop,
        )


GROUP, COUNT = 8, 10
TASKS: dict[str, Task] = {
    "relative_patch": Task(partial(RelativePatch, hidden=(64,)), 3, 0.35, ("accuracy",), (1 / 8,), group=1),
    "jigsaw": Task(
        partial(Jigsaw, permutations=COUNT, hidden=(64,)), 3, 0.35, ("accuracy",), (1 / COUNT,), group=4
    ),
    "cpc": Task(
        partial(CPC, code=64), 5, -0.4, ("accuracy_within", "accuracy"), (1 / 15, 1 / 15 / GROUP), group=GROUP
    ),
}

# --- a probe that learns


class Probe(Encoder):
    """Small network that sees one part of a patch, and knows where in it a feature is."""

    num_features = 64

    def __init__(self, part: Part | None, side: int) -> None:
        super().__init__()
        self.part = part
        self.layers = _small_cnn(side) if part is None else _small_mlp(part(torch.zeros(1, 3, side, side)))
        self.last = nn.Sequential(nn.LazyLinear(self.num_features), nn.ReLU())
        self.eval()(torch.zeros(2, 3, side, side))
        self.train()

    def forward(self, images: Tensor) -> Tensor:
        """See :class:`Encoder`."""
        features: Tensor = self.last(self.layers(images if self.part is None else self.part(images)))
        return features


def _small_cnn(side: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in pairwise((3, 12, 24, 48)):
        layers += [nn.Conv2d(before, after, 3, 2, 1), nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Dropout(0.2))


def _small_mlp(seen: Tensor) -> nn.Sequential:
    return nn.Sequential(
        nn.BatchNorm1d(seen.shape[1]), nn.Linear(seen.shape[1], 128), nn.ReLU(), nn.Dropout(0.2)
    )


def solves(
    task: Task,
    protection: Protection,
    part: Part | None,
    train: Images,
    test: Images,
    epochs: int,
    batch: int = 16,
    seed: int = 0,
    draws: int = 2,
) -> list[Score]:
    """Train a pretext on what a probe sees of some photographs, and test it on others.

    Args:
        task: The pretext.
        protection: How patches are cut.
        part: What is seen of a patch; None for all.
        train: (N, K, S, S, 3) uint8, K views of each photograph.
        test: (M, S, S, 3) uint8, of other photographs.
        epochs: Passes over the training views.
        batch: Views in a batch.
        seed: Of networks, order and cuts.
        draws: Times that each photograph is tested, cut anew each time.

    Returns:
        For each of the task's scores.
    """
    torch.manual_seed(seed)
    images, held_out = _tensor(train.reshape(-1, *train.shape[2:])), _tensor(test)
    patches = task.patches(images.shape[-1], protection)
    encoder = Probe(part, patches.side)
    pretext = task.make(encoder, patches)
    steps = epochs * (len(images) // batch)
    optimizer = torch.optim.AdamW([*encoder.parameters(), *pretext.parameters()], weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3e-3, total_steps=steps)
    for _ in range(epochs):
        for chosen in torch.randperm(len(images))[: len(images) // batch * batch].split(batch):
            optimizer.zero_grad()
            pretext(encoder, [images[chosen]])[0].backward()
            optimizer.step()
            schedule.step()
    encoder.eval()  # the pretext is left in training, which draws its cuts anew each time
    groups = held_out[: len(held_out) // task.group * task.group].split(task.group)
    with torch.no_grad():
        found = [[pretext(encoder, [group])[1] for group in groups] for _ in range(draws)]
    return [
        _score(torch.tensor([[float(each[name]) for each in draw] for draw in found]).mean(dim=0))
        for name in task.scores
    ]


def hides(task: Task, protection: Protection, part: Part | None, views: Images) -> bool:
    """Whether a part of all patches is one and the same, up to rounding."""
    if part is None:
        return False
    seen = part(task.patches(views.shape[-2], protection)(_tensor(views[:, -1])).flatten(0, 1))
    return bool(seen.std(dim=0).max() < 1e-3)


def cross_fitted(
    task: Task, protection: Protection, part: Part | None, views: Images, epochs: int
) -> list[Score]:
    """Every photograph is held out once. The last view of each is the one to test on."""
    one, other = halves(len(views))
    both = [
        solves(task, protection, part, views[a, :-1], views[b, -1], epochs)
        for a, b in ((one, other), (other, one))
    ]
    result = []
    for scores in zip(*both, strict=True):
        accuracies, errors = zip(*scores, strict=True)
        result.append(Score(float(np.mean(accuracies)), float(np.hypot(*errors) / 2)))
    return result


# --- a solver that matches edges


def unlikeness(first: Tensor, second: Tensor, shifts: int) -> Tensor:
    """How badly one edge goes on in another, at the best of several shifts along it.

    Args:
        first: (..., 3, s).
        second: (..., 3, s).
        shifts: Largest shift, in pixels.

    Returns:
        (...) mean squared difference.
    """
    side = first.shape[-1]
    found = []
    for shift in range(-shifts, shifts + 1):
        one = first[..., max(0, shift) : side + min(0, shift)]
        two = second[..., max(0, -shift) : side + min(0, -shift)]
        found.append((one - two).square().mean(dim=(-2, -1)))
    return torch.stack(found).amin(dim=0)


def side_by_side(patches: Tensor, shifts: int) -> tuple[Tensor, Tensor]:
    """How badly every patch goes on in every other.

    Args:
        patches: (B, M, 3, s, s).
        shifts: See :func:`unlikeness`.

    Returns:
        (B, M, M) of patch j to the right of patch i; (B, M, M) of patch j below it.
    """
    left, right = patches[..., 0], patches[..., -1]  # (B, M, 3, s)
    above, below = patches[..., 0, :], patches[..., -1, :]
    return (
        unlikeness(right[:, :, None], left[:, None], shifts),
        unlikeness(below[:, :, None], above[:, None], shifts),
    )


def match_neighbour(patches: Tensor, shifts: int) -> Tensor:
    """Share of the four direct neighbours that are put on the right side of the middle patch, (B,)."""
    beside, beneath = side_by_side(patches, shifts)
    neighbours = torch.tensor([1, 3, 5, 7])  # above, left, right, below
    unlike = torch.stack(
        [
            beneath[:, neighbours, 4],
            beside[:, neighbours, 4],
            beside[:, 4, neighbours],
            beneath[:, 4, neighbours],
        ]
    )  # (side, B, neighbour)
    return (unlike.argmin(dim=0) == torch.arange(4)).float().mean(dim=1)


def match_puzzle(patches: Tensor, shifts: int, permutations: int = 100) -> Tensor:
    """Whether the puzzle is put together right, among all permutations of the set, (B,)."""
    table = torch.from_numpy(distant_permutations(permutations))  # (P, 9), place -> patch
    targets = torch.randint(permutations, (len(patches),))
    shuffled = patches.gather(1, table[targets][:, :, None, None, None].expand_as(patches))
    beside, beneath = side_by_side(shuffled, shifts)
    place = table.argsort(dim=1)  # (P, 9), in which place the patch of each cell is shown
    cells = torch.arange(9).view(3, 3)
    pairs = ((beside, cells[:, :-1], cells[:, 1:]), (beneath, cells[:-1], cells[1:]))
    total = sum(
        unlike[:, place[:, one.flatten()], place[:, two.flatten()]].sum(dim=-1) for unlike, one, two in pairs
    )
    assert isinstance(total, Tensor)
    return (total.argmin(dim=1) == targets).float()


def match_row_below(patches: Tensor, shifts: int, below: int) -> Tensor:
    """Share of the patches ``below`` rows down that are found among all such rows of the photograph, (B,)."""
    grid = round(patches.shape[1] ** 0.5)
    _, beneath = side_by_side(patches, shifts)
    lower = beneath[:, : -below * grid, below * grid :]  # (B, contexts, candidates)
    return (lower.argmin(dim=2) == torch.arange(lower.shape[1])).float().mean(dim=1)


@dataclass(frozen=True)
class Matching:
    """A solver of one pretext, and what it may at least expect."""

    match: Callable[..., Tensor]
    chance: tuple[float, float]  # without and with protection
    touching: tuple[int, float]  # grid and gap without protection: edges meet
    unprotected: dict[str, int]  # further arguments, without protection
    protected: dict[str, int]


MATCHING = {
    "relative_patch": Matching(match_neighbour, (1 / 4, 1 / 4), (3, 0.0), {}, {}),
    "jigsaw": Matching(match_puzzle, (1 / 100, 1 / 100), (3, 0.0), {}, {}),
    # Without protection the rows just below; with it the first that is predicted.
    "cpc": Matching(match_row_below, (1 / 12, 1 / 15), (4, 0.0), {"below": 1}, {"below": 2}),
}


def matched(pretext: str, protection: Protection, views: Images, seed: int = 0) -> Score:
    """Solve a pretext by matching edges.

    Args:
        pretext: Its name.
        protection: How patches are cut.
        views: (N, S, S, 3) uint8.
        seed: Of cuts and puzzles.
    """
    torch.manual_seed(seed)
    matching, images = MATCHING[pretext], _tensor(views)
    patches = TASKS[pretext].patches(images.shape[-1], protection)
    if not protection.apart:
        grid, gap = matching.touching
        options = {"normalise": protection.normalise, "level": protection.level}
        patches = Patches(images.shape[-1], grid, gap, 0.0, **options)
    shifts = -(-patches.room * patches.side // patches.cut)
    more = matching.protected if protection.apart else matching.unprotected
    return _score(torch.cat([matching.match(patches(each), shifts, **more) for each in images.split(32)]))


def _tensor(images: Images) -> Tensor:
    return normalise(torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2))


def _score(values: Tensor) -> Score:
    return Score(float(values.mean()), float(values.std() / len(values) ** 0.5))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pretext", choices=TASKS, required=True)
    parser.add_argument("--idrid", type=Path, help="folder of IDRiD; only the demo data without it")
    parser.add_argument("--size", type=int, default=96, help="side of the views in px")
    parser.add_argument("--count", type=int, default=400, help="number of demo photographs")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--folder", type=Path, help="for the stores; a temporary one without it")
    parser.add_argument("--no-flips", action="store_true", help="views are never mirrored")
    parser.add_argument(
        "--mixed",
        action="store_true",
        help="the patches of a view are those of as many photographs; no edges",
    )
    parser.add_argument("--only", nargs="*", default=list(PROTECTIONS), choices=PROTECTIONS)
    parser.add_argument("--parts", nargs="*", default=["edges", *PARTS], choices=["edges", *PARTS])
    chosen: Any = parser.parse_args(arguments)
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    folder = chosen.folder or Path(tempfile.mkdtemp())
    sources: list[Any] = [Demo(folder / "demo", count=chosen.count, size=256)]
    sources += [IDRiD(chosen.idrid)] if chosen.idrid else []
    task = TASKS[chosen.pretext]
    kinds = {name: PROTECTIONS[name] for name in chosen.only}
    if chosen.no_flips:
        upright = SquareView(horizontal_flip=False)
        kinds = {n: replace(k, view=upright) if k.view is square else k for n, k in kinds.items()}
    if chosen.mixed:
        task = replace(task, cut=Mixed, group=16)
        chosen.parts = [name for name in chosen.parts if name != "edges"]
    chances = " / ".join(f"{100 * each:.1f}" for each in task.chance)
    touching, apart = (f"{100 * each:.1f}" for each in MATCHING[chosen.pretext].chance)
    print(f"chance: {chances}; edges {apart} ({touching} where they touch)")
    print(f"| data | part | {' | '.join(kinds)} |\n|---|---|{'---|' * len(kinds)}")
    for source in sources:
        store = prepare(source, folder / "stores", image_size=chosen.size)
        views = {view: views_of(store, view, [1, 2, 3]) for view in {kind.view for kind in kinds.values()}}
        for name in chosen.parts:
            print(f"| {source.name} | {name} |", end="", flush=True)
            for kind in kinds.values():
                seen = views[kind.view]
                if name == "edges":
                    cell = str(matched(chosen.pretext, kind, seen[:, -1]))
                elif hides(task, kind, PARTS[name], seen):
                    cell = "the same for all"
                else:
                    cell = " / ".join(map(str, cross_fitted(task, kind, PARTS[name], seen, chosen.epochs)))
                print(f" {cell} |", end="", flush=True)
            print()


if __name__ == "__main__":
    main()
