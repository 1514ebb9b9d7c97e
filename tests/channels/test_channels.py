"""Every adapter and every route of the server, by every way that words reach a model.

    python -m tests.channels.test_channels

writes the table of all this into integrations/README.md.
"""

from __future__ import annotations

from collections import defaultdict
from importlib import import_module
from pathlib import Path

import pytest

from tests.channels.contract import KINDS, Channel, LibraryClass, prove

MODULES = tuple(
    import_module(f"tests.channels.{name}")
    for name in sorted(
        path.stem
        for path in Path(__file__).parent.glob("*.py")
        if path.stem != "contract" and not path.stem.startswith(("test_", "_", "conftest"))
    )
)
CHANNELS: list[Channel] = [channel for module in MODULES for channel in module.CHANNELS]
CLASSES: list[LibraryClass] = [kind for module in MODULES for kind in module.CLASSES]
README = Path(__file__).parents[2] / "integrations" / "README.md"
BEGIN, END = "<!-- channels -->", "<!-- /channels -->"


@pytest.mark.parametrize("channel", CHANNELS, ids=str)
async def test_no_word_reaches_a_model_unjudged(channel: Channel):
    await prove(channel)


@pytest.mark.parametrize("kind", CLASSES, ids=str)
def test_every_field_of_a_librarys_class_is_known(kind: LibraryClass):
    assert kind.unknown() == set(), "decide what becomes of it, and name it here"


def table() -> str:
    """The table in Markdown."""
    found: dict[tuple[str, str], set[str]] = defaultdict(set)
    for channel in CHANNELS:
        found[channel.adapter, channel.kind].add(channel.outcome)
    adapters = sorted({channel.adapter for channel in CHANNELS})
    lines = [f"| | {' | '.join(adapters)} |", f"| --- |{' --- |' * len(adapters)}"]
    for kind in KINDS:
        cells = (", ".join(sorted(found[adapter, kind])) or "-" for adapter in adapters)
        lines.append(f"| {kind} | {' | '.join(cells)} |")
    return "\n".join(lines)


def test_the_table_of_the_readme_is_what_is_proved():
    _, _, rest = README.read_text("utf-8").partition(BEGIN)
    assert rest.partition(END)[0].strip() == table()


if __name__ == "__main__":
    before, _, rest = README.read_text("utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    README.write_text(f"{before}{BEGIN}\n{table()}\n{END}{after}", "utf-8")
