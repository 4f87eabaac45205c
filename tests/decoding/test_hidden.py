"""Hidden states of named layers: of any model, of the rows that logits came from, without a forward of their own."""

import pytest
import torch

from llmhalluc.backtrack import CONTEXTS
from llmhalluc.decoding import llamacpp
from llmhalluc.decoding.backend import TorchBackend
from llmhalluc.decoding.engine import Engine
from llmhalluc.decoding.hidden import hidden_states
from llmhalluc.decoding.sequence import Erase, Spec
from llmhalluc.extras.errors import UserError
from llmhalluc.hparams.sections import GenArguments
from tests.decoding.fake_llama import FakeLlama, fake_library
from tests.decoding.operating import decode
from tests.tiny import FAMILIES, tiny_model

BT, EOS = 63, 2
LAYERS = {"llama": "model.layers.{}", "qwen3": "model.layers.{}", "gpt2": "transformer.h.{}"}


class Look:
    """Compares what an operator is shown with a fresh forward of the surviving text, and erases now and then."""

    def __init__(self, model, layers):
        self.model, self.layers, self.seen = model, layers, 0

    def __call__(self, step):
        assert list(step.hidden) == list(self.layers)
        for i, sequence in enumerate(step.sequences):
            text = torch.tensor([sequence.prompt_ids + sequence.surviving[:-1]])
            states = self.model(text, output_hidden_states=True, use_cache=False).hidden_states
            # The last entry of transformers' has the final norm applied; the first layer's output is entry 1.
            torch.testing.assert_close(step.hidden[self.layers[0]][i], states[1][0, -1], rtol=0, atol=1e-9)
            torch.testing.assert_close(sequence.hidden[self.layers[0]], states[1][0, -1], rtol=0, atol=1e-9)
            self.seen += 1
        return {i: Erase(1, -1.0) for i, s in enumerate(step.sequences) if s.surviving[-1] % 3 == 0}


@pytest.mark.parametrize("context", [None, *CONTEXTS])
@pytest.mark.parametrize("family", FAMILIES)
def test_an_operator_sees_what_a_fresh_forward_gives(family, context):
    model, layers = tiny_model(family), tuple(LAYERS[family].format(i) for i in (0, 1))
    look, forwards = Look(model, layers), []
    backend = TorchBackend(model)
    model.register_forward_hook(lambda *_: forwards.append(1))
    options = GenArguments(max_new_tokens=16, temperature=1.0, max_erasures=40, seed=2)
    backtrack_id = BT if context == "rewind" else None
    traces = decode(
        backend, [[5, 6], [7], [8, 9, 10, 11]], options, eos_ids=[EOS], backtrack_id=backtrack_id,
        context=context or "soft", operator=look, layers=layers,
    )  # fmt: skip
    assert look.seen > 20 and sum(trace.erasures for trace in traces) > 5
    assert backend.forward_tokens == 4 + sum(trace.forward_passes for trace in traces) - 2


def test_a_scorer_sees_the_same():
    model = tiny_model("llama")
    engine = Engine(TorchBackend(model), Spec(GenArguments(max_new_tokens=9), [], None, "soft", layers=("model.norm",)))
    sequences = [engine.add(prompt) for prompt in ([5, 6], [7])]
    engine.step()
    twin = engine.fork(sequences[1])

    def scorer(sequences, hidden):
        ids = model.lm_head(hidden["model.norm"]).argmax(-1).tolist()
        return zip([sequence.key for sequence in sequences], ids, strict=True)

    newest = {s.key: s.surviving[-1] for s in [*sequences, twin]}  # greedy: what the states of the row before say
    assert dict(engine.score(scorer)) == newest and len(newest) == 3
    engine.step()
    assert dict(engine.score(scorer, [twin])) == {twin.key: twin.surviving[-1]}


def test_hooks_go_and_wrong_names_are_said():
    model = tiny_model("llama")
    with hidden_states(model, ["model.layers.1.mlp"]) as hidden:
        model(torch.tensor([[4, 5, 6]]))
        assert hidden["model.layers.1.mlp"].shape[:2] == (1, 3)
    assert not model.model.layers[1].mlp._forward_hooks
    names = ["model.layers.0", "model.layer.1"]
    wrong = pytest.raises(UserError, match="layers holds 'model.layer.1'.*model.layers.0, model.layers.1")
    with wrong, hidden_states(model, names):
        pass
    assert not model.model.layers[0]._forward_hooks


def test_where_there_are_none_one_sentence_says_so(monkeypatch):
    model, how = tiny_model("qwen3"), dict(eos_ids=[EOS], backtrack_id=None, context="soft", layers=("model.norm",))
    monkeypatch.setattr(llamacpp, "_library", lambda: fake_library(EOS))
    backend = llamacpp.LlamaCppBackend(FakeLlama(model, "fake.gguf"))
    with pytest.raises(UserError, match="llama.cpp does not give"):
        decode(backend, [[4]], GenArguments(max_new_tokens=9), **how)
    with pytest.raises(UserError, match="gen.compile is true, but hidden states"):
        decode(model, [[4]], GenArguments(compile=True), **how)
