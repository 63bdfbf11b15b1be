"""Starts Python scripts as processes of their own by forking one that has imported torch and fastaug already.

Reads a job from each line of standard input, {"argv": [...], "environments": [{...}, ...]}: one process for each
environment. Answers with a line of their exit codes and what each has printed. Importing torch, Accelerate, timm and
DALI takes a process longer than what most tests have it do; nothing runs in this one, which therefore has no threads.
"""

import json
import os
import runpy
import sys
from contextlib import ExitStack
from tempfile import TemporaryFile
from typing import NoReturn


def main() -> None:
    import fastaug.training.worker  # noqa: F401

    for line in sys.stdin:
        job = json.loads(line)
        with ExitStack() as stack:
            outputs = [stack.enter_context(TemporaryFile()) for _ in job["environments"]]
            started = zip(job["environments"], outputs, strict=True)
            children = [fork(job["argv"], environment, output.fileno()) for environment, output in started]
            codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
            said = []
            for output in outputs:
                output.seek(0)
                said.append(output.read().decode(errors="replace"))
        print(json.dumps({"codes": codes, "said": said}), flush=True)


def fork(argv: list[str], environment: dict[str, str], output: int) -> int:
    """The process id of a child that runs the script argv[0], or the code argv[1] where that is -c."""
    child = os.fork()
    if not child:
        run(argv, environment, output)
    return child


def run(argv: list[str], environment: dict[str, str], output: int) -> NoReturn:
    """Becomes `python argv...` in that environment, printing to the file `output`; ends with its exit code."""
    for stream in (1, 2):
        os.dup2(output, stream)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.environ.clear()
    os.environ.update(environment)
    code = 1
    try:
        code = _ended(argv)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _ended(argv: list[str]) -> int:
    """The exit code of the script; its traceback is printed as Python does."""
    sys.argv = argv
    try:
        if argv[0] == "-c":
            exec(compile(argv[1], "<string>", "exec"), {"__name__": "__main__"})
        else:
            sys.path[0] = os.path.dirname(argv[0])
            runpy.run_path(argv[0], run_name="__main__")
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        return 1
    return 0


if __name__ == "__main__":
    main()
