"""The plain converters: columns, templates, chat, prompts and answers as ids, refusals."""

from copy import deepcopy

import pytest

from llmhalluc.data.base import encode_prompts, tokenise
from llmhalluc.extras.errors import UserError
from llmhalluc.prompts import math, qa
from tests.data.toy import QA, SQUAD, SUDOKU, bpe_tokenizer, converter
from tests.tiny import tiny_tokenizer

TOKENIZER = bpe_tokenizer()
CHAT = "{% for m in messages %}<s>{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}{{ '\n:' }}{% endif %}"


def ids_of(text: str) -> list[int]:
    return TOKENIZER(text, add_special_tokens=False)["input_ids"]


def test_a_record_becomes_the_ids_of_its_columns():
    encoded = converter("sft").encode(QA[0])
    assert encoded == {
        "prompt_ids": ids_of(QA[0]["prompt"]),
        "completion_ids": [*ids_of(QA[0]["completion"]), TOKENIZER.eos_token_id],
    }


@pytest.mark.parametrize(
    ("template", "prompt"), [("math", math.prompt_text("Why?")), ("qa", qa.prompt_text("Why?", "It is so."))]
)
def test_a_template_goes_around_the_prompt(template, prompt):
    made = converter("sft", data={"template": template, "prompt_column": "q", "completion_column": "a"})
    assert made.texts({"q": "Why?", "a": "So. ", "context": "It is so."}) == (prompt, " So.")


def test_squad_takes_the_first_answer_or_says_that_there_is_none():
    made = converter("squad")
    assert made.texts(SQUAD[0]) == ("Context: It stood in Rome.\nQuestion: Where?\nAnswer:", " in Rome")
    assert made.texts(SQUAD[1])[1] == " unanswerable"


def test_a_chat_template_takes_the_place_of_the_delimiter():
    made = converter("gsm8k", data={"apply_chat_template": True})
    made.tokenizer = deepcopy(TOKENIZER)
    made.tokenizer.chat_template = CHAT
    encoded = made.encode({"question": "1+1?", "answer": "It is 2.\n#### 2"})
    assert TOKENIZER.decode(encoded["prompt_ids"]) == "<s>Question: 1+1?\nAnswer:\n:"
    assert TOKENIZER.decode(encoded["completion_ids"]) == "It is 2.\n#### 2</s>"


def test_a_prompt_begins_with_the_bos_of_the_tokenizer_and_ends_with_no_eos():
    from tokenizers.processors import TemplateProcessing

    tokenizer = tiny_tokenizer()
    special = [("<bos>", tokenizer.bos_token_id), ("<eos>", tokenizer.eos_token_id)]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<bos> $A <eos>", special_tokens=special)
    cat, sat = tokenizer.convert_tokens_to_ids(["cat", "sat"])
    assert encode_prompts(tokenizer, ["cat", "sat"]) == [[tokenizer.bos_token_id, cat], [tokenizer.bos_token_id, sat]]


def test_tokenise_gives_the_ids_of_the_tokenizer_whatever_an_earlier_call_left():
    texts = ["There are 24 ducks.", "é ü 漢字 12,000", ""]
    TOKENIZER(texts, truncation=True, max_length=2, padding="max_length")
    for offsets in (False, True):
        assert tokenise(TOKENIZER, texts, special_tokens=True, offsets=offsets)[0] == TOKENIZER(texts)["input_ids"]


@pytest.mark.parametrize(
    ("record", "sentence"),
    [
        ({"prompt": "a", "answer": "b"}, "'completion', and a record has none; its columns are prompt, answer"),
        ({"prompt": "a", "completion": None}, "'completion'"),
        ({"prompt": "", "completion": "b"}, "without a prompt"),
        ({"prompt": "a", "completion": "b<|BACKTRACK|>"}, "BACKTRACK"),
    ],
)
def test_a_record_that_cannot_train_is_refused_in_one_sentence(record, sentence):
    with pytest.raises(UserError) as error:
        converter("sft").encode(record)
    assert sentence in str(error.value)
    assert len(error.value.sentences) == 1


def test_a_tokenizer_that_does_not_suit_is_refused():
    with pytest.raises(UserError, match="chat template"):
        converter("sft", data={"apply_chat_template": True}).encode(QA[0])
    made = type(converter("sudoku"))
    rest = (converter("sudoku").data, converter("sudoku").backtrack)
    with pytest.raises(UserError, match="set model.tokenizer to sudoku4"):
        made(TOKENIZER, 5, *rest).encode(SUDOKU[0])
    endless = deepcopy(TOKENIZER)
    endless.eos_token = None
    with pytest.raises(UserError, match="no eos token"):
        made(endless, 5, *rest)


@pytest.mark.parametrize("name", ["backtrack", "gsm8k_backtrack", "sudoku_backtrack"])
def test_a_corrupting_converter_needs_a_backtrack(name):
    made = converter(name)
    with pytest.raises(UserError, match=r"set backtrack\.token"):
        type(made)(made.tokenizer, None, made.data, made.backtrack)


@pytest.mark.parametrize(
    "data", [{"split": "test"}, {"split": "validation[:10]"}, {"dataset": "my_test.jsonl"}, {"dataset": "val.csv"}]
)
@pytest.mark.parametrize("name", ["sft", "backtrack", "gsm8k_backtrack"])
def test_law8_a_converter_refuses_an_evaluation_split(name, data):
    with pytest.raises(UserError, match="evaluation split"):
        converter(name, data=data)


def test_trap12_gsm_symbolic_does_not_train():
    with pytest.raises(UserError, match="GSM8K's test templates"):
        converter("gsm8k_backtrack", data={"dataset": "apple/GSM-Symbolic"})
