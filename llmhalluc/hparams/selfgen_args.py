"""The `selfgen` section: errors of the model's own, found in its samples (run_selfgen)."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from llmhalluc.extras.option import Section, option


@dataclass
class SelfgenArguments(Section):
    """How many solutions are sampled for a problem, and how the first wrong step of a wrong one is found."""

    section: ClassVar[str] = "selfgen"
    samples: int = option(4, "solutions sampled for each problem", bounds="[1, inf)")
    temperature: float | None = option(
        None, "of the samples; none: gen.temperature, or 1 where that is 0", bounds="[0, inf)"
    )
    batch_size: int = option(64, "prompts decoded at a time", bounds="[1, inf)")
    locator: Literal["arithmetic", "departure", "value"] = option(
        "departure", "first false calculation, first departure from a right solution, or a search by prefix values"
    )
    rollouts: int = option(
        8, "completions sampled from a prefix, to value it or to find a right one", bounds="[1, inf)"
    )
    value_threshold: float = option(
        0.0, "value: highest share of right rollouts of a prefix that has fallen", bounds="[0, 1)"
    )
    max_rollouts: int | None = option(
        None, "value: most rollouts in all; samples beyond them stay unlocated", bounds="[0, inf)"
    )
    clean_share: float = option(
        0.5, "share of the traces that are right samples as they are, if there are so many", bounds="[0, 1)"
    )
    output_dir: str = option("outputs/selfgen", "folder for samples.jsonl, traces.jsonl and selfgen.json")
    overwrite: bool = option(False, "delete what output_dir holds first")
