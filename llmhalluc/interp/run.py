"""A run's folder: what made it, and for each stage the hashes of what it read, how it was asked, and what it wrote."""

import csv
import hashlib
import io
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from llmhalluc.extras.errors import UserError, did_you_mean
from llmhalluc.extras.keys import flat
from llmhalluc.extras.run_folder import environment, write_json, write_text
from llmhalluc.hparams.yaml_files import load_raw, to_yaml
from llmhalluc.interp.config import Interp

CURRENT, MANIFEST = ".current_run_id", "manifest.json"
FOLDERS = ("data", "generations", "analysis", "figures", "reports")
BOUND = ("model", "data")  # sections in which a run and its later commands must agree
BASELINE = "baseline"  # the condition without an intervention
Row = dict[str, Any]


class Stage(NamedTuple):
    """What a stage reads, how it is asked, and what it writes; shared files hold rows of other variants too."""

    name: str
    inputs: Sequence[Path]
    settings: Any
    outputs: Sequence[Path]
    shared: Sequence[Path] = ()


class Run:
    """One run: `folder` holds everything, `config` is the one of this command; `model` once a stage has loaded it."""

    def __init__(self, folder: Path, config: Interp):
        self.folder, self.config = folder, config
        self.model: Any = None

    def path(self, *parts: str) -> Path:
        """Return a path in the folder."""
        return self.folder.joinpath(*parts)

    def need(self, path: Path, command: str) -> Path:
        """Return the path. Raises UserError, which names the command to run first, where nothing is there."""
        if not path.exists():
            raise UserError(f"{path} does not exist: run {command} first (--run-id {self.folder.name})")
        return path

    def is_done(self, stage: Stage) -> bool:
        """Return whether the stage has run on these inputs with these settings, and its outputs are as it left them."""
        entry = self._manifest().get(stage.name)
        there = all(path.exists() for path in stage.shared)
        done = there and entry is not None and entry == self._entry(stage)
        if done:
            print(f"{stage.name}: up to date")
        return done

    def mark_done(self, stage: Stage) -> None:
        """Write the stage's hashes into the manifest."""
        write_json(self.path(MANIFEST), self._manifest() | {stage.name: self._entry(stage)})
        names = [str(path.relative_to(self.folder)) for path in (*stage.shared, *stage.outputs)]
        print(f"{stage.name}: wrote {', '.join(names)}", flush=True)

    def was_read(self, path: Path, stage: str) -> bool:
        """Return whether a stage has read the file as it is now."""
        read = self._manifest().get(stage, {}).get("inputs", {})
        return read.get(str(path.relative_to(self.folder))) == hash_of(path)

    def _manifest(self) -> dict[str, Any]:
        path = self.path(MANIFEST)
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}

    def _entry(self, stage: Stage) -> dict[str, Any]:
        return {
            "inputs": {str(path.relative_to(self.folder)): hash_of(path) for path in stage.inputs},
            "settings": json.loads(json.dumps(stage.settings)),
            "outputs": {str(path.relative_to(self.folder)): hash_of(path) for path in stage.outputs},
        }


def init(config: Interp, run_id: str | None) -> Run:
    """Make a run's folder and name it the current one. Raises UserError where another run has that id."""
    runs = Path(config.interp.runs_dir).expanduser()
    run_id = run_id or datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    if Path(run_id).name != run_id or run_id.startswith("."):
        raise UserError(f"--run-id is {run_id!r}, expected a name for a folder")
    folder = runs / run_id
    if (folder / "config.yaml").exists():
        _refuse_other_model(folder, config)
    elif folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder} holds files that none of our runs wrote: choose another --run-id")
    for name in FOLDERS:
        (folder / name).mkdir(parents=True, exist_ok=True)
    made = environment()
    meta = {key: made[key] for key in ("commit", "dirty", "python", "packages", "cores", "time")}
    meta["model"] = {key: value for key, value in config.plain()["model"].items() if value is not None}
    write_text(folder / "config.yaml", to_yaml(config.plain()))
    write_json(folder / "meta.json", {"run_id": run_id} | meta)
    write_text(runs / CURRENT, run_id + "\n")
    print(f"init-run: {folder}")
    return Run(folder, config)


def find(config: Interp, run_id: str | None) -> Run:
    """Return the run of that id, or the current one. Raises UserError where there is none, or it is another model's."""
    runs = Path(config.interp.runs_dir).expanduser()
    current = runs / CURRENT
    if run_id is None and not current.exists():
        raise UserError(f"{runs} has no current run: run init-run first, or name one with --run-id")
    run = named(config, run_id or current.read_text(encoding="utf-8").strip())
    _refuse_other_model(run.folder, config)
    return run


def named(config: Interp, run_id: str) -> Run:
    """Return the run of that id, whatever its model. Raises UserError where there is none."""
    runs = Path(config.interp.runs_dir).expanduser()
    folder = runs / run_id
    if not (folder / "config.yaml").exists():
        known = sorted(path.parent.name for path in runs.glob("*/config.yaml"))
        raise UserError(f"--run-id {run_id} is no run of {runs}{did_you_mean(run_id, known)}: run init-run first")
    return Run(folder, config)


def _refuse_other_model(folder: Path, config: Interp) -> None:
    there, here = load_raw(folder / "config.yaml"), json.loads(json.dumps(config.plain()))
    for section in BOUND:
        old, new = (dict(flat({section: plain[section]})) for plain in (there, here))
        for name in sorted(old.keys() | new.keys()):
            if old.get(name) != new.get(name) and name not in ("model.device", "data.num_proc"):
                raise UserError(
                    f"run {folder.name} has {name} {old.get(name)}, this config has {new.get(name)}: run init-run with "
                    "another --run-id first"
                )


def hash_of(path: Path) -> str:
    """Return the digest of a file, or that it is absent."""
    return digest(path.read_bytes()) if path.exists() else "absent"


def digest(content: bytes | str) -> str:
    """Return the first half of the SHA-256 of some content."""
    return hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()[:32]


def read_csv(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV, each value as text; none where there is no file."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write_csv(path: Path, rows: Sequence[Row], columns: Sequence[str], **replaced: str) -> None:
    """Write rows under the columns; rows of the file that differ in a value of `replaced` stay, before the new ones."""
    kept = [
        row for row in read_csv(path) if replaced and any(row[column] != value for column, value in replaced.items())
    ]
    file = io.StringIO()
    writer = csv.DictWriter(file, columns, extrasaction="raise", lineterminator="\n")
    writer.writeheader()
    writer.writerows([{column: row.get(column, "") for column in columns} for row in kept] + list(rows))
    write_text(path, file.getvalue())


def number(text: str) -> float | None:
    """Return a value of a CSV as a number, None where it is empty."""
    return float(text) if text else None
