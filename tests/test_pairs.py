"""Pairs made of photographs, and the layout of GoPro: what is written is what was said, and nothing
is paired by accident.
"""

from __future__ import annotations

import json
from pathlib import Path

import blemishes
import make_pairs as make
import numpy as np
import prepare_gopro as gopro
import pytest
from scipy.ndimage import gaussian_filter, shift

from pipeline import files
from pipeline.config import Change, from_dict
from pipeline.data import cases, change


def photograph(seed: int, shape: tuple[int, int] = (90, 100)) -> np.ndarray:
    """Smooth colours with edges, ``(3, Y, X)`` uint8."""
    draw = np.random.default_rng(seed)
    y, x = np.mgrid[: shape[0], : shape[1]] / 12
    grey = 0.5 + 0.3 * np.sin(y * draw.uniform(1, 2) + x) + 0.15 * (np.sin(3 * x + seed) > 0)
    return np.rint(255 * np.clip(grey * draw.uniform(0.5, 1, (3, 1, 1)), 0, 1)).astype(np.uint8)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("photographs")
    for n, name in enumerate(["cat", "cup", "disc", "moon", "boat"]):
        files.write(root / f"{name}.png", photograph(n))
    files.write(root / "grey.png", photograph(9)[:1])
    (root / "README.md").write_text("not a photograph")
    return root


def run(photographs: Path, out: Path, *words: object) -> int:
    return make.main([str(w) for w in (photographs, out, "--length", 3, 9, "--frames", 15, *words)])


def picture(path: Path) -> np.ndarray:
    return files.read(path, 2)[0]


def listing(out: Path) -> dict[str, bytes]:
    return {str(p.relative_to(out)): p.read_bytes() for p in sorted(out.rglob("*")) if p.is_file()}


# --- made pairs -----------------------------------------------------------------------------------


def test_blur_is_the_mean_of_shifted_frames_in_linear_light(
    photographs: Path, tmp_path: Path
) -> None:
    """Done again frame by frame with scipy's shift, from the parameters beside the pairs."""
    assert run(photographs, tmp_path, "--kind", "blur", "--variants", 2, "--crop", 40, 50) == 0
    facts = json.loads((tmp_path / "pairs.json").read_text())
    margin = 9 + make.SPLINE_REACH
    for name in ("cat_00", "cat_01", "boat_00"):
        pair = facts["pairs"][name]
        (top, bottom), (left, right) = pair["box"]
        whole = picture(photographs / f"{pair['photograph']}.png") / 255
        frames = [
            np.stack([shift(c**2.2, step, order=3, mode="mirror") for c in whole])
            for step in pair["path"]
        ]
        inner = np.s_[:, top + margin : bottom - margin, left + margin : right - margin]
        expected = 255 * np.clip(np.mean(frames, axis=0)[inner], 0, 1) ** (1 / 2.2)
        source, target = (
            picture(tmp_path / "src" / f"{name}.png"),
            picture(tmp_path / "dst" / f"{name}.png"),
        )
        assert source.shape == target.shape == (3, 40, 50)
        assert source.dtype == target.dtype == np.uint8
        # 0.5 is rounding; the rest is the spline's far reach, which a part of the photograph cuts
        # off.
        assert np.abs(source - expected).max() < 0.75
        np.testing.assert_array_equal(
            target, np.rint(whole[inner] * 255)
        )  # the sharp one lies at the mean of the path


def test_a_camera_path_is_smooth_as_long_as_said_and_its_mean_is_where_the_photograph_is() -> None:
    for seed in range(20):
        path = make.camera_path(np.random.default_rng(seed), 401, 12.0)
        steps = np.diff(path, axis=0)
        assert np.linalg.norm(steps, axis=1).sum() == pytest.approx(12, rel=1e-3)
        np.testing.assert_allclose(path.mean(axis=0), 0, atol=1e-12)
        assert np.abs(np.diff(steps, axis=0)).max() < 0.25 * np.abs(steps).max()
        assert np.abs(path).max() <= 12


