"""Bespoke Curator: one LLM over a list of rows, its OpenAI backend, its cache in a directory."""

import os
import time
from importlib.util import find_spec
from pathlib import Path

from task import MODEL, arguments, prompt, tell

# It fetches a tokenizer's vocabulary when it starts; litellm ships the same file. No news to its makers either.
litellm = find_spec("litellm")
assert litellm and litellm.origin
os.environ["TIKTOKEN_CACHE_DIR"] = str(Path(litellm.origin).parent / "litellm_core_utils" / "tokenizers")
os.environ |= {"TELEMETRY_ENABLED": "False", "OPENAI_API_KEY": "none", "LITELLM_LOCAL_MODEL_COST_MAP": "True"}

from bespokelabs import curator  # noqa: E402


class Answer(curator.LLM):
    def prompt(self, row):
        return row["prompt"]

    def parse(self, row, reply):
        return {**row, "response": reply}


if __name__ == "__main__":
    args = arguments()
    settings = {
        "base_url": args.url,
        "max_concurrent_requests": args.concurrency,
        "max_requests_per_minute": 10**8,
        "max_tokens_per_minute": 10**11,
        "require_all_responses": True,
    }
    since = time.perf_counter()
    writer = Answer(model_name=MODEL, backend="openai", backend_params=settings)
    made = writer([{"prompt": prompt(i)} for i in range(args.rows)], working_dir=str(args.dir))
    tell(since, sum(bool(row["response"]) for row in getattr(made, "dataset", made)))
