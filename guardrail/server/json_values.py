"""JSON values as the schemas of bodies name them: a list is refused at its first wrong item."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

Object = dict[str, Any]
# A list of a million wrong items would otherwise be a million errors, for seconds and gigabytes.
Objects = Annotated[list[Object], Field(fail_fast=True)]
Texts = Annotated[list[str], Field(fail_fast=True)]
