"""Small models with random weights of the architectures that differ behind, at, or before their head."""

import torch
import transformers

SIZE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 50}
WIDE = SIZE | {"intermediate_size": 48, "num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": 0}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 50, "n_positions": 64, "resid_pdrop": 0.0}
T5 = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "vocab_size": 50, "dropout_rate": 0.0}
T5 |= {"decoder_start_token_id": 0, "pad_token_id": 0}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2, "router_aux_loss_coef": 0.3}

MODELS = {
    "llama": ("Llama", WIDE),
    "llama, tied": ("Llama", WIDE | {"tie_word_embeddings": True}),
    "qwen2": ("Qwen2", WIDE),
    "qwen3": ("Qwen3", WIDE | {"head_dim": 8}),
    "gemma2": ("Gemma2", WIDE | {"head_dim": 8, "final_logit_softcapping": 3.0}),
    "cohere": ("Cohere", WIDE | {"logit_scale": 0.25}),
    "granite": ("Granite", WIDE | {"logits_scaling": 4.0}),
    "gpt2": ("GPT2LMHead", GPT2 | {"embd_pdrop": 0.0, "attn_pdrop": 0.0}),
    "gpt-neox": ("GPTNeoX", {k: v for k, v in WIDE.items() if k != "num_key_value_heads"}),
    "opt": ("OPT", SIZE | {"ffn_dim": 48, "max_position_embeddings": 64, "word_embed_proj_dim": 32, "dropout": 0.0}),
    "phi": ("Phi", WIDE),
    "mixtral": ("Mixtral", WIDE | EXPERTS | {"output_router_logits": True}),
}
ENCODER_DECODERS = {
    "t5, tied": ("T5ForConditionalGeneration", T5 | {"tie_word_embeddings": True}),
    "t5, untied": ("T5ForConditionalGeneration", T5 | {"tie_word_embeddings": False}),
}


def made(name, seed=0, **more):
    """The model called `name`, its weights large enough that its logits differ."""
    base, size = (MODELS | ENCODER_DECODERS)[name]
    kind = base if base.startswith("T5") else ("" if base.startswith("GPT2") else base) + "ForCausalLM"
    kind = "GPT2LMHeadModel" if base.startswith("GPT2") else kind
    torch.manual_seed(seed)
    cls = getattr(transformers, kind)
    model = cls(cls.config_class(**size | more))
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.normal_(std=0.3)
            else:
                weight.add_(torch.randn_like(weight) * 0.1)  # biases, and norms around what they are
    return model.train()
