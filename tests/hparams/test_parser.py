"""Reading a config: inheritance, overrides, round trips, and every mistake told at once."""

import dataclasses
import re
import types
from typing import Any, Literal, Union, get_args, get_origin

import pytest
import yaml
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from llmhalluc.extras.errors import UserError
from llmhalluc.hparams.command_line import option_groups, parse, read
from llmhalluc.hparams.mapping import Key
from llmhalluc.hparams.parser import build, resolved, section_keys
from llmhalluc.hparams.sections import SECTIONS
from llmhalluc.hparams.yaml_files import load_raw, to_yaml

TEXTS = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), max_size=8) | st.sampled_from(
    [
        "${a}",
        r"\${",
        r"\\${x}",
        "1e-6",
        "no",
        "null",
        "",
        " ",
        "1_0",
        "$1,234",
        "a: b",
        "#",
        "12:30",
        "0x1",
        "~",
    ]
)
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(TEXTS, inner, max_size=2),
    max_leaves=4,
)


def values(key: Key) -> st.SearchStrategy:
    """Values that a key takes."""
    origin, args = get_origin(key.type) or key.type, get_args(key.type)
    if key.choices:
        return st.sampled_from(key.choices)
    if origin in (Union, types.UnionType):
        return st.one_of([values(key._replace(type=arg)) for arg in args])
    if origin is Literal:
        return st.sampled_from(args)
    if origin in (int, float):
        low, high = map(float, (key.bounds or "[-9, 9]")[1:-1].split(","))
        if origin is int:
            return st.integers(int(low), int(min(high, 99)))
        return st.floats(low, min(high, 9.0), exclude_min=True, exclude_max=True)
    if origin is list:
        return st.lists(values(Key(args[0], None, "")), max_size=2)
    if origin is dict:
        return st.dictionaries(TEXTS, values(Key(args[1], None, "")) if args else PLAIN, max_size=2)
    return {bool: st.booleans(), str: TEXTS, Any: PLAIN, types.NoneType: st.none()}[origin]


def sections() -> st.SearchStrategy:
    """Raw configs of keys with values that their types and ranges allow."""
    keys = {name: {name: values(key) for name, key in section_keys(name).items()} for name in SECTIONS}
    keys["eval"]["variants"] = st.just({"a": {"temperature": 1.0}})
    some = {
        name: st.lists(st.sampled_from(sorted(made)), max_size=4, unique=True).flatmap(
            lambda names, made=made: st.fixed_dictionaries({key: made[key] for key in names})
        )
        for name, made in keys.items()
    }
    return st.fixed_dictionaries({}, optional=some | {"seed": st.none() | st.integers(0, 9)})


@settings(max_examples=60, deadline=None)
@example({"model": {"lora_target_modules": ["${", r"\${x}"]}})  # OmegaConf's own typed loading trips over this
@given(sections())
def test_resolved_and_printed_configs_build_the_same_config(tmp_path_factory, raw):
    try:
        config = build(raw)
    except UserError:
        assume(False)
    assert build(resolved(config)) == config
    file = tmp_path_factory.getbasetemp() / "printed.yaml"
    file.write_text(to_yaml(resolved(config)), encoding="utf-8")
    assert build(load_raw(file)) == config


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.sampled_from([*SECTIONS, "seed", "x"]) | TEXTS, PLAIN, max_size=3), sections())
def test_whatever_is_wrong_is_told_in_sentences(noise, raw):
    for mixed in (noise, raw | noise):
        try:
            build(mixed)
        except UserError as error:
            assert all(error.sentences) and len(set(error.sentences)) == len(error.sentences)


@settings(max_examples=60, deadline=None)
@example(["[="])
@given(st.lists(st.text(max_size=12) | st.builds("{}={}".format, TEXTS, TEXTS), max_size=3))
def test_no_command_line_ends_in_a_traceback(argv):
    assume(not {"-h", "--help", "--print-config"} & set(argv))
    try:
        parse(argv, "run_train", ("model",))
    except UserError as error:
        assert all(error.sentences)


def test_defaults_are_ours_and_trl_keys_stay_apart():
    config = build({"train": {"learning_rate": 1, "stage": "sft", "merge": False}})
    assert config.train.trl == {"output_dir": "outputs/train", "learning_rate": 1}
    assert config.train.merge is False
    assert build({"train": {"output_dir": None}}).train.trl == {"output_dir": "outputs/train"}
    assert build({"backtrack": {"rate": 1}}).backtrack.rate == 1.0
    assert isinstance(build({"backtrack": {"rate": 1}}).backtrack.rate, float)


