"""``drgrade export``: write a trained run as one file."""

from typing import TYPE_CHECKING

from omegaconf import DictConfig

from drgrade.cli.command import run
from drgrade.settings import ExportSettings

if TYPE_CHECKING:
    from drgrade.exporting.export import Exported


def work(cfg: DictConfig) -> None:
    """Export a run and print a summary.

    Args:
        cfg: The composed config (``conf/export.yaml``).
    """
    from drgrade.exporting.export import export

    print("\n".join(summary(export(ExportSettings.read(cfg)))))


def summary(exported: "Exported") -> list[str]:
    """Return the lines that the command prints."""
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
    run(work, ExportSettings)


if __name__ == "__main__":
    main()
