from __future__ import annotations

import json
import sys

import pytest

from guardrail.errors import ConfigurationError, MissingExtraError
from guardrail.policy import Limits, Policy, Thresholds, VideoSampling
from guardrail.policy.files import load_policy, policy_from_env
from guardrail.types import Action, Modality

SETTINGS = {
    "mode": "shadow",
    "actions": ["flag"],
    "thresholds": {"image": {"steer": 0.5, "flag": 0.9}},
    "allowed_hosts": ["example.org"],
    "fold_text": False,
    "limits": {"images": 4, "timeout_s": 2.5},
}
TOML = """
mode = "shadow"
actions = ["flag"]
allowed_hosts = ["example.org"]
fold_text = false
[thresholds.image]
steer = 0.5
flag = 0.9
[limits]
images = 4
timeout_s = 2.5
"""
YAML = """
mode: shadow
actions: [flag]
allowed_hosts: [example.org]
fold_text: false
thresholds: {image: {steer: 0.5, flag: 0.9}}
limits: {images: 4, timeout_s: 2.5}
"""
WANTED = Policy(
    mode="shadow",
    actions=frozenset({Action.FLAG}),
    thresholds={Modality.IMAGE: Thresholds(steer=0.5, flag=0.9)},
    allowed_hosts=frozenset({"example.org"}),
    fold_text=False,
    limits=Limits(images=4, timeout_s=2.5),
)


def _file(tmp_path, name, text):
    path = tmp_path / name
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("policy.toml", TOML),
        ("policy.yaml", YAML),
        ("policy.YML", YAML),
        ("policy.json", json.dumps(SETTINGS)),
    ],
)
def test_every_format_gives_the_same_policy(tmp_path, name, text):
    assert load_policy(_file(tmp_path, name, text)) == WANTED


@pytest.mark.parametrize("name", ["empty.toml", "empty.yaml"])
def test_an_empty_file_changes_nothing(tmp_path, name):
    assert load_policy(_file(tmp_path, name, "")) == Policy()


@pytest.mark.parametrize(
    ("name", "text"),
    [("p.toml", "[limits]\nimagse = 4"), ("p.json", '{"limits": {"imagse": 4}}')],
)
def test_an_unknown_name_is_an_error_with_file_name_and_suggestion(tmp_path, name, text):
    with pytest.raises(ConfigurationError) as caught:
        load_policy(_file(tmp_path, name, text))
    assert f"{name}: 'limits.imagse' is no setting; did you mean 'limits.images'?" in str(
        caught.value
    )


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("p.toml", 'mode = "shadwo"', "mode: Input should be 'enforce' or 'shadow'; got 'shadwo'"),
        ("p.toml", "[thresholds.image]\nsteer = 2\nflag = 1", r"must not exceed flag"),
        ("p.toml", "[thresholds.images]\nsteer = 1\nflag = 1", r"thresholds.images: .*'image'"),
        ("p.toml", "mode = ", "p.toml: "),
        ("p.json", '{"mode": "shadow", "mode": "enforce"}', "given twice"),
        ("p.json", "[1]", "table of settings"),
        ("p.json", "[" * 100_000, "p.json: "),
        ("p.yaml", "mode: [", "p.yaml: "),
        ("p.yaml", "!!python/object/apply:os.getcwd []", "could not determine a constructor"),
        ("p.ini", "", r"ends in \.toml"),
        ("policy", "", "got no ending"),
    ],
)
def test_what_cannot_hold_is_a_configuration_error(tmp_path, name, text, words):
    with pytest.raises(ConfigurationError, match=words):
        load_policy(_file(tmp_path, name, text))


def test_a_missing_file_is_a_configuration_error(tmp_path):
    with pytest.raises(ConfigurationError, match=r"gone\.toml: cannot be read"):
        load_policy(tmp_path / "gone.toml")


def test_yaml_without_pyyaml_names_the_extra(tmp_path, monkeypatch):
    path = _file(tmp_path, "p.yaml", YAML)
    monkeypatch.setitem(sys.modules, "yaml", None)  # how Python marks what cannot be imported
    with pytest.raises(MissingExtraError, match=r"guardrail-vlm\[yaml\]"):
        load_policy(path)


def test_the_environment_gives_the_same_policy():
    environ = {
        "GUARDRAIL_POLICY_MODE": "shadow",
        "GUARDRAIL_POLICY_ACTIONS": '["flag"]',
        "GUARDRAIL_POLICY_THRESHOLDS__IMAGE__STEER": "0.5",
        "GUARDRAIL_POLICY_THRESHOLDS__IMAGE__FLAG": "0.9",
        "GUARDRAIL_POLICY_ALLOWED_HOSTS": '["example.org"]',
        "GUARDRAIL_POLICY_FOLD_TEXT": "false",
        "GUARDRAIL_POLICY_LIMITS__IMAGES": "4",
        "GUARDRAIL_POLICY_LIMITS__TIMEOUT_S": "2.5",
        "HOME": "/root",
    }
    assert policy_from_env(environ=environ) == WANTED


