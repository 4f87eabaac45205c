"""Traces from a server that takes and gives token ids: vLLM and its like, or llama.cpp's; docs/engines.md compares.

The prompt of a request is what `backtrack.Tape` says that the newest row sees. It only ever loses its end when a run
of BACKTRACKs does, so a server that caches prefixes computes little twice.
"""

import http.client
import json
import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from llmhalluc.decoding.sequence import Sequence, Spec, Trace, check_prompts
from llmhalluc.extras.errors import UserError, one_line
from llmhalluc.hparams.sections import GenArguments

CHUNK = 16  # tokens asked of a server that cannot stop at an id: what follows a BACKTRACK is thrown away
BUSY = (429, 502, 503, 504)


@dataclass(frozen=True)
class Server:
    """Where decoding is asked for.

    api: "openai" (POST /v1/completions; vLLM) or "llamacpp" (POST /completion of llama-server). model: its name
    there, default: the first that it lists. logit_bias=False: for a server without it; nothing can be banned then,
    and a text in which a BACKTRACK comes where none may stand ends with "budget". A connection that breaks is tried
    `retries` times more; `timeout` in seconds.
    """

    url: str
    api: str = "openai"
    model: str | None = None
    logit_bias: bool = True
    concurrency: int = 16
    headers: dict[str, str] = field(default_factory=dict)
    timeout: float = 600.0
    retries: int = 3


def decode_remote(
    server: Server,
    prompts: list[list[int]],
    spec: Spec,
    *,
    keys: list[str] | None = None,
    limits: list[int] | None = None,
    on_finish: Callable[[int, Trace], None] | None = None,
) -> list[Trace]:
    """Complete every prompt at the server, `concurrency` at a time; arguments and traces as `engine.decode`.

    Raises ValueError for an empty prompt, UserError for whatever the server cannot do.
    """
    check_prompts(prompts, spec)
    _check(server, spec)
    connect = partial(_Connection, server)
    if server.api == "openai" and server.model is None:
        listed = connect().ask("GET", "/v1/models").get("data") or []
        server = replace(server, model=next((entry["id"] for entry in listed), None))
    keys = keys or [str(i) for i in range(len(prompts))]
    limits = limits or [spec.options.max_new_tokens] * len(prompts)
    sequences = [Sequence.begin(spec, i, prompts[i], keys[i], limits[i]) for i in range(len(prompts))]
    traces: list[Trace] = [None] * len(prompts)  # type: ignore[list-item]  # each is set when its sequence ends
    with ThreadPoolExecutor(max(1, min(server.concurrency, len(prompts)))) as pool:
        jobs = {pool.submit(_complete, spec, server, connect(), sequence): sequence.index for sequence in sequences}
        try:
            for job in as_completed(jobs):
                traces[jobs[job]] = job.result()
                if on_finish is not None:
                    on_finish(jobs[job], traces[jobs[job]])
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return traces


def _check(server: Server, spec: Spec) -> None:
    """Raise UserError for what no server does, and for what this one is not said to do."""
    options = spec.options
    if options.operator is not None or spec.operator is not None:
        name = options.operator or type(spec.operator).__name__
        raise UserError(f"gen.operator is {name}: operators need the model's logits, which no server gives")
    if server.api not in APIS:
        raise UserError(f"api is {server.api!r}, expected one of {', '.join(APIS)}")
    if urlsplit(server.url).scheme not in ("http", "https"):
        raise UserError(f"the server's address is {server.url!r}: give one that begins with http:// or https://")
    if options.ban_erased and spec.backtrack_id is not None and not server.logit_bias:
        raise UserError("gen.ban_erased is true, but without logit_bias a server bans nothing: set it to false")
    if options.compile:
        raise UserError("gen.compile is true, but a server compiles its own model or none: set it to false")
    if spec.layers or spec.sampler is not None:
        raise UserError("hidden states or a sampler are asked for, which need the model here: a server has it there")


class _Request(NamedTuple):
    """Up to `most` tokens after `ids`, none after one of `ends`; `bias`: id -> what is added to its logit."""

    ids: list[int]
    most: int
    bias: dict[int, float]
    ends: list[int]
    seed: int
    options: GenArguments
    model: str | None


def _complete(spec: Spec, server: Server, connection: "_Connection", sequence: Sequence) -> Trace:
    """Ask until the sequence ends; a request is never longer than its bans and its prompt hold."""
    (path, body_of, read), erase_id = APIS[server.api], spec.erase_id
    while not sequence.finish_reason:
        request, banned = _request(spec, server, sequence)
        reply = read(connection.ask("POST", path, body_of(request)))
        if reply is None or not reply[0]:
            raise UserError(
                f"the server at {server.url} gives no token ids: it must know return_token_ids or "
                "return_tokens_as_token_ids (vLLM), or be llama.cpp's (api llamacpp)"
            )
        sequence.forward_passes += len(reply[0])
        for token, logprob in list(zip(*reply, strict=True))[: request.most]:
            if token in banned and server.logit_bias:
                raise UserError(f"the server at {server.url} wrote token {token} against logit_bias: set it to false")
            if token in banned and token == spec.backtrack_id:
                sequence.finish_reason = "budget"
                break
            sequence.append(token, logprob, erase_id)
            sequence.end(spec)
            if sequence.finish_reason or token == erase_id:
                break
    connection.close()
    return sequence.trace(spec.tokenizer)


