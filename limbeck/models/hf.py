"""A causal language model of transformers, from a local directory or the hub, run in this process.

Requests that wait at the same time are answered in batches by one worker thread. torch and transformers are imported
when weights are first needed: naming a model, or finding that its replies are all in the ledger, costs neither.
"""

import asyncio
import concurrent.futures
import contextlib
import functools
import queue
import threading
import warnings
import weakref
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import LimbeckError, Refused
from ..fingerprint import fingerprint
from . import files
from .base import Model, Reply, Request

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from .generate import Sampling, Written

_WAIT = 0.005  # seconds for more requests to come before a batch starts
_IDLE = 10.0  # seconds without requests after which the worker thread ends
_CACHE_BYTES = 2 << 30  # memory for keys and values on the CPU; on a GPU, 40 % of what is free
_MOST_ROWS = 256
_DTYPES = ("auto", "bfloat16", "float16", "float32", "float64")
_OWN = ("temperature", "top_p", "max_tokens", "stop", "logprobs", "messages")  # what of a request it can do
# The evaluation copies in memory: two models with the same weights share them.
_loaded: "weakref.WeakValueDictionary[tuple, PreTrainedModel]" = weakref.WeakValueDictionary()

Job = tuple[Request, str, "concurrent.futures.Future[Reply]"]


