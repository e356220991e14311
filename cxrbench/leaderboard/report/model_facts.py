"""What records say of models, trainings and results: lists of sentences, empty where they say nothing."""

from collections.abc import Iterator
from typing import Any

from cxrbench.leaderboard.labels import label_counts, label_values
from cxrbench.leaderboard.markdown import delta, number
from cxrbench.leaderboard.report.data_facts import phantom
from cxrbench.leaderboard.report.subject import Subject, at, mapping
from cxrbench.leaderboard.rows import BASELINES
from cxrbench.leaderboard.sentences import (
    BOOTSTRAP,
    MARKS,
    MEANS,
    NOT_A_DEVICE,
    ON_VALIDATION,
    ONE_MODEL,
    ONE_SEED,
    OVER_RUNS,
)
from cxrbench.leaderboard.site.command import Reproduction, nodes_of, reproduction
from cxrbench.leaderboard.site.facts import show

SHOWN = ("epochs", "batch_size", "accumulate", "optimizer", "learning_rate", "weight_decay", "schedule",
         "warmup_epochs", "gradient_clip", "ema_decay", "sampler", "precision", "select")  # fmt: skip
METRICS = (("auc", "AUC"), ("pr_auc", "PR-AUC"), ("precision_at_95_recall", "P@95R"),
           ("precision_at_validation_threshold", "precision at the validation part's threshold"),
           ("recall_at_validation_threshold", "recall at that threshold"))  # fmt: skip


def goal(s: Subject) -> list[str]:
    """What was done."""
    labels, others = len(s.table.labels), len(s.table.rows) - 1
    beside = (
        f", beside {others} other{'s' if others > 1 else ''} on the same test images"
        if others
        else ""
    )
    return [
        f"A classifier of {labels} label{'s' if labels > 1 else ''} of chest radiographs is developed and evaluated{beside}."
    ]


def model(s: Subject) -> list[str]:
    """Network, size and the graph of stages."""
    record = s.first
    stages = " → ".join(
        f"{stage.kind} {stage.name} (version {stage.version})" for stage in record.stages
    )
    sizes = [f"{f.name} {show(f.facts['parameters'])}" for f in s.fits if "parameters" in f.facts]
    plain = dict(_settings(record.params))
    return [
        f"{record.method} version {record.method_version}, preset {record.preset}"
        + (f": {s.summary}" if s.summary else "."),
        *([f"After: {record.paper}."] if record.paper else []),
        *([f"Parameters: {', '.join(sizes)}."] if sizes else []),
        "Input: one grey image; output: a probability for each label.",
        *([f"Settings: {show(plain)}."] if plain else []),
        *([f"Stages: {stages}."] if stages else []),
    ]


