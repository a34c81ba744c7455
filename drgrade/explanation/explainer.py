"""Heat maps that explain the output of one grading model, or of an ensemble."""

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from drgrade.data.transforms import normalise
from drgrade.errors import ConfigError
from drgrade.grades import REFERABLE
from drgrade.models.feature_maps import AttentionLayers, ExplainableLayer, MapLayer
from drgrade.models.grading_model import GradingModel
from drgrade.models.heads import Head


def grad_cam(scores: Callable[[Tensor], Tensor], layer: MapLayer, images: Tensor) -> Tensor:
    """Compute Grad-CAM: the ReLU of the sum over channels of activation times mean gradient.

    Args:
        scores: Maps images (B, 3, S, S) to scores (B,) with a model that contains the layer.
        layer: Layer whose output is explained.
        images: (B, 3, S, S), normalised. They must require a gradient, so that frozen encoders have one too.

    Returns:
        (B, h, w) float32, non-negative.

    Raises:
        ConfigError: If captum is not installed, or the layer does not output a map.
    """
    with _tapped(layer) as tap:
        # captum reads the gradient of `tap`, which the hook inserts into the model.
        heat: Tensor = import_captum().LayerGradCam(scores, tap).attribute(images, relu_attributions=True)
    return heat.detach()[:, 0].float()


def import_captum() -> Any:
    """Import ``captum.attr``; raise ConfigError if captum is not installed."""
    try:
        return importlib.import_module("captum.attr")
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != "captum":
            raise
        raise ConfigError(
            "Grad-CAM needs captum, which is not installed: pip install 'drgrade[explain]'. Attention "
            "rollout (maps=attention) works without it"
        ) from error


@contextmanager
def _tapped(layer: MapLayer) -> Iterator[nn.Module]:
    """Route the layer's output through a module that receives it as (B, C, h, w) for all layouts.

    The model continues with a copy: some models modify a layer's output in place, which breaks its gradient.
    """
    tap = nn.Identity()

    def route(module: nn.Module, _: object, output: Any) -> Tensor:
        if not isinstance(output, Tensor) or output.ndim != (3 if layer.layout == "tokens" else 4):
            raise ConfigError(f"{type(module).__name__} does not output a map; remove it from maps")
        if layer.layout == "tokens":
            return _tap_tokens(tap, output, layer.prefix)
        if layer.layout == "NHWC":
            return torch.clone(tap(output.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))
        return torch.clone(tap(output))

    hook = layer.module.register_forward_hook(route)
    try:
        yield tap
    finally:
        hook.remove()


def _tap_tokens(tap: nn.Module, tokens: Tensor, prefix: int) -> Tensor:
    """Pass the patch tokens of (B, N, C) through the tap as a square map; keep prefix tokens."""
    rows = round((tokens.shape[1] - prefix) ** 0.5)
    patches = tokens[:, prefix:].transpose(1, 2)
    cells = tap(patches.reshape(*patches.shape[:2], rows, rows))
    return torch.cat((tokens[:, :prefix], cells.flatten(2).transpose(1, 2)), dim=1)


def attention_map(scores: Callable[[Tensor], Tensor], layers: AttentionLayers, images: Tensor) -> Tensor:
    """Compute attention rollout as a map over the patches.

    Args:
        scores: Maps images (B, 3, S, S) to scores (B,) with a model that contains the layers.
        layers: Attention of each block.
        images: (B, 3, S, S), normalised. They must require a gradient.

    Returns:
        (B, h, w) float32, non-negative: the contribution of each patch to the class token, or to the mean
        over the patches where the features are pooled.

    Raises:
        ConfigError: If the model does not expose its attention weights.
    """
    with _attention_weights(layers.modules) as weights:
        score = scores(images)
    if len(weights) != len(layers.modules):
        raise ConfigError(
            "this Transformer does not expose its attention weights; remove attention from maps"
        )
    if layers.weighted:
        flow = weighted_rollout(weights, torch.autograd.grad(score.sum(), weights))
    else:
        flow = rollout(weights)
    return _patch_map(flow.detach(), layers)


def rollout(weights: Sequence[Tensor]) -> Tensor:
    """Multiply (A + I) / 2 over the blocks, where A is the mean over the heads.

    Args:
        weights: (B, heads, N, N) of each block from first to last; rows sum to 1.

    Returns:
        (B, N, N): row i holds the contribution of each input token to output token i; rows sum to 1.
    """
    flow = _identity(weights[0])
    for block in weights:
        flow = (block.mean(dim=1) + _identity(block)) / 2 @ flow
    return flow


def weighted_rollout(weights: Sequence[Tensor], gradients: Sequence[Tensor]) -> Tensor:
    """Iterate R <- R + A R, where A is the mean over the heads of max(gradient * weight, 0).

    Args:
        weights: (B, heads, N, N) of each block from first to last.
        gradients: Gradients of the target with respect to the weights.

    Returns:
        (B, N, N) relevance without the initial identity, which explains nothing.
    """
    flow = _identity(weights[0])
    for block, gradient in zip(weights, gradients, strict=True):
        flow = flow + (gradient * block).clamp(min=0).mean(dim=1) @ flow
    return flow - _identity(flow)


