"""The commands of tools/paper.py: the trainings of a table, and its comparison."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from compare_plan import Method, parse_methods
from compare_results import training_record
from paper_methods import PLAIN, SOLVERS, kind_of, method_config, student_config, student_name
from paper_plan import Plan, images_of_equal_seconds
from stages import Stage

from latentddm.engine.atomic_io import write_text
from latentddm.engine.config import to_yaml
from latentddm.training.config import TrainConfig
from latentddm.training.distillation import DistillConfig
from latentddm.training.objective import Objective


@dataclass(frozen=True, kw_only=True)
class Work:
    """What is trained and compared, at any size. compare: arguments of tools/compare.py."""

    output: Path
    config: TrainConfig
    objectives: Mapping[str, Objective]
    student_steps: Sequence[int]
    distill: Sequence[str]  # settings of the students
    seeds: int
    compare: Sequence[str]

    @property
    def names(self) -> list[str]:
        return [*self.objectives, *map(student_name, self.student_steps)]

    def run(self, name: str, images: int, seed: int) -> Path:
        """The folder of a training; one that stands in both tables is done once."""
        return self.output / "runs" / f"{name}-{images}-{self.config.seed + seed}"

    def runs(self, name: str, images: int) -> list[Path]:
        return [self.run(name, images, seed) for seed in range(self.seeds)]

    def trainings(self, sizes: Mapping[str, int], teacher_images: int) -> list[Stage]:
        """A training of each method and seed; the students last, as they need their teachers."""
        return [
            self._training(name, sizes[name], teacher_images, seed)
            for name in self.names
            for seed in range(self.seeds)
        ]

    def _training(self, name: str, images: int, teacher_images: int, seed: int) -> Stage:
        run = self.run(name, images, seed)
        made: TrainConfig | DistillConfig
        seeded = replace(self.config, seed=self.config.seed + seed)
        if name in self.objectives:
            verb = "train"
            made = method_config(seeded, self.objectives[name], images, run)
        else:
            verb, steps = "distill", int(name.rpartition("-")[2])
            teacher = self.run(PLAIN, teacher_images, seed), teacher_images
            made = student_config(seeded, steps, images, teacher, run, self.distill)
        path = self.output / "configs" / f"{run.name}.yaml"
        write_text(path, to_yaml(made))
        command = [sys.executable, "-m", "latentddm", verb, str(path)]
        return Stage(f"{name}, seed {seeded.seed}, {images:,} images", command)

    def comparison(self, sizes: Mapping[str, int], plan: Plan, folder: Path) -> Stage:
        """Every row of a table: settings chosen on some samples, and reported on fresh ones."""
        command = [sys.executable, str(Path(__file__).with_name("compare.py"))]
        for name in self.names:
            runs = ",".join(map(str, self.runs(name, sizes[name])))
            solvers = SOLVERS.get(kind_of(name))
            command += ["--method", f"{name}={runs}" + (f":{solvers}" if solvers else "")]
        command += [*self.compare, "--tries", str(plan.tries), "--samples", str(plan.screened)]
        command += ["--confirm", str(plan.samples), "--output", str(folder)]
        return Stage(folder.name, command)

    def sizes_of_equal_seconds(self, sizes: Mapping[str, int]) -> dict[str, int]:
        """The images of each training in the seconds that the slowest on `sizes` has taken."""
        spent = {name: self._seconds(name, sizes[name]) for name in self.names}
        taught = {student_name(steps): spent[PLAIN] for steps in self.student_steps}
        return images_of_equal_seconds(sizes, spent, taught, self.config.loop.batch_size)

    def _seconds(self, name: str, images: int) -> float:
        runs = ",".join(map(str, self.runs(name, images)))
        method: Method = parse_methods([f"{name}={runs}"])[0]
        return float(training_record(method)["training_seconds"])
