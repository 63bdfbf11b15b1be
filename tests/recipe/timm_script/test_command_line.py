"""Commands are taken apart as a shell would: launchers, processes, quotes, continued lines, files of arguments."""

from pathlib import Path

import pytest

from fastaug.errors import RecipeError
from fastaug.recipe.timm_script.command_line import LARGEST, read_command, read_file


@pytest.mark.parametrize(
    ("command", "processes"),
    [
        ("./train.py", 1),
        ("python train.py", 1),
        ("./distributed_train.sh 8", 8),
        ("bash path/to/distributed_train.sh 3", 3),
        ("torchrun --nproc_per_node 4 train.py", 4),
        ("torchrun --nnodes=2 --nproc-per-node=4 --rdzv_backend c10d x/train.py", 8),
        ("python -m torch.distributed.launch --nproc_per_node=2 train.py", 2),
        ("accelerate launch --num_processes 6 --num_machines 2 train.py", 6),
        ("CUDA_VISIBLE_DEVICES=0,1 OMP_NUM_THREADS=4 torchrun --nproc_per_node 2 train.py", 2),
        ("", 1),
    ],
)
def test_launchers_say_how_many_processes(command: str, processes: int) -> None:
    given = read_command(f"{command} --model resnet18 /data")
    assert given.processes == processes
    assert given.values["model"] == "resnet18"
    assert given.values["data"] == "/data"
    assert given.values["epochs"] == 300
    assert given.given == {"model", "data"}
    assert len(given.environment) == command.count("=0,1") + command.count("=4 torchrun")


def test_lines_may_be_continued_and_words_quoted() -> None:
    given = read_command("python train.py \\\n  --data-dir '/my images' \\\r\n --experiment \"a b\"\n")
    assert given.values["data_dir"] == "/my images"
    assert given.values["experiment"] == "a b"
    assert given.text == "python train.py --data-dir '/my images' --experiment \"a b\""


def test_lines_of_a_script_that_are_no_command_are_passed_over() -> None:
    given = read_command("#!/bin/bash\n# four of them\nNCCL_DEBUG=1 torchrun --nproc_per_node=4 train.py /data\n")
    assert given.environment == ["NCCL_DEBUG=1"]
    assert given.processes == 4
    assert given.text.startswith("NCCL_DEBUG=1 torchrun")


def test_processes_that_the_launcher_does_not_say() -> None:
    assert read_command("torchrun --nproc_per_node gpu train.py /data", processes=4).processes == 4
    assert read_command("srun -n 8 python train.py /data", processes=8).processes == 8


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("torchrun --nproc_per_node gpu train.py /data", "--nproc_per_node: 'gpu' is no number of processes"),
        ("srun -n 8 python train.py /data", "srun: does not say here how many processes train; give --processes N"),
        ("mpirun -np 8 python train.py /data", "mpirun: does not say here how many processes train"),
        ("accelerate launch --multi_gpu train.py /data", "accelerate: does not say here how many processes train"),
        ("./distributed_train.sh", "nothing is no number of processes"),
        ("python validate.py --model x", "validate.py: not timm's train.py"),
        ("resnet50 /data", "'resnet50': no train.py in this command"),
        ("", "nothing: no train.py in this command"),
        ("train.py /data 2>&1 | tee log", "'2>&1': the command ends before it"),
        ("train.py /data && echo done", "'&&': the command ends before it"),
        ("train.py --data-dir $DATA", "'$DATA': a shell would replace this"),
        ("train.py --data-dir '/data", "No closing quotation; close the quote"),
        ("train.py " + "x" * LARGEST, "is longer than"),
    ],
)
def test_commands_that_cannot_be_read(command: str, message: str) -> None:
    with pytest.raises(RecipeError) as refused:
        read_command(command)
    assert message in str(refused.value)


@pytest.mark.parametrize("processes", [0, -1])
def test_no_process_cannot_train(processes: int) -> None:
    with pytest.raises(RecipeError, match="--processes N"):
        read_command("train.py /data", processes=processes)


def test_a_config_is_read_before_the_words(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("lr: 0.5\nepochs: 20\n")
    given = read_command(f"train.py -c {tmp_path / 'c.yaml'} --epochs 30 /data")
    assert (given.values["lr"], given.values["epochs"]) == (0.5, 30)
    assert given.given == {"config", "lr", "epochs", "data"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a: [1", "cannot be read"),
        (b"\xff\xfe", "cannot be read"),
        (b"task: train\nimgsz: 640\n", "imgsz: no argument of timm's"),
        (b"- 1\n", "no mapping of arguments"),
        (b"x" * (LARGEST + 1), "larger than"),
    ],
)
def test_files_of_other_programs(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "args.yaml").write_bytes(content)
    with pytest.raises(RecipeError) as refused:
        read_file(tmp_path / "args.yaml")
    assert message in str(refused.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"gone\.yaml: cannot be read .*No such file"):
        read_file(tmp_path / "gone.yaml")
