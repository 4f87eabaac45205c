"""Stock `generate` with our loop: the engine's own tokens, and a saved folder that needs nothing of ours."""

import random
import subprocess
import sys

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from llmhalluc.backtrack import CONTEXTS, apply_backtracking
from llmhalluc.decoding.custom_generate.generate import backtrack_generate, generate
from llmhalluc.extras.constant import PACKAGE
from llmhalluc.hparams.sections import GenArguments
from llmhalluc.models.helper import ship_generate
from tests.decoding.bpe import byte_tokenizer
from tests.decoding.operating import decode
from tests.tiny import FAMILIES, tiny_model

BT, EOS, PAD = 63, 2, 0


def erasing_model(family, context, wish=4.0, **config):
    """A tiny model that likes BACKTRACK, as a trained one on disk says of itself."""
    model = tiny_model(family, **config)
    model.config.backtrack = {"token": "<|BACKTRACK|>", "token_id": BT, "context": context}

    def like(_module, _args, out):
        out.logits[..., BT] += wish

    model.register_forward_hook(like)
    return model


def left_padded(prompts):
    width = max(map(len, prompts))
    ids = torch.tensor([[PAD] * (width - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    return {"input_ids": ids, "attention_mask": mask}


def some_prompts(seed, n=5):
    rng = random.Random(seed)
    return [[rng.randrange(4, 60) for _ in range(rng.randrange(1, 12))] for _ in range(n)]


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_law3_greedy_it_emits_what_the_engine_emits(family, context):
    model, prompts, erasures = erasing_model(family, context), some_prompts(family), 0
    for limits in ({}, {"max_erasures": 2}, {"ban_erased": False}):
        options = GenArguments(max_new_tokens=40, **limits)
        expected = decode(model, prompts, options, eos_ids=[EOS], backtrack_id=BT, context=context)
        for output in ("trace", "surviving"):
            out = model.generate(
                **left_padded(prompts), custom_generate=backtrack_generate, max_new_tokens=40, do_sample=False,
                return_trace=output == "trace", **limits,
            )  # fmt: skip
            width = max(map(len, prompts))
            for row, trace in zip(out.tolist(), expected, strict=True):
                ids = trace.completion_ids if output == "trace" else trace.surviving_ids
                assert row[width : width + len(ids)] == ids
                assert set(row[width + len(ids) :]) <= {PAD}
        erasures += sum(trace.erasures for trace in expected)
    assert erasures > 20


@pytest.mark.parametrize("context", CONTEXTS)
def test_logits_processors_and_eos_read_the_surviving_text(context):
    model, prompts = erasing_model("llama", context), some_prompts(3)
    options = GenArguments(max_new_tokens=40, repetition_penalty=1.7)
    expected = decode(model, prompts, options, eos_ids=[EOS, 30, 40], backtrack_id=BT, context=context)
    out = model.generate(
        **left_padded(prompts), custom_generate=backtrack_generate, max_new_tokens=40, do_sample=False,
        repetition_penalty=1.7, eos_token_id=[EOS, 30, 40], return_trace=True, return_dict_in_generate=True,
    )  # fmt: skip
    for row, trace in zip(out.sequences[:, max(map(len, prompts)) :].tolist(), expected, strict=True):
        assert row[: len(trace.completion_ids)] == trace.completion_ids


def test_sampling_obeys_generation_config_and_the_ban():
    model = erasing_model("qwen3", "rewind", wish=3.0)
    torch.manual_seed(0)
    out = model.generate(
        torch.tensor([[5, 6]]), custom_generate=backtrack_generate, do_sample=True, top_k=6, temperature=1.5,
        max_new_tokens=60, num_return_sequences=4, return_trace=True, eos_token_id=None,
    )  # fmt: skip
    traces = [row[2:] for row in out.tolist()]
    assert len({tuple(trace) for trace in traces}) == 4
    for trace in traces:
        assert 0 < trace.count(BT) <= 30
        stack, bans = [], {}
        for token in trace:
            if token == BT:
                erased = stack.pop()
                bans = {n: ids for n, ids in bans.items() if n <= len(stack)}
                bans.setdefault(len(stack), set()).add(erased)
            else:
                assert token not in bans.get(len(stack), ())
                stack.append(token)
        text = torch.tensor([[5, 6, *stack[:-1]]])  # every survivor was among the six likeliest after its prefix
        # BACKTRACK and at most 30 banned ids may stand before it.
        ranks = model(text).logits[0, 1:].argsort(descending=True).argsort()
        assert all(ranks[i, token] < 6 + 1 + 30 for i, token in enumerate(stack))


def test_where_all_is_banned_the_text_still_ends():
    model = tiny_model("llama", vocab_size=6)
    model.config.backtrack = {"token": "b", "token_id": 5, "context": "block"}
    model.register_forward_hook(lambda _m, _a, out: out.logits[..., 5].add_(3.0) and None)
    out = model.generate(torch.tensor([[4]]), custom_generate=backtrack_generate, do_sample=True, max_new_tokens=50,
                         max_erasures=40, eos_token_id=None, return_trace=True)  # fmt: skip
    assert out.shape == (1, 51)


def test_stop_strings_end_at_the_surviving_text():
    tokenizer = byte_tokenizer()
    backtrack_id = tokenizer.convert_tokens_to_ids("<|BACKTRACK|>")
    model = tiny_model("llama", vocab_size=len(tokenizer))
    model.config.backtrack = {"token": "<|BACKTRACK|>", "token_id": backtrack_id, "context": "rewind"}
    a, b, c = tokenizer.convert_tokens_to_ids(["a", "b", "c"])
    script = iter([c, a, backtrack_id, a, c, backtrack_id, b, c, c])  # "cac" never stands, "cab" does

    def dictate(_module, _args, out):
        out.logits[:] = 0.0
        out.logits[..., next(script)] = 9.0

    model.register_forward_hook(dictate)
    out = generate(
        torch.tensor([[b]]), model=model, max_new_tokens=20, do_sample=False, stop_strings=["cab"],
        tokenizer=tokenizer, ban_erased=False,
    )  # fmt: skip
    assert out.tolist() == [[b, c, a, b]]


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"context": "blok"}, "context is 'blok'"),
        ({"num_beams": 3}, "num_beams is 3"),
    ],
)
def test_what_cannot_be_done_is_said(given, sentence):
    with pytest.raises(ValueError, match=sentence):
        erasing_model("llama", "soft").generate(
            torch.tensor([[4]]), custom_generate=backtrack_generate, max_new_tokens=4, **given
        )


