"""What a process and all below it use: processor seconds and memory."""

from pathlib import Path

import psutil


def members(process: psutil.Process) -> list[psutil.Process]:
    """The process and its living descendants."""
    return [process, *process.children(recursive=True)]


def cpu_seconds(process: psutil.Process) -> float:
    """User and system seconds of the tree so far, ended children included; a clock tick (10 ms) exact."""
    total = 0.0
    for member in members(process):
        try:
            times = member.cpu_times()
        except psutil.NoSuchProcess:
            continue  # ended just now: its parent has its seconds from here on
        total += times.user + times.system + times.children_user + times.children_system
    return total


def proportional_mib(process: psutil.Process) -> float:
    """Proportional set size of the tree: a page that n processes share counts 1/n in each."""
    total = 0
    for member in members(process):
        try:
            total += member.memory_full_info().pss
        except psutil.NoSuchProcess:
            continue
    return total / 2**20


def busy_seconds() -> float:
    """Processor seconds that the whole machine has worked."""
    times = psutil.cpu_times()
    return float(times.user + times.nice + times.system + times.irq + times.softirq)


def memory_mib(field: str) -> float:
    """Of this process: VmRSS, what is resident, or VmHWM, its peak. Not ru_maxrss: it begins with the parent's."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1024
