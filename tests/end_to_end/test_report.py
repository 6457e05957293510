"""`kinoise report`: the page that comes out of the records that the other commands write."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path

import av
import pytest
from kinoise.config import UsageError
from kinoise.eval.report import main
from kinoise.spec import KinoiseError
from recorded_runs import Page, assert_drawn_inside, report, write_control, write_evaluation, write_policy, write_training

HOSTILE = "<script>alert('x')</script> & 5 < 6"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """RUN with everything in its usual place."""
    run = tmp_path_factory.mktemp("made") / "run"
    checkpoint = write_policy(run, experts=3)
    write_training(run)
    write_evaluation(run / "eval", checkpoint, error=HOSTILE)
    write_control(run / "control", checkpoint)
    return run


@pytest.fixture(scope="module")
def page(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Page:
    return report(made, tmp_path_factory.mktemp("page") / "report.html")


def test_nothing_is_fetched(page: Page) -> None:
    links = [item.get(key) or "" for _, item in page.elements for key in ("src", "href", "poster", "action") if key in item]
    assert links
    assert all(item.startswith(("data:", "#")) for item in links)
    policy = next(str(item["content"]) for item in page.all("meta") if item.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy
    assert "http" not in policy


def shown(share: float) -> str:
    return f"{100 * share:.1f}".removesuffix(".0")


def test_headline_and_tasks_say_what_the_result_says(made: Path, page: Page) -> None:
    result = json.loads((made / "eval" / "result.json").read_text())
    header, tasks = page.text["header"], page.text["tasks"]
    assert "4 of 6 episodes succeeded" in header
    assert "1 ended in an error" in header
    for figure in ("66.7", shown(result["success"]["low"]), shown(result["success"]["high"]), "12.3k parameters"):
        assert figure in header
    assert result["protocol"]["hash"] in tasks
    for task, item in result["tasks"].items():
        assert task.split("/")[1] in tasks
        assert f"{shown(item['low'])}–{shown(item['high'])}" in tasks
    for episode in result["episodes"]:
        assert (str(episode["seed"]) in tasks) == (not episode["success"])
    assert "kinoise eval" in tasks
    assert "env=metaworld/push episodes=2 seed=1000" in tasks


def test_what_the_records_hold_is_text_and_never_markup(page: Page) -> None:
    assert HOSTILE in page.text["tasks"]
    assert len(page.all("script")) == 1


def test_videos_are_the_files_and_wait_to_be_played(made: Path, page: Page) -> None:
    videos = page.all("video")
    files = [*sorted((made / "eval" / "videos").iterdir()), made / "control" / "control.mp4"]
    embedded = [base64.b64decode(str(item["src"]).removeprefix("data:video/mp4;base64,")) for item in videos]
    assert sorted(embedded) == sorted(path.read_bytes() for path in files)
    for item, content in zip(videos, embedded, strict=True):
        assert item["preload"] == "none"
        assert item["aria-label"]
        with av.open(io.BytesIO(content)) as container:
            assert container.streams.video[0].codec_context.name == "h264"
            *_, last = container.decode(video=0)
        with av.open(io.BytesIO(base64.b64decode(str(item["poster"]).split(",")[1]))) as still:
            frame = next(still.decode(video=0)).to_ndarray(format="gray")
        assert abs(float(frame.mean()) - float(last.to_ndarray(format="gray").mean())) < 4


def test_every_drawing_has_an_alternative_and_every_table_its_headers(page: Page) -> None:
    drawings = [item for item in page.all("svg") if item.get("aria-hidden") != "true"]
    assert drawings
    assert all(item.get("role") == "img" and item.get("aria-label") for item in drawings)
    assert all(item.get("scope") in ("col", "row") for item in page.all("th"))
    assert len(page.all("caption")) == len(page.all("table"))


def test_sections_show_what_was_measured(page: Page) -> None:
    labels = " ".join(str(item.get("aria-label")) for item in page.all("svg"))
    for name in ("Loss by update", "Learning rate", "Balance", "Updates per second", "plans by latency", "Layer 2"):
        assert name in labels
    assert "bounds 7" in page.text["latency"]
    assert "triangles" in page.text["experts"]
    assert "expert 3" in page.text["experts"]
    assert "numpy" in page.text["provenance"]
    assert "kinoise train policy=mode data=DATA seed=3 train.steps=300" in page.text["provenance"]
    assert "No episode began as one of the 20 demonstrations" in page.text["tasks"]
    assert "did not use" not in page.text["header"]


def test_numbers_in_drawings_are_finite_and_inside(page: Page) -> None:
    assert_drawn_inside(page)


def test_a_bare_run_names_the_command_for_every_part(tmp_path: Path) -> None:
    write_policy(tmp_path / "run", "diffusion")
    page = report(tmp_path / "run", tmp_path / "report.html")
    assert "kinoise eval" in page.text["header"]
    for section, command in (("rollouts", "video=1"), ("latency", "kinoise control"), ("training", "kinoise train")):
        assert command in page.text[section]
    assert "policy=mode" in page.text["experts"]
    assert "policy=diffusion" in page.text["training"]
    assert not page.all("video")


def test_a_run_in_progress_has_curves(tmp_path: Path) -> None:
    run = tmp_path / "run"
    write_policy(run)
    write_training(run, finished=False)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 310, "lo')
    checked = write_evaluation(run / "evaluations" / "200", run / "checkpoints" / "300", video=0)
    page = report(run, tmp_path / "report.html")
    assert "300 updates" in page.text["training"]
    assert "not finished" in page.text["training"]
    assert any(f"to {shown(checked['success']['rate'])} %" in str(item.get("aria-label")) for item in page.all("svg"))


def test_experts_of_any_process_are_drawn_from_noise_to_clean(tmp_path: Path) -> None:
    write_policy(tmp_path / "run", process="flow", experts=2)
    page = report(tmp_path / "run", tmp_path / "report.html")
    assert "t, from noise (1) to clean (0)" in page.text["experts"]
    layers = [item for item in page.all("svg") if "Layer" in str(item.get("aria-label"))]
    assert len(layers) == 2


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        ("{", "not valid JSON"),
        ("[]", "should be an object"),
        ('{"success": {"rate": "high"}}', "success.rate should be"),
        ("{}", "protocol is missing"),
    ],
)
def test_a_broken_result_is_named_and_no_page_is_left(tmp_path: Path, broken: str, said: str) -> None:
    run, out = tmp_path / "run", tmp_path / "report.html"
    write_policy(run)
    (run / "eval").mkdir()
    (run / "eval" / "result.json").write_text(broken)
    with pytest.raises(KinoiseError, match=said) as caught:
        main([str(run), f"out={out}"])
    assert str(run / "eval" / "result.json") in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not out.exists()


def test_broken_and_missing_parts_are_errors(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with pytest.raises(KinoiseError, match="no checkpoint"):
        main([str(run)])
    checkpoint = write_policy(run)
    with pytest.raises(KinoiseError, match=r"holds no result\.json"):
        main([str(run), f"eval={tmp_path}"])
    with pytest.raises(UsageError, match="videos"):
        main([str(run), "videos=-1"])
    (run / "metrics.jsonl").write_text('{"step": 1, "loss": NaN, "elapsed_s": 1}\n')
    with pytest.raises(KinoiseError, match=r"line 1.*NaN"):
        main([str(run)])
    (run / "metrics.jsonl").unlink()
    write_evaluation(run / "eval", checkpoint)
    video = next((run / "eval" / "videos").iterdir())
    video.write_bytes(video.read_bytes()[:300])
    with pytest.raises(KinoiseError, match=video.name):
        main([str(run)])
