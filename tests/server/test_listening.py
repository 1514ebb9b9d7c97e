from __future__ import annotations

import socket
import stat

import pytest

from guardrail.errors import ConfigurationError
from guardrail.server.listening import address_of, bound_socket, require_usable
from guardrail.server.settings import Listening


def test_a_free_port_is_found_and_told():
    where = Listening(port=0)
    with bound_socket(where) as bound:
        address = address_of(bound, where)
        assert address == f"http://127.0.0.1:{bound.getsockname()[1]}"
        taken = Listening(port=bound.getsockname()[1])
        for use in (require_usable, lambda where: bound_socket(where).__enter__()):
            with pytest.raises(ConfigurationError, match="already in use; choose") as told:
                use(taken)
            assert str(told.value).count("127.0.0.1") == 1


def test_another_machine_s_address_is_refused():
    with pytest.raises(ConfigurationError, match=r"192\.0\.2\.1"):
        with bound_socket(Listening(host="192.0.2.1", port=0)):
            pass


def test_a_unix_socket_is_open_to_user_and_group_and_removed(tmp_path):
    where = Listening(unix_socket=tmp_path / "s")
    with bound_socket(where) as bound:
        assert address_of(bound, where) == f"unix:{tmp_path}/s"
        assert stat.S_IMODE((tmp_path / "s").stat().st_mode) == 0o660
    assert not (tmp_path / "s").exists()


def test_a_unix_socket_that_was_left_behind_is_replaced(tmp_path):
    left = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    left.bind(str(tmp_path / "s"))
    left.close()
    with bound_socket(Listening(unix_socket=tmp_path / "s")):
        pass


def test_a_unix_socket_that_is_answered_and_a_plain_file_are_left_alone(tmp_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as other:
        other.bind(str(tmp_path / "s"))
        other.listen()
        (tmp_path / "file").write_text("precious")
        for name in ("s", "file"):
            with pytest.raises(ConfigurationError, match="cannot listen"):
                with bound_socket(Listening(unix_socket=tmp_path / name)):
                    pass
    assert (tmp_path / "file").read_text() == "precious"


def test_an_address_is_tried_and_not_kept(tmp_path):
    where = Listening(unix_socket=tmp_path / "s")
    require_usable(where)
    assert not (tmp_path / "s").exists()
    with bound_socket(where):
        pass


def test_a_file_that_is_no_certificate_is_told_before_a_port_is_tried(tmp_path):
    for name in ("cert", "key"):
        (tmp_path / name).write_text("no PEM")
    where = Listening(host="192.0.2.1", tls_cert=tmp_path / "cert", tls_key=tmp_path / "key")
    with pytest.raises(ConfigurationError, match="both in PEM"):
        require_usable(where)


def test_half_of_a_certificate_is_refused(tmp_path):
    with pytest.raises(ConfigurationError, match="--tls-key"):
        Listening(tls_cert=tmp_path / "cert")
