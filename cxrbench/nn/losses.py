"""Losses that know which labels are known. Shapes: B batch, K labels."""

import torch
from torch import Tensor
from torch.nn import functional as F


def masked_bce(
    logits: Tensor, target: Tensor, known: Tensor, count: Tensor | None = None
) -> Tensor:
    """Mean binary cross-entropy over the known entries of [B, K]; 0 when none is known.

    `count`, float [], stands for their number where this is a part of a batch (`data.micro_batches`).
    """
    with torch.autocast(device_type=logits.device.type, enabled=False):
        each = F.binary_cross_entropy_with_logits(logits.float(), target.float(), reduction="none")
        mask = known.to(each.dtype)
        return (each * mask).sum() / (mask.sum().clamp(min=1) if count is None else count)