def test_a_text_erased_to_nothing_is_the_prompt():
    model = erasing_model("llama", "rewind", wish=1000.0)
    out = generate(torch.tensor([[4, 5], [6, 7]]), model=model, max_new_tokens=2, do_sample=False)
    assert out.tolist() == [[4, 5], [6, 7]]


def test_prompts_padded_on_the_right_are_refused():
    ids, mask = torch.tensor([[4, 5], [6, 0]]), torch.tensor([[1, 1], [1, 0]])
    with pytest.raises(ValueError, match="padded on the right"):
        generate(ids, attention_mask=mask, model=erasing_model("llama", "soft"), max_new_tokens=4)


def test_a_streamer_a_model_without_backtrack_and_a_short_window_are_refused():
    model = tiny_model("llama")
    with pytest.raises(ValueError, match="streamer is set"):
        generate(torch.tensor([[4]]), model=model, streamer=print)
    with pytest.raises(ValueError, match="not trained with BACKTRACK"):
        generate(torch.tensor([[4]]), model=model, max_new_tokens=4)
    with pytest.raises(ValueError, match="without a tokenizer"):
        generate(torch.tensor([[4]]), model=model, stop_strings=["a"])
    config = AutoConfig.for_model(
        "qwen3", hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, head_dim=8,
        num_key_value_heads=2, vocab_size=64, use_sliding_window=True, sliding_window=8,
        layer_types=["sliding_attention", "full_attention"],
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config)
    model.config.backtrack = {"token": "b", "token_id": BT, "context": "rewind"}
    with pytest.raises(ValueError, match="window of 8"):
        generate(torch.tensor([[4]]), model=model, max_new_tokens=9)


