"""Saliency prediction: predict a map of visual saliency that is computed without labels.

The map is frequency-tuned saliency (Achanta et al., CVPR 2009).
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from drgrade.models.encoder import Encoder, to_float32
from drgrade.pretext.base import Pretext
from drgrade.pretext.dense import Decoder, cell_means, pixels, rgb_to_lab

_BINOMIAL = (1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16)
"""Separable filter of the paper, which removes noise and the finest structures."""

_NOTICEABLE = 1.0
"""An invisible difference in Lab units. A map of smaller range is not stretched to the whole range."""


class Saliency(Pretext):
    """Predict the saliency map of a view from the encoder's feature map."""

    scores = ("correlation", "l1")

    def __init__(self, encoder: Encoder, image_size: int, stride: int = 4, width: int = 64) -> None:
        """Build the decoder.

        Args:
            encoder: Encoder with a feature map.
            image_size: Side of the views in pixels.
            stride: Pixels of the view per cell of the predicted map.
            width: Channels of the decoder.
        """
        super().__init__()
        self.decoder = Decoder("saliency", encoder, 1, image_size, stride, width)

    def forward(self, encoder: Encoder, views: Sequence[Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the binary cross-entropy of the cells; see :class:`Pretext`.

        ``correlation`` is that of the predicted and the true map, 0 for a constant prediction; ``l1`` is
        their mean absolute difference.
        """
        (images,) = views
        targets = self.targets(images)
        logits = to_float32(self.decoder(encoder.feature_map(images), images)[:, 0])
        loss = functional.binary_cross_entropy_with_logits(logits, targets.to(logits.dtype))
        predicted = logits.detach().sigmoid()
        scores = {
            "correlation": correlations(predicted, targets).mean(),
            "l1": (predicted - targets).abs().mean(),
        }
        return loss, scores

    @torch.no_grad()
    def targets(self, images: Tensor) -> Tensor:
        """Compute the target maps of normalised views (B, 3, H, W), float32 in [0, 1], one value per cell."""
        maps = stretch(frequency_tuned(pixels(images)))
        return cell_means(maps[:, None], self.decoder.stride)[:, 0]


def frequency_tuned(rgb: Tensor) -> Tensor:
    """Compute the distance of each blurred pixel from the mean colour of its image (equation 4 of the paper).

    S(x, y) = || mean of Lab over the image - Lab(x, y) blurred by a 5 x 5 binomial filter ||

    Args:
        rgb: (B, 3, H, W) float32 or float64 in [0, 1]; sides of at least 3 pixels.

    Returns:
        (B, H, W), in units of Lab.
    """
    lab = rgb_to_lab(rgb)
    line = torch.tensor(_BINOMIAL, dtype=lab.dtype, device=lab.device)
    padded = functional.pad(lab, (2, 2, 2, 2), mode="reflect")
    with torch.autocast(lab.device.type, enabled=False):
        blurred = functional.conv2d(padded, line.view(1, 1, 5, 1).expand(3, 1, 5, 1), groups=3)
        blurred = functional.conv2d(blurred, line.view(1, 1, 1, 5).expand(3, 1, 1, 5), groups=3)
    distances: Tensor = torch.linalg.vector_norm(blurred - lab.mean(dim=(2, 3), keepdim=True), dim=1)
    return distances


def stretch(maps: Tensor) -> Tensor:
    """Stretch each map (B, H, W) in units of Lab to the range 0 to 1; a nearly flat map stays nearly flat."""
    lowest = maps.amin(dim=(1, 2), keepdim=True)
    span = maps.amax(dim=(1, 2), keepdim=True) - lowest
    return (maps - lowest) / span.clamp(min=_NOTICEABLE)


def correlations(one: Tensor, other: Tensor) -> Tensor:
    """Compute the Pearson correlation (B,) of pairs of maps (B, H, W); 0 where one of the two is flat.

    This is the CC metric of Bylinskii et al. (PAMI 2019).
    """
    first, second = (each.flatten(1) - each.flatten(1).mean(dim=1, keepdim=True) for each in (one, other))
    return functional.cosine_similarity(first, second, dim=1, eps=1e-6)
