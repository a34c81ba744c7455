"""A synthetic sweep of pretexts: 16 rows, five fractions, five folds, one or two protocols."""

from collections.abc import Sequence
from pathlib import Path

from synthetic import FakeMethod, write_encoder, write_runs

FRACTIONS = (0.05, 0.1, 0.25, 0.5, 1.0)
INPUTS = {
    "rotation": 4.0,
    "relative_patch": 0.9,
    "jigsaw": 0.99,
    "colorization": 1.0,
    "inpainting": 1.0,
    "saliency": 1.0,
    "cpc": 2.25,
    "exemplar": 2.0,
    "simclr": 2.0,
    "moco_v3": 2.0,
    "dino": 3.5,
    "mae": 0.25,
}
"""Encoder inputs per photograph."""

STEPS = 300


def write_table(
    folder: Path,
    protocols: Sequence[str] = ("matched", "published"),
    fractions: Sequence[float] = FRACTIONS,
    folds: Sequence[int] = (0, 1, 2, 3, 4),
    pretexts: Sequence[str] = tuple(INPUTS),
    photographs: int = 200,
    steps: int = STEPS,
) -> Path:
    """Write a sweep like that of ``pretext_table``, and the cards of its encoders.

    Args:
        folder: Target of ``sweep`` and ``encoders``.
        protocols: Protocols of fine-tuning.
        fractions: Label fractions.
        folds: Test folds.
        pretexts: Names in :data:`INPUTS`.
        photographs: Number of photographs.
        steps: Optimiser steps of each pre-training.

    Returns:
        The folder of the sweep.
    """
    methods = []
    common = ("pretrain_on=train", "pretext.epochs=-1", f"pretext.max_steps={steps}")
    for protocol in protocols:
        chosen = (*common, f"protocol={protocol}")
        less = 0.12 if protocol == "published" else 0.0
        methods.append(FakeMethod(("init=random", "method=random", *chosen), skill=0.5 - less))
        methods.append(FakeMethod(("init=random", "method=vit", "encoder=vit", *chosen), skill=0.42 - less))
        for number, name in enumerate(pretexts):
            encoder = ("encoder=vit",) if name == "mae" else ()
            for fold in folds:
                place = folder / "encoders" / f"{name}-{fold}"
                write_encoder(place, steps, INPUTS[name], 100.0 * INPUTS[name])
            methods.append(
                FakeMethod(
                    ("init=ssl", f"method={name}", f"pretext={name}", *encoder, *chosen),
                    skill=0.48 + 0.025 * number - less,
                    encoder=f"{folder / 'encoders'}/{name}-{{fold}}",
                )
            )
    methods.append(FakeMethod(("init=random", "method=random", "protocol=linear", *common), skill=0.3))
    methods.append(FakeMethod(("init=random", "method=majority", "protocol=majority", *common), skill=0.02))
    write_runs(folder / "sweep", methods, fractions, folds, photographs=photographs)
    return folder / "sweep"
