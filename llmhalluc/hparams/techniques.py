"""What does not fit the techniques of SFT (docs/sft.md); loaded where one of them is on."""

from collections.abc import Iterator
from typing import Any

from llmhalluc.hparams.sections import GENERIC_CONVERTERS, TrainArguments
from llmhalluc.tasks import CONVERTERS, ERRING_CONVERTERS, TASKS

Problem = tuple[tuple[str, ...], str]
ERRING = ("backtrack", "selfgen", "backtrack_dpo", *ERRING_CONVERTERS)
# What takes a gradient away from its parameter, or uses it up, before a row of it can be kept.
OWN_GRADIENTS = ("deepspeed", "fsdp")
IN_BACKWARD = ("lomo", "layerwise")


def problems(config: Any) -> Iterator[Problem]:
    """Yield the dotted names and a sentence for each key that would have no effect, or that another one contradicts."""
    train, backtrack = config.train, config.backtrack
    if train.stage != "sft":
        for name, value in _given(config):
            yield (
                (name, "train.stage"),
                f"{name} is {value}, a technique of sft, but train.stage is {train.stage}: take it out",
            )
        return
    if train.correction_weight != TrainArguments.correction_weight and train.weighting != "position":
        yield (
            ("train.correction_weight", "train.weighting"),
            f"train.correction_weight is {train.correction_weight:g}, but train.weighting is {train.weighting}: "
            "set train.weighting=position, or take it out",
        )
    if config.data.converter not in ERRING:
        for name, value in _given(config):
            if name in ("train.weighting", "backtrack.keep_if_helps"):
                yield (
                    (name, "data.converter"),
                    f"{name} is {value}, but data.converter {config.data.converter} puts no errors in: take it out, or "
                    f"name one of {', '.join(ERRING)}",
                )
    if backtrack.keep_if_helps:
        yield from _kept(backtrack)
    if train.warmup_embeddings:
        yield from _warmed_up(train)
    if train.targets == "set":
        yield from _sets(config)


def _given(config: Any) -> list[tuple[str, Any]]:
    """The techniques that are on, by their dotted names."""
    train, found = config.train, {"backtrack.keep_if_helps": config.backtrack.keep_if_helps}
    for key in ("weighting", "warmup_embeddings", "targets"):
        if getattr(train, key) != getattr(TrainArguments, key):
            found[f"train.{key}"] = getattr(train, key)
    return [(name, value) for name, value in found.items() if value]


def _kept(backtrack: Any) -> Iterator[Problem]:
    key = "backtrack.keep_if_helps"
    if backtrack.context == "rewind":
        yield (
            (key, "backtrack.context"),
            f"{key} is true, but with backtrack.context rewind no erased error changes the text after it: take it out",
        )
    if backtrack.curriculum != "none":
        yield (
            (key, "backtrack.curriculum"),
            f"{key} is true, which draws each record's errors once, but backtrack.curriculum is "
            f"{backtrack.curriculum}: set one of them to its default",
        )


def _warmed_up(train: Any) -> Iterator[Problem]:
    key, optimizer = "train.warmup_embeddings", str(train.trl.get("optim") or "")
    for other in OWN_GRADIENTS:
        if train.trl.get(other):
            yield (
                (key, f"train.{other}"),
                f"{key} is {train.warmup_embeddings}, but train.{other} shards gradients: set 0",
            )
    if any(word in optimizer for word in IN_BACKWARD):
        yield (
            (key, "train.optim"),
            f"{key} is {train.warmup_embeddings}, but train.optim {optimizer} steps during the backward pass: "
            "set 0, or another optimizer",
        )


def _sets(config: Any) -> Iterator[Problem]:
    converter, given = config.data.converter, config.train.trl
    if converter in GENERIC_CONVERTERS or not TASKS[CONVERTERS[converter]].can("next_moves"):
        able = [name for name, task in CONVERTERS.items() if TASKS[task].can("next_moves")]
        yield (
            ("train.targets", "data.converter"),
            f"train.targets is set, but data.converter {converter} is of no task that says which next moves are right: "
            f"take it out, or name one of {', '.join(able)}",
        )
    for key, plain in (("label_smoothing_factor", 0.0), ("loss_type", "nll")):
        if given.get(key, plain) not in (None, plain, "chunked_nll"):
            yield (
                ("train.targets", f"train.{key}"),
                f"train.targets is set and train.{key} is {given[key]}, two losses of one token: keep one of them",
            )
