"""Models that are Python code: factories and torch.hub. Only with leave, and what goes wrong is named."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from tests.zoo.test_saved_models import SIDE_PX, check_answers, error_of, spec_of

FACTORY = """
from torch import nn
from model_inference import ModelSpec, Preprocessing
from tests.zoo.test_saved_models import Toy, toy_spec

CALLS = []

def network():
    CALLS.append(1)
    return Toy()

def spec():
    return toy_spec()

def nothing():
    return 3

def fails():
    raise KeyError("no weights here")

number = 4
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module of factories in the current directory, by a name that no other test uses."""
    name = f"factories_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(FACTORY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    return name


def test_a_factory_of_a_spec_says_all(package: str) -> None:
    check_answers(spec_of(f"{package}:spec", allow_code=True))


def test_a_factory_of_a_network_takes_options(package: str) -> None:
    spec = spec_of(f"{package}:network", allow_code=True, task="classification", resize_px=(SIDE_PX, SIDE_PX))
    check_answers(spec)


@pytest.mark.parametrize(
    ("function", "allow_code", "options", "message"),
    [
        ("network", False, {}, "runs Python code that is not Trivid's (if you trust it, add --allow-code)"),
        ("nothing", True, {}, "gives a int (an nn.Module or, from a factory, a ModelSpec)"),
        ("fails", True, {}, "failed: KeyError: 'no weights here'"),
        ("number", True, {}, "has no function number"),
        ("none", True, {}, "has no function none"),
    ],
)
def test_a_wrong_factory_is_named(
    package: str, function: str, allow_code: bool, options: dict[str, Any], message: str
) -> None:
    known: dict[str, Any] = {"task": "classification", "resize_px": (SIDE_PX, SIDE_PX)}
    assert message in error_of(f"{package}:{function}", allow_code, **known, **options)
    assert (package in sys.modules) == allow_code


def test_a_pin_says_nothing_of_code() -> None:
    assert "sha256=00 has no meaning for some.module:net" in error_of("some.module:net", True, sha256="00")


def test_a_module_that_cannot_be_imported_is_named() -> None:
    assert "cannot import no.such.module of no.such.module:net" in error_of(
        "no.such.module:net", allow_code=True
    )


def test_an_entry_of_a_hub_folder(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    (tmp_path / "hubconf.py").write_text(
        f"import pathlib\nfrom tests.zoo.test_saved_models import Toy\npathlib.Path({str(mark)!r}).touch()\n"
        "def toy():\n    return Toy()\n"
    )
    known: dict[str, Any] = {"task": "classification", "resize_px": (SIDE_PX, SIDE_PX)}
    assert "--allow-code" in error_of(f"torch.hub:{tmp_path}:toy", **known)
    assert not mark.exists()
    check_answers(spec_of(f"torch.hub:{tmp_path}:toy", allow_code=True, **known))
    assert mark.exists()
    assert "failed" in error_of(f"torch.hub:{tmp_path}:other", allow_code=True, **known)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("torch.hub:entry", "is not an entry of torch.hub"),
        ("torch.hub:/no/such/folder:entry", "no hubconf.py in /no/such/folder"),
    ],
)
def test_a_wrong_hub_entry_is_named(source: str, message: str) -> None:
    assert message in error_of(source, allow_code=True)
