"""Allocation of GPUs to cells: the limits hold, and GPUs are shared evenly."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drgrade.errors import ConfigError
from drgrade.sweeps.launcher import Gpu, GpuPool, cell_environment, peak_gpu_memory, visible

GIB = 2**30
LISTED = "0, GPU-aaa, 81559\n1, GPU-bbb, 81559\n"


def taken(pool, most=100):
    found = []
    while (place := pool.take()) and len(found) < most:
        found.append(place)
    return found


def test_without_gpus_n_jobs_cells_run_at_a_time():
    assert len(taken(GpuPool([]))) == 1
    assert len(taken(GpuPool([], n_jobs=3))) == 3
    assert GpuPool([], n_jobs=3).parallel == 3


def test_each_cell_gets_one_gpu():
    places = taken(GpuPool([Gpu("0", 80 * GIB), Gpu("1", 80 * GIB)]))
    assert [gpus for _, gpus in places] == [("0",), ("1",)]


def test_cells_share_gpus_evenly():
    pool = GpuPool([Gpu("0", 80 * GIB), Gpu("1", 80 * GIB)], cells_per_gpu=2)
    assert [gpus[0] for _, gpus in taken(pool)] == ["0", "1", "0", "1"]
    assert len(taken(GpuPool([Gpu("0", GIB), Gpu("1", GIB)], n_jobs=3, cells_per_gpu=2))) == 3


def test_first_cell_determines_how_many_fit():
    pool = GpuPool([Gpu("0", 80 * GIB)], most_per_gpu=8)
    ((number, _),) = taken(pool)
    pool.give_back(number, peak_memory=17 * GIB)  # with CUDA's own memory 17.6 GiB of 72
    assert pool.parallel == 4
    first, *_ = taken(pool)
    pool.give_back(first[0], peak_memory=30 * GIB)  # a larger cell
    assert pool.parallel == 2
    pool.give_back(0, peak_memory=GIB)  # a smaller one changes nothing
    assert pool.parallel == 2


def test_full_gpu_takes_one_cell():
    pool = GpuPool([Gpu("0", 10 * GIB)])
    number, _ = pool.take()
    pool.give_back(number, peak_memory=20 * GIB)
    assert pool.parallel == 1
    number, _ = pool.take()
    pool.give_back(number, peak_memory=GIB)  # a small cell after a large one: the next may be large again
    assert pool.parallel == 1


def test_cell_of_two_devices_gets_two_gpus():
    pool = GpuPool([Gpu(str(n), GIB) for n in range(4)], gpus_per_cell=2)
    assert [gpus for _, gpus in taken(pool)] == [("0", "1"), ("2", "3")]
    with pytest.raises(ConfigError, match=r"trainer\.devices=3"):
        GpuPool([Gpu("0", GIB)], gpus_per_cell=3)


@given(
    gpus=st.integers(0, 4),
    n_jobs=st.none() | st.integers(1, 6),
    each=st.none() | st.integers(1, 3),
    events=st.lists(st.integers(0, 40), max_size=30),
)
def test_limits_hold_for_any_order_of_events(gpus, n_jobs, each, events):
    pool = GpuPool([Gpu(str(n), 40 * GIB) for n in range(gpus)], n_jobs, each)
    held = []
    for peak in events:
        while place := pool.take():
            held.append(place)
        assert len(held) == pool.parallel or len(held) > pool.parallel  # more only while a smaller guess ends
        assert len(held) <= (n_jobs or len(held))
        number, _ = held.pop(0)
        pool.give_back(number, peak * GIB)


def test_visible_gpus_keep_the_order_of_the_environment():
    assert [gpu.name for gpu in visible(LISTED, None)] == ["0", "1"]
    assert [gpu.name for gpu in visible(LISTED, "1,0")] == ["1", "0"]
    assert [gpu.name for gpu in visible(LISTED, "GPU-bbb")] == ["1"]
    assert visible(LISTED, "") == []
    assert visible(LISTED, "-1") == []
    with pytest.raises(ConfigError, match="n_jobs"):
        visible("what is this\n", None)


def test_peak_memory_includes_the_pretraining(tmp_path):
    def provenance(name, memory, **more):
        (tmp_path / name).mkdir()
        record = {"machine": {"gpu": "H100"}, "peak_memory": memory, **more}
        (tmp_path / name / "provenance.json").write_text(json.dumps(record))
        return tmp_path / name

    encoder = provenance("encoder", 30 * GIB)
    assert peak_gpu_memory(provenance("ssl", 10 * GIB, encoder=str(encoder))) == 30 * GIB
    assert peak_gpu_memory(provenance("random", 10 * GIB, encoder=None)) == 10 * GIB
    assert peak_gpu_memory(tmp_path / "nowhere") == 0
    assert peak_gpu_memory(provenance("cpu", 10 * GIB, machine={"gpu": None})) == 0


def test_cell_environment_has_gpus_and_share_of_cores(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(16)))
    environment = cell_environment(4, ("3", "1"))
    assert environment["CUDA_VISIBLE_DEVICES"] == "3,1"
    assert environment["OMP_NUM_THREADS"] == "4"
    assert "OMP_NUM_THREADS" not in cell_environment(1)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert cell_environment(4)["OMP_NUM_THREADS"] == "2"