def _request(spec: Spec, server: Server, sequence: Sequence) -> tuple[_Request, set[int]]:
    """What is asked for next, and the ids that are banned there."""
    options, erase_id, place = spec.options, spec.erase_id, len(sequence.surviving)
    bias = sequence.tape.penalties_here(math.inf)
    if erase_id is None and spec.backtrack_id is not None:
        bias[spec.backtrack_id] = -math.inf
    banned = {token for token, value in bias.items() if value == -math.inf}
    if erase_id is not None and options.backtrack_bias:
        bias[erase_id] = bias.get(erase_id, 0.0) + options.backtrack_bias
    # What is banned here is not banned at the next place, and in `block` the next token hides the error.
    one = place in sequence.tape.penalties or (erase_id is not None and not place)
    one |= spec.context == "block" and sequence.completion_ids[-1:] == [erase_id]
    stops = erase_id is not None and erase_id not in banned
    most = 1 if one else sequence.limit - len(sequence.completion_ids)
    ends = sorted({*spec.eos_ids, erase_id} if stops else {*spec.eos_ids})
    request = _Request(
        sequence.tape.columns, min(most, CHUNK) if stops and server.api == "llamacpp" else most,
        bias if server.logit_bias else {}, ends, sequence.draws.getrandbits(31), options, server.model,
    )  # fmt: skip
    return request, banned


class _Connection:
    """One connection, kept open; a request that met a broken connection or a busy server is sent again."""

    def __init__(self, server: Server):
        self.server = server
        parts = urlsplit(server.url)
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self.connection = kind(parts.netloc, timeout=server.timeout)
        self.root = parts.path.rstrip("/").removesuffix("/v1")
        self.headers = {"Content-Type": "application/json", **server.headers}

    def ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the JSON of the server's reply. Raises UserError where there is none, or a refusal."""
        data, server = None if body is None else json.dumps(body), self.server
        for attempt in range(server.retries + 1):
            time.sleep(0.25 * (2**attempt - 1))
            try:
                self.connection.request(method, self.root + path, data, self.headers)
                reply = self.connection.getresponse()
                status, text = reply.status, reply.read().decode("utf-8", "replace")
            except TimeoutError as error:
                raise UserError(
                    f"the server at {server.url} gave no answer within {server.timeout:g} s: allow it more time, or "
                    "ask for fewer tokens"
                ) from error
            except (OSError, http.client.HTTPException) as error:
                self.close()
                problem = str(error) or type(error).__name__
                continue
            if status == 200 and text.lstrip().startswith("{"):
                return json.loads(text)
            problem = f"{status}: {one_line(text, 300)}"
            if status not in BUSY:
                raise UserError(f"the server at {server.url} refuses {path} ({problem})")
        tries = server.retries + 1
        raise UserError(f"no answer from the server at {server.url} in {tries} tries ({problem}): is it up?")

    def close(self) -> None:
        self.connection.close()


def _openai_body(request: _Request) -> dict[str, Any]:
    options = request.options
    body = {
        "model": request.model, "prompt": request.ids, "max_tokens": request.most, "seed": request.seed,
        "temperature": options.temperature, "top_k": options.top_k or -1, "top_p": _or(options.top_p, 1.0),
        "min_p": _or(options.min_p, 0.0), "repetition_penalty": _or(options.repetition_penalty, 1.0),
        "stop_token_ids": request.ends, "logprobs": 1, "return_token_ids": True, "return_tokens_as_token_ids": True,
    }  # fmt: skip
    if options.stop:
        body["stop"] = options.stop  # within one request everything survives, so this stops no text too early
    if request.bias:
        body["logit_bias"] = {str(token): max(-100.0, min(100.0, value)) for token, value in request.bias.items()}
    return body


def _openai_reply(reply: dict[str, Any]) -> tuple[list[int], list[float]] | None:
    choice = (reply.get("choices") or [{}])[0]
    logprobs = choice.get("logprobs") or {}
    ids, names = choice.get("token_ids"), logprobs.get("tokens") or []
    if ids is None and names and all(name.startswith("token_id:") for name in names):
        ids = [int(name.removeprefix("token_id:")) for name in names]
    return None if ids is None else (ids, logprobs.get("token_logprobs") or [math.nan] * len(ids))


def _llamacpp_body(request: _Request) -> dict[str, Any]:
    options = request.options
    return {
        "prompt": request.ids, "n_predict": request.most, "seed": request.seed, "temperature": options.temperature,
        "top_k": options.top_k or 0, "top_p": _or(options.top_p, 1.0), "min_p": _or(options.min_p, 0.0),
        "repeat_penalty": _or(options.repetition_penalty, 1.0), "repeat_last_n": len(request.ids) + request.most,
        "samplers": ["penalties", "top_k", "temperature", "top_p", "min_p"], "cache_prompt": True,
        "logit_bias": [[token, False if v == -math.inf else v] for token, v in request.bias.items()],
        "return_tokens": True, "n_probs": 1,
    }  # fmt: skip


def _llamacpp_reply(reply: dict[str, Any]) -> tuple[list[int], list[float]] | None:
    ids, entries = reply.get("tokens"), reply.get("completion_probabilities") or []
    if ids is None:
        return None
    # A token that ends inside a character of several bytes has no entry, and the rest are not said to be whose.
    return ids, [entry["logprob"] for entry in entries] if len(entries) == len(ids) else [math.nan] * len(ids)


def _or(value: Any, default: Any) -> Any:
    return default if value is None else value


# The path, the body of a request, and the ids and log-probabilities of a reply.
APIS: dict[str, tuple[str, Callable, Callable]] = {
    "openai": ("/v1/completions", _openai_body, _openai_reply),
    "llamacpp": ("/completion", _llamacpp_body, _llamacpp_reply),
}
