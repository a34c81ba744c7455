"""Summary, facts and caveats of a report."""

import math
import shlex
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from drgrade.grades import NUM_GRADES
from drgrade.reporting.comparison import ALPHA, Pair
from drgrade.reporting.methods import Grouped
from drgrade.reporting.schema import Method, MethodComparison, PublishedRow, ResultRow, Study
from drgrade.runs.reader import LeftOut, Run
from drgrade.runs.settings import SSL, WEIGHTS_HASH, describe_weights_files
from drgrade.stats.bootstrap import TestFold
from drgrade.stats.estimates import Range
from drgrade.stats.formatting import decimal, fraction, listed, plural

_MANY_METHODS = 6
"""Number of methods above which they are counted instead of named."""

_SHOWN_VERSIONS = ("python", "drgrade", "torch", "pytorch-lightning", "timm")
_MOST_LISTED = 10
_STATUSES = ("failed", "interrupted", "unfinished", "not begun")


def summary(study: Study) -> str:
    """Summarise a report in a paragraph."""
    shares = listed([fraction(share) for share in study.label_fractions])
    folds = len({fold for row in study.rows for fold in row.folds})
    seeds = len({seed for row in study.rows for seed in row.seeds})
    draws = len({draw for row in study.rows for draw in row.label_seeds})
    data = study.data.get("data set") or next(iter(study.data.values()), "")
    labels = [method.label for method in study.methods]
    named = listed(labels) if len(labels) <= _MANY_METHODS else f"{len(labels)} methods"
    sentences = [
        f"Grading of diabetic retinopathy (grades 0 to 4) by {named} with {shares} of the labels"
        f"{f' of {data}' if data else ''}.",
        f"Results are computed from the stored predictions of {plural(len(study.runs), 'run')}: "
        f"{plural(len(study.methods), 'method')}, {plural(folds, 'test fold')}, "
        f"{plural(seeds, 'seed')}, {plural(draws, 'label draw')}, "
        f"{plural(int(study.grades.sum()), 'test photograph')} in all folds.",
    ]
    if study.published:
        sentences.append("Results from papers are marked as published.")
    return " ".join(sentences)


def uncalibrated_note(study: Study) -> str:
    """Return the reason why no run was calibrated; empty if one was."""
    if any(row.calibrated for row in study.rows):
        return ""
    reasons = listed(list(dict.fromkeys(row.uncalibrated for row in study.rows)))
    return f"No run was calibrated: {reasons}."


def unfinished_note(study: Study) -> str:
    """Describe how many runs are missing; empty if none is."""
    if not study.missing:
        return ""
    counts = Counter(run.status for run in study.missing)
    order = [*_STATUSES, *sorted(counts.keys() - {*_STATUSES})]
    kinds = listed([f"{counts[status]} {status}" for status in order if status in counts])
    total = plural(len(study.runs) + len(study.missing), "run")
    have = "has" if len(study.missing) == 1 else "have"
    return (
        f"Incomplete: {len(study.missing)} of {total} {have} no result ({kinds}). Rows with missing runs are "
        "marked with *; they use the available folds only and are not comparable with complete rows."
    )


def collect_notes(
    grouped: Grouped,
    rows: Sequence[ResultRow],
    pairs: Sequence[Pair],
    comparisons: Sequence[MethodComparison],
    folds: Mapping[str, TestFold],
) -> list[str]:
    """Collect the caveats, most important first.

    ``pairs`` are the methods to compare, ``comparisons`` those that were possible.
    """
    runs = [run for of_method in grouped.runs.values() for run in of_method]
    return [
        *_completeness(grouped.methods, rows),
        *_test_photographs(grouped.methods),
        *_weights_files(grouped),
        *_encoders(grouped),
        *_protocols(grouped),
        *_missing_grades(folds),
        *_origin(runs),
        *_statistics(grouped.methods, rows, pairs, comparisons),
    ]


def left_out_notes(left_out: Sequence[LeftOut]) -> list[str]:
    """Return one sentence for each kind of folder that the report leaves out."""
    notes = []
    for why in sorted({each.why for each in left_out}):
        folders = [each.folder for each in left_out if each.why == why]
        more = f" and {len(folders) - 1} more" if len(folders) > 1 else ""
        notes.append(
            f"Left out because the report covers tested grading runs only: {why} ({folders[0]}{more})."
        )
    return notes


def published_notes(published: Sequence[PublishedRow], data: str) -> list[str]:
    """Return a sentence if published results are for other data sets than that of the report."""
    others = sorted({row.data for row in published} - {data})
    return [f"Published results are also shown for {listed(others)}, not only for {data}."] if others else []


def _completeness(methods: Sequence[Method], rows: Sequence[ResultRow]) -> Iterator[str]:
    labels = {method.key: method.label for method in methods}
    incomplete = []
    for row in rows:
        if not row.complete:
            folds = f"{'folds' if len(row.folds) > 1 else 'fold'} {', '.join(row.folds)} only"
            incomplete.append(f"{labels[row.method]}, {fraction(row.label_fraction)} ({folds})")
    if incomplete:
        yield f"Incomplete rows: {'; '.join(incomplete)}."


