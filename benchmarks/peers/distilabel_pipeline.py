"""distilabel: a pipeline of one TextGeneration step; its only way to say how many calls at a time is the batch."""

import os
import time

from task import MODEL, arguments, prompt, tell

os.environ |= {"HF_HUB_OFFLINE": "1"}

from distilabel.models import OpenAILLM  # noqa: E402
from distilabel.pipeline import Pipeline  # noqa: E402
from distilabel.steps import LoadDataFromDicts  # noqa: E402
from distilabel.steps.tasks import TextGeneration  # noqa: E402

if __name__ == "__main__":
    args = arguments()
    since = time.perf_counter()
    with Pipeline(name="bench", cache_dir=args.dir) as pipeline:
        rows = [{"instruction": prompt(i)} for i in range(args.rows)]
        load = LoadDataFromDicts(data=rows, batch_size=args.concurrency)
        llm = OpenAILLM(model=MODEL, base_url=args.url, api_key="none")
        load >> TextGeneration(llm=llm, input_batch_size=args.concurrency)
    made = pipeline.run(use_cache=True)["default"]["train"]
    tell(since, sum(bool(text) for text in made["generation"]))
