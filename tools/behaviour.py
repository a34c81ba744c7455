"""Record what the commands of drgrade compute, as hashes, and compare with an earlier recording.

A change that is meant to keep all results can be checked on one machine: record before the change, record
again afterwards, compare. Hashes differ between processors and between versions of PyTorch, so a recording is
of no use on another machine.

    python tools/behaviour.py --json before.json --folder before    # before the change
    python tools/behaviour.py --compare before.json                 # after it; status 1 if something differs
    python tools/behaviour.py --only prepare,rotation               # some commands, and those that they need
    python tools/behaviour.py --code ../other-checkout              # the code of another checkout

All commands run on drawn demo photographs with fixed seeds and one thread, in about six minutes on one core.
Nothing of drgrade is imported, so that one version of this script serves all versions of the package. What is
hashed is also written to FOLDER/recorded/ as text, without times, paths and versions: ``diff -r`` of two such
folders shows what has changed.
"""

import argparse
import csv
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

REPOSITORY = Path(__file__).resolve().parents[1]
ROOT = "{root}"
"""Stands for the folder of the recording in arguments, and replaces it in what is hashed."""

DATA = ("data.count=60", "data.size=96", "data.workers=1")
TRAIN = ("data.image_size=32", "data.batch_size=16", "logger=none", "trainer=cpu", f"paths.outputs={ROOT}")
PRETEXT = ("pretext.epochs=2", "pretext.max_steps=4")
GRADING = ("protocol.epochs=2", "protocol.frozen_epochs=1", "protocol.val_fraction=0.3")
RUNS = f"{ROOT}/runs"
ENTRY_POINT = "from drgrade.cli import main; main()"
FOLDER_DATA = (
    "data=folder",
    f"data.root={ROOT}/photographs",
    "data.patient_column=patient",
    "data.workers=1",
)
OTHER_DEMO = ("data=demo", "data.count=30", "data.size=96", "data.seed=1", "data.workers=1")
RUN_FILES = (
    "metrics.json",
    "predictions.csv",
    "validation.csv",
    "confusion.csv",
    "split.csv",
    "calibration.json",
)
SWEEP_FILES = ("*/metrics.json", "*/predictions.csv", "*/split.csv", "report/*.csv")


@dataclass(frozen=True)
class Command:
    """A command to run, and the files to hash afterwards.

    Attributes:
        arguments: ``train`` runs train.py, anything else is a command of ``drgrade``; empty: nothing is run.
        files: Patterns of the files, relative to the folder of the recording.
        needs: Names of the commands that have to run before.
        status: Expected exit status.
    """

    arguments: tuple[str, ...]
    files: tuple[str, ...]
    needs: tuple[str, ...] = ()
    status: int = 0


def below(folder: str, *names: str) -> tuple[str, ...]:
    """Return patterns of files in a folder."""
    return tuple(f"{folder}/{name}" for name in names)


def training(
    name: str, *overrides: str, data: tuple[str, ...] = DATA, needs: tuple[str, ...] = ()
) -> Command:
    """A training run in ``runs/NAME``."""
    arguments = ("train", *data, *TRAIN, *PRETEXT, *GRADING, f"hydra.run.dir={RUNS}/{name}", *overrides)
    return Command(arguments, below(f"runs/{name}", *RUN_FILES), needs)


def sweep(name: str, *overrides: str) -> Command:
    """A sweep in ``sweeps/NAME``, with its report."""
    arguments = ("train", "-m", *DATA, *TRAIN, f"hydra.sweep.dir={ROOT}/sweeps/{name}", *overrides)
    return Command(arguments, below(f"sweeps/{name}", *SWEEP_FILES))


def evaluation(name: str, run: str, *overrides: str, needs: tuple[str, ...]) -> Command:
    """An evaluation in ``evaluations/NAME``."""
    folder = f"evaluations/{name}"
    settings = (f"hydra.run.dir={ROOT}/{folder}", f"paths.outputs={ROOT}", "resamples=200", "trainer=cpu")
    files = below(folder, "metrics.json", "intervals.json", "predictions.csv", "confusion.csv")
    return Command(("evaluate", f"checkpoint={run}", *settings, *overrides), files, needs)


