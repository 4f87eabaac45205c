"""A GGUF file as a folder of safetensors, converted once and cached."""

import functools
import hashlib
import os
import tempfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from llmhalluc.extras import constant
from llmhalluc.extras.errors import UserError, one_line
from llmhalluc.models.transformers_patches import forget_quantization


def converted(gguf: Path, dtype: torch.dtype, key: str) -> Path:
    """Return the cached folder that holds the GGUF file's weights as safetensors of `dtype`, and its tokenizer.

    key: what names the file in the user's YAML. Raises UserError for an architecture that cannot be converted.
    """
    stat = gguf.stat()
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
            raise UserError(f"{key} is {gguf}, which cannot be converted: {one_line(error)}") from error
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
