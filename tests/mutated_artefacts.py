"""Readers of artefacts, and mutations of their files: drop, retype, nest and enlarge fields, damage bytes."""

import json
import os
import random
import shutil
import threading
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml
from omegaconf import OmegaConf

from drgrade.data.store import Store
from drgrade.data.store_builder import CropArchive
from drgrade.errors import DrgradeError
from drgrade.exporting.export import describe
from drgrade.model_card.card import write_model_card
from drgrade.models.encoder import TimmEncoder, is_complete_encoder, load_encoder, save_encoder
from drgrade.prediction.checkpoint import load_model
from drgrade.prediction.grader import Grader
from drgrade.prediction.inputs import InputFile, InputState
from drgrade.prediction.job_state import ProgressDatabase, check_same_job, describe_job, write_manifest
from drgrade.prediction.own_photographs import run_photographs
from drgrade.prediction.results import GradeResult, PredictionRow
from drgrade.publishing.hub import save_pretrained
from drgrade.reporting.dashboard import read_dashboard_sweep
from drgrade.reporting.study import find_cells
from drgrade.runs.reader import RunLocation, read_run
from drgrade.runs.run_dir import read_config, resolve_run_dir
from drgrade.sweeps.cells import Cell, progress, read_sweep, write_sweep
from drgrade.sweeps.launcher import peak_gpu_memory
from drgrade.training.pretraining import pretraining_saw_test

PIXELS = np.zeros((1, 32, 32, 3), np.uint8)
VALUES = [
    *(None, True, False, 0, 1, -1, -5, 7, 10**9, 10**30, 0.5, -0.0, 1e308, float("inf"), float("nan")),
    *(
        "",
        "x",
        "../../x",
        "/etc/passwd",
        "\0",
        "\n",
        "\ud800",
        "\udc80",
        "=1+1",
        "é" * 300,
        "${oc.env:HOME}",
        "${seed}",
        "???",
        "1e5",
    ),
    *([], {}, [1], [[]], {"a": 1}, {"_target_": "os.system", "command": "true"}, ["x"] * 300, "x" * 100_000),
    *({"_target_": "drgrade.models.encoder.TimmEncoder", "name": "hf-hub:a/b"}, list(range(1000))),
]


def deep(levels: int) -> object:
    """Return nested lists and mappings."""
    value: object = 1
    for number in range(levels):
        value = [value] if number % 2 else {"a": value}
    return value


def mutate(rng: random.Random, value: object) -> object:
    """Return a copy of nested content with a few fields dropped, retyped, nested, enlarged or added."""
    value = json.loads(json.dumps(value))
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        parent, key = _place(rng, value)
        if parent is None:
            return rng.choice(VALUES)
        change = rng.choice(["drop", "retype", "retype", "nest", "enlarge", "rename", "deep", "swap"])
        old = parent[key]
        if change == "drop":
            del parent[key]
        elif change == "nest":
            parent[key] = rng.choice([[old], {"a": old}, {key: old} if isinstance(key, str) else [old, old]])
        elif change == "enlarge":
            parent[key] = _enlarged(old)
        elif change == "rename" and isinstance(parent, dict):
            parent[rng.choice(["x", "_target_", "_args_", "", "a.b"])] = parent.pop(key)
        elif change == "deep":
            parent[key] = deep(rng.choice([5, 40, 400]))
        elif change == "swap":
            other, name = _place(rng, value)
            parent[key] = json.loads(json.dumps(other[name])) if other is not None else None
        else:
            parent[key] = rng.choice(VALUES)
    return value


def _place(rng, value):
    """Return a random mapping or list inside the content, and a key of it."""
    places = []
    waiting = [value]
    while waiting:
        node = waiting.pop()
        keys = list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else []
        places += [(node, key) for key in keys]
        waiting += [node[key] for key in keys]
    return rng.choice(places) if places else (None, None)


def _enlarged(value):
    if isinstance(value, bool) or value is None:
        return [value] * 1000
    if isinstance(value, int | float):
        return value * 10**12 + 1
    if isinstance(value, str):
        return value * 2000
    return (
        value * 50 if isinstance(value, list) else {f"{name}{i}": value for name in value for i in range(50)}
    )


