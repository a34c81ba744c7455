"""Whether features have collapsed: all photographs alike, or alike but for a few directions."""

import torch
from torch import Tensor
from torch.nn import functional


def feature_std(features: Tensor) -> float:
    """Spread of features whose length is taken away: 1 if they point everywhere alike, 0 if all in one way.

    The mean over dimensions of the standard deviation of the normalised features, times sqrt(D) (Chen and He,
    "Exploring simple Siamese representation learning", CVPR 2021, section 4.1: sqrt(D) times it is 1 for an
    isotropic Gaussian).

    Args:
        features: (N, D).

    Returns:
        In [0, 1] up to the correction for few photographs; 0 for fewer than two.
    """
    if len(features) < 2:
        return 0.0
    normalised = functional.normalize(features.double(), dim=1)
    return float(normalised.std(dim=0).mean() * features.shape[1] ** 0.5)


def effective_rank(features: Tensor) -> float:
    """How many directions features vary in: exp of the entropy of their singular values.

    Roy and Vetterli, "The effective rank", EUSIPCO 2007; Garrido et al., "RankMe", ICML 2023, take it as a
    measure of representations. Here the mean is taken out first, so that a constant added to all features
    changes nothing.

    Args:
        features: (N, D).

    Returns:
        In [1, min(N - 1, D)]; 0 where nothing varies at all; NaN where a feature is not finite.
    """
    if not torch.isfinite(features).all():
        return float("nan")
    centred = features.double() - features.double().mean(dim=0)
    values = torch.linalg.svdvals(centred)
    # Rounding leaves something of a constant too.
    scale = features.double().abs().max() if features.numel() else torch.zeros(())
    if not len(values) or not values[0] > 1e-9 * scale * max(features.shape):
        return 0.0
    shares = values / values.sum()
    return float(torch.exp(torch.special.entr(shares).sum()))
