"""The chat program: text that is written and taken back before your eyes; imports no torch until a model is loaded."""

import argparse
import contextlib
import json
import logging
import shlex
import sys
import termios
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

from llmhalluc.backtrack import CONTEXTS
from llmhalluc.decoding.options import NAMES, TEXT_OPERATORS, Settings, model_section, operator_parameters
from llmhalluc.extras.errors import UserError, did_you_mean
from llmhalluc.hparams.parser import build

COMMANDS = {
    "/operator": "NAME [name=value ...]: who erases beside the model's own BACKTRACK; none for nobody",
    "/set": "name=value ...: generation settings and parameters of the operator",
    "/reset": "forget the conversation",
    "/stats": "what was emitted, kept and erased so far, and the settings",
    "/help": "these lines",
    "/quit": "leave (so does Ctrl-D); Ctrl-C stops an answer",
}
USAGE = """%(prog)s MODEL [--operator NAME] [--set name=value ...] [--device DEVICE] [--dtype DTYPE]
                        [--llamacpp] [--context CONTEXT] [--system TEXT] [--raw] [--rejections FILE] [-v]"""
GHOST_SECONDS = 0.7  # how long erased text stays to be seen
logger = logging.getLogger(__name__)


def parse(argv: list[str]) -> argparse.Namespace:
    """The command line. Prints and exits for --help and for what argparse refuses."""
    operators = ", ".join(f"{name} ({', '.join(own)})" if own else name for name, own in operator_parameters().items())
    parser = argparse.ArgumentParser(
        "backtracking-llm",
        usage=USAGE,  # argparse would put MODEL behind --set, which takes all that follows
        description="Chat with a model that takes back what it finds wrong. Piped, it answers each line of its input.",
        epilog=f"Operators with their parameters: {operators}. Settings: {', '.join(NAMES)}. "
        f"In the chat: {', '.join(COMMANDS)}.",
    )
    parser.add_argument("model", metavar="MODEL", help="hub name, folder, package:NAME or GGUF file")
    parser.add_argument("--operator", metavar="NAME", help="a rule that erases too")
    parser.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="name=value", help="settings, operator's parameters"
    )
    parser.add_argument("--device", help="cpu, cuda, cuda:0, mps; default: the best one there is")
    parser.add_argument("--dtype", help="auto, float32, bfloat16 or float16 (default: auto)")
    parser.add_argument("--llamacpp", action="store_true", help="run a GGUF file on llama.cpp, quantised as it is")
    parser.add_argument("--context", choices=CONTEXTS, help="what the model sees of erased text (default: as trained)")
    parser.add_argument("--system", metavar="TEXT", help="system message")
    parser.add_argument("--raw", action="store_true", help="no chat template: the line you type is the prompt")
    parser.add_argument("--rejections", metavar="FILE", help="append what answers took back, as data for stage ftpo")
    parser.add_argument("-v", "--verbose", action="store_true", help="report on loading and on every erasure")
    return parser.parse_args(argv)


def chat(argv: list[str]) -> None:
    """The whole program. Raises UserError for bad arguments before anything heavy is imported."""
    args, settings = parse(argv), Settings()
    settings.select_operator(args.operator)
    settings.set(args.set)
    given = {"device": args.device, "dtype": args.dtype}
    section = model_section(args.model, **{key: value for key, value in given.items() if value})
    build({"model": section}, ("model",))
    if args.llamacpp and (given["device"] or given["dtype"] or "gguf_file" not in section):
        raise UserError("--llamacpp takes a GGUF file as it is: give its path, and neither --device nor --dtype")
    rejections = args.rejections and Path(args.rejections).expanduser()
    if rejections:
        try:
            rejections.open("a").close()
        except OSError as error:
            raise UserError(f"--rejections is {rejections}, which cannot be written: {error.strerror}") from error
    logging.basicConfig(level=logging.ERROR, format="%(message)s")
    logging.getLogger("llmhalluc").setLevel(logging.INFO if args.verbose else logging.ERROR)
    logging.getLogger("huggingface_hub").propagate = False  # it prints by itself, and every line would come twice
    if args.operator is not None and args.operator not in TEXT_OPERATORS:
        from llmhalluc.decoding.operators import make_operator

        settings.keywords(make_operator)  # what it refuses is told before the model is loaded

    from transformers.utils.logging import disable_progress_bar, set_verbosity_error

    from llmhalluc.chat.pipeline import ChatPipeline
    from llmhalluc.decoding.generator import Generator

    if not args.verbose:
        set_verbosity_error()
        disable_progress_bar()
    begun = time.monotonic()
    if args.llamacpp:
        from llmhalluc.decoding.llamacpp import LlamaCppGenerator

        generator = LlamaCppGenerator.from_pretrained(args.model, context=args.context)
    else:
        generator = Generator.from_pretrained(section.pop("name_or_path"), context=args.context, **section)
    about = "with BACKTRACK" if generator.backtrack_id is not None else "without BACKTRACK"
    logger.info(
        "%s (%s, %s) on %s in %s, context %s, %.1f s", args.model, generator.backend.name, about,
        generator.backend.device, generator.backend.dtype, generator.context, time.monotonic() - begun,
    )  # fmt: skip
    sys.stdin.reconfigure(errors="replace")
    session = Session(ChatPipeline(generator, args.system, args.raw), settings, rejections)
    if sys.stdin.isatty() and sys.stdout.isatty():
        session.talk(Console(highlight=False, markup=False, emoji=False))
    else:
        session.answer(sys.stdin)


