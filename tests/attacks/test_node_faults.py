"""Faults between hosts, each on two network namespaces of this machine."""

import os
import shutil
from pathlib import Path

import pytest

from attacks.node_faults import FAULTS, attack

TOOLS = ("ip", "unshare", "strace")


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.skipif(os.geteuid() != 0 or not all(map(shutil.which, TOOLS)), reason=f"needs root and {TOOLS}")
@pytest.mark.parametrize("fault", [fault.__name__ for fault in FAULTS])
def test_a_fault_ends_as_asked(fault: str, tmp_path: Path) -> None:
    assert attack(tmp_path, [fault]) == 0