def test_no_variables_give_the_default_policy():
    assert policy_from_env(environ={"PATH": "/bin"}) == Policy()


def test_the_process_environment_is_the_default(monkeypatch):
    monkeypatch.setenv("MY_GUARD_MODE", "shadow")
    assert policy_from_env("MY_GUARD_").mode == "shadow"


def test_a_part_refines_the_whole_whatever_their_order():
    environ = {
        "GUARDRAIL_POLICY_LIMITS__IMAGES": "2",
        "GUARDRAIL_POLICY_LIMITS": '{"images": 9, "frames": 3}',
    }
    limits = policy_from_env(environ=environ).limits
    assert (limits.images, limits.frames) == (2, 3)


def test_null_takes_a_limit_away_and_text_stays_text():
    environ = {
        "GUARDRAIL_POLICY_LIMITS__TIMEOUT_S": "null",
        "GUARDRAIL_POLICY_REFUSAL_MESSAGE": "[no]",
    }
    policy = policy_from_env(environ=environ)
    assert policy.limits.timeout_s is None
    assert policy.refusal_message == "[no]"


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        (
            "GUARDRAIL_POLICY_LIMITS__IMAGSE",
            "4",
            "'GUARDRAIL_POLICY_LIMITS__IMAGSE' is no setting; did you mean "
            "'GUARDRAIL_POLICY_LIMITS__IMAGES'",
        ),
        (
            "GUARDRAIL_POLICY_LIMITS__IMAGES",
            "many",
            "GUARDRAIL_POLICY_LIMITS__IMAGES: .*got 'many'",
        ),
        (
            "GUARDRAIL_POLICY_LIMITS__IMAGES__X",
            "1",
            "GUARDRAIL_POLICY_LIMITS__IMAGES: .*valid integer",
        ),
        ("GUARDRAIL_POLICY_ACTIONS", "flag", "GUARDRAIL_POLICY_ACTIONS is written as JSON"),
        ("GUARDRAIL_POLICY_", "1", "'GUARDRAIL_POLICY_' is no setting"),
    ],
)
def test_a_variable_that_cannot_hold_is_named(variable, value, words):
    with pytest.raises(ConfigurationError, match=words):
        policy_from_env(environ={variable: value})


def test_a_setting_given_whole_and_in_parts_is_refused():
    environ = {"GUARDRAIL_POLICY_LIMITS": "[]", "GUARDRAIL_POLICY_LIMITS__IMAGES": "4"}
    with pytest.raises(ConfigurationError, match="limits is set both whole and in parts"):
        policy_from_env(environ=environ)


def test_variables_outside_the_prefix_are_other_programs():
    environ = {
        "GUARDRAIL_SERVICE_HOST": "10.0.0.1",
        "GUARDRAIL_TINY_VLM": "/models/tiny",
        "GUARDRAIL_POLICY_MODE": "shadow",
    }
    assert policy_from_env(environ=environ) == Policy(mode="shadow")


def test_videos_have_thresholds_and_a_sampling_of_their_own(tmp_path):
    text = "[thresholds.video]\nsteer = 0.5\nflag = 0.9\n[video]\nfps = 1\nwindow = 16\n"
    policy = load_policy(_file(tmp_path, "p.toml", text))
    assert policy.thresholds[Modality.VIDEO].flag == 0.9
    assert policy.video == VideoSampling(fps=1, window=16)
    assert policy.video.max_fps == VideoSampling().max_fps


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("p.toml", 'judge = ["turns", "system"]'),
        ("p.yaml", "judge: [system, turns]"),
        ("p.json", '{"judge": ["turns", "system"]}'),
    ],
)
def test_whose_words_are_judged_is_a_list_in_every_format(tmp_path, name, text):
    wanted = Policy(judge={"turns", "system"})
    assert load_policy(_file(tmp_path, name, text)) == wanted
    assert policy_from_env(environ={"GUARDRAIL_POLICY_JUDGE": '["system", "turns"]'}) == wanted
    assert wanted.judged_roles == {"user", "system"}
    with pytest.raises(ConfigurationError, match=r"judge\.\d.*'answers'; got 'users'"):
        load_policy(_file(tmp_path, name, text.replace("turns", "users")))
