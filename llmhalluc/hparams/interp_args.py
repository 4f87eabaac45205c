"""The sections `interp` and `scan` of an interpretability config; `model`, `data` and `gen` are as elsewhere."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from llmhalluc.extras.option import Section, option


@dataclass
class InterpArguments(Section):
    """What is generated, and what counts as taking something back."""

    section: ClassVar[str] = "interp"
    runs_dir: str = option("runs", "folder of the runs; .current_run_id in it names the newest one")
    examples: int = option(24, "problems of data.dataset, the first ones of its evaluation split", bounds="[1, inf)")
    samples: int = option(2, "completions of each problem", bounds="[1, inf)")
    batch_size: int = option(64, "completions decoded at a time", bounds="[1, inf)")
    variants: dict[str, Any] = option(
        {"plain": {}}, "name: how the prompt is written (chat, think, instruction); the first is analysed by default"
    )
    triggers: list[str] = option(
        ["Wait", "Actually", "Hold on"], "phrases that take something back; []: the model's own BACKTRACK token"
    )
    base: dict[str, Any] = option({}, "keys of `model` that differ for the untuned model of compare-models")
    seed: int = option(0, "seed of controls, splits, random sets and directions", bounds="[0, 4294967295]")


@dataclass
class VariantArguments(Section):
    """One way of writing the prompt: an entry of interp.variants."""

    section: ClassVar[str] = "interp.variants"
    chat: bool = option(False, "wrap the prompt with the tokenizer's chat template")
    think: Literal["none", "newline", "inline"] = option(
        "none", "what the answer begins with: nothing, <think> on a line of its own, or <think> on the line of the text"
    )
    instruction: str = option("", "text added to the end of the prompt")


@dataclass
class ScanArguments(Section):
    """What is measured at the events."""

    section: ClassVar[str] = "scan"
    max_events: int = option(
        100, "events that are measured, spread over the problems, and as many controls", bounds="[1, inf)"
    )
    test_share: float = option(
        0.5, "share of the problems on which the layers that the others chose are tested", bounds="(0, 1)"
    )
    lens: Literal["logit", "tuned", "jacobian"] = option("logit", "what carries a layer's state into the last layer")
    lens_file: str | None = option(
        None, "a fitted lens (.safetensors of ours, .pt of the jlens library); none: fitted on the run's own texts"
    )
    lens_rows: int = option(32, "rows of the run's texts on which a lens is fitted", bounds="[1, inf)")
    lens_steps: int = option(100, "tuned: steps of Adam", bounds="[1, inf)")
    ablations: list[str] = option(
        ["zero", "mean", "resample", "scale"], "how a component is taken out; the first one chooses the layers"
    )
    scale: float = option(0.5, "scale: what is left of the component", bounds="[0, inf)")
    layers: int = option(3, "layers that are chosen, and ablated in the condition targeted", bounds="[1, inf)")
    random_sets: int = option(100, "random sets of as many sublayers, the null of the chosen ones", bounds="[1, inf)")
    doses: list[float] = option(
        [-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0], "multiples of the difference of means that are added to the stream"
    )
    random_directions: int = option(20, "random directions of the same norm beside it", bounds="[1, inf)")
    resamples: int = option(20, "continuations from just before an event, for each treatment", bounds="[1, inf)")
    counterfactual_events: int = option(100, "events from which is resampled", bounds="[1, inf)")
    traces: int = option(4, "traces of the report in which every token can be looked into", bounds="[0, inf)")
