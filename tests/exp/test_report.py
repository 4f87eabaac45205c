import functools
import html.parser
import json
import re
import shutil
import subprocess

import pytest

from llmhalluc.exp import pictures, report, results, table
from llmhalluc.exp.experiment import read_experiment
from llmhalluc.exp.grid import cells
from llmhalluc.exp.samples import load_decoder
from llmhalluc.report.page import ENVIRONMENT
from llmhalluc.report.pictures import INK
from llmhalluc.tasks.sudoku.text import build_tokenizer
from tests.exp import synthetic
from tests.tiny import tiny_tokenizer

EVIL = "</script><script>alert('x')</script><b onclick=\"x\">&amp;\u2028"
MODEL = {"tokenizer": "sudoku4", "from_config": {"model_type": "llama"}}
VOID = {"meta", "br", "input"}


@pytest.fixture(scope="module")
def tokenizer():
    made = build_tokenizer(4)
    made.add_special_tokens({"additional_special_tokens": ["<|BACKTRACK|>"]})
    return made


def write(folder, tokenizer, arms, evaluate, **exp):
    raw = {"exp": {"arms": arms, "output_dir": str(folder)} | exp, "model": MODEL}
    experiment = read_experiment(raw)
    todo, settings = cells(experiment), experiment.exp
    folders = {cell.name: folder / cell.name for cell in todo}
    for i, cell in enumerate(todo):
        synthetic.write_training(folders[cell.name] / "train", i, tokenizer=tokenizer)
        evaluate(folders[cell.name] / "eval", {"greedy": 0.8, "sampled": 0.6}, bool(i), i)
    baseline = results.baseline_of(todo, settings)
    made = [sheet for cell in todo for sheet in results.sheets(cell, folders[cell.name])]
    told = {
        "name": settings.name, "baseline": table.label(*baseline(todo[0])), "failed": [], "config": raw,
        "rows": results.rows(made, baseline), "pairs": results.pairs(made),
        "environment": {"commit": None, "time": "2026-01-01T00:00:00+00:00"},
    }  # fmt: skip
    report.write(
        told,
        todo,
        folders,
        pictures.draw(told, folders, {cell.name: cell.stage for cell in todo}, folder),
        settings,
        told,
        folder,
    )
    return (folder / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(tmp_path_factory, tokenizer):
    arms = {"clean": {"data.converter": "sudoku"}, "block": {"backtrack": {"context": "block"}}}
    evaluate = functools.partial(synthetic.write_evaluation, tokenizer=tokenizer)
    return write(tmp_path_factory.mktemp("page"), tokenizer, arms, evaluate, samples_in_report=4)


class Parser(html.parser.HTMLParser):
    """Elements, their attributes and texts; raises on elements that are closed in the wrong order."""

    def __init__(self, page):
        super().__init__(convert_charrefs=True)
        self.open, self.found, self.texts = [], [], []
        self.feed(page)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append((self.open[-1] if self.open else "", data))


def games_of(page):
    return json.loads(re.search(r'id="games">(.*?)</script>', page, re.DOTALL)[1])


def test_the_page_is_whole_and_needs_nothing_from_outside(page):
    parsed = Parser(page)
    assert not re.search(r"<!--\w+-->|{[{%#]|[%#}]}", re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL))
    for _, attributes in parsed.found:
        for key, value in attributes.items():
            if key in ("src", "href", "xlink:href", "srcset", "data", "action"):
                assert value.startswith(("#", "samples.html")), (key, value)  # a page beside it, which it does without
    assert "@import" not in page and not re.search(r"url\((?!#)", page)
    assert len([tag for tag, _ in parsed.found if tag == "svg"]) == 2


def test_erased_text_is_struck_through(page):
    parsed = Parser(page)
    assert [text for tag, text in parsed.texts if tag == "del"][2:]  # the first two are the legend's
    assert ("span", {"class": "back", "title": "BACKTRACK"}) in parsed.found


def test_the_boards_hold_every_step(page):
    games = games_of(page)
    assert (games["left"], games["right"]) == ("clean", "block")
    assert list(games["runs"]) == ["greedy", "sampled"] and len(games["problems"]) >= 4
    run = games["runs"]["greedy"]["block"][games["problem"]]
    assert any(step["who"] for step in run["steps"])
    rows, box = games["boards"][run["steps"][-1]["board"]]
    last = "".join(games["cells"][cell][0] for row in rows for cell in row)
    name = games["problems"][int(games["problem"])]["name"]
    solution = synthetic.sudoku_records(60, 4, 11, 11, "test", 20, 1)[int(name) - 1]["solution"]
    assert box == [2, 2] and len(rows) == 4 and run["correct"] == (last == solution)


def test_all_that_a_model_or_a_config_wrote_is_escaped(tmp_path):
    """No tokenizer: the page shows the samples' own text."""

    def evil(folder, variants, traces, seed):
        synthetic.write_evaluation(folder, variants, traces, seed, count=4)
        for path in folder.glob("*.jsonl"):
            lines = [json.loads(line) for line in path.read_text().splitlines()]
            lines = [line | {"text": EVIL, "target": EVIL, "doc": line["doc"] | {"q": EVIL}} for line in lines]
            path.write_text("".join(json.dumps(line) + "\n" for line in lines))

    page = write(tmp_path, None, {EVIL: {}, "b": {"backtrack.token": EVIL}}, evil, name=EVIL)
    parsed = Parser(page)
    assert "alert('x')</script>" not in page and page.count("<script") == 2
    assert not any("onclick" in attributes for _, attributes in parsed.found)
    assert games_of(page) is None and 'id="stepper" hidden' in page
    traces = [text for tag, text in parsed.texts if EVIL in text]
    assert len(traces) > 4