STOCK = """
import sys
sys.modules["llmhalluc"] = None
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
folder = sys.argv[1]
tokenizer = AutoTokenizer.from_pretrained(folder)
inputs = tokenizer(["d1=1 b2=1 solve", "b2=1 d2=4 a3=3 solve"], return_tensors="pt", padding=True, padding_side="left")
inputs.pop("token_type_ids", None)
model = AutoModelForCausalLM.from_pretrained(folder)
bt = model.config.backtrack["token_id"]
settings = dict(max_new_tokens=24, do_sample=False, sequence_bias=[[[bt], 3.0]], return_trace=True)
one = model.generate(**inputs, custom_generate=folder, trust_remote_code=True, **settings)
other = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).generate(**inputs, **settings)
assert one.equal(other), (one, other)
print([row[inputs.input_ids.shape[1]:] for row in one.tolist()])
"""


@pytest.mark.parametrize("finetuning", ["full", "lora"])
def test_a_trained_folder_erases_where_llmhalluc_cannot_be_imported(tmp_path, finetuning):
    from llmhalluc.hparams.sections import ModelArguments
    from llmhalluc.models.loader import load
    from llmhalluc.train.finished import final_model
    from llmhalluc.train.sft import SFTExecutor
    from tests.train.tiny_run import config

    more = {"train__save_strategy": "steps", "train__save_steps": 4}
    SFTExecutor(config(tmp_path / "run", **more)).run()
    if finetuning == "lora":
        more = {"model__from_config": None, "model__tokenizer": None, "model__name_or_path": str(tmp_path / "run"),
                "model__finetuning": "lora"}  # fmt: skip
        SFTExecutor(config(tmp_path / "lora", **more)).run()
    else:
        shipped = tmp_path / "run/checkpoint-4/custom_generate"
        assert (shipped / "backtrack.py").read_text("utf-8") == (PACKAGE / "backtrack.py").read_text("utf-8")
        assert "llmhalluc" not in "".join(file.read_text("utf-8") for file in shipped.glob("*.py"))
    folder = final_model(tmp_path / ("lora" if finetuning == "lora" else "run"))
    ran = subprocess.run(
        [sys.executable, "-c", STOCK, str(folder)], capture_output=True, text=True, cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "HF_HOME": str(tmp_path / "hf"), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    rows = eval(ran.stdout)
    model, tokenizer, backtrack_id, context = load(ModelArguments(name_or_path=str(folder), device="cpu"), None)
    prompts = [tokenizer(text).input_ids for text in ("d1=1 b2=1 solve", "b2=1 d2=4 a3=3 solve")]
    options = GenArguments(max_new_tokens=24, backtrack_bias=3.0)
    traces = decode(
        model, prompts, options, eos_ids=[tokenizer.eos_token_id], backtrack_id=backtrack_id, context=context
    )
    assert any(trace.erasures for trace in traces)
    # A model of `load` has our context in its own forward: that changes nothing.
    settings = dict(max_new_tokens=24, do_sample=False, sequence_bias=[[[backtrack_id], 3.0]], return_trace=True)
    ours = model.generate(**left_padded(prompts), custom_generate=backtrack_generate, **settings)
    assert ours[:, max(map(len, prompts)) :].tolist() == rows
    for row, trace in zip(rows, traces, strict=True):
        assert row[: len(trace.completion_ids)] == trace.completion_ids
        assert apply_backtracking(trace.completion_ids, backtrack_id) == trace.surviving_ids


def test_the_shipped_files_import_nothing_of_ours(tmp_path):
    ship_generate(tmp_path)
    shipped = {file.name: file.read_text(encoding="utf-8") for file in (tmp_path / "custom_generate").iterdir()}
    assert shipped.keys() == {"generate.py", "backtrack.py"}
    assert not [name for name, text in shipped.items() if "llmhalluc" in text]
