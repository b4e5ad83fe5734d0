"""Walks one row back: judged answer, training row, verdicts, calls with prompt, reply and price, down to the seed."""

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from . import physical, store
from .errors import LimbeckError
from .ledger import Ledger


def trace(run_dir: str | Path, row: str | int) -> list[dict[str, Any]]:
    """Gives the steps behind a row, the newest first: {id, depth, op, parameters, row, calls, from}.

    `row` is the number of a row of rows.parquet, or a lineage id such as "ask-1a2b3c4d5e6f7a8b:17". Each step's `row`
    holds the columns that it made; `calls` what it bought. Raises LimbeckError for a row that is not there.
    """
    directory = Path(run_dir)
    if not (directory / "stages").is_dir():
        raise LimbeckError(f"{directory} is not a run directory: it has no stages; give the --out of a run.")
    ident = _ident(directory, str(row))
    ledger = Ledger(directory / "ledger", readonly=True)
    try:
        steps: list[dict[str, Any]] = []
        _walk(directory, ident, 0, ledger, steps, set())
        return steps
    finally:
        ledger.close()


def _ident(directory: Path, row: str) -> str:
    if ":" in row:
        return row
    result = directory / "rows.parquet"
    if not result.exists():
        raise LimbeckError(
            f"{directory} has no rows.parquet yet; give a lineage id such as 'ask-…:17', finish the run, or save(rows)."
        )
    if not row.isdigit():
        raise LimbeckError(f"a row is a number or a lineage id such as 'ask-1a2b3c4d5e6f7a8b:17'; it is {row!r}.")
    found = _at(result, int(row))
    if "_row" not in found or found["_row"] is None:
        raise LimbeckError(f"{result} keeps no lineage (no `_row` column); trace a row of a stage by its id.")
    return found["_row"]


def _walk(directory: Path, ident: str, depth: int, ledger: Ledger, steps: list[dict[str, Any]], seen: set[str]) -> None:
    if ident in seen:
        return
    seen.add(ident)
    name, _, number = ident.rpartition(":")
    stage = directory / "stages" / name
    if not (stage / "meta.json").exists() or not number.isdigit():
        raise LimbeckError(f"{directory} has no stage {name!r} (any more); run the recipe again to make it anew.")
    meta = store.meta(stage)
    held = _at(stage / "rows.parquet", int(number))
    parents = held.get("_from")
    if parents is None and held.get("_parent") is not None:
        parents = [f"{meta['inputs'][0]['stage']}:{held['_parent']}"]
    steps.append(
        {
            "id": ident,
            "depth": depth,
            "op": meta["op"],
            "parameters": meta.get("parameters", ""),
            "row": {k: v for k, v in held.items() if k not in store.RESERVED and v is not None},
            "calls": [call for key in held.get("_call") or () if (call := ledger.call(key))],
            "from": parents or [],
        }
    )
    for parent in parents or ():
        _walk(directory, parent, depth + 1, ledger, steps, seen)


def _at(path: Path, index: int) -> dict[str, Any]:
    """One row of a Parquet file, reading only the row group that holds it."""
    with pq.ParquetFile(path) as file:
        if not 0 <= index < file.metadata.num_rows:
            raise LimbeckError(
                f"{path.parent.name}/{path.name} has rows 0 to {file.metadata.num_rows - 1}; not {index}."
            )
        for group in range(file.num_row_groups):
            size = file.metadata.row_group(group).num_rows
            if index < size:
                batch = file.read_row_group(group).slice(index, 1).combine_chunks().to_batches()[0]
                fields = batch.schema
                return {f.name: physical.from_array(batch.column(i), f)[0] for i, f in enumerate(fields)}
            index -= size
    raise LimbeckError(f"{path} ended early; it may be damaged.")
