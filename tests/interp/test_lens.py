"""Lenses: the exact Jacobian, what training must not make worse, files of ours and of the jlens library."""

import pytest
import torch
from torch import nn

from llmhalluc.extras.errors import UserError
from llmhalluc.interp import lens as lenses
from llmhalluc.interp.lens import Lens, fit, load, read, save, states
from llmhalluc.interp.packed import Edit, change_at, rows_of
from tests.interp.models import causal_lm, some_ids, taken_apart

ROWS = rows_of(some_ids(0, 6), some_ids(1, 12), None, "soft")
TEXTS = [(ROWS, [5, 9, 16])]


@pytest.fixture(scope="module")
def model():
    return taken_apart(causal_lm("llama", layers=3))


def make_linear(model):
    """No norms, no attention, no nonlinearity: each layer adds a matrix of its state."""
    matrices = []
    for layer in model.sites.decoder.layers:
        torch.manual_seed(len(matrices))
        matrix = torch.randn(32, 32, dtype=torch.float64) * 0.1
        layer.self_attn.o_proj.weight.data.zero_()
        layer.post_attention_layernorm = nn.Identity()
        layer.mlp = nn.Linear(32, 32, bias=False, dtype=torch.float64)
        layer.mlp.weight.data.copy_(matrix)
        matrices.append(torch.eye(32, dtype=torch.float64) + matrix)
    return matrices


def test_the_jacobian_lens_of_a_linear_model_is_exact():
    model = taken_apart(causal_lm("llama", layers=3))
    _, second, third = make_linear(model)
    model = taken_apart(model.loaded.model)
    lens = fit("jacobian", model.sites, TEXTS)
    assert set(lens.maps) == {0, 1}
    assert torch.allclose(lens.maps[0][0], third @ second, atol=1e-12)
    assert torch.allclose(lens.maps[1][0], third, atol=1e-12)
    hidden = states(model.sites, ROWS, [7])
    for layer in range(3):  # so every layer says what the model says
        final = lens.logits(model.sites, 2, hidden[2])
        assert torch.allclose(lens.logits(model.sites, layer, hidden[layer]), final, atol=1e-9)


def test_the_jacobian_is_that_of_the_last_state_by_the_state_at_one_row(model):
    lens = fit("jacobian", model.sites, [(ROWS, [9])])
    resid, step = ("resid", 0), 1e-2  # the norms work in float32
    hidden, column = states(model.sites, ROWS, [9]), 3
    ids = torch.tensor([ROWS.input_ids[:10]])

    def last(off):
        shift = torch.zeros(32, dtype=torch.float64)
        shift[column] = off
        change = change_at((0, [9]), [Edit(resid, 1.0, shift)], model.sites, ())
        with model.sites.hooked({resid: change}, [("resid", 2)], (0, 9)) as kept, torch.inference_mode():
            model.loaded.model(ids)
        return kept["resid", 2]

    assert torch.allclose(last(0.0), hidden[2, 0], atol=1e-12)
    slope = (last(step) - last(-step)) / (2 * step)
    assert torch.allclose(lens.maps[0][0][:, column], slope, atol=1e-3)


def test_a_tuned_lens_is_nearer_to_the_output_than_the_logit_lens(model):
    rows = list(range(5, 17))
    hidden, targets = states(model.sites, ROWS, rows), [3] * len(rows)
    tuned = fit("tuned", model.sites, [(ROWS, rows)], steps=60)
    kl = {}
    for lens in (Lens("logit"), tuned):
        kl[lens.kind] = [
            sum(row[layer].kl for row in read(model.sites, lens, hidden, targets, [3])) for layer in range(3)
        ]
    assert kl["tuned"][0] < 0.7 * kl["logit"][0] and kl["tuned"][1] < 0.7 * kl["logit"][1]
    assert kl["tuned"][2] == kl["logit"][2] == pytest.approx(0, abs=1e-9)


def test_a_reading_is_of_the_target_and_all_triggers(model):
    hidden = states(model.sites, ROWS, [8, 11])
    readings = read(model.sites, Lens("logit"), hidden, [4, 7], [4, 7, 9])
    for row, (at, target) in enumerate(((8, 4), (11, 7))):
        logits = model.loaded.model(torch.tensor([ROWS.input_ids[: at + 1]])).logits[0, -1].detach()
        last = readings[row][-1]
        assert last.logit == pytest.approx(float(logits[target]), abs=1e-9)
        assert last.logprob == pytest.approx(float(logits.log_softmax(-1)[target]), abs=1e-9)
        assert last.mass == pytest.approx(float(logits.softmax(-1)[[4, 7, 9]].sum()), abs=1e-9)
        assert last.rank == int((logits > logits[target]).sum())


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gpt2", "gemma3_text"])
def test_every_layer_reads_as_a_loop_over_the_librarys_own_states_does(architecture):
    model = taken_apart(causal_lm(architecture, layers=3))
    hidden = states(model.sites, ROWS, [8, 13])
    readings = read(model.sites, Lens("logit"), hidden, [4, 7], [4, 7])
    theirs = model.loaded.model(torch.tensor([ROWS.input_ids]), output_hidden_states=True).hidden_states
    for layer in range(2):  # of the last layer the library gives the state after the norm
        logits = model.sites.head(model.sites.norm(theirs[layer + 1][0, [8, 13]])).detach()
        assert torch.allclose(hidden[layer], theirs[layer + 1][0, [8, 13]], atol=1e-9)
        for row, target in ((0, 4), (1, 7)):
            assert readings[row][layer].logit == pytest.approx(float(logits[row, target]), abs=1e-9)


def test_a_lens_is_read_back_and_so_is_one_of_the_jlens_library(tmp_path, model):
    lens = fit("jacobian", model.sites, TEXTS)
    save(lens, tmp_path / "lens.safetensors")
    again = load(tmp_path / "lens.safetensors", model.sites)
    assert again.kind == "jacobian" and torch.equal(again.maps[1][0], lens.maps[1][0])
    published = {"J": {layer: matrix.half() for layer, (matrix, _) in lens.maps.items()}, "n_prompts": 3, "d_model": 32,
                 "source_layers": [0, 1]}  # fmt: skip
    torch.save(published, tmp_path / "lens.pt")
    theirs = load(tmp_path / "lens.pt", model.sites)
    assert torch.allclose(theirs.maps[0][0].double(), lens.maps[0][0], atol=1e-2)
    hidden = states(model.sites, ROWS, [7])
    assert torch.allclose(
        theirs.logits(model.sites, 0, hidden[0]).double(), lens.logits(model.sites, 0, hidden[0]), atol=0.1
    )


def test_a_file_that_is_no_lens_of_this_model_is_refused(tmp_path, model):
    (tmp_path / "no.safetensors").write_bytes(b"what")
    with pytest.raises(UserError, match=r"scan.lens_file is .*no.safetensors, which is no fitted lens"):
        load(tmp_path / "no.safetensors", model.sites)
    torch.save({"what": 1}, tmp_path / "no.pt")
    with pytest.raises(UserError, match="which is no fitted lens"):
        load(tmp_path / "no.pt", model.sites)
    with pytest.raises(UserError, match="which is no fitted lens"):
        load(tmp_path / "absent.pt", model.sites)
    save(Lens("jacobian", {0: (torch.eye(8), torch.zeros(8))}), tmp_path / "other.safetensors")
    with pytest.raises(UserError, match=r"is of another model .* this one has 3 layers of width 32"):
        load(tmp_path / "other.safetensors", model.sites)
    assert lenses.LENSES == ("logit", "tuned", "jacobian")
