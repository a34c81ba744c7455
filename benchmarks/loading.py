"""Measure how fast augmented training samples are loaded, from a store and by decoding the originals.

Both ways give the same batches (uint8, 3 x size x size) with the augmentation of
conf/augment/published.yaml, the same sampler, and a torch DataLoader with one worker process of one thread.
They differ in where a photograph comes from: a row of the store's memory-mapped array, or PIL (decode at
full size, crop to a square, resize). The two take turns, so that other load on the machine affects both.

    python benchmarks/loading.py
"""

import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from common import add_originals_options, find_originals, make_parser
from hydra.utils import instantiate
from omegaconf import OmegaConf
from PIL import Image, ImageOps
from torch.utils.data import DataLoader, Dataset

from drgrade.data.datasets import UNGRADED, AugmentedView, SampleIndex, StoreDataset, StreamSampler
from drgrade.data.sources.folder import Folder
from drgrade.data.store import prepare
from drgrade.data.transforms import Augmentation

AUGMENT = Path(__file__).parents[1] / "conf" / "augment" / "published.yaml"


class DecodedDataset(Dataset[dict[str, Any]]):
    """Samples of a training without a store: every photograph is decoded each time."""

    def __init__(self, paths: Sequence[Path], size: int, augment: Augmentation) -> None:
        self.paths, self.size, self.augment = paths, size, augment

    def __getitem__(self, draw: SampleIndex) -> dict[str, Any]:
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


class Loading:
    """A loader whose rate is measured in rounds of a fixed number of batches."""

    def __init__(self, dataset: Dataset[Any], photographs: int, batch_size: int, batches: int) -> None:
        self.samples = batches * batch_size
        self.sampler = StreamSampler(photographs, self.samples, seed=0)
        self.loader: DataLoader[Any] = DataLoader(
            dataset,
            batch_size,
            sampler=self.sampler,
            num_workers=1,
            persistent_workers=True,
            worker_init_fn=_use_one_thread,
        )

    def rate(self, epoch: int) -> float:
        """Load one round and return samples per second."""
        self.sampler.set_epoch(epoch)
        start = time.perf_counter()
        loaded = sum(len(batch["image"]) for batch in self.loader)
        seconds = time.perf_counter() - start
        if loaded != self.samples:
            raise RuntimeError(f"{loaded} samples were loaded, not {self.samples}")
        return loaded / seconds


def _use_one_thread(worker: int) -> None:
    # 0 and not 1: with 1, OpenCV waits for threads that exist only in the parent process.
    cv2.setNumThreads(0)


def compare(stored: Loading, decoded: Loading, rounds: int) -> None:
    """Measure both in turns and print the rates and their ratio."""
    for loading in (stored, decoded):
        loading.rate(0)  # not counted: the workers start, and the files enter the page cache
    rates = [(stored.rate(epoch), decoded.rate(epoch)) for epoch in range(1, rounds + 1)]
    ratios = [fast / slow for fast, slow in rates]
    for name, values in zip(("from the store", "decoding with PIL"), zip(*rates, strict=True), strict=True):
        print(f"{name:18} {statistics.median(values):8.1f} samples/s ({min(values):.1f} - {max(values):.1f})")
    print(f"{'ratio':18} {statistics.median(ratios):8.1f} ({min(ratios):.1f} - {max(ratios):.1f})", end=" ")
    print(f"median (lowest - highest) of {rounds} rounds, one worker process each")


def main() -> None:
    parser = make_parser(__doc__)
    add_originals_options(parser)
    parser.add_argument("--size", type=int, default=224, help="side of the samples in pixels")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--store-batches", type=int, default=128, help="batches in a round from the store")
    parser.add_argument("--decoded-batches", type=int, default=2, help="batches in a round by decoding")
    arguments = parser.parse_args()
    augment: Augmentation = instantiate(OmegaConf.load(AUGMENT), _convert_="all")
    with tempfile.TemporaryDirectory() as scratch:
        root = find_originals(arguments, Path(scratch))[0].parent
        store = prepare(
            Folder(root, csv=None), Path(scratch) / "stores", image_size=arguments.size, workers=1
        )
        count = len(store)
        prepared = StoreDataset(
            [store.folder / "images.npy"], range(count), [UNGRADED] * count, AugmentedView(augment)
        )
        paths = [root / path for path in store.manifest["path"]]
        decoded = DecodedDataset(paths, arguments.size, augment)
        compare(
            Loading(prepared, count, arguments.batch_size, arguments.store_batches),
            Loading(decoded, count, arguments.batch_size, arguments.decoded_batches),
            arguments.rounds,
        )


if __name__ == "__main__":
    main()
