"""The sizes of tools/paper.py for a number of hours, from rates measured on this machine.

A third of the hours is for the two comparisons, unless they need less: half of one is spent on
choosing settings, half on fresh samples of those chosen. The rest is for the trainings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from compare_plan import Method, plan_cells
from compare_reference import Judgement
from compare_sweep import Sweep

from latentddm.engine.errors import UserError
from latentddm.evaluation.extractors import INCEPTION

COMPARISON_SHARE = 1 / 3
TRIES = (16, 8)  # settings of a method, the fewer the less time there is
ENOUGH = 500  # samples, from which more settings are worth more than more samples of each
FEWEST, FEWEST_FOR_FID = 64, 1000  # samples; the Inception's distance of fewer is mostly bias
REPORTED_PER_SCREENED = 4  # a setting is tried on a quarter of the samples worth reporting, at most
FEWEST_BATCHES = 2  # of a training


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Seconds of this machine."""

    training: Mapping[str, float]  # for an image of each method's training
    student: float  # likewise, of a student's own
    evaluation: float  # of the network, for an image
    describe: float  # decoding an image, its features
    distance: float  # the distances of a set of samples
    reference: float  # all of the reference, whose reading is counted as decoding
    start: float  # of a command, before its work begins


@dataclass(frozen=True, kw_only=True)
class Plan:
    """images: of the table by images; tries, screened: settings of a method, samples of each.

    samples: of a setting chosen, in the table. hours: planned, of the trainings for the table by
    images, of those added for that by seconds, of a comparison.
    """

    images: int
    tries: int
    screened: int
    samples: int
    hours: tuple[float, float, float]

    def describe(self) -> str:
        """The plan in four lines."""
        equal_images, equal_seconds, comparison = self.hours
        return (
            f"  {equal_images:8.2f} h  trainings on {self.images:,} images each\n"
            f"  {equal_seconds:8.2f} h  trainings for as many seconds as the slowest of them\n"
            f"  {2 * comparison:8.2f} h  two comparisons: up to {self.tries} settings a method by "
            f"{self.screened:,} samples each, {self.samples:,} fresh ones of the best\n"
            f"  {equal_images + equal_seconds + 2 * comparison:8.2f} h  in all"
        )


def make_plan(
    hours: float,
    seeds: int,
    students: int,
    share: float,
    batch: int,
    rates: Rates,
    rows: Sequence[Method],
    sweep: Sweep,
    judgement: Judgement,
) -> Plan:
    """The plan that fills the hours; share: of a training's images in its second phase.

    UserError if the hours are too few.
    """
    seconds = 3600 * hours
    plan = sized_comparison(seconds * COMPARISON_SHARE / 2, rates, rows, sweep, judgement)
    first, second = seconds_of_both_tables(rates, students, share)
    starts = rates.start * 2 * seeds * (len(rates.training) + students)
    rest = seconds - starts - 2 * 3600 * plan.hours[2]
    batches = int(rest / (seeds * (first + second)) / batch)
    fewest = fewest_samples(judgement, rows)
    screened = fewest // REPORTED_PER_SCREENED
    if plan.screened < screened or plan.samples < fewest or batches < FEWEST_BATCHES:
        least = replace(plan, tries=min(TRIES), screened=screened, samples=fewest)
        comparison = 2 * comparison_seconds(least, rates, rows, sweep) / COMPARISON_SHARE
        training = starts + FEWEST_BATCHES * batch * seeds * (first + second)
        least_hours = max(comparison, training / (1 - COMPARISON_SHARE)) / 3600
        raise UserError(
            f"--hours is {hours:.3g}, too few for {FEWEST_BATCHES} batches of every method and "
            f"{fewest} samples of every row: these need about {least_hours:.2g}; "
            "give more, or fewer --seeds, --evaluations or --student-steps, or features that are "
            "quicker."
        )
    images = batches * batch
    trained, added = (seeds * images * each / 3600 for each in (first, second))
    return replace(plan, images=images, hours=(trained, added, plan.hours[2]))


