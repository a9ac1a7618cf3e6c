"""The driver: a Ray actor that owns the pools and the run directory and runs the loop.

    launch ──► Driver.run() ──► loop.run(): GeneratorService, ScorerPool, RayStudent, LearnerGroup
           ◄── Driver.status(), Driver.stop()
"""

from __future__ import annotations

import asyncio
import os
import traceback
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

from actors.generator import GeneratorService
from actors.generator_chat import ServedModel
from actors.incidents import Incidents
from actors.learner import LearnerGroup
from actors.scorer import ScorerPool
from actors.student import RayStudent
from actors.together import together
from actors.warmup import warmed_up
from actors.weights import resolve_backend
from genal_ray import loop
from genal_ray.annotation import Annotation, Origin, origins_probed
from genal_ray.annotators import Annotator, Labeler, Setting
from genal_ray.budget import resolve_budget
from genal_ray.config import LLMConfig, RunConfig, parse_config
from genal_ray.config_yaml import read_document
from genal_ray.corpus import Corpus, load_corpus
from genal_ray.files import in_thread, locked, whole_lines
from genal_ray.ledger import Ledger
from genal_ray.llm import CapReached
from genal_ray.llm.client import LLM
from genal_ray.llm.journal import Journal
from genal_ray.observer import Stopped
from genal_ray.redaction import redacted
from genal_ray.repair import repair
from genal_ray.resume import last_policies, restore_pools
from genal_ray.status import RunStatus, State
from genal_ray.stopping import stop_set
from genal_ray.store import INCIDENTS, RunDirectory
from genal_ray.tasks import build_task
from genal_ray.tensorboard import TensorBoard
from genal_ray.warmup import RECORD
from genal_ray.watch import Watch
from genal_ray.working_copy import mirror_to


