"""Does a guard work inside this model? Checks that run on any model and its processor.

    from guardrail.conformance import check_model

    report = check_model(model, processor)
    report.works, report["steering"].outcome

Every check compares the guard with a slow reference of its own, by random directions and fixed
seeds, so it says something about the mechanics and nothing about what a model finds unsafe.
"""

from guardrail.conformance.checks import CHECKS, Definition
from guardrail.conformance.report import Check, Outcome, Report, check_model

__all__ = ["CHECKS", "Check", "Definition", "Outcome", "Report", "check_model"]
