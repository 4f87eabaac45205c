"""An interpretability YAML -> a `Config` of its own; every mistake is reported at once, before torch is imported."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llmhalluc.extras.errors import UserError, did_you_mean
from llmhalluc.hparams import parser, yaml_files
from llmhalluc.hparams.interp_args import InterpArguments, ScanArguments, VariantArguments
from llmhalluc.hparams.mapping import check_mapping, keys_of, make
from llmhalluc.hparams.sections import SECTIONS, DataArguments, GenArguments, ModelArguments
from llmhalluc.tasks import PROBLEM_CONVERTERS

KINDS: dict[str, Any] = {"model": ModelArguments, "data": DataArguments, "gen": GenArguments}
OWN: dict[str, Any] = {"interp": InterpArguments, "scan": ScanArguments}
METHODS = ("zero", "mean", "resample", "scale")


@dataclass
class Interp:
    """A checked configuration: model, data and decoding as everywhere, what is looked for, and what is measured."""

    config: parser.Config
    interp: InterpArguments
    scan: ScanArguments
    variants: dict[str, VariantArguments]

    def plain(self) -> dict[str, Any]:
        """Return the configuration as the YAML would hold it."""
        ours = {name: asdict(getattr(self, name)) for name in OWN}
        return parser.resolved(self.config, tuple(KINDS)) | ours

    def variant(self, name: str | None) -> str:
        """Return the variant of that name, the first one for None. Raises UserError for an unknown one."""
        if name is None:
            return next(iter(self.variants))
        if name not in self.variants:
            raise UserError(f"--variant is {name!r}{did_you_mean(name, self.variants)}")
        return name


def parse(path: Path | None, overrides: list[str]) -> Interp:
    """Return the configuration of a file under dotted overrides. Raises UserError."""
    return build(yaml_files.load_raw(path, overrides), ("model", "data"))


def build(raw: dict[str, Any], sections: tuple[str, ...] = ()) -> Interp:
    """Check and convert plain data; `sections` as in `parser.build`. Raises UserError, a sentence for every mistake."""
    given = raw | {section: {} for section in (*KINDS, *OWN) if raw.get(section) is None}
    known = {name: keys_of(kind) for name, kind in (KINDS | OWN).items()}
    others = [f"{section}.{key}" for section, keys in known.items() for key in keys]
    problems: list[str] = []
    for section in given.keys() - {"seed", *KINDS, *OWN}:
        kind = "a section of other programs" if section in SECTIONS else "no section"
        meant = did_you_mean(section, [*KINDS, *OWN, "seed"])
        problems.append(f"{section} is {kind}{meant if section not in SECTIONS else ': take it out'}")
    for section in OWN:
        problems += [sentence for _, sentence in check_mapping(section, given[section], known[section], others)]
    config = None
    try:
        config = parser.build({key: given[key] for key in ("seed", *KINDS) if key in given}, sections)
    except UserError as error:
        problems += error.sentences
    if problems:
        raise UserError(*problems)
    interp, scan = make(InterpArguments, given["interp"]), make(ScanArguments, given["scan"])
    problems = [*_together(config, interp, scan)]
    if problems:
        raise UserError(*problems)
    variants = {name: make(VariantArguments, value) for name, value in interp.variants.items()}
    return Interp(config, interp, scan, variants)


def _together(config: parser.Config, interp: InterpArguments, scan: ScanArguments) -> list[str]:
    """Sentences about what stands inside keys, and about keys that go together."""
    problems = []
    if not interp.variants:
        problems.append("interp.variants is empty: name at least one, such as {plain: {}}")
    for name, value in interp.variants.items():
        if not name.replace("_", "").replace("-", "").isalnum():
            problems.append(f"interp.variants has the name {name!r}: letters, digits, _ and - make file names")
        problems += [sentence for _, sentence in check_mapping(f"interp.variants.{name}", value, VariantArguments)]
    if "" in [trigger.strip() for trigger in interp.triggers]:
        problems.append("interp.triggers holds an empty phrase: take it out")
    if unknown := [name for name in scan.ablations if name not in METHODS]:
        problems.append(f"scan.ablations holds {unknown[0]!r}{did_you_mean(unknown[0], METHODS)}")
    if not scan.ablations:
        problems.append(f"scan.ablations is empty: name at least one of {', '.join(METHODS)}")
    if config.data.converter not in PROBLEM_CONVERTERS:
        problems.append(
            f"data.converter is {config.data.converter}, whose answers cannot be checked: name one of "
            f"{', '.join(PROBLEM_CONVERTERS)}"
        )
    if config.gen.operator is not None:
        problems.append(f"gen.operator is {config.gen.operator}: what a rule erased cannot be fed again, set null")
    if interp.base:
        problems += [sentence for _, sentence in check_mapping("interp.base", interp.base, ModelArguments)]
    return problems
