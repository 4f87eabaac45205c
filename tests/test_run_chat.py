"""The chat program: arguments, commands, piped answers, and erased text that is seen on a terminal."""

import io
import json
import logging
import os
import pty
import re
import select
import subprocess
import sys
import time

import pytest
from rich.console import Console

from llmhalluc.chat import terminal
from llmhalluc.chat.terminal import COMMANDS, Session, Writing, chat
from llmhalluc.decoding.generator import Generator
from llmhalluc.decoding.operators import make_operator
from llmhalluc.decoding.options import Settings, only_gguf, plain
from llmhalluc.decoding.phrases import BannedPhrases
from llmhalluc.decoding.sequence import Erasure, Trace
from llmhalluc.extras.constant import REPOSITORY
from llmhalluc.extras.errors import UserError
from tests.decoding.bpe import byte_tokenizer
from tests.tiny import tiny_model

RUN = [sys.executable, "-m", "llmhalluc.run_chat"]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TERM": "xterm-256color"}


@pytest.fixture(autouse=True)
def same_logging():
    """The program sets what is logged for its whole process, which is the other tests' too."""
    ours, hub = logging.getLogger("llmhalluc"), logging.getLogger("huggingface_hub")
    level, propagate = ours.level, hub.propagate
    yield
    ours.setLevel(level)
    hub.propagate = propagate


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["x", "--operator", "repitition"], "operator 'repitition' is unknown; did you mean repetition?"),
        (
            ["x", "--set", "temprature=1"],
            "without an operator there is no setting 'temprature'; did you mean temperature?",
        ),
        (
            ["x", "--operator", "repetition", "--set", "maxmum=1"],
            "repetition has no setting 'maxmum'; did you mean maximum",
        ),
        (["x", "--set", "top_k=0"], "top_k is 0"),
        (["x", "--set", "temperature=-1"], "temperature is -1"),
        (["x", "--set", "seed"], "seed cannot be read: expected name=value"),
        (["x", "--dtype", "float7"], "model.dtype is 'float7'"),
        (["x", "--set", "stop_sequences=[a"], "cannot be read as YAML"),
        (["x", "--llamacpp"], "--llamacpp takes a GGUF file"),
        (["x", "--rejections", "./nowhere/file.jsonl"], "--rejections is nowhere/file.jsonl, which cannot be written"),
        (["./nowhere"], "a folder that does not exist"),
        (["./nowhere.gguf"], "a GGUF file that does not exist"),
        (["x", "--operator", "repetition", "--set", "maximum=many"], "maximum of operator repetition is 'many'"),
    ],
)
def test_bad_arguments_are_one_sentence(words, sentence):
    with pytest.raises(UserError, match=sentence) as told:
        chat(words)
    assert len(told.value.sentences) == 1


@pytest.mark.parametrize(
    ("words", "code"), [(["--help"], 0), ([], 2), (["x", "--operator", "y", "--set", "a=1"], 2), (["./x"], 2)]
)
def test_help_and_bad_arguments_cost_no_torch(words, code):
    script = (
        "import sys; from llmhalluc.run_chat import main\n"
        "try: code = main()\nexcept SystemExit as left: code = left.code\n"
        "assert not {'torch', 'transformers'} & {*sys.modules}; sys.exit(code)"
    )
    ran = subprocess.run([sys.executable, "-c", script, *words], cwd=REPOSITORY, capture_output=True, text=True)
    assert ran.returncode == code, ran.stderr
    assert "Traceback" not in ran.stderr


def test_values_are_read_as_yaml_and_numbers_as_numbers():
    assert [plain(text) for text in ("3", "-2", "1e-3", "0.5", "true", "null", "abc", "[a, b]")] == [
        3, -2, 0.001, 0.5, True, None, "abc", ["a", "b"],
    ]  # fmt: skip


def test_a_place_with_one_gguf_file_and_nothing_else_means_that_file(tmp_path, monkeypatch):
    package = tmp_path / "some_weights"
    package.mkdir()
    (package / "__init__.py").write_text("raise SystemExit('a package is found, not imported')")
    (package / "a.gguf").touch()
    monkeypatch.syspath_prepend(tmp_path)
    assert only_gguf("package:some_weights") == only_gguf(str(package)) == str(package / "a.gguf")
    assert only_gguf("package:none_such") == "package:none_such" and only_gguf("a/b") == "a/b"
    (package / "b.gguf").touch()
    assert only_gguf(str(package)) == str(package)
    (package / "b.gguf").rename(package / "config.json")
    assert only_gguf(str(package)) == str(package)


