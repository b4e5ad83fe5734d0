"""Which tokens are learned: the answers, their end token included, under templates that do what real ones do."""

import pytest
import torch

from limbeck.errors import LimbeckError
from limbeck.train.collate import Layout
from limbeck.train.encode import encode

from .conftest import TEMPLATE, WORDS, word_tokenizer

THINKS = (  # like Qwen3's: the reasoning of earlier turns is dropped
    "{% for m in messages %}{% if m['role'] == 'assistant' %}<bot> "
    "{% if loop.last %}{{ m['content'] }}{% else %}{{ m['content'].split('</think>')[-1] }}{% endif %} <end>\n"
    "{% else %}<user> {{ m['content'] }} {% endif %}{% endfor %}{% if add_generation_prompt %}<bot> {% endif %}"
)
OPENS = (  # like R1's: the generation prompt opens the reasoning, and the whole conversation drops it
    "{% for m in messages %}{% if m['role'] == 'assistant' %}<bot> {{ m['content'].split('</think>')[-1] }} <end>"
    "{% else %}<user> {{ m['content'] }} {% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<bot> <think>\n{% endif %}"
)


def learned(tokenizer, row, max_length=64, **more):
    """The whole text and the learned part, as the tokens they became."""
    made = encode([row], tokenizer, max_length, **more)
    assert not made.rejects, made.rejects
    (one,) = made[0].sequences
    return said(tokenizer, one)


def said(tokenizer, one):
    tokens = tokenizer.convert_ids_to_tokens(one.ids.tolist())
    return " ".join(tokens), " ".join(t for t, on in zip(tokens, one.learn.tolist(), strict=True) if on)


def test_the_answer_and_its_end_token_are_learned():
    row = {"prompt": "w1 w2", "response": "w3 w4"}
    assert learned(word_tokenizer(), row) == ("<bos> <user> w1 w2 <bot> w3 w4 <end>", "w3 w4 <end>")


def test_labels_are_the_next_token():
    """One position off, and a model learns to repeat its input: what is read at t is answered by token t+1."""
    tokenizer = word_tokenizer()
    batch = Layout()([encode([{"prompt": "w1 w2", "response": "w3 w4"}], tokenizer, 64)[0]])
    read = tokenizer.convert_ids_to_tokens(batch.inputs["input_ids"].flatten()[batch.at_n].tolist())
    assert list(zip(read, tokenizer.convert_ids_to_tokens(batch.labels_n.tolist()), strict=True)) == [
        ("<bot>", "w3"), ("w3", "w4"), ("w4", "<end>"),
    ]  # fmt: skip


def test_pad_equal_to_eos_keeps_the_end_label():
    tokenizer = word_tokenizer(pad_token="<end>")
    made = encode([{"prompt": "w1", "response": "w3"}, {"prompt": "w1 w2 w3 w4", "response": "w5 w6"}], tokenizer, 64)
    batch = Layout(tokenizer.pad_token_id)([made[0], made[1]])
    ends = batch.labels_n == tokenizer.eos_token_id
    assert batch.sequence_n[ends].tolist() == [0, 1] and batch.lengths_s.tolist() == [2, 3]


def test_padding_is_on_the_right_whatever_the_tokenizer_says():
    tokenizer = word_tokenizer(padding_side="left")
    made = encode([{"prompt": "w1", "response": "w3"}, {"prompt": "w1 w2 w3 w4", "response": "w5 w6"}], tokenizer, 64)
    inputs = Layout(tokenizer.pad_token_id)([made[0], made[1]]).inputs
    assert inputs["input_ids"][0, 0] == tokenizer.bos_token_id
    assert inputs["attention_mask"].tolist() == [[1] * 5 + [0] * 4, [1] * 9]
    assert (inputs["input_ids"][0, 5:] == tokenizer.pad_token_id).all()


