from __future__ import annotations

import time

import pytest

from guardrail.model.company import Company


@pytest.fixture
def company():
    return Company()


def test_nobody_is_expected_without_a_sign(company):
    assert not company.is_expected(60)


def test_one_that_met_another_is_a_sign_once(company):
    company.met()
    assert company.is_expected(0)
    assert not company.is_expected(0)


def test_a_shared_batch_is_a_sign_for_a_while(company):
    company.shared()
    assert company.is_expected(60)
    time.sleep(0.002)
    assert not company.is_expected(0.001)


def test_a_request_that_is_being_read_is_a_sign_until_it_has_come(company):
    company.comes("a")
    company.comes("b")
    company.came("a")
    assert company.is_expected(0)
    assert company.is_expected(0)
    company.came("b")
    company.came("b")
    assert not company.is_expected(0)
