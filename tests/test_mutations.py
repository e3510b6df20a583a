"""The table of faults stays true: each still fits its file, and its test is still there."""

import ast
import shutil

import pytest

from tests import mutations


@pytest.mark.parametrize("fault", mutations.FAULTS, ids=lambda fault: fault.name)
def test_each_fault_can_be_made_and_its_test_is_there(fault, tmp_path):
    (tmp_path / fault.path).parent.mkdir(parents=True)
    shutil.copyfile(mutations.ROOT / fault.path, tmp_path / fault.path)
    mutations.put(fault, tmp_path)
    ast.parse((tmp_path / fault.path).read_text())
    path, _, case = fault.test.partition("::")
    name, _, _ = case.partition("[")
    tree = ast.parse((mutations.ROOT / path).read_text())
    tests = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    assert not name or name in tests
