from __future__ import annotations

import hashlib
import hmac
import pickle

import pytest

from guardrail.errors import ConfigurationError
from guardrail.server.keys import api_key, key_of, keys_from_file, keys_from_text

A, B = "sesame-open-1234567", "sesame-shut-1234567"


def test_a_token_is_known_by_the_name_of_its_key():
    keys = keys_from_text(f"web:{A}\nbatch:{B}", source="x")
    assert key_of(A, keys).name == "web"
    assert key_of(B, keys).name == "batch"
    assert key_of(A + "x", keys) is None
    assert key_of("", keys) is None


def test_every_key_is_compared_whichever_one_fits(monkeypatch):
    compared = []
    real = hmac.compare_digest

    def compare(a, b):
        compared.append(a)
        return real(a, b)

    monkeypatch.setattr(hmac, "compare_digest", compare)
    keys = keys_from_text(f"web:{A}\nbatch:{B}", source="x")
    for token in (A, B, "neither"):
        compared.clear()
        key_of(token, keys)
        assert len(compared) == 2


def test_comments_blank_lines_commas_and_nameless_tokens_are_read():
    keys = keys_from_text(f"# ours\n\n web:{A} , {B}\n", source="x")
    assert [key.name for key in keys] == ["web", "key-2"]


def test_a_digest_stands_for_its_token():
    digest = hashlib.sha256(A.encode()).hexdigest()
    assert key_of(A, [api_key("web", f"sha256:{digest}")]).name == "web"
    [bare] = keys_from_text(f"sha256:{digest}", source="x")
    assert key_of(A, [bare]).name == "key-1"


def test_the_digest_of_nothing_lets_nobody_in():
    with pytest.raises(ConfigurationError, match="'web' is the digest of an empty token"):
        api_key("web", f"sha256:{hashlib.sha256(b'').hexdigest()}")


def test_one_client_may_have_two_tokens():
    keys = keys_from_text(f"web:{A}\nweb:{B}", source="x")
    assert key_of(A, keys).name == key_of(B, keys).name == "web"


def test_neither_the_token_nor_its_digest_is_shown():
    key = api_key("web", A)
    shown = repr(key) + str(key)
    assert A not in shown
    assert repr(key.digest) not in shown
    assert A.encode() not in pickle.dumps(key)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "no API key"),
        ("# only words", "no API key"),
        ("web:short", "16 to 512"),
        ("web:has a space in it 123", "16 to 512"),
        ("web:sha256:" + "0" * 63, "64 hexadecimal"),
        (f"we b:{A}", "name"),
        (f"web:{A}\nother:{A}", "twice"),
    ],
)
def test_unusable_keys_are_refused_and_not_told(text, told):
    with pytest.raises(ConfigurationError, match=told) as caught:
        keys_from_text(text, source="KEYS")
    assert "KEYS" in str(caught.value)
    assert A not in str(caught.value)
    assert "short" not in str(caught.value)


def test_a_file_that_others_may_read_is_warned_of(tmp_path):
    path = tmp_path / "keys"
    path.write_text(f"web:{A}")
    path.chmod(0o600)
    keys, warning = keys_from_file(path)
    assert [key.name for key in keys] == ["web"]
    assert warning is None
    path.chmod(0o644)
    assert "chmod 600" in keys_from_file(path)[1]


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(ConfigurationError, match="nowhere"):
        keys_from_file(tmp_path / "nowhere")
    (tmp_path / "odd").write_text("wéb:" + A)
    with pytest.raises(ConfigurationError, match="ASCII"):
        keys_from_file(tmp_path / "odd")


def test_a_key_is_trusted_only_where_its_name_says_so():
    digest = hashlib.sha256(B.encode()).hexdigest()
    keys = keys_from_text(f"web:{A}\nboard+trusted:sha256:{digest}", source="x")
    assert [(key.name, key.trusted) for key in keys] == [("web", False), ("board", True)]
    assert key_of(B, keys).trusted


@pytest.mark.parametrize("name", ["web+", "web+untrusted", "web+trusted+trusted", "+trusted"])
def test_another_mark_is_an_error_and_never_passed_over(name):
    with pytest.raises(ConfigurationError) as caught:
        keys_from_text(f"{name}:{A}", source="x")
    assert A not in str(caught.value)
