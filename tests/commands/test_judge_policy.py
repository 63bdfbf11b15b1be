"""The judge as a person starts it: intervals and verdict of known figures, what it refuses; once a real judgement."""

import json

import pytest

PIECE = {
    "kind": "policy",
    "settings": {
        **{"slots": 1, "sequence": False, "shared_magnitude": False, "tau": 1.0, "mix": 1.0, "padding": "mean"},
        "operations": [{"name": "turn", "function": "rotate", "max": 30}],
    },
    "values": {"policy.logits": [[0.5, 0.25]], "policy.strengths": [1.0]},
    "start": {"policy.logits": [[0.0, 0.0]], "policy.strengths": [0.0]},
}
FILE = {"fastaug_policy": 1, "data": {"mean": [0, 0, 0]}, "parts": {"policy": PIECE}}
ARMS = ("none", "randaugment", "trivialaugment", "start", "learned")


@pytest.fixture
def judge(tool):
    """judge(folder, "word", ..., code=0): what the tool says."""

    def call(folder, *words, code=0):
        given = (folder / "tiny.yaml", "--policy", folder / "policy.json", "--runs", folder / "runs")
        return tool("judge_policy", *given, *words, code=code)

    return call


@pytest.fixture
def ended(tmp_path):
    """ended(errors by arm): a judgement whose runs have ended; `select` is 1 point worse everywhere."""
    (tmp_path / "policy.json").write_text(json.dumps(FILE))
    (tmp_path / "tiny.yaml").write_text("data: {root: images}")

    def make(errors, select=True):
        for arm, values in errors.items():
            for seed, error in enumerate(values):
                folder = tmp_path / "runs" / f"judge-tiny-{arm}-{seed}"
                folder.mkdir(parents=True)
                result = {"top1": 1 - error, "ece": 0.1, "nll": 0.7, "commit": "abc"}
                result["select"] = {"top1": 1 - error - 0.01, "nll": 0.8} if select else None
                (folder / "result.json").write_text(json.dumps(result))
        return tmp_path

    return make


WORSE = {"none": [0.2, 0.21, 0.22], "randaugment": [0.12, 0.13, 0.12], "start": [0.115, 0.125, 0.115]}


def test_a_difference_beyond_its_interval_is_a_verdict(ended, judge):
    folder = ended(WORSE | {"trivialaugment": [0.11, 0.12, 0.11], "learned": [0.10, 0.1, 0.1]})
    said = judge(folder, "--collect", "--seeds", "0", "1", "2", "--json", str(folder / "out.json"))
    # 0.01 0.02 0.01: mean 4/3 points, sd .577, t(2) 4.303: 1.43
    assert "keep ta_wide: no difference is shown, +1.33 ± 1.43 points of select error less" in said
    assert "Learning is worth +1.83 ± 1.43 points against the policy that it began with." in said
    written = json.loads((folder / "out.json").read_text())
    assert written["gates"] == {"all_runs": True, "better_than_fixed": False, "better_than_start": True}
    assert written["figures"]["trivialaugment_gain"] == pytest.approx(0.04 / 3)
    assert written["best_fixed"] == "trivialaugment"
    assert written["runs"].keys() == set(ARMS)
    assert {"machine", "versions", "commit"} <= written.keys()


@pytest.mark.parametrize(
    ("learned", "said"),
    [
        ([0.09, 0.10, 0.09], "use the learned policy: against ta_wide, +2.00 ± 0.00 points of test error less"),
        ([0.13, 0.14, 0.13], "keep ta_wide: the learned policy is worse, -2.00 ± 0.00 points of test error less"),
    ],
)
def test_the_verdict_follows_the_sign(ended, learned, said, judge):
    folder = ended(WORSE | {"trivialaugment": [0.11, 0.12, 0.11], "learned": learned}, select=False)
    assert said in judge(folder, "--collect", "--seeds", "0", "1", "2")
    assert "--on: there is no select split" in judge(folder, "--collect", "--on", "select", code=2)