def _identity(like: Tensor) -> Tensor:
    return torch.eye(like.shape[-1], dtype=like.dtype, device=like.device)


def _patch_map(flow: Tensor, layers: AttentionLayers) -> Tensor:
    """Read the contribution of each patch from (B, N, N) as (B, h, w)."""
    read = flow[:, 0] if layers.reads_class_token else flow[:, layers.prefix :].mean(dim=1)
    patches = read[:, layers.prefix :].float()
    rows = round(patches.shape[1] ** 0.5)
    return patches.reshape(-1, rows, rows)


@contextmanager
def _attention_weights(modules: Sequence[nn.Module]) -> Iterator[list[Tensor]]:
    """Collect the attention weights: without fused attention they pass through a dropout, inactive here."""
    weights: list[Tensor] = []
    attentions: Sequence[Any] = modules
    fused = [attention.fused_attn for attention in attentions]
    hooks = [
        attention.attn_drop.register_forward_hook(lambda module, _, output: weights.append(output))
        for attention in attentions
    ]
    try:
        for attention in attentions:
            attention.fused_attn = False
        yield weights
    finally:
        for attention, before, hook in zip(attentions, fused, hooks, strict=True):
            attention.fused_attn = before
            hook.remove()


AUTO, COMBINED = "auto", "combined"
"""Names of maps: the encoder's default map, and the mean of all maps that depend on the target."""

Target = Literal["expected", "referable", "grade"]

TARGETS: tuple[Target, ...] = get_args(Target)

MEANINGS: Mapping[str, str] = {
    "expected": "regions that raise the expected grade of this photograph",
    "referable": "regions that raise the probability of referable retinopathy in this photograph",
    "grade": "regions that raise the probability of the predicted grade of this photograph",
}
"""Meaning of the heat by target, as shown on pages."""

WITHOUT_TARGET = "regions that the network attends to in this photograph, independent of the grade"

HeatMaps = Mapping[str, npt.NDArray[np.float32]]
"""Map name to (B, S, S) heat in [0, 1] on the prepared photographs. The maximum of each photograph is 1; all
values are 0 where nothing raises the target."""

_MIN_PROBABILITY = 1e-7  # single precision cannot hold the logarithm of values nearer to 0 or 1


def target_score(target: str, head: Head, logits: Tensor, grades: Tensor) -> Tensor:
    """Compute the number whose gradient a heat map shows.

    Args:
        target: ``expected``: the expected grade (for a regression head the unclipped value). ``referable``:
            the log-odds of a grade of 2 or more. ``grade``: the log-probability of the predicted grade.
        head: Head that produced the logits.
        logits: (B, K).
        grades: (B,) predicted grades.

    Returns:
        (B,) float32.
    """
    if target == "expected":
        return head.severity(logits)
    probabilities = head.probabilities(logits)
    if target == "referable":
        return torch.logit(probabilities[:, REFERABLE:].sum(dim=1), eps=_MIN_PROBABILITY)
    return probabilities.gather(1, grades[:, None])[:, 0].clamp(min=_MIN_PROBABILITY).log()


def available_maps(models: Sequence[GradingModel], image_size: int) -> tuple[str, ...]:
    """Return the maps that all models have: ``auto``, ``combined``, and the names of the layers.

    Args:
        models: One model, or the members of an ensemble.
        image_size: Side of the prepared photographs in pixels.
    """
    first, *others = [model.encoder.maps_to_explain(image_size) for model in models]
    return (AUTO, COMBINED, *(name for name in first if all(name in other for other in others)))


