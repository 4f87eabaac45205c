"""The keys of the stages' config classes, read from their source: importing trl takes seconds, this takes none."""

import ast
import functools
import importlib.util
import types
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from llmhalluc.hparams.mapping import Key

# Bounds that TRL's classes do not check, or check late.
BOUNDS = {
    "learning_rate": "[0, inf)",
    "num_train_epochs": "(0, inf)",
    "per_device_train_batch_size": "[1, inf)",
    "per_device_eval_batch_size": "[1, inf)",
    "gradient_accumulation_steps": "[1, inf)",
    "max_length": "[1, inf)",
    "beta": "[0, inf)",
    "num_generations": "[2, inf)",
    "max_completion_length": "[1, inf)",
    "temperature": "(0, inf)",
}


@functools.cache
def trl_keys(stage: str) -> dict[str, Key] | None:
    """Return the fields of a stage's config class: TRL's, ours in train/, or TrainingArguments; None without trl."""
    trl, transformers = _package("trl"), _package("transformers")
    if trl is None or transformers is None:
        return None
    for room in (trl / "trainer", Path(__file__).parents[1] / "train"):
        if (own := room / f"{stage}_config.py").is_file():
            return _class_keys(own, f"{stage.upper()}Config")
    return _class_keys(transformers / "training_args.py", "TrainingArguments")


def _class_keys(path: Path, name: str) -> dict[str, Key]:
    """The fields of a dataclass as Keys, the inherited ones first, in the order of `dataclasses.fields`."""
    found = _class(path, name)
    keys: dict[str, Key] = {}
    for base in found.bases:
        keys |= _class_keys(_home(path, base.id), base.id)
    # The last plain value of a name in the class body: `default=default_optim` hangs on torch's version.
    constants = {
        node.targets[0].id: node.value.value
        for node in ast.walk(found)
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
        and isinstance(node.value, ast.Constant)
    }
    for node in found.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.value, ast.Call):
            key = _key(node.annotation, node.value, _Types(path), constants)
            keys[node.target.id] = key._replace(bounds=BOUNDS.get(node.target.id, key.bounds))
    return keys


def _key(annotation: ast.expr, call: ast.Call, names: "_Types", constants: dict[str, Any]) -> Key:
    """The Key of `name: annotation = field(default=…, metadata={"help": …, "choices": …})`."""
    given: dict[str | None, Any] = {keyword.arg: keyword.value for keyword in call.keywords}
    pairs = zip(given["metadata"].keys, given["metadata"].values, strict=True)
    metadata = {key.value: _literal(value) for key, value in pairs}
    if "default_factory" in given:
        default = {"list": [], "dict": {}}.get(ast.unparse(given["default_factory"]))
    else:
        default = constants.get(ast.unparse(given["default"]), _literal(given["default"]))
    kind = eval(compile(ast.Expression(annotation), "<annotation>", "eval"), {}, names)
    members = list(get_args(kind)) if get_origin(kind) in (Union, types.UnionType) else [kind]
    if isinstance(metadata.get("choices"), list):
        members = [Literal[tuple(metadata["choices"])], *(m for m in members if m is types.NoneType)]
    elif any(get_origin(m) is Literal and isinstance(get_args(m)[0], str) for m in members):
        members = [m for m in members if m is not str]  # `SomeEnum | str` means the enum's values
    if "const" in metadata and bool not in members:
        members.append(Literal[metadata["const"]])
    kind = functools.reduce(lambda a, b: a | b, members)
    return Key(kind, default, metadata.get("help", ""), metadata.get("bounds"))


class _Types(dict):
    """Names in annotations: Python's own types, an enum as the Literal of its values, the rest as Any."""

    def __init__(self, path: Path):
        super().__init__(int=int, float=float, bool=bool, str=str, list=list, dict=dict, Literal=Literal)
        self.path = path

    def __missing__(self, name: str) -> Any:
        home = _home(self.path, name)
        found = _class(home, name) if home.is_file() else None
        if found is None or not any("Enum" in ast.unparse(base) for base in found.bases):
            return Any
        assigned = [node.value for node in found.body if isinstance(node, ast.Assign)]
        return Literal[tuple(value.value for value in assigned if isinstance(value, ast.Constant))]


def _home(path: Path, name: str) -> Path:
    """Return the file that defines the class `name` of `path`: another one where it is imported."""
    for node in _tree(path).body:
        if isinstance(node, ast.ImportFrom) and node.module and name in [alias.name for alias in node.names]:
            if node.level:
                return path.parents[node.level - 1].joinpath(*node.module.split(".")).with_suffix(".py")
            if name == "TrainingArguments":
                return _package("transformers") / "training_args.py"
            return Path(node.module)  # no file: a class of another library
    return path


def _class(path: Path, name: str) -> Any:
    """The syntax tree of a class at the top level of a file, or None."""
    return next((n for n in _tree(path).body if isinstance(n, ast.ClassDef) and n.name == name), None)


@functools.cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _package(name: str) -> Path | None:
    """The folder of an installed package, found without importing it."""
    spec = importlib.util.find_spec(name)
    return Path(spec.submodule_search_locations[0]) if spec and spec.submodule_search_locations else None


def _literal(node: ast.expr) -> Any:
    """The value of a literal; None for anything that would have to be run."""
    try:
        return ast.literal_eval(node)
    except ValueError:
        return None
