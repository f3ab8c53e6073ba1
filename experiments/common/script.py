"""What all scripts share: flags, a progress bar, and how results are written."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import jax
import tyro
from jax.sharding import Mesh
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from experiments.common import report, study
from experiments.common.report import Section, Table
from experiments.common.scale import Scale, leads, start
from experiments.common.training import environment
from jaxunlearn.audit import pages
from jaxunlearn.audit.in_short import TITLE as IN_SHORT


@dataclass
class Base:
    """Flags of every script."""

    out: Path = Path("out")
    """Folder of the results."""
    smoke: bool = False
    """Run in seconds, with too little of everything to mean anything."""
    scale: tyro.conf.OmitArgPrefixes[Scale] = field(default_factory=Scale)


@dataclass
class OnData(Base):
    """Flags of scripts that know their data sets by name."""

    dataset: str = "digits"
    """digits, or an image data set prepared by TFDS."""
    data_dir: str | None = None
    """Where TFDS finds prepared data."""


@dataclass
class OnNetworks(OnData):
    """Flags of scripts that train networks."""

    network: str = "mlp"
    """mlp, cnn or resnet18."""
    rows: int = 500
    """Training rows."""
    label_noise: float = 0.12
    """Fraction of training rows with a wrong label."""
    training_steps: int = 600
    """Steps of training and retraining."""
    seeds: int = 5
    """Original models; seeds of training."""
    draw: int = 0
    """Seed of the training rows and their wrong labels."""
    request_seed: int = 0
    """Which rows are asked to be forgotten."""

    @property
    def study_key(self) -> str:
        """What settings are kept under: the data set, with the network where that is no MLP."""
        return self.dataset if self.network == "mlp" else f"{self.dataset} {self.network}"

    def setting(self) -> study.Study:
        """The training set and the network."""
        return study.overfitted(
            self.dataset, self.data_dir, network=self.network, num_rows=self.rows, label_noise=self.label_noise,
            num_steps=self.training_steps, seed=self.draw,
        )  # fmt: skip


@dataclass
class Unlearning(OnNetworks):
    """Flags of scripts that run methods with steps."""

    unlearning_steps: int = 100
    """Steps of every method with steps, but for retraining."""
    training_seed: int = 0
    """First seed of training; the others follow."""

    def training_seeds(self) -> range:
        """One per original model."""
        return range(self.training_seed, self.training_seed + self.seeds)


def unless_given(words: str) -> Any:
    """What `--help` says of a flag without a value, where tyro would write nothing: `Annotated[tuple[int, ...], ...]`."""
    return tyro.conf.arg(help_behavior_hint=f"(default: {words})")


Flags = TypeVar("Flags", bound=Base)


def run(main: Callable[[Flags], Any], flags: type[Flags], description: str | None) -> None:
    """Read the command line and run the script; programs of a smoke run are compiled in less time and run for longer."""
    config = tyro.cli(flags, description=description)
    if config.smoke:
        jax.config.update("jax_disable_most_optimizations", True)
    main(config)


def begin(config: Base) -> tuple[Mesh | None, Console]:
    """Take the devices and the terminal; the first thing that a script does."""
    mesh = start(config.scale)
    return mesh, report.terminal(quiet=not leads())


Advance = Callable[..., None]  # (doing, done=0): what is being done, and how much more is done


@contextmanager
def progress(console: Console, name: str, total: float) -> Iterator[Advance]:
    """A bar that ends at 100 % unless an error ends it."""
    columns = (SpinnerColumn(), *Progress.get_default_columns(), TimeElapsedColumn(), TextColumn("{task.fields[doing]}"))
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(name, total=total, doing="")

        def advance(doing: str | None = None, done: float = 0) -> None:
            bar.update(task, advance=done)
            if doing is not None:
                bar.update(task, doing=doing)

        yield advance
        bar.update(task, completed=total, doing="done")


def summary_of(config: Base, **found: Any) -> dict[str, Any]:
    """What is written as JSON: the flags, the machine, and what was found. Places on this machine are left out."""
    flags = {**vars(config), "out": None, "data_dir": None, "scale": config.scale.recorded()}
    return {"config": flags, "environment": environment(), **found}


def finish(
    config: Base,
    console: Console,
    name: str,
    summary: dict[str, Any],
    *,
    title: str,
    intro: str,
    sections: Sequence[Section],
    tables: Sequence[Table] = (),
    notes: Sequence[str] = (),
    in_short: pages.Section | None = None,
) -> dict[str, Any]:
    """Write `name`.json and report.html into the folder of the results, and print tables.

    Every page begins with what was found in plain words, and ends with settings and versions, folded away.

    Args:
        config, console: of the script.
        name: of the JSON file.
        summary: see `summary_of`.
        title, intro, sections: of the page.
        tables: to be printed.
        notes: lines below them, which are the summary of the page as well where it has no other.
        in_short: the summary, see `jaxunlearn.audit.in_short`.

    Returns:
        The summary.
    """
    page = config.out / "report.html"
    if leads():
        if in_short is None and notes:
            in_short = pages.Section(IN_SHORT, "\n\n".join(f"{note[:1].upper()}{note[1:]}" for note in notes), role="summary")
        settings = {**summary["config"], **summary["environment"]}
        report.write_report(page, title, intro, [*([in_short] if in_short else []), *sections], settings=settings)
        (config.out / f"{name}.json").write_text(report.compact_json(summary))
    for table in tables:
        report.print_table(table, console)
    for note in notes:
        console.print(note)
    console.print(f"report: {page}", soft_wrap=True)
    return summary
