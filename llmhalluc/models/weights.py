"""A model's weights: as a folder of safetensors, of the hub, a folder, a package or a GGUF file; their fingerprint."""

import functools
import hashlib
import json
import os
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from huggingface_hub import hf_hub_download
from transformers import AutoModelForCausalLM, AutoTokenizer

from llmhalluc.extras import constant
from llmhalluc.extras.errors import UserError, one_line
from llmhalluc.hparams.sections import ModelArguments
from llmhalluc.models.helper import dtype_of, local_folder, not_on_hub
from llmhalluc.models.transformers_patches import forget_quantization


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
        folder = _converted(args, gguf_path(args, folder))
    if folder is None:
        return args
    adapter = folder / "adapter_config.json"
    if adapter.is_file() and not (folder / "config.json").is_file():
        base = json.loads(adapter.read_text(encoding="utf-8"))["base_model_name_or_path"]
        return resolve(replace(args, name_or_path=base, adapter=str(folder)))
    _check_weights(args, folder)
    # Absolute: an adapter remembers the path of the weights below it.
    return replace(args, name_or_path=str(folder.absolute()), gguf_file=None)


def fingerprint(model: torch.nn.Module) -> str:
    """SHA-256 of a model's weights: names, shapes and bytes."""
    digest = hashlib.sha256()
    for name, weight in model.state_dict().items():
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode())
        digest.update(weight.detach().cpu().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def gguf_path(args: ModelArguments, folder: Path | None) -> Path:
    """Where the GGUF file lies; fetched when `args.name_or_path` is a hub name."""
    if folder is None:
        try:
            return Path(hf_hub_download(args.name_or_path, args.gguf_file, revision=args.revision))
        except (OSError, ValueError) as error:
            what = f"{args.key('gguf_file')} is {args.gguf_file!r} of {args.name_or_path!r}"
            raise UserError(not_on_hub(what, error)) from error
    path = folder / args.gguf_file
    if not path.is_file():
        there = ", ".join(sorted(p.name for p in folder.glob("*.gguf"))) or "no .gguf file"
        raise UserError(f"{args.key('gguf_file')} is {args.gguf_file!r}, but {folder} holds {there}: check the name")
    return path


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


def _converted(args: ModelArguments, gguf: Path) -> Path:
    """Return the cached folder that holds the GGUF file's weights as safetensors in `args.dtype`, and its tokenizer."""
    dtype, stat = dtype_of(args, auto=torch.float32), gguf.stat()
    digest = _digest(gguf, stat.st_size, stat.st_mtime_ns)
    folder = constant.CACHE / "gguf" / f"{gguf.stem}-{digest[:16]}-{str(dtype).removeprefix('torch.')}"
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    where = {"gguf_file": gguf.name, "local_files_only": True}
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".") as temporary:
        made = Path(temporary) / "model"
        try:
            model = AutoModelForCausalLM.from_pretrained(str(gguf.parent), dtype=dtype, **where)
        except ValueError as error:
            raise UserError(
                f"{args.key('gguf_file')} is {gguf}, which cannot be converted: {one_line(error)}"
            ) from error
        forget_quantization(model)
        model.save_pretrained(made)
        AutoTokenizer.from_pretrained(str(gguf.parent), **where).save_pretrained(made)
        try:
            os.rename(made, folder)
        except OSError:
            if not folder.is_dir():  # else another process was first
                raise
    return folder


@functools.cache
def _digest(path: Path, size: int, mtime_ns: int) -> str:
    """SHA-256 of a file's content, read once as long as size and time stay."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
