from __future__ import annotations

import os
import resource
import stat
from contextlib import contextmanager

import pytest

from guardrail.observe.line_file import LineFile


@pytest.fixture
def path(tmp_path):
    return tmp_path / "lines"


@pytest.fixture
def file(path):
    made = LineFile(path)
    yield made
    made.close()


@contextmanager
def small_files():
    """Files of this process end at 100 bytes, as on a full disk; pytest's own output, too."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_line_is_in_the_file_at_once(file, path):
    file.write("größe\n")
    assert path.read_text() == "größe\n"
    assert file.tell() == path.stat().st_size


def test_a_new_file_is_its_owners_alone_and_an_old_ones_mode_stays(file, path, tmp_path):
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    old = tmp_path / "old"
    old.write_text("a\n")
    old.chmod(0o640)
    LineFile(old).close()
    assert stat.S_IMODE(old.stat().st_mode) == 0o640


def test_of_a_line_that_does_not_fit_nothing_is_kept(file, path):
    with small_files():
        file.write("a" * 59 + "\n")
        with pytest.raises(OSError, match="too large"):
            file.write("b" * 59 + "\n")
        assert path.read_text() == "a" * 59 + "\n"
        file.write("c" * 9 + "\n")
    assert path.read_text().splitlines() == ["a" * 59, "c" * 9]


def test_short_writes_are_gone_on_with(file, path, monkeypatch):
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, data[:3]))
    file.write("0123456789\n")
    assert path.read_text() == "0123456789\n"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_a_device_that_is_full_is_an_error_each_time():
    file = LineFile("/dev/full")
    for _ in range(2):
        with pytest.raises(OSError, match="No space"):
            file.write("a\n")
    file.close()
    file.close()
