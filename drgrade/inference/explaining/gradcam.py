"""Grad-CAM on any layer that gives a map, by captum.

Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization", ICCV
2017.
"""

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from drgrade.errors import ConfigError
from drgrade.models.explained import MapLayer


def grad_cam(scores: Callable[[Tensor], Tensor], layer: MapLayer, images: Tensor) -> Tensor:
    """ReLU of the sum over channels of activation times mean gradient.

    Args:
        scores: (B, 3, S, S) to (B,), by a model that has the layer.
        layer: Where to look.
        images: (B, 3, S, S), normalised; they need a gradient, so that frozen encoders have one too.

    Returns:
        (B, h, w) float32, not negative.

    Raises:
        ConfigError: If captum is not installed, or the layer gives no map.
    """
    with _tapped(layer) as tap:
        # captum gets to the gradient of `tap` through the hook that has put it into the model.
        found: Tensor = captum().LayerGradCam(scores, tap).attribute(images, relu_attributions=True).detach()
    return found[:, 0].float()


def captum() -> Any:
    """Captum's attributions.

    Raises:
        ConfigError: If it is not installed.
    """
    try:
        return importlib.import_module("captum.attr")
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != "captum":
            raise
        raise ConfigError(
            "Grad-CAM needs captum, which is not installed: pip install 'drgrade[explain]'; attention "
            "rollout (maps=attention) does without"
        ) from error


@contextmanager
def _tapped(layer: MapLayer) -> Iterator[nn.Module]:
    """Lead what a layer gives through a module that sees it as (B, C, h, w), whatever its layout.

    What goes on is a copy: some models change the output of a layer in place, which no gradient survives.
    """
    tap = nn.Identity()

    def lead(module: nn.Module, _: object, output: Any) -> Tensor:
        if not isinstance(output, Tensor) or output.ndim != (3 if layer.layout == "tokens" else 4):
            raise ConfigError(f"{type(module).__name__} gives no map; leave it out of maps")
        if layer.layout == "tokens":
            return _through_cells(tap, output, layer.prefix)
        if layer.layout == "NHWC":
            return torch.clone(tap(output.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))
        return torch.clone(tap(output))

    hook = layer.module.register_forward_hook(lead)
    try:
        yield tap
    finally:
        hook.remove()


def _through_cells(tap: nn.Module, tokens: Tensor, prefix: int) -> Tensor:
    """Lead the tokens (B, N, C) of the patches through the tap as a map, the others beside it."""
    rows = round((tokens.shape[1] - prefix) ** 0.5)  # images are square
    patches = tokens[:, prefix:].transpose(1, 2)
    cells = tap(patches.reshape(*patches.shape[:2], rows, rows))
    return torch.cat((tokens[:, :prefix], cells.flatten(2).transpose(1, 2)), dim=1)
