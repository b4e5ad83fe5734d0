"""What a batch of an encoder-decoder remembers: the encoded prompts, and the keys and values of what it writes."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import DynamicCache, EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutput

from ..errors import LimbeckError

_ENCODED = 4096  # tokens of prompts that go through the encoder at a time


class Encoded:
    """The rows of a batch that begin together: each prompt is read once by the encoder, and each answer starts anew."""

    joins = False

    def __init__(self, model: Any):
        self.model = model
        self.start = start_id(model)

    def add(self, prompts: Sequence[Sequence[int]]) -> None:
        """Encodes the prompts of all rows, each different one once."""
        at = {prompt: i for i, prompt in enumerate(dict.fromkeys(map(tuple, prompts)))}
        width = max(map(len, at))
        ids_bt = torch.tensor([[*prompt, *[0] * (width - len(prompt))] for prompt in at], device=self.model.device)
        mask_bt = torch.tensor([[1] * len(p) + [0] * (width - len(p)) for p in at], device=self.model.device)
        encoder, rows = self.model.get_encoder(), max(1, _ENCODED // width)
        some = zip(ids_bt.split(rows), mask_bt.split(rows), strict=True)
        h_btd = torch.cat([encoder(input_ids=ids, attention_mask=mask).last_hidden_state for ids, mask in some])
        places = [at[tuple(prompt)] for prompt in prompts]
        self.h_btd, self.mask_bt = h_btd[places], mask_bt[places]
        self.cache: Any = EncoderDecoderCache(DynamicCache(), DynamicCache())
        self.begun = False

    def forward(self, last: Sequence[int]) -> torch.Tensor:
        """Runs the decoder over every row's last token, the start token first: logits_bv of the next one."""
        ids_b1 = torch.tensor(last if self.begun else [self.start] * len(last), device=self.model.device)[:, None]
        self.begun = True
        out = self.model(
            encoder_outputs=BaseModelOutput(last_hidden_state=self.h_btd), attention_mask=self.mask_bt,
            decoder_input_ids=ids_b1, past_key_values=self.cache, use_cache=True,
        )  # fmt: skip
        return out.logits[:, -1].float()

    def keep(self, order: Sequence[int]) -> None:
        """Puts the row at place order[i] to place i, and forgets the rows that are not named."""
        if not order:
            return
        at = torch.tensor(order, device=self.model.device)
        self.cache.reorder_cache(at)
        self.h_btd, self.mask_bt = self.h_btd[at], self.mask_bt[at]


def start_id(model: Any) -> int:
    """The token that the decoder begins with. Raises LimbeckError where the checkpoint names none."""
    for settings, name in (
        (model.generation_config, "decoder_start_token_id"), (model.config, "decoder_start_token_id"),
        (model.config, "bos_token_id"),
    ):  # fmt: skip
        if (found := getattr(settings, name, None)) is not None:
            return found
    raise LimbeckError(
        f"an encoder-decoder writes from a start token, and {type(model).__name__} of {model.config._name_or_path} "
        f"names none; set decoder_start_token_id in its config.json."
    )
