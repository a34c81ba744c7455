"""How fast augmented training samples are loaded: from a prepared store, and by decoding the originals.

Both sides give the same batches (uint8, 3 x size x size) through the augmentation of
conf/augment/published.yaml, the same sampler, and a torch DataLoader with one worker process of one thread.
What differs is where a photograph comes from: a row of the store's memory-mapped array, or PIL (decode at
full
full size, crop to a square, resize). The two take turns, so that whatever else the machine does hits both.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from PIL import Image, ImageOps
from torch.utils.data import DataLoader, Dataset

from drgrade.data.augmentation import Augmentation
from drgrade.data.batches import Draw, StreamSampler
from drgrade.data.datamodules import UNGRADED, AugmentedView, StoreDataset
from drgrade.data.sources.folder import Folder
from drgrade.data.store import prepare

AUGMENT = Path(__file__).parents[1] / "conf" / "augment" / "published.yaml"


class DecodedDataset(Dataset[dict[str, Any]]):
    """What a training without a store does for every sample."""

    def __init__(self, paths: Sequence[Path], size: int, augment: Augmentation) -> None:
        self.paths, self.size, self.augment = paths, size, augment

    def __getitem__(self, draw: Draw) -> dict[str, Any]:
        index, seed = draw
        with Image.open(self.paths[index]) as photograph:
            square = ImageOps.fit(
                photograph.convert("RGB"), (self.size, self.size), Image.Resampling.BILINEAR
            )
        image = np.array(square)
        if seed is not None:
            image = self.augment(image, seed)
        channels_first = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)
        return {"image": channels_first, "grade": UNGRADED, "index": index}


class Side:
    """One way of loading."""

    def __init__(self, dataset: Dataset[Any], photographs: int, batch_size: int, batches: int) -> None:
        self.samples = batches * batch_size
        self.sampler = StreamSampler(photographs, self.samples, seed=0)
        self.loader: DataLoader[Any] = DataLoader(
            dataset,
            batch_size,
            sampler=self.sampler,
            num_workers=1,
            persistent_workers=True,
            worker_init_fn=_one_thread,
        )

    def rate(self, number: int) -> float:
        """Load one round; returns samples per second."""
        self.sampler.set_epoch(number)
        start = time.perf_counter()
        loaded = sum(len(batch["image"]) for batch in self.loader)
        seconds = time.perf_counter() - start
        if loaded != self.samples:
            raise RuntimeError(f"{loaded} samples came, not {self.samples}")
        return loaded / seconds


def _one_thread(worker: int) -> None:
    # 0 and not 1: for 1, OpenCV would wait for threads that stayed behind in the parent process.
    cv2.setNumThreads(0)


def compare(stored: Side, decoded: Side, rounds: int) -> None:
    """Let the two take turns, and print what they did."""
    for side in (stored, decoded):
        side.rate(0)  # not counted: the workers start, files come into the page cache
    rates = [(stored.rate(number), decoded.rate(number)) for number in range(1, rounds + 1)]
    ratios = [fast / slow for fast, slow in rates]
    for name, values in zip(("from the store", "decoding with PIL"), zip(*rates, strict=True), strict=True):
        print(f"{name:18} {statistics.median(values):8.1f} samples/s ({min(values):.1f} - {max(values):.1f})")
    print(f"{'ratio':18} {statistics.median(ratios):8.1f} ({min(ratios):.1f} - {max(ratios):.1f})", end=" ")
    print(f"median (lowest - highest) of {rounds} rounds, one worker process each")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, default=Path("../shared/data/idrid_originals"), help="originals")
    parser.add_argument("--size", type=int, default=224, help="side of the samples in px")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--store-batches", type=int, default=128, help="batches of a round from the store")
    parser.add_argument("--decoded-batches", type=int, default=2, help="batches of a round by decoding")
    arguments = parser.parse_args()
    augment: Augmentation = instantiate(OmegaConf.load(AUGMENT), _convert_="all")
    with tempfile.TemporaryDirectory() as folder:
        source = Folder(arguments.root, csv=None)
        store = prepare(source, Path(folder), image_size=arguments.size)
        count = len(store)
        prepared = StoreDataset(
            store.folder / "images.npy", range(count), [UNGRADED] * count, AugmentedView(augment)
        )
        paths = [arguments.root / path for path in store.manifest["path"]]
        decoded = DecodedDataset(paths, arguments.size, augment)
        fast = Side(prepared, count, arguments.batch_size, arguments.store_batches)
        slow = Side(decoded, count, arguments.batch_size, arguments.decoded_batches)
        compare(fast, slow, arguments.rounds)


if __name__ == "__main__":
    main()
