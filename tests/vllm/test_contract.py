"""The names inside vLLM that the guard leans on are in the vLLM that is installed, and in others.

`make test-vllm-contract` reads a wheel that is newer than what is installed; `VLLM_WHEEL` names it.
"""

from __future__ import annotations

import ast
import asyncio
import contextvars
import importlib.util
import logging
import os
import threading
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import pydantic
import pytest
import torch
from PIL import Image
from transformers import PreTrainedTokenizerBase

from tests.vllm import contract
from tests.vllm.contract import NAMES, USES, Source, broken

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2] / "guardrail"
# What attributes in the guard's own code are of, beside itself and vLLM.
_TYPES = (
    *(
        type,
        str,
        list,
        dict,
        set,
        bytes,
        bytearray,
        tuple,
        float,
        Path,
        logging.Logger,
        Image.Image,
    ),
    *(torch.Tensor, torch.nn.Module, torch.cuda.Event, pydantic.BaseModel, PreTrainedTokenizerBase),
    *(asyncio.AbstractEventLoop, asyncio.Task, threading.Condition, contextvars.ContextVar),
)
_OTHERS = {  # of a tokenizer, of a configuration of transformers, of torch, of a temporary folder
    *("bos_token_id", "eos_token_id", "pad_token_id", "num_hidden_layers"),
    *("register_fake", "cleanup"),
}


@pytest.mark.vllm
def test_the_installed_vllm_has_every_name() -> None:
    found = importlib.util.find_spec("vllm")
    assert found is not None
    assert found.origin is not None
    assert broken(Source(Path(found.origin).parents[1])) == []


def test_another_vllm_has_every_name() -> None:
    wheel = os.environ.get("VLLM_WHEEL")
    if not wheel:
        pytest.skip("VLLM_WHEEL names no wheel; `make test-vllm-contract` downloads one")
    assert broken(Source(Path(wheel))) == []


# ---- the list is whole


def test_every_name_that_the_guard_uses_is_listed() -> None:
    listed = {name.partition("(")[0] for names in NAMES.values() for name in names}
    listed |= {
        one.attr
        for uses in USES.values()
        for use in uses
        for one in ast.walk(ast.parse(use))
        if isinstance(one, ast.Attribute)
    }
    trees = {path: ast.parse(path.read_text("utf-8")) for path in ROOT.rglob("*.py")}
    own = {name for tree in trees.values() for name in defined(tree)}
    known = listed | own | _OTHERS | {name for one in _TYPES for name in dir(one)}
    missing = {
        f"{path.name}: {name}"
        for path, tree in trees.items()
        if path.parent.name == "vllm"
        for name in {*attributes(tree), *asked_for(tree)} - known
    }
    assert missing == set(), "list them in tests/vllm/contract.py, or what they are of in _TYPES"


def test_every_import_of_vllm_is_listed() -> None:
    wanted = {
        (node.module, one.name)
        for path in ROOT.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "vllm"
        for one in node.names
    }
    assert wanted
    listed = {(place, name.partition("(")[0]) for place, names in NAMES.items() for name in names}
    listed |= {(module, owner) for module, _, owner in (place.partition(":") for place in NAMES)}
    assert wanted - listed == set()


def defined(tree: ast.AST) -> Iterator[str]:
    """Names of classes, functions and their fields."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            yield from (name for name, _ in contract.named(node.body))
        if isinstance(node, contract.Def | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from (one.attr for one in contract.flat(targets) if of_self(one))


def of_self(node: ast.AST) -> bool:
    return isinstance(node, ast.Attribute) and ast.unparse(node.value) == "self"


def attributes(tree: ast.AST) -> Iterator[str]:
    """Names that are looked up on anything but an imported one."""
    imported = {
        (one.asname or one.name).split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for one in node.names
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and root_of(node) not in imported:
            yield node.attr


def root_of(node: ast.expr) -> str:
    while not isinstance(node, ast.Name):
        match node:
            case ast.Attribute(value=inner) | ast.Subscript(value=inner) | ast.Call(func=inner):
                node = inner
            case _:
                return ""
    return node.id


def asked_for(tree: ast.AST) -> Iterator[str]:
    """Names in words: of `getattr`, `hasattr`, and of what looks for several of them."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in (
            *("getattr", "hasattr", "require_names", "_several"),
        ):
            for one in ast.walk(node.args[1]):
                if isinstance(one, ast.Constant) and isinstance(one.value, str):
                    yield one.value


# ---- a change is told

FILES = {
    "vllm/__init__.py": "if 1:\n    from .inner.runner import Runner\n",
    "vllm/inner/__init__.py": "",
    "vllm/inner/base.py": """
class Base:
    rank: int
    def __init__(self):
        self.device, self.other = None, None
    def put_back(self, request, when, drop=False): ...
    def plain(self, words, *, more=None): ...
""",
    "vllm/inner/runner.py": """
from vllm.inner.base import Base
@dataclass
class Told:
    text: str
class Runner(Base):
    def step(self, output):
        done = self.put_back(1, 2, drop=True)
        self.state.engine = done
""",
}
THESE = {
    "vllm": ("Runner",),
    "vllm:Runner": (
        "device",
        "rank",
        "put_back(request, when, drop=False)",
        "plain(words, *others)",
    ),
    "vllm.inner.runner:Told": ("__dict__", "text"),
}
DOES = {"vllm:Runner.step": ("self.put_back(a, b, drop=_)", "self.state.engine = done")}


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("", "", None),
        ("rank: int", "place: int", "has no rank"),
        ("self.device,", "self.card,", "has no device"),
        ("class Runner(Base)", "class Runner", "has no device"),
        ("class Runner(", "class Walker(", "is gone"),
        ("when, drop", "drop", "put_back takes"),
        ("drop=False", "drop", "put_back takes"),
        ("drop=False", "drop=False, now=True", "put_back takes"),
        ("more=None", "more=None, yet=1", None),  # it can be left out
        ("more=None", "more", "plain takes"),
        ("@dataclass", "@dataclass(slots=True)", "takes no attributes"),
        ("(1, 2, drop=True)", "(1, 2)", "has no `self.put_back"),
        ("self.state.engine", "self.state.client", "has no `self.state.engine"),
    ],
)
def test_a_vllm_that_differs_is_told(
    packed: bool,
    old: str,
    new: str,
    told: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(contract, "NAMES", THESE)
    monkeypatch.setattr(contract, "USES", DOES)
    files = {name: text.replace(old, new) for name, text in FILES.items()}
    assert not old or files != FILES
    path = tmp_path / "vllm-1-any.whl"
    if packed:
        with zipfile.ZipFile(path, "w") as wheel:
            for name, text in files.items():
                wheel.writestr(name, text)
    else:
        for name, text in files.items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_text(text)
    found = broken(Source(path))
    assert bool(found) == bool(told), found
    assert told is None or any(told in one for one in found), found
