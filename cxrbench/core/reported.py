"""A paper's numbers: of which data they are, and from which table."""

from typing import Annotated, Any, Literal

from pydantic import Field

from cxrbench.core.frozen import Frozen

# `accuracy` is at a probability of one half.
MEANS = {
    "auc": "AUC",
    "pr_auc": "PR-AUC",
    "precision_at_95_recall": "P@95R",
    "accuracy": "accuracy",
}
# Of all test images at 95 % recall; they sum to 1.
SHARES = {"tp_share": "TP", "fp_share": "FP", "tn_share": "TN", "fn_share": "FN"}
PaperMetric = Literal["auc", "pr_auc", "precision_at_95_recall", "accuracy",
                      "tp_share", "fp_share", "tn_share", "fn_share"]  # fmt: skip
Share = Annotated[float, Field(ge=0, le=1, strict=True)]


class Reported(Frozen):
    """What a paper reports for one data set.

    `params`: options of the data set, such as its task, that must be as given; others may be anything.
    `macro`: means over labels. `labels`: AUC of each.
    """

    split: str = Field(min_length=1, description="as the paper calls or describes its own")
    source: str = Field(min_length=1, description="paper, table and column")
    params: dict[str, Any] = {}
    macro: dict[PaperMetric, Share] = Field(min_length=1)
    labels: dict[str, Share] = {}

    def is_of(self, params: dict[str, Any]) -> bool:
        """Whether a data set read with these options is what the numbers are of."""
        return all(key in params and params[key] == value for key, value in self.params.items())


class ReportedRow(Reported):
    """The same beside a row of a benchmark."""

    dataset: str
