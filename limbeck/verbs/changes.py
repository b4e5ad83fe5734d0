"""Tells a changed prompt or changed code, which would buy again what is paid for, from what the user wants anew."""

import json
from typing import Any

from ..errors import ChangedError


def stop_if_changed(purchase: Any) -> None:
    """Stops where what was paid for here would be bought again because a prompt or the code changed.

    That is: at this place in the recipe, the same model was asked about the same row before, with the same settings
    and salt, and nothing of what is asked about it now is held. Another model, temperature, salt or a larger `n`
    is the user's wish, and buys.
    """
    asking, run, site = purchase.asking, purchase.run, purchase.site
    if run.accept_changes or not run.ledger.calls_at(site):
        return
    wanted: dict[str, list[tuple]] = {}
    for which in range(len(asking.models)):
        for job in purchase.jobs(which):
            wanted.setdefault(job.row, []).append(_settings(job.model.digest, job.body, job.salt))
    now: dict[str, set[str]] = {}
    digests = asking.rows.row_digests
    for index, _, first in purchase.rows():
        row = digests[16 * index : 16 * index + 16].hex()
        if row in wanted:
            now.setdefault(row, set()).update(purchase.key(first + i) for i in range(purchase.each))
    again = 0
    for row, bought in run.ledger.bought_before(site, set(wanted)).items():
        if not now[row] & bought.keys():
            lost = {_settings(*asked) for asked in bought.values()}
            again += sum(settings in lost for settings in wanted[row])
    if again:
        spent = run.ledger.spent()
        price = f" for about ${spent['money'] / spent['calls'] * again:.4f}" if spent["money"] else ""
        raise ChangedError(
            f"{again} calls of ask {site} ({asking.label}) are paid for already, but the prompt or the "
            f"code changed and they would be bought again{price}; undo the change, or go on with --accept-changes."
        )


def _settings(model: str, body: str, salt: str) -> tuple[str, str, str]:
    """A call without its words: who is asked, how it samples, which salt."""
    request = json.loads(body)
    request.pop("messages", None)
    return model, json.dumps(request, sort_keys=True), salt