def damage(rng: random.Random, data: bytes) -> bytes:
    """Return bytes with a part cut, overwritten, repeated or inserted."""
    kind = rng.choice(["cut", "flip", "flip", "zero", "repeat", "insert", "empty", "number"])
    at = rng.randrange(len(data) + 1)
    length = rng.choice([1, 8, 100, 1000])
    if kind == "cut":
        return data[:at]
    if kind == "flip":
        changed = bytearray(data)
        for place in (rng.randrange(len(data)) for _ in range(rng.choice([1, 5, 50])) if data):
            changed[place] ^= 1 << rng.randrange(8)
        return bytes(changed)
    if kind == "zero":
        return data[:at] + bytes(min(length, len(data) - at)) + data[at + length :]
    if kind == "repeat":
        return data[:at] + data[max(0, at - length) :]
    if kind == "insert":
        return data[:at] + rng.randbytes(length) + data[at:]
    if kind == "number":
        digits = [place for place, sign in enumerate(data) if 48 <= sign <= 57]
        if digits:
            place = rng.choice(digits)
            return (
                data[:place] + rng.choice([b"9" * 40, b"-1", b"1e400", b"NaN", b"x", b""]) + data[place + 1 :]
            )
    return b""


TEXTS = [
    b"[" * 100_000,
    b'{"a":' * 20_000,
    b"a: &a [x,x]\nb: &b [*a,*a]\nc: [*b,*b]\n",
    b"a: !!python/object/apply:os.system ['true']\n",
    b"{" * 50,
    b"\xff\xfe\x00",
    b"null",
    b"[]",
    b'"text"',
    b"- " * 20_000,
]


@dataclass(frozen=True)
class Artefact:
    """A folder with files that are mutated, and its reader."""

    folder: Path
    files: tuple[str, ...]
    read: Callable[[Path], object]

    def attack(self, rng: random.Random) -> tuple[str, str]:
        """Mutate one file, and return it and the result of :meth:`read_with`."""
        name = rng.choice(self.files)
        return name, self.read_with(name, mutated(rng, name, (self.folder / name).read_bytes()))

    def read_changed(self, name: str, place: str, value: object) -> str:
        """Change one value of a JSON or YAML file, ``a.b.0``, and return the result of :meth:`read_with`."""
        data = (self.folder / name).read_bytes()
        content = json.loads(data) if name.endswith(".json") else yaml.safe_load(data)
        node, (*groups, last) = content, [int(part) if part.isdigit() else part for part in place.split(".")]
        for group in groups:
            node = node[group]
        node[last] = value
        return self.read_with(name, (json.dumps if name.endswith(".json") else _yaml)(content).encode())

    def read_with(self, name: str, after: bytes) -> str:
        """Read the artefact with another content of one file, which is restored.

        Returns:
            How it ended: ``read`` or ``refused``.

        Raises:
            AssertionError: If it ended in any other way.
        """
        path = self.folder / name
        before = path.read_bytes()
        path.unlink()  # it may be linked
        path.write_bytes(after)
        try:
            self.read(self.folder)
            return "read"
        except DrgradeError as error:
            message = str(error)
            assert message, name
            assert len(message) < 20_000, (name, message[:300])
            return "refused"
        except BaseException as error:
            raise AssertionError(f"{name}: {type(error).__name__}: {error}\n{after[:3000]!r}") from error
        finally:
            path.write_bytes(before)

    def opens_pipe(self, name: str) -> bool:
        """Replace one file by a pipe, read the artefact, and return True if the pipe was opened.

        The artefact may be read without the file, or refused with a DrgradeError.
        """
        path, kept = self.folder / name, self.folder / f"{name}.kept"
        path.rename(kept)
        os.mkfifo(path)
        ended, opened = threading.Event(), threading.Event()

        def write() -> None:
            while not ended.wait(0.01):
                with suppress(OSError):  # until somebody reads it
                    os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK))
                    opened.set()

        writer = threading.Thread(target=write)
        writer.start()
        try:
            with suppress(DrgradeError):
                self.read(self.folder)
        finally:
            ended.set()
            writer.join()
            path.unlink()
            kept.rename(path)
        return opened.is_set()


def mutated(rng: random.Random, name: str, data: bytes) -> bytes:
    """Return the mutated content of a file."""
    kind = rng.random()
    if name.endswith((".json", ".yaml")) and kind < 0.85:
        content = json.loads(data) if name.endswith(".json") else yaml.safe_load(data)
        changed = mutate(rng, content)
        return (json.dumps(changed) if name.endswith(".json") else _yaml(changed)).encode()
    return rng.choice(TEXTS) if kind > 0.97 and name.endswith((".json", ".yaml")) else damage(rng, data)


def _yaml(value) -> str:
    try:
        return yaml.safe_dump(value, allow_unicode=True)
    except RecursionError:
        return json.dumps(value)


