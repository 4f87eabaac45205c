"""Where weights and tokenizers lie: on the hub, in a folder, in an installed package, in a GGUF file."""

import hashlib
import importlib.util
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from transformers import PreTrainedTokenizerBase

from llmhalluc.extras import constant
from llmhalluc.extras.errors import UserError, one_line
from llmhalluc.hparams.sections import ModelArguments


def resolve(args: ModelArguments) -> ModelArguments:
    """The same arguments, in which package, adapter folder and GGUF file have become plain folders.

    A hub name stays. Raises UserError where nothing can be loaded from.
    """
    if args.name_or_path is None:
        raise UserError(
            f"{args.key('name_or_path')} is not set: give a hub name, a folder, package:NAME or "
            f"{args.key('from_config')}"
        )
    if args.adapter is not None:
        args = replace(args, adapter=str(Path(args.adapter).expanduser()))
    folder = local_folder(args.key("name_or_path"), args.name_or_path)
    if args.gguf_file is not None:
        from llmhalluc.models.gguf import converted

        folder = converted(gguf_path(args, folder), dtype_of(args, auto=torch.float32), args.key("gguf_file"))
    if folder is None:
        return args
    adapter = folder / "adapter_config.json"
    if adapter.is_file() and not (folder / "config.json").is_file():
        base = json.loads(adapter.read_text(encoding="utf-8"))["base_model_name_or_path"]
        return resolve(replace(args, name_or_path=base, adapter=str(folder)))
    _check_weights(args, folder)
    # Absolute: an adapter remembers the path of the weights below it.
    return replace(args, name_or_path=str(folder.absolute()), gguf_file=None)


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
        raise UserError(_not_on_hub(f"{key} is {name!r}", error)) from error


def ship_generate(folder: str | Path) -> None:
    """Put our decoding loop beside a saved model, so that stock `generate(custom_generate=folder)` erases too.

    It brings `backtrack.py` along, and imports it from beside itself.
    """
    target, source = Path(folder) / "custom_generate", constant.PACKAGE / "decoding" / "custom_generate" / "generate.py"
    target.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(constant.PACKAGE / "backtrack.py", target / "backtrack.py")
    text = source.read_text(encoding="utf-8").replace("from llmhalluc.backtrack import", "from .backtrack import")
    (target / "generate.py").write_text(text, encoding="utf-8")


def fingerprint(model: torch.nn.Module) -> str:
    """SHA-256 of a model's weights: names, shapes and bytes."""
    digest = hashlib.sha256()
    for name, weight in model.state_dict().items():
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode())
        digest.update(weight.detach().cpu().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def eos_ids(model: Any, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids that end a text: those of the model's generation config and the tokenizer's."""
    configured = getattr(model.generation_config, "eos_token_id", None)
    ids = {*(configured if isinstance(configured, list) else [configured]), tokenizer.eos_token_id}
    return sorted(i for i in ids if i is not None)


def dtype_of(args: ModelArguments, auto: Any) -> Any:
    """The torch dtype that `args.dtype` names, or what `auto` stands for."""
    return auto if args.dtype == "auto" else getattr(torch, args.dtype)


def _not_on_hub(what: str, error: Exception) -> str:
    """The sentence for a name that is no folder and that the hub does not give."""
    return (
        f"{what}: there is no such folder, and the hub does not give it ({one_line(error)}); "
        "check the name and the network, or name a local folder"
    )


def _check_weights(args: ModelArguments, folder: Path) -> None:
    """Raise UserError when `folder` holds no model in safetensors."""
    names = sorted(path.name for path in folder.iterdir())
    if "config.json" not in names:
        there = ", ".join(name for name in names if name.endswith(".gguf"))
        remedy = f"set {args.key('gguf_file')} too ({there})" if there else "name a model's folder"
        raise UserError(f"{args.key('name_or_path')} is {folder}, which holds no config.json: {remedy}")
    if not any(name.endswith(".safetensors") for name in names):
        pickles = ", ".join(name for name in names if name.endswith((".bin", ".pt", ".pth", ".ckpt"))) or "none"
        raise UserError(
            f"{args.key('name_or_path')} is {folder}, which holds no safetensors (other weights: {pickles}); "
            "pickles are never loaded: convert them with save_pretrained of transformers where you trust them"
        )


def gguf_path(args: ModelArguments, folder: Path | None) -> Path:
    """Where the GGUF file lies; fetched when `args.name_or_path` is a hub name."""
    if folder is None:
        try:
            return Path(hf_hub_download(args.name_or_path, args.gguf_file, revision=args.revision))
        except (OSError, ValueError) as error:
            what = f"{args.key('gguf_file')} is {args.gguf_file!r} of {args.name_or_path!r}"
            raise UserError(_not_on_hub(what, error)) from error
    path = folder / args.gguf_file
    if not path.is_file():
        there = ", ".join(sorted(p.name for p in folder.glob("*.gguf"))) or "no .gguf file"
        raise UserError(f"{args.key('gguf_file')} is {args.gguf_file!r}, but {folder} holds {there}: check the name")
    return path
