"""A verifier head: a small network on hidden states that decoding has computed anyway.

It sees, of the row that the last token of a step was sampled from, the states after some layers; the token's own
embedding; its log-probability, mean and least one of the step, and the mean one of the text. So it judges the step
without a forward of its own. Shapes: B tokens, H width, L layers, F features.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from llmhalluc.extras.errors import UserError, one_line

LIKELIHOODS = 4  # numbers of `likelihoods`
FILE = "verifier.safetensors"  # beside the model or the adapter


@dataclass(frozen=True)
class About:
    """What a head was made for: the model's layers, width and vocabulary, the task, the labels, its threshold.

    weights: a hash of the model's. threshold: of P(an erasure is due), the one of the best F1 on problems of its own.
    """

    layers: tuple[str, ...]
    hidden_size: int
    vocabulary: int
    weights: str
    task: str
    labels: str
    threshold: float = 0.5


class Head(nn.Module):
    """Linear, GELU, linear; with width 0 one linear map. Two logits: an erasure is due; the answer will be right."""

    def __init__(self, about: About, width: int):
        super().__init__()
        self.about, self.width = about, width
        size = (len(about.layers) + 1) * about.hidden_size + LIKELIHOODS
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("scale", torch.ones(size))
        self.first = nn.Linear(size, width) if width else None
        self.last = nn.Linear(width or size, 2)

    def forward(self, features_BF: torch.Tensor) -> torch.Tensor:
        """Return logits (B, 2)."""
        scaled = (features_BF - self.mean) * self.scale
        return self.last(scaled if self.first is None else nn.functional.gelu(self.first(scaled)))

    def fit_scale(self, features_BF: torch.Tensor) -> None:
        """Centre and scale features from now on as these need it."""
        self.mean.copy_(features_BF.mean(0))
        self.scale.copy_(1 / features_BF.std(0, correction=0).clamp(min=1e-3))

    @torch.inference_mode()
    def judge(self, features_BF: torch.Tensor) -> tuple[list[float], list[float]]:
        """Return P(an erasure is due) and P(the answer will be right) of each token."""
        due_right_B2 = self(features_BF).sigmoid()
        return due_right_B2[:, 0].tolist(), due_right_B2[:, 1].tolist()

    @property
    def parameters_count(self) -> int:
        """How many weights it has."""
        return sum(weight.numel() for weight in self.parameters())


def features(
    hidden: Mapping[str, torch.Tensor],
    layers: Sequence[str],
    embedded_BH: torch.Tensor,
    likely: Sequence[Sequence[float]],
) -> torch.Tensor:
    """Return features (B, F), float32; likely: `likelihoods` of each token."""
    last = torch.tensor(likely, device=embedded_BH.device).clamp(min=-30.0)
    return torch.cat([*(hidden[name] for name in layers), embedded_BH, last], 1).float()


def likelihoods(logprobs: Sequence[float], length: int) -> list[float]:
    """Return newest, mean and least log-probability of a step of `length` tokens, and the mean one of the text."""
    step = logprobs[-length:]
    return [logprobs[-1], sum(step) / len(step), min(step), sum(logprobs) / len(logprobs)]


def save(head: Head, folder: Path) -> None:
    """Write a head beside a model."""
    about = {"about": json.dumps(asdict(head.about) | {"width": head.width})}
    save_file({name: part.contiguous().cpu() for name, part in head.state_dict().items()}, folder / FILE, about)


def load(folder: str | Path, model: Any, weights: str | None = None) -> Head:
    """Load the head in a folder for a model. Raises UserError where there is none, or it is another model's.

    weights: the hash of the model's weights, to be the one that the head was trained on.
    """
    path = Path(folder).expanduser() / FILE
    if not path.is_file():
        raise UserError(f"{path} does not exist: train a head with train.stage=verifier, or set judge to its folder")
    try:
        with safe_open(path, "pt") as file:
            about = json.loads((file.metadata() or {})["about"])
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no mapping
        width = about.pop("width")
        head = Head(About(**about | {"layers": tuple(about["layers"])}), width)
        head.load_state_dict(state)
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(
            f"{path} is no verifier head ({one_line(error)}): train one with train.stage=verifier"
        ) from error
    size, rows = model.config.get_text_config().hidden_size, model.get_input_embeddings().weight.shape[0]
    if (head.about.hidden_size, head.about.vocabulary) != (size, rows):
        raise UserError(
            f"{path} was trained on a model of width {head.about.hidden_size} with {head.about.vocabulary} ids, this "
            f"one has {size} and {rows}: train a head for it"
        )
    if weights is not None and weights != head.about.weights:
        raise UserError(f"{path} was trained on other weights than the model's: train a head for them")
    return head.to(model.device).eval()