def trace(text="ho", **more):
    values = dict(prompt_ids=[1], completion_ids=[5, 6, 7, 8], surviving_ids=[5, 6], erasures=2, finish_reason="eos",
                  text=text, events=[Erasure(3, 2, "repetition")])  # fmt: skip
    return Trace(**values | more)


class FakePipeline:
    """Answers every question with the same events; keeps what it was asked."""

    def __init__(self, events):
        self.events, self.asked, self.generator = events, [], Generator(tiny_model("llama"), byte_tokenizer())

    def stream_turn(self, question, history, **keywords):
        self.asked.append((question, list(history), keywords))
        return iter([*self.events, ("end", trace())])

    def extended(self, history, question, answer):
        return [*history, {"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def test_commands_change_settings_and_tell_them():
    session = Session(FakePipeline([]), Settings())
    out = session.command("/set temperature=0 max_new_tokens=5")
    assert out == "operator none, temperature=0, max_new_tokens=5"
    assert session.command("/operator repetition") == "operator repetition, temperature=0, max_new_tokens=5"
    assert session.command("/set maximum=2").startswith("operator repetition, maximum=2")
    assert session.settings.keywords(make_operator)["operator"].maximum == 2
    session.answer(["hi\n", "\n", "so?\n"])
    assert [(question, len(history)) for question, history, _ in session.pipeline.asked] == [("hi", 0), ("so?", 2)]
    assert session.pipeline.asked[0][2]["temperature"] == 0
    stats = session.command("/stats")
    assert stats.startswith("2 turns: 8 tokens emitted, 4 kept, 4 erased in 2 erasures, ")
    assert session.command("/reset") and session.history == []
    session.command("/operator banned_phrases 'phrases=[to delve, tapestry]' penalty=-3")
    assert isinstance(session.settings.keywords(session.pipeline.generator.operator)["operator"], BannedPhrases)
    assert session.command("/operator none").startswith("operator none")
    assert session.command("/help").count("\n") == len(COMMANDS) - 1
    assert session.command("/quit") is None
    before = session.settings
    for line, sentence in [
        ("/sett x=1", "/sett is no command; did you mean /set?"),
        ("/operator entropy", "is unknown; valid: never, probability_threshold, entropy_threshold, "),
        ("/operator banned_phrases", "phrases and patterns are both empty"),
        ("/operator replace", "find is '', expected a text"),
        ("/operator replace find=a", "write is None, expected a text"),
        ("/operator repetition maxmum=1", "repetition has no setting 'maxmum'"),
        ("/set 'top_k", "cannot be read: no closing quotation"),
        ("/set top_k=0", "top_k is 0"),
        ("/set maximum=1", "without an operator there is no setting 'maximum'"),
    ]:
        with pytest.raises(UserError, match=sentence):
            session.command(line)
    assert session.settings == before


def test_lines_after_quit_are_not_answered(capsys):
    session = Session(FakePipeline([("add", "ho")]), Settings())
    session.answer(["hi", "/set seed=1", "/quit", "more"])
    assert capsys.readouterr().out == "ho\noperator none, seed=1\n"


def test_what_answers_took_back_is_appended_to_a_file(tmp_path):
    path = tmp_path / "rejections.jsonl"
    for _ in range(2):
        Session(FakePipeline([("add", "ho")]), Settings(), path).answer(["hi"])
    record = {"prompt_ids": [1, 5], "rejected": 6, "chosen": [8], "source": "repetition"}
    assert [json.loads(line) for line in path.read_text().splitlines()] == [record, record]


def test_erased_text_turns_red_is_struck_and_vanishes(monkeypatch):
    now = 0.0
    monkeypatch.setattr(terminal.time, "monotonic", lambda: now)
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, color_system="standard", width=40, height=5)
    writing = Writing(console)

    def screen():
        out.seek(out.truncate(0) or 0)
        console.print(writing)
        return out.getvalue().rstrip()

    writing.change("add", "one two three")
    writing.change("erase", 5)
    assert screen() == "one two \x1b[9;31mthree\x1b[0m"
    writing.change("add", "four")
    assert screen() == "one two \x1b[9;31mthree\x1b[0mfour"
    writing.change("erase", 8)  # reaches behind the first erasure
    assert re.sub(r"\x1b\[[\d;]*m", "|", screen()) == "one |three||two four|"
    writing.change("erase", 1)  # a run of erasures is one text, from front to end
    assert re.sub(r"\x1b\[[\d;]*m", "|", screen()) == "one|three|| two four|"
    writing.change("add", " 2")
    now = 2 * terminal.GHOST_SECONDS
    assert screen() == "one 2" and not writing.ghosts()
    writing.change("add", "\n".join("abcdefgh"))
    assert screen().split() == ["f", "g", "h"]  # the end of what is higher than the terminal


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny model that writes bytes and likes its BACKTRACK a little."""
    path, tokenizer = tmp_path_factory.mktemp("model"), byte_tokenizer()
    model = tiny_model("llama", vocab_size=len(tokenizer))
    model.config.backtrack = {"token": "<|BACKTRACK|>", "token_id": 3, "context": "rewind"}
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return str(path)


def test_piped_it_prints_final_answers_alone(folder):
    settings = ["--set", "max_new_tokens=20", "seed=1", "backtrack_bias=3"]
    ran = subprocess.run([*RUN, folder, "--device", "cpu", *settings], input=b"the cat\n/reset\nthe cat\n",
                         cwd=REPOSITORY, capture_output=True, env=ENVIRONMENT, timeout=100)  # fmt: skip
    assert ran.returncode == 0 and ran.stderr == b"", ran.stderr.decode()
    out = ran.stdout.decode()
    answer, other = out.split("the conversation is forgotten\n")
    assert answer == other and answer.strip()
    assert "\x1b" not in out and "tokens" not in out


def test_bytes_that_are_no_text_and_a_reader_that_has_enough_are_no_mistake(folder):
    given = [*RUN, folder, "--device", "cpu", "--set", "max_new_tokens=20", "seed=1"]
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen(given, cwd=REPOSITORY, env=ENVIRONMENT, **pipes) as process:
        process.stdin.write(b"\xff\xfe the cat\n" * 50)
        process.stdin.close()
        assert process.stdout.readline()
        process.stdout.close()
        assert (process.wait(timeout=100), process.stderr.read()) == (0, b"")


def test_verbose_tells_the_model_and_the_erasures(folder):
    ran = subprocess.run([*RUN, folder, "--device", "cpu", "-v", "--set", "seed=1", "backtrack_bias=3"], input=b"the\n",
                         cwd=REPOSITORY, capture_output=True, env=ENVIRONMENT, timeout=100)  # fmt: skip
    told = ran.stderr.decode()
    assert ran.returncode == 0 and "llama, with BACKTRACK) on cpu in torch.float64, context rewind" in told
    assert "BACKTRACK erased 1 at token" in told


def test_on_a_terminal_erasures_are_seen_and_counted(folder):
    given = [*RUN, folder, "--device", "cpu", "--set", "seed=1", "backtrack_bias=3", "max_new_tokens=60"]
    screen, its = Screen.open()
    process = subprocess.Popen(given, cwd=REPOSITORY, env=ENVIRONMENT, stdin=its, stdout=its, stderr=its)
    os.close(its)
    try:
        screen.until(b"> ")
        screen.type(b"the cat\n")
        screen.until(b"\x1b[9;31m")  # struck, red
        screen.type(b"/nonsense\n")  # typed ahead: neither echoed into the text nor lost
        answer = screen.until(b"tokens/s")
        screen.until(b"/nonsense is no command; valid: ")
        screen.type(b"/quit\n")
        assert process.wait(timeout=60) == 0
    finally:
        process.kill()
        process.wait()
    os.close(screen.descriptor)
    assert b"nonsense" not in answer
    (counts,) = re.findall(rb"(\d+) tokens emitted, (\d+) kept, (\d+) erased in (\d+) erasures", answer)
    emitted, kept, erased, erasures = map(int, counts)
    assert emitted == kept + 2 * erased and erased == erasures > 0  # a token and its BACKTRACK each


class Screen:
    """What a terminal shows, read piece by piece."""

    def __init__(self, descriptor: int):
        self.descriptor, self.unread = descriptor, b""

    @classmethod
    def open(cls) -> tuple["Screen", int]:
        """A screen and the descriptor that a program on it is given."""
        ours, theirs = pty.openpty()
        return cls(ours), theirs

    def type(self, keys: bytes) -> None:
        os.write(self.descriptor, keys)

    def until(self, mark: bytes) -> bytes:
        """What is shown up to and including `mark`."""
        deadline = time.monotonic() + 90
        while mark not in self.unread:
            waiting = max(0.0, deadline - time.monotonic())
            assert select.select([self.descriptor], [], [], waiting)[0], self.unread
            self.unread += os.read(self.descriptor, 4096)
        before, _, self.unread = self.unread.partition(mark)
        return before + mark
