import torch
from ranks import on_two_ranks

from drgrade.metrics.distributed import gather_rows


def shares(rank):
    """Seven rows dealt to two processes, one of them to both."""
    index = torch.tensor([0, 2, 4, 6] if rank == 0 else [1, 3, 5, 6])
    found, rows = gather_rows(index, index[:, None] * torch.tensor([1.0, 10.0]))
    return [found, rows]


def test_every_row_is_there_once_on_both_processes():
    for found, rows in on_two_ranks(shares):
        assert found.tolist() == list(range(7))
        assert rows.tolist() == [[float(i), 10.0 * i] for i in range(7)]


def test_alone_the_rows_are_sorted_and_repeats_dropped():
    found, rows = gather_rows(torch.tensor([3, 1, 3]), torch.tensor([[3.0], [1.0], [3.0]]))
    assert found.tolist() == [1, 3]
    assert rows.tolist() == [[1.0], [3.0]]