def test_configs_do_not_share_their_lists():
    build({}).model.token_init_words.append("x")
    raw = {"eval": {"tasks": ["a"]}, "train": {"report_to": ["b"]}}
    config = build(raw)
    config.eval.tasks.append("x")
    config.train.trl["report_to"].append("x")
    assert raw == {"eval": {"tasks": ["a"]}, "train": {"report_to": ["b"]}}
    assert build({}).model == build({}).model and "x" not in build({}).model.token_init_words


def test_seed_reaches_every_section_that_does_not_say_otherwise():
    config = build({"seed": 7, "gen": {"seed": 1}})
    assert (config.train.trl["seed"], config.train.trl["data_seed"], config.eval.seed) == (7, 7, 7)
    assert config.gen.seed == 1
    assert "seed" not in build({}).train.trl


def test_base_files_are_merged_in_order(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "a.yaml").write_text("gen: {stop: [x, y], temperature: 1.0}\neval: {data_files: {a: 1.txt}}")
    (tmp_path / "b.yaml").write_text("base: a.yaml\neval: {data_files: {b: 2.txt}}\nseed: 1")
    (tmp_path / "c.yaml").write_text("gen: {temperature: 0.5}")
    (tmp_path / "deep/d.yaml").write_text("base: [../b.yaml, ../c.yaml]\ngen: {stop: [z]}\nmodel:")
    raw = load_raw(tmp_path / "deep/d.yaml", ["seed=2", "model.name_or_path=x"])
    assert raw == {
        "gen": {"stop": ["z"], "temperature": 0.5},
        "eval": {"data_files": {"a": "1.txt", "b": "2.txt"}},
        "seed": 2,
        "model": {"name_or_path": "x"},
    }


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("base: x.yaml", r"base of \S*x\.yaml is \S*x\.yaml, which is built on it: take one of the two out"),
        ("base: y.yaml", r"base of \S*y\.yaml is \S*x\.yaml, which is built on it"),
        ("base: nothing.yaml", r"base of \S*x\.yaml is \S*nothing\.yaml, which does not exist"),
        ("base: {a: 1}", r"base of \S*x\.yaml is \{'a': 1\}, expected a YAML file or a list of them"),
        ("gen: [1", r"x\.yaml cannot be read as YAML: .*line 1"),
        ("gen: {}\ngen: {}", r"x\.yaml cannot be read as YAML: .*duplicate key gen"),
        (
            "a: !!python/object/apply:os.getcwd []",
            r"x\.yaml cannot be read as YAML: could not determine a construc",
        ),
        ("- 1", r"x\.yaml holds a list, expected sections"),
        (
            "gen: {stop: '${nowhere}'}",
            r"gen\.stop cannot be resolved: Interpolation key 'nowhere' not found$",
        ),
        (
            "model: {name_or_path: '${oc.env:NOWHERE_}'}",
            r"model\.name_or_path cannot be resolved: .*'NOWHERE_'",
        ),
        ("gen: {stop: '${'}", r"gen\.stop cannot be resolved|cannot be read as YAML"),
    ],
)
def test_files_that_cannot_be_read_are_told(tmp_path, text, sentence):
    (tmp_path / "x.yaml").write_text(text)
    (tmp_path / "y.yaml").write_text("base: x.yaml")
    with pytest.raises(UserError, match=sentence) as caught:
        load_raw(tmp_path / "x.yaml")
    assert len(caught.value.sentences) == 1


def test_a_missing_file_is_told(tmp_path):
    with pytest.raises(UserError, match=r"^config is \S*none\.yaml, which does not exist$"):
        load_raw(tmp_path / "none.yaml")


def test_overrides_are_yaml_and_win(tmp_path):
    (tmp_path / "x.yaml").write_text("train: {learning_rate: 1e-6, eval_strategy: no}\ngen: {temperature: 1.0}")
    words = [
        "gen.temperature=0",
        "gen.stop=['\\n', b]",
        "data.subset=null",
        "exp.grid[backtrack.context]=[soft]",
    ]
    config = parse(["--config", str(tmp_path / "x.yaml"), *words], "run_exp", ())
    assert config.train.trl["learning_rate"] == 1e-6 and config.train.trl["eval_strategy"] == "no"
    assert (config.gen.temperature, config.gen.stop) == (0.0, ["\\n", "b"])
    assert config.exp.grid == {"backtrack.context": ["soft"]}
    assert parse([f"--config={tmp_path / 'x.yaml'}"], "run_exp", ()).gen.temperature == 1.0


