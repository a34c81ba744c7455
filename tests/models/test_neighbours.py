import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from drgrade.models.probes import knn_shares


def example(count=40, bank=60, width=7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(count, width, generator=generator),
        torch.randn(bank, width, generator=generator),
        torch.randint(0, 5, (bank,), generator=generator),
    )


@pytest.mark.parametrize("neighbours", [1, 5, 60])
def test_votes_are_those_of_scikit_learn(neighbours):
    features, bank, grades = example()
    grades[:5] = torch.arange(5)
    reference = KNeighborsClassifier(
        neighbours, metric="cosine", algorithm="brute", weights=lambda distance: np.exp((1 - distance) / 0.07)
    )
    expected = reference.fit(bank.numpy(), grades.numpy()).predict_proba(features.numpy())
    votes = knn_shares(features, bank, grades, neighbours)
    np.testing.assert_allclose(votes.numpy(), expected, atol=1e-4)


def test_votes_are_shares():
    votes = knn_shares(*example(), 9)
    assert (votes >= 0).all()
    torch.testing.assert_close(votes.sum(dim=1), torch.ones(40))


def test_a_photograph_is_its_own_nearest_neighbour_whatever_its_length():
    _, bank, grades = example()
    assert torch.equal(knn_shares(bank * 3, bank, grades, 1).argmax(dim=1), grades)