@dataclass
class Session:
    """A conversation with its settings and its counts; what its answers take back goes to the file `rejections`."""

    pipeline: Any
    settings: Settings
    rejections: Path | None = None
    history: list[dict[str, str]] = field(default_factory=list)
    totals: dict[str, float] = field(
        default_factory=lambda: dict.fromkeys(("turns", "emitted", "kept", "erased", "erasures", "cut", "seconds"), 0)
    )

    def answer(self, lines: Iterator[str]) -> None:
        """Print the final answer to every line, and the words of commands; nothing else."""
        for line in map(str.strip, lines):
            if line.startswith("/"):
                if (reply := self.command(line)) is None:
                    return
                print(reply, flush=True)
            elif line:
                (_, trace) = [*self.turn(line)][-1]
                print(self.take(line, trace), flush=True)
                tell_erasures(trace)

    def talk(self, console: Console) -> None:
        """Read, write and take back until /quit or the end of the input."""
        import readline  # noqa: F401  # gives input() a line to edit and a history

        console.print(f"{self.settings}; /help tells the commands", style="dim")
        while True:
            try:
                line = input("> ").strip()
            except (EOFError, KeyboardInterrupt):
                console.print()
                return
            try:
                if line.startswith("/"):
                    if (reply := self.command(line)) is None:
                        return
                    console.print(reply, style="dim")
                elif line:
                    self.show(console, line)
            except UserError as error:
                for sentence in error.sentences:
                    console.print(f"error: {sentence}", style="red")

    def command(self, line: str) -> str | None:
        """Do it and return what to print; None is /quit. Raises UserError for an unknown one."""
        try:
            name, *words = shlex.split(line)
        except ValueError as error:
            raise UserError(f"{line} cannot be read: {str(error).lower()}") from None
        match name:
            case "/quit":
                return None
            case "/help":
                return "\n".join(f"{command:<10} {text}" for command, text in COMMANDS.items())
            case "/reset":
                self.history = []
                return "the conversation is forgotten"
            case "/stats":
                rate = self.totals["emitted"] / max(self.totals["seconds"], 1e-9)
                turns = f"{self.totals['turns']} turn{'' if self.totals['turns'] == 1 else 's'}"
                return f"{turns}: {_counts(self.totals, rate)}\n{self.settings}"
            case "/operator" | "/set":
                changed = Settings(self.settings.operator, self.settings.parameters, self.settings.generation)
                if name == "/operator" and words:
                    first = words.pop(0)
                    changed.select_operator(None if first == "none" else first)
                changed.set(words)
                changed.keywords(self.pipeline.generator.operator)  # refuses what it cannot use
                self.settings = changed
                return str(self.settings)
        raise UserError(f"{name} is no command{did_you_mean(name, COMMANDS)}")

    def turn(self, question: str) -> Iterator[tuple[str, Any]]:
        """The events of an answer, and ("end", Trace); `seconds` says then how long it took."""
        begun = time.monotonic()
        keywords = self.settings.keywords(self.pipeline.generator.operator)
        for event in self.pipeline.stream_turn(question, self.history, **keywords):
            self.seconds = time.monotonic() - begun
            yield event

    def take(self, question: str, trace: Any) -> str:
        """Add a finished turn to the history and the counts; the answer."""
        answer = trace.text.strip()
        self.history = self.pipeline.extended(self.history, question, answer)
        self.last = dict(
            turns=1, emitted=len(trace.completion_ids), kept=len(trace.surviving_ids), erased=trace.erasures,
            erasures=len(trace.events), cut=int(trace.finish_reason == "length"), seconds=self.seconds,
        )  # fmt: skip
        self.totals = {name: self.totals[name] + value for name, value in self.last.items()}
        if self.rejections:
            self._keep_rejections(self.rejections, trace)
        return answer

    def _keep_rejections(self, path: Path, trace: Any) -> None:
        """Append what an answer took back, a record a line."""
        from llmhalluc.data.rejections import rejections_of  # torch is loaded with the model

        generator = self.pipeline.generator
        context = self.settings.generation.get("context") or generator.context
        with path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(one) + "\n" for one in rejections_of(trace, generator.backtrack_id, context))

    def show(self, console: Console, question: str) -> None:
        """One turn, live; Ctrl-C ends it and leaves the conversation as it was."""
        writing = Writing(console)
        try:
            with no_echo(), Live(writing, console=console, refresh_per_second=16, transient=True) as live:
                for kind, value in self.turn(question):
                    if kind == "end":
                        trace = value
                    else:
                        writing.change(kind, value)
                while writing.ghosts():
                    time.sleep(0.05)
                live.refresh()
        except KeyboardInterrupt:
            console.print(f"{writing.text}\nstopped", style="dim")
            return
        console.print(self.take(question, trace))
        rate = self.last["emitted"] / max(self.last["seconds"], 1e-9)
        console.print(_counts(self.last, rate), style="dim")
        tell_erasures(trace)