class HF(Model):
    """Answers with the weights at `path`: a directory, or the name of a model on the hub.

    A request without a temperature is answered greedily (nothing is taken from the checkpoint's generation settings);
    without max_tokens it writes at most `max_output`, 512 unless set. Log-probabilities are the model's own, before
    temperature and top_p. `dtype` ("bfloat16", "float32") is by default float32 on the CPU and the checkpoint's own on
    a GPU. `adapter` is a peft directory, merged into the weights. `batch_tokens` bounds rows x (prompt + answer).
    """

    can = frozenset({"chat", "logprobs", "logits", "hidden", "weights"})
    free = True
    max_concurrency: int = 2 * _MOST_ROWS
    retries = 0

    def __init__(
        self,
        path: str | Path,
        *,
        name: str | None = None,
        digest: str | None = None,
        revision: str | None = None,
        dtype: str | None = None,
        device: str = "auto",
        adapter: str | Path | None = None,
        batch_tokens: int | None = None,
        trust_remote_code: bool = False,
    ):
        self.name = name or f"hf/{path}"
        self.path, self.revision = files.locate(str(path), revision, self.name)
        self.adapter = str(Path(adapter).expanduser()) if adapter else None
        self.dtype = str(dtype).removeprefix("torch.") if dtype else None
        if self.dtype and self.dtype not in _DTYPES:
            raise LimbeckError(f"{self.name} wants dtype as one of {', '.join(_DTYPES)}; it got {self.dtype!r}.")
        self.options: dict[str, Any] = {
            "revision": revision, "dtype": self.dtype, "device": device, "adapter": self.adapter,
            "batch_tokens": batch_tokens, "trust_remote_code": trust_remote_code,
        }  # fmt: skip
        self.device, self.batch_tokens, self.trust_remote_code = device, batch_tokens, trust_remote_code
        self.digest = digest or files.digest(self.path, self.revision, self.name)
        if self.adapter or self.dtype:
            adapted = files.digest(self.adapter, None, self.name) if self.adapter else None
            self.digest = fingerprint(["hf", self.digest, adapted, self.dtype])
        self.endpoint = self.name
        self.limit = self.max_output = 512
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._worker: threading.Thread | None = None
        self._lock = threading.RLock()
        self._held: PreTrainedModel | None = None
        self._spelled: dict[int, str] = {}
        self._warned = False

    # Weights and tensors: what training and scoring use.

    @functools.cached_property
    def tokenizer(self) -> Any:
        """The tokenizer of `path`, loaded once."""
        return files.load("AutoTokenizer", self)

    def weights(self, trainable: bool = False) -> "PreTrainedModel":
        """Gives the model for evaluation (frozen, on its device, kept in memory), or a fresh one to train.

        The trainable one is on the CPU and in float32 unless `dtype` was given; an adapter is merged into it.
        """
        with self._lock:
            if trainable:
                return self._load("cpu", self.dtype or "float32").requires_grad_(True).train()
            if self._held is None:
                key = (self.path, self.revision, self.adapter, self.dtype, self._device())
                self._held = _loaded.get(key)
                if self._held is None:
                    dtype = self.dtype or ("float32" if self._device() == "cpu" else "auto")
                    self._held = _loaded[key] = self._load(self._device(), dtype).requires_grad_(False).eval()
            return self._held

    def logits(self, ids_bt: "torch.Tensor", mask_bt: "torch.Tensor") -> "torch.Tensor":
        """Runs the model without gradients: logits_btv for token ids and a mask of 0 and 1, padded on either side."""
        return self._forward(ids_bt, mask_bt).logits

    def hidden(self, ids_bt: "torch.Tensor", mask_bt: "torch.Tensor") -> "tuple[torch.Tensor, ...]":
        """Runs the model without gradients: the hidden states h_btd of the embedding and of every layer."""
        return self._forward(ids_bt, mask_bt, output_hidden_states=True).hidden_states

    def logprobs_of(self, ids_bt: "torch.Tensor", mask_bt: "torch.Tensor") -> "torch.Tensor":
        """Scores given tokens: logp_bt in float32, entry t for token t given those before it.

        A row's first token and padding have 0.
        """
        import torch

        logits_btv = self.logits(ids_bt, mask_bt)[:, :-1].float()
        next_bt = ids_bt[:, 1:].to(logits_btv.device)
        logp_bt = logits_btv.gather(-1, next_bt[..., None])[..., 0] - logits_btv.logsumexp(-1)
        known_bt = (mask_bt[:, 1:] * mask_bt[:, :-1]).to(logits_btv.device).bool()
        return torch.nn.functional.pad(logp_bt.where(known_bt, 0.0), (1, 0))

    def _forward(self, ids_bt: "torch.Tensor", mask_bt: "torch.Tensor", **wanted: Any) -> Any:
        import torch

        from .generate import positions

        model = self.weights()
        mask_bt = mask_bt.to(model.device)
        with torch.no_grad():
            return model(
                input_ids=ids_bt.to(model.device), attention_mask=mask_bt, position_ids=positions(mask_bt),
                use_cache=False, **wanted,
            )  # fmt: skip

    # Replies.

    async def reply(self, request: Request, key: str) -> Reply:
        """Answers in the next batch; `key` seeds the row's own sampling."""
        unable = [f for f in request.canonical() if f not in _OWN and not (f == "extra" and _only_template(request))]
        if unable:
            raise LimbeckError(
                f"{self.name} runs in this process and takes no {unable[0]}; leave it out, or serve the model "
                f"(vllm serve) and name it openai/… with base_url=."
            )
        future: concurrent.futures.Future[Reply] = concurrent.futures.Future()
        with self._lock:
            self._jobs.put((request, key, future))
            if self._worker is None:
                self._worker = threading.Thread(target=self._work, name=self.name, daemon=True)
                self._worker.start()
        return await asyncio.wrap_future(future)

    async def close(self) -> None:
        """Ends the worker and lets go of the weights; a later reply loads them again."""
        with self._lock:
            worker = self._worker
            if worker is not None:
                self._jobs.put(None)
        if worker is not None:
            await asyncio.get_running_loop().run_in_executor(None, worker.join)
        self._held = None

    def _work(self) -> None:
        """The worker thread: takes what waits, answers it in batches, until it is closed or idle."""
        while True:
            waiting = self._take()
            if waiting is None:
                with self._lock:
                    if not self._jobs.empty():
                        continue
                    self._worker = None
                    return
            try:
                self._answer(waiting)
            except BaseException as e:  # whoever waits must hear of it
                for _, _, future in waiting:
                    if not future.done():
                        future.set_exception(e)

    def _take(self) -> list[Job] | None:
        """The requests that wait now, plus those that come within a few milliseconds; None when idle or closed."""
        waiting: list[Job] = []
        with contextlib.suppress(queue.Empty):
            while len(waiting) < self.max_concurrency:
                job = self._jobs.get(timeout=_WAIT if waiting else _IDLE)
                if job is None:
                    if waiting:
                        self._jobs.put(None)  # answer these first
                    break
                if job[2].set_running_or_notify_cancel():
                    waiting.append(job)
        return waiting or None

    def _answer(self, jobs: Iterable[Job]) -> None:
        groups: dict[tuple, list[tuple[Job, list[int]]]] = {}
        for job in jobs:
            request, _, future = job
            try:
                ids = self._encode(request)
                how = self._sampling(request, len(ids))
            except Refused as e:
                future.set_exception(e)
                continue
            groups.setdefault((how, tuple(request.stop or ())), []).append((job, ids))
        for (how, stop), members in groups.items():
            members.sort(key=lambda m: -len(m[1]))  # alike lengths together, the dearest batch first
            for batch in self._batches(members, how):
                self._generate(batch, how, stop)

    def _batches(self, members: list, how: "Sampling") -> Iterator[list]:
        limit = self.batch_tokens or self._room
        while members:
            rows = max(1, min(_MOST_ROWS, limit // (len(members[0][1]) + how.max_tokens)))
            yield members[:rows]
            members = members[rows:]

    def _generate(self, batch: list[tuple[Job, list[int]]], how: "Sampling", stop: tuple[str, ...]) -> None:
        import torch

        from .generate import generate

        seeds = [int(key[:15] or "0", 16) for (_, key, _), _ in batch]
        stopped = functools.partial(self._has_stop, stop=stop) if stop else None
        try:
            for row, out in generate(self.weights(), [ids for _, ids in batch], seeds, how, self._ends, stopped):
                (_, _, future), ids = batch[row]
                future.set_result(self._reply(out, len(ids), stop))
        except torch.OutOfMemoryError as e:
            left = [member for member in batch if not member[0][2].done()]
            if len(left) < 2:
                raise LimbeckError(
                    f"{self.name} has no memory left for one prompt of {len(left[0][1])} tokens and {how.max_tokens} "
                    f"more; ask for fewer max_tokens, or set dtype=bfloat16."
                ) from e
            torch.cuda.empty_cache()
            for half in (left[: len(left) // 2], left[len(left) // 2 :]):
                self._generate(half, how, stop)

    def _reply(self, out: "Written", prompt_tokens: int, stop: tuple[str, ...]) -> Reply:
        text = self.tokenizer.decode(out.ids, skip_special_tokens=True)
        cuts = [at for s in stop if (at := text.find(s)) >= 0]
        entries: list[dict[str, Any]] = [
            {"token": self._spell(i), "logprob": p, "id": i} for i, p in zip(out.ids, out.logprobs, strict=True)
        ]
        for entry, top in zip(entries, out.top, strict=False):
            entry["top"] = [{"token": self._spell(i), "logprob": p, "id": i} for i, p in top]
        return Reply(
            text=text[: min(cuts)] if cuts else text,
            finish=out.finish,
            prompt_tokens=prompt_tokens,
            completion_tokens=len(out.ids),
            cost=self.price.of(prompt_tokens, len(out.ids)) if self.price else 0.0,
            token_ids=out.ids,
            logprobs=entries,
        )

    def _sampling(self, request: Request, prompt_tokens: int) -> "Sampling":
        from .generate import Sampling

        wanted = request.max_tokens or self.max_output or 512
        context = getattr(self.weights().config.get_text_config(), "max_position_embeddings", None)
        room = context - prompt_tokens if context else wanted
        if room < 1:
            raise Refused(f"{self.name}: the prompt has {prompt_tokens} tokens, and the model reads at most {context}")
        # Greedy answers are one group whatever top_p says.
        temperature = request.temperature or 0.0
        top_p = 1.0 if temperature <= 0 or request.top_p is None else request.top_p
        return Sampling(min(wanted, room), temperature, top_p, request.logprobs or 0)

    def _encode(self, request: Request) -> list[int]:
        """The prompt's token ids: by the chat template, or as plain text where the tokenizer has none."""
        turns = [{**m, "content": self._text(m)} for m in request.messages]
        if not self.tokenizer.chat_template:
            if not self._warned:
                self._warned = True
                warnings.warn(f"{self.name} has no chat template: it reads the turns as plain text.", stacklevel=2)
            ids = self.tokenizer("\n\n".join(t["content"] for t in turns))["input_ids"]
        else:
            more = (request.extra or {}).get("chat_template_kwargs", {})
            try:
                text = self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True, **more)
            except Exception as e:  # the template's own words: "system role not supported", "roles must alternate"
                raise Refused(f"{self.name}: its chat template refused these turns ({e})") from e
            ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        if not ids:
            raise Refused(f"{self.name}: the prompt is empty")
        return ids

    def _text(self, message: Mapping[str, Any]) -> str:
        content = message.get("content") or ""
        if isinstance(content, str):
            return content
        if any(p.get("type", "text") != "text" for p in content):
            raise Refused(f"{self.name} reads text alone, and this request holds a {content[0].get('type')}")
        return "\n".join(p["text"] for p in content)

    def _has_stop(self, ids: list[int], stop: tuple[str, ...]) -> bool:
        near = self.tokenizer.decode(ids[-(max(map(len, stop)) + 8) :], skip_special_tokens=True)
        if not any(s in near for s in stop):  # a look at the end first: decoding it all at every token is quadratic
            return False
        text = self.tokenizer.decode(ids, skip_special_tokens=True)
        return any(s in text for s in stop)

    def _spell(self, token: int) -> str:
        if token not in self._spelled:
            self._spelled[token] = self.tokenizer.decode([token])
        return self._spelled[token]

    @functools.cached_property
    def _ends(self) -> frozenset[int]:
        """Every id that ends an answer, by the tokenizer, the model's config or its generation settings."""
        model = self.weights()
        named = [self.tokenizer.eos_token_id, model.config.eos_token_id]
        named.append(getattr(model.generation_config, "eos_token_id", None))
        return frozenset(i for n in named if n is not None for i in (n if isinstance(n, list) else [n]))

    def _device(self) -> str:
        import torch

        return self.device if self.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"

    @functools.cached_property
    def _room(self) -> int:
        """How many tokens' keys and values fit into the memory meant for them."""
        import torch

        model = self.weights()
        config = model.config.get_text_config()
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        size = 2 * config.num_hidden_layers * heads * width * model.dtype.itemsize
        free = int(0.4 * torch.cuda.mem_get_info(model.device)[0]) if model.device.type == "cuda" else _CACHE_BYTES
        return free // size

    def _load(self, device: str, dtype: str) -> "PreTrainedModel":
        model = files.load("AutoModelForCausalLM", self, dtype=dtype)
        if self.adapter:
            from peft import PeftModel

            model = PeftModel.from_pretrained(model, self.adapter).merge_and_unload()
        return model.to(device)


def _only_template(request: Request) -> bool:
    return set(request.extra or ()) == {"chat_template_kwargs"}
