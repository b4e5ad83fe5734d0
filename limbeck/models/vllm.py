"""vLLM's engine in this process: weights of a directory or the hub on this machine's GPUs, without a server.

It needs the package vllm (Linux, a GPU), which limbeck does not depend on. All requests go to the engine at once; it
batches them, keeps what prompts share, and holds replies to a schema.
"""

import asyncio
import functools
import itertools
from pathlib import Path
from typing import Any

import orjson

from ..errors import EndpointFailure, LimbeckError, Refused
from ..fingerprint import fingerprint
from . import chat, files
from .base import Model, Reply, Request, plain

_TAKES = ("messages", "temperature", "top_p", "max_tokens", "stop", "logprobs", "schema")  # of a request


class VLLM(Model):
    """Answers with the weights at `path` (a directory or a model of the hub) through vLLM's asynchronous engine.

    As with `hf`, a request without a temperature is answered greedily, one without max_tokens writes at most
    `max_output` tokens (512 unless set), and sampling is seeded by the call's key. Replies carry token ids and
    log-probabilities before temperature and top_p. `tensor_parallel_size` is the number of GPUs, `max_model_len` the
    longest prompt and answer, `gpu_memory_utilization` the share of a GPU's memory.
    """

    can = frozenset({"chat", "logprobs"})
    free = True
    max_concurrency: int = 1024
    retries = 0

    def __init__(
        self,
        path: str | Path,
        *,
        name: str | None = None,
        digest: str | None = None,
        revision: str | None = None,
        dtype: str | None = None,
        quantization: str | None = None,
        tensor_parallel_size: int = 1,
        gpu_memory_utilization: float = 0.9,
        max_model_len: int | None = None,
        trust_remote_code: bool = False,
    ):
        self.name = name or f"vllm/{path}"
        self.path, self.revision = files.locate(str(path), revision, self.name)
        self.trust_remote_code = trust_remote_code
        self.digest = digest or fingerprint(
            ["vllm", files.digest(self.path, self.revision, self.name), dtype, quantization]
        )
        self.endpoint = self.name
        self.limit = self.max_output = 512
        self._arguments = {
            "model": self.path, "revision": self.revision, "dtype": dtype or "auto", "quantization": quantization,
            "tensor_parallel_size": tensor_parallel_size, "gpu_memory_utilization": gpu_memory_utilization,
            "max_model_len": max_model_len, "trust_remote_code": trust_remote_code, "enable_prefix_caching": True,
            "disable_log_stats": True,
        }  # fmt: skip
        self._engine: Any = None
        self._starting = asyncio.Lock()
        self._tries = itertools.count()

    @functools.cached_property
    def tokenizer(self) -> Any:
        """The tokenizer of `path`, loaded once."""
        return files.load("AutoTokenizer", self)

    async def reply(self, request: Request, key: str) -> Reply:
        """Answers through the engine, which the first request starts (minutes); `key` seeds the sampling."""
        chat.check(request, _TAKES, self.name)
        async with self._starting:
            if self._engine is None:
                self._engine = await asyncio.to_thread(self._start)
        from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

        prompt = {"prompt_token_ids": chat.encode(self.tokenizer, request, self.name, schema_in_words=False)}
        how, name = self._sampling(request, key), f"{key}-{next(self._tries)}"
        try:
            outs = [out async for out in self._engine.generate(prompt, how, name)]  # one, as only the end is asked for
        except EngineDeadError as e:
            raise EndpointFailure(f"{self.name}: vLLM's engine died ({_line(e)})", cause="engine", final=True) from e
        except EngineGenerateError as e:
            raise EndpointFailure(f"{self.name}: vLLM's engine failed ({_line(e)})", cause="engine") from e
        except ValueError as e:  # how vLLM says that it does not take a request: too long, or such a schema
            raise Refused(f"{self.name}: {_line(e)}") from e
        return self._reply(outs[-1], request)

    async def close(self) -> None:
        """Ends the engine and frees the GPU; a later reply starts it again."""
        if self._engine is not None:
            await asyncio.to_thread(self._engine.shutdown)
            self._engine = None

    def _start(self) -> Any:
        try:
            from vllm import AsyncEngineArgs, AsyncLLMEngine
        except ImportError as e:
            raise LimbeckError(
                f"{self.name} runs vLLM in this process and needs {e.name}; pip install 'limbeck[vllm]' (it wants a "
                f"GPU), or name the same weights as hf/{self.path}."
            ) from e
        return AsyncLLMEngine.from_engine_args(AsyncEngineArgs(**self._arguments))

    def _sampling(self, request: Request, key: str) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

        # Plain dicts and lists are what the engine's own processes can be sent.
        schema = None if request.schema is None else orjson.loads(orjson.dumps(request.schema, default=plain))
        held_to = None if schema is None else StructuredOutputsParams(json=schema)
        return SamplingParams(
            temperature=request.temperature or 0.0,
            top_p=1.0 if request.top_p is None else request.top_p,
            max_tokens=request.max_tokens or self.max_output,
            stop=list(request.stop or ()),
            seed=int(key[:15] or "0", 16),
            logprobs=request.logprobs or 0,
            structured_outputs=held_to,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )

    def _reply(self, out: Any, request: Request) -> Reply:
        written, ids = out.outputs[0], list(out.outputs[0].token_ids)
        if written.finish_reason not in ("stop", "length"):
            raise EndpointFailure(f"{self.name}: vLLM's engine gave up ({written.finish_reason})", cause="engine")
        entries = []
        for token, table in zip(ids, written.logprobs or (), strict=False):
            entry = _entry(token, table[token])
            if request.logprobs:
                best = sorted(table.items(), key=lambda item: item[1].rank)[: request.logprobs]
                entry["top"] = [_entry(i, p) for i, p in best]
            entries.append(entry)
        return Reply(
            text=written.text,
            finish=written.finish_reason,
            prompt_tokens=len(out.prompt_token_ids),
            completion_tokens=len(ids),
            cost=self.price.of(len(out.prompt_token_ids), len(ids)) if self.price else 0.0,
            token_ids=ids,
            logprobs=entries,
        )


def _entry(token: int, found: Any) -> dict[str, Any]:
    return {"token": found.decoded_token or "", "logprob": found.logprob, "id": token}


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
