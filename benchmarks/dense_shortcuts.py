"""Measure how much of the map that a pretext predicts is predictable without looking at the retina.

For colorization, inpainting and saliency: the share of the variance of held-out maps that is explained by
the place alone (the mean map of other photographs) and by the silhouette (a ridge regression on where the
view is not black), for the prepared photograph and for the views of conf/pretext. Prints the tables of
docs/pretexts/saliency.md and docs/pretexts/inpainting.md:

    python benchmarks/dense_shortcuts.py --idrid ../shared/data/idrid
"""

from collections.abc import Callable

import cv2
import hydra
import numpy as np
import torch
from common import Score, add_data_options, halves, make_parser, open_sources, print_header, print_row
from omegaconf import OmegaConf
from rotation_shortcuts import Images, View, views_of, whole_crop
from torch import Tensor

from drgrade.config import CONF
from drgrade.data.store import Store, prepare
from drgrade.pretext.colorization import ColourBins
from drgrade.pretext.dense import cell_means, rgb_to_lab
from drgrade.pretext.inpainting import draw_holes, mean_over, smooth_surface
from drgrade.pretext.saliency import frequency_tuned, stretch

CELLS = 8
"""Side of the map of the silhouette."""

RIDGE = 1e-2
"""Penalty, as a share of the largest eigenvalue."""


# --- targets: (N, S, S, 3) uint8 -> (N, C, h, w)


def _pixels(views: Images) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(views)).movedim(-1, 1).float() / 255


def saliency(views: Images) -> Tensor:
    """Return the mean saliency of cells of 4 x 4 pixels."""
    return cell_means(stretch(frequency_tuned(_pixels(views)))[:, None], 4)


def colours(views: Images) -> Tensor:
    """Return the mean a and b (CIELAB) of cells of 4 x 4 pixels."""
    return cell_means(rgb_to_lab(_pixels(views))[:, 1:], 4)


def offsets(views: Images) -> Tensor:
    """Return the difference from a smooth surface, which inpainting predicts, in cells of 4 x 4 pixels."""
    pixels = _pixels(views)
    everywhere = torch.ones_like(pixels[:, :1], dtype=torch.bool)
    return cell_means(pixels - smooth_surface(pixels, everywhere, 2), 4)


def residuals(views: Images) -> Tensor:
    """Return the spectral residual (Hou and Zhang, CVPR 2007), which no pretext uses, in cells of 4 x 4."""
    grey = torch.nn.functional.interpolate(
        _pixels(views).mean(dim=1, keepdim=True), (64, 64), mode="bilinear", antialias=True
    )[:, 0]
    spectrum = torch.fft.fft2(grey)
    logs = (spectrum.abs() + 1e-8).log()
    around = torch.nn.functional.avg_pool2d(
        torch.nn.functional.pad(logs[:, None], (1, 1, 1, 1), mode="circular"), 3, 1
    )[:, 0]
    found = torch.fft.ifft2(torch.polar((logs - around).exp(), spectrum.angle())).abs().square().numpy()
    blurred = np.stack([cv2.GaussianBlur(each, (0, 0), 2.5) for each in found])
    return cell_means(stretch(1e6 * torch.from_numpy(blurred))[:, None], 4)


MAPS: dict[str, Callable[[Images], Tensor]] = {
    "colorization": colours,
    "inpainting": offsets,
    "saliency": saliency,
}

# --- predictors: (N, S, S, 3) uint8 -> (N, features)


def silhouettes(views: Images) -> Tensor:
    """Return the share of each of 8 x 8 parts of a view that is not black."""
    shown = torch.from_numpy((views.max(axis=-1) > 8).astype(np.float32))[:, None]
    return torch.nn.functional.adaptive_avg_pool2d(shown, CELLS).flatten(1)


def place(views: Images) -> Tensor:
    """Return a constant: the prediction is the mean of each place."""
    return torch.zeros(len(views), 1)


CLUES: dict[str, Callable[[Images], Tensor]] = {"place": place, "silhouette": silhouettes}


def _regression(clues: Tensor, maps: Tensor) -> Callable[[Tensor], Tensor]:
    """Fit a ridge regression with an intercept of (N, M) on (N, F)."""
    mean, middle = clues.mean(dim=0), maps.mean(dim=0)
    centred = clues - mean
    gram = centred.T @ centred
    penalty = RIDGE * torch.linalg.eigvalsh(gram)[-1].clamp(min=1e-6) * torch.eye(len(gram))
    weights = torch.linalg.solve(gram + penalty, centred.T @ (maps - middle))
    return lambda new: middle + (new - mean) @ weights


def explained(clues: Tensor, maps: Tensor) -> Score:
    """Compute the share of the variance that is explained; every photograph is held out once.

    Args:
        clues: Predictors, (N, F).
        maps: Targets, (N, C, h, w). Their variance is about one constant for each channel.
    """
    left, total = torch.zeros(len(maps)), torch.zeros(len(maps))
    one, other = (torch.from_numpy(rows) for rows in halves(len(maps)))
    for train, test in ((one, other), (other, one)):
        predicted = _regression(clues[train], maps[train].flatten(1))(clues[test]).view_as(maps[test])
        constant = maps[train].mean(dim=(0, 2, 3), keepdim=True)
        left[test] = (maps[test] - predicted).square().sum(dim=(1, 2, 3))
        total[test] = (maps[test] - constant).square().sum(dim=(1, 2, 3))
    return _share(left, total)


