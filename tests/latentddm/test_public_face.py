"""The names that users rely on: all there, with the arguments they were promised, and for free."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest

import autoencoder
import latentddm

NAMES = {
    "latentddm": [
        "FlowSchedule",
        "CosineSchedule",
        "corrupt",
        "bridge_step",
        "energy_score",
        "kernel_score",
        "sample",
        "time_grid",
        "Generator",
        "SamplingConfig",
        "LatentDDMPipeline",
        "DistributionalScheduler",
    ],
    "autoencoder": ["LatentStore", "encode_store", "load_autoencoder"],
}
EMPTY = inspect.Parameter.empty
# Arguments in order, with defaults; EMPTY where one must be given.
SIGNATURES = {
    "corrupt": {"x0": EMPTY, "t": EMPTY, "noise": EMPTY, "schedule": EMPTY},
    "bridge_step": {
        "x_t": EMPTY,
        "x0": EMPTY,
        "t": EMPTY,
        "s": EMPTY,
        "noise": EMPTY,
        "schedule": "flow",
        "churn": 0.0,
    },
    "energy_score": {"draws": EMPTY, "target": EMPTY, "beta": 1.0, "lam": 1.0},
    "kernel_score": {"draws": EMPTY, "target": EMPTY, "kernel": "rbf", "bandwidth": 1.0},
    "sample": {
        "denoiser": EMPTY,
        "x": EMPTY,
        "times": EMPTY,
        "churn": 0.0,
        "schedule": "flow",
        "generator": None,
        "callback": None,
        "xi_scale": 1.0,
    },
    "time_grid": {"steps": EMPTY, "kind": "uniform", "safety": 0.0},
}
HEAVY = ("torch", "diffusers", "numpy", "PIL", "accelerate", "omegaconf")


@pytest.mark.parametrize("package", [latentddm, autoencoder], ids=lambda package: package.__name__)
def test_every_public_name_is_listed_and_imports(package: object) -> None:
    names = NAMES[package.__name__]  # type: ignore[attr-defined]
    assert set(names) <= set(dir(package))
    assert set(names) <= set(package.__all__)  # type: ignore[attr-defined]
    for name in dir(package):
        assert getattr(package, name) is not None
    for name in names:
        found = getattr(package, name)
        assert found.__name__ == name
        assert found.__doc__


@pytest.mark.parametrize("name", SIGNATURES)
def test_functions_have_the_arguments_that_were_promised(name: str) -> None:
    """An argument may be added behind them, with a default."""
    promised = SIGNATURES[name]
    found = list(inspect.signature(getattr(latentddm, name)).parameters.values())
    assert [parameter.name for parameter in found[: len(promised)]] == list(promised)
    for parameter in found:
        default = promised.get(parameter.name, parameter.default)
        if default == "flow":
            assert parameter.default == latentddm.FlowSchedule()
        else:
            assert parameter.default == default
    assert all(parameter.default is not EMPTY for parameter in found[len(promised) :])


def test_sampling_settings_have_their_fields() -> None:
    settings = latentddm.SamplingConfig(steps=2, xi_scale=(0.8, 0.9))
    assert (settings.steps, settings.xi_scale) == (2, (0.8, 0.9))
    assert latentddm.SamplingConfig().xi_scale == 1
    for name in ("load", "draw", "space"):
        assert name in {*dir(latentddm.Generator), *latentddm.Generator.__dataclass_fields__}


def test_a_name_that_is_not_public_is_an_attribute_error() -> None:
    for package in (latentddm, autoencoder):
        with pytest.raises(AttributeError, match=rf"{package.__name__}.*'Nothing'"):
            _ = package.Nothing


@pytest.mark.parametrize("package", NAMES)
def test_importing_a_package_imports_nothing_heavy(package: str) -> None:
    program = (
        f"import sys, {package}; dir({package}); "
        f"print(','.join(name for name in {HEAVY} if name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == ""
