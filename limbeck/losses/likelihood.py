"""Losses on the probability of given tokens."""

import torch

from . import IGNORED


def sft(
    logits_btv: torch.Tensor,
    labels_bt: torch.Tensor,
    reduction: str = "token",
    *,
    normalizer: torch.Tensor | float | None = None,
) -> torch.Tensor:
    """Cross-entropy of the labels in nats (the survey's equation 9). Labels are already shifted; IGNORED do not count.

    logits_btv (B, T, V), labels_bt (B, T) -> scalar. Σ nll / normalizer; without one, the number of labels of the batch
    ("token", never a mean of row means) or of rows with a label ("sequence"). Without labels: 0, with zero gradient.
    """
    if reduction not in ("token", "sequence"):
        raise ValueError(f"sft has no reduction '{reduction}'; it has 'token' and 'sequence'.")
    mask_bt = labels_bt != IGNORED
    # Only labelled positions go through the softmax: others cost nothing, and their NaN or inf cannot leak.
    logits_nv = at_least_fp32(logits_btv[mask_bt])
    total = torch.nn.functional.cross_entropy(logits_nv, labels_bt[mask_bt], reduction="sum")
    if normalizer is None:
        normalizer = (mask_bt if reduction == "token" else mask_bt.any(-1)).sum().clamp_min(1)
    return total / normalizer


def at_least_fp32(logits: torch.Tensor) -> torch.Tensor:
    """fp16 and bf16 become fp32; fp32 and fp64 stay."""
    return logits if logits.dtype in (torch.float32, torch.float64) else logits.float()