def _test_photographs(methods: Sequence[Method]) -> Iterator[str]:
    saw = [method.label for method in methods if method.saw_test]
    unknown = [method.label for method in methods if method.saw_test is None]
    if saw:
        yield f"Pre-training used the test photographs, without their grades: {'; '.join(saw)}."
    if unknown:
        yield f"It is unknown whether pre-training used the test photographs: {'; '.join(unknown)}."


def _weights_files(grouped: Grouped) -> Iterator[str]:
    """Describe the files that methods started from; warn if runs of a method started from different ones."""
    for method in grouped.methods:
        runs = grouped.runs[method.key]
        files = dict.fromkeys(text for run in runs for text in describe_weights_files(run.config, run.record))
        if files:
            begin = "Pre-training of" if method.init == SSL else ""
            yield f"{begin} {method.label} starts from {'; '.join(files)}.".strip()
        hashes: dict[str, set[object]] = defaultdict(set)
        for run in runs:
            for name, value in run.record.items():
                if name.endswith(WEIGHTS_HASH):
                    hashes[name].add(value)
        if any(len(different) > 1 for different in hashes.values()):
            yield f"Runs of {method.label} started from weights files with different content."


def _encoders(grouped: Grouped) -> Iterator[str]:
    """Warn if runs of a method started from different encoders with the same settings."""
    for method in grouped.methods:
        hashes: dict[tuple[int, str], set[str]] = defaultdict(set)
        for run in grouped.runs[method.key]:
            if "encoder_hash" in run.record:
                # Pre-training on training photographs gives one encoder per fold.
                fold = run.fold if run.config.get("pretrain_on") == "train" else ""
                hashes[run.seed, fold].add(str(run.record["encoder_hash"]))
        if any(len(different) > 1 for different in hashes.values()):
            yield (
                f"Runs of {method.label} started from different encoders that were pre-trained with the same "
                "settings (encoder_hash in metrics.json differs)."
            )
        used = [(fold, each) for (_, fold), of_seed in hashes.items() for each in of_seed]
        if len({*used}) < len(used):
            yield (
                f"Several training seeds of {method.label} start from the same pre-trained encoder: results "
                "hold for this encoder, and the variation between pre-trainings is not in the intervals."
            )


def _missing_grades(folds: Mapping[str, TestFold]) -> Iterator[str]:
    missing = [
        f"fold {name} has no grade {listed([str(grade) for grade in grades])}"
        for name, fold in folds.items()
        if (grades := sorted({*range(NUM_GRADES)} - {*fold.grades.tolist()}))
    ]
    if missing:
        yield (
            f"Some folds have no test photographs of some grades: {'; '.join(missing)}. Metrics that are "
            "undefined in such a fold count as 0.5 (AUROC) or 0 (others) in the means over the folds. "
            "Recall is computed over all folds together."
        )


def _protocols(grouped: Grouped) -> Iterator[str]:
    """Describe the validation data of the protocols; protocols with the same sentence are merged."""
    sentences: dict[str, list[str]] = {}
    for method in grouped.methods:
        split = grouped.runs[method.key][0].config["split"]
        if split["file"] is None:
            names = sentences.setdefault(_validation(split), [])
            if method.protocol not in names:
                names.append(method.protocol)
    for sentence, names in sentences.items():
        yield f"Protocol{'s' if len(names) > 1 else ''} {listed(names)}: {sentence}"


def _validation(split: Mapping[str, Any]) -> str:
    if not split["val_fraction"]:
        return "no validation photographs."
    if split["val_within_fraction"]:
        return "validation labels are part of the label fraction."
    share = f"{100 * split['val_fraction']:g} %"
    return f"validation labels ({share} of the training photographs) are not counted in the label fraction."


def _origin(runs: Sequence[Run]) -> Iterator[str]:
    commits, packages = _distinct(runs, _commit), _distinct(runs, _versions)
    if len(commits) > 1:
        yield f"The runs used {len(commits)} different commits."
    if any(each.endswith("+") for each in commits):
        yield "Some runs used code with uncommitted changes (marked +)."
    if len(packages) > 1:
        yield f"The runs used {len(packages)} different sets of package versions."


def _statistics(
    methods: Sequence[Method],
    rows: Sequence[ResultRow],
    pairs: Sequence[Pair],
    comparisons: Sequence[MethodComparison],
) -> Iterator[str]:
    labels = {method.key: method.label for method in methods}
    reported = {(row.method, row.label_fraction) for row in rows}
    compared = {(each.first, each.second, each.label_fraction) for each in comparisons}
    for first, second in pairs:
        for share in sorted({row.label_fraction for row in rows}):
            both = {(first, share), (second, share)} <= reported
            if both and (first, second, share) not in compared:
                yield (
                    f"Not compared at {fraction(share)} of the labels because no fold, seed and label draw "
                    f"are in common: {labels[first]}; {labels[second]}."
                )
    yield from _trainings(rows, comparisons)
    if any(len(row.folds) == 1 for row in rows):
        yield (
            "A single fold has no standard deviation; its interval reflects the test photographs of that "
            "fold only."
        )