def prediction(name: str, run: str, *arguments: str, needs: tuple[str, ...]) -> Command:
    """Predictions in ``predictions/NAME``."""
    folder = f"predictions/{name}"
    settings = (f"checkpoint={run}", f"out={ROOT}/{folder}", "workers=1")
    return Command(("predict", *settings, *arguments), below(folder, "*.csv", "*.jsonl"), needs)


def export(run: str, kind: str, ending: str) -> Command:
    """The run of that name as one file in ``exports``."""
    arguments = ("export", f"checkpoint={RUNS}/{run}", f"format={kind}", f"out={ROOT}/exports/{run}.{ending}")
    return Command(arguments, (f"exports/{run}.{ending}",), (run,))


COMMANDS: dict[str, Command] = {
    # the store, whose folder is named by its key
    "prepare": Command(
        ("prepare", *DATA, "data.image_size=32", f"paths.outputs={ROOT}"),
        below("stores/demo-32px-*", "images.npy", "manifest.csv", "problems.csv"),
    ),
    # the two published systems
    "rotation": training("rotation", "+experiment=rotation_25pct"),
    "msssl": training("msssl", "+experiment=msssl_50pct", "protocol.steps_per_epoch=4", "fold=1"),
    # a pretext run
    "simclr": Command(
        (
            *("train", *DATA, *TRAIN, *PRETEXT, f"hydra.run.dir={RUNS}/simclr"),
            *("+experiment=rotation_pretrain", "pretext=simclr", "protocol=matched"),
        ),
        below("runs/simclr", "metrics.json", "split.csv", "encoder.safetensors"),
    ),
    # another head, schedule, optimiser, augmentation, sampling and protocol; an encoder by its path
    "corn": training(
        "corn",
        *("+experiment=rotation_100pct", f"init={RUNS}/simclr", "head=corn", "protocol=matched"),
        *("protocol.steps_per_epoch=4", "protocol.ema_decay=0.9", "protocol.layer_decay=0.75"),
        *("schedule=cosine", "optimizer=adamw", "augment=strong", "data.balanced=true"),
        needs=("simclr",),
    ),
    # two processes
    "ddp": training(
        "ddp", "+experiment=rotation_50pct", "init=random", "trainer=ddp_cpu", "trainer.devices=2"
    ),
    # every pretext, each with fine-tuning, and their report
    "pretexts": sweep(
        "pretexts",
        *("+experiment=pretext_table", "data.image_size=64", "fold=0", "label_fraction=0.5"),
        *("pretext.max_steps=2", "scale.matched_epochs=1", "scale.matched_steps_per_epoch=2"),
    ),
    # all encoders that were made on the way, whose folders are named by their keys
    "encoders": Command(
        (),
        below("encoders/*", "encoder.safetensors", "metrics.json", "split.csv"),
        needs=("rotation", "msssl", "pretexts"),
    ),
    # probes and their report
    "probes": sweep(
        "probes", "+experiment=probe_table", "protocol=linear,knn", "fold=0,1", "label_fraction=0.25,0.5"
    ),
    "few_shot": sweep(
        "few_shot", "protocol=few_shot", "protocol.shots=2", "fold=0,1", "hydra/launcher=inline"
    ),
    # splits of all fractions, by the cheapest protocol
    "splits": sweep(
        "splits",
        *("protocol=majority", "hydra/launcher=inline"),
        *("label_fraction=0.05,0.1,0.25,0.5,1.0", "fold=0,4"),
    ),
    # without runs that start from an encoder's path, which the keys of a report depend on
    "report": Command(
        ("report", f"{RUNS}/rotation", f"{RUNS}/msssl", f"{RUNS}/ddp", f"out={ROOT}/report", "resamples=200"),
        ("report/*.csv",),
        needs=("rotation", "msssl", "ddp"),
    ),
    # a data set with copies, conflicting grades and files that cannot be used
    "audit": Command(
        (
            *("audit", *FOLDER_DATA, f"paths.outputs={ROOT}", f"paths.audit={ROOT}/audit"),
            "data.image_size=64",
        ),
        ("audit/*.csv", "audit/audit.json", "stores/duplicates/*.csv"),
        needs=("prepare",),
        status=3,
    ),
    "folder": training(
        "folder",
        *("+experiment=rotation_100pct", "init=random", "scale=demo"),
        data=FOLDER_DATA,
        needs=("prepare",),
    ),
    "evaluate": evaluation("own", f"{RUNS}/rotation", "own_run=true", needs=("rotation",)),
    "evaluate_folder": evaluation(
        "folder", f"{RUNS}/msssl", *FOLDER_DATA, "overlap=drop", needs=("msssl", "prepare")
    ),
    "evaluate_ensemble": evaluation(
        "ensemble", f"[{RUNS}/rotation,{RUNS}/msssl]", *OTHER_DEMO, "tta=flips", needs=("rotation", "msssl")
    ),
    "predict": prediction(
        *("msssl", f"{RUNS}/msssl", f"input={ROOT}/photographs", "tta=flips"), needs=("msssl", "prepare")
    ),
    "predict_overlays": prediction(
        *(
            "rotation",
            f"{RUNS}/rotation",
            f"input={ROOT}/photographs/few",
            "overlays=true",
            "reading=thresholds",
        ),
        needs=("rotation", "prepare"),
    ),
    "export_onnx": export("msssl", "onnx", "onnx"),
    "export_torch": export("rotation", "torch", "pt2"),
    "publish": Command(
        ("publish", f"checkpoint={RUNS}/msssl", f"to={ROOT}/published"),
        ("published/model.safetensors",),
        needs=("msssl",),
    ),
    "evaluate_published": evaluation("published", f"{ROOT}/published", *OTHER_DEMO, needs=("publish",)),
}


