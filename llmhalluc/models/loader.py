"""Load a model and its tokenizer, with BACKTRACK and context in place."""

import os
from pathlib import Path
from typing import NamedTuple

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from llmhalluc.extras.errors import UserError, did_you_mean, one_line
from llmhalluc.hparams.sections import BacktrackArguments, ModelArguments
from llmhalluc.models.context import apply_context, check_architecture
from llmhalluc.models.embedding import set_start_values
from llmhalluc.models.helper import dtype_of, from_pretrained, local_folder
from llmhalluc.models.patcher import add_token, fit_embeddings, token_id
from llmhalluc.tasks import TASKS, TOKENIZERS

TOKENIZER_FILES = ("tokenizer_config.json", "tokenizer.json", "tokenizer.model", "vocab.json")


class Loaded(NamedTuple):
    """A model ready to train or decode; `backtrack_id` is None for a model that has no BACKTRACK."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    backtrack_id: int | None
    context: str


def load(args: ModelArguments, backtrack: BacktrackArguments | None, seed: int = 0) -> Loaded:
    """Model and tokenizer, with the context in the model's forward and in `model.config.backtrack`.

    With `backtrack` a model that has no BACKTRACK gets one: token, rows, start values. A saved one keeps its token and
    its trained rows and, with None, its context too. Raises UserError for invalid input, and where `backtrack.token` or
    the tokenizer says otherwise than a saved model.
    """
    tokenizer = load_tokenizer(args)
    model = load_model(args, tokenizer, seed, backtrack.context if backtrack else "soft")
    record = getattr(model.config, "backtrack", None)
    if record is None and backtrack is None:
        apply_context(model, "soft", None)  # packed batches need the hook all the same
        return Loaded(model, tokenizer, None, "soft")
    token, context = (backtrack.token, backtrack.context) if backtrack else (None, record["context"])
    if record is None:
        backtrack_id = add_token(tokenizer, token)
        fit_embeddings(model, tokenizer)
        set_start_values(model, tokenizer, backtrack_id, args, seed)
    else:
        key, recorded = args.key("tokenizer"), record["token"]
        backtrack_id = token_id(tokenizer, recorded, key)
        if token not in (None, recorded):
            raise UserError(f"backtrack.token is {token!r}, but the model has {recorded!r}: drop backtrack.token")
        if backtrack_id != record["token_id"]:
            raise UserError(
                f"the tokenizer gives {recorded!r} the id {backtrack_id}, the model was trained with "
                f"{record['token_id']}: use the tokenizer that was saved with it, drop {key}"
            )
    apply_context(model, context, backtrack_id)
    token = tokenizer.convert_ids_to_tokens(backtrack_id)
    model.config.backtrack = {"token": token, "token_id": backtrack_id, "context": context}
    return Loaded(model, tokenizer, backtrack_id, context)


def load_tokenizer(args: ModelArguments) -> PreTrainedTokenizerBase:
    """The tokenizer of `args.tokenizer`, else the adapter's, else the model's; without pad, EOS is pad."""
    if args.tokenizer in TOKENIZERS:
        return TASKS[TOKENIZERS[args.tokenizer]].tokenizer(args.tokenizer)
    if args.tokenizer is not None:
        key, name = args.key("tokenizer"), args.tokenizer
    elif args.from_config is not None:
        names = f"{', '.join(TOKENIZERS)}, a folder or a hub name"
        raise UserError(f"{args.key('from_config')} needs {args.key('tokenizer')}: {names}")
    else:
        from llmhalluc.models.weights import resolve

        args = resolve(args)
        has_own = args.adapter is not None and (Path(args.adapter) / TOKENIZER_FILES[0]).is_file()
        key, name = args.key("name_or_path"), args.adapter if has_own else args.name_or_path
    folder = local_folder(key, name)
    if folder is not None and not any((folder / file).is_file() for file in TOKENIZER_FILES):
        raise UserError(f"{key} is {name!r}, which holds no tokenizer: name one in {args.key('tokenizer')}")
    tokenizer = from_pretrained(AutoTokenizer, key, name, args)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_model(
    args: ModelArguments, tokenizer: PreTrainedTokenizerBase | None = None, seed: int = 0, context: str = "soft"
) -> PreTrainedModel:
    """The model on its device, in eval mode; `args.adapter` is merged in or, with lora or qlora, trains on.

    `seed` draws the weights of `from_config`; pass `tokenizer` where it is loaded already. A model that
    cannot show `context` is refused before its weights are read.
    """
    tokenizer = load_tokenizer(args) if tokenizer is None else tokenizer
    device = torch.device(args.device or _best_device())
    if args.from_config is not None:
        return _fresh_model(args, tokenizer, seed, context).to(device).eval()
    from llmhalluc.models.weights import resolve

    args = resolve(args)
    where = (args.key("name_or_path"), args.name_or_path, args)
    config = from_pretrained(AutoConfig, *where)
    check_architecture(MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None), config, context)
    options = {"config": config, "use_safetensors": True, "attn_implementation": args.attn_implementation}
    if args.adapter is None and args.finetuning != "qlora":
        model = from_pretrained(AutoModelForCausalLM, *where, dtype=dtype_of(args, auto="auto"), **options)
        return model.to(device).eval()
    from llmhalluc.models.peft import load_adapter, quantization, read_record

    record = read_record(args.adapter) if args.adapter else None
    if (record is not None and record.pop("in_4bit")) or args.finetuning == "qlora":
        wide = torch.float32 if device.type == "cpu" else torch.bfloat16
        options |= {"quantization_config": quantization(args, wide), "device_map": {"": device}}
    model = from_pretrained(AutoModelForCausalLM, *where, dtype=dtype_of(args, auto="auto"), **options)
    if args.adapter is not None:
        fit_embeddings(model, tokenizer)
        if record is not None:
            model.config.backtrack = record
        # An adapter of another make trains no BACKTRACK rows: it is merged into the weights, and ours comes on top.
        model = load_adapter(model, args, trainable=args.finetuning != "full" and record is not None)
    return model.to(device).eval()


def _fresh_model(args: ModelArguments, tokenizer: PreTrainedTokenizerBase, seed: int, context: str) -> PreTrainedModel:
    """A model made from `args.from_config`; the tokenizer says the vocabulary's size and the special ids."""
    if args.name_or_path is not None or args.adapter is not None:
        others = f"{args.key('name_or_path')} or {args.key('adapter')}"
        raise UserError(f"{args.key('from_config')} is set beside {others}: drop one")
    settings, whose = dict(args.from_config or {}), args.key("from_config")
    model_type = settings.pop("model_type", None)
    if model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise UserError(f"{whose} has the model_type {model_type!r}: give llama, qwen3, gpt2 or the like")
    default = AutoConfig.for_model(model_type)
    if unknown := [key for key in settings if not hasattr(default, key)]:
        meant = did_you_mean(unknown[0], default.to_dict())
        raise UserError(f"{whose} has the unknown key {unknown[0]!r}{meant}")
    own = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos")}
    options = {"dtype": dtype_of(args, auto=torch.float32), "attn_implementation": args.attn_implementation}
    try:
        config = AutoConfig.for_model(model_type, **{"vocab_size": len(tokenizer)} | own | settings)
        check_architecture(MODEL_FOR_CAUSAL_LM_MAPPING[type(config)], config, context)
        with torch.random.fork_rng(devices=[]):
            torch.random.default_generator.manual_seed(seed)
            return AutoModelForCausalLM.from_config(config, **options)
    except (ValueError, TypeError, StrictDataclassError) as error:
        raise UserError(f"{whose} makes no model: {one_line(error)}") from error


def _best_device() -> str:
    """This process's GPU, else Apple's, else the processor."""
    if torch.cuda.is_available():
        return f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
    return "mps" if torch.backends.mps.is_available() else "cpu"
