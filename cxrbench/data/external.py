"""A data set as the test set of models that were trained on another one.

Labels are matched by a written table of names, never by likeness; what the table does not hold is
reported as unmatched, and a user can add pairs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd

from cxrbench.core.errors import ConfigError
from cxrbench.core.nearest import nearest
from cxrbench.data.splits import Split

if TYPE_CHECKING:
    from cxrbench.data.index import Index

EVERYTHING = "all"  # the split in which every image tests
# Names of the same finding in the label files of different data sets. Lung Opacity (CheXpert) is wider
# than Infiltration and Lung Lesion than Nodule and Mass together, so neither stands here.
SAME = (
    ("Atelectasis",),
    ("Cardiomegaly",),
    ("Consolidation",),
    ("Edema", "Pulmonary Edema"),
    ("Effusion", "Pleural Effusion", "Pleural_Effusion"),
    ("Emphysema",),
    ("Fibrosis", "Pulmonary Fibrosis"),
    ("Hernia", "Hiatal Hernia"),
    ("Infiltration", "Infiltrate"),
    ("Mass", "Lung Mass"),
    ("Nodule", "Lung Nodule", "nodule"),
    ("Pleural_Thickening", "Pleural Thickening"),
    ("Pneumonia", "pneumonia"),
    ("Pneumothorax",),
    ("Enlarged Cardiomediastinum", "Enlarged_Cardiomediastinum"),
    ("Lung Lesion", "Lung_Lesion"),
    ("Lung Opacity", "Lung_Opacity"),
    ("No Finding", "No_Finding"),
    ("Pleural Other", "Pleural_Other"),
    ("Fracture",),
    ("Support Devices", "Support_Devices"),
    ("covid", "COVID-19"),
    ("tuberculosis", "Tuberculosis"),
)
_CONCEPT = {name: names[0] for names in SAME for name in names}


@dataclass(frozen=True)
class Match:
    """Which of a model's labels a data set has, and under which name."""

    pairs: tuple[tuple[str, str], ...]  # (the model's, the data set's), in the model's order
    unmatched_model: tuple[str, ...]
    unmatched_data: tuple[str, ...]


def match_labels(
    model: Sequence[str], data: Sequence[str], given: Mapping[str, str] | None = None
) -> Match:
    """Labels that are equal, the same by SAME, or paired by `given` (model's name: data set's name).

    Raises ConfigError for a given name that does not exist or a label that two others match.
    """
    given = given or {}
    for names, known, whose in ((given, model, "model"), (given.values(), data, "data set")):
        if wrong := [name for name in names if name not in known]:
            raise ConfigError(
                f"label_map: the {whose} has no label {wrong[0]!r}; {nearest(wrong[0], known)}"
            )
    pairs: list[tuple[str, str]] = []
    for label in model:
        if label in given:
            found = [given[label]]
        elif label in data:
            found = [label]
        else:
            concept = _CONCEPT.get(label)
            found = [name for name in data if concept and _CONCEPT.get(name) == concept]
        if len(found) > 1:
            raise ConfigError(f"label_map: {label!r} could be any of {found}; say which")
        pairs += [(label, name) for name in found]
    theirs = [name for _, name in pairs]
    if twice := sorted({name for name in theirs if theirs.count(name) > 1}):
        raise ConfigError(f"label_map: {twice[0]!r} is matched by two labels of the model")
    mine = {label for label, _ in pairs}
    return Match(
        tuple(pairs),
        tuple(label for label in model if label not in mine),
        tuple(name for name in data if name not in theirs),
    )


def everything(index: "Index") -> Split:
    """The split in which every patient tests; for models trained elsewhere only."""
    parts = pd.Series("test", index=sorted(set(index.patient_ids)))
    return Split.of(index.dataset, EVERYTHING, "Every image tests: an external test.", parts)


def known_overlap(first: Any, second: Any) -> str:
    """Why images of two data sets' classes are known to be the same; empty when nothing is known."""
    return str(first.overlaps.get(second.name) or second.overlaps.get(first.name) or "")
