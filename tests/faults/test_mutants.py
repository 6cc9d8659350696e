"""The experiments are checked too: with a protection taken out, each finds something.

The dear ones among `CHECKS` are done by `python -m tests.faults.soak` alone.
"""

from __future__ import annotations

import ast

import pytest

from tests.faults.noticed import CHECKS, MUTANTS, outcome

pytestmark = [pytest.mark.faults, pytest.mark.slow]

CHEAP = [check for check in CHECKS if check.cheap]


@pytest.mark.parametrize("check", CHEAP, ids=lambda check: f"{check.mutant}-{check.check}")
def test_a_missing_protection_is_noticed(check, tmp_path):
    assert outcome(check.check, tmp_path, check.mutant).findings != ()


def test_every_mutation_has_a_check():
    tree = ast.parse((MUTANTS / "sitecustomize.py").read_text())
    functions = (node for node in tree.body if isinstance(node, ast.FunctionDef))
    mutants = {function.name for function in functions if function.decorator_list}
    assert {check.mutant for check in CHECKS} == mutants
