"""Measure how much of the heat of an explanation falls on the lesions of the demo data, which are known.

    python benchmarks/heat_on_lesions.py RUN [--subset val] [--targets expected referable grade]

The photographs are those of one subset of the run that have lesions. The masks, ``lesions/IMAGE_ID.png``,
are transformed like the photographs. For each map, inside the disc:

- gain: mean share of the heat on lesions divided by their mean share of the area. 1 is chance. A photograph
  without heat counts as chance. 95 % interval by bootstrap of patients.
- others: the same with the lesions of all other photographs, because lesions have usual places.
- points: how often the hottest pixel is within 3 % of the side of a lesion. The chance level is the share of
  the disc that is as near to a lesion.
- random: Spearman correlation with the heat of the same network with random weights, and its gain (Adebayo
  et al., "Sanity Checks for Saliency Maps", NeurIPS 2018). Heat that does not depend on the weights explains
  nothing.

The second table has maps that do not depend on the grader: distance from the centre, darker than the
surroundings, brighter, and both; and the lesions themselves at the resolution of several cell sizes, which
bound the gain of a map. Prints the tables of docs/explanations.md.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
import torch.nn.functional as F
from common import make_parser
from omegaconf import OmegaConf
from scipy.stats import spearmanr

from drgrade.data.geometry import Disc, crop_disc, recorded_mask
from drgrade.explanation.explainer import TARGETS, Explainer, available_maps
from drgrade.models.grading_model import GradingModel, model_settings
from drgrade.prediction.checkpoint import TrainedModel, load_model
from drgrade.prediction.grader import Grader
from drgrade.synthetic.lesions import Lesion
from drgrade.training.build import instantiate, make_photographs

Floats = npt.NDArray[np.float64]

NEAR = 0.03
RESAMPLES = 2000
BATCH = 20


@dataclass(frozen=True)
class Lesions:
    """Photographs with known lesions.

    Attributes:
        pixels: Photographs, (N, S, S, 3) uint8.
        masks: Share of each pixel that is lesion, (N, S, S).
        discs: Recorded area, (N, S, S) bool.
        groups: Patients, (N,).
        grades: Grades, (N,).
    """

    pixels: npt.NDArray[np.uint8]
    masks: Floats
    discs: npt.NDArray[np.bool_]
    groups: npt.NDArray[np.str_]
    grades: npt.NDArray[np.int64]


def known_lesions(trained: TrainedModel, subset: str) -> Lesions:
    """Load the photographs of a subset that have lesions."""
    photographs = make_photographs(trained.config)
    (store,) = photographs.stores
    split = pd.read_csv(trained.folder / "split.csv").query("subset == @subset").set_index("image_id")
    rows = store.manifest[store.manifest["image_id"].isin(split.index)]
    masks, discs, kept = [], [], []
    for row, facts in rows.iterrows():
        mask = cv2.imread(
            str(photographs.source.root / f"lesions/{facts.image_id}.png"), cv2.IMREAD_GRAYSCALE
        )
        assert mask is not None
        disc = Disc(
            facts.circle_x, facts.circle_y, facts.circle_r, 0, 0, facts.width, facts.height, facts.stretch
        )
        marked = np.repeat((mask > Lesion.NONE)[..., None] * np.uint8(255), 3, axis=2)
        recorded = recorded_mask(disc, store.image_size)
        share = crop_disc(marked, disc, store.image_size)[..., 0] / 255 * recorded
        if share.any():
            masks.append(share)
            discs.append(recorded)
            kept.append(row)
    ids = store.manifest.loc[kept, "image_id"]
    return Lesions(
        np.array(store.images[kept]),
        np.stack(masks),
        np.stack(discs),
        split.loc[ids, "group"].to_numpy(str),
        split.loc[ids, "grade"].to_numpy(int),
    )


def heats(trained: TrainedModel, known: Lesions, target: str) -> dict[str, Floats]:
    """Compute every map of a trained run, (N, S, S) each, 0 outside the discs."""
    grader = Grader([trained], device="cpu")
    size = trained.preparation.image_size
    explainer = Explainer([trained.model], size, available_maps([trained.model], size)[1:], target)
    parts = []
    for start in range(0, len(known.pixels), BATCH):
        pixels = known.pixels[start : start + BATCH]
        parts.append(explainer.heat(pixels, grader.grade(pixels).grades.tolist()))
    return {name: np.concatenate([part[name] for part in parts]) * known.discs for name in parts[0]}


def baseline_maps(known: Lesions) -> dict[str, Floats]:
    """Compute maps that do not depend on the grader."""
    side = known.pixels.shape[1]
    place = (np.arange(side) + 0.5) / (side / 2) - 1
    centre = np.exp(-(place[:, None] ** 2 + place**2) / (2 * 0.5**2))
    green = known.pixels[..., 1].astype(np.float32)
    around = np.stack([cv2.GaussianBlur(each, (0, 0), side / 24) for each in green])
    inner = np.stack([cv2.erode(each.astype(np.uint8), np.ones((5, 5))) for each in known.discs])
    contrast = (green - around) * inner
    return {
        "near the centre": centre * known.discs,
        "dark": np.maximum(-contrast, 0),
        "bright": np.maximum(contrast, 0),
        "dark or bright": np.abs(contrast),
        **{f"the lesions, cells of {cell} px": coarse(known, cell) for cell in (4, 8, 16, 32)},
    }


def coarse(known: Lesions, cell: int) -> Floats:
    """Return the lesions at the resolution of cells of that many pixels."""
    side = known.masks.shape[1]
    masks = torch.from_numpy(known.masks)[:, None]
    cells = F.adaptive_avg_pool2d(masks, side // cell)
    large = F.interpolate(cells, size=(side, side), mode="bilinear", align_corners=False)
    return np.asarray(large[:, 0].numpy() * known.discs)


def shares(heat: Floats, known: Lesions) -> tuple[Floats, Floats, Floats]:
    """Compute the shares of heat on lesions, of area, and of heat on other photographs' lesions, (N,)."""
    area = known.masks.sum(axis=(1, 2)) / known.discs.sum(axis=(1, 2))
    total = heat.sum(axis=(1, 2))
    spread = np.where(total[:, None, None] > 0, heat, known.discs)
    spread = spread / spread.sum(axis=(1, 2), keepdims=True)
    crossed = np.einsum("iyx,jyx->ij", spread, known.masks)  # heat of i on the lesions of j
    own = crossed.diagonal().copy()
    np.fill_diagonal(crossed, np.nan)
    # A lesion of j outside the disc of i cannot be hit; it is not counted in the area either.
    expected = np.einsum(
        "iyx,jyx->ij", known.discs / known.discs.sum(axis=(1, 2), keepdims=True), known.masks
    )
    np.fill_diagonal(expected, np.nan)
    return own, area, np.nansum(crossed, axis=1) / np.nansum(expected, axis=1)


