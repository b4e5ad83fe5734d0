"""NeMo Data Designer: one text column from a seed table; run again, it resumes where it stopped."""

import os
import time

from task import MODEL, arguments, prompt, tell

os.environ |= {"NEMO_TELEMETRY_ENABLED": "false"}

import data_designer.config as dd  # noqa: E402
import pandas as pd  # noqa: E402
from data_designer.interface import DataDesigner  # noqa: E402

args = arguments()
since = time.perf_counter()
server = dd.ModelProvider(name="loopback", endpoint=args.url, provider_type="openai", api_key="none")
parameters = dd.ChatCompletionInferenceParams(max_parallel_requests=args.concurrency)
teacher = dd.ModelConfig(alias="teacher", model=MODEL, provider="loopback", inference_parameters=parameters)
config = dd.DataDesignerConfigBuilder(model_configs=[teacher])
seed = dd.DataFrameSeedSource(df=pd.DataFrame({"prompt": [prompt(i) for i in range(args.rows)]}))
config.with_seed_dataset(seed, sampling_strategy=dd.SamplingStrategy.ORDERED)
config.add_column(dd.LLMTextColumnConfig(name="response", model_alias="teacher", prompt="{{ prompt }}"))
again = {"resume": dd.ResumeMode.ALWAYS} if args.dir.exists() else {}
designer = DataDesigner(artifact_path=args.dir, model_providers=[server])
made = designer.create(config, num_records=args.rows, dataset_name="bench", **again).load_dataset()
tell(since, int(made["response"].notna().sum()))
