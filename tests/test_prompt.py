"""Prompts: slots and braces, the head, the search path, and errors that name what is wrong."""

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limbeck import prompt
from limbeck.errors import LimbeckError
from limbeck.prompt import Prompt, escape, get, inline, load, read, slots

HEAD = "---\ninputs: [prompt]\n---\n"


def filled(template: str, **row) -> str:
    return inline(template).render(row)


@pytest.mark.parametrize(
    "text",
    [
        r"\frac{1}{2} and \boxed{3 + x} and x^{2}",
        '{"a": {"b": 1}, "c": [{"d": {}}]}',
        "{} {{}} { } {{ }} {a b} {1} {a.b} {a!r} {a:>3}",
        "set {1, 2} and f'{x + 1}'",
    ],
)
def test_braces_that_are_no_slot_pass_untouched(text):
    assert slots(text) == ()
    assert filled(text + " {q}", q="?") == text + " ?"


def test_two_braces_around_a_name_stand_for_one():
    assert filled("{{name}}") == "{name}"
    assert filled("{{{name}}}", name="x") == "{x}"
    assert filled(r"\boxed{{{name}}}", name="x") == r"\boxed{x}"
    assert filled("{{{{name}}}}") == "{{name}}"
    assert filled('{"a": {"b": {n}}}', n=1) == '{"a": {"b": 1}}'
    assert filled("{{name}") == "{name}"


@given(st.text(alphabet=st.sampled_from('{}ab_1 \n\\"é'), max_size=60))
def test_escape_makes_a_template_of_any_text(text):
    assert filled(escape(text) + ".") == text + "."
    assert slots(escape(text)) == ()


@given(st.text(max_size=40), st.text(max_size=40))
def test_what_a_row_holds_is_never_scanned_again(a, b):
    row = {"a": "{b}" + a + "{{b}}", "b": "{a}" + b}
    assert filled("[{a}|{b}]", **row) == f"[{row['a']}|{row['b']}]"


@given(st.text(alphabet=st.sampled_from("{}ab "), min_size=1, max_size=30))
def test_a_template_takes_exactly_the_slots_that_it_fills(text):
    template = text + "."
    row = {name: "v" for name in slots(template)}
    inline(template).render(row)
    for missing in row:
        with pytest.raises(LimbeckError):
            inline(template).render({k: v for k, v in row.items() if k != missing})


def test_values_that_are_no_text_go_in_as_json():
    assert filled("{a} {b} {c} {d}", a=1, b=True, c=[1, "é"], d=2.5) == '1 true [1, "é"] 2.5'


def test_an_unknown_slot_names_the_prompt_the_slot_and_the_nearest_column():
    with pytest.raises(
        LimbeckError, match=r"wants \{promt\} \(did you mean 'prompt'\?\); the rows have prompt, answer"
    ):
        inline("Say {promt} now").render({"prompt": "x", "answer": "y", "_row": "1"})
    with pytest.raises(LimbeckError, match="prompt answer wants {prompt}"):
        load("answer").check(["question"])
    with pytest.raises(LimbeckError, match="wants {a}; the rows have b"):
        filled("{a} {b}", a=None, b="x")


def test_a_system_text_makes_two_messages():
    p = read("p", "---\ninputs: [who, prompt]\nsystem: You are {who}.\n---\nSay {prompt}.\n")
    assert p.render({"who": "Ada", "prompt": "hi"}) == [
        {"role": "system", "content": "You are Ada."},
        {"role": "user", "content": "Say hi."},
    ]


def test_a_name_has_neither_space_nor_brace():
    assert get("answer").name == "answer"
    assert get("{prompt}").text == "{prompt}"
    assert get("Go on.").render({}) == "Go on."
    p = inline("x")
    assert get(p) is p
    with pytest.raises(LimbeckError, match="did you mean 'answer'"):
        get("anser")
    with pytest.raises(LimbeckError, match="empty prompt"):
        get("")


