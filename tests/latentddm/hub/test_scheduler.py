"""DistributionalScheduler keeps the contract that diffusers' own scheduler tests check."""

from __future__ import annotations

import inspect
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, SchedulerMixin
from torch import Tensor

from latentddm.diffusion.process import bridge_step
from latentddm.diffusion.schedules import SCHEDULES, make_schedule
from latentddm.diffusion.solvers import solve, solver_grid
from latentddm.hub.scheduler import DistributionalScheduler

OTHER_CONFIGS = [
    {"num_train_timesteps": 100},
    {"num_train_timesteps": 1},
    {"churn": 0.5},
    {"churn": 1.0},
    {"grid": "log_snr"},
    {"safety": 0.01},
    {"grid": "log_snr", "safety": 0.02, "churn": 0.3},
    {"schedule": "cosine"},
    {"schedule": "cosine", "grid": "log_snr", "safety": 0.02, "churn": 0.3},
    {"solver": "dpmsolver++", "grid": "power", "power": 0.4, "noise_scale": 0.9},
    {"solver": "unipc", "safety": 0.02},
    {"solver": "deis", "schedule": "cosine"},
    {"solver": "sde-dpmsolver++", "schedule": "cosine", "grid": "uniform"},
]
SHAPE = (4, 3, 8, 8)


def draw(x_t: Tensor, t: Tensor, xi: Tensor) -> Tensor:
    """A denoiser whose draws depend on all of its inputs."""
    return 0.5 * x_t + 0.1 * xi - t.reshape(-1, 1, 1, 1)


def run(scheduler: DistributionalScheduler, steps: int, generator: torch.Generator) -> Tensor:
    """The loop that pipelines of diffusers hold."""
    scheduler.set_timesteps(steps)
    x_t = torch.randn(SHAPE, generator=generator) * scheduler.init_noise_sigma
    for timestep in scheduler.timesteps:
        x_in = scheduler.scale_model_input(x_t, timestep)
        xi = torch.randn(SHAPE, generator=generator)
        output = draw(x_in, timestep / scheduler.config.num_train_timesteps, xi)
        x_t = scheduler.step(output, timestep, x_t, generator=generator).prev_sample
    return x_t


@pytest.mark.parametrize("config", OTHER_CONFIGS)
def test_its_loop_draws_the_samples_of_the_solver(config: dict) -> None:
    scheduler = DistributionalScheduler(**config)
    got = run(scheduler, 5, torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(0)
    own = scheduler.config
    noise = own["noise_scale"] * torch.randn(SHAPE, generator=generator)
    schedule = make_schedule(own["schedule"])
    times = solver_grid(own["solver"], 5, own["grid"], own["safety"], own["power"], schedule)
    expected = solve(draw, noise, times, own["solver"], own["churn"], generator, schedule)
    # Timesteps are 1,000 t in float32 here, so t comes back rounded; nothing else differs.
    torch.testing.assert_close(got, expected, rtol=0, atol=3e-6)


@pytest.mark.parametrize("config", OTHER_CONFIGS)
def test_saved_and_loaded_it_steps_the_same(config: dict, tmp_path: Path) -> None:
    scheduler = DistributionalScheduler(**config)
    scheduler.save_pretrained(tmp_path)
    loaded = DistributionalScheduler.from_pretrained(tmp_path)
    again = DistributionalScheduler.from_config(scheduler.config)
    first, *others = (
        run(each, 4, torch.Generator().manual_seed(1)) for each in (scheduler, loaded, again)
    )
    assert all(torch.equal(first, other) for other in others)
    assert dict(loaded.config).items() >= config.items()


def test_a_config_of_another_scheduler_gives_one_of_ours_with_its_timesteps() -> None:
    other = DDIMScheduler(num_train_timesteps=500, prediction_type="sample")
    ours = DistributionalScheduler.from_config(other.config)
    assert len(ours) == ours.config.num_train_timesteps == 500
    assert isinstance(ours, SchedulerMixin)


@pytest.mark.parametrize("steps", [1, 2, 10, 50])
def test_timesteps_decrease_from_noise_and_one_is_left_for_each_evaluation(steps: int) -> None:
    scheduler = DistributionalScheduler()
    scheduler.set_timesteps(steps)
    assert len(scheduler.timesteps) == scheduler.num_inference_steps == steps
    assert scheduler.timesteps[0] == 1000
    assert (scheduler.timesteps.diff() < 0).all()
    assert len(scheduler.sigmas) == steps + 1
    assert scheduler.sigmas[-1] == 0
    torch.testing.assert_close(scheduler.sigmas[:-1] * 1000, scheduler.timesteps)


def test_timesteps_go_to_the_device_that_is_asked_for() -> None:
    scheduler = DistributionalScheduler()
    scheduler.set_timesteps(4, device="meta")
    assert scheduler.timesteps.device.type == scheduler.sigmas.device.type == "meta"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("churn", [0.0, 1.0])
def test_a_step_keeps_shape_and_dtype_and_stays_finite(dtype: torch.dtype, churn: float) -> None:
    scheduler = DistributionalScheduler(churn=churn)
    scheduler.set_timesteps(3)
    x_t = torch.randn(SHAPE).to(dtype)
    for timestep in scheduler.timesteps:
        x_t = scheduler.step(0.1 * x_t, timestep, x_t).prev_sample
        assert x_t.dtype == dtype
        assert x_t.shape == torch.Size(SHAPE)
        assert torch.isfinite(x_t).all()


def test_a_tuple_and_an_output_hold_the_same() -> None:
    scheduler = DistributionalScheduler()
    scheduler.set_timesteps(4)
    x_t, x0 = torch.randn(SHAPE), torch.randn(SHAPE)
    named = scheduler.step(x0, scheduler.timesteps[0], x_t)
    scheduler.set_timesteps(4)
    arrived, drawn = scheduler.step(x0, scheduler.timesteps[0], x_t, return_dict=False)
    assert torch.equal(named.prev_sample, arrived)
    assert torch.equal(named.pred_original_sample, drawn)
    assert torch.equal(drawn, x0)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_step_is_the_bridge_of_the_paper(schedule: str) -> None:
    scheduler = DistributionalScheduler(churn=0.7, schedule=schedule)
    scheduler.set_timesteps(4)
    x_t, x0 = torch.randn(SHAPE), torch.randn(SHAPE)
    scheduler.step(x0, scheduler.timesteps[0], x_t)
    arrived = scheduler.step(x0, scheduler.timesteps[1], x_t, torch.Generator().manual_seed(3))
    noise = torch.randn(SHAPE, generator=torch.Generator().manual_seed(3))
    expected = bridge_step(x_t, x0, 0.75, 0.5, noise, make_schedule(schedule), 0.7)
    torch.testing.assert_close(arrived.prev_sample, expected)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [("flow", [1.0, 1.5, 2.0, 3.0]), ("cosine", [1.0, 2.07193, 2.82843, 3.0])],
)
def test_noise_is_added_as_in_training_and_per_sample(schedule: str, expected: list[float]) -> None:
    """alpha + 3 sigma at t = 0, 1/4, 1/2, 1, by hand."""
    scheduler = DistributionalScheduler(schedule=schedule)
    x0, noise = torch.ones(SHAPE), torch.full(SHAPE, 3.0)
    noisy = scheduler.add_noise(x0, noise, torch.tensor([0, 250, 500, 1000]))
    torch.testing.assert_close(noisy.mean(dim=(1, 2, 3)), torch.tensor(expected))
    assert scheduler.add_noise(x0.half(), noise.half(), torch.tensor([500])).dtype == torch.float16


