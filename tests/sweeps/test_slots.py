"""Places for cells: never more at a time than asked for, GPUs shared out evenly."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drgrade.errors import ConfigError
from drgrade.sweeps.launcher import _environment, _gpu_memory
from drgrade.sweeps.slots import Gpu, Slot, Slots, visible

GIB = 2**30
LISTED = "0, GPU-aaa, 81559\n1, GPU-bbb, 81559\n"


def taken(slots, most=100):
    found = []
    while (slot := slots.take()) and len(found) < most:
        found.append(slot)
    return found


def test_without_gpus_cells_run_one_after_the_other_unless_told_otherwise():
    assert len(taken(Slots([]))) == 1
    assert len(taken(Slots([], n_jobs=3))) == 3
    assert Slots([], n_jobs=3).parallel == 3


def test_gpus_are_shared_out_one_to_a_cell():
    places = taken(Slots([Gpu("0", 80 * GIB), Gpu("1", 80 * GIB)]))
    assert [slot.gpus for _, slot in places] == [("0",), ("1",)]


def test_several_cells_share_a_gpu_evenly_if_they_may():
    slots = Slots([Gpu("0", 80 * GIB), Gpu("1", 80 * GIB)], cells_per_gpu=2)
    assert [slot.gpus[0] for _, slot in taken(slots)] == ["0", "1", "0", "1"]
    assert len(taken(Slots([Gpu("0", GIB), Gpu("1", GIB)], n_jobs=3, cells_per_gpu=2))) == 3


def test_the_first_cell_tells_how_many_fit():
    slots = Slots([Gpu("0", 80 * GIB)], most_per_gpu=8)
    ((number, _),) = taken(slots)
    slots.give_back(number, peak_memory=17 * GIB)  # with CUDA's own memory 17.6 GiB of 72
    assert slots.parallel == 4
    first, *_ = taken(slots)
    slots.give_back(first[0], peak_memory=30 * GIB)  # a larger cell
    assert slots.parallel == 2
    slots.give_back(0, peak_memory=GIB)  # a smaller one changes nothing
    assert slots.parallel == 2


def test_a_gpu_that_is_full_with_one_cell_takes_one():
    slots = Slots([Gpu("0", 10 * GIB)])
    number, _ = slots.take()
    slots.give_back(number, peak_memory=20 * GIB)
    assert slots.parallel == 1
    number, _ = slots.take()
    slots.give_back(number, peak_memory=GIB)  # a small cell after a large one: the next may be large again
    assert slots.parallel == 1


def test_a_cell_of_two_devices_gets_two_gpus():
    slots = Slots([Gpu(str(n), GIB) for n in range(4)], gpus_per_cell=2)
    assert [slot.gpus for _, slot in taken(slots)] == [("0", "1"), ("2", "3")]
    with pytest.raises(ConfigError, match=r"trainer\.devices=3"):
        Slots([Gpu("0", GIB)], gpus_per_cell=3)


@given(
    gpus=st.integers(0, 4),
    n_jobs=st.none() | st.integers(1, 6),
    each=st.none() | st.integers(1, 3),
    events=st.lists(st.integers(0, 40), max_size=30),
)
def test_no_gpu_ever_holds_more_than_its_share(gpus, n_jobs, each, events):
    slots = Slots([Gpu(str(n), 40 * GIB) for n in range(gpus)], n_jobs, each)
    held = []
    for peak in events:
        while slot := slots.take():
            held.append(slot)
        assert (
            len(held) == slots.parallel or len(held) > slots.parallel
        )  # more only while a smaller guess ends
        assert len(held) <= (n_jobs or len(held))
        number, _ = held.pop(0)
        slots.give_back(number, peak * GIB)


def test_only_visible_gpus_are_used_in_the_order_that_is_asked_for():
    assert [gpu.name for gpu in visible(LISTED, None)] == ["0", "1"]
    assert [gpu.name for gpu in visible(LISTED, "1,0")] == ["1", "0"]
    assert [gpu.name for gpu in visible(LISTED, "GPU-bbb")] == ["1"]
    assert visible(LISTED, "") == []
    assert visible(LISTED, "-1") == []
    with pytest.raises(ConfigError, match="n_jobs"):
        visible("what is this\n", None)


def test_a_cell_takes_at_least_what_the_pre_training_took_that_it_needs(tmp_path):
    def provenance(name, memory, **more):
        (tmp_path / name).mkdir()
        record = {"machine": {"gpu": "H100"}, "peak_memory": memory, **more}
        (tmp_path / name / "provenance.json").write_text(json.dumps(record))
        return tmp_path / name

    encoder = provenance("encoder", 30 * GIB)
    assert _gpu_memory(provenance("ssl", 10 * GIB, encoder=str(encoder))) == 30 * GIB
    assert _gpu_memory(provenance("random", 10 * GIB, encoder=None)) == 10 * GIB
    assert _gpu_memory(tmp_path / "nowhere") == 0
    assert _gpu_memory(provenance("cpu", 10 * GIB, machine={"gpu": None})) == 0


def test_a_cell_sees_its_own_gpus_and_its_share_of_the_cores(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(16)))
    environment = _environment(Slot(("3", "1")), parallel=4)
    assert environment["CUDA_VISIBLE_DEVICES"] == "3,1"
    assert environment["OMP_NUM_THREADS"] == "4"
    assert "OMP_NUM_THREADS" not in _environment(Slot(()), parallel=1)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert _environment(Slot(()), parallel=4)["OMP_NUM_THREADS"] == "2"