def test_json_cannot_end_its_script():
    value = {"token": EVIL, "more": "<!--"}
    text = ENVIRONMENT.from_string("{{ value | tojson }}").render(value=value)
    assert not set("<>&\u2028\u2029") & set(text) and json.loads(text) == value


def test_text_tasks_show_prompt_and_trace(tmp_path):
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|BACKTRACK|>"]})
    back = tokenizer.convert_tokens_to_ids("<|BACKTRACK|>")
    words = {word: tokenizer.convert_tokens_to_ids(word) for word in "the cat sat on mat".split()}

    def evaluate(folder, variants, traces, seed):
        synthetic.write_evaluation(folder, variants, traces, seed, count=3)
        ids = [words["the"], words["sat"], back, words["on"], words["cat"]]
        trace = {"completion_ids": ids, "events": [[3, 1, "BACKTRACK"], [4, 1, "a<rule"]], "finish_reason": "length"}
        counts = {"emitted": 5, "erasures": 2, "forward_passes": 7}
        for path in folder.glob("*.jsonl"):
            lines = [json.loads(line) for line in path.read_text().splitlines()]
            lines = [
                line | trace | counts | {"prompt_ids": [words["on"]], "doc": {"q": i}} for i, line in enumerate(lines)
            ]
            path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        config = json.loads((folder.parent / "train" / "config.json").read_text())
        config["backtrack"] = {"token_id": back}
        (folder.parent / "train" / "config.json").write_text(json.dumps(config))

    page = write(tmp_path, tokenizer, {"a": {}, "b": {}}, evaluate)
    trace = re.search(r'<div class="trace">(.*?)</div>', page)[1]
    assert trace.replace("> ", ">").replace(" <", "<") == (
        'the<del title="erased by BACKTRACK">sat</del><span class="back" title="BACKTRACK">⌫</span>'
        '<del class="rule" title="erased by a&lt;rule">on</del>cat<span class="soft">… cut off</span>'
    )
    assert "5 tokens, 2 erased by BACKTRACK and a&lt;rule, 7 forward passes" in page
    assert "<pre>on</pre>" in page and games_of(page) is None


def test_what_is_only_scored_is_shown_without_a_trace(tmp_path, tokenizer):
    """Of a task of likelihoods nothing was generated: run_eval writes null for all that makes a trace."""

    def evaluate(folder, variants, traces, seed):
        synthetic.write_evaluation(folder, variants, traces, seed, count=2)
        names = ("prompt_ids", "completion_ids", "text", "finish_reason", "events", "forward_passes")
        none = dict.fromkeys(names) | {"emitted": 0, "kept": 0, "erasures": 0}
        for path in folder.glob("*.jsonl"):
            lines = [json.loads(line) | none for line in path.read_text().splitlines()]
            path.write_text("".join(json.dumps(line) + "\n" for line in lines))

    page = write(tmp_path, tokenizer, {"a": {}, "b": {}}, evaluate)
    assert "scored, not generated" in page and games_of(page) is None


def test_a_decoder_hides_end_and_padding(tmp_path, tokenizer):
    synthetic.write_training(tmp_path / "train", 0, tokenizer=tokenizer)
    decode, backtrack_id = load_decoder(tmp_path)
    first, second = tokenizer.convert_ids_to_tokens([7, 8])
    assert backtrack_id == len(tokenizer) - 1 and decode([7, 8, 2, 0]).split() == f"{first} {second}".split()


def test_the_pictures_are_drawn_in_the_ink_of_the_page(page, tmp_path):
    svg = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    for picture in svg:
        assert "currentColor" in picture and INK.lower() not in picture.lower()
        head = picture[: picture.index(">")]
        assert "viewBox" in head and " width=" not in head and " height=" not in head


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium")
def test_keys_and_buttons_step_through_the_boards(page, tmp_path):
    script = """<script>
    const seen = [], later = () => $("right").querySelectorAll(".later").length;
    const note = () => seen.push($("count").textContent + " " + later());
    const key = name => document.body.dispatchEvent(new KeyboardEvent("keydown", { key: name, bubbles: true }));
    document.getElementById("stepper").scrollIntoView();
    note(); key("ArrowRight"); note(); $("next").click(); note(); key("ArrowLeft"); note(); $("end").click(); note();
    key("ArrowRight"); note(); $("first").click(); note(); key(" "); seen.push($("play").textContent); key(" ");
    $("variant").value = "sampled"; $("variant").onchange(); note();
    document.title = JSON.stringify([seen, $("right").textContent.length > 0, location.hash]);
    </script></body>"""
    (tmp_path / "page.html").write_text(page.replace("</body>", script))
    found = subprocess.run(
        ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
         f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", (tmp_path / "page.html").as_uri() + "#step=0"],
        capture_output=True, text=True, timeout=100,
    ).stdout  # fmt: skip
    seen, drawn, place = json.loads(html.unescape(re.search(r"<title>(.*?)</title>", found, re.DOTALL)[1]))
    games = games_of(page)
    runs = [games["runs"]["greedy"][arm][games["problem"]]["steps"] for arm in ("clean", "block")]
    last, own = max(map(len, runs)), len(runs[1])
    assert seen[:7] == [
        f"0 / {last} {own}", f"1 / {last} {own - 1}", f"2 / {last} {own - 2}", f"1 / {last} {own - 1}",
        f"{last} / {last} 0", f"{last} / {last} 0", f"0 / {last} {own}",
    ]  # fmt: skip
    assert seen[7] == "❚❚" and seen[8].startswith("0 / ") and drawn and "variant=sampled" in place