class Writing:
    """Text on the screen: what stands, and what was erased a moment ago, red and struck, where it stood."""

    def __init__(self, console: Console):
        self.console, self.text = console, ""
        self._ghosts: list[tuple[int, str, float]] = []  # place, erased text, when it vanishes
        self._run = 0.0  # when the ghost of the erasures that go on right now vanishes

    def change(self, kind: str, value: str | int) -> None:
        """Apply an event of a stream."""
        if kind == "add":
            self.text += str(value)
            self._run = 0.0
            return
        place = len(self.text) - int(value)
        erased, self.text = self.text[place:], self.text[:place]
        ghosts = [(min(at, place), text, until) for at, text, until in self.ghosts()]
        if ghosts and ghosts[-1][2] == self._run:  # one erasure after the other: the run grows to the left
            erased += ghosts.pop()[1]
        self._run = time.monotonic() + GHOST_SECONDS
        self._ghosts = [*ghosts, (place, erased, self._run)]

    def ghosts(self) -> list[tuple[int, str, float]]:
        """Those that have not vanished yet, by place."""
        now = time.monotonic()
        return sorted((ghost for ghost in self._ghosts if ghost[2] > now), key=lambda ghost: ghost[0])

    def __rich__(self) -> Text:
        shown, done = Text(), 0
        for place, erased, _ in self.ghosts():
            shown.append(self.text[done:place]).append(erased, style="red strike")
            done = place
        shown.append(self.text[done:])
        # Live cannot scroll: of a text higher than the terminal its end is shown.
        lines = shown.wrap(self.console, self.console.width)[-max(1, self.console.height - 2) :]
        return Text("\n").join(lines)


def tell_erasures(trace: Any) -> None:
    """With -v: who erased how much, and when."""
    for event in trace.events:
        logger.info("%s erased %d at token %d", event.source, event.n, event.at)


@contextlib.contextmanager
def no_echo() -> Iterator[None]:
    """What is typed meanwhile waits for the next prompt, instead of standing in the middle of the text."""
    before = termios.tcgetattr(sys.stdin)
    quiet = [*before[:3], before[3] & ~termios.ECHO, *before[4:]]
    termios.tcsetattr(sys.stdin, termios.TCSADRAIN, quiet)
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


def _counts(counts: dict[str, float], rate: float) -> str:
    cut = f", {counts['cut']} cut off by length" if counts["cut"] else ""
    return (
        f"{counts['emitted']} tokens emitted, {counts['kept']} kept, {counts['erased']} erased in "
        f"{counts['erasures']} erasure{'' if counts['erasures'] == 1 else 's'}{cut}, {rate:.1f} tokens/s"
    )