def fewest_samples(judgement: Judgement, rows: Sequence[Method]) -> int:
    """The fewest samples of a useful table.

    The quarter of them that a setting is tried on has every class.
    """
    classes = max(trained.classes for row in rows for trained in row.runs)
    return max(
        FEWEST_FOR_FID if INCEPTION in judgement.features else FEWEST,
        REPORTED_PER_SCREENED * classes,
    )


def sized_comparison(
    seconds: float, rates: Rates, rows: Sequence[Method], sweep: Sweep, judgement: Judgement
) -> Plan:
    """A comparison of so many seconds, or of as many samples as there are reference images."""
    most = max(judgement.reference_images, fewest_samples(judgement, rows))
    plan = Plan(images=0, tries=0, screened=0, samples=0, hours=(0, 0, 0))
    half = (seconds - rates.start - rates.reference) / 2
    for tries in TRIES:
        plan = replace(plan, tries=tries)
        plan = replace(plan, screened=_affordable(half, screening(plan, rows, sweep), rates))
        if plan.screened >= ENOUGH:
            break
    samples = min(_affordable(half, reporting(rows, sweep), rates), most)
    plan = replace(
        plan, screened=min(plan.screened, most // REPORTED_PER_SCREENED), samples=samples
    )
    return replace(plan, hours=(0, 0, comparison_seconds(plan, rates, rows, sweep) / 3600))


def screening(plan: Plan, rows: Sequence[Method], sweep: Sweep) -> list[int]:
    """The evaluations of each setting that is tried: of the first run of each row."""
    first = [replace(row, runs=row.runs[:1]) for row in rows]
    cells = plan_cells(first, replace(sweep, tries=plan.tries), 1)
    return [cell.sampling.steps for cell in cells]


def reporting(rows: Sequence[Method], sweep: Sweep) -> list[int]:
    """The evaluations of each setting that is reported: one a row, of all its runs."""
    runs = sum(len(row.runs) for row in rows) * len(sweep.seeds)
    return [count for count in sweep.evaluations for _ in range(runs)]


def comparison_seconds(plan: Plan, rates: Rates, rows: Sequence[Method], sweep: Sweep) -> float:
    """Seconds of a comparison of these sizes."""
    tried, reported = screening(plan, rows, sweep), reporting(rows, sweep)
    samples = plan.screened * _each(tried, rates) + plan.samples * _each(reported, rates)
    return rates.start + rates.reference + samples + (len(tried) + len(reported)) * rates.distance


def _each(evaluations: Sequence[int], rates: Rates) -> float:
    """Seconds for a sample of each of some settings."""
    return sum(evaluations) * rates.evaluation + len(evaluations) * rates.describe


def _affordable(seconds: float, evaluations: Sequence[int], rates: Rates) -> int:
    """The samples of each of some settings in so many seconds."""
    left = seconds - len(evaluations) * rates.distance
    return int(max(left, 0) / _each(evaluations, rates))


def seconds_of_both_tables(rates: Rates, students: int, share: float) -> tuple[float, float]:
    """Seconds of all trainings for an image of the table by images, and of those added by seconds.

    The slowest method's runs stand in both tables, and a student has one teacher in both.
    """
    student, plain = share * rates.student, rates.training["plain"]
    longest = max([*rates.training.values(), *([plain + student] if students else [])])
    added = sum(longest for each in rates.training.values() if each < longest)
    if plain + student < longest:
        added += students * (longest - plain)
    return sum(rates.training.values()) + students * student, added


def images_of_equal_seconds(
    images: Mapping[str, int], spent: Mapping[str, float], taught: Mapping[str, float], batch: int
) -> dict[str, int]:
    """The images of each method's own training in the seconds of the slowest method.

    images: of the trainings done, by method, a student's without its teacher's; spent: seconds of
    a training, a student's teacher included; taught: seconds of the teacher, of students.
    """
    longest = max(spent.values())
    sizes = {}
    for name, seen in images.items():
        before = taught.get(name, 0.0)
        speed = seen / (spent[name] - before)
        slowest = spent[name] == longest
        batches = max(round(speed * (longest - before) / batch), FEWEST_BATCHES)
        sizes[name] = seen if slowest else batches * batch
    return sizes
