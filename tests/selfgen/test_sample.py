"""Completions by key: the same in any batch, on disk one by one, taken up after a kill."""

import json

import pytest

from llmhalluc.data.problems import Problem
from llmhalluc.extras.errors import UserError
from llmhalluc.hparams.sections import GenArguments
from llmhalluc.models.loader import Loaded
from llmhalluc.models.weights import fingerprint
from llmhalluc.selfgen.sample import Rollouts, Sampler
from tests.data.toy import sudoku_tokenizer
from tests.eval.models import scripted
from tests.selfgen.noisy import problems, weights
from tests.tiny import tiny_model

OPTIONS = GenArguments(max_new_tokens=10, temperature=1.0, seed=3)
REQUESTS = {f"{one.key}/{i}": (one.prompt_ids, []) for one in problems(4) for i in range(3)}


@pytest.fixture(scope="module")
def loaded():
    tokenizer = sudoku_tokenizer()
    model = tiny_model("llama", vocab_size=len(tokenizer))
    model.load_state_dict(weights())
    return Loaded(model, tokenizer, len(tokenizer) - 1, "block")


def complete(loaded, path, requests=None, batch_size=64, options=OPTIONS):
    with Sampler(loaded, options, batch_size, path) as sampler:
        return sampler.complete(REQUESTS if requests is None else requests)


def test_a_completion_depends_on_its_key_and_not_on_its_batch(loaded, tmp_path):
    whole = complete(loaded, tmp_path / "a")
    assert list(whole) == list(REQUESTS)
    assert complete(loaded, tmp_path / "b", dict(reversed(REQUESTS.items())), batch_size=2) == whole
    one = list(REQUESTS)[5]
    assert complete(loaded, tmp_path / "c", {one: REQUESTS[one]}) == {one: whole[one]}
    same_prompt = [whole[key].ids for key in list(REQUESTS)[:3]]
    assert len(set(map(tuple, same_prompt))) > 1


def test_a_torn_line_is_decoded_again_and_the_others_are_not(loaded, tmp_path, monkeypatch):
    whole = complete(loaded, tmp_path / "a")
    text = (tmp_path / "a").read_bytes()
    assert [json.loads(line)["key"] for line in text.splitlines()] and text.endswith(b"\n")
    lines = text.splitlines(keepends=True)
    (tmp_path / "b").write_bytes(b"".join(lines[:7]) + lines[7][:-9] * 20)
    asked = []
    decode = __import__("llmhalluc.selfgen.sample", fromlist=["decode"]).decode
    monkeypatch.setattr(
        "llmhalluc.selfgen.sample.decode",
        lambda m, p, *rest, keys, **more: (asked.extend(keys), decode(m, p, *rest, keys=keys, **more)),
    )
    assert complete(loaded, tmp_path / "b") == whole
    assert len(asked) == len(REQUESTS) - 7
    assert sorted((tmp_path / "b").read_bytes().splitlines()) == sorted(text.splitlines())
    assert complete(loaded, tmp_path / "b") == whole and len(asked) == len(REQUESTS) - 7


def test_what_is_written_already_counts_for_the_limit(loaded, tmp_path):
    problem = problems(1)[0]
    options = GenArguments(max_new_tokens=10, temperature=1.0, backtrack=False)
    with Sampler(loaded, options, 8, tmp_path / "a") as sampler:
        sampler.eos_ids = []
        done = sampler.complete({"a": (problem.prompt_ids, [7, 8, 9]), "b": (problem.prompt_ids, [])})
    assert [len(one.ids) for one in done.values()] == [7, 10]
    assert not any(one.ended for one in done.values())


def test_the_end_and_what_a_stop_string_cuts_off_are_no_part_of_a_completion(tmp_path):
    ask = {"a": ([5], [])}
    greedy = GenArguments(max_new_tokens=40)
    ended = complete(found := scripted("The answer is 1<2."), tmp_path / "a", ask, options=greedy)["a"]
    assert ended.ended and found.tokenizer.decode(ended.ids) == "The answer is 2."
    stopping = GenArguments(max_new_tokens=40, stop=["Question"])
    stopped = complete(found := scripted("The 4\nQuestion: What"), tmp_path / "b", ask, options=stopping)["a"]
    assert stopped.ended and found.tokenizer.decode(stopped.ids) == "The 4\n"
    cut = complete(found := scripted("The answer is 12"), tmp_path / "c", ask, options=GenArguments(max_new_tokens=3))
    assert not cut["a"].ended and found.tokenizer.decode(cut["a"].ids) == "The "[:3] + " answer"


def test_rollouts_of_equal_prefixes_are_the_same_ones_and_are_verified(loaded, tmp_path):
    problem = problems(1)[0]
    with Sampler(loaded, OPTIONS, 8, tmp_path / "a") as sampler:
        rollouts = Rollouts(sampler, 3)
        first, again, other = rollouts([(problem, []), (problem, []), (problem, [7])])
        assert first == again and len(sampler.found) == 6
        assert rollouts([(problem, [7])]) == [other] and len(sampler.found) == 6
    for completion, right in first:
        assert right == (problem_solved := sampler_says(problem, completion.ids)) and problem_solved in (True, False)


def sampler_says(problem: Problem, ids: list[int]) -> bool:
    board = list(problem.record["puzzle"])
    for word in sudoku_tokenizer().decode(ids, skip_special_tokens=True).split():
        cell = (int(word[1]) - 1) * 4 + "abcd".index(word[0]) if "=" in word else None
        if cell is None or board[cell] != ".":
            return False
        board[cell] = word[3]
    return "".join(board) == problem.record["solution"]


def test_too_little_room_is_told(loaded, tmp_path):
    with pytest.raises(UserError, match="the model has 256 positions: lower it, or set data.max_length"):
        complete(loaded, tmp_path / "a", options=GenArguments(max_new_tokens=250, temperature=1.0))


def test_a_fingerprint_names_the_weights(loaded):
    same, other = tiny_model("llama", vocab_size=10, seed=1), tiny_model("llama", vocab_size=10, seed=2)
    assert fingerprint(same) == fingerprint(tiny_model("llama", vocab_size=10, seed=1)) != fingerprint(other)
