"""The calculator of a training on several GPUs: by hand, and what it refuses."""

import json
from pathlib import Path

import pytest

from benchmarks import plan
from fastaug.recipe.reading import read_recipe

FIGURES = {
    **{"compute_images_per_second": 4000.0, "loader_images_per_second": 8000.0, "backward_ms": 32.0},
    **{"step_ms": 80.0, "images_per_second": 3200.0},
}


@pytest.fixture
def profile(tmp_path: Path) -> Path:
    file = tmp_path / "step.json"
    file.write_text(json.dumps({"cores": 16, "figures": FIGURES}))
    return file


def planned(profile: Path, cluster: plan.Cluster, *words: str) -> dict[str, float]:
    recipe = read_recipe("imagenet_sa", ["train.epochs=90", "train.batch_size=2048", *words])
    return plan.plan(recipe, plan.read_measured(profile, None), cluster, (1_000_000, 1e5), 25_000_000)


def test_one_node_is_limited_by_its_cores_before_its_gpus(profile: Path) -> None:
    found = planned(profile, plan.Cluster(nodes=1, gpus=8, cores=32, disk=2e9, network=1e9))
    assert found["network_and_gpu"] == pytest.approx(8 * 4000)
    assert found["decoding"] == pytest.approx(8000 * 2)
    assert found["disk"] == pytest.approx(20_000)
    assert found["images_per_second"] == pytest.approx(16_000)
    assert found["hours"] == pytest.approx(90e6 / 16_000 / 3600)
    assert found["cores_per_gpu_needed"] == pytest.approx(4000 / 500)
    assert found["all_reduce_ms"] == 0


def test_what_the_backward_pass_does_not_hide_is_waited_for(profile: Path) -> None:
    found = planned(profile, plan.Cluster(nodes=2, gpus=4, cores=999, disk=1e12, network=1e9))
    assert found["all_reduce_ms"] == pytest.approx(100)  # 2 * (1 / 2) * 100 MB at 1 GB/s
    assert found["waits_ms"] == pytest.approx(100 - 32)  # 256 images a GPU, as in the profile
    assert found["network_and_gpu"] == pytest.approx(2048 / (0.064 + 0.068))


def test_a_meta_step_waits_for_an_all_reduce_of_its_own_every_k_updates(profile: Path) -> None:
    cluster = plan.Cluster(nodes=2, gpus=4, cores=999, disk=1e12, network=1e10)
    plain, learned = (
        planned(profile, cluster, *words)
        for words in ((), ("meta.learn=[softness]", "data.meta_fraction=0.1", "meta.every=5"))
    )
    assert plain["waits_ms"] == 0
    assert learned["waits_ms"] == pytest.approx(10 / 5)


def test_a_file_that_is_no_profile_and_a_count_of_none_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "other.json").write_text(json.dumps({"figures": {"step_ms": 1.0}}))
    words = ["quickstart", "--images", "10", "--profile", str(tmp_path / "other.json")]
    with pytest.raises(plan.RecipeError, match="has no compute_images_per_second"):
        plan.run(plan.parse(words))
    with pytest.raises(SystemExit):
        plan.parse([*words, "--gpus", "0"])
    assert "--gpus must be above 0" in capsys.readouterr().err
