"""The journal of finished traces, and the fingerprint that ties it to a model's weights."""

import torch

from llmhalluc.decoding.sequence import Erasure, Trace
from llmhalluc.eval.journal import Journal
from llmhalluc.models.weights import fingerprint
from tests.tiny import tiny_model

FIRST = Trace([1, 2], [3, 9, 4], [4], 1, "eos", "four\n√", [-0.5, -1.0, -0.25], [Erasure(2, 1, "BACKTRACK")])
SECOND = Trace([1], [5], [5], 0, "length")


def test_a_trace_comes_back_as_it_was(tmp_path):
    with Journal(tmp_path / "j") as journal:
        assert journal.get("a", [1, 2]) is None
        journal.add("a", FIRST)
    with Journal(tmp_path / "j") as journal:
        assert journal.get("a", [1, 2]) == FIRST
        assert journal.get("b", [1, 2]) is None


def test_a_torn_last_line_is_cut_off(tmp_path):
    path = tmp_path / "j"
    with Journal(path) as journal:
        journal.add("a", FIRST)
        journal.add("b", SECOND)
    path.write_bytes(path.read_bytes()[:-9])
    with Journal(path) as journal:
        assert journal.get("a", [1, 2]) == FIRST
        assert journal.get("b", [1]) is None
        journal.add("b", SECOND)
    with Journal(path) as journal:
        assert (journal.get("a", [1, 2]), journal.get("b", [1])) == (FIRST, SECOND)


def test_a_line_is_on_disk_before_the_next_is_decoded(tmp_path):
    with Journal(tmp_path / "j") as journal:
        journal.add("a", FIRST)
        assert (tmp_path / "j").read_bytes().endswith(b"}\n")


def test_a_fingerprint_names_the_weights_and_nothing_else():
    model, same, other = (tiny_model("gpt2", dtype=dtype) for dtype in (torch.bfloat16, torch.bfloat16, torch.float32))
    assert fingerprint(model) == fingerprint(same) != fingerprint(other)
    with torch.no_grad():
        same.transformer.h[1].mlp.c_fc.bias[7] += 1.0
    assert fingerprint(model) != fingerprint(same)
