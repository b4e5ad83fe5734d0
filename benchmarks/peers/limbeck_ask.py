"""limbeck through its plain public API, everything durable: the run is opened, asked, stored and closed."""

import time

from task import MODEL, arguments, prompt, tell

import limbeck
from limbeck import models

args = arguments()
teacher = models.get(f"openai/{MODEL}", base_url=args.url, api_key="none", max_concurrency=args.concurrency)
since = time.perf_counter()
with limbeck.Run(args.dir, progress=False):
    rows = limbeck.Table.from_rows({"prompt": prompt(i)} for i in range(args.rows))
    answered = len(limbeck.ask(rows, teacher, "{prompt}"))
tell(since, answered)
