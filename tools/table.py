"""Collects the runs of a sweep into a Markdown table: python tools/table.py outputs/sweeps/idrid."""

import argparse
import json
from pathlib import Path

import pandas as pd


def read_runs(folder: Path) -> pd.DataFrame:
    """Read every finished grading run below a folder.

    Args:
        folder: A sweep's folder.

    Returns:
        One row per run: its ``metrics.json`` and ``method``, its name without the fraction.
    """
    rows = []
    for path in sorted(folder.glob("**/metrics.json")):
        record = json.loads(path.read_text())
        if record.get("status") == "finished" and "test/qwk" in record:
            config = (path.parent / "config.yaml").read_text()
            name = next(line.split(": ")[1] for line in config.splitlines() if line.startswith("name: "))
            rows.append({**record, "method": name.rsplit("_", 1)[0]})
    return pd.DataFrame(rows)


def table(runs: pd.DataFrame) -> str:
    """Write QWK (and accuracy) on the test photographs, a line for each method and kind of first weights.

    Args:
        runs: From :func:`read_runs`.

    Returns:
        Markdown, with the hashes of data and splits below it.
    """
    runs["cell"] = [
        f"{q:.3f} ({a:.2f})" for q, a in zip(runs["test/qwk"], runs["test/accuracy"], strict=True)
    ]
    keys = ["method", "protocol", "init", "seed"]
    grid = runs.pivot_table(index=keys, columns="label_fraction", values="cell", aggfunc="first").sort_index()
    head = [*keys, *(f"{fraction:.0%}" for fraction in grid.columns)]
    lines = [
        head,
        ["---"] * len(head),
        *([*map(str, index), *row] for index, row in zip(grid.index, grid.to_numpy(), strict=True)),
    ]
    splits = runs.groupby(["protocol", "label_fraction"])["split_hash"].first().str[:12]
    below = [f"data {runs['data'].iloc[0]} {runs['data_hash'].iloc[0][:12]}; splits:"]
    below += [f"{protocol} {fraction:.0%} {code}" for (protocol, fraction), code in splits.items()]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n\n" + ", ".join(below)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    print(table(read_runs(parser.parse_args().folder)))


if __name__ == "__main__":
    main()
