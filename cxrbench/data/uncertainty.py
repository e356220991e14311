"""What an uncertain (-1) or blank label of a report labeller means: explicit, label by label.

Irvin et al. (CheXpert, AAAI 2019) compare ones, zeros and ignoring; Pham et al. (Neurocomputing 437, 2021)
draw a value instead. A blank cell is a finding that the report does not mention, which is another
question than an uncertain one, and so has an answer of its own.
"""

from typing import Any, ClassVar, Literal, TypeVar

import numpy as np
import numpy.typing as npt
from pydantic import field_validator

from cxrbench.core.nearest import nearest
from cxrbench.core.seed import derive_seed
from cxrbench.data.base import DataParams

Treatment = Literal["ones", "zeros", "ignore", "smooth"]
BlankTreatment = Literal["zeros", "ignore"]
Floats = npt.NDArray[np.float32]
_T = TypeVar("_T")

UNCERTAIN = -1.0
PRESETS: dict[str, Treatment] = {
    "u-ones": "ones",
    "u-zeros": "zeros",
    "u-ignore": "ignore",
    "u-smooth": "smooth",
    "u-mixed": "zeros",  # except for ONES_OF_MIXED
}
ONES_OF_MIXED = ("Atelectasis", "Edema")


class UncertainLabels(DataParams):
    """The policy: a preset, and exceptions by label.

    `u-mixed` is that of the CheXpert competition's systems: ones for Atelectasis and Edema, where Irvin et
    al. (Table 3) found them better, zeros for all others (so in the code of JF Healthcare and of LibAUC).
    `smooth` is the range that values for training are drawn from: by default Pham et al.'s for
    smoothing ones; theirs for smoothing zeros is 0 to 0.3. Names of labels may have _ for a blank.
    """

    names: ClassVar[tuple[str, ...]] = ()  # the labels that exceptions can be made for

    policy: Literal["u-ones", "u-zeros", "u-ignore", "u-smooth", "u-mixed"] = "u-ones"
    uncertain: dict[str, Treatment] = {}
    smooth: tuple[float, float] = (0.55, 0.85)
    blank: BlankTreatment = "zeros"
    blanks: dict[str, BlankTreatment] = {}

    @field_validator("uncertain", "blanks")
    @classmethod
    def _known_labels(cls, given: dict[str, _T]) -> dict[str, _T]:
        plain = {name.replace("_", " "): name for name in cls.names}
        found: dict[str, _T] = {}
        for name, value in given.items():
            label = plain.get(name.replace("_", " "))
            if label is None:
                raise ValueError(f"no label {name!r}; {nearest(name, cls.names)}")
            if label in found:
                raise ValueError(f"{label!r} stands twice")
            found[label] = value
        return found

    @field_validator("smooth")
    @classmethod
    def _range(cls, given: tuple[float, float]) -> tuple[float, float]:
        low, high = given
        if not 0 <= low <= high <= 1:
            raise ValueError(f"{low} to {high} is no range within 0 to 1; write [low, high]")
        return given

    def treatment(self, label: str) -> Treatment:
        """What -1 means for a label."""
        if label in self.uncertain:
            return self.uncertain[label]
        if self.policy == "u-mixed" and label in ONES_OF_MIXED:
            return "ones"
        return PRESETS[self.policy]

    def blank_treatment(self, label: str) -> BlankTreatment:
        """What a blank cell means for a label."""
        return self.blanks.get(label, self.blank)

    def resolved(self, labels: tuple[str, ...]) -> dict[str, Any]:
        """The policy label by label, for the record."""
        found: dict[str, Any] = {
            "uncertain": {label: self.treatment(label) for label in labels},
            "blank": {label: self.blank_treatment(label) for label in labels},
        }
        if "smooth" in found["uncertain"].values():
            found["smooth"] = list(self.smooth)
        return found

    def decide(
        self, label: str, marks: Floats, image_ids: npt.NDArray[np.object_]
    ) -> tuple[Floats, Floats | None]:
        """Targets [N] (1, 0, NaN) of marks [N] (1, 0, -1, NaN for blank), and soft values [N].

        Soft values are NaN but for smoothed labels, whose target is unknown; None if none is smoothed.
        """
        treatment = self.treatment(label)
        unsure = marks == UNCERTAIN
        target = marks.astype(np.float32, copy=True)
        target[unsure] = {"ones": 1.0, "zeros": 0.0}.get(treatment, np.nan)
        if self.blank_treatment(label) == "zeros":
            target[np.isnan(marks)] = 0.0
        soft = self.draw(label, unsure, image_ids) if treatment == "smooth" else None
        return target, soft

    def draw(
        self, label: str, where: npt.NDArray[np.bool_], image_ids: npt.NDArray[np.object_]
    ) -> Floats:
        """A value [N] of the range where asked, else NaN; a function of image and label alone."""
        low, high = self.smooth
        values = np.full(len(where), np.nan, np.float32)
        for row in np.flatnonzero(where):
            share = derive_seed(0, "smooth", image_ids[row], label) / 2**63
            values[row] = low + (high - low) * share
        return values