# --- running


class CommandFailed(Exception):
    """A command ended with an unexpected status, or ran too long."""


def in_order(names: Sequence[str]) -> list[str]:
    """Return the commands and all that they need, each once, in the order in which they can run."""
    ordered: dict[str, None] = {}
    for name in names:
        ordered |= dict.fromkeys([*in_order(COMMANDS[name].needs), name])
    return list(ordered)


def run(name: str, command: Command, code: Path, root: Path, timeout: float) -> None:
    """Run one command of the package in ``code``, its output in a log file.

    Args:
        name: Of the command; the log file is named by it.
        command: What to run.
        code: Checkout whose train.py and package are used.
        root: Folder of the recording.
        timeout: In seconds.

    Raises:
        CommandFailed: With the end of the command's output.
    """
    if not command.arguments:
        return
    kind, *arguments = (argument.replace(ROOT, str(root)) for argument in command.arguments)
    program = [str(code / "train.py")] if kind == "train" else ["-c", ENTRY_POINT, kind]
    one_thread = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    environment = {**os.environ, **one_thread, "PYTHONPATH": str(code), "NO_ALBUMENTATIONS_UPDATE": "1"}
    log = root / "logs" / f"{name}.log"
    log.parent.mkdir(exist_ok=True)
    with log.open("w", encoding="utf-8") as output:
        try:
            status = subprocess.run(
                [sys.executable, *program, *arguments],
                cwd=code,
                env=environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                timeout=timeout,
                check=False,
            ).returncode
        except subprocess.TimeoutExpired:
            status = -1
    if status != command.status:
        what = (
            f"status {status}, expected {command.status}" if status >= 0 else f"no end after {timeout:.0f} s"
        )
        end = "\n".join(log.read_text(encoding="utf-8").splitlines()[-30:])
        raise CommandFailed(f"{' '.join([*program, *arguments])}\n{end}\n{what}")