def test_sampling_can_begin_in_the_middle_as_image_to_image_does() -> None:
    scheduler = DistributionalScheduler()
    scheduler.set_timesteps(4)
    x_t, x0 = torch.randn(SHAPE), torch.randn(SHAPE)
    arrived = scheduler.step(x0, scheduler.timesteps[2], x_t).prev_sample
    expected = bridge_step(x_t, x0, 0.5, 0.25, torch.zeros(SHAPE))
    torch.testing.assert_close(arrived, expected)
    assert scheduler.step_index == 3


@pytest.mark.parametrize(("solver", "first"), [("ddim", 1000), ("dpmsolver++", 999)])
def test_own_times_can_be_given_within_the_domain_of_the_solver(solver: str, first: int) -> None:
    scheduler = DistributionalScheduler(solver=solver)
    scheduler.set_timesteps(sigmas=[1.0, 0.9, 0.2, 0.0])
    assert scheduler.num_inference_steps == 3
    np.testing.assert_allclose(scheduler.timesteps, [first, 900, 200], rtol=1e-6)


def test_a_solver_of_higher_order_begins_in_the_middle_in_first_order() -> None:
    scheduler = DistributionalScheduler(solver="dpmsolver++", grid="uniform")
    scheduler.set_timesteps(4)
    x_t, x0 = torch.randn(SHAPE), torch.randn(SHAPE)
    arrived = scheduler.step(x0, scheduler.timesteps[2], x_t).prev_sample
    t, s = (float(time) for time in scheduler.sigmas[2:4])
    expected = bridge_step(x_t, x0, t, s, torch.zeros(SHAPE))
    torch.testing.assert_close(arrived, expected)


def test_the_interface_is_that_of_diffusers() -> None:
    """Names that pipelines of diffusers pass by keyword."""
    parameters = inspect.signature(DistributionalScheduler.step).parameters
    assert {"model_output", "timestep", "sample", "generator", "return_dict"} <= set(parameters)
    parameters = inspect.signature(DistributionalScheduler.set_timesteps).parameters
    assert {"num_inference_steps", "device"} <= set(parameters)
    assert DistributionalScheduler().order == 1


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"churn": 2.0}, "churn"),
        ({"grid": "karras"}, "uniform, log_snr, power.*'karras'"),
        ({"schedule": "linear"}, "schedule .*flow, cosine.*'linear'"),
        ({"safety": 0.6}, "safety"),
        ({"prediction_type": "epsilon"}, "prediction_type"),
        ({"num_train_timesteps": 0}, "num_train_timesteps"),
        ({"solver": "heun"}, "solver.*ddim, dpmsolver.*'heun'"),
        ({"solver": "unipc", "churn": 0.5}, "churn is a setting of ddim"),
        ({"noise_scale": 0.0}, "noise_scale"),
    ],
)
def test_a_wrong_config_is_refused(config: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        DistributionalScheduler(**config)


def test_steps_out_of_order_are_refused() -> None:
    scheduler = DistributionalScheduler()
    x = torch.zeros(SHAPE)
    with pytest.raises(ValueError, match="set_timesteps"):
        scheduler.step(x, 1000, x)
    scheduler.set_timesteps(1)
    scheduler.step(x, 1000, x)
    with pytest.raises(ValueError, match=r"steps .*set_timesteps"):
        scheduler.step(x, 1000, x)
    scheduler.set_timesteps(2)
    with pytest.raises(ValueError, match=r"123.*timesteps"):
        scheduler.step(x, 123, x)
    with pytest.raises(ValueError, match=r"num_inference_steps .*sigmas"):
        scheduler.set_timesteps()
