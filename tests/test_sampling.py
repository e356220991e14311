"""Pools of one distribution of ages and sexes."""

from typing import Any

import numpy as np
import pandas as pd
import pytest

from cxrbench.core.errors import ConfigError, DataError
from cxrbench.core.spec import Recipe
from cxrbench.data.index import Index
from cxrbench.data.module import CxrDataModule
from cxrbench.data.sampling import matched_weights

LABELS = ("Edema", "Mass")


def cohort(rows: list[tuple[float, str, float]], labels: tuple[str, ...] = LABELS) -> Index:
    """(age, sex, first label) of each film; the other labels are 0."""
    frame = pd.DataFrame(rows, columns=["age", "sex", labels[0]])
    names = [f"i{n}" for n in range(len(rows))]
    frame = frame.assign(
        image_id=names, patient_id=names, path="", **dict.fromkeys(labels[1:], 0.0)
    )
    return Index("films", frame, labels)


def confounded() -> Index:
    """200 sick films that are young and 200 healthy ones that are old, men and women mixed otherwise."""
    random = np.random.default_rng(0)
    rows = []
    for sick, mean, men in ((1.0, 35, 0.7), (0.0, 60, 0.4)):
        ages = np.clip(random.normal(mean, 12, 200), 1, 95).round()
        rows += [(a, "M" if random.random() < men else "F", sick) for a in ages]
    return cohort(rows)


def test_both_pools_have_one_distribution_of_ages_and_sexes() -> None:
    index = confounded()
    weights, counts = matched_weights(index, np.arange(400))
    assert weights.sum() == pytest.approx(1)
    frame = index.frame.assign(weight=weights, decade=index.frame["age"] // 10)
    shares = frame.groupby(["decade", "sex", "Edema"])["weight"].sum().unstack().fillna(0)
    np.testing.assert_allclose(shares[0.0], shares[1.0], atol=1e-12)
    assert shares[1.0].sum() == pytest.approx(0.5)
    before = frame.groupby("Edema")["age"].mean()
    assert before[0.0] - before[1.0] > 20
    drawn = [counts[pool]["mean_age_drawn"] for pool in ("healthy", "sick")]
    assert abs(drawn[0] - drawn[1]) < 5  # what is left is within ten years
    assert counts["healthy"]["mean_age"] == pytest.approx(before[0.0])
    assert counts["sick"]["films"] == 200
    assert 0 < counts["sick"]["drawn_from"] < 200
    assert counts["bins"] == int((shares[1.0] > 0).sum())


def test_who_is_never_drawn() -> None:
    index = cohort([
        (30, "M", 1), (31, "M", 0), (39, "M", 0),  # a bin of both pools
        (40, "M", 0), (31, "F", 0),  # other bins, without a sick film
        (np.nan, "M", 1), (414, "M", 1), (30, "", 1),  # ages and a sex that nobody knows
    ])  # fmt: skip
    weights, counts = matched_weights(index, np.arange(8))
    assert weights == pytest.approx([0.5, 0.25, 0.25, 0, 0, 0, 0, 0])
    assert counts["age_or_sex_unknown"] == 3
    assert (counts["sick"]["films"], counts["sick"]["drawn_from"]) == (4, 1)
    few, _ = matched_weights(index, np.array([0, 2, 4]))  # of some rows alone
    assert few == pytest.approx([0.5, 0.5, 0])


def test_unknown_labels_and_no_finding() -> None:
    rows = [(30, "M", 1.0), (30, "M", 0.0), (30, "M", np.nan), (30, "M", np.nan)]
    index = cohort(rows, ("Edema",))
    assert matched_weights(index, np.arange(4))[0] == pytest.approx([0.5, 0.5, 0, 0])
    turned = cohort(rows[:2], ("No Finding", "Edema"))
    turned.frame["Edema"] = [0.0, 1.0]
    counts = matched_weights(turned, np.arange(2))[1]
    assert (counts["sick"]["films"], counts["healthy"]["films"]) == (1, 1)


def test_what_cannot_be_matched_is_said() -> None:
    index = cohort([(30, "M", 1), (80, "M", 0)])
    with pytest.raises(DataError, match="no bin of 10 years and one sex"):
        matched_weights(index, np.arange(2))
    plain = Index("films", index.frame.drop(columns="age"), LABELS)
    with pytest.raises(ConfigError, match="films knows no age; choose balanced"):
        matched_weights(plain, np.arange(2))


def test_a_training_draws_by_it_and_records_it() -> None:
    index = confounded()
    recipe = Recipe(sampler="matched", batch_size=50, size=16, load=16)
    parts = np.array(["train"] * 400, dtype=object)
    pixels = np.zeros((400, 16, 16), np.uint8)
    data = CxrDataModule(index, pixels, parts, recipe, size=16, seed=3)
    batches: Any = data.train_dataloader().batch_sampler
    rows: list[int] = []
    for epoch in range(30):
        batches.set_epoch(epoch)
        rows += [row for batch in batches for _, row in batch]
    drawn = index.frame.iloc[rows]
    ages = drawn.groupby("Edema")["age"].mean()
    assert abs(ages[0.0] - ages[1.0]) < 5
    assert drawn["Edema"].mean() == pytest.approx(0.5, abs=0.02)
    assert data.facts()["matched"] == matched_weights(index, np.arange(400))[1]
    plain = recipe.model_copy(update={"sampler": "balanced"})
    assert "matched" not in CxrDataModule(index, pixels, parts, plain, size=16, seed=3).facts()
