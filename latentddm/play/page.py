"""The page, on gradio: controls, three views in tabs, the pictures and their download."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr
import torch

from latentddm.diffusion.solvers import SOLVERS
from latentddm.engine.errors import JobError, UserError
from latentddm.inference.generator import SamplingConfig
from latentddm.inference.xi_scale import Scales
from latentddm.play.markup import problem_html, sheet_html, title_html, waiting_html
from latentddm.play.renderer import Renderer
from latentddm.play.sheet import Sheet

FOLDER = Path(__file__).parent
STYLE, VIEWER = FOLDER / "style.css", FOLDER / "viewer.js"
CACHE_SECONDS = (3600, 24 * 3600)  # how often downloads are cleared away, and from which age on
LARGEST_RANDOM_SEED = 9_999
SEEDS = 2**53  # whole numbers that a browser knows exactly
SYSTEM_FONTS = ["system-ui", "sans-serif"]  # none is fetched from a server

LEAST_SCALE, LARGEST_SCALE = 0.5, 1.0  # of xi, unless the run's best is beyond
DRAWS, TRAJECTORY, POSTERIOR = "draws", "trajectory", "posterior"
ABOUT = {
    DRAWS: "Every row has the same initial noise and the same number of network evaluations (NFE).",
    TRAJECTORY: "Picture 0 of the draws, one column an evaluation; t = 1 is noise, t = 0 data.",
    POSTERIOR: "A sample with noise up to time t, and independent draws of x₀ given that xₜ. "
    "Of the other settings, only the seed and, for a DDM, the variety count here.",
}


class Controls(NamedTuple):
    """The inputs of a view, in the order of the arguments of `Views.show`."""

    seed: gr.Number
    evaluations: gr.Slider
    variety: gr.Slider
    pictures: gr.Slider
    solver: gr.Dropdown
    churn: gr.Slider
    label: gr.Dropdown
    guidance: gr.Slider
    t: gr.Slider
    posterior_draws: gr.Slider


def theme() -> gr.themes.Base:
    """gradio's default look, in fonts that are on the reader's machine."""
    return gr.themes.Default(font=SYSTEM_FONTS, font_mono=["ui-monospace", "monospace"])


def build_page(renderer: Renderer, downloads: Path) -> gr.Blocks:
    """The page of a run; nothing is served yet. downloads: a folder for the zip files.

    It is laid out by STYLE, which gradio takes when the page is launched.
    """
    with gr.Blocks(
        title=f"latentddm: {renderer.name}",
        analytics_enabled=False,
        fill_width=True,
        delete_cache=CACHE_SECONDS,
    ) as page:
        gr.HTML(
            title_html(renderer.name, renderer.generator.images),
            apply_default_css=False,
            elem_id="title",
        )
        view = gr.State(DRAWS)
        with gr.Row(elem_id="beside"):
            with gr.Column(elem_id="controls", scale=0, min_width=208):
                settings = _settings(renderer)
            with gr.Column(elem_id="view", min_width=280):
                times = _tabs(view)
                pictures = gr.HTML(
                    waiting_html(),
                    apply_default_css=False,
                    js_on_load=VIEWER.read_text("utf-8"),
                    elem_id="pictures",
                )
                download = gr.DownloadButton(
                    "Download as PNG (zip)", interactive=False, size="md", elem_id="download"
                )
        controls = Controls(*settings, *times)
        gr.on(
            [page.load, view.change, *(control.change for control in controls)],
            Views(renderer, downloads).show,
            [view, *controls],
            [pictures, download],
            trigger_mode="always_last",
            api_name="show",
        )
    return page


def _settings(renderer: Renderer) -> list[Any]:
    """Seed and evaluations; the rest is folded away. Labels are hidden where the run has none.

    They begin with the run's own settings.
    """
    start = renderer.generator.settings()
    with gr.Group():
        seed = gr.Number(0, label="Seed", step=1)
        another = gr.Button("Another seed", size="sm")
    another.click(
        lambda: random.randrange(LARGEST_RANDOM_SEED + 1), None, seed, api_visibility="private"
    )
    evaluations = gr.Slider(1, 50, value=start.steps, step=1, label="Evaluations", buttons=[])
    scaled = "ξ" if renderer.reads_xi else "the initial noise"
    first = first_scale(start.xi_scale if renderer.reads_xi else start.noise_scale)
    variety = gr.Slider(
        min(LEAST_SCALE, first),
        max(LARGEST_SCALE, first),
        value=first,
        step=0.05,
        label="Variety",
        info=f"the scale of {scaled}: 1 is exact, less is more certain",
        buttons=[],
    )
    labelled = renderer.classes > 0
    labels = [("any", -1), *((str(label), label) for label in range(renderer.classes))]
    with gr.Accordion("More settings", open=False):
        pictures = gr.Slider(1, 8, value=4, step=1, label="Pictures", buttons=[])
        solver = gr.Dropdown(list(SOLVERS), value=start.solver, label="Solver")
        churn = gr.Slider(0, 1, value=start.churn, step=0.05, label="Churn", buttons=[])
        label = gr.Dropdown(labels, value=-1, label="Class label", visible=labelled)
        guidance = gr.Slider(
            1, 8, value=1, step=0.25, label="Guidance", visible=labelled, buttons=[]
        )
    return [seed, evaluations, variety, pictures, solver, churn, label, guidance]


def first_scale(scale: float | Sequence[float]) -> float:
    """The scale at the first evaluation, where it decides the most."""
    return scale[0] if isinstance(scale, Sequence) else scale


def with_first(first: float, scale: Scales) -> Scales:
    """The scales of a run's best settings with another first one, in their proportions.

    Up to 1, or to their own largest.
    """
    if not isinstance(scale, tuple) or not scale[0]:
        return first
    most = max(LARGEST_SCALE, *scale)
    return tuple(min(first * each / scale[0], most) for each in scale)


def _tabs(view: gr.State) -> list[Any]:
    """One tab a view; that of the posterior has settings of its own."""
    with gr.Tabs():
        for name in (DRAWS, TRAJECTORY):
            with gr.Tab(name.capitalize()) as tab:
                gr.Markdown(ABOUT[name])
            _select(tab, view, name)
        with gr.Tab(POSTERIOR.capitalize()) as tab:
            gr.Markdown(ABOUT[POSTERIOR])
            with gr.Row():
                t = gr.Slider(
                    0.01, 1, value=0.7, step=0.01, label="Time t (0 data, 1 noise)", buttons=[]
                )
                draws = gr.Slider(
                    1, 12, value=4, step=1, label="Draws from the posterior", buttons=[]
                )
        _select(tab, view, POSTERIOR)
    return [t, draws]


def _select(tab: gr.Tab, view: gr.State, name: str) -> None:
    tab.select(lambda: name, None, view, api_name=f"select_{name}", show_progress="hidden")


class Views:
    """The one event handler of the page: settings in, pictures and their download out."""

    def __init__(self, renderer: Renderer, downloads: Path) -> None:
        self.renderer, self.downloads = renderer, downloads

    def show(
        self,
        view: str,
        seed: float | None,
        evaluations: int,
        variety: float,
        pictures: int,
        solver: str,
        churn: float,
        label: int,
        guidance: float,
        t: float,
        posterior_draws: int,
    ) -> tuple[str, Any]:
        """The pictures of a view as HTML, and the download button; a wrong setting is a message."""

        def sheet() -> Sheet:
            whole, draws = whole_seed(seed), self.renderer.reads_xi
            if view == POSTERIOR:
                scale = variety if draws else 1.0
                return self.renderer.posterior(t, int(posterior_draws), whole, scale)
            own = self.renderer.generator.run_settings.of_solver(solver, int(evaluations))
            config = SamplingConfig(
                solver=solver,
                grid=own.grid,
                power=own.power,
                safety=own.safety,
                steps=int(evaluations),
                xi_scale=with_first(variety, own.xi_scale) if draws else 1.0,
                noise_scale=own.noise_scale if draws else variety,
                churn=churn,
                label=label if label >= 0 else None,
                guidance=guidance if label >= 0 else 1.0,
                seed=whole,
            )
            if view == TRAJECTORY:
                return self.renderer.trajectory(config)
            return self.renderer.draws(config, int(pictures))

        return self._shown(sheet)

    def _shown(self, render: Callable[[], Sheet]) -> tuple[str, Any]:
        try:
            sheet = render()
        except (UserError, JobError) as error:
            return self._problem(str(error))
        except (MemoryError, torch.OutOfMemoryError):
            return self._problem("Out of memory; lower the number of pictures.")
        path = self.downloads / f"{sheet.name}.zip"
        path.write_bytes(sheet.archive())
        return sheet_html(sheet), gr.DownloadButton(value=str(path), interactive=True)

    def _problem(self, message: str) -> tuple[str, Any]:
        return problem_html(message), gr.DownloadButton(value=None, interactive=False)


def whole_seed(seed: float | None) -> int:
    """The seed of a number field; UserError if it is empty, broken or out of range."""
    if seed is None:
        raise UserError("The seed is empty; enter a whole number.")
    if not 0 <= seed < SEEDS or seed != int(seed):
        raise UserError(f"The seed must be a whole number from 0 to 2⁵³ - 1, not {seed:g}.")
    return int(seed)