def test_a_users_folder_comes_before_the_built_in_prompts(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "hard.md").write_text(HEAD + "Harder: {prompt}")
    (tmp_path / "answer.md").write_text(HEAD + "Mine: {prompt}")
    assert load("answer").text != "Mine: {prompt}"
    assert load(str(tmp_path / "answer.md")).text == "Mine: {prompt}"
    assert load("mine/hard", [tmp_path]).render({"prompt": "x"}) == "Harder: x"
    assert get("answer", [tmp_path]).text == "Mine: {prompt}"
    with pytest.raises(LimbeckError, match="did you mean 'mine/hard'"):
        load("mine/hrad", [tmp_path])
    with pytest.raises(LimbeckError, match="no prompt file"):
        load(str(tmp_path / "none.md"))


def test_the_head_says_what_goes_in_and_out():
    p = read("p", '---\npaper: "2304.12244"\ninputs: [a]\noutput: [x, y]\nparser: tags\n---\n{a}')
    assert (p.paper, p.inputs, p.output) == ("2304.12244", ("a",), ("x", "y"))
    assert p.parser("<x>1</x><y>2</y>") == {"x": "1", "y": "2"}
    one = read("p", "---\ninputs: []\noutput: x\nparser: {tags: {names: task}}\n---\nGo.")
    assert one.parser("<task>1</task>") == "1"
    scored = read("p", "---\ninputs: []\noutput: score\nparser: {number: {low: 1, high: 5}}\n---\nGo.")
    assert scored.parser("Score: 4") == 4.0


@pytest.mark.parametrize(
    ("file", "says"),
    [
        ("no head", "has no head"),
        ("---\ninput: [a]\n---\n{a}", "has the key 'input' \\(did you mean 'inputs'\\?\\)"),
        ("---\ninputs: [a]\n---\n{b}", "declares the inputs a and uses the slots b"),
        ("---\ninputs: [a, b]\n---\n{a}", "declares the inputs a, b and uses the slots a"),
        ("---\ninputs: []\nparser: numbr\n---\nx", "no parser is called 'numbr' \\(did you mean 'number'\\?\\)"),
        ("---\ninputs: []\nparser: {number: {lo: 1}}\n---\nx", "got 'lo' \\(did you mean 'low'\\?\\)"),
        ("---\ninputs: []\nparser: choice\n---\nx", "parser 'choice' needs 'options'"),
        ("---\ninputs: [a\n---\nx", "not YAML"),
        ("---\n- a\n---\nx", "head without keys"),
        ("---\ninputs: []\n---\n  \n", "says nothing"),
    ],
)
def test_a_faulty_file_is_an_error_of_one_line(file, says):
    with pytest.raises(LimbeckError, match=says) as error:
        read("p", file)
    assert "\n" not in str(error.value)


def test_the_digest_follows_what_is_said_and_read_and_nothing_else():
    file = "---\ninputs: [a]\noutput: score\nparser: number\n---\nRate {a}."
    first = read("p", file)
    assert first.digest == read("another name", file.replace("---\nRate", "---\n\nRate")).digest
    changed = [file.replace("Rate", "Grade"), file.replace("number", "{number: {high: 5}}")]
    changed += [file.replace("output: score", "output: grade"), file.replace("---\nRate", "system: Hm.\n---\nRate")]
    assert len({first.digest, *(read("p", f).digest for f in changed)}) == 5


def first_word(text):
    return text.split()[0]


def last_word(text):
    return text.split()[-1]


def test_the_digest_follows_a_parser_of_ones_own():
    assert Prompt("p", "x", (), parser=first_word).digest != Prompt("p", "x", (), parser=last_word).digest


def test_windows_line_ends_are_read():
    assert read("p", (HEAD + "a\n{prompt}").replace("\n", "\r\n")).text == "a\n{prompt}"


def test_a_prompt_is_plain_data():
    p = load("answer")
    assert isinstance(p, Prompt) and re.fullmatch("[0-9a-f]{32}", p.digest)
    assert json.dumps(prompt.names())