def _trainings(rows: Sequence[ResultRow], comparisons: Sequence[MethodComparison]) -> Iterator[str]:
    """Describe how far seeds and label draws support a verdict, and what the comparisons can show."""
    if any(len(row.seeds) < 2 for row in rows):
        yield (
            "Rows of one training seed give no verdict: their comparisons have no interval and no p-value. "
            "Use at least three seeds, and several label draws: seed=0,1,2 split.label_seed=0,1,2."
        )
    once = sorted({row.label_fraction for row in rows if row.label_fraction < 1 and len(row.label_seeds) < 2})
    if once:
        shares = listed([fraction(share) for share in once])
        yield (
            f"With {shares} of the labels there is one draw of the labels (split.label_seed), so results "
            "hold for these labels only."
        )
    sizes = Range.of(each.detectable for each in comparisons)
    if math.isfinite(sizes.low):
        family = plural(sum(math.isfinite(each.p_value) for each in comparisons), "comparison")
        yield (
            f"Power: with {family}, the smallest true difference in QWK that has p (Holm) < {ALPHA} with a "
            f"probability of at least 80 % is {_span(sizes)}."
        )


def _span(ends: Range) -> str:
    low, high = decimal(ends.low), decimal(ends.high)
    return low if low == high else f"{low} to {high}, depending on the comparison"


def data_facts(runs: Sequence[Run], folds: Mapping[str, TestFold]) -> dict[str, str]:
    """Return the facts that all runs share, by name, in display order."""
    run = runs[0]
    data, split = run.config["data"], run.config["split"]
    tested = sum(len(fold.image_ids) for fold in folds.values())
    groups = sum(fold.num_groups for fold in folds.values())
    roles = {role: run.record.get(f"data_{role}") for role in ("labelled", "unlabelled", "external")}
    facts = {
        "data set": str(run.record["data"]),
        "further data sets": "; ".join(f"{role}: {name}" for role, name in roles.items() if name is not None),
        "hash": str(run.record["data_hash"]),
        "photographs": str(len(run.split)),
        "tested on": f"{tested} photographs in {groups} groups (patients, near-duplicates)",
        "image size": f"{data['image_size']} px",
        "illumination": "" if data["illumination"] == "none" else str(data["illumination"]),
        "folds": _fold_scheme(run, list(folds)),
        "split seed": "" if run.fold == "published" or split["file"] else str(split["seed"]),
    }
    return {name: text for name, text in facts.items() if text}


def _fold_scheme(run: Run, folds: Sequence[str]) -> str:
    if run.fold == "published":
        return "the published test set"
    if run.config["split"]["file"] is not None:
        return f"{', '.join(folds)} of a split file"
    count = run.config["folds"]
    return str(count) if len(folds) == count else f"{', '.join(folds)} of {count}"


def provenance_facts(
    runs: Sequence[Run], commands: Sequence[str], resamples: int, seed: int
) -> dict[str, str]:
    """Return commands, commits, versions, hardware, seeds and the settings of the bootstrap, by name."""
    single = {
        shlex.join(run.provenance["command"])
        for run in runs
        if not run.location.sweep and "command" in run.provenance
    }
    facts = {
        "commands": _joined([*commands, *sorted(single)], "\n"),
        "commits": _joined(_distinct(runs, _commit)),
        "versions": _joined(_distinct(runs, _versions)),
        "hardware": _joined(_distinct(runs, _hardware)),
        "seeds": _joined([str(seed) for seed in sorted({run.seed for run in runs})]),
        "label seeds": _joined([str(seed) for seed in sorted({run.label_seed for run in runs})]),
        "intervals": "95 %, hierarchical bootstrap (training seeds and label draws, then groups inside "
        f"folds), {resamples} resamples, seed {seed}",
    }
    return {name: text for name, text in facts.items() if text}


def _distinct(runs: Sequence[Run], fact: Callable[[Run], str]) -> list[str]:
    return sorted({text for run in runs if (text := fact(run))})


def _commit(run: Run) -> str:
    return str(run.provenance.get("commit") or "")


def _versions(run: Run) -> str:
    known = run.provenance.get("versions") or {}
    return ", ".join(f"{name} {known[name]}" for name in _SHOWN_VERSIONS if name in known)


def _hardware(run: Run) -> str:
    machine = run.provenance.get("machine")
    if not machine:
        return ""
    devices = run.provenance.get("devices", 1)
    device = machine.get("gpu") or f"{machine.get('processor')} with {machine.get('cores')} cores"
    return f"{device} ({devices} devices)" if devices != 1 else str(device)


def _joined(texts: Sequence[str], separator: str = "; ") -> str:
    rest = [f"and {len(texts) - _MOST_LISTED} more"] if len(texts) > _MOST_LISTED else []
    return separator.join([*texts[:_MOST_LISTED], *rest])