def test_the_kernel_of_a_path_keeps_light_and_lies_where_the_path_does() -> None:
    path = make.camera_path(np.random.default_rng(3), 31, 7.5)
    kernel = make.spline_kernel(path)
    at = np.arange(len(kernel)) - len(kernel) // 2
    assert kernel.sum() == pytest.approx(1)
    centre = (kernel.sum(1) @ at, kernel.sum(0) @ at)
    np.testing.assert_allclose(centre, path.mean(0), atol=1e-9)


def test_pairs_depend_on_seed_name_and_variant_alone(photographs: Path, tmp_path: Path) -> None:
    words = ("--kind", "blur", "--variants", 2, "--crop", 32)
    assert run(photographs, tmp_path / "a", *words) == run(photographs, tmp_path / "b", *words) == 0
    assert listing(tmp_path / "a") == listing(tmp_path / "b")
    assert run(photographs / "cat.png", tmp_path / "c", *words) == 0
    assert (tmp_path / "c/src/cat_01.png").read_bytes() == (
        tmp_path / "a/src/cat_01.png"
    ).read_bytes()
    assert run(photographs, tmp_path / "d", *words, "--seed", 1) == 0
    names = [f"src/cat_{n:02}.png" for n in (0, 1)]
    assert len({(tmp_path / side / name).read_bytes() for side in "ad" for name in names}) == 4


def test_tone_is_one_function_for_all_and_no_trivial_one(photographs: Path, tmp_path: Path) -> None:
    assert run(photographs, tmp_path / "whole", "--kind", "tone") == 0
    assert (
        run(photographs, tmp_path / "parts", "--kind", "tone", "--crop", 30, "--variants", 3) == 0
    )
    facts = json.loads((tmp_path / "parts/pairs.json").read_text())["pairs"]
    for name, pair in facts.items():
        (top, bottom), (left, right) = pair["box"]
        for side in ("src", "dst"):
            whole = picture(tmp_path / "whole" / side / f"{pair['photograph']}_00.png")
            np.testing.assert_array_equal(
                picture(tmp_path / "parts" / side / f"{name}.png"), whole[:, top:bottom, left:right]
            )
    source = picture(tmp_path / "whole/src/cat_00.png")
    np.testing.assert_array_equal(source, photograph(0))
    change = np.abs(source.astype(float) - picture(tmp_path / "whole/dst/cat_00.png")).mean()
    assert change > 10
    flat = np.full((3, 40, 40), 0.3)
    out = make.toned(flat)
    np.testing.assert_allclose(
        out, np.broadcast_to(out[0, 0, 0], out.shape), atol=1e-12
    )  # grey stays grey, flat stays flat
    edge = np.where(np.arange(40) < 20, 0.3, 0.5) * np.ones((3, 40, 1))
    tones = make.toned(edge)[0, 20]
    assert tones[19] < tones[0]  # detail is raised: an undershoot
    assert tones[20] > tones[39]


def test_no_photograph_is_on_both_sides_and_training_reads_the_layout(
    photographs: Path, tmp_path: Path
) -> None:
    assert run(photographs, tmp_path, "--kind", "blur", "--variants", 3, "--crop", 32) == 0
    split = json.loads((tmp_path / "split.json").read_text())
    sides = [{i.rpartition("_")[0] for i in split[side]} for side in ("train", "test")]
    assert not sides[0] & sides[1]
    assert (len(sides[0]), len(sides[1])) == (5, 1)
    setting = from_dict(
        {
            "name": "t",
            "task": "image",
            "data": {
                "dims": 2,
                "layout": "folders",
                "folders": {"image": "src", "target": "dst"},
                "folds": {"count": 2, "by": "group", "pattern": r"^(.+)_\d+$"},
                "patch": {"size": [16, 16], "foreground": None},
            },
            "network": "unet",
            "losses": [{"name": "l1", "target": "target"}],
        }
    )
    found = cases.find(setting.data, setting.targets, tmp_path)
    assert not found.faults
    assert [c.id for c in found.train] == sorted(split["train"])
    assert sorted(c.id for c in found.test) == sorted(split["test"])
    assert {c.group for c in found.train} == sides[0]


