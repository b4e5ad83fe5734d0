"""Short notes on whether a model's terms allow training on what it wrote: reminders, no advice.

Each note names the date of the terms that it was written from, and where they are. The option `terms` overrides it.
"""

import re

_READ = "this is no legal advice, read them"
_COMPETE = "do not allow training models that compete with its own on the outputs"
_FREE = "sets no condition on its outputs"

# The first that fits the name counts; (pattern, note, date of the terms, address)
_FAMILIES: list[tuple[str, str, str, str]] = [
    (r"gpt-oss", f"gpt-oss is under Apache 2.0, which {_FREE}", "2025-08-05",
     "https://huggingface.co/openai/gpt-oss-120b"),
    (r"llama[-_ ]?(3[._][1-9]|[4-9])", "the Llama licence from 3.1 on allows training on outputs; a model so trained "
     'and passed on has "Llama" at the start of its name and says "Built with Llama"', "2024-07-23",
     "https://www.llama.com/llama3_1/license/"),
    (r"llama[-_ ]?[23](\b|[-_])", "the licences of Llama 2 and 3.0 do not allow improving any model but Llama with the "
     "outputs", "2024-04-18", "https://www.llama.com/llama3/license/"),
    (r"gemma[-_]?([1-3]\b|\db|\d\d+b)", "the Gemma terms count a model trained on its outputs to perform like it as a "
     "derivative: the terms and their use policy go with it", "2025-03-24", "https://ai.google.dev/gemma/terms"),
    (r"qwen", f"most Qwen weights are under Apache 2.0, which {_FREE}; a few (Qwen2.5 3B and 72B among them) have "
     "licences of their own", "2025-04-28", "https://huggingface.co/Qwen"),
    (r"deepseek", "DeepSeek's weights since R1 are under the MIT licence, and its API's terms allow distillation",
     "2025-01-20", "https://huggingface.co/deepseek-ai/DeepSeek-R1"),
    (r"mixtral|ministral|mistral", "Mistral's weights are partly under Apache 2.0, partly under a research licence "
     "without commercial use; its hosted models have terms of their own", "2025-05-29",
     "https://legal.mistral.ai/terms"),
    (r"\bphi-?[2-9]", f"Phi is under the MIT licence, which {_FREE}", "2024-12-12",
     "https://huggingface.co/microsoft/phi-4"),
    (r"\b(chatgpt|gpt-\d|o[1-9](-|$)|text-embedding-)", f"OpenAI's terms {_COMPETE}", "2025-05-31",
     "https://openai.com/policies/services-agreement/"),
    (r"\bclaude", f"Anthropic's commercial terms {_COMPETE}, without its approval", "2025-06-17",
     "https://www.anthropic.com/legal/commercial-terms"),
    (r"\bgemini", f"the Gemini API's terms {_COMPETE}", "2025-05-20", "https://ai.google.dev/gemini-api/terms"),
]  # fmt: skip
_OWN = {"anthropic": "claude", "gemini": "gemini"}  # whose provider serves its own models alone


def note(provider: str, name: str) -> str | None:
    """Says what is known of the terms of a model's outputs, in one line; None where nothing is."""
    if provider in ("fake", "tiny"):
        return None
    for known in (name.lower(), _OWN.get(provider, "")):
        for pattern, words, date, address in _FAMILIES:
            if re.search(pattern, known):
                return f"{words} (terms of {date}, {address}; {_READ})"
    return None
