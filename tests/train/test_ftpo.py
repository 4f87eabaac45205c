"""FTPO against a loss written by hand: the switch-off at the margin, the tether, the reference, resume, refusals."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional
from transformers import AutoModelForCausalLM

from llmhalluc.backtrack import CONTEXTS, IGNORE, layout
from llmhalluc.data.collator import DrawSampler
from llmhalluc.data.rejections import rejections_of
from llmhalluc.decoding.engine import decode
from llmhalluc.decoding.sequence import Spec
from llmhalluc.extras.errors import UserError
from llmhalluc.hparams.sections import GenArguments, ModelArguments
from llmhalluc.models.loader import load
from llmhalluc.train.finished import final_model
from llmhalluc.train.ftpo import METRICS, FTPOExecutor, ftpo_terms
from llmhalluc.train.sft import SFTExecutor
from tests.train.tiny_run import config

ERASE = 69  # BACKTRACK of the tokenizer sudoku4
GPT2 = dict(model_type="gpt2", n_embd=16, n_layer=2, n_head=2, n_positions=128, resid_pdrop=0.1, initializer_range=0.2)
RECORDS = [
    {"prompt_ids": [4, 5, 10 + i, *([20 + i, 30, ERASE] if i % 2 else []), *range(40, 40 + i % 3)], "rejected": 12 + i,
     "chosen": [30 + i, 50][: 1 + i % 2], "source": "BACKTRACK"}
    for i in range(16)
]  # fmt: skip


def written(folder: Path, records=RECORDS, name: str = "records") -> str:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(folder / f"{name}.jsonl")


def ftpo_config(folder: Path, records=RECORDS, **dotted):
    given = dict(
        train__stage="ftpo", data__converter="rejections", data__task={}, data__dataset=written(folder / "in", records)
    )
    return config(folder / "out", **given | dotted)


def prepared(folder: Path, **dotted) -> FTPOExecutor:
    """An executor with everything but the training done."""
    executor = FTPOExecutor(ftpo_config(folder, **dotted))
    executor.load_model()
    executor.load_data()
    executor.make_trainer()
    return executor


def plain_copy(model):
    """Stock weights without a hook or a context."""
    copied = AutoModelForCausalLM.from_config(model.config, dtype=torch.float64).eval()
    copied.load_state_dict(model.state_dict())
    return copied


def last_logits(model, prompt_ids: list[int], context: str) -> torch.Tensor:
    """The layout of a prefix, its mask spelled out: the logits at its last row."""
    rows, n = layout([], prompt_ids, ERASE, context), len(prompt_ids)
    mask = torch.tensor([[[[j <= i < rows.visible_until[j] for j in range(n)] for i in range(n)]]])
    return model(
        input_ids=torch.tensor([rows.input_ids]), position_ids=torch.tensor([rows.position_ids]), attention_mask=mask
    ).logits[0, -1]


def slow_terms(
    logits: list[float], reference: list[float], rejected: int, chosen: list[int], margin=2.0, tau=1.0, eps=1.0
) -> dict[str, float]:
    """The terms of one place, number by number."""
    gaps = [logits[c] - logits[rejected] for c in chosen]
    pulls = [min(max((margin - gap) / margin, 0), 1) * math.log1p(math.exp((margin - gap) / tau)) for gap in gaps]
    drift = [abs(a - b) for a, b in zip(logits, reference, strict=True)]
    targets = {rejected, *chosen}
    rest = [d**2 for i, d in enumerate(drift) if i not in targets]
    return {
        "preference_loss": sum(pulls) / len(chosen),
        "target_tether": sum(max(drift[i] - eps, 0) ** 2 for i in targets) / len(targets),
        "nontarget_tether": sum(rest) / len(rest),
        "chosen_wins": sum(gap > 0 for gap in gaps) / len(chosen),
        "gap": sum(gaps) / len(chosen),
    }


def slow_loss(terms: dict[str, float]) -> float:
    return terms["preference_loss"] + 0.05 * terms["target_tether"] + 0.4 * terms["nontarget_tether"]


@settings(max_examples=50, deadline=None)
@given(
    places=st.lists(st.lists(st.integers(0, 7), min_size=2, max_size=4, unique=True), min_size=1, max_size=5),
    margin=st.floats(0.5, 4), tau=st.floats(0.3, 3), eps=st.floats(0, 2), seed=st.integers(0, 99),
)  # fmt: skip
def test_terms_equal_a_slow_reference(places, margin, tau, eps, seed):
    generator = torch.Generator().manual_seed(seed)
    logits, reference = 3 * torch.randn(2, len(places), 8, dtype=torch.float64, generator=generator)
    width = max(map(len, places)) - 1
    chosen = torch.tensor([row[1:] + [IGNORE] * (width - len(row) + 1) for row in places])
    found = ftpo_terms(logits, reference, torch.tensor([row[0] for row in places]), chosen, margin, tau, eps)
    for i, (rejected, *kept) in enumerate(places):
        slow = slow_terms(logits[i].tolist(), reference[i].tolist(), rejected, kept, margin, tau, eps)
        assert {name: term[i].item() for name, term in found.items()} == pytest.approx(slow, rel=1e-9)
    assert found.keys() == set(METRICS)


@pytest.mark.parametrize(("gap", "pulls"), [(-3.0, True), (1.99, True), (2.0001, False), (9.0, False)])
def test_past_the_margin_nothing_pulls(gap, pulls):
    logits = torch.zeros(1, 6, dtype=torch.float64)
    logits[0, 2], logits[0, 3] = gap, gap - 5
    logits.requires_grad_()
    terms = ftpo_terms(logits, logits.detach(), torch.tensor([1]), torch.tensor([[2, IGNORE]]), 2.0, 1.0, 1.0)
    terms["preference_loss"].sum().backward()
    assert (logits.grad[0, 2] < 0) == pulls and (logits.grad[0, 1] > 0) == pulls
    assert logits.grad[0, [0, 3, 4, 5]].tolist() == [0, 0, 0, 0]
    assert (logits.grad != 0).any() == pulls


def test_the_tether_lets_targets_move_freely_for_eps_and_nothing_else():
    reference = torch.zeros(1, 5, dtype=torch.float64)
    for moved, target, rest in ((1, 0.0, 0.0), (0, 0.0, 0.81 / 3)):
        logits = reference.clone()
        logits[0, moved] = 0.9
        terms = ftpo_terms(logits, reference, torch.tensor([1]), torch.tensor([[2]]), 2.0, 1.0, 1.0)
        assert terms["target_tether"].item() == pytest.approx(target)
        assert terms["nontarget_tether"].item() == pytest.approx(rest)
    logits = reference.clone()
    logits[0, 2] = -3.0
    terms = ftpo_terms(logits, reference, torch.tensor([1]), torch.tensor([[2]]), 2.0, 1.0, 1.0)
    assert terms["target_tether"].item() == pytest.approx((3 - 1) ** 2 / 2)


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_law3_the_loss_is_that_of_the_layout_of_each_prefix(tmp_path, family, context):
    model = {"model__from_config": GPT2} if family == "gpt2" else {}
    executor = prepared(tmp_path, **model, backtrack__context=context, train__per_device_train_batch_size=8)
    reference = plain_copy(executor.model)
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in executor.model.parameters():
            weight += 0.1 * torch.randn_like(weight)
    policy = plain_copy(executor.model)
    executor.model.train()
    batch = next(iter(executor.trainer.get_train_dataloader()))
    found = executor.trainer.compute_loss(executor.trainer.model, dict(batch))
    total = 0.0
    for draw in list(DrawSampler(len(RECORDS), executor.data_seed, 16))[:8]:
        record = RECORDS[draw.index]
        both = [last_logits(model, record["prompt_ids"], context).tolist() for model in (policy, reference)]
        total += slow_loss(slow_terms(*both, record["rejected"], record["chosen"])) / 8
    assert found.item() == pytest.approx(total, rel=1e-9)


@pytest.mark.parametrize("context", CONTEXTS)
def test_law3_a_record_of_a_decoded_trace_gives_the_logits_that_decoding_had(tmp_path, context):
    """The model's own BACKTRACKs and an operator in turn; the place's logits are those its engine saw."""
    executor = prepared(tmp_path, backtrack__context=context)
    model, seen = executor.model.eval(), {}

    def sampler(logits_BV, sequences, spec):
        for row, sequence in zip(logits_BV, sequences, strict=True):
            seen[sequence.index, len(sequence.completion_ids)] = row
        return [choice(sequence) for sequence in sequences]

    def choice(sequence):
        emitted = len(sequence.completion_ids)
        if sequence.surviving and emitted % 5 in (2, 3):
            return ERASE
        return 10 + (7 * emitted + sequence.index) % 40

    def operator(step):
        from llmhalluc.decoding.sequence import Erase

        due = (i for i, one in enumerate(step.sequences) if len(one.completion_ids) % 7 == 6 and len(one.surviving) > 1)
        return {i: Erase(2, source="rule") for i in due}

    options = GenArguments(max_new_tokens=24, temperature=1.0, ban_erased=False, max_erasures=100)
    spec = Spec(options, [2], ERASE, context, executor.tokenizer, operator, sampler)
    traces = decode(model, [[4, 5, 6], [7, 8]], spec, batch_size=2)
    checked = set()
    for number, trace in enumerate(traces):
        for record in rejections_of(trace, ERASE, context):
            logits = last_logits(plain_copy(model), record["prompt_ids"], context)
            at = [i for (n, i), row in seen.items() if n == number and torch.allclose(row, logits, atol=1e-9)]
            assert any(trace.completion_ids[i] == record["rejected"] for i in at)
            checked.add(record["source"])
    assert checked == {"BACKTRACK", "rule"}


def probability(model, record: dict) -> float:
    """Of the rejected token at its place."""
    return last_logits(plain_copy(model), record["prompt_ids"], "block").softmax(-1)[record["rejected"]].item()


def test_training_lowers_the_rejected_tokens_and_moves_little_else(tmp_path):
    executor = prepared(
        tmp_path, train__max_steps=60, train__logging_steps=10, train__learning_rate=0.003,
        train__per_device_train_batch_size=16,
    )  # fmt: skip
    start = plain_copy(executor.model)
    before = [probability(executor.model, record) for record in RECORDS]
    executor.fit()
    record = executor.save()
    after = [probability(executor.model, one) for one in RECORDS]
    assert sum(after) < 0.5 * sum(before)
    first, last = record["loss"][0], record["loss"][-1]
    assert last["loss"] < 0.5 * first["loss"]
    assert first["chosen_wins"] < last["chosen_wins"] > 0.9 and last["gap"] > 1
    assert set(METRICS) | {"step", "tokens"} < set(last)
    drift = [last_logits(executor.model, r["prompt_ids"], "block") - last_logits(start, r["prompt_ids"], "block")
             for r in RECORDS]  # fmt: skip
    assert torch.stack(drift).abs().mean() < 0.5
    assert record == json.loads((tmp_path / "out/train.json").read_text())
    assert (tmp_path / "out/loss.png").read_bytes().startswith(b"\x89PNG")


def test_trap24_the_loss_does_not_depend_on_how_a_batch_is_split(tmp_path):
    found = []
    for size, steps in ((6, 1), (3, 2), (1, 6)):  # 16 places: the last step of an epoch holds four
        executor = prepared(
            tmp_path / str(size), train__max_steps=4, train__per_device_train_batch_size=size,
            train__gradient_accumulation_steps=steps,
        )  # fmt: skip
        executor.fit()
        record = executor.record()
        found.append([entry[name] for entry in record["loss"] for name in ("loss", *METRICS)])
    assert found[1] == pytest.approx(found[0], abs=2e-6) and found[2] == pytest.approx(found[0], abs=2e-6)


@pytest.mark.parametrize("kind", ["full", "lora", "lora_continued"])
def test_law7_the_reference_is_the_model_at_the_start_and_stays_it(tmp_path, kind):
    SFTExecutor(config(tmp_path / "base", train__max_steps=4)).run()
    given = dict(model__from_config=None, model__tokenizer=None)
    lora, folder = dict(model__finetuning="lora", model__lora_r=2), tmp_path / "base"
    if kind == "lora_continued":
        first = dict(model__name_or_path=str(folder), train__max_steps=8, train__merge=False)
        SFTExecutor(config(tmp_path / "adapter", **given, **lora, **first)).run()
        folder = tmp_path / "adapter"
    options = given | (lora if kind != "full" else {}) | {"model__name_or_path": str(folder)}
    executor = prepared(tmp_path / "ftpo", **options, train__max_steps=10)
    trainable = sum(p.numel() for p in executor.model.parameters() if p.requires_grad)
    start = load(ModelArguments(name_or_path=str(folder), device="cpu", dtype="float64"), executor.config.backtrack)
    executor.fit()
    trainer = executor.trainer
    batch = trainer.data_collator([executor.dataset[i] for i in range(8)])
    rest = {name: batch[name] for name in ("input_ids", "position_ids", "visible_until")}
    with torch.no_grad(), trainer.at_the_start(trainer.model) as reference:
        there = trainer.logits(reference, rest, batch["last"])
    with torch.no_grad():
        now = trainer.logits(trainer.model, rest, batch["last"])
    slow = torch.stack([last_logits(plain_copy(start.model), r["prompt_ids"], "block") for r in RECORDS[:8]])
    torch.testing.assert_close(there, slow, rtol=1e-9, atol=1e-9)
    assert (now - there).abs().max() > 0.01
    record = executor.save()
    assert record["loss"][0]["nontarget_tether"] == pytest.approx(0, abs=1e-18)
    assert record["trainable_parameters"] == trainable
    saved = ModelArguments(name_or_path=str(final_model(tmp_path / "ftpo/out")), device="cpu", dtype="float64")
    trained = plain_copy(load(saved, None).model)
    again = torch.stack([last_logits(trained, r["prompt_ids"], "block") for r in RECORDS[:8]])
    torch.testing.assert_close(again, now, rtol=1e-9, atol=1e-9)
    assert not [path for path in tmp_path.rglob("ref*") if path.is_dir()]


def result(folder: Path) -> tuple:
    record = json.loads((folder / "train.json").read_text())
    assert record.pop("seconds") > 0
    return record, next(folder.glob("*model.safetensors")).read_bytes()


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_resumed_from_a_checkpoint_it_ends_like_an_unbroken_run(tmp_path, kind):
    options = dict(
        train__max_steps=11, train__save_strategy="steps", train__save_steps=5, train__logging_steps=4,
        train__gradient_accumulation_steps=2, data__dataset=written(tmp_path / "in"),
    )  # fmt: skip
    if kind == "lora":
        SFTExecutor(config(tmp_path / "base", train__max_steps=1)).run()
        options |= dict(
            model__from_config=None, model__tokenizer=None, model__name_or_path=str(tmp_path / "base"),
            model__finetuning="lora",
        )  # fmt: skip
    FTPOExecutor(ftpo_config(tmp_path / "a", **options)).run()
    for step in (5, 10):
        folder = tmp_path / f"b{step}/out"
        folder.mkdir(parents=True)
        shutil.copy(tmp_path / "a/out/run.json", folder)
        shutil.copytree(tmp_path / f"a/out/checkpoint-{step}", folder / f"checkpoint-{step}")
        FTPOExecutor(ftpo_config(folder.parent, **options, train__resume=True)).run()
        assert result(folder) == result(tmp_path / "a/out")


def test_tokens_and_places_are_counted_and_held_out_places_are_evaluated(tmp_path):
    held_out = [record | {"prompt_ids": [9, *record["prompt_ids"]]} for record in RECORDS[:5]]
    executor = prepared(
        tmp_path, data__eval_dataset=written(tmp_path / "held", held_out), train__eval_strategy="steps",
        train__eval_steps=2, train__per_device_eval_batch_size=2, train__learning_rate=0.0,
    )  # fmt: skip
    executor.fit()
    record = executor.record()
    tokens = sum(len(one["prompt_ids"]) for one in RECORDS)
    assert (record["tokens"], record["examples"], record["steps"]) == (tokens, 16, 4)
    assert [entry["step"] for entry in record["eval_loss"]] == [2, 4]
    model = plain_copy(executor.model)
    logits = [last_logits(model, one["prompt_ids"], "block").tolist() for one in held_out]
    terms = [slow_terms(row, row, r["rejected"], r["chosen"]) for row, r in zip(logits, held_out, strict=True)]
    assert record["eval_loss"][0]["loss"] == pytest.approx(sum(map(slow_loss, terms)) / 5, rel=1e-9)
    assert record["eval_loss"][0]["gap"] == pytest.approx(sum(t["gap"] for t in terms) / 5, rel=1e-9)


def test_max_tokens_sets_the_steps(tmp_path):
    executor = prepared(tmp_path, train__max_steps=None, train__max_tokens=300)
    executor.fit()
    assert executor.record()["tokens"] == pytest.approx(300, rel=0.1)


BASE = RECORDS[0]


@pytest.mark.parametrize(
    ("records", "dotted", "sentence"),
    [
        ([BASE], {"data__converter": "sft"}, "data.converter is sft, which makes no single places for ftpo: name reje"),
        ([BASE], {"model__lora_dropout": 0.1}, "model.lora_dropout is 0.1, but ftpo measures logits"),
        ([BASE], {"train__label_smoothing_factor": 0.1}, "train.label_smoothing_factor has no effect here"),
        ([BASE], {"train__fsdp": "full_shard"}, "train.fsdp shards the model"),
        ([BASE], {"train__margin": 1.0, "train__stage": "sft"}, "train.margin is a key of train.stage ftpo alone"),
        ([BASE], {"train__eval_strategy": "epoch"}, "train.eval_strategy is epoch"),
        ([BASE], {"data__max_length": 2}, "holds no rejection (data.max_length is 2)"),
        ([BASE], {"train__stage": "sft"}, "data.converter is rejections, which makes single places: set train.stage"),
        ([BASE | {"chosen": [12]}], {}, "whose rejected token 12 is also among the chosen [12]"),
        ([BASE | {"rejected": 400}], {}, "has a record with the id 400, and the tokenizer has 70 tokens"),
        ([BASE | {"prompt_ids": [4, -1]}], {}, "has a record with the id -1"),
        ([BASE | {"chosen": []}], {}, "not a list of ids, an id and a list of ids"),
        ([BASE | {"prompt_ids": []}], {}, "not a list of ids, an id and a list of ids"),
        ([BASE | {"prompt_ids": [4, ERASE, ERASE]}], {}, "a BACKTRACK with nothing left to erase"),
        ([{"prompt": "a", "chosen": [3]}], {}, "data.converter rejections needs the columns prompt_ids, rejected"),
        ([], {}, "holds no records"),
    ],
)  # fmt: skip
def test_refusals(tmp_path, records, dotted, sentence):
    with pytest.raises(UserError) as caught:
        given = ftpo_config(tmp_path, records, **dotted)
        (SFTExecutor if given.train.stage == "sft" else FTPOExecutor)(given).run()
    (told,) = caught.value.sentences
    assert sentence in told


def test_a_loss_that_is_not_finite_names_the_step_and_saves_nothing(tmp_path):
    executor = FTPOExecutor(ftpo_config(tmp_path, train__learning_rate=1e308, train__max_grad_norm=0.0))
    with pytest.raises(UserError, match=r"the loss is nan at step 2: lower train.learning_rate"):
        executor.run()
    assert {path.name for path in (tmp_path / "out").iterdir()} == {".lock", "run.json"}


def test_the_temperature_of_the_loss_is_tau():
    logits = torch.tensor([[0.0, 0.5, 0.0]], dtype=torch.float64)
    terms = ftpo_terms(logits, logits, torch.tensor([1]), torch.tensor([[2]]), 2.0, 0.5, 1.0)
    assert terms["preference_loss"].item() == pytest.approx(functional.softplus(torch.tensor(5.0)).item())
