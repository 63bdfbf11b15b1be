#!/usr/bin/env bash
# Times README's first command from an empty environment: a copy of the repository, a new environment, install, train.
#
#   bash benchmarks/quickstart.sh REPOSITORY FOLDER [OPTIONS OF PIP INSTALL]
#
# FOLDER is to be new, with 8 GB of room. The aim, 300 s in all, is of packages that pip has at hand: run it twice, or
# fill pip's cache before. Beside the seconds stands processor time, which other work on the machine changes less.
set -euo pipefail
repository=$(cd "$1" && pwd) folder=$(realpath -m "$2")
shift 2
mkdir "$folder"
git -C "$repository" archive --prefix=fastaug/ HEAD | tar x -C "$folder"
cd "$folder/fastaug"
export FASTAUG_CACHE=$folder/cache
unset PYTHONPATH VIRTUAL_ENV
TIMEFORMAT="  %R s, processor %U s and %S s of the system"
step() { printf '%s\n' "$1"; shift; time "$@"; }

step "a virtual environment" python3 -m venv .venv
. .venv/bin/activate
step "pip install" pip install --quiet "$@" -e ".[demo]"
train() { accelerate launch fastaug/train.py recipes/quickstart.yaml >train.log 2>&1 || { tail -n 30 train.log; exit 1; }; }
step "train" train
grep "test top1" train.log
echo "in all $SECONDS s; $(du -sm .venv | cut -f1) MB in $(pip list 2>/dev/null | tail -n +3 | wc -l) packages"