def test_named_photographs_are_held_out(photographs: Path, tmp_path: Path) -> None:
    assert run(photographs, tmp_path, "--kind", "tone", "--held-out", "cup", "moon") == 0
    split = json.loads((tmp_path / "split.json").read_text())
    assert split == {
        "train": ["boat_00", "cat_00", "disc_00", "grey_00"],
        "test": ["cup_00", "moon_00"],
    }
    grey = picture(tmp_path / "src/grey_00.png")
    assert grey.shape == (3, 90, 100)
    assert (grey == grey[:1]).all()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--kind", "tone", "--variants", 2], "needs --crop"),
        (["--kind", "blur", "--frames", 2], "at least 3"),
        (["--kind", "blur", "--length", 9, 3], "LOW <= HIGH"),
        (["--kind", "blur", "--length", 3, 60], "leave nothing inside a rim of 64"),
        (["--kind", "tone", "--held-out", "cst"], "Did you mean 'cat'"),
        (["--kind", "tone", "--crop", 0], "--crop"),
        (["--kind", "blemish", "--blemishes", 9, 3], "LOW <= HIGH"),
        (["--kind", "blemish", "--blemishes", 0, 3], "there is --clean"),
        (["--kind", "blemish", "--scale", 0], "must be above 0"),
        (["--kind", "blemish", "--clean", 1], "nothing to learn"),
        (
            ["--kind", "tone", "--held-out", "cat", "cup", "disc", "moon", "boat", "grey"],
            "nothing is left",
        ),
    ],
)
def test_wrong_options_are_refused(
    photographs: Path, tmp_path: Path, words: list, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(photographs, tmp_path, *words) == 2
    assert told in capsys.readouterr().err


def test_two_photographs_of_one_name_are_refused(
    photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files.write(tmp_path / "more" / "cat.tif", photograph(0), dims=2)
    assert (
        make.main(
            [str(w) for w in (photographs, tmp_path / "more", tmp_path / "out", "--kind", "tone")]
        )
        == 2
    )
    assert "same name" in capsys.readouterr().err


# --- blemishes ------------------------------------------------------------------------------------


def skin(shape: tuple[int, int] = (300, 320)) -> np.ndarray:
    """Light, textured colours, ``(3, Y, X)`` float32: every kind of blemish shows on them."""
    draw = np.random.default_rng(0)
    texture = gaussian_filter(draw.normal(0, 0.25, shape), 1)
    return np.clip(np.array([0.8, 0.62, 0.5])[:, None, None] + texture, 0, 1).astype(np.float32)


def test_the_target_is_the_photograph_and_the_source_has_the_blemishes_told(
    photographs: Path, tmp_path: Path
) -> None:
    assert (
        run(
            photographs,
            tmp_path,
            "--kind",
            "blemish",
            "--variants",
            6,
            "--crop",
            60,
            70,
            "--clean",
            0.4,
        )
        == 0
    )
    pairs = json.loads((tmp_path / "pairs.json").read_text())["pairs"]
    clean = 0
    for name, pair in pairs.items():
        (top, bottom), (left, right) = pair["box"]
        whole = np.broadcast_to(picture(photographs / f"{pair['photograph']}.png"), (3, 90, 100))
        source, target = (picture(tmp_path / side / f"{name}.png") for side in ("src", "dst"))
        assert source.shape == (3, 60, 70)
        np.testing.assert_array_equal(target, whole[:, top:bottom, left:right])
        assert list(pair["blemishes"]) == list(blemishes.KINDS)
        assert (source != target).any() == (sum(pair["blemishes"].values()) > 0)
        clean += (source == target).all()
    assert 0.2 < clean / len(pairs) < 0.6


def test_blemished_pairs_depend_on_seed_name_and_variant_alone(
    photographs: Path, tmp_path: Path
) -> None:
    words = (
        "--kind",
        "blemish",
        "--variants",
        2,
        "--clean",
        0,
    )  # whole photographs: variants differ in their blemishes
    assert run(photographs, tmp_path / "a", *words) == run(photographs, tmp_path / "b", *words) == 0
    assert listing(tmp_path / "a") == listing(tmp_path / "b")
    assert (
        run(photographs / "cat.png", tmp_path / "c", *words)
        == run(photographs, tmp_path / "d", *words, "--seed", 1)
        == 0
    )
    assert (tmp_path / "c/src/cat_01.png").read_bytes() == (
        tmp_path / "a/src/cat_01.png"
    ).read_bytes()
    names = [f"src/cat_{n:02}.png" for n in (0, 1)]
    assert len({(tmp_path / side / name).read_bytes() for side in "ad" for name in names}) == 4
    assert len({(tmp_path / "a/dst" / f"cat_{n:02}.png").read_bytes() for n in (0, 1)}) == 1


@pytest.mark.parametrize("kind", ["blur", "tone", "blemish"])
def test_varied_pairs_differ_from_each_other_but_held_out_ones_are_the_photographs(
    kind: str, photographs: Path, tmp_path: Path
) -> None:
    words = [
        "--kind",
        kind,
        "--variants",
        4,
        "--crop",
        40,
        56,
        "--held-out",
        "cat",
        "--clean",
        0,
        "--blemishes",
        2000,
        4000,
    ]
    assert run(photographs, tmp_path / "plain", *words) == 0
    for out in ("one", "two"):
        assert run(photographs, tmp_path / out, *words, "--vary") == 0
    assert listing(tmp_path / "one") == listing(tmp_path / "two")
    for n in range(4):
        for side in ("src", "dst"):
            of = {
                out: picture(tmp_path / out / side / f"cat_{n:02}.png") for out in ("plain", "one")
            }
            np.testing.assert_array_equal(of["plain"], of["one"])
    shapes, colours = set(), []
    for n in range(4):
        source, target = (
            picture(tmp_path / "one" / side / f"cup_{n:02}.png").astype(float)
            for side in ("src", "dst")
        )
        assert source.shape == target.shape
        assert np.abs(source - target).max() > 1
        shapes.add(target.shape)
        mean = target.mean(axis=(1, 2))
        colours.append(mean / np.linalg.norm(mean))
    assert all(
        20 <= a <= 40 and 20 <= b <= 56 for _, a, b in shapes
    )  # less where the photograph is too small for its zoom
    assert (3, 40, 56) in shapes
    assert max(np.linalg.norm(a - b) for a in colours for b in colours) > 0.1
    if (
        kind == "tone"
    ):  # whatever the photograph was made to be, the tone is the same function of it
        given = picture(tmp_path / "one" / "src" / "cup_00.png") / 255
        np.testing.assert_allclose(
            make.toned(given), picture(tmp_path / "one" / "dst" / "cup_00.png") / 255, atol=0.03
        )


def test_only_the_kinds_asked_for_are_drawn(
    photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--kind", "blemish", "--blemishes", 2000, 4000, "--clean", 0]
    assert run(photographs, tmp_path / "some", *words, "--only", "spot", "dust") == 0
    pairs = json.loads((tmp_path / "some" / "pairs.json").read_text())["pairs"]
    drawn = {kind: sum(p["blemishes"][kind] for p in pairs.values()) for kind in blemishes.KINDS}
    assert drawn["stain"] == drawn["line"] == 0 < min(drawn["spot"], drawn["dust"])
    assert run(photographs, tmp_path / "none", *words, "--only", "spott") == 2
    assert "spot" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def recipe(**changes: object) -> object:
    words = ["in", "out", "--kind", "blemish", "--clean", "0"]
    return make.recipe_of(
        make.parser().parse_args(
            words + [str(w) for key, value in changes.items() for w in (f"--{key}", value)]
        )
    )


def test_masks_of_change_cover_as_much_as_in_real_pairs_and_hold_what_was_drawn() -> None:
    image, shares, held = skin(), [], []
    for seed in range(25):
        source, _ = make.blemished(image, np.random.default_rng(seed), recipe())
        pair = [make.to_bytes(a) for a in (source, image)]
        changed = np.abs(pair[0].astype(float) - pair[1]).max(axis=0)
        inside = change.difference_mask(pair[0], pair[1], Change())[0] >= change.LEVEL
        shares.append(100 * inside.mean())
        held.append(changed[inside].sum() / changed.sum())
    assert 1 < np.mean(shares) < 4
    assert np.mean([0.5 <= share <= 6 for share in shares]) > 0.75
    assert np.mean(held) > 0.95  # thin lines lose their ends to the opening


def test_larger_blemishes_are_fewer_and_cover_as_much() -> None:
    image, told = skin((400, 400)), {}
    for scale in (1, 2):
        made = [
            make.blemished(image, np.random.default_rng(seed), recipe(scale=scale))
            for seed in range(20)
        ]
        number = np.mean([sum(facts["blemishes"].values()) for _, facts in made])
        told[scale] = (
            number,
            np.mean([np.abs(source - image).max(axis=0) > 5 / 255 for source, _ in made]),
        )
    assert told[1][0] == pytest.approx(4 * told[2][0], rel=0.3)
    assert told[1][1] == pytest.approx(told[2][1], rel=0.4)


@pytest.mark.parametrize("kind", list(blemishes.KINDS))
def test_a_blemish_fades_out_inside_its_box_and_is_of_the_size_said(kind: str) -> None:
    """Across, at half of the greatest cover: from the area of round ones, and for lines from area
    over width.
    """
    low, high = {"stain": (8, 32), "spot": (1.4, 12.5), "dust": (0.6, 3), "line": (10, 130)}[kind]
    for seed in range(40):
        film = blemishes.KINDS[kind][1](np.random.default_rng(seed), 1.0)
        cover = film.cover
        assert [n % 2 for n in cover.shape] == [1, 1]
        assert cover.min() >= 0
        assert 0.2 < cover.max() <= 1
        assert max(edge.max() for edge in (cover[0], cover[-1], cover[:, 0], cover[:, -1])) < 1e-3
        assert ((film.gain >= 0) & (film.gain <= 1)).all()
        assert ((film.gain + film.light) <= 1.001).all()  # no film glows
        core = np.count_nonzero(cover >= cover.max() / 2)
        size = core / 2 if kind == "line" else np.sqrt(core / np.pi)
        assert low <= size <= high


def test_an_even_blob_has_the_area_of_its_ellipse_and_half_cover_on_its_outline() -> None:
    draw = np.random.default_rng(4)
    for radius in (3.0, 10.0, 25.0):
        cover = blemishes.blob(draw, radius, soft=0.2, bumps=0.0)
        around = (np.argwhere(cover > 0.5) - np.array(cover.shape) // 2).astype(float)
        spread = np.linalg.eigvalsh(
            np.cov(around.T)
        )  # of a full ellipse: a quarter of its squared half-axes
        short, long = 2 * np.sqrt(spread)
        assert long == pytest.approx(radius, abs=0.4)
        assert 0.6 < short / long <= 1.05
        assert cover.sum() == pytest.approx(np.pi * short * long, rel=0.12)


@pytest.mark.parametrize("width", [1.5, 3.0, 6.0])
def test_a_stroke_has_its_width_at_half_its_strength(width: float) -> None:
    """The integral of a Gaussian line is length times width times sqrt(pi / (4 ln 2)); its ends are
    thinner.
    """
    for seed in range(5):
        cover = blemishes.stroke(np.random.default_rng(seed), 200.0, width)
        assert cover.max() == pytest.approx(1, abs=0.15)
        tapered = 1 - 0.6 / 5  # mean thickness along the line
        assert cover.sum() == pytest.approx(
            200 * width * tapered * np.sqrt(np.pi / (4 * np.log(2))), rel=0.08
        )


def test_texture_shows_through_every_blemish() -> None:
    """The same blemish on two grounds: what remains of their difference is what the film lets
    through.
    """
    flat = np.full((3, 80, 80), 0.6, np.float32)
    texture = np.where(np.indices((80, 80)).sum(axis=0) % 2, 0.02, -0.02).astype(np.float32)
    for kind, (_, shape) in blemishes.KINDS.items():
        for seed in range(5):
            grounds = [flat.copy(), flat + texture]
            assert all(
                blemishes.lay(ground, shape, np.random.default_rng(seed), 1.0) for ground in grounds
            )
            through = (grounds[1] - grounds[0]) / texture
            changed = grounds[0] != flat
            assert changed.any()
            np.testing.assert_allclose(through[~changed], 1, atol=1e-4)
            assert through.min() > 0.2, kind
            assert through.max() < 1 + 1e-4
            assert grounds[0].max() <= 1
            assert grounds[0].min() >= 0


def test_what_would_not_show_is_not_drawn() -> None:
    dark = np.zeros((3, 50, 50), np.float32)
    assert not blemishes.lay(dark, blemishes.spot, np.random.default_rng(0), 1.0)
    assert not dark.any()
    assert blemishes.lay(dark, blemishes.dust, np.random.default_rng(0), 1.0)
    half = np.concatenate([np.zeros((3, 200, 100)), np.full((3, 200, 100), 0.7)], axis=2).astype(
        np.float32
    )
    found = blemishes.add(half, 40, np.random.default_rng(1))
    assert 36 < sum(found.values()) <= 40  # the light half has room for all that are dark


def test_every_blemish_counted_is_in_the_mask_of_change() -> None:
    """One at a time on a plain ground: at least its core of a few pixels is above the default
    threshold.
    """
    for kind, (_, shape) in blemishes.KINDS.items():
        for seed in range(15):
            image = np.full((3, 90, 90), 0.6, np.float32)
            before = image.copy()
            assert blemishes.lay(image, shape, np.random.default_rng(seed), 1.0)
            soft = change.difference_mask(
                make.to_bytes(image), make.to_bytes(before), Change(opening=0)
            )
            assert change.blocks(soft).any(), (kind, seed)


def test_blemishes_on_a_real_photograph_stay_few(shared_data: Path, tmp_path: Path) -> None:
    assert (
        run(
            shared_data / "free_images" / "coffee.png",
            tmp_path,
            "--kind",
            "blemish",
            "--variants",
            2,
            "--clean",
            0,
        )
        == 0
    )
    for n in range(2):
        source, target = (
            picture(tmp_path / side / f"coffee_{n:02}.png") for side in ("src", "dst")
        )
        share = (change.difference_mask(source, target, Change()) >= change.LEVEL).mean()
        assert 0.001 < share < 0.1


# --- GoPro and other folders ----------------------------------------------------------------------

SCENES = {"train/GOPR0372_07_00": 3, "train/GOPR0372_07_01": 2, "test/GOPR0384_11_00": 2}


@pytest.fixture
def download(tmp_path: Path) -> Path:
    root = tmp_path / "GOPRO_Large"
    for n, (scene, frames) in enumerate(SCENES.items()):
        for frame in range(1, frames + 1):
            sharp = photograph(10 * n + frame, (12, 14))
            for folder, image in (
                ("sharp", sharp),
                ("blur", sharp // 2),
                ("blur_gamma", sharp // 3),
            ):
                files.write(root / scene / folder / f"{frame:06}.png", image)
    return root


def lay(*words: object) -> int:
    return gopro.main([str(w) for w in words])


def test_gopro_is_laid_out_by_scene(download: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert lay(download, out) == 0
    split = json.loads((out / "split.json").read_text())
    assert split["test"] == ["GOPR0384_11_00_000001", "GOPR0384_11_00_000002"]
    assert len(split["train"]) == 5
    for case_id in (*split["train"], *split["test"]):
        scene, _, frame = case_id.rpartition("_")
        inside = next(
            p for p in (download / "train" / scene, download / "test" / scene) if p.is_dir()
        )
        assert (out / "src" / f"{case_id}.png").samefile(inside / "blur_gamma" / f"{frame}.png")
        assert (out / "dst" / f"{case_id}.png").samefile(inside / "sharp" / f"{frame}.png")
    assert (
        lay(download.parent, out, "--blur", "blur") == 0
    )  # again, from the folder above, with the other blur
    assert (out / "src/GOPR0372_07_01_000002.png").samefile(
        download / "train/GOPR0372_07_01/blur/000002.png"
    )
    assert not list(out.rglob(".tmp*"))


def test_files_are_copied_where_there_are_no_links(
    download: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError("cross-device link")

    monkeypatch.setattr(gopro.os, "link", refuse)
    assert lay(download, tmp_path / "out") == 0
    source, target = (
        download / "test/GOPR0384_11_00/sharp/000001.png",
        tmp_path / "out/dst/GOPR0384_11_00_000001.png",
    )
    assert source.read_bytes() == target.read_bytes()
    assert not source.samefile(target)


def test_everything_unpaired_is_listed_and_nothing_written(
    download: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (download / "train/GOPR0372_07_00/sharp/000002.png").unlink()
    (download / "test/GOPR0384_11_00/blur_gamma/000001.png").unlink()
    assert lay(download, tmp_path / "out") == 2
    told = capsys.readouterr().err
    assert "2 faults" in told
    assert "GOPR0372_07_00/blur_gamma/000002.png: no file of this name" in told
    assert "GOPR0384_11_00/sharp/000001.png: no file of this name" in told
    assert not (tmp_path / "out").exists()


def test_any_two_folders_are_paired_by_name_never_by_place(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b"):
        files.write(tmp_path / "in" / f"{name}.png", photograph(1))
        files.write(tmp_path / "to" / f"{name}.tif", photograph(2), dims=2)
    words = ("--src", tmp_path / "in", "--dst", tmp_path / "to", tmp_path / "out")
    assert lay(*words) == 0
    assert json.loads((tmp_path / "out/split.json").read_text()) == {
        "train": ["a", "b"],
        "test": [],
    }
    assert (tmp_path / "out/dst/b.tif").samefile(tmp_path / "to/b.tif")
    (tmp_path / "to/b.tif").rename(tmp_path / "to/c.tif")  # as many files as before
    assert lay(*words) == 2
    told = capsys.readouterr().err
    assert "in/b.png: no file of this name" in told
    assert "to/c.tif: no file of this name" in told


def test_pairs_of_two_sizes_and_damaged_files_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for side, shape in (("in", (20, 20)), ("to", (20, 21))):
        files.write(tmp_path / side / "a.png", photograph(1, shape))
        files.write(tmp_path / side / "b.png", photograph(1))
    (tmp_path / "to/b.png").write_bytes((tmp_path / "to/b.png").read_bytes()[:-20])
    assert lay("--src", tmp_path / "in", "--dst", tmp_path / "to", tmp_path / "out") == 2
    told = capsys.readouterr().err
    assert "in/a.png: has shape (3, 20, 20)" in told
    assert "to/b.png: is truncated" in told


@pytest.mark.parametrize(
    "words", [["only"], ["--src", "a", "out"], ["--src", "a", "--dst", "b", "c", "out"]]
)
def test_half_given_folders_are_refused(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert lay(*words) == 2
    assert "Give DOWNLOAD and OUT" in capsys.readouterr().err


def test_another_folder_is_not_taken_for_gopro(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert lay(tmp_path, tmp_path / "out") == 2
    assert "GOPRO_Large" in capsys.readouterr().err
