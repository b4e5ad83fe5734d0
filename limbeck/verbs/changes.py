"""Tells a changed prompt or changed code, which would buy again what is paid for, from what the user wants anew."""

import json
from collections.abc import Iterator
from typing import Any

from ..errors import ChangedError

_AT_A_TIME = 500  # rows


def stop_if_changed(purchase: Any) -> None:
    """Stops where what was paid for here would be bought again because a prompt or the code changed.

    That is: at this place in the recipe, the same model was asked about the same row before, with the same settings
    and salt, and nothing of what is asked about it now is held. Another model, temperature, salt or a larger `n`
    is the user's wish, and buys.
    """
    asking, run, site = purchase.asking, purchase.run, purchase.site
    if run.accept_changes or not run.ledger.calls_at(site):
        return
    again, of_now = 0, set[str]()
    for part in _parts(purchase):
        for row, bought in run.ledger.bought_before(site, set(part)).items():
            wanted, keys = part[row]
            if keys & bought.keys():
                continue
            of_now = of_now or {purchase.key(call) for call in range(len(purchase.lacks))}
            if of_now.isdisjoint(bought):  # equal rows may have bought for each other
                lost = {_settings(*asked) for asked in bought.values()}
                again += sum(settings in lost for settings in wanted)
    if again:
        spent = run.ledger.spent()
        price = f" for about ${spent['money'] / spent['calls'] * again:.4f}" if spent["money"] else ""
        raise ChangedError(
            f"{again} calls of ask {site} ({asking.label}) are paid for already, but the prompt or the "
            f"code changed and they would be bought again{price}; undo the change, or go on with --accept-changes."
        )


def _parts(purchase: Any) -> Iterator[dict[str, tuple[list[tuple], set[str]]]]:
    """A part of the rows at a time, those of which calls are lacking: row digest -> (their settings, all its keys)."""
    asking, n, part = purchase.asking, purchase.asking.n, dict[str, tuple[list[tuple], set[str]]]()
    for index, row, first in purchase.rows():
        lacks = purchase.lacks[first : first + purchase.each]
        if any(lacks):
            wanted, keys = part.setdefault(asking.rows.row_digests[16 * index : 16 * index + 16].hex(), ([], set()))
            keys.update(purchase.key(first + i) for i in range(purchase.each))
            for which, (model, _, body, _) in enumerate(asking.said(row)):
                lost = sum(lacks[which * n : (which + 1) * n])
                wanted.extend([_settings(model.digest, body, str(asking.salt))] * lost)
            if len(part) >= _AT_A_TIME:
                yield part
                part = {}
    yield part


def _settings(model: str, body: str, salt: str) -> tuple[str, str, str]:
    """A call without its words: who is asked, how it samples, which salt."""
    request = json.loads(body)
    request.pop("messages", None)
    return model, json.dumps(request, sort_keys=True), salt
