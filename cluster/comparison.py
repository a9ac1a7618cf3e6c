"""What a comparison is to run: a configuration for each method and seed, all checked before anything starts."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cluster import contact
from cluster.launch import check, cluster_address
from genal_ray.budget import Budget, resolve_budget
from genal_ray.comparison.readme import Description, installed_versions
from genal_ray.comparison.runs import run_path
from genal_ray.config import RunConfig, load_config
from genal_ray.corpus import Corpus, load_corpus
from genal_ray.errors import UserError
from genal_ray.files import check_writable, read_record
from genal_ray.methods import Method, find_method, method_names
from genal_ray.store import RunDirectory


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One run of a comparison."""

    method: str
    seed: int
    config: RunConfig
    store: RunDirectory

    @property
    def title(self) -> str:
        return f"{self.method}, seed {self.seed}"

    @property
    def done(self) -> bool:
        return self.store.outcome() is not None

    @property
    def num_labels(self) -> int:
        """Bought in its committed rounds."""
        if not self.store.config_file.exists():
            return 0
        reports = self.store.reports()
        return int(reports[-1].metrics["al/num_labels"]) if reports else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What was asked for, checked."""

    directory: Path
    description: Description
    jobs: tuple[Job, ...]
    budgets: Mapping[tuple[str, int], Budget]
    """By method and seed."""
    notes: tuple[str, ...]
    address: str | None = None
    """Of the cluster to join; None for what the configuration says."""
    parallel: int | None = None
    """Runs at a time; None for as many as there is room for."""


def plan(
    source: str,
    methods: Sequence[str],
    seeds: int,
    directory: Path,
    overrides: Sequence[str] = (),
    *,
    title: str | None = None,
    address: str | None = None,
    parallel: int | None = None,
) -> Comparison:
    """Every run's configuration, checked. `methods` are names or NAME:key=value,...; there are `seeds` seeds, from the
    configuration's own on. `address` is that of a cluster to join, `parallel` the number of runs at a time; by default
    the configuration's, and as many as cores, GPUs and memory allow.

    Raises UserError for anything that would stop one of the runs later, for a directory that holds other runs, and
    while something works on one of them.
    """
    check_writable(directory)
    found = [find_method(name) for name in dict.fromkeys(methods)]
    if not found:
        raise UserError("no methods: name some with --methods, such as --methods random,entropy,signal")
    _refuse_twins(found)
    base = load_config(source, list(overrides))
    first = base.seed
    numbers = range(first, first + seeds)
    jobs = tuple(_job(source, base, overrides, method, seed, directory) for method in found for seed in numbers)
    budgets, notes = _check(jobs, address)
    all_methods, all_seeds = _with_earlier(directory, found, numbers)
    asked = {(job.method, job.seed) for job in jobs}
    for method in all_methods:
        for seed in all_seeds:
            if (method.name, seed) not in asked:
                check_place(_job(source, base, overrides, method, seed, directory))
    described = Description(
        title=title or _title(jobs[0].config),
        config=source,
        overrides=tuple(overrides),
        methods=all_methods,
        seeds=all_seeds,
        command=_command(source, all_methods, all_seeds, first, directory, overrides, title, address, parallel),
        versions=installed_versions(),
    )
    return Comparison(
        directory=directory,
        description=described,
        jobs=jobs,
        budgets=budgets,
        notes=notes,
        address=address,
        parallel=parallel,
    )


def _with_earlier(
    directory: Path, methods: Sequence[Method], seeds: Sequence[int]
) -> tuple[tuple[Method, ...], tuple[int, ...]]:
    """With those of which the directory has runs already: what is asked for joins them."""
    try:
        earlier = read_record(directory / "comparison.json")
        known = [Method(**{**method, "overrides": tuple(method["overrides"])}) for method in earlier["methods"]]
        numbers = [int(seed) for seed in earlier["seeds"]]
    except (FileNotFoundError, UserError, KeyError, TypeError, ValueError):  # it is written anew
        return tuple(methods), tuple(seeds)
    begun = [(m, seed) for m in known for seed in numbers if run_path(directory, m.name, seed).exists()]
    joined = {method.name: method for method, _ in begun} | {method.name: method for method in methods}
    return tuple(joined.values()), tuple(sorted({*(seed for _, seed in begun), *seeds}))


def check_place(job: Job) -> None:
    """Raise UserError unless the folder of the run holds this very run, or can take it."""
    store, remedy = job.store, "give another --out, or remove that folder"
    if store.config_file.exists():
        if store.load_config().fingerprint() != job.config.fingerprint():
            raise UserError(f"{store.path} holds a run of another configuration: {remedy}")
    elif os.path.lexists(store.path) and not (store.path.is_dir() and not any(store.path.iterdir())):
        raise UserError(f"{store.path} is neither a run of this comparison nor an empty directory: {remedy}")
    check_writable(store.path)


def _job(
    source: str, base: RunConfig, overrides: Sequence[str], method: Method, seed: int, directory: Path
) -> Job:
    own = [*method.settings(base), f"seed={seed}", f"name={method.name[:48]}-{seed}"]
    settings = ["keep_last=1", *overrides, *own]
    try:
        config = load_config(source, settings)
    except UserError as error:
        raise UserError(f"method {method.name}: {error}") from error
    method.check(config)
    store = RunDirectory(run_path(directory, method.name, seed))
    return Job(method=method.name, seed=seed, config=config, store=store)


def _refuse_twins(methods: Sequence[Method]) -> None:
    """Two methods of one name would share their folders."""
    names = [method.name for method in methods]
    twins = sorted({name for name in names if names.count(name) > 1})
    if twins:
        raise UserError(f"these methods are there twice: {', '.join(twins)}")


def _check(jobs: Sequence[Job], address: str | None) -> tuple[dict[tuple[str, int], Budget], tuple[str, ...]]:
    """Budgets and notes. Methods are checked on the first seed, folders and data on every seed; runs share both."""
    corpora: dict[str, Corpus] = {}
    budgets: dict[tuple[str, int], Budget] = {}
    checked: set[str] = set()
    notes: dict[str, list[str]] = {}
    configs = [job.config for job in jobs]
    for job in jobs:
        if cluster_address(job.config, address) is None:  # a cluster that is joined knows more
            contact.check_idle(job.store)
        check_place(job)
        if job.method not in checked and not job.done:
            found = check(job.config, job.store.path, resume=job.store.config_file.exists(), others=configs)
            for note in found.notes:
                notes.setdefault(note, []).append(job.method)
            checked.add(job.method)
        data = job.config.data.model_dump_json() + job.config.task.model_dump_json() + str(job.seed)
        if data not in corpora:
            corpora[data] = load_corpus(job.config)
        budgets[job.method, job.seed] = resolve_budget(job.config, len(corpora[data].pool))
    return budgets, tuple(_note(note, methods, len(checked)) for note, methods in notes.items())


def _note(note: str, methods: Sequence[str], num_methods: int) -> str:
    return note if len(methods) == num_methods else f"{', '.join(methods)}: {note}"


def _title(config: RunConfig) -> str:
    data = config.data
    size = f"pool of {data.pool_size}" if isinstance(data.pool_size, int) else f"pool {100 * data.pool_size:g}%"
    return f"{data.subset or Path(data.source or data.train).name}, {size}"


def _command(
    source: str,
    methods: Sequence[Method],
    seeds: Sequence[int],
    first: int,
    directory: Path,
    overrides: Sequence[str],
    title: str | None,
    address: str | None,
    parallel: int | None,
) -> tuple[str, ...]:
    """All of the comparison as a command line; pasted into another terminal it goes on with the same, on the same
    cluster. `first` is the configuration's own seed."""
    shipped = method_names()
    names = [method.name for method in methods if method.name in shipped]
    words = ["genal-ray", "compare", source]
    words += ["--methods", ",".join(names)] if names else []
    for method in methods:
        if method.name not in shipped:
            words += ["--method", f"{method.name}:{','.join(method.overrides)}"]
    words += ["--seeds", str(seeds[-1] - seeds[0] + 1)]
    for setting in overrides:
        words += ["--set", setting]
    words += ["--set", f"seed={seeds[0]}"] if seeds[0] != first else []
    words += ["--title", title] if title else []
    words += ["--parallel", str(parallel)] if parallel else []
    words += ["--address", address] if address else []
    return (*words, "--out", str(directory))
