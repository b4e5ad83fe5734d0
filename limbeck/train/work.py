"""The training itself: from rows to a finished model directory."""

import collections
import dataclasses
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers

from ..errors import LimbeckError
from ..models.files import quiet
from ..run import Run
from ..table import Table
from . import checkpoint
from .encode import Examples, encode
from .hparams import Hparams
from .objective import Objective
from .schedule import Schedule
from .signal import Live, check_vocabularies
from .trainer import Stream, Trainer
from .watch import Watch

if TYPE_CHECKING:
    from ..models.hf import HF


def work(
    run: Run,
    student: "HF",
    rows: Table,
    objective: Objective,
    hparams: Hparams,
    eval_rows: Table | None,
    path: Path,
    named: dict[str, str],
) -> dict[str, Any]:
    """Trains, or continues, and makes `path` appear whole. Returns what its meta.json holds, `named` included."""
    teachers: dict[str, Any] = {}
    for term in objective.terms:
        if term.teacher is not None:
            check_vocabularies(term.loss.name, term.teacher, student)
            teachers[term.teacher.digest] = term.teacher
    part = checkpoint.part(path)
    part.mkdir(parents=True, exist_ok=True)
    with quiet():
        model = student.weights(trainable=True)
        use_cache = model.config.use_cache
        _make_savable(model.generation_config)
        ends = end_ids(student.tokenizer, model)
        context = getattr(model.config.get_text_config(), "max_position_embeddings", None) or hparams.max_length
        most = min(hparams.max_length, context)
        streams = _streams(student, rows, objective, ends, most)
        first = streams[0].examples  # whose rows and epochs count
        steps, seen = hparams.steps(len(first)), hparams.rows_seen(len(first))
        if hparams.lora is not None:
            model = _with_lora(model, hparams)
        log, before = part / "log.jsonl", checkpoint.newest(part)
        spent = _rewind(log, before)
        with run.bar(f"train {named['name']}", steps) as bar:
            watch = Watch(log, bar, spent)
            trainer = Trainer(
                model,
                _arguments(hparams, part, steps, eval_rows is not None),
                Schedule([stream.examples for stream in streams], seen, steps, hparams.global_batch, hparams.seed),
                streams,
                pad=student.tokenizer.pad_token_id or 0,
                ends=ends,
                max_length=most,
                teachers={digest: Live(teacher) for digest, teacher in teachers.items()},
                held_out=None if eval_rows is None else encode(eval_rows, student.tokenizer, most, ends),
                callbacks=[watch],
            )
            trainer.train(resume_from_checkpoint=str(before) if before else None)
        meta = named | {
            "student": student.name,
            "objective": objective.name,
            "rows": len(first),
            "rejected": dict(collections.Counter(why.reason for _, why in first.rejects)),
            "cut": first.cut,
            "steps": steps,
            "loss": next((line["loss"] for line in reversed(checkpoint.read_log(log)) if "loss" in line), None),
            "train_seconds": round(watch.seconds, 3),
            "hparams": dataclasses.asdict(hparams),
            "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        }
        if trainer.args.should_save:
            trained = trainer.accelerator.unwrap_model(trainer.model)
            trained.config.use_cache = use_cache
            _finish(trained, student.tokenizer, streams, part, path, meta)
        trainer.accelerator.wait_for_everyone()
        if torch.cuda.is_available():
            trainer.accelerator.free_memory()  # the next model wants it
    return meta


def _streams(student: "HF", rows: Table, objective: Objective, ends: set[int], most: int) -> list[Stream]:
    """Encodes each table once, and puts the terms with the same rows and text together."""
    groups: dict[tuple, list[Objective]] = {}
    tables = {rows.digest: rows}
    for term in objective.terms:
        own = rows if term.rows is None else term.rows
        tables[own.digest] = own
        groups.setdefault((own.digest, term.text), []).append(term)
    encoded: dict[tuple, Examples] = {}
    for table, text in groups:
        at = (table, text.data > 0)
        if at not in encoded:
            encoded[at] = encode(tables[table], student.tokenizer, most, ends, answers=text.data > 0)
            if not len(encoded[at]):
                reasons = collections.Counter(why.reason for _, why in encoded[at].rejects).most_common(3)
                why = "; ".join(f"{n} × {reason}" for reason, n in reasons) or "there are none"
                raise LimbeckError(
                    f"train wants rows to learn from, and none is left: {why}; look at the rows, or raise max_length."
                )
    return [Stream(encoded[table, text.data > 0], text, tuple(terms)) for (table, text), terms in groups.items()]


def end_ids(tokenizer: Any, model: Any) -> set[int]:
    """Every id that ends an answer, by the tokenizer or the model's generation settings."""
    named = [tokenizer.eos_token_id, getattr(model.generation_config, "eos_token_id", None)]
    return {i for n in named if n is not None for i in (n if isinstance(n, list) else [n])}


def _make_savable(settings: Any) -> None:
    """Some checkpoints name a temperature and do not sample; transformers would refuse to save that, after training."""
    try:
        settings.validate(strict=True)
    except ValueError:
        settings.do_sample = True


def _with_lora(model: Any, hparams: Hparams) -> Any:
    import peft

    torch.manual_seed(hparams.seed)
    try:
        return peft.get_peft_model(model, peft.LoraConfig(**hparams.lora_config()))
    except (TypeError, ValueError) as e:
        raise LimbeckError(
            f"train wants lora as peft.LoraConfig takes it, such as {{'r': 8, 'alpha': 16}}; it got {e}."
        ) from e


def _arguments(hparams: Hparams, part: Path, steps: int, evaluates: bool) -> transformers.TrainingArguments:
    gpu = torch.cuda.is_available() and not hparams.use_cpu
    try:
        args = transformers.TrainingArguments(
            output_dir=str(part), max_steps=steps, **hparams.arguments(),
            eval_strategy="steps" if evaluates else "no", eval_steps=hparams.eval_steps,
            save_total_limit=None,  # a checkpoint goes when the next one counts, not before: see checkpoint.mark
            logging_first_step=True, logging_nan_inf_filter=False, disable_tqdm=True,
            remove_unused_columns=False, dataloader_pin_memory=gpu,
        )  # fmt: skip
    except (TypeError, ValueError) as e:
        raise LimbeckError(f"train wants settings as transformers.TrainingArguments takes them; it says: {e}.") from e
    args._n_gpu = min(args.n_gpu, 1)  # several GPUs want torchrun; DataParallel would change the global batch
    return args


def _rewind(log: Path, to: Path | None) -> float:
    """Cuts the curve back to the checkpoint `to`. Returns the seconds spent so far, those lost with a kill included."""
    step = int(to.name.rpartition("-")[2]) if to else 0
    lines = checkpoint.read_log(log)
    log.write_text("".join(json.dumps(line) + "\n" for line in lines if line["step"] <= step))
    return lines[-1]["seconds"] if lines else 0.0


def _finish(model: Any, tokenizer: Any, streams: list[Stream], part: Path, path: Path, meta: dict[str, Any]) -> None:
    """Saves what others load (transformers, vLLM), beside the curve and the rejects, and gives it its name."""
    final = part / "final"
    shutil.rmtree(final, ignore_errors=True)
    if meta["hparams"]["lora"] is not None:
        model.save_pretrained(final / "adapter")
        model = model.merge_and_unload()
    model.save_pretrained(final)
    tokenizer.save_pretrained(final)
    shutil.copy(part / "log.jsonl", final / "log.jsonl")
    with (final / "rejects.jsonl").open("w") as out:
        for s, stream in enumerate(streams):
            for row, why in stream.examples.rejects:
                out.write(json.dumps({"stream": s, "row": row, "reason": why.reason}) + "\n")
    (final / "meta.json").write_text(json.dumps(meta, indent=1))
    checkpoint.commit(final, path)
    checkpoint.remove(part)