def make_folder_data(root: Path) -> None:
    """Write ``photographs/``: 30 drawn photographs, copies of them, and files that cannot be used.

    The copies have another grade or another patient than the original.
    """
    (drawn,) = (root / "demo").glob("demo-60-96-0-*")
    target = root / "photographs"
    (target / "few").mkdir(parents=True)
    with (drawn / "labels.csv").open(newline="", encoding="utf-8") as file:
        labels = [(row["image_id"], row["grade"], row["patient_id"]) for row in csv.DictReader(file)][:30]
    rows = [(f"{name}.jpg", grade, patient) for name, grade, patient in labels]
    for number, (name, *_) in enumerate(rows):
        shutil.copyfile(drawn / "images" / name, target / name)
        if number < 4:
            shutil.copyfile(drawn / "images" / name, target / "few" / name)
    first, second = rows[0], rows[1]
    shutil.copyfile(target / first[0], target / "copy.jpg")
    shutil.copyfile(target / second[0], target / "other-patient.jpg")
    (target / "broken.jpg").write_bytes((target / second[0]).read_bytes()[:200])
    rows += [
        ("copy.jpg", str((int(first[1] or 0) + 1) % 5), first[2]),
        ("other-patient.jpg", second[1], "nobody"),
        ("broken.jpg", "0", "broken"),
        ("missing.jpg", "1", "missing"),
        ("few/" + rows[2][0], rows[2][1], rows[2][2]),
    ]
    with (target / "labels.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([("image", "grade", "patient"), *rows])


# --- hashed content

VARYING = re.compile(
    r"seconds|per_second|memory|date|command|commit|version|machine|provenance|detail|reason|note|message"
)
"""Names of columns and keys that are left out: times, places and versions, and sentences."""


def table_text(path: Path, root: Path) -> bytes:
    """A CSV file without the columns that vary."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
        names = csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))).fieldnames or []
    kept = [name for name in names if not VARYING.search(name)]
    lines = [kept, *([row[name] for name in kept] for row in rows)]
    output = io.StringIO()
    csv.writer(output, lineterminator="\n").writerows(lines)
    return _without_paths(output.getvalue(), root)


def json_text(path: Path, root: Path) -> bytes:
    """A JSON or JSON-lines file without the keys that vary."""
    text = path.read_text(encoding="utf-8")
    documents = (
        [json.loads(line) for line in text.splitlines()] if path.suffix == ".jsonl" else [json.loads(text)]
    )
    lines = [json.dumps(_settled(document), indent=1, sort_keys=True) for document in documents]
    return _without_paths("\n".join(lines) + "\n", root)


def _settled(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _settled(each) for key, each in value.items() if not VARYING.search(key)}
    return [_settled(each) for each in value] if isinstance(value, list) else value


def _without_paths(text: str, root: Path) -> bytes:
    return text.replace(str(root), ROOT).encode()


def array_text(arrays: dict[str, np.ndarray]) -> bytes:
    """A line with name, type, shape and hash of each array."""
    lines = []
    for name, array in sorted(arrays.items()):
        sha256 = hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()
        lines.append(f"{name} {array.dtype} {array.shape} {sha256}\n")
    return "".join(lines).encode()


def tensors_text(path: Path, root: Path) -> bytes:
    """The tensors of a safetensors or npy file."""
    if path.suffix == ".npy":
        return array_text({path.stem: np.load(path)})
    from safetensors.numpy import load_file

    return array_text(load_file(path))


def logits_text(path: Path, root: Path) -> bytes:
    """Outputs of an exported file for four images of noise."""
    description = json.loads(path.with_name(f"{path.name}.json").read_text(encoding="utf-8"))
    size = description["preparation"]["image_size"]
    images = np.random.default_rng(0).integers(0, 256, (4, size, size, 3), dtype=np.uint8)
    if path.suffix == ".onnx":
        import onnxruntime  # type: ignore[import-untyped]

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]
        (photographs,) = session.get_inputs()
        return array_text(dict(zip(names, session.run(None, {photographs.name: images}), strict=True)))
    import torch

    torch.set_num_threads(1)
    found = torch.export.load(path).module()(torch.from_numpy(images))
    values = found.values() if isinstance(found, dict) else found
    return array_text({str(i): each.detach().numpy() for i, each in enumerate(values)})


READERS: dict[str, Callable[[Path, Path], bytes]] = {
    ".csv": table_text,
    ".json": json_text,
    ".jsonl": json_text,
    ".npy": tensors_text,
    ".safetensors": tensors_text,
    ".onnx": logits_text,
    ".pt2": logits_text,
}


def recorded(command: Command, root: Path) -> Iterator[tuple[str, str]]:
    """Yield name and hash of each file that a command has left."""
    for pattern in command.files:
        paths = sorted(root.glob(pattern))
        if not paths:
            yield pattern, "missing"
        for path in paths:
            content = READERS[path.suffix](path, root)
            name = str(path.relative_to(root))
            copy = root / "recorded" / f"{name}.txt"
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(content)
            yield name, hashlib.sha256(content).hexdigest()


def record(names: Sequence[str], code: Path, root: Path, timeout: float) -> dict[str, str]:
    """Run commands and return the hash of each file, by its path below ``root``.

    Raises:
        CommandFailed: If one fails.
    """
    hashes: dict[str, str] = {}
    for name in in_order(names):
        start = time.perf_counter()
        run(name, COMMANDS[name], code, root, timeout)
        found = dict(recorded(COMMANDS[name], root))
        if name == "prepare":
            make_folder_data(root)
        hashes |= found
        print(f"\n{name} ({time.perf_counter() - start:.0f} s)")
        for path, sha256 in found.items():
            print(f"  {sha256[:16]:16}  {path}", flush=True)
    return hashes


def compare(before: dict[str, str], now: dict[str, str]) -> list[str]:
    """Return a line for each file whose hash differs or that only one recording has."""
    lines = []
    for path in sorted(before.keys() | now.keys()):
        if path not in now:
            lines.append(f"gone      {path}")
        elif path not in before:
            lines.append(f"new       {path}")
        elif before[path] != now[path]:
            lines.append(f"differs   {path}")
    return lines


def main() -> None:
    """Record, and compare if asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--code", type=Path, default=REPOSITORY, help="checkout that is recorded")
    parser.add_argument("--folder", type=Path, help="new folder for all output; a temporary one without it")
    parser.add_argument("--json", type=Path, help="file for the hashes")
    parser.add_argument("--compare", type=Path, help="hashes of an earlier recording")
    parser.add_argument("--only", help=f"commands, separated by commas: {', '.join(COMMANDS)}")
    parser.add_argument("--timeout", type=float, default=500, help="longest time of a command, in seconds")
    args = parser.parse_args()
    names = args.only.split(",") if args.only else list(COMMANDS)
    unknown = set(names) - COMMANDS.keys()
    if unknown:
        parser.error(f"no such command: {', '.join(sorted(unknown))}")
    if args.folder and args.folder.exists() and any(args.folder.iterdir()):
        parser.error(f"{args.folder} is not empty")
    before = json.loads(args.compare.read_text(encoding="utf-8")) if args.compare else None
    with tempfile.TemporaryDirectory() as scratch:
        root = (args.folder or Path(scratch)).resolve()
        root.mkdir(parents=True, exist_ok=True)
        try:
            hashes = record(names, args.code.resolve(), root, args.timeout)
        except CommandFailed as error:
            sys.exit(str(error))
    if args.json:
        args.json.write_text(json.dumps(hashes, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    if before is None:
        return
    if args.only:
        before = {path: sha256 for path, sha256 in before.items() if path in hashes}
    differences = compare(before, hashes)
    print("", *differences, f"{len(differences)} of {len(before)} files differ", sep="\n")
    sys.exit(bool(differences))


if __name__ == "__main__":
    main()
