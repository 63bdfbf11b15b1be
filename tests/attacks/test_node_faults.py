"""Faults between hosts, each on two network namespaces of this machine."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from attacks.node_faults import FAULTS, attack
from attacks.nodes import networked

TOOLS = ("ip", "unshare", "strace")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0 or not all(map(shutil.which, TOOLS)), reason=f"needs root and {TOOLS}"),
]


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("fault", [fault.__name__ for fault in FAULTS])
def test_a_fault_ends_as_asked(fault: str, tmp_path: Path) -> None:
    assert attack(tmp_path, [fault]) == 0


def test_networks_can_be_made_again_while_a_process_in_them_is_left() -> None:
    with networked(1) as (name,):
        # What the command says shows that it is in the network before that is taken down.
        left = subprocess.Popen(
            ["ip", "netns", "exec", name, "sh", "-c", "echo; exec sleep 60"], stdout=subprocess.PIPE
        )
        assert left.stdout is not None
        left.stdout.readline()
    with left, networked(1) as again:
        left.kill()
    assert again == [name]
