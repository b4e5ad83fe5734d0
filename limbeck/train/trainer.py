"""The one training loop: transformers.Trainer, with limbeck's seams in it.

A step: the schedule's rows → write (who writes the text) → count → score (the teacher's signal) → forward → losses.
A term of the objective is world_size · weight · Σ loss / count, the count taken over all micro-batches and processes of
the step (DDP averages gradients, hence world_size), so how a step is split changes nothing.
"""

import dataclasses
import functools
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

from ..losses import Batch, Outputs
from . import checkpoint
from .collate import collate
from .encode import Examples
from .objective import Objective, Text
from .schedule import Schedule
from .signal import Live, align
from .text import Draft, write, writer


@dataclasses.dataclass(frozen=True)
class Stream:
    """Rows that are read together, and the terms that look at them: those share one forward."""

    examples: Examples
    text: Text
    terms: tuple[Objective, ...]


class Trainer(transformers.Trainer):
    """Trains `model` on streams of rows: text, signals, counts and losses are limbeck's, the rest is the Trainer's."""

    def __init__(
        self,
        model: Any,
        args: transformers.TrainingArguments,
        schedule: Schedule,
        streams: Sequence[Stream],
        *,
        pad: int,
        ends: Collection[int],
        max_length: int,
        teachers: dict[str, Live],
        held_out: Examples | None = None,
        callbacks: Sequence[transformers.TrainerCallback] = (),
    ):
        draft = functools.partial(drafted, texts=[stream.text for stream in streams], pad=pad)
        super().__init__(
            model=model,
            args=args,
            train_dataset=schedule,
            eval_dataset=held_out,
            data_collator=draft,  # type: ignore[arg-type]  # a list for each stream
            callbacks=[*callbacks],
        )
        self.remove_callback(transformers.trainer_callback.PrinterCallback)
        # No model computes its own loss here, and what compute_loss returns is normalised over the whole step.
        self.model_accepts_loss_kwargs = True
        self.loss_is_scaled_for_ga = True
        self.schedule, self.streams, self.held_out, self.teachers = schedule, streams, held_out, teachers
        self.pad, self.ends, self.max_length = pad, ends, max_length

    def _get_train_sampler(self, *_: Any) -> torch.utils.data.Sampler:
        return torch.utils.data.SequentialSampler(self.schedule)  # the schedule is shuffled already

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list, torch.Tensor]:
        """The micro-batches of one step, their text settled, and each term's count over all processes."""
        window = [batch for _, batch in zip(range(num_batches), epoch_iterator, strict=False)]
        for s, stream in enumerate(self.streams):
            if window and isinstance(window[0][s], Draft):
                for micro, batch in zip(window, self.write(stream, [micro[s] for micro in window]), strict=True):
                    micro[s] = batch
        counts = [
            torch.stack([term.loss.count(micro[s]).to(device) for micro in window]).sum()
            for s, stream in enumerate(self.streams)
            for term in stream.terms
        ]
        return window, self.accelerator.reduce(torch.stack(counts).float(), "sum")

    def write(self, stream: Stream, drafts: list[Draft]) -> list[Batch]:
        """Settles the text of one stream's micro-batches: the rows' own, or sampled now."""
        step, seed = drafts[0].places[0] // self.schedule.global_batch, self.args.seed
        who = writer(stream.text, seed, step)
        rows = [draft.examples for draft in drafts]
        if who != "data":
            model = self.accelerator.unwrap_model(self.model)
            if hasattr(model, "get_base_model"):
                model = model.get_base_model()  # the adapter is inside it; peft's own forward hides position_ids
            if who == "teacher":
                model = self.teachers[next(t.teacher.digest for t in stream.terms if t.teacher is not None)].weights
            rows = write(model, drafts, stream.text, seed, self.ends, self.max_length)
        return [collate(examples, self.pad) for examples in rows]

    def score(self, stream: Stream, batch: Batch) -> dict[str, Outputs]:
        """What each teacher says to the batch, by its digest; once, however many terms ask."""
        asked = {
            term.teacher.digest
            for term in stream.terms
            if term.teacher is not None and any(need.startswith("teacher.") for need in term.loss.needs)
        }
        return {teacher: self.teachers[teacher](batch) for teacher in sorted(asked)}

    def forward(self, model: Any, batch: Batch) -> Batch:
        """Runs the wrapped student: the only place that touches it."""
        seen = model(input_ids=batch.input_ids_bt, attention_mask=batch.attention_mask_bt, use_cache=False)
        return Batch({**batch, "student": Outputs(seen.logits)})

    def sums(self, model: Any, stream: Stream, batch: Batch) -> list[torch.Tensor]:
        """Each term's Σ loss over one micro-batch."""
        signals = self.score(stream, batch)
        batch = self.forward(model, batch)
        found = []
        for term in stream.terms:
            signal = signals.get(term.teacher.digest) if term.teacher is not None else None
            found.append(term.loss.fn(batch if signal is None else align(batch, signal)))
        return found

    def compute_loss(  # type: ignore[override]
        self, model: Any, inputs: list[Batch], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """This micro-batch's part of the step's loss."""
        terms = [term for stream in self.streams for term in stream.terms]
        sums = [s for stream, batch in zip(self.streams, inputs, strict=True) for s in self.sums(model, stream, batch)]
        parts = [t.weight * s / n.clamp_min(1) for t, s, n in zip(terms, sums, num_items_in_batch, strict=True)]
        return self.accelerator.num_processes * sum(parts)

    @torch.no_grad()
    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """The objective on held-out rows, on their own text: sums over counts, never a mean of batch means."""
        stream = Stream(
            self.held_out or Examples(), Text(), tuple(term for stream in self.streams for term in stream.terms)
        )
        size, rank = self.args.per_device_eval_batch_size, self.accelerator.process_index
        totals = torch.zeros(2, len(stream.terms), dtype=torch.float64, device=self.args.device)
        self.model_wrapped.eval()
        starts = range(0, len(stream.examples), size)
        for start in starts[rank :: self.accelerator.num_processes]:
            examples = [stream.examples[i] for i in range(start, min(start + size, len(stream.examples)))]
            batch = Batch(self._prepare_inputs(collate(examples, self.pad)))
            totals[0] += torch.stack([s.double() for s in self.sums(self.model_wrapped, stream, batch)])
            totals[1] += torch.stack([term.loss.count(batch) for term in stream.terms])
        summed, counted = self.accelerator.reduce(totals, "sum")
        weights = torch.tensor([term.weight for term in stream.terms], device=totals.device)
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


def drafted(items: list[tuple[int, list]], *, texts: Sequence[Text], pad: int) -> list[Batch | Draft]:
    """A micro-batch of the schedule: for each stream a Batch, or a Draft where someone may still write the text."""
    places = [place for place, _ in items]
    columns = [[examples[s] for _, examples in items] for s in range(len(texts))]
    return [
        collate(examples, pad) if text.data == 1 else Draft(places, examples)
        for text, examples in zip(texts, columns, strict=True)
    ]