@pytest.mark.parametrize(
    ("below", "above"), [("{low: 1, high: 2}", "[3, 4]"), ("[3, 4]", "{low: 1, high: 2}"), ("{low: 1}", "null")]
)
def test_a_value_of_another_kind_replaces_what_stands_below(tmp_path, below, above):
    (tmp_path / "a.yaml").write_text(f"hpo: {{space: {{minimum: {below}, erase: 1}}}}")
    (tmp_path / "b.yaml").write_text(f"base: a.yaml\nhpo: {{space: {{minimum: {above}}}}}")
    expected = {"hpo": {"space": {"minimum": yaml.safe_load(above), "erase": 1}}}
    assert load_raw(tmp_path / "a.yaml", [f"hpo.space.minimum={above}"]) == expected
    assert load_raw(tmp_path / "b.yaml") == expected


def test_interpolations_are_resolved_after_overrides(tmp_path, monkeypatch):
    monkeypatch.setenv("HERE_", "there")
    (tmp_path / "x.yaml").write_text("eval: {output_dir: '${train.output_dir}-eval', tasks: ['${oc.env:HERE_}']}")
    raw = load_raw(tmp_path / "x.yaml", ["train.output_dir=out"])
    assert raw["eval"] == {"output_dir": "out-eval", "tasks": ["there"]}


def test_mistakes_of_every_kind_are_told_together(tmp_path):
    (tmp_path / "x.yaml").write_text("trian: {}\ngen: {temprature: 1}\nbacktrack: {context: blok}")
    with pytest.raises(UserError) as caught:
        argv = ["--config", str(tmp_path / "x.yaml"), "train.max_steps=many", "gen.stop=[", "--fast"]
        parse(argv, "run_train", ("model", "data"))
    assert [sentence.split(":")[0].split(" is ")[0] for sentence in caught.value.sentences] == [
        "--fast",
        "gen.stop=[ cannot be read",
        "trian",
        "gen.temprature",
        "backtrack.context",
        "train.max_steps",
        "exactly one of model.name_or_path and model.from_config must be given, neither is",
    ]


@pytest.mark.parametrize("program", ["run_train", "run_eval", "run_exp"])
def test_help_lists_every_key_with_its_meaning(program, capsys):
    from importlib import import_module

    used = import_module(f"llmhalluc.{program}").SECTIONS
    with pytest.raises(SystemExit) as ended:
        read(["--help"], program, used)
    shown = capsys.readouterr().out
    assert ended.value.code == 0
    groups = {section: section_keys(section) for section in used}
    groups |= {heading: keys for section in used for heading, (_, keys) in option_groups(section).items()}
    for heading, keys in groups.items():
        section = heading.partition(" ")[0]
        table = re.split(r"\n(?=\S)", shown.partition(f"\n{heading}: ")[2])[0]  # up to the next heading
        rows = {row.split()[0]: row for row in table.split("\n") if re.match(rf"  {section}\.\w+(\s|$)", row)}
        assert list(rows) == [f"{section}.{key}" for key in keys]
        starts = {name: row.rindex("  ") + 2 for name, row in rows.items()}
        assert len(set(starts.values())) == 1, "the meanings of a section stand under each other"
        for name, row in rows.items():
            meaning = keys[name.rpartition(".")[2]].help.replace("%%", "%")
            assert meaning.startswith(row[starts[name] :]) and row[starts[name] :]


def test_printed_config_is_used_again(tmp_path, capsys):
    words = [
        "seed=3",
        "train.learning_rate=1e-6",
        "data.prompt_column='${oc.env:HOME_,a b}'",
        "gen.stop=['\\${x}']",
    ]
    with pytest.raises(SystemExit) as ended:
        read([*words, "--print-config"], "run_train", ())
    printed = tmp_path / "printed.yaml"
    printed.write_text(capsys.readouterr().out)
    assert ended.value.code == 0
    config = build(load_raw(printed))
    assert config == build(load_raw(None, words))
    assert (config.data.prompt_column, config.gen.stop) == ("a b", ["${x}"])
    assert set(yaml.safe_load(printed.read_text())) == {"seed", *SECTIONS}
    assert {field.name for field in dataclasses.fields(config)} == {"seed", "gen_given", *SECTIONS}
    again = build(load_raw(printed, ["seed=4"]))
    assert (again.gen.seed, again.eval.seed, again.train.trl["data_seed"]) == (4, 4, 4)
