"""What records say of data and its partitions: lists of sentences, empty where they say nothing."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np

from cxrbench.leaderboard.report.subject import Subject, at, mapping
from cxrbench.leaderboard.sentences import BY_PATIENT, EARLIER
from cxrbench.leaderboard.site.facts import show

OWN_RULES = ("complete", "counts", "coverage", "images", "notes", "patients", "phantom", "rule", "warnings")  # fmt: skip


def design(s: Subject) -> list[str]:
    """Prospective or retrospective."""
    return ["No patients: the films are drawn by a program."] if phantom(s) else [EARLIER]


def phantom(s: Subject) -> bool:
    """Whether the films are drawn."""
    return bool(s.first.data_facts.get("phantom"))


def sources(s: Subject) -> list[str]:
    """Data sets with version, options, revision and address."""
    record, test = s.first, s.first.tested_on
    found = list(_source(s, record.dataset, record.dataset_version, record.dataset_params, record.revision))  # fmt: skip
    if test is not None:
        found.append("Tested on another data set:")
        found += _source(s, test.dataset, test.version, test.params, test.revision)
    return found


def _source(
    s: Subject, name: str, version: int, params: dict[str, Any], revision: str
) -> Iterator[str]:
    options = f"; options: {show(params)}" if params else ""
    yield f"{name}, read by version {version} of its reader{options}."
    home, licence = s.home(name, version)
    if home:
        yield f"From {home}" + (f", licence: {licence}." if licence else ".")
    yield f"Revision (digest of files and labels): {revision}."


def counts(s: Subject) -> list[str]:
    """Images and patients of every part or fold."""
    facts = s.first.data_facts
    held = [
        f"{part}: {show(at(each, 'images'))} images of {show(at(each, 'patients'))} patients"
        for part, each in mapping(facts.get("counts")).items()
    ]
    whole = [f"All: {show(facts['images'])} images of {show(facts.get('patients'))} patients"] if "images" in facts else []  # fmt: skip
    test = s.first.tested_on
    other = []
    if test is not None:
        images, patients = (test.data_facts.get(key) for key in ("images", "patients"))
        other = [f"{test.dataset}: {show(images)} images of {show(patients)} patients"]
    return [f"{text}." for text in [*whole, *held, *other]]


def excluded(s: Subject) -> list[str]:
    """What was there and is not used, and what is known to be missing."""
    record = s.first
    facts = [record.data_facts, *([record.tested_on.data_facts] if record.tested_on else [])]
    found = []
    for fact in facts:
        present, promised = (at(fact, "coverage", key) for key in ("present", "promised"))
        if present is not None and promised is not None:
            found.append(f"{show(present)} of the data set's {show(promised)} images are present.")
        notes = {
            key: value for key, value in mapping(fact.get("notes")).items() if key != "coverage"
        }
        found += [f"{key}: {show(value)}." for key, value in notes.items()]
    skipped = {str(n) for stage in s.stages for n in stage.facts.get("skipped_images") or []}
    if any("skipped_images" in stage.facts for stage in s.stages):
        found.append(f"{len(skipped)} unreadable images left out.")
    return found


def subsets(s: Subject) -> list[str]:
    """What a part of the data was chosen by."""
    cut = s.first.train_images
    return [
        f"Labels used: {show(s.table.labels)}." if len(s.table.labels) <= 12 else f"Labels used: {len(s.table.labels)} ({', '.join(s.table.labels)}).",
        f"The training part was cut to {cut} images; validation and test are whole." if cut is not None
        else "All images of the split's parts are used.",
    ]  # fmt: skip


def missing(s: Subject) -> list[str]:
    """Unknown labels and unreadable images."""
    unknown = {label: _unknown(s, label) for label in s.table.labels}
    known = {label: count for label, count in unknown.items() if count is not None}
    if not known:
        return []
    some = ", ".join(f"{label} {count:,}" for label, count in known.items() if count)
    return [
        "An image whose label is unknown is left out of that label alone, in training and in scores.",
        f"Test images with an unknown label: {some or 'none'}.",
    ]


def _unknown(s: Subject, label: str) -> int | None:
    found = [at(record.scores, "labels", label, "unknown") for record in s.row.records]
    counts = [count for count in found if isinstance(count, int)]
    return sum(counts) if counts and len(counts) == len(found) else None


def preprocessing(s: Subject) -> list[str]:
    """Sizes, views and what rewrote the images."""
    found = []
    for where, recipe in s.recipes:
        load, size = recipe.get("load"), recipe.get("size")
        if load is not None and size is not None:
            of = f" ({where})" if where else ""
            ways = ", ".join(f"{k.removesuffix('_view')}: {recipe[k]}" for k in ("train_view", "validation_view", "test_view") if k in recipe)  # fmt: skip
            found.append(
                f"Images are read as one grey channel at {load} px; the network sees {size} px{of}. Views: {ways}."
            )
    views = [f"{at(view, 'name')} ({show(at(view, 'params'))})" for view in s.first.views]
    return [*found, *([f"Images are first rewritten by {'; then '.join(views)}."] if views else [])]


def label_policy(s: Subject) -> list[str]:
    """How the labels that are scored come about, as far as options say so."""
    if phantom(s):
        return ["Labels are what the program drew: known without error."]
    given = {key: value for key, value in s.first.dataset_params.items() if value is not None}
    return [f"Labels as the data set publishes them, read with {show(given)}."] if given else [
        "Labels as the data set publishes them."
    ]  # fmt: skip


def partition(s: Subject) -> list[str]:
    """The split, its digest and its rule."""
    record = s.first
    rule = record.data_facts.get("rule")
    folds = sorted({r.fold for r in s.row.records})
    return [
        f"Split {s.table.split_name}, digest {record.split_digest}.",
        *([f"{rule}"] if rule else []),
        f"Folds scored: {', '.join(map(str, folds))} of {record.folds}.",
    ]


def level(s: Subject) -> list[str]:
    """At which level parts are disjoint."""
    overlaps = [text for r in s.row.records for text in r.warnings if text.startswith("OVERLAP")]
    return [BY_PATIENT, *dict.fromkeys(overlaps)]


def test_size(s: Subject) -> list[str]:
    """Images, patients and positives of what was tested."""
    found = []
    for record in sorted(s.row.records, key=lambda r: (r.fold, r.seed)):
        images, patients = (record.scores.get(key) for key in ("images", "patients"))
        if images is not None:
            found.append(
                f"Fold {record.fold}: {show(images)} test images of {show(patients)} patients."
            )
    return list(dict.fromkeys(found))


def characteristics(s: Subject) -> list[str]:
    """Sex, age and view of the test images, where predictions carry them."""
    found = []
    for name in ("sex", "age", "view_position"):
        columns = [part.attributes[name] for part in s.parts if name in part.attributes]
        if not columns or len(columns) < len(s.parts):
            continue
        values = np.concatenate(columns)
        text = _ages(values) if name == "age" else _shares(values)
        found += [f"Test images by {name.replace('_', ' ')}: {text}."] if text else []
    return found


def _ages(values: Any) -> str:
    years = np.array([v for v in values if isinstance(v, int | float) and v == v], dtype=float)
    if not years.size:
        return ""
    low, middle, high = np.quantile(years, [0.25, 0.5, 0.75])
    return f"median {middle:.0f} years, middle half {low:.0f} to {high:.0f}, known for {years.size:,} of {len(values):,}"


def _shares(values: Any) -> str:
    known = Counter(v.strip() for v in values if isinstance(v, str) and v.strip())
    return ", ".join(f"{name} {count:,}" for name, count in sorted(known.items()))
