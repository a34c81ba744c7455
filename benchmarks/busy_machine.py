"""Measure how waiting OpenMP threads slow down work with several threads, alone and beside a busy process.

Threads of one parallel region wait for each other at its end. libgomp lets them spin for some milliseconds
before they sleep; beside a busy process, a spinning thread keeps a core from the thread it waits for. Two
kinds of work are timed in processes of their own: a training step of a small network (PyTorch) and a fit of
gradient-boosted trees as in the shortcut probe of an audit, but on several threads (scikit-learn). The
settings take turns. The times are given as ratios to that of libgomp's own setting on the idle machine, so
the figures hold only if nothing else runs.

    python benchmarks/busy_machine.py                     # on an otherwise idle machine
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import drgrade  # noqa: F401 - before torch and scikit-learn are imported

SETTINGS = {
    "libgomp's default": {"GOMP_SPINCOUNT": "300000"},
    "drgrade's default": {},
    "passive": {"OMP_WAIT_POLICY": "passive"},
}
BATCH, SIZE, ROWS, FEATURES = 8, 64, 400, 20


def make_step() -> Callable[[], object]:
    """Return a function that trains a small DenseNet for one step."""
    import timm
    import torch

    torch.manual_seed(0)
    model = timm.create_model("densenet121", num_classes=5, growth_rate=8, block_config=(2, 4, 6, 4)).train()
    optimizer = torch.optim.Adam(model.parameters())
    images, grades = torch.randn(BATCH, 3, SIZE, SIZE), torch.arange(BATCH) % 5

    def step() -> None:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(images), grades).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step


def make_trees() -> Callable[[], object]:
    """Return a function that fits gradient-boosted trees."""
    import numpy as np
    from sklearn.ensemble import HistGradientBoostingRegressor

    rng = np.random.default_rng(0)
    values, grades = rng.normal(size=(ROWS, FEATURES)), rng.integers(0, 5, ROWS)
    return lambda: HistGradientBoostingRegressor(max_iter=20).fit(values, grades)


WORK = {"training step": make_step, "trees": make_trees}


def time_work(make: Callable[[], Callable[[], object]], repeats: int) -> float:
    """Return the median time of one repeat in seconds; the first repeats are not counted."""
    work = make()
    seconds = []
    for _ in range(repeats + 2):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[2:])


@contextmanager
def busy_processes(count: int) -> Iterator[None]:
    """Run processes that each keep a core busy."""
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def measure(work: str, setting: str, repeats: int) -> float:
    """Time one kind of work in a process with a setting."""
    names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "OMP_NUM_THREADS")
    environment = {name: value for name, value in os.environ.items() if name not in names}
    done = subprocess.run(
        [sys.executable, __file__, f"--work={work}", f"--repeats={repeats}"],
        env=environment | SETTINGS[setting],
        capture_output=True,
        text=True,
        check=True,
    )
    return float(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=10, help="repeats in each process")
    parser.add_argument("--rounds", type=int, default=5, help="processes for each setting")
    parser.add_argument("--busy", type=int, default=1, help="busy processes beside the work")
    parser.add_argument("--work", choices=WORK, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        print(time_work(WORK[arguments.work], arguments.repeats))
        return
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, {arguments.rounds} rounds")
    for work in WORK:
        seconds: dict[tuple[str, int], list[float]] = {}
        for _ in range(arguments.rounds):
            for busy in (0, arguments.busy):
                for setting in SETTINGS:
                    with busy_processes(busy):
                        taken = measure(work, setting, arguments.repeats)
                    seconds.setdefault((setting, busy), []).append(taken)
        alone = statistics.median(seconds["libgomp's default", 0])
        print(f"{work}: {1000 * alone:.1f} ms with libgomp's default on the idle machine; ratios to it:")
        for (setting, busy), values in sorted(seconds.items(), key=lambda item: item[0][1]):
            ratio, low, high = (
                each / alone for each in (statistics.median(values), min(values), max(values))
            )
            where = f"beside {busy} busy" if busy else "idle"
            print(f"  {where:14} {setting:18} {ratio:7.2f} ({low:.2f} - {high:.2f})", flush=True)


if __name__ == "__main__":
    main()
