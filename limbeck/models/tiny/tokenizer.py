"""The tiny models' tokenizer: one token per word, number (0-99) or mark; case is kept; decoding gives the text back.

Any text can be read: what the vocabulary lacks becomes `<unk>`. Line breaks are tokens, other white space is not.
"""

import re
from typing import Any

from .world import problems

PAD, UNK, END, SYSTEM, USER, ASSISTANT = "<pad>", "<unk>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"
MARKS = ("####", "\n", *"""+-*/=.,?!:;()[]{}<>"'$%&#_""")
CONTEXT = 1024  # tokens; the models' longest input

# Words that instructions are made of: read as themselves, so that a prompt around a question is not a row of <unk>.
INSTRUCTION = """
You you are a an the helpful assistant teacher student math maths expert Question question Answer answer Problem
problem Solution solution Reasoning reasoning Explain explain Solve solve Give give Write write Think think Let us
step steps by Show show your work working final result on its own line after end with only number and or not do Do
Please please following below above this that is in of to for as it Read read carefully careful then Then first
First one two three Response response Instruction instruction Instructions instructions Input input Output output
Example example Examples examples Hint hint The correct Correct wrong Use use format Format word words sentence
short brief simple new task Task text Text Here here Be be at how How what What why Why which Which can Can will
Will must should all no No yes Yes from Now now Finish finish Put put Your reply Reply different same more each
every true True false False
"""

CHAT_TEMPLATE = """\
{%- for message in messages -%}
{%- if message['role'] == 'assistant' -%}
<|assistant|>{% generation %}{{ message['content'] }}<|end|>{% endgeneration %}
{%- elif message['role'] == 'system' -%}
<|system|>{{ message['content'] }}
{%- else -%}
<|user|>{{ message['content'] }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}<|assistant|>{%- endif -%}"""


def words() -> list[str]:
    """The vocabulary in the order of its ids: special tokens, marks, numbers, then words by the alphabet."""
    world = " ".join(f"{row['prompt']} {row['response']}" for row in problems(4000, seed=0))
    spelled = sorted(set(re.findall(r"[A-Za-z]+", world + INSTRUCTION)))
    return [PAD, UNK, END, SYSTEM, USER, ASSISTANT, *MARKS, *map(str, range(100)), *spelled]


def tokenizer() -> Any:
    """Build the tokenizer as a `transformers.PreTrainedTokenizerFast`, chat template included."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words())}, unk_token=UNK))
    pieces = Regex(r"####|\n|\d+|\p{L}+|[^\s\p{L}\d]")
    core.pre_tokenizer = pre_tokenizers.Split(pieces, behavior="removed", invert=True)
    # WordPiece joins with blanks (no word here starts with its prefix); the rest puts marks where English has them.
    tidy = [(" " + mark, mark) for mark in ".,?!:;)]}%"] + [(mark + " ", mark) for mark in "([{$"] + [(" ' ", "'")]
    core.decoder = decoders.Sequence([
        decoders.WordPiece(prefix="##never##", cleanup=False), decoders.Fuse(),
        *(decoders.Replace(before, after) for before, after in tidy), decoders.Replace(Regex(r" *\n *"), "\n"),
    ])  # fmt: skip
    built = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token=PAD, unk_token=UNK, eos_token=END,
        additional_special_tokens=[SYSTEM, USER, ASSISTANT],
        model_max_length=CONTEXT, padding_side="left", clean_up_tokenization_spaces=False,
    )  # fmt: skip
    built.chat_template = CHAT_TEMPLATE
    return built
