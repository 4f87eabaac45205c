"""Text in, text out, with erasures: what most callers of the decoding library need."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from llmhalluc.backtrack import CONTEXTS
from llmhalluc.decoding.backend import TorchBackend, backend_of
from llmhalluc.decoding.engine import decode, stream
from llmhalluc.decoding.operators import Operator, make_operator
from llmhalluc.decoding.options import generation_options, model_section
from llmhalluc.decoding.phrases import BannedPhrases, Replace
from llmhalluc.decoding.sequence import Spec, Trace
from llmhalluc.decoding.streaming import TextEvent, TextStream
from llmhalluc.extras.errors import UserError
from llmhalluc.hparams.mapping import key_problem, keys_of
from llmhalluc.hparams.parser import build
from llmhalluc.hparams.sections import EvalArguments, GenArguments
from llmhalluc.models.context import check_context
from llmhalluc.models.loader import load

TEXT_OPERATORS: dict[str, Callable[..., Operator]] = {"banned_phrases": BannedPhrases, "replace": Replace}
_BATCH_SIZE = keys_of(EvalArguments)["batch_size"]
Prompt = str | list[int]  # text, or token ids that are taken as they are


class Generator:
    """A model that completes text and takes back what it, or an operator, finds wrong.

    Our models erase by their BACKTRACK token, in the context they were trained with, as their config says; any other
    causal model, or backend of one, erases where an operator asks for it.
    """

    def __init__(self, model: Any, tokenizer: PreTrainedTokenizerBase, context: str | None = None):
        self.model, self.tokenizer, self.backend = model, tokenizer, backend_of(model)
        record = self.backend.backtrack
        self.backtrack_id: int | None = record["token_id"] if record else None
        self.context: str = context or (record["context"] if record else "soft")
        if self.context not in CONTEXTS:
            raise UserError(f"context is {context!r}, expected one of {', '.join(CONTEXTS)}")
        if isinstance(self.backend, TorchBackend):
            check_context(self.backend.model, self.context)
        ends = {*self.backend.eos_ids, tokenizer.eos_token_id}
        self.eos_ids = sorted(i for i in ends if i is not None)

    @classmethod
    def from_pretrained(cls, name: str, context: str | None = None, **model_kwargs: Any) -> "Generator":
        """Load a hub name, a folder, package:NAME or a GGUF file; `model_kwargs` are keys of the `model` section.

        Among them dtype, device, attn_implementation, adapter, gguf_file, revision and trust_remote_code.
        """
        if "dtype" in model_kwargs:  # torch.bfloat16 is as good as its name
            model_kwargs["dtype"] = str(model_kwargs["dtype"]).removeprefix("torch.")
        args = build({"model": model_section(name, **model_kwargs)}, ("model",)).model
        loaded = load(args, None)
        return cls(loaded.model, loaded.tokenizer, context)

    def generate(
        self,
        prompt_or_prompts: Prompt | Sequence[Prompt],
        operator: Operator | str | None = None,
        max_new_tokens: int = 100,
        backtrack_every_n: int = 1,
        temperature: float = 1.0,
        top_k: int | None = 50,
        top_p: float | None = None,
        stop_sequences: str | list[str] | None = None,
        seed: int | None = None,
        stream: bool = False,
        **more: Any,
    ) -> str | list[str] | Iterator[TextEvent]:
        """Complete one prompt (a string comes back) or several (a list does).

        operator: an operator, or the name of one with its defaults; asked after every `backtrack_every_n` tokens.
        temperature 0 is greedy; seed None draws anew each time. With `stream` one prompt's ("add", text) and ("erase",
        number of characters) events come as they happen. `more`: further keys of the `gen` section, and batch_size.
        Raises UserError, a sentence for each mistake, before anything is computed.
        """
        given = dict(
            operator=operator, max_new_tokens=max_new_tokens, backtrack_every_n=backtrack_every_n,
            temperature=temperature, top_k=top_k, top_p=top_p, stop_sequences=stop_sequences, seed=seed, **more,
        )  # fmt: skip
        if stream:
            events = self.stream_events(prompt_or_prompts, **given)
            return ((kind, value) for kind, value in events if kind != "end")
        traces = self.generate_traces(prompt_or_prompts, **given)
        return traces.text if isinstance(traces, Trace) else [trace.text for trace in traces]

    def generate_traces(
        self, prompt_or_prompts: Prompt | Sequence[Prompt], operator: Operator | str | None = None, **given: Any
    ) -> Trace | list[Trace]:
        """Generate as `generate` does, and return all that is known of each completion."""
        one = _is_prompt(prompt_or_prompts) or not isinstance(prompt_or_prompts, list | tuple)
        batch_size = given.pop("batch_size", 64)
        if problem := key_problem("batch_size", batch_size, _BATCH_SIZE):
            raise UserError(problem)
        prompts, options = self._prepare([prompt_or_prompts] if one else prompt_or_prompts, given)
        traces = decode(self.backend, prompts, self._spec(options, operator), batch_size=batch_size)
        return traces[0] if one else traces

    def stream_events(
        self, prompt: Prompt | Sequence[Prompt], operator: Operator | str | None = None, **given: Any
    ) -> Iterator[tuple[str, Any]]:
        """Return the events of `generate(stream=True)`, and ("end", Trace) after them."""
        if not _is_prompt(prompt):
            raise UserError("stream takes one prompt, a string, and got several: call it for each")
        (ids,), options = self._prepare([prompt], given)
        return self._events(ids, self._spec(options, operator))

    def operator(self, name: str, **parameters: Any) -> Operator:
        """Return the operator of this name; BannedPhrases and Replace get the tokenizer. Raises UserError as they."""
        make = TEXT_OPERATORS.get(name)
        return make_operator(name, **parameters) if make is None else make(self.tokenizer, **parameters)

    def encode(self, text: str) -> list[int]:
        """Return the ids of a prompt: with BOS where the tokenizer wants one, never with two, never with EOS."""
        has_bos = bool(self.tokenizer.bos_token) and text.startswith(self.tokenizer.bos_token)
        ids = self.tokenizer(text, add_special_tokens=not has_bos).input_ids
        if len(ids) > 1 and ids[-1] == self.tokenizer.eos_token_id and not text.endswith(self.tokenizer.eos_token):
            ids.pop()  # some tokenizers end every text with EOS
        return ids

    def _spec(self, options: GenArguments, operator: Operator | str | None) -> Spec:
        """Raises UserError for an operator of an unknown name, or a class in place of an instance."""
        if isinstance(operator, str):
            operator = self.operator(operator)
        elif isinstance(operator, type):
            raise UserError(f"operator is the class {operator.__name__}: pass an instance, {operator.__name__}(...)")
        elif operator is not None and not callable(operator):
            raise UserError(f"operator is {operator!r}, expected a name or a function of a Step")
        return Spec(options, self.eos_ids, self.backtrack_id, self.context, self.tokenizer, operator)

    def _prepare(self, prompts: Sequence[Any], given: dict[str, Any]) -> tuple[list[list[int]], GenArguments]:
        options = generation_options(given)
        ids, problems = [], []
        window = self.backend.window
        for i, prompt in enumerate(prompts):
            what = f"prompt {i}" if len(prompts) > 1 else "the prompt"
            if not _is_prompt(prompt) and prompt != []:
                raise UserError(f"{what} is {prompt!r}, expected a string or a list of token ids")
            ids.append(self.encode(prompt) if prompt and isinstance(prompt, str) else list(prompt))
            n = len(ids[-1])
            if not n:
                problems.append(f"{what} is empty: give it at least one token")
            elif window is not None and n + options.max_new_tokens > window:
                remedy = "shorten it" if n >= window else f"shorten it, or lower max_new_tokens to {window - n}"
                more = "" if n >= window else f", with max_new_tokens {options.max_new_tokens}"
                problems.append(f"{what} has {n} tokens{more}, more than the model's window of {window}: {remedy}")
        if problems:
            raise UserError(*problems)
        return ids, options

    def _events(self, ids: list[int], spec: Spec) -> Iterator[tuple[str, Any]]:
        text = TextStream(self.tokenizer, spec.options.stop)
        for _, kind, value in stream(self.backend, [ids], spec):
            if kind == "end":
                yield from text.finish(value.text)
                yield "end", value
            else:
                yield from text.add(value) if kind == "add" else text.erase(value)


def _is_prompt(given: Any) -> bool:
    """Whether this is one prompt: text, or a list of ids; an empty list is none."""
    return isinstance(given, str) or (isinstance(given, list) and {*map(type, given)} == {int})
