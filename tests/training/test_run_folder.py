import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fastaug.atomic_files import write_atomically
from fastaug.errors import RecipeError, StorageError
from fastaug.recipe.reading import read_recipe, read_stored, to_yaml
from fastaug.recipe.schema import RESUMABLE, SCHEMA, Data, Optim, Recipe, Run
from fastaug.training.run_folder import RunFolder, read_log

ROOT = Path(__file__).resolve().parents[2]
HOLD = """
import sys, time
from fastaug.recipe.schema import Data, Recipe, Run
from fastaug.training.run_folder import RunFolder, read_log
folder = RunFolder(sys.argv[1])
folder.open(Recipe(run=Run(dir=sys.argv[1]), data=Data(root="x")))
print("open", flush=True)
time.sleep(60)
"""


def finish(folder: Path) -> None:
    """Only a run with a checkpoint or a result keeps its recipe."""
    (folder / "result.json").write_text("{}")


def recipe(folder: Path, **keys: object) -> Recipe:
    return Recipe(run=Run(dir=str(folder), **keys), data=Data(root="x"))  # type: ignore[arg-type]


def test_a_folder_is_made_with_its_recipe(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "run"
    folder = RunFolder(path)
    folder.open(recipe(path))
    assert folder.checkpoints.is_dir()
    assert read_recipe(path / "recipe.yaml") == recipe(path)
    assert [file.name for file in path.iterdir() if file.name.endswith(".tmp")] == []
    folder.close()


def test_a_folder_in_use_by_another_process_is_refused_until_that_is_killed(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"open\n"
    try:
        with pytest.raises(StorageError, match=r"run\.dir: .* is in use by another process"):
            RunFolder(tmp_path).open(recipe(tmp_path))
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    folder = RunFolder(tmp_path)
    folder.open(recipe(tmp_path))  # the lock died with its process
    folder.close()
    again = RunFolder(tmp_path)
    again.open(recipe(tmp_path))
    again.close()


def test_a_refused_start_changes_nothing(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.open(recipe(tmp_path))
    stored = (tmp_path / "recipe.yaml").read_bytes()
    finish(tmp_path)
    with pytest.raises(StorageError, match="in use"):
        RunFolder(tmp_path).open(recipe(tmp_path, seed=1))
    folder.close()
    other = RunFolder(tmp_path)
    with pytest.raises(RecipeError):
        other.open(recipe(tmp_path, seed=1))
    assert not other.locked  # so that nothing is written at the end either
    assert (tmp_path / "recipe.yaml").read_bytes() == stored
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "checkpoints", "recipe.yaml", "result.json"]


def test_a_folder_without_a_checkpoint_takes_another_recipe(tmp_path: Path) -> None:
    """Advice to change a key can be followed: nothing has been trained yet."""
    for seed in (1, 2):
        folder = RunFolder(tmp_path)
        folder.open(recipe(tmp_path, seed=seed))
        folder.close()
        assert read_recipe(tmp_path / "recipe.yaml").run.seed == seed
    (tmp_path / "checkpoints" / "step-00000007").mkdir()
    folder = RunFolder(tmp_path)
    with pytest.raises(RecipeError, match=r"run\.seed: is 3 but this run was started with 2"):
        folder.open(recipe(tmp_path, seed=3))


@pytest.mark.parametrize(("status", "finished"), [('{"code": 0}', True), ('{"code": 3}', False), ("[", False)])
def test_a_folder_knows_whether_its_run_has_ended_and_where_it_stands(
    tmp_path: Path, status: str, finished: bool
) -> None:
    (tmp_path / "checkpoints" / "step-00000007").mkdir(parents=True)
    (tmp_path / "status.json").write_text(status)
    for result in (False, True):
        if result:
            finish(tmp_path)
        folder = RunFolder(tmp_path)
        folder.open(recipe(tmp_path))
        folder.close()
        assert folder.finished == (finished and result)
        assert folder.step == 7


def test_what_killed_writes_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    for name in (".status.json.4711.tmp", ".metrics.jsonl.1.tmp", ".notes.tmp", "mine.12.tmp"):
        (tmp_path / name).touch()
    folder = RunFolder(tmp_path)
    folder.open(recipe(tmp_path))
    folder.close()
    found = {path.name for path in tmp_path.iterdir()}
    assert found == {".lock", "checkpoints", "recipe.yaml", ".notes.tmp", "mine.12.tmp"}


def test_another_recipe_is_refused_naming_every_key(tmp_path: Path) -> None:
    finish(tmp_path)
    write_atomically(tmp_path / "recipe.yaml", to_yaml(recipe(tmp_path)).encode())
    changed = recipe(tmp_path, seed=4, keep=9)
    changed.optim = Optim(lr=0.3)
    folder = RunFolder(tmp_path)
    with pytest.raises(RecipeError) as caught:
        folder.open(changed)
    folder.close()
    assert caught.value.problems == [
        "run.seed: is 4 but this run was started with 0; set it back, or choose another run.dir",
        "optim.lr: is 0.3 but this run was started with 0.1; set it back, or choose another run.dir",
    ]


def test_keys_that_change_no_number_may_differ(tmp_path: Path) -> None:
    finish(tmp_path)
    write_atomically(tmp_path / "recipe.yaml", to_yaml(recipe(tmp_path / "moved")).encode())
    changed = recipe(tmp_path, log_every=3, checkpoint_every=7, keep=1, log_ids=True, trackers=["tensorboard"])
    changed.run.peer_timeout, changed.run.checkpoint_async = 60, True
    changed.data.threads, changed.data.prefetch = 3, 4
    changed.eval.every, changed.eval.batch_size = 2, 10
    changed.data.root, changed.data.table, changed.data.class_map = "moved", "moved.csv", "moved.tsv"
    changed.data.verify = False
    changed.train.gradient_as_bucket_view = True
    # eval.tta needs a policy to be set, data.input_key and data.target_key a packed set.
    assert len(RESUMABLE) == 20, "a key was added: change it above too"
    folder = RunFolder(tmp_path)
    folder.open(changed)
    folder.close()
    assert read_recipe(tmp_path / "recipe.yaml") == changed


OLD_RECIPE = """\
run:
  dir: runs/quickstart
  seed: 0
  log_every: 1
  checkpoint_every: 0
  keep: 3
  log_ids: true
  log_losses: true
  trackers: []
data:
  root: embedded:mnist5k
  loader: dali
  img_size: 28
  crop: rrc
  scale:
  - 0.7
  - 1.0
  ratio:
  - 0.8
  - 1.25
  interpolation: bilinear
  crop_pct: 1.0
  mean:
  - 0.1307
  - 0.1307
  - 0.1307
  std:
  - 0.3081
  - 0.3081
  - 0.3081
  exif: ignore
  threads: 0
  prefetch: 2
  test_fraction: 0.0
  select_fraction: 0.0
  meta_fraction: 0.0
  split_seed: 0
  labels: null
  splits: null
  synthetic_images: 4096
  synthetic_classes: 1000
model:
  name: test_resnet
  pretrained: false
  initial_checkpoint: null
  stem: default
  drop: 0.0
  drop_path: 0.0
  kwargs: {}
  channels_last: true
  compile: false
  ema: false
  ema_decay: 0.9998
  ema_warmup: false
optim:
  opt: adamw
  lr: 0.003
  momentum: 0.9
  weight_decay: 0.05
  norm_weight_decay: false
  opt_eps: null
  opt_betas: null
  opt_kwargs: {}
  sched: cosine
  warmup_epochs: 1.0
  warmup_lr: 1.0e-05
  min_lr: 0.0
  decay_epochs: 30.0
  decay_milestones:
  - 30
  - 60
  - 80
  decay_rate: 0.1
  clip_grad: null
train:
  epochs: 15
  batch_size: 64
  accumulate: 1
  precision: 'no'
  drop_last: false
augment:
  aa: null
  color_jitter: null
  reprob: 0.0
  remode: const
  recount: 1
  repeats: 1
  cutout: 0.0
  hflip: 0.0
  shift: 0.0
  shift_dist: normal
  shift_limit: 1.0
  fill: mean
  fill_value: 0.0
  mixup: 0.0
  cutmix: 0.0
  mixup_prob: 1.0
  mixup_switch_prob: 0.5
  mixup_mode: batch
  mix_group: null
  lam_fold: false
  mix_layer: null
  soften: both
  soften_k: 2.0
  soften_p_max: 1.0
  soften_threshold: 1.0
  soften_visibility: area
  soften_rule: pixels
  other_class: false
  anneal_epochs: 0
  anneal_factor: 1000.0
  smoothing: 0.0
  loss: ce
  gce_q: 0.7
  trim: 0.0
  focal_gamma: 2.0
  bce_target_thresh: null
  bce_sum: false
  published_weighting: false
meta:
  learn: []
  every: 10
  fraction: 0.25
  batch_size: 64
  start_epochs: 0.0
  engine: auto
  layers: []
  solver: neumann
  alpha: 0.01
  terms: 5
  damping: 0.0
  approximate: false
  renew: 1
  half_life: 0.0
  weights: raw
  probabilities: score
  temperature: 0.5
  magnitudes: true
  slots: 2
  policy_lr: 0.01
  softness_lr: 0.01
  smoothing_lr: 0.01
  optim_lr: 0.01
  weights_lr: 0.2
  labels_temperature: 1.0
  labels_trust: 5.0
eval:
  every: 5
  batch_size: 256
  img_size: null
  weights: raw
  ece_bins: 15
"""  # as fastaug 0.1.0 stored it, before stored recipes had the number of their schema


def test_a_run_of_0_1_0_continues(tmp_path: Path) -> None:
    finish(tmp_path)
    (tmp_path / "recipe.yaml").write_text(OLD_RECIPE)
    now = read_recipe(ROOT / "recipes" / "quickstart.yaml", ["run.log_every=1", "run.log_ids=true"])
    now.run.checkpoint_every, now.run.log_losses = 0, True
    folder = RunFolder(tmp_path)
    folder.open(now)
    folder.close()
    stored = (tmp_path / "recipe.yaml").read_text()
    assert stored.startswith("schema: 1\n")
    assert read_recipe(tmp_path / "recipe.yaml") == now


@pytest.mark.parametrize("schema", [None, 2])
def test_a_run_begun_before_warm_up_was_a_prefix_goes_on_without(tmp_path: Path, schema: int | None) -> None:
    finish(tmp_path)
    (tmp_path / "recipe.yaml").write_text((f"schema: {schema}\n" if schema else "") + OLD_RECIPE)
    now = read_stored(tmp_path / "recipe.yaml")[0]
    assert not now.optim.warmup_prefix
    now.optim.warmup_prefix = True  # today's default, in a recipe that does not name the key
    for _ in ("first", "again"):
        folder = RunFolder(tmp_path)
        assert not folder.as_begun(now).optim.warmup_prefix
        folder.open(now)
        folder.close()
        assert (tmp_path / "recipe.yaml").read_text().startswith(f"schema: {schema or 1}\n")
        assert not read_recipe(tmp_path / "recipe.yaml").optim.warmup_prefix
    assert now.optim.warmup_prefix


def begun_earlier(folder: Path, meta: str, *words: str, schema: int = 3) -> tuple[Recipe, Recipe]:
    """What a run of `schema` with this section began with, and today's recipe of its section `words` in its folder."""
    stored, today = folder / "recipe.yaml", folder / "today.yaml"
    stored.write_text(f"schema: {schema}\ndata: {{root: x}}\nrun: {{dir: {folder}}}\nmeta: {{{meta}}}\n")
    today.write_text("data: {root: x}\n")
    return read_stored(stored)[0], read_recipe(today, [f"run.dir={folder}", *words])


@pytest.mark.parametrize(
    ("section", "more"),
    [
        ("learn: [policy]", ""),
        ("learn: [policy], fraction: 0.25", ""),
        ("learn: [policy], policy_lr: 0.05, magnitude: 0.4", ""),
        ("learn: [policy], engine: fused, magnitudes: false, fraction: 1.0", ""),
        ("learn: [weights], fraction: 0.25", ""),
        ("learn: [policy], frozen: true", ""),
        ("learn: [policy], probabilities: evidence, engine: fused, magnitudes: false, fraction: 1.0", ", layers: [fc]"),
    ],
)
def test_a_run_begun_when_policies_learned_by_score_goes_on_so(tmp_path: Path, section: str, more: str) -> None:
    """By the recipe of then: what it leaves open is what was meant by that."""
    finish(tmp_path)
    words = [f"meta.{text}" for text in f"{section}, every: 5".replace(": ", "=").split(", ")]
    before, now = begun_earlier(tmp_path, f"{section}, every: 5{more}", *words)
    if "[policy]" in section and "frozen" not in section:
        assert before.meta.probabilities == ("evidence" if "evidence" in section else "score")
    folder = RunFolder(tmp_path)
    assert folder.open(now).meta == before.meta
    folder.close()
    assert read_recipe(tmp_path / "recipe.yaml").meta == before.meta
    with pytest.raises(RecipeError, match=r"meta\.every: is 4 but"):
        folder.open(begun_earlier(tmp_path, f"{section}, every: 5{more}", *words, "meta.every=4")[1])
    folder.close()


def test_a_run_begun_before_evidence_explored_goes_on_so(tmp_path: Path) -> None:
    finish(tmp_path)
    before, now = begun_earlier(tmp_path, "learn: [policy]", "meta.learn=[policy]", schema=4)
    assert (before.meta.explore, before.meta.every, now.meta.explore) == (False, 6, False)
    folder = RunFolder(tmp_path)
    folder.open(now)
    folder.close()
    assert not read_recipe(tmp_path / "recipe.yaml").meta.explore
    words = ["meta.learn=[policy]", "meta.explore=true"]
    with pytest.raises(RecipeError, match=r"meta\.explore: is True but this run was started with False"):
        folder.open(begun_earlier(tmp_path, "learn: [policy]", *words, schema=4)[1])
    folder.close()
    for meta in ("learn: [weights]", "learn: [policy], frozen: true", "learn: [policy], probabilities: score"):
        assert begun_earlier(tmp_path, meta, schema=4)[0].meta.explore
    begun_earlier(tmp_path, "learn: [policy]", schema=4)
    stored = tmp_path / "recipe.yaml"
    assert not read_recipe(stored).meta.explore
    for word in ("meta.frozen=true", "meta.probabilities=score", "meta.learn=[]"):
        assert read_recipe(stored, [word, f"run.dir={tmp_path / 'other'}"]).meta.explore
    now = read_recipe(tmp_path / "today.yaml", ["meta.learn=[policy]", "meta.explore=false", "meta.frozen=true"])
    assert not now.meta.explore


@pytest.mark.parametrize(
    ("named", "changed"),
    [
        ("meta.probabilities=evidence", "meta.probabilities: is 'evidence' but"),
        ("meta.every=6", "meta.every: is 6 but this run was started with 10"),  # today's default, but named
    ],
)
def test_a_key_that_is_named_is_refused_where_an_earlier_run_had_another(
    tmp_path: Path, named: str, changed: str
) -> None:
    finish(tmp_path)
    now = begun_earlier(tmp_path, "learn: [policy]", "meta.learn=[policy]", named)[1]
    folder = RunFolder(tmp_path)
    with pytest.raises(RecipeError) as caught:
        folder.open(now)
    folder.close()
    assert any(problem.startswith(changed) for problem in caught.value.problems)


def test_an_earlier_recipe_without_a_checkpoint_does_not_count(tmp_path: Path) -> None:
    assert begun_earlier(tmp_path, "learn: [policy]", "meta.learn=[policy]")[1].meta.by_evidence
    (tmp_path / "checkpoints" / "step-00000007").mkdir(parents=True)
    assert not begun_earlier(tmp_path, "learn: [policy]", "meta.learn=[policy]")[1].meta.by_evidence


def test_a_run_of_today_is_refused_when_the_key_changes(tmp_path: Path) -> None:
    first = RunFolder(tmp_path)
    first.open(recipe(tmp_path))
    first.close()
    finish(tmp_path)
    other = recipe(tmp_path)
    other.optim.warmup_prefix = False
    folder = RunFolder(tmp_path)
    with pytest.raises(RecipeError, match=r"optim\.warmup_prefix: is False but this run was started with True"):
        folder.open(other)
    folder.close()


def test_an_old_run_that_differs_is_refused_by_the_key(tmp_path: Path) -> None:
    finish(tmp_path)
    (tmp_path / "recipe.yaml").write_text(OLD_RECIPE.replace("epochs: 15", "epochs: 16"))
    now = read_recipe(ROOT / "recipes" / "quickstart.yaml", ["run.log_losses=true"])
    folder = RunFolder(tmp_path)
    with pytest.raises(RecipeError) as caught:
        folder.open(now)
    folder.close()
    (problem,) = caught.value.problems
    assert problem.startswith("train.epochs: is 15 but this run was started with 16; set it back")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("run:\n", f"schema: {SCHEMA + 1}\nrun:\n", f"schema: {SCHEMA + 1} of "),
        ("  stem: default\n", "  stem: default\n  trunk: oak\n", "model.trunk: unknown key"),
        ("loader: dali", "loader: webdataset", "data.loader: 'webdataset' is not one of"),
    ],
)
def test_a_stored_recipe_that_cannot_be_read_is_refused_with_the_reason(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    text = OLD_RECIPE.replace(old, new, 1)
    assert text != OLD_RECIPE
    finish(tmp_path)
    (tmp_path / "recipe.yaml").write_text(text)
    folder = RunFolder(tmp_path)
    with pytest.raises(RecipeError) as caught:
        folder.open(recipe(tmp_path))
    folder.close()
    (problem,) = caught.value.problems
    assert problem.startswith(f"{tmp_path / 'recipe.yaml'}: {message}")
    assert problem.endswith("continue this run with the version that wrote it, or choose another run.dir")
    assert (tmp_path / "recipe.yaml").read_text() == text


def test_a_folder_that_cannot_be_made_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"run\.dir: .* cannot be written"):
        RunFolder(tmp_path / "file" / "run").open(recipe(tmp_path))


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_lines_behind_the_state_are_cut_and_no_others(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    written = [{"step": step, "loss": step / 3, "text": "ü\n"} for step in (10, 20, 20, 30, 31, 40)]
    for values in written:
        folder.append("metrics.jsonl", values)
    (tmp_path / "mine.jsonl").write_text("not a log of the run")
    (tmp_path / "ids-3.jsonl").write_text('{"step": 30}\n{"step": 31}\n')
    assert lines(tmp_path / "metrics.jsonl") == written
    assert folder.cut_after(30) == []
    assert lines(tmp_path / "metrics.jsonl") == written[:4]
    assert lines(tmp_path / "ids-3.jsonl") == [{"step": 30}]
    folder.append("metrics.jsonl", written[4])
    assert lines(tmp_path / "metrics.jsonl") == written[:5]
    folder.cut_after(0)
    assert (tmp_path / "metrics.jsonl").read_text() == ""
    assert not (tmp_path / "skipped.jsonl").exists()
    assert (tmp_path / "mine.jsonl").read_text() == "not a log of the run"


def test_lines_of_the_state_s_own_step_are_cut_by_their_number(tmp_path: Path) -> None:
    """A run that has ended evaluates again when it is started again: its last lines are of the step it was saved at."""
    folder = RunFolder(tmp_path)
    for event in ("train", "save", "test"):
        if event == "save":
            state = folder.lines()
        else:
            folder.append("metrics.jsonl", {"step": 20, "event": event})
    folder.append("skipped.jsonl", {"step": 20})
    assert state == {"metrics.jsonl": 1, "skipped.jsonl": 0}
    again = RunFolder(tmp_path)
    again.cut_after(20, state)
    assert lines(tmp_path / "metrics.jsonl") == [{"step": 20, "event": "train"}]
    assert lines(tmp_path / "skipped.jsonl") == []
    again.append("metrics.jsonl", {"step": 21})
    assert again.lines() == {"metrics.jsonl": 2, "skipped.jsonl": 0}


@pytest.mark.parametrize("half", ['{"step": 20, "lo', "{", '{"step": 2', "\0\0\0\0", '{"step": 20, "t": "\\u00'])
def test_a_half_written_last_line_is_dropped(tmp_path: Path, half: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 10}\n' + half)
    folder = RunFolder(tmp_path)
    assert folder.cut_after(100) == []
    assert path.read_text() == '{"step": 10}\n'
    folder.append("metrics.jsonl", {"step": 20})
    assert lines(path) == [{"step": 10}, {"step": 20}]


def test_a_whole_last_line_without_its_end_is_kept_and_ended(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 10}\n{"step": 20}')
    RunFolder(tmp_path).cut_after(100)
    assert path.read_text() == '{"step": 10}\n{"step": 20}\n'


def test_json_is_replaced_whole(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.write_json("result.json", {"top1": 0.5})
    before = os.stat(tmp_path / "result.json").st_ino
    folder.write_status(75, "signal SIGTERM", 12)
    folder.write_json("result.json", {"top1": 0.75})
    assert os.stat(tmp_path / "result.json").st_ino != before  # another file under the name, not the old one rewritten
    assert json.loads((folder.path / "result.json").read_text()) == {"top1": 0.75}
    assert json.loads((folder.path / "status.json").read_text()) == {"code": 75, "reason": "signal SIGTERM", "step": 12}
    assert sorted(file.name for file in tmp_path.iterdir()) == ["result.json", "status.json"]


def test_what_cannot_be_written_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.write_json("result.json", {"top1": 0.5})
    with pytest.raises(TypeError):
        folder.write_json("result.json", {"top1": object()})
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="folder"):
        write_atomically(tmp_path / "folder", b"x")
    with pytest.raises(StorageError, match=r"run\.dir: .*/folder cannot be written: .*; check the disk"):
        folder.write("folder", b"x")
    with pytest.raises(StorageError, match=r"run\.dir: .*/folder cannot be written"):
        folder.append("folder", {"step": 1})
    assert json.loads((folder.path / "result.json").read_text()) == {"top1": 0.5}
    assert sorted(file.name for file in tmp_path.iterdir()) == ["folder", "result.json"]


KILLED = """
import json, os, random, signal, sys, time
from fastaug.training.run_folder import RunFolder, read_log
folder, draw = RunFolder(sys.argv[1]), random.Random(0)
for _ in range(25):
    process = os.fork()
    if not process:
        number = 0
        while True:
            number += 1
            folder.write_json("status.json", {"number": number, "text": "x" * 50_000})
    time.sleep(draw.uniform(0.01, 0.06))
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    file = folder.path / "status.json"
    values = json.loads(file.read_text()) if file.exists() else None
    assert values is None or len(values["text"]) == 50_000
assert values is not None
"""


def test_a_kill_at_any_moment_leaves_the_file_whole(tmp_path: Path) -> None:
    ended = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], cwd=ROOT, capture_output=True, check=False)
    assert ended.returncode == 0, ended.stderr.decode()


def test_a_line_that_a_kill_cut_off_is_no_line_of_the_log(tmp_path: Path) -> None:
    log = tmp_path / "metrics.jsonl"
    log.write_text('{"step": 1}\n{"step": 2}\n{"ste')
    assert read_log(log) == [{"step": 1}, {"step": 2}]
    log.write_text("")
    assert read_log(log) == []
    log.write_text('{"ste\n{"step": 2}\n')
    with pytest.raises(ValueError, match="Unterminated string"):
        read_log(log)
