"""The one training loop: transformers.Trainer, with limbeck's seams in it.

A step: the schedule's rows → write (who writes the text) → collate → count → score (what teachers and references say)
→ forward → losses. A term of the objective is world_size · weight · Σ loss / count, the count taken over all
micro-batches and processes of the step (DDP averages gradients, hence world_size): how a step is split changes nothing.
"""

import dataclasses
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

from ..losses import Batch, Outputs
from ..losses.heads import Term, total
from . import checkpoint
from .collate import Layout
from .examples import Examples
from .forward import Reader, through
from .objective import Objective, Text
from .schedule import Schedule
from .signal import aligned
from .text import Draft, write, writer

Signal = Callable[[Batch], Outputs]  # what a frozen model says to a batch


@dataclasses.dataclass(frozen=True)
class Stream:
    """Rows that are read together, and the terms that look at them: those share one forward."""

    examples: Examples
    text: Text
    terms: tuple[Objective, ...]


class Trainer(transformers.Trainer):
    """Trains `model` on streams of rows: text, signals, counts and losses are limbeck's, the rest is the Trainer's.

    `signals`: what each term is told, by (who, digest of the model or None for the student at its start).
    `modules`: the terms' own weights, by term; they are submodules of `model` already.
    """

    def __init__(
        self,
        model: Any,
        args: transformers.TrainingArguments,
        schedule: Schedule,
        streams: Sequence[Stream],
        *,
        layout: Layout,
        ends: Collection[int],
        max_length: int,
        signals: Mapping[tuple[str, str | None], Signal],
        modules: Mapping[Objective, torch.nn.Module] | None = None,
        held_out: Sequence[Examples] = (),
        callbacks: Sequence[transformers.TrainerCallback] = (),
    ):
        super().__init__(
            model=model,
            args=args,
            train_dataset=schedule,
            eval_dataset=held_out[0] if held_out else None,
            data_collator=drafted,  # type: ignore[arg-type]  # a Draft for each stream
            callbacks=[*callbacks],
        )
        self.remove_callback(transformers.trainer_callback.PrinterCallback)
        # No model computes its own loss here, and what compute_loss returns is normalised over the whole step.
        self.model_accepts_loss_kwargs = True
        self.loss_is_scaled_for_ga = True
        self.schedule, self.streams, self.held_out, self.signals = schedule, streams, held_out, signals
        self.layout, self.ends, self.max_length, self.modules = layout, ends, max_length, dict(modules or {})
        needs = {need for stream in streams for term in stream.terms for need in term.loss.needs}
        self.reader = Reader(model, layers="student.layers" in needs, attentions="student.attentions" in needs)

    def _get_train_sampler(self, *_: Any) -> torch.utils.data.Sampler:
        return torch.utils.data.SequentialSampler(self.schedule)  # the schedule is shuffled already

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list, torch.Tensor]:
        """The micro-batches of one step, their text settled, and each term's count over all processes."""
        drafts = [batch for _, batch in zip(range(num_batches), epoch_iterator, strict=False)]
        streams = zip(self.streams, zip(*drafts, strict=True), strict=True) if drafts else ()
        written = [self.write(stream, list(micro)) for stream, micro in streams]
        window = [list(batches) for batches in zip(*written, strict=True)]
        counts = [
            torch.stack([term.loss.count(micro[s]) for micro in window]).sum().to(device)
            for s, stream in enumerate(self.streams)
            for term in stream.terms
        ]
        return window, self.accelerator.reduce(torch.stack(counts).float(), "sum")

    def write(self, stream: Stream, drafts: list[Draft]) -> list[Batch]:
        """Settles the text of one stream's micro-batches: the rows' own, or sampled now."""
        step, seed = drafts[0].places[0] // self.schedule.global_batch, self.args.seed
        who = writer(stream.text, seed, step)
        rows = [draft.rows for draft in drafts]
        if who != "data":
            model = self.inner
            if hasattr(model, "get_base_model"):
                model = model.get_base_model()  # the adapter is inside it; peft's own forward hides position_ids
            if who == "teacher":
                digest = next(t.teacher.digest for t in stream.terms if t.teacher is not None)
                model = self.signals["teacher", digest].weights  # type: ignore[attr-defined]
            rows = write(model, drafts, stream.text, seed, self.ends, self.max_length)
        return [self.layout(micro) for micro in rows]

    @property
    def inner(self) -> Any:
        """The student as it is inside of what spreads it over devices."""
        return self.accelerator.unwrap_model(self.model, keep_torch_compile=False)

    def score(self, stream: Stream, batch: Batch) -> dict[tuple[str, str | None], Outputs]:
        """What each model of a stream's terms says to the batch; once, however many terms ask."""
        said: dict[tuple[str, str | None], Outputs] = {}
        for who, digest in sorted({key for term in stream.terms for key in asked(term)}, key=str):
            view = batch.get("teacher_view", batch) if who == "teacher" else batch
            said[who, digest] = self.signals[who, digest](view)
        return said

    def losses(
        self, streams: Sequence[Stream], inputs: Sequence[Batch], factors: Sequence[Any]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Σ factor · (Σ loss) over the streams' terms, with a gradient, and each term's Σ loss, in one wrapped call."""
        said = [self.score(stream, batch) for stream, batch in zip(streams, inputs, strict=True)]

        def forward() -> tuple[torch.Tensor, torch.Tensor]:
            with self.accelerator.autocast():
                left = iter(factors)
                found = [
                    self.minimised(stream, batch, signals, [next(left) for _ in stream.terms])
                    for stream, batch, signals in zip(streams, inputs, said, strict=True)
                ]
                return sum(part for part, _ in found), torch.cat([sums for _, sums in found])  # type: ignore[return-value]

        return through(self.model_wrapped, self.inner, forward)

    def minimised(
        self, stream: Stream, batch: Batch, signals: Mapping[tuple[str, str | None], Outputs], factors: Sequence[Any]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """One stream's Σ factor · (Σ loss), and each term's Σ loss: those at the head share one pass over it."""
        student = self.reader(batch)
        at_head: list[tuple[int, Term]] = []
        whole: Any = 0.0
        sums: dict[int, Any] = dict.fromkeys(range(len(factors)), 0.0)
        for k, (term, factor) in enumerate(zip(stream.terms, factors, strict=True)):
            said = {who: signals[who, digest] for who, digest in asked(term)}
            seen = Batch({**batch, "student": student, **said, "module": self.modules.get(term)})
            if {"student.logits", "teacher.logits"} <= set(term.loss.needs):
                seen["student"], seen["teacher"] = aligned(student, said["teacher"])
            found = term.loss.fn(seen)
            if "student.head" in term.loss.needs:
                at_head += [(k, one) for one in found]  # type: ignore[union-attr]
            else:
                whole = whole + factor * found
                sums[k] = found.detach()  # type: ignore[union-attr]
        if at_head:
            scaled = [dataclasses.replace(one, scale=one.scale * factors[k]) for k, one in at_head]
            part, each = total(student.hidden_nd, student.head, scaled)
            whole = whole + part
            for (k, one), found in zip(at_head, each, strict=True):
                sums[k] = sums[k] + found * one.scale
        return whole, torch.stack([torch.as_tensor(found, device=whole.device).float() for found in sums.values()])

    def compute_loss(  # type: ignore[override]
        self, model: Any, inputs: list[Batch], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """This micro-batch's part of the step's loss."""
        terms = [term for stream in self.streams for term in stream.terms]
        world = self.accelerator.num_processes
        factors = [world * t.weight / n.clamp_min(1) for t, n in zip(terms, num_items_in_batch, strict=True)]
        return self.losses(self.streams, inputs, factors)[0]

    @torch.no_grad()
    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """The objective on held-out rows, on their own text: sums over counts, never a mean of batch means."""
        size, rank = self.args.per_device_eval_batch_size, self.accelerator.process_index
        found = []
        self.model_wrapped.eval()
        for stream, examples in zip(self.streams, self.held_out, strict=True):
            totals = torch.zeros(2, len(stream.terms), dtype=torch.float64, device=self.args.device)
            for start in range(0, len(examples), size)[rank :: self.accelerator.num_processes]:
                rows = [examples[i] for i in range(start, min(start + size, len(examples)))]
                batch = Batch(self._prepare_inputs(self.layout(rows)))
                totals[0] += self.losses([stream], [batch], [1.0] * len(stream.terms))[1].double()
                totals[1] += torch.stack([term.loss.count(batch) for term in stream.terms]).to(totals)
            found.append(totals)
        terms = [term for stream in self.streams for term in stream.terms]
        totals = torch.cat(found, dim=1)
        summed, counted = self.accelerator.reduce(totals, "sum")
        weights = torch.tensor([term.weight for term in terms], device=totals.device)
        metrics = {"eval_loss": float((weights * summed / counted.clamp_min(1)).sum())}
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        super()._save_checkpoint(*args, **kwargs)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            checkpoint.mark(Path(str(self.args.output_dir)) / f"checkpoint-{self.state.global_step}")

    def floating_point_ops(self, inputs: Any) -> int:
        return 0  # counting them walks all parameters at every micro-batch, and nobody reads the sum


def asked(term: Objective) -> list[tuple[str, str | None]]:
    """The models that a term's loss is told about: (who, digest), None for the student at its start."""
    who = sorted({need.partition(".")[0] for need in term.loss.needs} - {"student"})
    return [(name, model.digest if (model := getattr(term, name)) is not None else None) for name in who]


def drafted(items: list[tuple[int, list]]) -> list[Draft]:
    """A micro-batch of the schedule: for each stream a Draft."""
    places = [place for place, _ in items]
    return [Draft(places, list(column)) for column in zip(*(rows for _, rows in items), strict=True)]
