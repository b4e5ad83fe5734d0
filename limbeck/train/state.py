"""The weights of a checkpoint: all that is learned, the losses' own included, and nothing the student brings along.

One file, whatever spreads the model over processes: what is sharded is gathered to save it, and shared out again.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from ..errors import LimbeckError

FILE = "learned.safetensors"
OWN = "limbeck"  # the attribute of the student at which the losses' own weights hang while it is trained
WRAPPER = "_checkpoint_wrapped_module."  # FSDP's activation checkpointing puts this into names


def learned(model: Any) -> Iterator[tuple[str, Any]]:
    """The parameters that get a gradient and the buffers that are saved, by name."""
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            yield name.replace(WRAPPER, ""), parameter
    saved = model.state_dict().keys()
    yield from ((name.replace(WRAPPER, ""), buffer) for name, buffer in model.named_buffers() if name in saved)


def gathered(model: Any, here: bool = True) -> dict[str, torch.Tensor]:
    """Copies all that is learned to the CPU. Every process must call it; only where `here` is anything kept."""
    found = {}
    for name, tensor in learned(model):
        whole = tensor.detach().full_tensor() if hasattr(tensor, "full_tensor") else tensor.detach()
        if here:
            found[name] = whole.cpu().clone(memory_format=torch.contiguous_format)
    return found


def save(model: Any, folder: Path, here: bool) -> None:
    """Writes what is learned to `folder`. Every process must call it; the one that is `here` writes."""
    weights = gathered(model, here)
    if here:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(weights, folder / FILE)


def load(model: Any, folder: Path) -> None:
    """Puts the weights of a checkpoint into the model. Raises LimbeckError where they are not this model's."""
    restore(model, load_file(folder / FILE))


@torch.no_grad()
def restore(model: Any, weights: Mapping[str, torch.Tensor]) -> None:
    """Puts weights as `gathered` gives them into the model, sharded as it is."""
    held = dict(learned(model))
    if strange := sorted(held.keys() ^ weights.keys()):
        raise LimbeckError(
            f"train wants to continue with {len(held)} tensors, and the checkpoint has {len(weights)}: "
            f"{strange[0]} is only in one of them; was it written by another version? remove the .part directory."
        )
    for name, tensor in held.items():
        whole = weights[name].to(tensor.device, tensor.dtype)
        if hasattr(tensor, "device_mesh"):
            from torch.distributed.tensor import distribute_tensor

            whole = distribute_tensor(whole, tensor.device_mesh, tensor.placements)
        tensor.copy_(whole)
