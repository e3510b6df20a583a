"""Templates are programs that come with a model: what they may see and how they are stopped."""

import datetime

import pytest
from jinja2.exceptions import SecurityError

from deltakv_jax.errors import UserError
from deltakv_jax.weights.tokenizers import chat
from deltakv_jax.weights.tokenizers.chat import ChatTemplate, chat_parts, conversation
from deltakv_jax.weights.tokenizers.render import render

LLAMA_3 = """{% set loop_messages = messages %}{% for message in loop_messages %}\
{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>

'+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}\
{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}\
{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>

' }}{% endif %}"""
SPECIAL = {"<bos>": 0, "<|start_header_id|>": 1, "<|end_header_id|>": 2, "<|eot_id|>": 3}


def template(text: str) -> ChatTemplate:
    return ChatTemplate("model.gguf", text, {"bos_token": "<bos>"})


def rendered(text: str, **variables) -> str:
    return render(text, variables, 1000)


def test_llama_3s_template():
    parts = chat_parts(
        template(LLAMA_3),
        conversation("Hi <|eot_id|>\n", "Be nice."),
        SPECIAL,
        parse_contents=False,
    )
    system = [0, 1, "system", 2, "\n\nBe nice.", 3]
    user = [1, "user", 2, "\n\nHi <|eot_id|>", 3]
    assert parts == [*system, *user, 1, "assistant", 2, "\n\n"]


def test_a_conversation_without_a_system_message():
    assert conversation("Hi", None) == [{"role": "user", "content": "Hi"}]
    assert len(conversation("Hi", "")) == 2


def test_lines_of_statements_leave_no_trace():
    assert rendered("a\n  {% if true %}\nb\n  {% endif %}\nc") == "a\nb\nc"


def test_what_transformers_gives_a_template():
    assert rendered("{{ x | tojson }}", x={"b": "é<'", "a": 1}) == """{"b": "é<'", "a": 1}"""
    assert rendered("{{ x | tojson(indent=1) }}", x=[1]) == "[\n 1\n]"
    assert rendered("{{ strftime_now('%Y') }}") == str(datetime.datetime.now().year)
    assert rendered(
        "{% for i in [1, 2, 3] %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}"
    )
    assert rendered("a{% generation %}b{{ x }}{% endgeneration %}c", x=1) == "ab1c"
    assert rendered("{{ nothing }}") == ""


def test_a_template_stays_in_its_sandbox():
    with pytest.raises(SecurityError):
        rendered("{{ ''.__class__.__mro__ }}")
    with pytest.raises(SecurityError):
        rendered("{{ messages.append(1) }}", messages=[])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{% for %}", "fails: "),
        ("{{ raise_exception('Only user\n messages!') }}", "fails: Only user messages!"),
        ("{{ messages[0].content.x.y }}", "fails: 'str object' has no attribute 'x'"),
        ("{{ 1 // 0 }}", "division"),
        ("{{ 'x' * 10**10 }}", "fails: it takes too much memory"),
        ("{{ '%099999999999d' % 1 }}", "fails: "),
        ("{% for i in range(99999) %}{{ 'x' * 999 }}{% endfor %}", "is longer than"),
        ("{% for i in range(10**9) %}{% endfor %}", "fails: Range too big"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "fails: maximum recursion depth"),
        ("{{ " + "(" * 10**5, "fails: "),
        ("x" * (1 << 19), "has 524288 characters"),
    ],
)
def test_a_template_that_fails_is_one_line(text: str, says: str):
    with pytest.raises(UserError) as caught:
        template(text).render(conversation("Hi", None))
    assert str(caught.value).startswith("model.gguf: its chat template ")
    assert says in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_a_template_that_does_not_end(monkeypatch):
    monkeypatch.setattr(chat, "SECONDS", 1)
    loop = "{% for i in range(99999) %}"
    endless = template(f"{loop * 3}{'{% endfor %}' * 3}")
    with pytest.raises(UserError, match="fails: it takes more than 1 seconds"):
        endless.render(conversation("Hi", None))


def test_a_text_of_any_length_and_letters_goes_through():
    text = "é\ud7ff\U0010ffff\0" * 10**5
    assert template("{{ messages[0].content }}").render(conversation(text, None)) == text
