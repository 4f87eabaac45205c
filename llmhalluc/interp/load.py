"""The model of a run, its problems, and the check that looking does not change it."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from llmhalluc.backtrack import Layout
from llmhalluc.data.problems import load_problems
from llmhalluc.extras.errors import UserError
from llmhalluc.extras.jsonl import write_lines
from llmhalluc.extras.run_folder import write_json
from llmhalluc.interp.config import Interp
from llmhalluc.interp.lens import states
from llmhalluc.interp.packed import Copy, forward, inputs_of, rows_of
from llmhalluc.interp.run import BASELINE, Run, Stage
from llmhalluc.interp.sites import Sites
from llmhalluc.models.helper import eos_ids
from llmhalluc.models.loader import Loaded, load
from llmhalluc.models.transformers_patches import attention_kernel
from llmhalluc.tasks import CONVERTERS


@dataclass
class Model:
    """A loaded model, taken apart."""

    loaded: Loaded
    sites: Sites
    context: str

    @cached_property
    def eos_ids(self) -> list[int]:
        return eos_ids(self.loaded.model, self.loaded.tokenizer)

    @property
    def tokenizer(self) -> Any:
        return self.loaded.tokenizer

    def decode(self, ids: list[int]) -> str:
        """Return ids as text, special tokens as they are spelt."""
        return self.tokenizer.decode(ids)

    def piece(self, token: int) -> str:
        """Return the text that a token adds behind another word."""
        before = self.tokenizer("a", add_special_tokens=False).input_ids
        return self.decode([*before, token]).removeprefix(self.decode(before))

    @contextmanager
    def eager_attention(self) -> Iterator[None]:
        """Let the model compute its attention weights inside the block."""
        model, before = self.loaded.model, attention_kernel(self.loaded.model.config)
        model.set_attn_implementation("eager")
        try:
            yield
        finally:
            model.set_attn_implementation(before)

    def rows(self, sample: dict[str, Any]) -> Layout:
        """Return what the model was fed for a generation."""
        return rows_of(sample["prompt_ids"], sample["completion_ids"], self.loaded.backtrack_id, self.context)

    def states(self, samples: Sequence[dict[str, Any]], points: Sequence[Any]) -> torch.Tensor:
        """Return (L, P, H): the stream after each layer at points, each `row` of the sample `at`."""
        found: Any = None
        for at in dict.fromkeys(point.at for point in points):
            numbers = [number for number, point in enumerate(points) if point.at == at]
            here = states(self.sites, self.rows(samples[at]), [points[number].row for number in numbers])
            found = here.new_zeros(here.shape[0], len(points), here.shape[2]) if found is None else found
            found[:, numbers] = here
        return found

    @torch.inference_mode()
    def attentions(self, rows: Layout, last: int) -> list[torch.Tensor]:
        """Return the attention (heads, Q, K) of each layer, for the rows up to `last`."""
        with self.eager_attention():
            inputs = inputs_of(self.sites, rows, [last])
            return [layer[0] for layer in self.sites.decoder(**inputs, output_attentions=True).attentions]

    def same_as_unhooked(self, rows: Layout) -> dict[str, float]:
        """Return the largest differences in the logits of the last row: hooked and packed, and by the last lens."""
        last = len(rows.input_ids) - 1
        resid = ("resid", self.sites.layers - 1)
        result = forward(self.sites, rows, [Copy(last)], [*self.sites.modules])
        parts = rows._asdict() if self.loaded.backtrack_id is not None else {"input_ids": rows.input_ids}
        inputs = {name: torch.tensor([part], device=self.sites.model.device) for name, part in parts.items()}
        with torch.inference_mode():
            plain = self.sites.model(**inputs).logits[0, -1]
            lens = self.sites.unembed(self.sites.norm(result.kept[resid][0]))
        return {
            "hooked_minus_unhooked": float((result.logits[0] - plain).abs().max()),
            "last_lens_minus_logits": float((lens - result.logits[0]).abs().max()),
        }


def model_of(run: Run) -> Model:
    """Return the run's model, loaded once for all stages of a program. Raises UserError as `load_model`."""
    if run.model is None:
        run.model = load_model(run.config)
    return run.model


def load_model(config: Interp) -> Model:
    """Load the model of the config. Raises UserError as `load` and `Sites` do."""
    loaded = load(config.config.model, None)
    return Model(loaded, Sites(loaded.model), config.config.gen.context or loaded.context)


def prepare_data(run: Run) -> None:
    """Write the first problems of the evaluation split to data/problems.jsonl."""
    from llmhalluc.models.loader import load_tokenizer

    data, interp = run.config.config.data, run.config.interp
    output, settings = run.path("data", "problems.jsonl"), run.config.plain()["data"] | {"examples": interp.examples}
    stage = Stage("prepare-data", (), settings, [output])
    if run.is_done(stage):
        return
    tokenizer = load_tokenizer(run.config.config.model)
    problems = load_problems(data, tokenizer, held_out=True)[: interp.examples]
    if not problems:
        raise UserError(f"data.dataset {data.dataset} has no problems")
    write_lines(output, ({"example_id": problem.key, "record": problem.record} for problem in problems))
    run.mark_done(stage)


def problems_of(run: Run) -> dict[str, dict[str, Any]]:
    """Return the records by example_id. Raises UserError where they are not prepared."""
    lines = run.need(run.path("data", "problems.jsonl"), "prepare-data").read_text(encoding="utf-8").splitlines()
    return {line["example_id"]: line["record"] for line in map(json.loads, lines)}


def generations_of(run: Run, variant: str, condition: str = BASELINE) -> list[dict[str, Any]]:
    """Return the generations of a variant and condition. Raises UserError where there are none."""
    command = f"generate --variant {variant} --condition {condition}"
    path = run.need(run.path("generations", f"{variant}__{condition}.jsonl"), command)
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def task_of(run: Run) -> str:
    """Return the name of the task that data.converter is of."""
    return CONVERTERS[run.config.config.data.converter]


def write_check(run: Run, model: Model, sample: dict[str, Any]) -> None:
    """Write analysis/hook_check.json. Raises UserError where hooks change what the model computes."""
    found = model.same_as_unhooked(model.rows(sample))
    dtype = model.loaded.model.dtype
    tolerance = {torch.float64: 1e-9, torch.float32: 1e-3}.get(dtype, 0.25)
    if max(found.values()) > tolerance:
        raise UserError(f"hooks change what the model computes ({found}, more than {tolerance}): report this")
    write_json(run.path("analysis", "hook_check.json"), found | {"dtype": str(dtype), "tolerance": tolerance})
