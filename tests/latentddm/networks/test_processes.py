"""On two processes a network has the gradients that it has on one: replicated or sharded."""

from __future__ import annotations

import multiprocessing
from functools import partial
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from tiny_networks import VARIANTS, inputs, random_network
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from latentddm.engine.distributed import full_tensor, shard
from latentddm.engine.seeding import BatchMasks
from latentddm.networks.dropout import place_masks
from latentddm.networks.network import NetworkModel

BATCH, PROCESSES = 4, 2


def made(name: str, reads_xi: bool) -> NetworkModel:
    network = random_network(VARIANTS[name], dropout=0.2)
    for parameter in network.draw_parameters():  # as a training without xi does
        parameter.requires_grad_(reads_xi)
    return network


def gradients(network: NetworkModel, wrapped: nn.Module, rows: slice, reads_xi: bool) -> Tensor:
    x_t, t, xi = (each[rows] for each in inputs(batch=BATCH))
    masks = BatchMasks(7, 0, BATCH, Accelerator(cpu=True))
    place_masks(network, partial(masks.draw, rows))
    wrapped(x_t, t, xi if reads_xi else None).square().mean().backward()
    found = [full_tensor(p.grad) for p in network.parameters() if p.grad is not None]
    assert len(found) == sum(parameter.requires_grad for parameter in network.parameters())
    return torch.cat([gradient.flatten() for gradient in found])


def process(rank: int, name: str, reads_xi: bool, sharded: bool, folder: Path) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=PROCESSES
    )
    network = made(name, reads_xi)
    if sharded:
        shard(network)
    wrapped = network if sharded else DistributedDataParallel(network)
    share = BATCH // PROCESSES
    found = gradients(network, wrapped, slice(rank * share, (rank + 1) * share), reads_xi)
    torch.save(found, folder / f"{rank}.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("sharded", [False, True], ids=["replicated", "sharded"])
@pytest.mark.parametrize("reads_xi", [True, False], ids=["draws", "without xi"])
@pytest.mark.parametrize("name", ["unet, output", "dit, global"])
def test_two_processes_have_the_gradients_of_one(
    tmp_path: Path, name: str, reads_xi: bool, sharded: bool
) -> None:
    network = made(name, reads_xi)
    expected = gradients(network, network, slice(0, BATCH), reads_xi)
    context = multiprocessing.get_context("fork")  # importing torch again takes seconds
    started = [
        context.Process(target=process, args=(rank, name, reads_xi, sharded, tmp_path))
        for rank in range(PROCESSES)
    ]
    for each in started:
        each.start()
    for each in started:
        each.join(120)
        if each.is_alive():
            each.kill()
    assert [each.exitcode for each in started] == [0, 0]
    for rank in range(PROCESSES):
        found = torch.load(tmp_path / f"{rank}.pt")
        assert (found - expected).norm() <= 1e-5 * expected.norm()