def interval(own: Floats, area: Floats, groups: npt.NDArray[np.str_]) -> tuple[float, float]:
    """Compute the 95 % interval of the gain by a bootstrap of patients."""
    rng = np.random.default_rng(0)
    numbers = np.unique(groups, return_inverse=True)[1]
    count = numbers.max() + 1
    of_group = np.stack([np.bincount(numbers, values) for values in (own, area)])
    drawn = rng.multinomial(count, np.full(count, 1 / count), size=RESAMPLES)  # (R, groups)
    heat, lesions = drawn @ of_group[0], drawn @ of_group[1]
    low, high = np.quantile(heat / lesions, (0.025, 0.975))
    return float(low), float(high)


def pointed(heat: Floats, known: Lesions) -> tuple[float, float]:
    """Compute how often the hottest pixel is near a lesion, and the chance level."""
    reach = max(1, round(NEAR * heat.shape[1]))
    disk = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach + 1, 2 * reach + 1))
    near = np.stack([cv2.dilate((mask > 0).astype(np.uint8), disk) > 0 for mask in known.masks]) & known.discs
    hottest = heat.reshape(len(heat), -1).argmax(axis=1)
    hit = near.reshape(len(near), -1)[np.arange(len(near)), hottest]
    chance = near.sum(axis=(1, 2)) / known.discs.sum(axis=(1, 2))
    hit = np.where(heat.any(axis=(1, 2)), hit, chance)
    return float(hit.mean()), float(chance.mean())


