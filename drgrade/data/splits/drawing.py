"""Draws the test fold, validation and training labels: whole groups, in proportion, rare grades first."""

import numpy as np
import pandas as pd

from drgrade.data.splits import order
from drgrade.data.splits.rare import keep_rare_grades, wish_for_folds, wish_for_validation
from drgrade.data.splits.shots import shot_groups
from drgrade.data.splits.spec import SplitSpec


def draw_test_fold(graded: pd.DataFrame, spec: SplitSpec) -> set[str]:
    """Groups of the test fold.

    Args:
        graded: Columns group, grade, dataset of all photographs that can be tested.
        spec: ``fold`` is a number.
    """
    kinds = _kinds(graded, spec.seed, 0)
    times = order.sweep(kinds)
    ends = np.arange(1, spec.folds + 1) / spec.folds
    folds = {group: int(np.searchsorted(ends, time)) for group, time in times.items()}
    folds = keep_rare_grades(folds, kinds, wish_for_folds(kinds, spec.folds))
    return {group for group, fold in folds.items() if fold == spec.fold}


def _validation_groups(side: pd.DataFrame, spec: SplitSpec) -> set[str]:
    if not spec.val_fraction:
        return set()
    kinds = _kinds(side, spec.seed, 1)
    chosen = order.prefix(order.sweep(kinds, until=spec.val_fraction), spec.val_fraction)
    parts = {group: int(group in chosen) for group in side["group"].unique()}
    whole = order.steps_in(spec.val_fraction) / order.STEPS
    parts = keep_rare_grades(parts, kinds, wish_for_validation(kinds, whole))
    return {group for group, part in parts.items() if part}


def _labelled_groups(side: pd.DataFrame, spec: SplitSpec) -> set[str]:
    if spec.shots is not None:
        pairs = zip(side["group"], side["grade"].astype(int), strict=True)
        return shot_groups(pairs, spec.shots, [spec.seed, 4])
    if spec.label_fraction == 1:
        return set(side["group"])
    times = order.sweep(_kinds(side, spec.seed, 2), cover=True, until=spec.label_fraction)
    return order.prefix(times, spec.label_fraction)


def _kinds(photographs: pd.DataFrame, *seed: int) -> order.Kinds:
    columns = (photographs["group"], photographs["grade"].astype(int), photographs["dataset"])
    return order.collect_kinds(zip(*columns, strict=True), seed)


def draw_validation_and_training(side: pd.DataFrame, spec: SplitSpec) -> tuple[set[str], set[str]]:
    """Groups of the training side that validate, and those whose labels train.

    Args:
        side: Columns group, grade, dataset of its graded photographs.
        spec: How to draw.
    """
    if spec.val_within_fraction:
        side = side[side["group"].isin(_labelled_groups(side, spec))]
        val = _validation_groups(side, spec)
        return val, set(side["group"]) - val
    val = _validation_groups(side, spec)
    return val, _labelled_groups(side[~side["group"].isin(val)], spec)
