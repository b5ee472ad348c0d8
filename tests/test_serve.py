"""The server, driven by a real HTTP client: its answers are predict's files; what it refuses, and
how it stops.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image
from served import SHARPER, WAIT, built, httpx, model, photograph, post, refusal, serving, until

from pipeline import files, predict, serve
from pipeline.records import UserError

VESSELS = """
name: vessels
task: labels
data: {dims: 2, patch: {size: [32, 32]}}
network: {name: sa_unet, options: {channels: [4, 8]}}
losses: [dice]
postprocess: [threshold]
"""


@pytest.fixture(scope="module")
def sharper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model(tmp_path_factory.mktemp("sharper"), SHARPER)


@pytest.fixture(scope="module")
def url(sharper: Path) -> Iterator[str]:
    with serving(built(sharper, "--max-bytes", "300000", "--max-pixels", "20000")) as address:
        yield address


@pytest.mark.parametrize(
    ("name", "kind", "answer"),
    [
        ("a.png", np.uint8, "image/png"),
        ("b.png", np.uint16, "image/png"),
        ("c.jpg", np.uint8, "image/jpeg"),
        ("d.tif", np.uint16, "image/tiff"),
        ("e.bmp", np.uint8, "image/png"),
    ],
)
def test_answers_are_the_files_of_predict(
    url: str, sharper: Path, tmp_path: Path, name: str, kind: type, answer: str
) -> None:
    path = tmp_path / name
    photograph(path.with_suffix(".png") if path.suffix == ".bmp" else path, kind=kind)
    if path.suffix == ".bmp":
        Image.open(path.with_suffix(".png")).save(path)
    assert (
        predict.main(
            [
                "--checkpoint",
                str(sharper),
                "--input",
                str(path),
                "--output",
                str(tmp_path / "out"),
                "--device",
                "cpu",
            ]
        )
        == 0
    )
    written = next(p for p in (tmp_path / "out").iterdir() if p.stem == path.stem)
    response = post(url, path)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == answer
    assert response.content == written.read_bytes()
    assert response.headers["x-model"].startswith("sharper ")
    assert 0 < float(response.headers["x-processing-seconds"]) < WAIT


def test_a_form_gets_the_same_answer_as_a_body(url: str, tmp_path: Path) -> None:
    path = photograph(tmp_path / "a.png")
    with path.open("rb") as stream:
        form = httpx.post(
            f"{url}/predict",
            files={"image": ("a.png", stream, "application/octet-stream")},
            timeout=WAIT,
        )
    assert form.status_code == 200
    assert form.content == post(url, path).content


def test_masks_are_the_files_of_predict(tmp_path: Path) -> None:
    checkpoint, path = model(tmp_path, VESSELS), photograph(tmp_path / "eye.jpg")
    assert (
        predict.main(
            [
                "--checkpoint",
                str(checkpoint),
                "--input",
                str(path),
                "--output",
                str(tmp_path / "out"),
                "--threshold",
                "0.45",
            ]
        )
        == 0
    )
    with serving(built(checkpoint, "--threshold", "0.45")) as url:
        response = post(url, path)
    assert response.headers["content-type"] == "image/png"
    assert response.content == (tmp_path / "out" / "eye.png").read_bytes()


def test_other_backends_are_served_like_they_predict(sharper: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason='needs pip install -e ".[cpu]"')
    path, options = photograph(tmp_path / "a.png", (33, 35)), ("--backend", "onnx")
    assert (
        predict.main(
            [
                "--checkpoint",
                str(sharper),
                "--input",
                str(path),
                "--output",
                str(tmp_path / "out"),
                *options,
            ]
        )
        == 0
    )
    with serving(built(sharper, *options)) as url:
        assert httpx.get(f"{url}/health").json()["backend"] == "onnx"
        assert post(url, path).content == (tmp_path / "out" / "a.png").read_bytes()


def test_health_says_who_answers(url: str) -> None:
    facts = httpx.get(f"{url}/health").json()
    assert facts["status"] == "ok"
    assert facts["config"] == "sharper"
    assert facts["channels"] == 3
    assert (facts["running"], facts["waiting"]) == (0, 0)
    assert {"model", "version", "backend", "task"} <= set(facts)


def test_large_bodies_are_refused_by_their_announcement_and_as_they_come(url: str) -> None:
    large = b"\x89PNG" + bytes(3_000_000)
    headers = {"Content-Type": "image/png"}
    assert "300000" in refusal(
        httpx.post(f"{url}/predict", content=large, headers=headers, timeout=WAIT), 413
    )
    pieces = (
        large[n : n + 50_000] for n in range(0, len(large), 50_000)
    )  # chunked: no Content-Length
    assert "300000" in refusal(
        httpx.post(f"{url}/predict", content=pieces, headers=headers, timeout=WAIT), 413
    )
    form = httpx.post(
        f"{url}/predict", files={"image": ("a.png", large, "image/png")}, timeout=WAIT
    )
    assert "300000" in refusal(form, 413)


def test_large_images_are_refused_before_they_are_decoded(url: str, tmp_path: Path) -> None:
    """A small file that holds many pixels: 40 MB when decoded."""
    path = tmp_path / "bomb.png"
    Image.new("RGB", (4000, 3500)).save(path)
    assert path.stat().st_size < 100_000
    assert "4000 x 3500" in refusal(post(url, path), 413)


def test_corrupt_images_are_refused(url: str, tmp_path: Path) -> None:
    whole = photograph(tmp_path / "a.jpg", (90, 90)).read_bytes()
    for name, content in (
        ("none.png", b"no image at all"),
        ("empty.png", b""),
        ("cut.jpg", whole[: len(whole) // 2]),
        ("x.tif", whole),
    ):
        (tmp_path / name).write_bytes(content)
        assert refusal(post(url, tmp_path / name), 400)
    tifffile.imwrite(
        tmp_path / "volume.tif", np.zeros((4, 20, 20), np.uint8), photometric="minisblack"
    )
    assert "volume" in refusal(post(url, tmp_path / "volume.tif"), 400)


def test_other_types_are_refused(url: str, tmp_path: Path) -> None:
    path = photograph(tmp_path / "a.png")
    assert "image/jpeg" in refusal(post(url, path, "text/html"), 415)
    refusal(httpx.post(f"{url}/predict", content=path.read_bytes(), timeout=WAIT), 415)
    refusal(
        httpx.post(f"{url}/predict", files={"image": ("a.exe", path.read_bytes())}, timeout=WAIT),
        415,
    )
    refusal(httpx.post(f"{url}/predict", data={"image": "text"}, timeout=WAIT), 415)
    refusal(
        httpx.post(
            f"{url}/predict", files={"a": ("a.png", b"1"), "b": ("b.png", b"2")}, timeout=WAIT
        ),
        400,
    )
    assert httpx.get(f"{url}/predict").status_code == 405
    assert httpx.get(f"{url}/docs").status_code == 404


def test_channels_must_be_those_of_the_model(url: str, tmp_path: Path) -> None:
    files.write(tmp_path / "grey.png", np.zeros((20, 20), np.uint8))
    assert "1 channels; this model takes 3" in refusal(post(url, tmp_path / "grey.png"), 422)


def test_requests_at_the_same_time_are_all_answered_right(url: str, tmp_path: Path) -> None:
    paths = [photograph(tmp_path / f"{n}.png", (40 + n, 50)) for n in range(8)]
    alone = [post(url, p).content for p in paths]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda p: post(url, p), paths))
    assert [r.status_code for r in together] == [200] * 8
    assert [r.content for r in together] == alone


def test_a_full_queue_sends_away_and_health_still_answers(sharper: Path, tmp_path: Path) -> None:
    service = built(sharper, "--waiting", "1")
    answer, gate = service.predict, threading.Event()

    def slow(image: Path, folder: Path) -> Path:
        assert gate.wait(WAIT)
        return answer(image, folder)

    service.predict = slow
    path = photograph(tmp_path / "a.png")
    with serving(service) as url, ThreadPoolExecutor(2) as pool:
        taken = [pool.submit(post, url, path) for _ in range(2)]
        until(lambda: httpx.get(f"{url}/health").json()["waiting"] == 1)
        response = post(url, path)
        assert refusal(response, 503)
        assert int(response.headers["retry-after"]) >= 1
        gate.set()
        assert [t.result().status_code for t in taken] == [200, 200]
        assert post(url, path).status_code == 200


def test_a_fault_inside_tells_the_client_nothing(
    sharper: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    service = built(sharper)

    def broken(image: Path, folder: Path) -> Path:
        raise RuntimeError("secret of /tmp/here")

    working, service.predict = service.predict, broken
    path = photograph(tmp_path / "a.png")
    with serving(service) as url:
        assert "secret" not in refusal(post(url, path), 500)
        assert "secret of /tmp/here" in caplog.text
        service.predict = working
        assert post(url, path).status_code == 200


def test_nothing_is_left_behind(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temp"))
    (tmp_path / "temp").mkdir()
    assert post(url, photograph(tmp_path / "a.png")).status_code == 200
    refusal(post(url, photograph(tmp_path / "b.png", (200, 200))), 413)
    assert not list((tmp_path / "temp").iterdir())


@pytest.mark.slow
def test_a_signal_lets_the_request_finish(sharper: Path, tmp_path: Path) -> None:
    """The command as it is typed: its address is this machine's alone, SIGTERM ends it with 75
    after the answer is out.
    """
    command = [
        sys.executable,
        "-m",
        "pipeline.serve",
        "--checkpoint",
        str(sharper),
        "--device",
        "cpu",
        "--port",
        "0",
    ]
    path = photograph(tmp_path / "a.png", (160, 240))
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[1],
        env=dict(os.environ),
    ) as process:
        try:
            assert process.stdout is not None
            found = next(
                filter(
                    None,
                    (re.search(r"http://(\S+):(\d+)/predict", line) for line in process.stdout),
                )
            )
            url = found[0].removesuffix("/predict")
            assert found[1] == "127.0.0.1"
            with pytest.raises(OSError, match=r".*"):
                socket.create_connection(("127.0.0.2", int(found[2])), 5)
            with ThreadPoolExecutor(1) as pool:
                answer = pool.submit(post, url, path)
                until(lambda: httpx.get(f"{url}/health", timeout=WAIT).json()["running"] == 1)
                process.send_signal(signal.SIGTERM)
                assert answer.result().status_code == 200
            assert process.wait(WAIT) == 75
        finally:
            process.kill()
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/health")


def test_what_cannot_be_served_is_said(
    sharper: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--checkpoint", str(sharper), "--device", "cpu", "--port"]
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert serve.main([*words, str(taken.getsockname()[1])]) == 2
    assert "cannot listen on 127.0.0.1" in capsys.readouterr().err
    with pytest.raises(UserError, match="--concurrent 1"):
        built(sharper, "--norms", "frozen", "--concurrent", "2")
    monkeypatch.setitem(sys.modules, "fastapi", None)
    assert serve.main([*words, "0"]) == 2
    assert 'pip install -e ".[serve]"' in capsys.readouterr().err


def test_models_of_volumes_are_sent_to_predict(tmp_path: Path) -> None:
    text = (
        "{name: v, data: {patch: {size: [16, 16, 16]}}, network: {name: unet, options: {channels:"
        " [2, 2, 2, 2, 2]}}, losses: [dice]}"
    )
    with pytest.raises(UserError, match=r"pipeline\.predict"):
        built(model(tmp_path, text))
