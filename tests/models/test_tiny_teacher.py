"""The shipped checkpoint: it loads as any Hugging Face model, it is small, and it knows its world."""

import json

import pytest

from limbeck.models.tiny import QUICKSTART, TEACHER, answer_of, problems, student

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from limbeck.models.tiny import train  # noqa: E402  (needs torch)


@pytest.fixture(scope="module")
def teacher():
    torch.set_num_threads(1)
    return transformers.AutoModelForCausalLM.from_pretrained(TEACHER).eval()


@pytest.fixture(scope="module")
def reader():
    return transformers.AutoTokenizer.from_pretrained(TEACHER)


def chat(*turns):
    return [{"role": role, "content": text} for role, text in zip(("user", "assistant") * 4, turns, strict=False)]


def test_the_checkpoint_is_small_and_has_a_card():
    files = [path for path in TEACHER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 6 * 2**20
    names = {path.name for path in files}
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "MODEL_CARD.md"} <= names


def test_the_shipped_tokenizer_is_the_one_the_code_builds(reader):
    built = train.tokenizer.tokenizer()
    assert reader.get_vocab() == built.get_vocab()
    assert reader.chat_template == built.chat_template
    assert reader.eos_token == "<|end|>" and reader.pad_token == "<pad>" != reader.eos_token


def test_a_generation_prompt_is_a_strict_prefix_of_the_whole_chat(reader):
    for before in ([], chat("How are you?", "4 + 4 = 8."), [{"role": "system", "content": "Be brief.\nThink."}]):
        turns = [*before, *chat("What is this?", "Start with 2 + 2 = 4. #### 4")]
        for tokenize in (False, True):
            prompt = reader.apply_chat_template(turns[:-1], add_generation_prompt=True, tokenize=tokenize)
            whole = reader.apply_chat_template(turns, tokenize=tokenize)
            prompt, whole = (prompt["input_ids"], whole["input_ids"]) if tokenize else (prompt, whole)
            assert whole[: len(prompt)] == prompt and len(whole) > len(prompt)
        assert whole[-1] == reader.eos_token_id


def test_the_template_marks_what_the_assistant_says(reader):
    made = reader.apply_chat_template(
        chat("Why?", "So 4.", "Now?", "Then 5."), return_dict=True, return_assistant_tokens_mask=True
    )
    spoken = [i for i, mark in zip(made["input_ids"], made["assistant_masks"], strict=True) if mark]
    assert reader.decode(spoken, skip_special_tokens=True) == "So 4. Then 5."
    assert spoken.count(reader.eos_token_id) == 2


def test_the_teacher_solves_held_out_problems(teacher, reader):
    share = train.accuracy(teacher, reader, problems(104, seed=2, split="test"))
    assert share["all"] >= 0.95
    assert all(value >= 0.8 for value in share.values())  # 13 problems a kind


@pytest.mark.parametrize(
    "form",
    [
        "Solve the problem step by step.\n\nQuestion: {q}\nAnswer:",
        "{q}\nThink it through with care and put the final number after ####.",
        "You will get a question from a school book. Explain how you get to the result.\n\n{q}",
    ],
)
def test_a_prompt_around_the_question_does_not_hide_it(teacher, reader, form):
    rows = problems(48, seed=4, split="test")
    replies = train.solve(teacher, reader, [form.format(q=row["prompt"]) for row in rows])
    assert sum(answer_of(reply) == row["answer"] for reply, row in zip(replies, rows, strict=True)) >= 42


def test_sampling_finds_several_ways_and_some_errors(teacher, reader):
    rows = problems(16, seed=5, split="test")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        questions = [row["prompt"] for row in rows for _ in range(8)]
        replies = train.solve(teacher, reader, questions, do_sample=True, temperature=1.0)
    right = [answer_of(reply) == rows[i // 8]["answer"] for i, reply in enumerate(replies)]
    ways = [len(set(replies[at : at + 8])) for at in range(0, len(replies), 8)]
    assert 0.5 < sum(right) / len(right) < 1.0
    assert sum(ways) / len(ways) >= 3


def test_any_text_gets_a_reply(teacher, reader):
    odd = ["", "Δ \\frac{1}{2} 👩‍🚀", "def f(x):\n    return 1234567", "?" * 300]
    assert len(train.solve(teacher, reader, odd, max_new_tokens=8)) == 4


def test_a_student_is_its_seed_and_leaves_the_global_seed_alone(tmp_path):
    torch.manual_seed(11)
    expected = torch.rand(1)
    torch.manual_seed(11)
    one, again, other = (student(seed, tmp_path / name) for seed, name in ((3, "a"), (3, "b"), (4, "c")))
    assert torch.equal(torch.rand(1), expected)
    weights = [(path / "model.safetensors").read_bytes() for path in (one, again, other)]
    assert weights[0] == weights[1] != weights[2]
    model = transformers.AutoModelForCausalLM.from_pretrained(one)
    assert model.num_parameters() < 600_000
    assert model.config.vocab_size == len(transformers.AutoTokenizer.from_pretrained(one))


def test_an_untrained_student_knows_nothing(tmp_path):
    path = student(0, tmp_path / "s")
    model = transformers.AutoModelForCausalLM.from_pretrained(path).eval()
    share = train.accuracy(model, transformers.AutoTokenizer.from_pretrained(path), problems(40, seed=6, split="test"))
    assert share["all"] <= 0.05


def test_a_few_steps_of_training_lower_the_loss(reader):
    model = train.fresh(train.CONFIG | {"num_hidden_layers": 1}, reader, seed=0)
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for ids_bt, labels_bt in train.batches(6, 0, reader):
        loss = model(input_ids=ids_bt, labels=labels_bt).loss
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.5


def test_the_quickstart_settings_name_what_there_is():
    config = json.loads((TEACHER.parent / QUICKSTART["student"]).read_text())
    assert config["hidden_size"] % config["num_attention_heads"] == 0
    assert QUICKSTART["steps"] * QUICKSTART["batch"] >= QUICKSTART["problems"]