def similarity(one: Floats, other: Floats, known: Lesions) -> float:
    """Compute the mean Spearman correlation inside the discs of the photographs with heat."""
    found = [
        spearmanr(a[disc], b[disc]).statistic
        for a, b, disc in zip(one, other, known.discs, strict=True)
        if np.ptp(a[disc]) > 0 and np.ptp(b[disc]) > 0
    ]
    return float(np.mean(found)) if found else float("nan")


def with_random_weights(trained: TrainedModel, seed: int) -> TrainedModel:
    """Return the same network with random weights."""
    torch.manual_seed(seed)
    encoder, head = model_settings(OmegaConf.to_container(trained.config))
    built = instantiate(OmegaConf.create(encoder))
    model = GradingModel(built, instantiate(OmegaConf.create(head))(built.num_features))
    return replace(trained, model=model.eval())


def row(name: str, heat: Floats, known: Lesions) -> str:
    """Format the figures of one map."""
    own, area, others = shares(heat, known)
    low, high = interval(own, area, known.groups)
    hit, _ = pointed(heat, known)
    cold = int((~heat.any(axis=(1, 2))).sum())
    return (
        f"| {name} | {own.mean() / area.mean():.2f} ({low:.2f}-{high:.2f}) | {np.mean(others):.2f} "
        f"| {hit:.2f} | {cold} |"
    )


def report(trained: TrainedModel, known: Lesions, targets: Sequence[str], seeds: int) -> None:
    """Print the table of each target."""
    area = known.masks.sum(axis=(1, 2)) / known.discs.sum(axis=(1, 2))
    print(
        f"{trained.folder.name}: {len(known.pixels)} photographs with lesions, which cover {area.mean():.2%} "
        f"of the disc; by chance the hottest pixel is near a lesion in {pointed(known.masks, known)[1]:.2f}"
    )
    for target in targets:
        found = heats(trained, known, target)
        random = [heats(with_random_weights(trained, seed), known, target) for seed in range(seeds)]
        print(f"\ntarget={target}\n")
        print("| map | gain | others | points | no heat | random: correlation | random: gain |")
        print("|---|---|---|---|---|---|---|")
        for name, heat in found.items():
            print(row(name, heat, known) + _beside_random(heat, [each[name] for each in random], known))
    print("\n| independent of the grader | gain | others | points | no heat |\n|---|---|---|---|---|")
    for name, heat in baseline_maps(known).items():
        print(row(name, heat, known))


def _beside_random(heat: Floats, random: Sequence[Floats], known: Lesions) -> str:
    correlation = np.nanmean([similarity(heat, each, known) for each in random])
    gains = [own.mean() / area.mean() for own, area, _ in (shares(each, known) for each in random)]
    return f" {correlation:.2f} | {np.mean(gains):.2f} |"


def main() -> None:
    """Measure and print."""
    parser = make_parser(__doc__)
    parser.add_argument("run", type=Path, help="folder of a grading run on the demo data")
    parser.add_argument("--subset", default="test", choices=("train", "val", "test"))
    parser.add_argument("--targets", nargs="+", default=list(TARGETS), choices=TARGETS)
    parser.add_argument("--seeds", type=int, default=3, help="number of networks with random weights")
    args = parser.parse_args()
    trained = load_model(args.run)
    report(trained, known_lesions(trained, args.subset), args.targets, args.seeds)


if __name__ == "__main__":
    main()