class Driver:
    """One run. `run` is called once; `status` and `stop` answer while it works."""

    def __init__(self, config_yaml: str, directory: str, url: str | None = None) -> None:
        """`url` is where the run lives, when `directory` is but the place where it is worked on."""
        self._config = parse_config(read_document(config_yaml, "config.yaml").values, "config.yaml")
        self._store = RunDirectory(Path(directory), mirror_to(url, Path(directory)))
        self._watch = Watch(TensorBoard(self._store.path / "tensorboard"))
        self._work: asyncio.Task[str] | None = None

    async def run(self, environment: Mapping[str, str | None] = MappingProxyType({})) -> None:
        """Run to the end of the budget, or until stopped, with the launcher's `environment`: variables to set, and with
        None to take away. Raises what made it fail, and UserError when another driver is at work on the directory or at
        the URL."""
        for name, value in environment.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
        with locked(self._store.lock_file):
            await in_thread(self._store.mirror.hold)
            try:
                await self._run_to_an_end()
            finally:
                await in_thread(self._store.mirror.release)

    async def _run_to_an_end(self) -> None:
        self._work = asyncio.ensure_future(self._run())
        try:
            reason = await self._work
            await in_thread(self._store.record_outcome, reason)
        except (Stopped, asyncio.CancelledError):
            self._watch.ended(State.STOPPED)
        except CapReached as error:
            self._watch.ended(State.STOPPED, reason=str(error))
        except Exception as error:
            await in_thread(self._store.record_failure, redacted(traceback.format_exc()))
            self._watch.ended(State.FAILED, error=redacted(str(error)))
            raise
        else:
            self._watch.ended(State.DONE, reason=reason)

    async def status(self) -> RunStatus:
        return self._watch.status()

    async def pid(self) -> int:
        """Its process id; it runs on the launcher's machine."""
        return os.getpid()

    async def stop(self, now: bool = False) -> None:
        """Stop after the stages in progress, or at once; the run can be resumed either way."""
        self._watch.ask_to_stop()
        if now and self._work is not None:
            self._work.cancel()

    async def _run(self) -> str:
        for note in await in_thread(self._store.mirror.synchronise, self._store):
            self._watch.note(note)
        await in_thread(self._store.rewrite_metrics)
        await in_thread(whole_lines, self._store.path / INCIDENTS)
        corpus = await asyncio.to_thread(load_corpus, self._config)
        budget = resolve_budget(self._config, len(corpus.pool))
        ledger = Ledger(self._store.ledger_file, corpus.labels, self._store.mirror).open()
        for note in await in_thread(repair, self._store):
            self._watch.note(note)
        folder = self._store.path / "warmup"
        config, warmup = await warmed_up(self._config, corpus.pool, folder, self._watch)
        if warmup is not None:
            self._watch.note(str(warmup))
            if not await in_thread(self._store.mirror.has, folder / RECORD):
                await in_thread(self._store.mirror.push, folder / "model", folder / RECORD)
        async with self._parts(config, corpus, ledger) as parts:
            self._watch.began(budget, self._store.reports())
            return await loop.run(
                loop.Run(
                    config=self._config,
                    corpus=corpus,
                    budget=budget,
                    pools=restore_pools(self._config, self._store, corpus, ledger),
                    store=self._store,
                    parts=parts,
                    observer=self._watch,
                    warmup_metrics={} if warmup is None else warmup.metrics,
                )
            )

    @asynccontextmanager
    async def _parts(self, config: RunConfig, corpus: Corpus, ledger: Ledger) -> AsyncIterator[loop.Parts]:
        """All parts, started side by side, holding the state of the last committed round; stopped at the end.

        `config` is the run's, with the generator that was warmed up for it.
        """
        resumed = last_policies(self._store)
        incidents = Incidents(self._store.path, self._watch.note)
        scorer = ScorerPool(config, incidents=incidents)
        stop_texts = () if config.stopping.predictions is None else stop_set(corpus, seed=config.seed)
        storage = self._store.path / "train"
        student = RayStudent(config, corpus.labels, corpus.evaluation, storage, stop_texts, incidents)
        generator = None
        learner = None
        if config.generator is not None:
            generator = GeneratorService(
                config.generator,
                application_name(self._config),
                resumed.served,
                backend=resolve_backend(config),
                heartbeat_s=config.cluster.heartbeat_s,
                incidents=incidents,
            )
            if config.learns:
                learner = LearnerGroup(config, generator.load_policy, generator.app_name, incidents)
        async with AsyncExitStack() as stack:
            for part in (scorer, student, generator, learner):
                if part is not None:
                    stack.push_async_callback(part.stop)
            llm = self._chat_model(config.llm, generator) if config.llm is not None and config.asks_llm else None
            if llm is not None:
                stack.push_async_callback(llm.close)
            starts = [scorer.start(), student.start()]
            if generator is not None:
                starts.append(generator.start())
            if learner is not None:
                starts.append(learner.start(resumed.learned))
            # A part that is stopped while it starts would take that for a loss, and start again.
            annotation, *_ = await together(asyncio.to_thread(self._annotation, corpus, ledger, llm), *starts)
            yield loop.Parts(
                task=build_task(config.task),
                annotation=annotation,
                scorer=scorer,
                student=student,
                generator=generator,
                learner=learner,
                llm=llm,
            )

    def _chat_model(self, config: LLMConfig, generator: GeneratorService | None) -> LLM:
        journal = Journal(self._store.calls_file, self._store.mirror).open()
        if config.backend == "generator":
            assert generator is not None, "checked with the configuration"
            return LLM(config, ServedModel(generator), journal)
        from genal_ray.llm.endpoint import Endpoint  # imports the client library

        return LLM(config, Endpoint(config), journal)

    def _annotation(self, corpus: Corpus, ledger: Ledger, llm: LLM | None) -> Annotation:
        annotators: dict[Origin, Annotator | None] = {
            "real": self._config.annotators.real,
            "synthetic": self._config.annotators.synthetic,
        }
        setting = Setting(
            domain=self._config.task.domain,
            folder=build_task(self._config.task).folder,
            seed=self._config.seed,
            llm=llm,
            max_error_rate=self._config.guards.max_error_rate,
        )
        probed = origins_probed(self._store.reports())
        labelers: dict[Origin, tuple[str, Labeler]] = {}
        for origin, annotator in annotators.items():
            if annotator is not None:
                mine = replace(setting, probed=origin in probed)
                labelers[origin] = (annotator.name, annotator.load(corpus, mine))
        self._store.write_record(
            "annotators.json",
            {o: {"name": name, "accuracy": labeler.accuracy} for o, (name, labeler) in labelers.items()},
        )
        return Annotation(labelers, ledger, llm, max_error_rate=self._config.guards.max_error_rate)


def application_name(config: RunConfig) -> str:
    """Name of the run's Serve application, unique in a cluster."""
    return f"genal-ray-{config.name}-{config.fingerprint()}"