@pytest.mark.parametrize("template", [TEMPLATE, TEMPLATE.replace("{{ bos_token }}", "")])
def test_as_many_bos_as_the_template_writes(template):
    """Some tokenizers add one of their own to any text; with the template's that would be two."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = word_tokenizer(template=template)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 2)])
    assert tokenizer("w1").input_ids[0] == tokenizer.bos_token_id
    whole, _ = learned(tokenizer, {"prompt": "w1", "response": "w2"})
    assert whole.count("<bos>") == template.count("bos_token")
    tokenizer.chat_template = None
    assert learned(tokenizer, {"prompt": "w1", "response": "w2"}) == ("<bos> w1 w2 <end>", "w2 <end>")


def test_every_turn_of_a_conversation_is_learned():
    turns = [("user", "w1"), ("assistant", "w2"), ("user", "w3"), ("assistant", "w4 w5")]
    row = {"messages": [{"role": r, "content": c} for r, c in turns]}
    whole, on = learned(word_tokenizer(), row)
    assert whole == "<bos> <user> w1 <bot> w2 <end> \n <user> w3 <bot> w4 w5 <end>"
    assert on == "w2 <end> w4 w5 <end>"
    assert learned(word_tokenizer(), {"messages": row["messages"][:3]})[1] == "w2 <end>"


def test_where_a_template_drops_earlier_reasoning_only_the_last_turn_is_learned():
    tokenizer = word_tokenizer([*WORDS, "w9</think>", "<think>"], THINKS)
    turns = [
        ("user", "w1"),
        ("assistant", "<think> w9</think> w2"),
        ("user", "w3 w3 w3 w3 w3"),
        ("assistant", "<think> w9</think> w4"),
    ]
    row = {"messages": [{"role": r, "content": c} for r, c in turns]}
    whole, on = learned(tokenizer, row)
    assert whole == "<user> w1 <bot> w2 <end> \n <user> w3 w3 w3 w3 w3 <bot> <think> w9</think> w4 <end>"
    assert on == "<think> w9</think> w4 <end>"


def test_where_the_generation_prompt_opens_the_reasoning_the_answer_goes_on_from_there():
    tokenizer = word_tokenizer([*WORDS, "<think>", "</think>"], OPENS)
    whole, on = learned(tokenizer, {"prompt": "w1", "response": "<think> w5 </think> w2"})
    assert (whole, on) == ("<user> w1 <bot> <think> \n w5 </think> w2 <end>", "w5 </think> w2 <end>")


def test_a_template_without_an_end_token_gets_one():
    tokenizer = word_tokenizer(template=TEMPLATE.replace(" <end>\n", " "))
    assert learned(tokenizer, {"prompt": "w1", "response": "w2"})[1] == "w2 <end>"


def test_other_end_tokens_of_the_model_end_a_turn():
    tokenizer = word_tokenizer([*WORDS, "<stop>"], TEMPLATE.replace("<end>", "<stop>"))
    row = {"prompt": "w1", "response": "w2"}
    assert learned(tokenizer, row, ends=[tokenizer.convert_tokens_to_ids("<stop>")])[1] == "w2 <stop>"


def test_a_token_across_the_border_of_the_answer_is_split_as_generation_would():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocab = {t: i for i, t in enumerate(["a", "b", "\n", "\n\n", "<end>"])}
    core = Tokenizer(models.BPE(vocab, [("\n", "\n")]))
    core.pre_tokenizer = pre_tokenizers.Split("<end>", "isolated")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<end>", clean_up_tokenization_spaces=False)
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['content'] }}{{ '<end>' if m['role'] == 'assistant' else '\n' }}{% endfor %}"
    )
    made = encode([{"prompt": "a", "response": "\nb"}], tokenizer, 64)
    assert tokenizer("a\n\nb").input_ids == [0, 3, 1]
    assert made[0].sequences[0].ids.tolist() == [0, 2, 2, 1, 4]
    assert made[0].sequences[0].learn.tolist() == [False, False, True, True, True]


def test_prompts_alone():
    tokenizer = word_tokenizer()
    rows = [
        {"prompt": "w1 w2"},
        {"messages": [{"role": "user", "content": "w1 w2"}, {"role": "assistant", "content": "w3"}]},
    ]
    made = encode(rows, tokenizer, 64, answers=False)
    for (one,) in (row.sequences for row in made):
        assert tokenizer.convert_ids_to_tokens(one.ids.tolist()) == ["<bos>", "<user>", "w1", "w2", "<bot>"]
        assert one.prompt == 5 and not one.learn.any()


def test_max_length_cuts_on_the_right_and_says_so():
    tokenizer = word_tokenizer()
    long = {"prompt": "w1 w2", "response": "w3 w4 w5 w6"}
    made = encode([long, {"prompt": "w1", "response": "w2"}], tokenizer, 7)
    assert tokenizer.convert_ids_to_tokens(made[0].sequences[0].ids.tolist())[-2:] == ["w3", "w4"]
    assert made[0].sequences[0].learn.tolist() == [False] * 5 + [True] * 2
    assert (len(made), made.cut, made.rejects) == (2, 1, [])


def test_what_cannot_be_learned_is_rejected_with_its_reason_and_counts_add_up():
    rows = [
        {"prompt": "w1 " * 9, "response": "w2"},
        {"prompt": "w1", "response": None},
        {"prompt": None, "response": "w1"},
        {"prompt": "w1", "response": ""},
        {"messages": [{"role": "user", "content": "w1"}]},
        {"prompt": "w1", "response": "w2"},
    ]
    made = encode(rows, word_tokenizer(), 10)
    assert len(made) + len(made.rejects) == len(rows)
    assert [(i, why.reason) for i, why in made.rejects] == [
        (0, "max_length cuts the whole answer off"),
        (1, "the response is no text, or empty"),
        (2, "the prompt is no text"),
        (3, "the response is no text, or empty"),
        (4, "no assistant turn"),
    ]
    alone = encode([{"prompt": "w1 " * 9}], word_tokenizer(), 10, answers=False)
    assert alone.rejects[0][1].reason == "the prompt alone fills max_length"


def test_what_the_template_refuses_is_rejected_with_its_words():
    template = "{% if messages[0]['content'] == 'w9' %}{{ raise_exception('no w9') }}{% endif %}" + TEMPLATE
    made = encode([{"prompt": p, "response": "w2"} for p in ("w9", "w1")], word_tokenizer(template=template), 64)
    assert [(i, why.reason) for i, why in made.rejects] == [(0, "the chat template refuses it: no w9")]


def test_a_conversation_cut_before_its_last_answer_has_no_prompt_to_answer_anew():
    turns = [("user", "w1"), ("assistant", "w2"), ("user", "w3 w3 w3 w3"), ("assistant", "w4")]
    made = encode([{"messages": [{"role": r, "content": c} for r, c in turns]}], word_tokenizer(), 10)
    assert made[0].sequences[0].prompt == 0 and made[0].sequences[0].learn.any()


def test_a_conversation_without_a_template_is_an_error():
    turns = [{"role": r, "content": "w1"} for r in ("user", "assistant", "user", "assistant")]
    with pytest.raises(LimbeckError, match="has no chat template"):
        encode([{"messages": turns}], word_tokenizer(template=None), 64)


def test_rows_are_kept_apart_over_many_chunks():
    rows = [{"prompt": "w1", "response": " ".join(["w2"] * (1 + i % 5))} for i in range(1100)]
    made = encode(rows, word_tokenizer(), 64)
    assert [int(row.sequences[0].learn.sum()) for row in made] == [2 + i % 5 for i in range(1100)]
    assert made[0].sequences[0].ids.dtype == torch.int32


def test_a_pair_and_a_list_are_sequences_of_one_row():
    tokenizer = word_tokenizer()
    pair = encode([{"prompt": "w1", "chosen": "w2", "rejected": "w3 w4"}], tokenizer, 64, form="pair")
    assert [said(tokenizer, one) for one in pair[0].sequences] == [
        ("<bos> <user> w1 <bot> w2 <end>", "w2 <end>"),
        ("<bos> <user> w1 <bot> w3 w4 <end>", "w3 w4 <end>"),
    ]
    rows = [{"prompt": "w1", "responses": ["w2", "w3", "w4"], "scores": [1, 3, 2.5]}]
    listed = encode(rows, tokenizer, 64, form="list", columns=["scores"])[0]
    assert [said(tokenizer, one)[1] for one in listed.sequences] == ["w2 <end>", "w3 <end>", "w4 <end>"]
    assert listed.columns == {"scores": [1.0, 3.0, 2.5]}


def test_a_pair_of_conversations_shares_what_stands_before():
    tokenizer = word_tokenizer()
    before = [{"role": "user", "content": "w1"}]
    answers = [[{"role": "assistant", "content": c}] for c in ("w2", "w3")]
    whole = {"chosen": before + answers[0], "rejected": before + answers[1]}
    rows = [{"messages": before, "chosen": answers[0], "rejected": "w3"}, {"prompt": "w1", **whole}]
    made = encode(rows, tokenizer, 64, form="pair")
    assert [[said(tokenizer, one)[1] for one in row.sequences] for row in made] == [["w2 <end>", "w3 <end>"]] * 2
    assert made[0].sequences[0].ids.tolist() == made[1].sequences[0].ids.tolist()


def test_a_row_that_loses_one_of_its_answers_is_rejected_whole():
    tokenizer = word_tokenizer()
    rows = [
        {"prompt": "w1", "responses": ["w2", ""], "scores": [1, 2]},
        {"prompt": "w1", "responses": [], "scores": []},
        {"prompt": "w1", "responses": ["w2", "w3"], "scores": [1]},
        {"prompt": "w1", "responses": ["w2", "w3"], "scores": [1, 2]},
    ]
    made = encode(rows, tokenizer, 64, form="list", columns=["scores"])
    assert [(i, why.reason) for i, why in made.rejects] == [
        (0, "the response is no text, or empty"),
        (1, "responses is empty, or no list"),
        (2, "scores is no number for each answer"),
    ]
    assert len(made) == 1 and [len(one.ids) for one in made[0].sequences] == [6, 6]


def test_the_teacher_reads_its_own_prompt():
    tokenizer = word_tokenizer()
    rows = [{"prompt": "w1", "hinted": "w9 w1", "response": "w2"}, {"prompt": "w1", "hinted": "w1", "response": "w3"}]
    made = encode(rows, tokenizer, 64, teacher_prompt="hinted")
    assert [tokenizer.decode(row.teacher_prompt.tolist()) for row in made] == [
        "<bos> <user> w9 w1 <bot>",
        "<bos> <user> w1 <bot>",
    ]
    assert said(tokenizer, made[0].sequences[0])[0] == "<bos> <user> w1 <bot> w2 <end>"
    assert encode([{"prompt": "w1", "response": "w2"}], tokenizer, 64, teacher_prompt="hinted").rejects


def test_a_row_whose_last_answer_is_cut_off_has_nothing_that_a_teacher_could_read_otherwise(student):
    talk = [{"role": role, "content": "w1 w2"} for role in ("user", "assistant") * 2]
    rows = [{"messages": talk, "context": "w3 w1 w2"}]
    whole = encode(rows, student.tokenizer, 64, teacher_prompt="context")
    assert len(whole) == 1 and whole[0].teacher_prompt is not None
    cut = encode(rows, student.tokenizer, 10, teacher_prompt="context")
    assert len(cut) == 0 and "the teacher reads" in cut.rejects[0][1].reason
    assert len(encode(rows, student.tokenizer, 10)) == 1
