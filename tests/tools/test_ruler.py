"""The ruler: its alterations are what their names say, nothing is measured twice, and a space
passes by the rule alone."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from latentddm.engine.errors import UserError

TOOLS = Path(__file__).parents[2] / "tools"
MADE = ["unaltered", "others", "halves", "quarters", "blur-0.6", "blur-1.0", "pale-0.85"]


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    monkeypatch.syspath_prepend(str(TOOLS))
    return importlib.import_module


def random_pixels(count: int = 5, size: int = 32) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, size, size, 3), generator=generator, dtype=torch.uint8)


def test_halves_and_quarters_come_from_the_next_picture(tool: Callable[[str], ModuleType]) -> None:
    sets, pixels = tool("ruler_sets"), random_pixels()
    following = pixels.roll(1, 0)
    halves, quarters = sets.halves(pixels), sets.quarters(pixels)
    assert torch.equal(halves[:, :, :16], pixels[:, :, :16])
    assert torch.equal(halves[:, :, 16:], following[:, :, 16:])
    assert torch.equal(quarters[:, 16:, 16:], following[:, 16:, 16:])
    assert torch.equal(quarters[:, :16], pixels[:, :16])
    assert torch.equal(quarters[:, :, :16], pixels[:, :, :16])


def test_the_blur_is_gaussian_in_pixels_at_64(tool: Callable[[str], ModuleType]) -> None:
    sets = tool("ruler_sets")
    for size in (64, 128):
        line = torch.zeros(1, size, size, 3, dtype=torch.uint8)
        line[:, :, size // 2] = 255
        spread = sets.blurred(line, 1.0)[0, size // 2, :, 0].double()
        place = torch.arange(size) - size // 2
        deviation = float(((spread * place**2).sum() / spread.sum()).sqrt())
        assert deviation == pytest.approx(size / 64, rel=0.06)  # rounding cuts the tails


def test_paleness_keeps_grey_and_draws_the_rest_towards_it(
    tool: Callable[[str], ModuleType],
) -> None:
    ramp = torch.arange(256, dtype=torch.uint8).view(1, 16, 16, 1).expand(1, 16, 16, 3)
    pale = tool("ruler_sets").paler(ramp, 0.5).flatten(1, 2)[0, :, 0].int()
    assert pale[127] in (127, 128)
    assert (int(pale[0]), int(pale[255])) == (64, 191)


class TestGaussianSets:
    def sets(
        self, tool: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch, spread: float
    ) -> Any:
        """Of a store of 4,000 correlated Gaussian latents of 4 numbers."""
        random = torch.Generator().manual_seed(0)
        mixing = torch.tensor([[1.0, 0.9, 0, 0], [0, 0.5, 0, 0], [0, 0, 1, 0], [0, 0, -0.8, 0.6]])
        latents = spread * torch.randn(4000, 4, generator=random) @ mixing + 2

        class Store:
            shape, fingerprint = (4, 1, 1), "sha256:f"

            def __len__(self) -> int:
                return len(latents)

            def stream(self, count: int, seed: int) -> Any:
                yield SimpleNamespace(latents=latents[:count].view(-1, 4, 1, 1))

            def restore(self, z: Tensor) -> Tensor:
                return z

        module = tool("ruler_gaussian")
        monkeypatch.setattr(module, "LatentStore", lambda _: Store())
        return module.GaussianSets("store", 1500, seed=0), latents

    def test_draws_have_the_moments_of_the_store_and_means_less(
        self, tool: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        sets, latents = self.sets(tool, monkeypatch, spread=1.0)
        truth = torch.cov(latents.T)
        for time in ("0.5", "0.75"):
            drawn = sets.latents(f"gaussian-draws-{time}").flatten(1)
            torch.testing.assert_close(torch.cov(drawn.T), truth, atol=0.12, rtol=0)
            torch.testing.assert_close(drawn.mean(0), latents.mean(0), atol=0.12, rtol=0)
            mean = sets.latents(f"gaussian-mean-{time}").flatten(1)
            assert float(torch.cov(mean.T).trace()) < 0.75 * float(truth.trace())

    def test_the_mean_is_the_regression_on_the_noised_latent(
        self, tool: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # At t = 1/2 of the flow schedule a coordinate of variance l keeps the share l / (l + 1).
        sets, latents = self.sets(tool, monkeypatch, spread=3.0)
        kept = sets.latents("gaussian-mean-0.5").flatten(1)
        values = torch.linalg.eigvalsh(torch.cov(latents.T))
        expected = (values.square() / (values + 1)).sum()
        assert float(torch.cov(kept.T).trace()) == pytest.approx(float(expected), rel=0.06)

    def test_a_store_too_small_for_a_covariance_is_refused(
        self, tool: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.sets(tool, monkeypatch, spread=1.0)
        with pytest.raises(UserError, match=r"store holds 4000.*4005"):
            tool("ruler_gaussian").GaussianSets("store", 3997, seed=0)


class TestTheTool:
    def run(self, tool: Callable[[str], ModuleType], output: Path, *more: str) -> int:
        common = ["--images", "portraits:40", "--size", "32", "--count", "8"]
        return tool("ruler").main([*common, "--output", str(output), *more])

    def test_measures_each_set_once_and_goes_on(
        self, tool: Callable[[str], ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert self.run(tool, tmp_path, "--features", "pyramid-v2") == 0
        first = json.loads((tmp_path / "results.json").read_text())
        space = first["spaces"]["pyramid-v2"]
        assert [*space["excess"]] == MADE[1:]
        assert space["noise"] == abs(space["excess"]["others"])
        assert "halves" in (tmp_path / "table.md").read_text()

        def refuse(*_: Any, **__: Any) -> None:
            raise AssertionError("extracted again")

        one = next(iter((tmp_path / "figures").glob("pale*.json")))
        one.unlink()
        with monkeypatch.context() as patch:
            patch.setattr(tool("ruler_measure"), "extract_features", refuse)
            assert self.run(tool, tmp_path, "--features", "pyramid-v2") == 0
        assert json.loads((tmp_path / "results.json").read_text()) == first
        assert one.is_file()

    def test_ranks_spaces_by_the_first_and_by_eye(
        self, tool: Callable[[str], ModuleType], tmp_path: Path
    ) -> None:
        pairs = [
            {"better": "unaltered", "worse": "halves"},
            {"better": "halves", "worse": "unaltered"},
        ]
        (tmp_path / "pairs.json").write_text(json.dumps(pairs))
        more = ("--judgements", str(tmp_path / "pairs.json"), "--features", "pyramid-v2,random:0")
        assert self.run(tool, tmp_path, *more) == 0
        found = json.loads((tmp_path / "results.json").read_text())["spaces"]
        assert found["pyramid-v2"]["agreement"] == 0.5
        assert found["random:0"]["dimension"] == 2 * (96 + 192)
        assert found["random:0"]["excess"]["halves"] > 0

    @pytest.mark.parametrize(
        ("more", "named"),
        [
            (["--samples", "halves=x"], "halves"),
            (["--samples", "x"], "NAME=FOLDER"),
            (["--samples", "a=x.safetensors"], "--autoencoder"),
            (["--store", "x"], "--autoencoder"),
            (["--count", "21", "--features", "pyramid-v2"], "63"),
            (["--features", "alexnet:9/mean"], "1 to 5"),
            (["--features", "trunk:somewhere"], "trunk:RUN@"),
        ],
    )
    def test_wrong_requests_are_refused(
        self,
        more: list[str],
        named: str,
        tool: Callable[[str], ModuleType],
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        assert self.run(tool, tmp_path, *more) == 2
        assert named in capsys.readouterr().err


def figures_of(values: dict[str, float]) -> dict[str, Any]:
    return {
        name: {"results": {"frechet": {"value": value}}, "set": name}
        for name, value in values.items()
    }


def test_the_rule_compares_excesses_over_unaltered_pictures(
    tool: Callable[[str], ModuleType],
) -> None:
    report = tool("ruler_report")
    fid = {"unaltered": 33.6, "halves": 43.1, "quarters": 57.5, "blur-0.6": 38.5}
    ratios = report.ratios(figures_of(fid))
    assert ratios == pytest.approx({"halves": 9.5 / 4.9, "quarters": 23.9 / 4.9})
    assert all(ratios[name] > least for name, least in report.RULE.items())
    pyramid = {"unaltered": 4.1, "halves": 10.5, "quarters": 12.1, "blur-0.6": 16.2}
    ratios = report.ratios(figures_of(pyramid))
    assert not any(ratios[name] > least for name, least in report.RULE.items())


def test_rank_correlations_are_those_of_scipy(tool: Callable[[str], ModuleType]) -> None:
    stats = pytest.importorskip("scipy.stats")
    report, names = tool("ruler_report"), list("abcdef")
    first = dict(zip(names, [1.0, 5.0, 2.0, 2.5, 7.0, 6.0], strict=True))
    second = dict(zip(names, [2.0, 4.0, 1.0, 3.0, 9.0, 8.0], strict=True))
    found = report.rank_correlations(first, second, names)
    values = [*first.values()], [*second.values()]
    assert found["spearman"] == pytest.approx(stats.spearmanr(*values).statistic, abs=1e-5)
    assert found["kendall"] == pytest.approx(stats.kendalltau(*values).statistic, abs=1e-5)
    assert report.rank_correlations(first, second, names[:2]) is None


def test_judgements_of_unknown_sets_are_refused(
    tool: Callable[[str], ModuleType], tmp_path: Path
) -> None:
    path = tmp_path / "pairs.json"
    path.write_text('[{"better": "a", "worse": "z"}]')
    with pytest.raises(UserError, match=r"pairs\.json.*'z'.*a, b"):
        tool("ruler_report").Judgements.read(path, ["a", "b"])
    path.write_text('{"better": "a"}')
    with pytest.raises(UserError, match=r"pairs\.json"):
        tool("ruler_report").Judgements.read(path, ["a", "b"])