class Explainer:
    """Computes heat maps for one grading model or an ensemble.

    The map of an ensemble is the mean over its members. Test-time augmentation is not applied.

    Attributes:
        names: Names of the computed maps; ``auto`` is replaced by the layer's name where all members resolve
            it to the same layer. The first is the main map.
        meaning: What the heat of the main map marks, in words.
    """

    def __init__(
        self,
        models: Sequence[GradingModel],
        image_size: int,
        maps: Sequence[str] = (AUTO,),
        target: str = "expected",
    ) -> None:
        """Look up the layers of the maps.

        Args:
            models: One model, or the members of an ensemble, in evaluation mode. They are not changed.
            image_size: Side of the prepared photographs in pixels.
            maps: Names from :func:`available_maps`; the first is the main map.
            target: Explained quantity, see :func:`target_score`.

        Raises:
            ConfigError: If a map or target does not exist, or captum is needed and missing.
        """
        if not maps:
            raise ConfigError(f"maps is empty; maps={AUTO} selects the encoder's default map")
        if target not in TARGETS:
            raise ConfigError(f"target={target} is not one of {', '.join(TARGETS)}")
        self._models, self._target = tuple(models), target
        self._layers = [dict(model.encoder.maps_to_explain(image_size)) for model in models]
        self._recipes = [{name: _recipe(name, layers) for name in maps} for layers in self._layers]
        if any(isinstance(layer, MapLayer) for name in maps for layer in self._layers_of(name)):
            import_captum()  # report a missing package before photographs are graded
        self._display_names = {name: self._display_name(name) for name in maps}
        self.names = tuple(dict.fromkeys(self._display_names.values()))
        attention_only = all(
            isinstance(each, AttentionLayers) and not each.weighted for each in self._layers_of(maps[0])
        )
        self.meaning = WITHOUT_TARGET if attention_only else MEANINGS[target]

    def heat(self, pixels: npt.NDArray[np.uint8] | Tensor, grades: Sequence[int]) -> HeatMaps:
        """Compute the heat maps of prepared photographs.

        Args:
            pixels: (B, S, S, 3) uint8 RGB; B is at least 1.
            grades: (B,) predicted grades.

        Returns:
            Heat by map name, main map first.

        Raises:
            ConfigError: If a head's output does not depend on the photograph.
        """
        device = next(self._models[0].parameters()).device
        images = normalise(torch.as_tensor(pixels).to(device).permute(0, 3, 1, 2))
        predicted = torch.tensor(grades, device=device)
        members = [self._member_heat(number, images, predicted) for number in range(len(self._models))]
        return {
            display: _scale_to_one(torch.stack([heat[name] for heat in members]).mean(dim=0)).cpu().numpy()
            for name, display in self._display_names.items()
        }

    def _member_heat(self, number: int, images: Tensor, grades: Tensor) -> dict[str, Tensor]:
        """Compute each requested map of one model, (B, S, S); each layer is evaluated once."""
        layers, recipes = self._layers[number], self._recipes[number]
        scores = partial(self._scores, self._models[number], grades)
        needed = dict.fromkeys(layer for recipe in recipes.values() for layer in recipe)
        with torch.enable_grad():
            images = images.detach().clone().requires_grad_()
            heat = {layer: _layer_heat(scores, layers[layer], images) for layer in needed}
        return {
            name: torch.stack([heat[layer] for layer in recipe]).mean(dim=0)
            for name, recipe in recipes.items()
        }

    def _scores(self, model: GradingModel, grades: Tensor, images: Tensor) -> Tensor:
        values = target_score(self._target, model.head, model(images), grades)
        if not values.requires_grad:
            raise ConfigError(
                f"the output of {type(model.head).__name__} does not depend on the photograph; there is "
                "nothing to explain"
            )
        return values

    def _layers_of(self, name: str) -> list[ExplainableLayer]:
        """Return the layers of a map, of all members."""
        pairs = zip(self._layers, self._recipes, strict=True)
        return [layers[layer] for layers, recipes in pairs for layer in recipes[name]]

    def _display_name(self, name: str) -> str:
        """Replace ``auto`` by a layer's name if all members agree on that layer."""
        used = {recipe[name] for recipe in self._recipes}
        return used.pop()[0] if name == AUTO and len(used) == 1 else name


def _recipe(name: str, layers: Mapping[str, ExplainableLayer]) -> tuple[str, ...]:
    """Return the layers whose mean is the map."""
    if not layers:
        raise ConfigError("the encoder has no layer with a spatial map, so there is nothing to explain")
    if name == AUTO:
        return (next(iter(layers)),)
    if name == COMBINED:
        return tuple(each for each, layer in layers.items() if isinstance(layer, MapLayer) or layer.weighted)
    if name not in layers:
        known = ", ".join((AUTO, COMBINED, *layers))
        raise ConfigError(f"maps={name}: the encoder has no such map; available: {known}")
    return (name,)


def _layer_heat(scores: Callable[[Tensor], Tensor], layer: ExplainableLayer, images: Tensor) -> Tensor:
    """Compute the heat of one layer at full size, (B, S, S), with maximum 1 in each photograph."""
    if isinstance(layer, MapLayer):
        cells = grad_cam(scores, layer, images)
    else:
        cells = attention_map(scores, layer, images)
        # Every patch contributes something: subtract the smallest contribution.
        cells = cells - cells.amin(dim=(1, 2), keepdim=True)
    size = (layer.covers, layer.covers)
    large = F.interpolate(cells[:, None], size=size, mode="bilinear", align_corners=False)
    side = images.shape[-1]
    return _scale_to_one(large[:, 0, :side, :side])  # padding is at the right and at the bottom


def _scale_to_one(heat: Tensor) -> Tensor:
    """Divide by the maximum of each photograph; maps of zeros stay zero."""
    highest = heat.amax(dim=(1, 2), keepdim=True)
    return torch.where(highest > 0, heat / highest.clamp(min=torch.finfo(heat.dtype).tiny), 0.0)
