"""Measure how well the pretexts about patches can be solved without looking at the retina.

A pretext is trained on some photographs with an encoder that sees only one part of each patch, and tested
on other photographs. Also, patches are arranged without any training by matching edges, as a jigsaw solver
does. Prints the tables of docs/pretexts/{relative_patch,jigsaw,cpc}.md:

    python benchmarks/patch_shortcuts.py --pretext jigsaw --idrid ../shared/data/idrid
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from common import Score, add_data_options, halves, make_parser, open_sources, print_header, print_row
from rotation_shortcuts import Images, View, views_of, whole_crop
from torch import Tensor, nn
from torch.nn import functional

from drgrade.data.store import prepare
from drgrade.data.transforms import SquareView, normalise
from drgrade.models.encoder import Encoder
from drgrade.pretext.base import Pretext
from drgrade.pretext.cpc import CPC
from drgrade.pretext.jigsaw import Jigsaw, distant_permutations
from drgrade.pretext.patches import Patches
from drgrade.pretext.relative_patch import RelativePatch

Part = Callable[[Tensor], Tensor]

# --- parts: (N, 3, s, s) -> (N, F)


def mean_colour(patches: Tensor) -> Tensor:
    """Return the mean of each colour."""
    return patches.mean(dim=(-2, -1))


def four_colours(patches: Tensor) -> Tensor:
    """Return the mean colour of each quarter: light and its gradient without structure."""
    return functional.avg_pool2d(patches, patches.shape[-1] // 2).flatten(1)


def border(patches: Tensor, width: float = 0.125) -> Tensor:
    """Return the pixels of the outermost ring; ``width`` is a share of the side."""
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

# --- protections


@dataclass(frozen=True)
class Protection:
    """How views are made and how patches are cut."""

    view: View
    apart: bool  # gap and jitter
    normalise: bool
    level: bool
    colour_drop: float = 0.0


class Mixed(Patches):
    """Patches of which patch m comes from the m-th next photograph of the batch, so that no edges match."""

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
    """A pretext and the settings of its measurement."""

    make: Callable[..., Pretext]
    grid: int
    gap: float  # with protection
    scores: tuple[str, ...]
    chance: tuple[float, ...]
    group: int  # photographs that are tested together
    cut: type[Patches] = Patches

    def patches(self, size: int, protection: Protection) -> Patches:
        """Return the patches of views of a size."""
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

# --- a trained probe


class Probe(Encoder):
    """Small network that sees one part of a patch and keeps the position of features."""

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
    """Train a pretext with a probe on some photographs and test it on others.

    Args:
        task: The pretext.
        protection: How patches are cut.
        part: Visible part of a patch; None for the whole patch.
        train: K views of each photograph, (N, K, S, S, 3) uint8.
        test: Views of other photographs, (M, S, S, 3) uint8.
        epochs: Passes over the training views.
        batch: Views in a batch.
        seed: Seed of networks, order and cuts.
        draws: Number of tests of each photograph, each with new cuts.

    Returns:
        One score for each of ``task.scores``.
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
    encoder.eval()  # the pretext stays in training mode, in which it draws new cuts each time
    groups = held_out[: len(held_out) // task.group * task.group].split(task.group)
    with torch.no_grad():
        found = [[pretext(encoder, [group])[1] for group in groups] for _ in range(draws)]
    return [
        _score(torch.tensor([[float(each[name]) for each in draw] for draw in found]).mean(dim=0))
        for name in task.scores
    ]


def hides(task: Task, protection: Protection, part: Part | None, views: Images) -> bool:
    """Return whether a part is the same in all patches, up to rounding."""
    if part is None:
        return False
    seen = part(task.patches(views.shape[-2], protection)(_tensor(views[:, -1])).flatten(0, 1))
    return bool(seen.std(dim=0).max() < 1e-3)


def cross_fitted(
    task: Task, protection: Protection, part: Part | None, views: Images, epochs: int
) -> list[Score]:
    """Compute cross-fitted scores: every photograph is tested once, on its last view."""
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
    """Compute how badly one edge continues in another, at the best of several shifts along it.

    Args:
        first: Edge of a patch, (..., 3, s).
        second: Edge of another patch, (..., 3, s).
        shifts: Largest shift in pixels.

    Returns:
        Mean squared difference, (...).
    """
    side = first.shape[-1]
    found = []
    for shift in range(-shifts, shifts + 1):
        one = first[..., max(0, shift) : side + min(0, shift)]
        two = second[..., max(0, -shift) : side + min(0, -shift)]
        found.append((one - two).square().mean(dim=(-2, -1)))
    return torch.stack(found).amin(dim=0)


def side_by_side(patches: Tensor, shifts: int) -> tuple[Tensor, Tensor]:
    """Compute how badly every patch continues in every other.

    Args:
        patches: Patches of B views, (B, M, 3, s, s).
        shifts: See :func:`unlikeness`.

    Returns:
        Two tables (B, M, M): patch j to the right of patch i, and patch j below patch i.
    """
    left, right = patches[..., 0], patches[..., -1]  # (B, M, 3, s)
    above, below = patches[..., 0, :], patches[..., -1, :]
    return (
        unlikeness(right[:, :, None], left[:, None], shifts),
        unlikeness(below[:, :, None], above[:, None], shifts),
    )


def match_neighbour(patches: Tensor, shifts: int) -> Tensor:
    """Return the share of the four direct neighbours that are placed correctly, (B,)."""
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
    """Return whether the best of all permutations of the set is the right one, (B,)."""
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
    """Return the share of the patches ``below`` rows down that are found among all such patches, (B,)."""
    grid = round(patches.shape[1] ** 0.5)
    _, beneath = side_by_side(patches, shifts)
    lower = beneath[:, : -below * grid, below * grid :]  # (B, contexts, candidates)
    return (lower.argmin(dim=2) == torch.arange(lower.shape[1])).float().mean(dim=1)


@dataclass(frozen=True)
class Matching:
    """A solver of one pretext by matching edges, and its chance level."""

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
        seed: Seed of cuts and puzzles.
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
    parser = make_parser(__doc__)
    add_data_options(parser, size=96)
    parser.add_argument("--pretext", choices=TASKS, required=True)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--no-flips", action="store_true", help="do not mirror views")
    parser.add_argument(
        "--mixed", action="store_true", help="take each patch of a view from another photograph; no edges"
    )
    parser.add_argument("--only", nargs="*", default=list(PROTECTIONS), choices=PROTECTIONS)
    parser.add_argument("--parts", nargs="*", default=["edges", *PARTS], choices=["edges", *PARTS])
    chosen: Any = parser.parse_args(arguments)
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
    print_header("data", "part", *kinds)

    def cell(part: str, protection: Protection, views: Images) -> str:
        if part == "edges":
            return str(matched(chosen.pretext, protection, views[:, -1]))
        if hides(task, protection, PARTS[part], views):
            return "the same for all"
        return " / ".join(map(str, cross_fitted(task, protection, PARTS[part], views, chosen.epochs)))

    with open_sources(chosen) as (sources, stores):
        for source in sources:
            store = prepare(source, stores, image_size=chosen.size)
            views = {
                view: views_of(store, view, [1, 2, 3]) for view in {kind.view for kind in kinds.values()}
            }
            for name in chosen.parts:
                print_row(source.name, name, *(cell(name, kind, views[kind.view]) for kind in kinds.values()))


if __name__ == "__main__":
    main()
