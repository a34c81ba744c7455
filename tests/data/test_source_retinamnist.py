import shutil
import sys
import types

import numpy as np
import pytest
from PIL import Image
from source_layouts import reasons, rows

from drgrade.data.sources.retinamnist import RetinaMNIST
from drgrade.errors import ConfigError, DataError


def arrays(size=28, seed=0, **changes):
    """Arrays as in the published files: images (N, S, S, 3) uint8, labels (N, 1) uint8."""
    rng = np.random.default_rng(seed)
    content = {}
    for split, grades in (("train", [0, 4, 2]), ("val", [1]), ("test", [3, 0])):
        content[f"{split}_images"] = rng.integers(0, 256, (len(grades), size, size, 3), dtype=np.uint8)
        content[f"{split}_labels"] = np.array(grades, dtype=np.uint8)[:, None]
    return content | changes


@pytest.fixture
def root(tmp_path):
    np.savez_compressed(tmp_path / "retinamnist.npz", **arrays())
    return tmp_path


def test_published_split_and_every_pixel_are_kept(root):
    source = RetinaMNIST(root, size=28)
    table = source.read()
    assert rows(table, "image_id", "grade", "patient_id", "split") == [
        ("test_0000", 3, None, "test"),
        ("test_0001", 0, None, "test"),
        ("train_0000", 0, None, "train"),
        ("train_0001", 4, None, "train"),
        ("train_0002", 2, None, "train"),
        ("val_0000", 1, None, "val"),
    ]
    paths = table.manifest.set_index("image_id")["path"]
    with Image.open(root / paths["train_0001"]) as image:
        np.testing.assert_array_equal(np.asarray(image), arrays()["train_images"][1])
    assert table.problems == ()
    assert source.unlisted() == []


def test_archive_is_unpacked_once(root):
    source = RetinaMNIST(root, size=28)
    first = root / source.read().manifest["path"][0]
    before = first.stat().st_mtime_ns
    source.read()
    assert first.stat().st_mtime_ns == before


def test_changed_archive_is_unpacked_into_another_folder(root):
    before = set(RetinaMNIST(root, size=28).read().manifest["path"])
    np.savez_compressed(root / "retinamnist.npz", **arrays(seed=1))
    assert before.isdisjoint(RetinaMNIST(root, size=28).read().manifest["path"])


@pytest.mark.parametrize("size", [64, 224])
def test_size_selects_the_file(tmp_path, size):
    np.savez_compressed(tmp_path / f"retinamnist_{size}.npz", **arrays(size))
    with Image.open(tmp_path / RetinaMNIST(tmp_path, size).read().manifest["path"][0]) as image:
        assert image.size == (size, size)


def test_unpublished_size_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"data\.size=100 is not one of 28, 64, 128, 224"):
        RetinaMNIST(tmp_path, size=100)


def test_grade_out_of_range_is_left_out(root):
    labels = np.array([[0], [9], [2]], dtype=np.uint8)
    np.savez_compressed(root / "retinamnist.npz", **arrays(train_labels=labels))
    assert reasons(RetinaMNIST(root, size=28).read()) == [
        ("train_0001", "labels.csv:3", "grade 9 is not one of 0-4")
    ]


@pytest.mark.parametrize(
    "changes",
    [
        {"train_images": np.zeros((3, 28, 28), np.uint8)},
        {"train_images": np.zeros((3, 28, 28, 3), np.float32)},
        {"val_labels": np.zeros((2, 1), np.uint8)},
    ],
)
def test_arrays_of_another_shape_are_refused(root, changes):
    np.savez_compressed(root / "retinamnist.npz", **arrays(**changes))
    with pytest.raises(DataError, match="is damaged or not a file of RetinaMNIST"):
        RetinaMNIST(root, size=28).read()
    assert [path.name for path in root.iterdir() if path.is_dir()] == []


def test_truncated_file_is_refused(root):
    content = (root / "retinamnist.npz").read_bytes()
    (root / "retinamnist.npz").write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"is damaged.*delete it and download it again"):
        RetinaMNIST(root, size=28).read()


def test_missing_file_explains_how_to_get_it(tmp_path):
    with pytest.raises(DataError, match=r"retinamnist_224\.npz does not exist.*download=true") as error:
        RetinaMNIST(tmp_path).read()
    assert "zenodo.org" in str(error.value)


@pytest.fixture
def medmnist(monkeypatch, tmp_path_factory):
    """The class of the package; its download writes small files in its format."""
    served = tmp_path_factory.mktemp("zenodo")
    np.savez_compressed(served / "retinamnist_64.npz", **arrays(64))
    module = types.ModuleType("medmnist")
    module.calls = []

    def retinamnist(split, download, root, size):
        module.calls.append(size)
        if not (served / f"retinamnist_{size}.npz").exists():
            try:
                raise ConnectionError("Name or service not known")
            except ConnectionError:
                raise RuntimeError("Automatic download failed!")  # noqa: B904  (as medmnist does)
        assert (split, download) == ("train", True)
        shutil.copy(served / f"retinamnist_{size}.npz", root)

    module.RetinaMNIST = retinamnist
    monkeypatch.setitem(sys.modules, "medmnist", module)
    return module


def test_medmnist_download_runs_once(medmnist, tmp_path):
    source = RetinaMNIST(tmp_path / "new", size=64)
    source.download()
    source.download()
    assert medmnist.calls == [64]
    assert len(source.read().manifest) == 6
    assert not (tmp_path / "new/.download").exists()


def test_failed_download_names_the_cause_and_the_manual_download(medmnist, tmp_path):
    with pytest.raises(DataError, match=r"\(ConnectionError: Name or service not known\)") as error:
        RetinaMNIST(tmp_path, size=128).download()
    assert "zenodo.org" in str(error.value)
    assert not (tmp_path / "retinamnist_128.npz").exists()


def test_download_without_medmnist_names_the_package(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "medmnist", None)
    with pytest.raises(DataError, match=r"needs the package medmnist: pip install 'drgrade\[datasets\]'"):
        RetinaMNIST(tmp_path).download()
