"""ChatPipeline: stateless turns, the model's template or a plain one, one BOS."""

import pytest

from llmhalluc.chat.pipeline import ChatPipeline
from llmhalluc.decoding.generator import Generator
from llmhalluc.extras.errors import UserError
from tests.decoding.bpe import byte_tokenizer
from tests.tiny import tiny_model

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}[{{ mood | default('me') }}]{% endif %}"
)


def pipeline(template=TEMPLATE, **kwargs):
    tokenizer = byte_tokenizer.__wrapped__()
    tokenizer.chat_template = template
    return ChatPipeline(Generator(tiny_model("llama", vocab_size=len(tokenizer)), tokenizer), **kwargs)


def test_a_turn_answers_and_hands_back_a_new_history():
    chat = pipeline()
    answer, history = chat.run_turn("the cat?", [], seed=1, max_new_tokens=9)
    assert history == [{"role": "user", "content": "the cat?"}, {"role": "assistant", "content": answer}]
    before = [dict(message) for message in history]
    again, longer = chat.run_turn("and?", history, seed=1, max_new_tokens=9)
    assert history == before and longer[:2] == history and longer[-1]["content"] == again
    # Stateless: the same question with the same history is answered alike.
    assert chat.run_turn("the cat?", [], seed=1, max_new_tokens=9) == (answer, before)


def test_the_template_is_tokenised_with_one_bos():
    chat = pipeline(system="be brief")
    ids = chat.prompt("hi", [])
    assert ids.count(1) == 1 and ids[0] == 1
    assert chat.generator.tokenizer.decode(ids) == "<bos>[system]be brief[user]hi[me]"
    history = chat.extended([], "hi", "ho")
    assert chat.generator.tokenizer.decode(chat.prompt("so?", history)).count("[system]") == 1
    mood = pipeline(mood="you")
    assert mood.generator.tokenizer.decode(mood.prompt("hi")).endswith("[you]")


def test_without_a_template_a_plain_one_ends_at_the_next_question(monkeypatch):
    chat, asked = pipeline(None, system="be brief"), []
    trace = chat.generator.generate_traces("a", max_new_tokens=1)

    def stream_events(prompt, **given):
        asked.append((prompt, given))
        return iter([("end", trace)])

    monkeypatch.setattr(chat.generator, "stream_events", stream_events)
    _, history = chat.run_turn("hi")
    chat.run_turn("so?", history, stop_sequences="x")
    first = "System: be brief\nUser: hi\nAssistant:"
    second = f"{first} {trace.text.strip()}\nUser: so?\nAssistant:"
    assert asked == [
        (first, {"stop_sequences": ["\nUser:"]}),
        (second, {"stop_sequences": ["x", "\nUser:"]}),
    ]


def test_raw_is_the_question_alone():
    assert pipeline(raw=True).prompt("d1=1 solve", [{"role": "user", "content": "x"}]) == "d1=1 solve"


def test_an_empty_question_is_refused():
    with pytest.raises(UserError, match="the question is empty"):
        pipeline().run_turn("  ")
