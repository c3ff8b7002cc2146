"""One more network is one class and one line: it is chosen by kind, trains, is exported, loads."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest
import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from latentddm.engine.config import build
from latentddm.engine.errors import UserError
from latentddm.hub.pipeline import DistributionalScheduler, LatentDDMPipeline
from latentddm.networks.layers import TimeEmbedding, add_rows, repeat_rows
from latentddm.networks.model import NetworkModel
from latentddm.networks.network import NETWORKS, NetworkConfig, make_network
from latentddm.scores import energy_score


@dataclass(frozen=True, kw_only=True)
class ConvolutionalConfig(NetworkConfig):
    """The settings of `Convolutional`."""

    kind: Literal["convolutional"] = "convolutional"
    width: int = 16


class Convolutional(NetworkModel[ConvolutionalConfig, Tensor]):
    """Two convolutions: the first is shared by the draws, the second has xi beside its result."""

    Config = ConvolutionalConfig

    def build(self, config: ConvolutionalConfig, latent_channels: int) -> None:
        self.time_embedding = TimeEmbedding(config.width, config.classes)
        self.trunk = nn.Conv2d(self.input_channels, config.width, 3, padding=1)
        self.noise = nn.Conv2d(latent_channels, config.width, 3, padding=1, bias=False)
        self.last = nn.Conv2d(config.width, latent_channels, 3, padding=1)

    def run_trunk(self, x_t: Tensor, embedding: Tensor) -> Tensor:
        return self.trunk(x_t) + embedding[..., None, None]

    def run_draws(self, state: Tensor, embedding: Tensor, xi: Tensor | None) -> Tensor:
        x = state if xi is None else add_rows(state, self.noise(xi))
        return self.last(nn.functional.silu(x * repeat_rows(embedding, len(x))[..., None, None]))

    def noise_layers(self) -> list[nn.Module]:
        return [self.noise]


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(NETWORKS, "convolutional", Convolutional)


def trained() -> NetworkModel:
    torch.manual_seed(0)
    config: NetworkConfig = build(NetworkConfig, {"kind": "convolutional", "width": 8}, "a.yaml")
    network = make_network(config, (3, 4, 4), "cosine")
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
    x0, t, xi = torch.randn(8, 3, 8, 8), torch.rand(8), torch.randn(8, 4, 3, 8, 8)
    x_t = network.schedule.alpha(t)[:, None, None, None] * x0
    losses = []
    for _ in range(20):
        loss = energy_score(network(x_t, t, xi), x0).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.95 * losses[0]
    return network.eval()


def test_its_key_is_known_to_configs() -> None:
    with pytest.raises(UserError, match="unet, dit, convolutional"):
        build(NetworkConfig, {"kind": "mlp"}, "a.yaml")


def test_it_trains_and_loads_again(tmp_path: Path) -> None:
    network, (x_t, t) = trained(), (torch.randn(2, 3, 8, 8), torch.rand(2))
    xi = torch.randn(2, 3, 3, 8, 8)
    assert network(x_t, t, xi).shape == xi.shape
    assert torch.equal(network(x_t, t), network(x_t, t, torch.zeros_like(x_t)))
    network.save_pretrained(tmp_path)
    loaded = Convolutional.from_pretrained(tmp_path)
    assert loaded.config["width"] == 8
    assert loaded.config["schedule"] == "cosine"
    assert torch.equal(loaded(x_t, t, xi), network(x_t, t, xi))


def test_a_pipeline_saves_and_loads_it(tmp_path: Path, tiny_autoencoder: Path) -> None:
    pipeline = LatentDDMPipeline(
        network=trained(),
        vae=AutoencoderKL.from_pretrained(tiny_autoencoder),
        scheduler=DistributionalScheduler(schedule="cosine"),
        latent_shape=(3, 8, 8),
        latent_mean=(0.0, 0.0, 0.0),
        latent_std=(1.0, 1.0, 1.0),
    )
    pipeline.save_pretrained(tmp_path)
    loaded = LatentDDMPipeline.from_pretrained(tmp_path)
    drawn = [
        each(2, each.generators(0, 2), output_type="latent").images for each in (pipeline, loaded)
    ]
    assert torch.equal(*drawn)
