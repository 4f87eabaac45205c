"""Load by a name (of the hub, a folder, an installed package), and what saved and loaded models have in common."""

import importlib.util
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from llmhalluc.extras import constant
from llmhalluc.extras.errors import UserError, one_line
from llmhalluc.hparams.sections import ModelArguments


def local_folder(key: str, name: str) -> Path | None:
    """The folder that `name` means, None for a hub name. Raises UserError for one that is not there."""
    if name.startswith("package:"):
        package = name.removeprefix("package:")
        # Found, not imported: a package that only carries weights need not run.
        spec = importlib.util.find_spec(package) if package.isidentifier() else None
        if spec is None or not spec.submodule_search_locations:
            raise UserError(f"{key} is {name!r}, but no package {package!r} is installed: pip install it")
        return Path(spec.submodule_search_locations[0])
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if name.startswith(("/", ".", "~")) or name.count("/") > 1:
        raise UserError(f"{key} is {name!r}, and there is no such folder: check the path")
    return None


def from_pretrained(auto: Any, key: str, name: str, args: ModelArguments, **options: Any) -> Any:
    """`auto.from_pretrained`; only a hub name asks the network. Raises UserError where that fails."""
    folder = local_folder(key, name)
    options |= {"revision": args.revision} if folder is None else {"local_files_only": True}
    try:
        return auto.from_pretrained(str(folder or name), trust_remote_code=args.trust_remote_code, **options)
    except ValueError as error:  # an unknown architecture, code of its own, no such attention kernel
        raise UserError(f"{key} is {name!r}, which cannot be loaded: {one_line(error)}") from error
    except OSError as error:
        if folder is not None:
            raise
        raise UserError(not_on_hub(f"{key} is {name!r}", error)) from error


def ship_generate(folder: str | Path) -> None:
    """Put our decoding loop beside a saved model, so that stock `generate(custom_generate=folder)` erases too.

    It brings `backtrack.py` along, and imports it from beside itself.
    """
    target, source = Path(folder) / "custom_generate", constant.PACKAGE / "decoding" / "custom_generate" / "generate.py"
    target.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(constant.PACKAGE / "backtrack.py", target / "backtrack.py")
    text = source.read_text(encoding="utf-8").replace("from llmhalluc.backtrack import", "from .backtrack import")
    (target / "generate.py").write_text(text, encoding="utf-8")


def eos_ids(model: Any, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids that end a text: those of the model's generation config and the tokenizer's."""
    configured = getattr(model.generation_config, "eos_token_id", None)
    ids = {*(configured if isinstance(configured, list) else [configured]), tokenizer.eos_token_id}
    return sorted(i for i in ids if i is not None)


def dtype_of(args: ModelArguments, auto: Any) -> Any:
    """The torch dtype that `args.dtype` names, or what `auto` stands for."""
    return auto if args.dtype == "auto" else getattr(torch, args.dtype)


def not_on_hub(what: str, error: Exception) -> str:
    """The sentence for a name that is no folder and that the hub does not give."""
    return (
        f"{what}: there is no such folder, and the hub does not give it ({one_line(error)}); "
        "check the name and the network, or name a local folder"
    )
