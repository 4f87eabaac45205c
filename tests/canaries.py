"""Canaries of the seams: a check a patch, which fails with the patch's reason when the library moves.

A check is also run with its patch taken out, and has to fail then: one that does not proves nothing, or the library has
mended what the patch was for.
"""

import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

Check = Callable[[Path, pytest.MonkeyPatch], None]


def patches(module: ModuleType) -> set[str]:
    """The functions of a file of patches, and the methods of its classes: `name`, `Class.name`."""
    found = set()
    for name, value in vars(module).items():
        if getattr(value, "__module__", None) != module.__name__:
            continue
        if inspect.isclass(value):
            found |= {f"{name}.{key}" for key, method in vars(value).items() if inspect.isfunction(method)}
        else:
            found.add(name)
    return found


def sings(module: ModuleType, name: str, check: Check, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the check of a patch; its failure says why the patch is there."""
    reason = inspect.getdoc(_owner(module, name)[1])
    assert reason
    try:
        check(tmp_path, monkeypatch)
    except Exception as error:
        raise AssertionError(f"{module.__name__}: {name} no longer does its work. {reason}") from error


def falls_silent(module: ModuleType, name: str, instead: Any, check: Check, path: Path, mp: pytest.MonkeyPatch) -> None:
    """The check of a patch fails where `instead` stands in the patch's place; a method is the library's own again."""
    owner, patch = _owner(module, name)
    leaf = name.rpartition(".")[2]
    if owner is not module:
        mp.delattr(owner, leaf)
    else:
        for loaded in [*sys.modules.values()]:  # whoever imported it has a name of its own for it
            if loaded.__name__.startswith("llmhalluc") and getattr(loaded, leaf, None) is patch:
                mp.setattr(loaded, leaf, instead)
    with pytest.raises(Exception):  # noqa: B017  an assertion of the check, or what the library raises
        check(path, mp)


def _owner(module: ModuleType, name: str) -> tuple[Any, Any]:
    """What holds the patch, and the patch."""
    owner = getattr(module, name.partition(".")[0]) if "." in name else module
    return owner, getattr(owner, name.rpartition(".")[2])
