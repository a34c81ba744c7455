"""Files and tables for tests of sources; sources decode nothing, so photographs may be empty."""

import pandas as pd


def files(root, *paths):
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()
    return root


def text(path, *lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def rows(table, *columns):
    values = table.manifest[list(columns)].itertuples(index=False, name=None)
    return [tuple(None if pd.isna(value) else value for value in row) for row in values]


def reasons(table):
    assert all(problem.action == "left out" for problem in table.problems)
    return [(problem.image_id, problem.path, problem.reason) for problem in table.problems]