def artefacts(run: Path, photographs, scratch: Path) -> dict[str, Artefact]:
    """Make an artefact of every kind below a folder.

    Args:
        run: A finished run.
        photographs: Its photographs, prepared.
        scratch: An empty folder.
    """
    run = Path(shutil.copytree(run, scratch / "run", ignore=shutil.ignore_patterns(".hydra", "export")))
    published = save_pretrained(run, scratch / "published")
    encoder = TimmEncoder("test_resnet", image_size=32)
    (scratch / "encoder").mkdir()
    save_encoder(encoder, scratch / "encoder", {"pretext": {"name": "rotation"}, "steps": 2, "data": "demo"})
    (scratch / "encoder" / "seen.txt").write_text("0" * 64 + "\n")
    store = Path(shutil.copytree(photographs.stores[0].folder, scratch / "store"))
    sweep = scratch / "sweep"
    write_sweep(sweep, "sweep", ["train.py", "-m"], [Cell("cell", ("seed=0",))])
    shutil.copytree(run, sweep / "cell")
    change = OmegaConf.load(sweep / "cell" / "config.yaml")
    change.logger = {"_target_": "drgrade.training.tracking.wandb_logger.wandb_logger", "project": "drgrade"}
    OmegaConf.save(change, sweep / "cell" / "config.yaml")
    job_folder = scratch / "job"
    grader = Grader.load(run, "cpu")
    job = describe_job(grader, ["photograph.jpg"], tta="none")
    probabilities = (0.2,) * 5
    result = GradeResult(0, probabilities, probabilities, 2.0, 0.6, True, 0.5, 1.0, 0.0, None)
    with closing(ProgressDatabase(job_folder)) as database:
        item = InputFile("photograph.jpg", "photograph")
        database.add_input(item, InputState(1, 1))
        row = PredictionRow(item.path, item.image_id, "graded", "good", result=result)
        database.write([(row, InputState(1, 1))])
    write_manifest(job_folder, job, grader, status="unfinished")
    config = OmegaConf.load(run / "config.yaml")

    def grade(folder):
        trained = load_model(folder)
        Grader([trained], "cpu").grade(PIXELS)
        describe(trained)
        describe_job(Grader([trained], "cpu"), ["x"])

    def publish(folder):
        shutil.rmtree(scratch / "out", ignore_errors=True)
        save_pretrained(folder, scratch / "out")

    def own(folder):
        trained = load_model(folder)
        found = run_photographs(trained.config, trained.record, folder, scratch / "stores")
        assert found.split_hash

    def resume(folder):
        changed = config.copy()
        changed.resume = str(folder)
        resolve_run_dir(changed)
        read_config(folder)

    def rows(folder):
        with closing(ProgressDatabase(folder)) as database:
            database.add_input(InputFile("photograph.jpg", "photograph"), InputState(1, 1))
            list(database.rows())

    def open_store(folder):
        opened = Store.open(folder)
        assert opened.images[:2].sum() >= 0
        assert opened.thumbnails[:2].sum() >= 0
        opened.left_out.to_csv()
        opened.manifest.to_csv()
        archive = CropArchive.open(folder, finished=True)
        if archive:
            archive.crop(archive.records[0])

    def load(folder):
        is_complete_encoder(folder)
        pretraining_saw_test(folder / "encoder.safetensors", photographs)
        load_encoder(TimmEncoder("test_resnet", image_size=32), folder)

    def cells(folder):
        read_sweep(folder)
        find_cells([folder])
        progress(folder / "cell")
        read_dashboard_sweep(folder)
        peak_gpu_memory(folder / "cell")

    checkpoint = f"checkpoints/{json.loads((run / 'metrics.json').read_text())['checkpoint']}"
    settings = ("config.yaml", "metrics.json", "calibration.json")
    tables = ("split.csv", "predictions.csv")
    return {
        "run": Artefact(run, (*settings, "config.yaml", checkpoint), grade),
        "card": Artefact(run, (*settings, "provenance.json", *tables), lambda f: write_model_card(f, 10)),
        "report": Artefact(run, (*settings, "provenance.json", *tables), lambda f: read_run(RunLocation(f))),
        "publish": Artefact(run, (*settings, "provenance.json"), publish),
        "photographs": Artefact(run, ("config.yaml", "metrics.json"), own),
        "resume": Artefact(run, ("config.yaml",), resume),
        "published": Artefact(published, ("config.json", "config.json", "model.safetensors"), grade),
        "encoder": Artefact(scratch / "encoder", ("encoder.json", "encoder.safetensors", "seen.txt"), load),
        "store": Artefact(
            store,
            ("store.json", "manifest.csv", "problems.csv", "images.npy", "thumbnails.npy", "files.jsonl"),
            open_store,
        ),
        "job": Artefact(job_folder, ("prediction.json",), lambda folder: check_same_job(folder, job)),
        "rows": Artefact(job_folder, (".progress.sqlite",), rows),
        "sweep": Artefact(
            sweep, ("sweep.json", "cell/config.yaml", "cell/provenance.json", "cell/metrics.json"), cells
        ),
    }
