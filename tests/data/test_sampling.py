"""Tests of the samplers, which draw the same batches for any number of processes and order of epochs."""

from collections import Counter
from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from sklearn.utils.class_weight import compute_sample_weight

from drgrade.data.datasets import EvaluationSampler, StreamSampler, augmentation_seed, balancing_weights
from drgrade.errors import ConfigError

streams = st.fixed_dictionaries(
    {
        "count": st.integers(1, 40),
        "steps": st.integers(1, 6),
        "local": st.integers(1, 5),
        "world": st.integers(1, 4),
        "seed": st.integers(0, 2**32 - 1),
        "weighted": st.booleans(),
    }
)


def epoch(sampler, number):
    sampler.set_epoch(number)
    return list(sampler)


@settings(max_examples=40, deadline=None)
@given(streams)
def test_processes_together_draw_the_batches_of_one(case):
    count, world, local = case["count"], case["world"], case["local"]
    length = case["steps"] * local * world
    weights = list(range(1, count + 1)) if case["weighted"] else None
    alone = StreamSampler(count, length, case["seed"], weights=weights)
    shares = [
        StreamSampler(count, length, case["seed"], weights=weights, rank=rank, world=world)
        for rank in range(world)
    ]
    for number in range(2):
        whole = epoch(alone, number)
        parts = [epoch(share, number) for share in shares]
        assert all(len(part) == len(share) for part, share in zip(parts, shares, strict=True))
        for step in range(case["steps"]):
            together = [draw for part in parts for draw in part[step * local : (step + 1) * local]]
            expected = whole[step * local * world : (step + 1) * local * world]
            assert sorted(together) == sorted(expected)


@settings(max_examples=40, deadline=None)
@given(count=st.integers(1, 30), length=st.integers(1, 50), seed=st.integers(0, 1000))
def test_stream_is_a_sequence_of_permutations(count, length, seed):
    """Naive reference: the concatenated epochs are a sequence of permutations."""
    sampler = StreamSampler(count, length, seed)
    stream = [draw.photograph for number in range(count) for draw in epoch(sampler, number)]
    assert Counter(stream) == dict.fromkeys(range(count), length)  # count * length draws in all
    for start in range(0, len(stream), count):
        assert sorted(stream[start : start + count]) == list(range(count))


def test_permutations_differ():
    sampler = StreamSampler(50, 50, seed=0)
    first, second = ([draw.photograph for draw in epoch(sampler, number)] for number in (0, 1))
    other = [draw.photograph for draw in StreamSampler(50, 50, seed=1)]
    assert first != second
    assert first != other
    assert first != sorted(first)


@settings(max_examples=30, deadline=None)
@given(
    count=st.integers(1, 20),
    length=st.integers(1, 30),
    weighted=st.booleans(),
    order=st.permutations(range(5)),
)
def test_epoch_does_not_depend_on_earlier_epochs(count, length, weighted, order):
    weights = list(range(1, count + 1)) if weighted else None
    stream = list(StreamSampler(count, 5 * length, 7, weights=weights))
    sampler = StreamSampler(count, length, 7, weights=weights)
    for number in order:
        assert epoch(sampler, number) == stream[number * length : (number + 1) * length]
        assert list(sampler) == list(sampler)


def test_default_epoch_is_the_first():
    assert list(StreamSampler(9, 6, 0)) == epoch(StreamSampler(9, 6, 0), 0)


def test_samplers_are_independent_of_global_generators():
    state = np.random.get_state()[1].tolist()  # noqa: NPY002
    alone = list(StreamSampler(30, 30, 3))
    one, other = iter(StreamSampler(30, 30, 3)), iter(StreamSampler(30, 30, 4))
    assert [draw for draw, _ in zip(one, other, strict=True)] == alone
    assert np.random.get_state()[1].tolist() == state  # noqa: NPY002


def test_augmentation_seeds_are_unique_and_fit_into_63_bits():
    seeds = [augmentation_seed(seed, place) for seed in range(5) for place in range(4000)]
    assert len(set(seeds)) == len(seeds)
    assert min(seeds) >= 0
    assert max(seeds) < 2**63


def test_repeated_photographs_have_different_augmentation_seeds():
    sampler = StreamSampler(4, 100, 0)
    seeds = [draw.seed for number in range(3) for draw in epoch(sampler, number)]
    assert len(set(seeds)) == 300


@pytest.mark.parametrize("world", [1, 2, 4])
def test_augmentation_seeds_do_not_depend_on_the_processes(world):
    draws = [None] * 24
    for rank in range(world):
        draws[rank::world] = list(StreamSampler(10, 24, 5, rank=rank, world=world))
    assert draws == list(StreamSampler(10, 24, 5))


@pytest.mark.parametrize("world", [1, 2])
def test_balancing_weights_draw_every_grade_equally_often(world):
    grades = np.array([0] * 60 + [1] * 6 + [2] * 24 + [3] * 3 + [4] * 7)
    drawn = np.zeros(5)
    for rank in range(world):
        sampler = StreamSampler(100, 2000, 0, weights=balancing_weights(grades), rank=rank, world=world)
        indices = [draw.photograph for number in range(5) for draw in epoch(sampler, number)]
        drawn += np.bincount(grades[indices], minlength=5)
    assert drawn.sum() == 10_000
    assert chisquare(drawn).pvalue > 0.01


def test_weights_are_relative_frequencies():
    weights = np.array([1.0, 2, 3, 0, 4])
    drawn = np.bincount(
        [draw.photograph for draw in StreamSampler(5, 20_000, 0, weights=weights)], minlength=5
    )
    assert drawn[3] == 0
    kept = weights > 0
    assert chisquare(drawn[kept], 20_000 * weights[kept] / weights.sum()).pvalue > 0.01


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=60))
def test_balancing_weights_match_scikit_learn(grades):
    reference = compute_sample_weight("balanced", grades)
    np.testing.assert_allclose(balancing_weights(grades), reference / reference.sum(), rtol=1e-12)


@settings(max_examples=50, deadline=None)
@given(count=st.integers(0, 50), world=st.integers(1, 60))
def test_evaluation_gives_each_photograph_to_one_process(count, world):
    samplers = [EvaluationSampler(count, rank=rank, world=world) for rank in range(world)]
    shares = [list(sampler) for sampler in samplers]
    assert [len(sampler) for sampler in samplers] == [len(share) for share in shares]
    draws = [draw for share in shares for draw in share]
    assert sorted(draw.photograph for draw in draws) == list(range(count))
    assert all(draw.seed is None for draw in draws)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_epochs_can_be_longer_than_the_dataset():
    """8 photographs fill 5 batches of 4, so that steps are equal at every label fraction."""
    draws = list(StreamSampler(8, 20, 0))
    assert len(draws) == 20
    assert {Counter(d.photograph for d in draws)[i] for i in range(8)} == {2, 3}
    assert len(list(islice(StreamSampler(8, 20, 0), 3))) == 3


def test_sampler_refuses_an_empty_dataset():
    with pytest.raises(ConfigError, match="no photographs to sample from"):
        StreamSampler(0, 10, 0)


def test_sampler_refuses_uneven_epochs():
    with pytest.raises(ConfigError, match="10 samples cannot be shared evenly by 3 processes"):
        StreamSampler(10, 10, 0, world=3)