def test_one_seed_is_no_verdict_and_nothing_is_not_judged(ended, judge):
    folder = ended({"none": [0.2], "learned": [0.1]})
    assert "no verdict from 1 seed: give more --seeds (+10.00 points against no policy)" in judge(folder, "--collect")
    (folder / "runs/judge-tiny-learned-0/result.json").unlink()
    assert "nothing to judge" in judge(folder, "--collect", code=1)


def test_a_file_that_is_none_or_another_is_refused(ended, judge):
    folder = ended({"learned": [0.1]})
    (folder / "runs/judge-tiny-learned-0/policy.json").write_text(
        json.dumps(FILE | {"parts": {"policy": PIECE | {"values": PIECE["start"]}}})
    )
    assert "was trained with another policy; choose another --name" in judge(folder, "--collect", code=2)
    (folder / "policy.json").write_text("{}")
    assert "fastaug_policy: is missing" in judge(folder, "--collect", code=2)


def test_the_name_of_a_shipped_recipe_is_taken_for_it(ended, tool):
    folder = ended({})
    given = ("--policy", folder / "policy.json", "--runs", folder / "runs", "--collect")
    assert "nothing to judge" in tool("judge_policy", "letters_policy", *given, code=1)
    assert (folder / "runs/judge-letters_policy-start.json").exists()


def test_what_is_refused_leaves_nothing_behind(ended, judge, tool):
    folder = ended({})
    given = ("--policy", folder / "policy.json", "--runs", folder / "runs")
    assert "no such recipe" in tool("judge_policy", "letters_polices", *given, code=2)
    assert "train.epochs" in judge(folder, "train.epochs=-1", code=2)
    assert not (folder / "runs").exists()


def test_arms_that_say_whether_the_file_can_be_used_are_trained_first(ended, judge, monkeypatch):
    folder, commands = ended({}), []

    def start(command, **_):
        commands.append(command)
        raise OSError("not started")

    monkeypatch.setattr("subprocess.Popen", start)
    with pytest.raises(OSError, match="not started"):
        judge(folder)
    assert [f"meta.reuse={folder}/policy.json" in command for command in commands] == [True]


def test_a_split_that_is_not_there_is_told_before_anything_is_trained(tmp_path, jpeg_folder, judge):
    (tmp_path / "policy.json").write_text(json.dumps(FILE))
    (tmp_path / "tiny.yaml").write_text(f"data: {{root: {jpeg_folder(images=4)}, img_size: 16, test_fraction: 0.2}}\n")
    assert "--on: there is no select split" in judge(tmp_path, "--on", "select", code=2)
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["judge-tiny-start.json"]


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_real_judgement_goes_on_and_trains_nothing_twice(tmp_path, jpeg_folder, judge):
    (tmp_path / "policy.json").write_text(json.dumps(FILE))
    (tmp_path / "tiny.yaml").write_text(
        f"data: {{root: {jpeg_folder(images=12)}, img_size: 16, threads: 1, test_fraction: 0.2, meta_fraction: 0.2, "
        "select_fraction: 0.2}\nmodel: {name: test_resnet}\ntrain: {epochs: 1, batch_size: 4}\neval: {every: 0}\n"
    )
    said = judge(tmp_path, "--seeds", "0", "1", "--jobs", "2")
    assert "points of select error less with the learned policy, 2 seeds" in said
    results = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").glob("*/result.json")}
    assert len(results) == 10
    images = {json.loads(path.read_text())["images_seen"] for path in results}
    assert len(images) == 1  # all train on train + meta
    verdict = next(line for line in said.splitlines() if "points of select error less" in line)
    assert verdict in judge(tmp_path, "--seeds", "0", "1").splitlines()
    assert results == {path: path.stat().st_mtime_ns for path in results}
