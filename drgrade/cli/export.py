"""``drgrade export``: a run as one file."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from drgrade.cli.arguments import run
from drgrade.errors import ConfigError

if TYPE_CHECKING:
    from drgrade.exporting.export import Exported

USAGE = """\
usage: drgrade export checkpoint=RUN format=onnx|torch [name=value ...]

Writes a trained run as one file that needs no drgrade to run: RUN/export/grader.onnx (for onnxruntime and
others) or grader.pt2 (torch.export, for torch), and beside it what it takes and gives as JSON,
grader.onnx.json. In the file are normalisation, model, head and calibration; it takes prepared photographs,
uint8 RGB (B, S, S, 3), any number of them, and gives logits, probabilities, grade, expected_grade and
p_referable. The file is held against the model before it is kept: logits differ by less than 1e-4.

Preparation (finding the disc, cutting it out) stays outside: `drgrade prepare` does it exactly, and
examples/grade_photograph.py nearly so, in 20 lines without drgrade. docs/export.md says how nearly.

  drgrade export checkpoint=outputs/runs/RUN format=onnx
  drgrade export checkpoint=RUN format=onnx int8=true        smaller and faster; says what it costs in QWK
  python examples/grade_photograph.py RUN/export/grader.onnx photograph.jpg

For research only; it is no medical device.
"""


@dataclass(frozen=True)
class Settings:
    """What can be set on the command line."""

    checkpoint: tuple[Path, ...] = field(
        default=(), metadata={"help": "folder of a finished grading run; one, as a file is one model"}
    )
    format: Literal["onnx", "torch"] = field(default="onnx", metadata={"help": "onnx, or torch (.pt2)"})
    out: Path | None = field(
        default=None,
        metadata={"help": "the file; else RUN/export/grader.onnx, grader-int8.onnx or grader.pt2"},
    )
    overwrite: bool = field(default=False, metadata={"help": "replace a file that is there"})
    int8: bool = field(
        default=False, metadata={"help": "eight bits in place of 32: a quarter of the size (format=onnx)"}
    )
    photographs: Path | None = field(
        default=None,
        metadata={"help": "int8: folder with photographs to measure ranges on; else the run's training ones"},
    )
    count: int = field(default=128, metadata={"help": "int8: so many of them at most"})
    resamples: int = field(
        default=10_000, metadata={"help": "int8: of the bootstrap, for the interval of QWK"}
    )
    seed: int = field(default=0, metadata={"help": "int8: which photographs are drawn, and of the bootstrap"})


def work(paths: list[Path], settings: Settings) -> None:
    """Export, and say what came out.

    Args:
        paths: None are expected.
        settings: Of the command line.

    Raises:
        DrgradeError: If something cannot be done.
    """
    if paths:
        raise ConfigError(f"{paths[0]}: a run is written checkpoint={paths[0]}")
    if not settings.checkpoint:
        raise ConfigError("no run is given: drgrade export checkpoint=RUN format=onnx")
    if len(settings.checkpoint) > 1:
        raise ConfigError(
            f"checkpoint names {len(settings.checkpoint)} runs and a file holds one, ensembles are not "
            "exported: export each of them, and average their probabilities where they are used"
        )
    from drgrade.exporting.export import Wanted, export

    (folder,) = settings.checkpoint
    wanted = Wanted(
        settings.format,
        settings.out,
        settings.overwrite,
        settings.int8,
        settings.photographs,
        settings.count,
        settings.resamples,
        settings.seed,
    )
    print("\n".join(summary(export(folder, wanted))))


def summary(exported: "Exported") -> list[str]:
    """What the command prints.

    Args:
        exported: What was written.

    Returns:
        Lines.
    """
    parity, int8 = exported.parity, exported.int8
    lines = [f"{exported.path}  {exported.size / 1e6:.1f} MB", str(exported.description)]
    which = "before int8, " if int8 else ""
    lines.append(
        f"{which}logits differ from the model's by at most {parity.logits:.1e}, probabilities by "
        f"{parity.probabilities:.1e} ({parity.photographs} drawn photographs)"
    )
    if int8 is None:
        return lines
    lines += [f"int8 ({recipe}): logits differ by {gap:.4f} on average" for recipe, gap in int8.tried.items()]
    before, after = int8.milliseconds
    lines += [
        f"kept: {int8.recipe}; ranges from {int8.calibrated_on} photographs, chosen by {int8.chosen_on} "
        "others",
        f"size {int8.bytes_before / 1e6:.1f} -> {exported.size / 1e6:.1f} MB, one photograph on one thread "
        f"{before:.1f} -> {after:.1f} ms",
        f"same grade for {100 * int8.agreement.grades:.1f} % of {int8.agreement.photographs} {int8.of}, "
        f"expected grade differs by {int8.agreement.expected:.3f} on average",
    ]
    if int8.kappas is None:
        return [*lines, int8.note]
    figures = {"QWK": int8.kappas.before, "in int8": int8.kappas.after, "change": int8.kappas.change}
    written = [
        f"{name} {each.value:.3f} ({each.interval.low:.3f} to {each.interval.high:.3f})"
        for name, each in figures.items()
    ]
    return [*lines, f"{', '.join(written)}; 95 % intervals"]


def main() -> None:
    """Run from the command line."""
    run(work, Settings(), USAGE)


if __name__ == "__main__":
    main()