def bin_accuracies(maps: Tensor) -> tuple[float, float]:
    """Compute the accuracy of the most common bin, and of the most common bin at each place.

    Args:
        maps: Channels a and b, (N, 2, h, w).
    """
    nearest = ColourBins(10, 5, 1).encode(maps.movedim(1, -1))[0][..., 0]  # (N, h, w)
    one, other = halves(len(maps))
    right: list[Tensor] = []
    for train, test in ((one, other), (other, one)):
        common, local = nearest[train].flatten().mode().values, nearest[train].mode(dim=0).values
        right.append(torch.stack([(nearest[test] == told).float().mean() for told in (common, local)]))
    always, placed = torch.stack(right).mean(dim=0).tolist()
    return always, placed


def explained_by_lightness(views: Images) -> Score:
    """Explain colours by a polynomial in the lightness of the cell and in that of the view."""
    lightness = cell_means(rgb_to_lab(_pixels(views))[:, :1], 4)[:, 0] / 100  # (N, h, w)
    whole = lightness.mean(dim=(1, 2), keepdim=True).expand_as(lightness)
    powers = [lightness**i * whole**j for i in range(4) for j in range(4) if 0 < i + j <= 3]
    cells = torch.stack(powers, dim=-1)  # (N, h, w, 9)
    maps = colours(views).movedim(1, -1)  # (N, h, w, 2)
    left, total = torch.zeros(len(maps)), torch.zeros(len(maps))
    one, other = halves(len(maps))
    for train, test in ((one, other), (other, one)):
        known = torch.cat([torch.ones_like(cells[..., :1]), cells], dim=-1)
        weights = torch.linalg.lstsq(known[train].flatten(0, 2), maps[train].flatten(0, 2)).solution
        left[test] = (maps[test] - known[test] @ weights).square().sum(dim=(1, 2, 3))
        total[test] = (maps[test] - maps[train].mean(dim=(0, 1, 2))).square().sum(dim=(1, 2, 3))
    return _share(left, total)


def explained_by_smooth_fill(views: Images) -> Score:
    """Explain holes by a smooth surface through their surroundings."""
    pixels, size = _pixels(views), views.shape[1]
    holes = draw_holes(len(views), (size, size), 3, (0.2, 0.4), torch.device("cpu"), _seeded(0))[:, None]
    mean, surface = (smooth_surface(pixels, ~holes, degree) for degree in (0, 2))
    total, left = (mean_over(holes, (pixels - told).square()).mean(dim=1) for told in (mean, surface))
    return _share(left, total)


def _seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _share(left: Tensor, total: Tensor) -> Score:
    """Compute the explained share from the residual and the total variance of each photograph, (N,)."""
    share = 1 - float(left.sum() / total.sum())
    spread = (left - (1 - share) * total).std() / total.mean() / len(total) ** 0.5
    return Score(share, float(spread))


def never_recorded(store: Store, view: View, seeds: list[int], size: int) -> float:
    """Compute the share of the pixels in the holes of inpainting that the camera did not record.

    The photographs are replaced by ones that are white outside the recorded disc and at most half as bright
    inside it.
    """
    offset = np.arange(size) - (size - 1) / 2
    radius = np.hypot(offset[:, None], offset[None, :]) / (size / 2)
    hidden = white = 0
    for i, (image, clear) in enumerate(zip(store.images, store.manifest["clear"], strict=True)):
        marked = np.where((radius <= clear)[..., None], image // 2, np.uint8(255))
        for seed in seeds:
            seen = view(marked, float(clear), 1000 * i + seed)
            drawn = _seeded(1000 * i + seed)
            hole = draw_holes(1, seen.shape[:2], 3, (0.2, 0.4), torch.device("cpu"), drawn)[0].numpy()
            hidden += int(hole.sum())
            white += int((seen.max(axis=-1)[hole] > 127).sum())
    return white / hidden


def configured(pretext: str) -> View:
    """Return the views of ``conf/pretext/NAME.yaml``."""
    view: View = hydra.utils.instantiate(OmegaConf.load(CONF / "pretext" / f"{pretext}.yaml").views)
    return view


def report(store: Store, name: str) -> list[str]:
    """Print the lines of the table for one data set, and return the figures that follow the table."""
    further = []
    for pretext, maps in (MAPS | {"saliency, spectral residual": residuals}).items():
        cells = []
        for view in (whole_crop, configured(pretext.split(",")[0])):
            views = views_of(store, view, [1])[:, 0]
            targets = maps(views)
            cells += [explained(clue(views), targets) for clue in CLUES.values()]
            if pretext == "colorization":
                always, by_place = bin_accuracies(targets)
                further += [
                    f"most common bin {always:.3f}, of its place {by_place:.3f}",
                    f"% of the colours explained by lightness: {explained_by_lightness(views)}",
                ]
            if pretext == "inpainting":
                share = never_recorded(store, view, [1], store.image_size)
                further += [
                    f"% of the holes never recorded: {100 * share:.1f}",
                    f"% of the holes explained by a smooth fill: {explained_by_smooth_fill(views)}",
                ]
        print_row(name, pretext, *cells)
    return [f"{name}: {line}" for line in further]


def main() -> None:
    parser = make_parser(__doc__)
    add_data_options(parser, size=96)
    arguments = parser.parse_args()
    further: list[str] = []
    print_header("data", "pretext", *(f"{view}: {clue}" for view in ("crop", "views") for clue in CLUES))
    with open_sources(arguments) as (sources, stores):
        for source in sources:
            further += report(prepare(source, stores, image_size=arguments.size), source.name)
    print("\nFirst of the crop, then of the views:", *further, sep="\n")


if __name__ == "__main__":
    main()
