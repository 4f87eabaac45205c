"""The stages `verifier` and `prm`: the model samples, a source labels, a judge learns, and lies beside the model."""

import os
import shutil
from pathlib import Path
from typing import Any

import torch

from llmhalluc.data.problems import load_problems
from llmhalluc.extras.errors import UserError
from llmhalluc.extras.run_folder import write_json
from llmhalluc.models.helper import eos_ids, ship_generate
from llmhalluc.models.loader import Loaded
from llmhalluc.models.weights import fingerprint
from llmhalluc.tasks import CONVERTERS
from llmhalluc.train.base import CURVE, RECORD, BaseExecutor, draw_curve
from llmhalluc.verify import head as heads
from llmhalluc.verify.learn import best_first_step, first_step, places_of, report, threshold_of, train
from llmhalluc.verify.options import judge_options
from llmhalluc.verify.prm import fit_prm, prm_places
from llmhalluc.verify.traces import labelled_traces, split

BATCH = 256  # texts sampled at a time
MODEL_FILES = (".json", ".safetensors", ".jinja", ".txt", ".model")


class JudgeExecutor(BaseExecutor):
    """Samples and labels texts of the model, which itself stays as it is; a resumed run reads what it had sampled."""

    sections = ("model", "data", "backtrack", "train", "gen")
    curve: list[dict[str, float]]
    found: dict[str, Any]
    count: int

    def load_data(self) -> None:
        """Set `parts`: labelled traces that train, that set the threshold, and that test."""
        self.options = judge_options(self.config.train.judge)
        self.loaded = Loaded(self.model.eval(), self.tokenizer, *self._meaning())
        problems = load_problems(self.config.data, self.tokenizer)
        if len(problems) < 3:
            raise UserError(f"data.dataset {self.config.data.dataset} has {len(problems)} problems: give it 3 or more")
        traces = labelled_traces(self.loaded, problems, self.config.gen, self.options, self.output_dir, BATCH)
        self.parts = split(traces, self.options.dev_share, self.seed)
        known = [good for trace in self.parts[0] for good in trace.good if good is not None]
        if not known or min(known) > 0.5 or max(known) <= 0.5:
            raise UserError(
                f"all {len(known)} labelled prefixes are alike (train.judge.labels {self.options.labels}): sample more "
                "(train.judge.samples), take harder or easier problems, or another source of labels"
            )

    def make_trainer(self) -> None:
        """There is none: a judge trains in a loop of its own."""

    def fit(self) -> None:
        self.task = CONVERTERS[self.config.data.converter]
        pad_id = self.tokenizer.pad_token_id
        self.pad_id = eos_ids(self.model, self.tokenizer)[0] if pad_id is None else pad_id
        torch.manual_seed(self.seed)

    def save(self) -> dict[str, Any]:
        """Put the model, unchanged, beside its judge; write loss.png and train.json."""
        source = self.config.model.name_or_path
        folder = None if source is None else Path(source).expanduser()
        if folder is not None and folder.is_dir() and self.config.model.adapter is None:
            link(folder, self.output_dir)
        else:
            self.model.save_pretrained(self.output_dir)
            self.tokenizer.save_pretrained(self.output_dir)
        ship_generate(self.output_dir)
        record = self.record()
        draw_curve(record, "loss", "binary cross-entropy, nats", self.output_dir / CURVE)
        write_json(self.output_dir / RECORD, record)
        return record

    def record(self) -> dict[str, Any]:
        traces = [trace for part in self.parts for trace in part]
        return {
            "tokens": sum(len(trace.completion_ids) for trace in traces), "examples": len(traces), "seconds": 0.0,
            "steps": len(self.curve), "trainable_parameters": self.count, "loss": self.curve, "eval_loss": [],
            "judge": self.found,
        }  # fmt: skip

    def _meaning(self) -> tuple[int | None, str]:
        return self.backtrack_id, (getattr(self.model.config, "backtrack", None) or {}).get("context", "soft")


class VerifierExecutor(JudgeExecutor):
    """A head on frozen states."""

    def fit(self) -> None:
        """Train the head; its threshold is that of the best F1 on problems of its own."""
        super().fit()
        config = self.model.config.get_text_config()
        layers = tuple(self.options.layers) or layer_names(self.model)
        rows, dev, test = (places_of(self.loaded, part, layers, self.pad_id) for part in self.parts)
        embedded = self.model.get_input_embeddings().weight.shape[0]
        about = heads.About(layers, config.hidden_size, embedded, fingerprint(self.model), self.task,
                            self.options.labels)  # fmt: skip
        head = heads.Head(about, self.options.width)
        self.curve = train(head, rows, dev, self.options, self.seed)
        due, _ = head.judge(dev.features)
        threshold = threshold_of(due, dev)
        best = best_first_step(due, dev)
        head.about = heads.About(**vars(about) | {"threshold": threshold})
        due, right = head.judge(test.features)
        self.found = {"test": report(due, right, test, threshold)} | {"first_step": first_step(due, test, best)}
        self.head, self.count = head, head.parameters_count

    def save(self) -> dict[str, Any]:
        heads.save(self.head, self.output_dir)
        return super().save()


class PRMExecutor(JudgeExecutor):
    """A model of its own that reads the text so far."""

    def fit(self) -> None:
        """Train a copy of the model; its threshold as the verifier's."""
        super().fit()
        self.prm, self.curve = fit_prm(self.loaded, self.parts, self.options, self.pad_id, self.seed)
        _, dev, test = (prm_places(self.prm, part, self.pad_id) for part in self.parts)
        due = [1 - good for good in dev.features[:, 0].tolist()]
        threshold = threshold_of(due, dev)
        best = best_first_step(due, dev)
        self.prm.model.config.prm |= {"threshold": threshold, "task": self.task, "labels": self.options.labels}
        due = [1 - good for good in test.features[:, 0].tolist()]
        self.found = {"test": report(due, None, test, threshold)} | {"first_step": first_step(due, test, best)}
        self.count = sum(weight.numel() for weight in self.prm.model.parameters())

    def save(self) -> dict[str, Any]:
        self.prm.model.save_pretrained(self.output_dir / "prm")
        self.tokenizer.save_pretrained(self.output_dir / "prm")
        return super().save()


def layer_names(model: Any) -> tuple[str, ...]:
    """Return the names of the model's layers: the modules of its longest numbered list."""
    lists = {name: len(module) for name, module in model.named_modules() if isinstance(module, torch.nn.ModuleList)}
    longest = max(lists, key=lambda name: lists[name])
    return tuple(f"{longest}.{number}" for number in range(lists[longest]))


def link(source: Path, target: Path) -> None:
    """Put the files of a model's folder into another, as hard links where the disk allows it."""
    for path in source.iterdir():
        if path.suffix in MODEL_FILES and path.name not in (RECORD, "run.json", heads.FILE):
            goal = target / path.name
            goal.unlink(missing_ok=True)
            try:
                os.link(path, goal)
            except OSError:
                shutil.copyfile(path, goal)