def _settings(tree: dict[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Parameters besides the recipes, by dotted names."""
    for key, value in tree.items():
        if isinstance(value, dict) and key != "recipe":
            yield from _settings(value, f"{above}{key}.")
        elif key != "recipe":
            yield above + key, value


def changes(s: Subject) -> list[str]:
    """What differs from the preset."""
    return [f"Differs from the preset: {show(s.first.changed)}."] if s.first.changed else []


def software(s: Subject) -> list[str]:
    """Versions, and the commit."""
    state = s.first.provenance
    packages = mapping(state.get("packages"))
    listed = ", ".join(f"{name} {version}" for name, version in packages.items())
    return [
        *_code(s),
        *([f"Python {state['python']}."] if state.get("python") else []),
        *([f"{listed}."] if listed else []),
    ]


def _code(s: Subject) -> list[str]:
    commits = sorted({str(c) for r in s.row.records if (c := at(r.provenance, "code", "commit"))})
    version = at(s.first.provenance, "code", "cxrbench")
    found = [f"cxrbench {version}."] if version else []
    return [*found, f"Commit {', '.join(commits)}."] if commits else found


def weights(s: Subject) -> list[str]:
    """Initial weights of every training; the seed."""
    found = []
    for stage in s.fits:
        given = mapping(stage.facts.get("weights"))
        source = given.get("source")
        if source is None:
            continue
        text = "random (none were loaded)" if source == "none" else str(source)
        sha = f", SHA-256 {given['sha256']}" if given.get("sha256") else ""
        found.append(f"{stage.name}: initial weights {text}{sha}.")
    pretrained = [f"pretrained: {show(s.first.params['pretrained'])}."] if "pretrained" in s.first.params else []  # fmt: skip
    if not found and not pretrained:
        return []
    seeds = sorted({record.seed for record in s.row.records})
    return [*found, *pretrained, f"Root seed{'s' if len(seeds) > 1 else ''}: {show(seeds)}."]


def training(s: Subject) -> list[str]:
    """Recipes of all trainings, augmentation included."""
    found = []
    for where, recipe in s.recipes:
        given = {name: recipe[name] for name in SHOWN if recipe.get(name) is not None}
        changed = {k: v for k, v in mapping(recipe.get("augment")).items() if v}
        text = f"{show(given)}; augmentation: {show(changed)}"
        found.append(f"{where or 'training'}: {text}.")
    return [*found, *changes(s)]


def hardware(s: Subject) -> list[str]:
    """Machine, hours and memory, over all runs."""
    costs = [record.cost for record in s.row.records]
    hours = sum(h for c in costs if isinstance(h := c.get("device_hours"), int | float))
    memory = max((m for c in costs if isinstance(m := c.get("peak_memory_bytes"), int)), default=0)
    first = s.first
    machine = costs[0].get("gpu") or first.provenance.get("processor") or costs[0].get("device")
    return [
        *([f"{machine}, {show(first.provenance.get('cores'))} CPU cores."] if machine else []),
        f"{hours:.2f} device hours for {len(costs)} run{'s' if len(costs) > 1 else ''}, all stages.",
        *([f"Largest memory of a stage {memory / 2**30:.1f} GiB."] if memory else []),
    ]


def selection(s: Subject) -> list[str]:
    """What chose the weights."""
    chosen = [
        f"{stage.name}: epoch {show(stage.facts.get('best_epoch'))} of {show(stage.facts.get('epochs'))} (from 0), by {stage.facts['monitor']}."
        for stage in s.fits
        if stage.facts.get("monitor")
    ]  # fmt: skip
    return [ON_VALIDATION, *chosen] if chosen else []


def ensembling(s: Subject) -> list[str]:
    """One model, and test-time crops where there are any."""
    crops = any(recipe.get("test_view") == "ten_crop" for _, recipe in s.recipes)
    return [ONE_MODEL, *(["An image's score is the mean of ten crops' logits."] if crops else [])]


def metrics(s: Subject) -> list[str]:
    """Which scores there are."""
    return [MEANS]


def uncertainty(s: Subject) -> list[str]:
    """How intervals and tests were computed."""
    scores = s.first.scores
    replicates, share = scores.get("replicates"), scores.get("level")
    found = []
    if isinstance(replicates, int) and isinstance(share, int | float) and replicates:
        found.append(BOOTSTRAP.format(replicates=replicates, level=100 * share))
    if len(s.row.records) > 1:
        found.append(OVER_RUNS.format(runs=len(s.row.records)))
    return [*found, *s.table.notes]


def results(s: Subject) -> list[str]:
    """Macro means with their uncertainty, place and differences."""
    row = s.row
    found = [f"{title} {number(row.values[key])}." for key, title in METRICS if row.values.get(key)]
    drop = row.values.get("validation_minus_test_auc")
    if drop:
        found.append(f"Validation AUC minus test AUC {number(drop, signed=True)}.")
    if row.auc_interval:
        low, high = row.auc_interval
        found.append(f"95 % interval of the mean AUC: {low:.3f} to {high:.3f}.")
    if row.rank:
        ranked = sum(1 for other in s.table.rows if other.rank)
        found.append(f"Place {row.place} of {ranked}.")
    for name in BASELINES:
        compared = row.comparisons.get(name)
        if compared is not None:
            found.append(f"AUC minus {name}: {delta(compared)}. {compared.how}")
    undefined = at(s.first.scores, "macro", "labels_undefined")
    if undefined:
        found.append(f"Without both classes in a test part, so in no mean: {show(undefined)}.")
    return found


def accuracy(s: Subject) -> list[str]:
    """AUC of every label with an interval over patients or a deviation over runs; empty without any."""
    values = {label: label_values(s.row, label)["auc"] for label in s.table.labels}
    precise = {k: v for k, v in values.items() if v and (v.interval or v.sd is not None)}
    return [f"AUC of {label}: {number(value)}." for label, value in precise.items()]


def per_label(s: Subject) -> list[tuple[str, str, str, str, str, str]]:
    """(label, test images, positives, AUC, PR-AUC, P@95R) of every label that has scores."""
    rows = []
    for label in s.table.labels:
        values, counts = label_values(s.row, label), label_counts(s.row, label)
        if counts or any(values.values()):
            images, positives = (f"{n:,}" for n in counts) if counts else ("–", "–")
            shown = [number(values[key]) for key, _ in METRICS[:3]]
            rows.append((label, images, positives, shown[0], shown[1], shown[2]))
    return rows


def calibration(s: Subject) -> list[str]:
    """Calibration error and Brier score."""
    if s.calibration is None:
        return []
    ece, brier, prevalence = s.calibration
    return [
        f"Expected calibration error {ece:.4f}, Brier score {brier:.4f} (always saying the prevalence: {prevalence:.4f}); "
        "means over labels, test images of all folds together, bins of equally many images."
    ]  # fmt: skip


def fairness(s: Subject) -> list[str]:
    """AUC by sex, age and view: gap and worst group."""
    return [
        f"By {split.attribute.replace('_', ' ')}: "
        + ", ".join(f"{g.name} {g.auc:.4f} ({g.images:,} images of {g.patients:,} patients)" for g in split.groups)
        + f"; gap {split.gap:.4f}, worst {split.worst.name}; macro AUC over {len(split.labels)} labels that every group has, no interval."
        for split in s.splits
    ]  # fmt: skip


def external(s: Subject) -> list[str]:
    """Tests on other data sets, among these records."""
    if s.first.tested_on is not None:
        test = s.first.tested_on
        return [
            f"This is one: trained on {s.first.dataset}, tested on {test.dataset} ({test.split})."
        ]
    return [f"{table.title}: AUC {number(row.values['auc'])}." for table, row in s.elsewhere]


def analyses(s: Subject) -> list[str]:
    """Measurements beside the scores, by name."""
    names = sorted({name for record in s.row.records for name in record.analyses})
    return (
        [f"Measured beside the scores: {', '.join(names)} (the leaderboard's pages show them)."]
        if names
        else []
    )


def limitations(s: Subject) -> list[str]:
    """Marks, warnings, one seed, and what was not measured."""
    found = [MARKS[mark] for mark in s.row.marks]
    found += [ONE_SEED] if len({record.seed for record in s.row.records}) == 1 else []
    found += ["One fold: another test part may give another order."] if s.row.done == 1 else []
    found += dict.fromkeys(text for record in s.row.records for text in record.warnings)
    if s.row.published:
        found.append(s.row.published.how)
    return [f"{text[0].upper()}{text[1:]}".rstrip(".") + "." for text in found if text]


def paper(s: Subject) -> list[str]:
    """The citation, and what it reports."""
    found = [f"{s.first.paper}."] if s.first.paper else []
    return [*found, *([s.row.paper.how] if s.row.paper else [])]


def use(s: Subject) -> list[str]:
    """What it must not be used for."""
    return [
        NOT_A_DEVICE,
        *(["Trained on drawn films: it says nothing about patients."] if phantom(s) else []),
    ]


def again(s: Subject) -> Reproduction:
    """The command that does the first run again."""
    record = s.first
    return reproduction(record, nodes_of(s.store, record))


def protocol(s: Subject) -> list[str]:
    """Which rules scored it."""
    name: Any = s.first.scores.get("protocol")
    return (
        [f"Scores by the protocol {name} of cxrbench; digests of every stage stand in the records."]
        if name
        else []
    )


def availability(s: Subject) -> list[str]:
    """Code, data, records."""
    home, licence = s.home(s.first.dataset, s.first.dataset_version)
    data = [f"Data: {home}" + (f", licence: {licence}." if licence else ".")] if home else []
    records = ", ".join(record.id for record in s.row.records)
    return [*_code(s), *data, f"Records: {records}."]
