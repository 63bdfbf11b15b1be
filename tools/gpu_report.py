"""Runs everything that needs a GPU and writes one report: the checks of `pytest -m gpu`, op bandwidth beside a copy,
loader and training step in float32 and bf16.

Exit codes: 0 all gates hold; 1 a gate is missed; 77 nothing could run here: the report then lists the checks and
benchmarks and says what is missing.
"""

import os
import sys

sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

import argparse
import json
from pathlib import Path


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, metavar="FILE", help="report.md, or report.json with every number")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the JSON form too")
    parser.add_argument("--model", default="resnet50", help="of the training step (default resnet50)")
    parser.add_argument("--batch", type=int, default=256, help="images (default 256)")
    arguments = parser.parse_args()
    if arguments.batch < 2:
        parser.error(f"--batch must be at least 2, found {arguments.batch}")
    for file in (arguments.out, arguments.json):
        if file is not None and not file.parent.is_dir():
            parser.error(f"there is no folder {file.parent}")
    return arguments


def main() -> int:
    """The exit code, see above."""
    arguments = parse()
    import torch

    from benchmarks.gpu_report import FAILED, MISSING, PASSED, Work, about, markdown, measured, missing, planned

    report = about()
    if missing():
        report |= planned()
        code = MISSING
    else:
        device = torch.device("cuda", torch.cuda.current_device())
        report |= measured(device, Work(model=arguments.model, batch=arguments.batch))
        code = PASSED if all(report["gates"].values()) else FAILED
    text = json.dumps(report, indent=1) + "\n"
    page = markdown(report)
    if arguments.out:
        arguments.out.write_text(text if arguments.out.suffix == ".json" else page)
    if arguments.json:
        arguments.json.write_text(text)
    print(page)
    return code


if __name__ == "__main__":
    sys.exit(main())
