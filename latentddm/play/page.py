"""The page: three tabs of sliders and pictures, on gradio."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gradio as gr
import numpy as np

from latentddm.diffusion.solvers import SOLVERS
from latentddm.engine.errors import JobError, UserError
from latentddm.inference.generator import SamplingConfig
from latentddm.play.renderer import Studio

ABOUT_POSTERIOR = (
    "Left: a sample, then the same with noise up to time t. The rest are independent draws of what "
    "it may have been, each from one evaluation. A denoiser of the mean has a single answer here."
)
ABOUT_TRAJECTORY = "Above: x_t, from noise on. Below: the draw of x_0 that each step goes by."
LARGEST_SEED = 9_999


def build_page(studio: Studio, title: str) -> gr.Blocks:
    """The page of a studio; nothing is served yet."""
    with gr.Blocks(title=f"latentddm: {title}", analytics_enabled=False) as page:
        gr.Markdown(f"# {title}")
        with gr.Tab("Samples"):
            _samples_tab(studio, page)
        with gr.Tab("Trajectory"):
            _trajectory_tab(studio, page)
        with gr.Tab("Posterior"):
            _posterior_tab(studio, page)
    return page


def _samples_tab(studio: Studio, page: gr.Blocks) -> None:
    """Two settings side by side, from the same noise."""
    seed = gr.Slider(0, LARGEST_SEED, value=0, step=1, label="Seed")
    with gr.Row():
        for name, steps in (("A", 4), ("B", 1)):
            with gr.Column():
                settings = _settings(studio, name, steps)
                picture = _image(f"Samples {name}")
                _update(page, studio.samples, [*settings, seed], picture)


def _trajectory_tab(studio: Studio, page: gr.Blocks) -> None:
    gr.Markdown(ABOUT_TRAJECTORY)
    seed = gr.Slider(0, LARGEST_SEED, value=0, step=1, label="Seed of the trajectory")
    settings = _settings(studio, "of the trajectory", 4, solvers=("ddim",))
    _update(page, studio.trajectory, [*settings, seed], _image("Trajectory"))


def _posterior_tab(studio: Studio, page: gr.Blocks) -> None:
    gr.Markdown(ABOUT_POSTERIOR)
    seed = gr.Slider(0, LARGEST_SEED, value=0, step=1, label="Seed of the posterior")
    t = gr.Slider(0.01, 1, value=0.7, step=0.01, label="Time t: 0 data, 1 noise")
    draws = gr.Slider(2, 30, value=14, step=2, label="Draws")
    picture = _image("Posterior draws")

    def show(t: float, draws: int, seed: int) -> np.ndarray:
        return _guarded(lambda: studio.posterior(t, int(draws), int(seed)))

    _redraw(page, show, [t, draws, seed], picture)


def _settings(
    studio: Studio, name: str, steps: int, solvers: tuple[str, ...] = SOLVERS
) -> list[Any]:
    """Sampler, steps, churn, label and guidance; the last two are hidden where none is known."""
    labelled = studio.classes > 0
    labels = [("any", -1), *((str(label), label) for label in range(studio.classes))]
    return [
        gr.Dropdown(list(solvers), value=solvers[0], label=f"Sampler {name}"),
        gr.Slider(1, 50, value=steps, step=1, label=f"Evaluations {name}"),
        gr.Slider(0, 1, value=0, step=0.05, label=f"Churn {name}"),
        gr.Dropdown(labels, value=-1, label=f"Label {name}", visible=labelled),
        gr.Slider(1, 8, value=1, step=0.25, label=f"Guidance {name}", visible=labelled),
    ]


def _update(
    page: gr.Blocks,
    draw: Callable[[SamplingConfig], np.ndarray],
    inputs: list[Any],
    picture: gr.Image,
) -> None:
    """Draw with the settings that the inputs make."""

    def show(
        solver: str, steps: int, churn: float, label: int, guidance: float, seed: int
    ) -> np.ndarray:
        config = SamplingConfig(
            solver=solver,
            steps=int(steps),
            churn=churn if solver == "ddim" else 0.0,
            label=label if label >= 0 else None,
            guidance=guidance if label >= 0 else 1.0,
            seed=int(seed),
        )
        return _guarded(lambda: draw(config))

    _redraw(page, show, inputs, picture)


def _redraw(
    page: gr.Blocks, show: Callable[..., np.ndarray], inputs: list[Any], picture: gr.Image
) -> None:
    """Show again when the page opens and when an input changes; of many changes the last counts."""
    triggers = [page.load, *(entry.change for entry in inputs)]
    gr.on(triggers, show, inputs, picture, trigger_mode="always_last")


def _image(label: str) -> gr.Image:
    return gr.Image(label=label, format="png", interactive=False)


def _guarded(draw: Callable[[], np.ndarray]) -> np.ndarray:
    """A wrong setting is a message on the page."""
    try:
        return draw()
    except (UserError, JobError) as error:
        raise gr.Error(str(error)) from None
