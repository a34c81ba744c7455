"""Read W&B's offline run files, the messages to the server, with its own message types."""

import json
import struct
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_HEADER, _BLOCK, _RECORD = 7, 32768, 7
_PATIENCE = 60.0


@dataclass
class OfflineRun:
    """Content of an offline run file.

    Attributes:
        folder: ``offline-run-...``.
        run: The run's record (run_id, run_group, job_type, display_name, tags, resumed).
        config: Resolved.
        history: Logged rows, in order.
        summary: The explicit entries, nested ones as ``{"max": ...}``.
        metrics: Definitions by name.
        artifacts: Files of artifacts by their path: what tables hold beside numbers.
        exit_code: None if the run did not end in an orderly way.
    """

    folder: Path
    run: Any = None
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    artifacts: dict[str, Path] = field(default_factory=dict)
    exit_code: int | None = None

    def curve(self, name: str) -> list[float]:
        """Values of a metric in the order in which they were logged."""
        return [row[name] for row in self.history if name in row]


def offline_runs(folder: Path) -> list[OfflineRun]:
    """The offline runs that were written below a run's folder, in the order of their beginning.

    W&B's own process writes the last records a moment after ``finish`` has returned: waits for them.
    """
    return [_when_ended(path) for path in sorted((folder / "wandb").glob("offline-run-*"))]


def _when_ended(folder: Path) -> OfflineRun:
    last = time.monotonic() + _PATIENCE
    while (found := read_run(folder)).exit_code is None and time.monotonic() < last:
        time.sleep(0.1)
    return found


def read_run(folder: Path) -> OfflineRun:
    """Read ``run-ID.wandb``, as far as it has been written."""
    from wandb.proto.wandb_internal_pb2 import Record

    found = OfflineRun(folder)
    (file,) = folder.glob("run-*.wandb")
    for data in _records(file.read_bytes()):
        record = Record()
        record.ParseFromString(data)
        _take(found, record)
    return found


def _take(found: OfflineRun, record: Any) -> None:
    kind = record.WhichOneof("record_type")
    if kind == "run":
        found.run = record.run
        _update(found.config, record.run.config.update)
    elif kind == "config":
        _update(found.config, record.config.update)
    elif kind == "history":
        found.history.append({_name(item): json.loads(item.value_json) for item in record.history.item})
    elif kind == "summary":
        _update(found.summary, record.summary.update)
    elif kind == "metric":
        found.metrics[record.metric.name or record.metric.glob_name] = record.metric
    elif kind == "artifact":
        contents = record.artifact.manifest.contents
        found.artifacts |= {item.path: Path(item.local_path) for item in contents}
    elif kind == "exit":
        found.exit_code = record.exit.exit_code


def _update(target: dict[str, Any], items: Any) -> None:
    for item in items:
        target[_name(item)] = json.loads(item.value_json)


def _name(item: Any) -> str:
    return item.key or ".".join(item.nested_key)


def _records(data: bytes) -> Iterator[bytes]:
    """Records of LevelDB's log format with W&B's seven bytes of file header; checks every checksum."""
    assert data[:4] == b":W&B"
    position, parts = _HEADER, []
    while position + _RECORD <= len(data):
        left = _BLOCK - position % _BLOCK
        if left < _RECORD:  # too little for a header: padding
            position += left
            continue
        checksum, length, kind = struct.unpack_from("<IHB", data, position)
        if position + _RECORD + length > len(data):
            return  # being written
        body = data[position + _RECORD : position + _RECORD + length]
        assert checksum == zlib.crc32(data[position + 6 : position + _RECORD + length])
        position += _RECORD + length
        parts.append(body)
        if kind in (1, 4):  # whole, or the last part
            yield b"".join(parts)
            parts = []
