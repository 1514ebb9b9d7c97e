"""Does a guard work inside this model? Checks that run on any model and its processor.

    from guardrail.conformance import check_model

    report = check_model(model, processor)
    report.ok, report["steering"].outcome

Every check compares the guard with a slow reference of its own, by random directions and fixed
seeds, so it says something about the mechanics and nothing about what a model finds unsafe.
"""

from guardrail.conformance.report import Check, Outcome, Report
from guardrail.conformance.run import CHECKS, check_model

__all__ = ["CHECKS", "Check", "Outcome", "Report", "check_model"]
