"""RunConfig: everything that decides a run, frozen, checked, and refused when a key is unknown.

    YAML file or preset  ->  --set key=value overrides  ->  RunConfig  ->  config.yaml of the run directory

Nothing heavy is imported here: a configuration is checked in well under a second.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from genal_ray import registry
from genal_ray.acquisition import Acquisition, Batchwise, Pointwise
from genal_ray.config_guards import GuardsConfig, StoppingConfig
from genal_ray.config_learning import KLConfig, LearnerConfig, LoraConfig, WarmupConfig
from genal_ray.config_llm import LIMITS, LLMConfig
from genal_ray.config_sections import (
    AnnotatorsConfig,
    AnyAcquisition,
    AnyStrategy,
    BudgetConfig,
    ClusterConfig,
    DataConfig,
    GeneratorConfig,
    RewardConfig,
    ScorerConfig,
    Section,
    SelectionConfig,
    StudentConfig,
    TaskConfig,
)
from genal_ray.config_yaml import Document, dump, override, read_document
from genal_ray.errors import UserError
from genal_ray.strategies import PolicyStrategy, TeacherStrategy
from genal_ray.tasks import build_task
from genal_ray.validation import InvalidValues, Problem, suggestion, validate

__all__ = [
    "AnnotatorsConfig",
    "BudgetConfig",
    "ClusterConfig",
    "DataConfig",
    "GeneratorConfig",
    "GuardsConfig",
    "KLConfig",
    "LLMConfig",
    "LearnerConfig",
    "LoraConfig",
    "RewardConfig",
    "RunConfig",
    "ScorerConfig",
    "Section",
    "SelectionConfig",
    "StoppingConfig",
    "StudentConfig",
    "TaskConfig",
    "WarmupConfig",
    "load_config",
    "parse_config",
    "presets",
]


class RunConfig(Section):
    """One run."""

    name: str = Field("run", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    seed: int = Field(0, ge=0, lt=2**31)
    output_dir: str | None = Field(None, description="default: runs/<name>")
    keep_last: int = Field(2, ge=1, description="rounds whose student and policy weights are kept")
    keep_best: int = Field(0, ge=0, description="best rounds whose students are kept besides")
    task: TaskConfig
    data: DataConfig
    budget: BudgetConfig = BudgetConfig()
    strategy: AnyStrategy = Field(default="signal")  # type: ignore[assignment]
    acquisition: AnyAcquisition = Field(default="signal")  # type: ignore[assignment]
    selection: SelectionConfig = SelectionConfig()
    reward: RewardConfig = RewardConfig()
    annotators: AnnotatorsConfig = Field(default_factory=AnnotatorsConfig)
    llm: LLMConfig | None = Field(None, description="the chat model that annotators may ask")
    generator: GeneratorConfig | None = Field(None, description="null: no synthetic instances, a pool method")
    warmup: WarmupConfig | None = Field(None, description="null: the generator is served as it is")
    student: StudentConfig
    scorer: ScorerConfig = ScorerConfig()
    learner: LearnerConfig = LearnerConfig()
    guards: GuardsConfig = GuardsConfig()
    stopping: StoppingConfig = StoppingConfig()
    cluster: ClusterConfig = ClusterConfig()

    @model_validator(mode="after")
    def _parts_fit_together(self) -> RunConfig:
        if self.writes and isinstance(self.selector, Batchwise) and self.selection.mix != "score":
            raise InvalidValues(
                Problem(
                    ("selection", "mix"),
                    f"must be score with {self.selector.name}, got {self.selection.mix}: a batch-mode function chooses "
                    "the batch as a whole",
                )
            )
        if self.writes and self.strategy.keeps_the_best and not isinstance(self.selector, Pointwise):
            message = (
                f"{self.selector.name} chooses whole batches and gives a text no score of its own, by which "
                f"{self.strategy.name} could keep it; name a pointwise function such as signal"
            )
            raise InvalidValues(Problem(("acquisition",), message))
        if self.learns and not isinstance(self.reward_function, Pointwise):
            raise InvalidValues(
                Problem(
                    ("reward", "acquisition"),
                    f"missing: {self.reward_function.name} chooses whole batches and gives a text no score of its own; "
                    "name a pointwise function such as signal, or set learner.name=none",
                )
            )
        asking = self.annotators.asking_llm
        if asking and self.llm is None:
            raise InvalidValues(
                Problem(("llm",), f"missing: annotator {asking[0]} asks a chat model; give llm.model", missing=True)
            )
        if isinstance(self.strategy, TeacherStrategy):
            if self.llm is None:
                message = f"missing: strategy {self.strategy.name} writes with a chat model; give llm.model"
                raise InvalidValues(Problem(("llm",), message, missing=True))
            if self.generator is not None and self.llm.backend == "endpoint":
                message = (
                    f"must be null: strategy {self.strategy.name} writes with the chat model of the section llm; or "
                    "set llm.backend=generator"
                )
                raise InvalidValues(Problem(("generator",), message))
        if self.llm is not None and self.asks_llm and self.llm.backend == "generator":
            if self.generator is None:
                message = (
                    "missing: llm.backend is generator, and pool methods have none; give generator.model, or set "
                    "llm.backend=endpoint"
                )
                raise InvalidValues(Problem(("generator",), message, missing=True))
            if self.learns:
                message = "must be none with llm.backend generator: a policy that learns would not label as before"
                raise InvalidValues(Problem(("learner", "name"), message))
        if self.llm is not None:
            self._check_chat_models(self.llm)
        labels_itself = isinstance(self.strategy, TeacherStrategy) and self.strategy.labels_itself
        if self.labels_synthetic and self.annotators.synthetic is None and not labels_itself:
            raise InvalidValues(
                Problem(
                    ("annotators", "synthetic"),
                    "missing: texts are written that somebody must label; name llm, or train a classifier for it with "
                    "`genal-ray train-annotator`",
                    missing=True,
                )
            )
        if self.generator is None:
            return self
        if self.generator.max_tokens >= self.generator.max_model_len:
            raise InvalidValues(
                Problem(
                    ("generator", "max_tokens"),
                    f"must be below generator.max_model_len ({self.generator.max_model_len}), got "
                    f"{self.generator.max_tokens}: prompt and completion share the context",
                )
            )
        if self.warmup is not None and not isinstance(self.strategy, PolicyStrategy):
            message = (
                f"must be null: warmup is for strategies that prompt the generator, and {self.strategy.name} converses "
                "with it as it is"
            )
            raise InvalidValues(Problem(("warmup",), message))
        longest = None if self.warmup is None else self.warmup.max_length
        if longest is not None and longest > self.generator.max_model_len:
            raise InvalidValues(
                Problem(
                    ("warmup", "max_length"),
                    f"must be at most generator.max_model_len ({self.generator.max_model_len}), got {longest}",
                )
            )
        algorithm = self.learner.algorithm
        if not isinstance(self.strategy, PolicyStrategy):
            return self
        if algorithm is not None and algorithm.needs_groups and self.strategy.group_size < 2:
            raise InvalidValues(
                Problem(
                    ("learner", "name"),
                    f"{self.learner.name} compares completions of the same prompt, and strategy {self.strategy.name} "
                    "asks for one of each: set strategy.completions_per_prompt to 2 or more (4, say), or learner.name "
                    "to ppo",
                )
            )
        if algorithm is not None and self.generator.top_p < 1:
            raise InvalidValues(
                Problem(
                    ("generator", "top_p"),
                    f"must be 1 while learner.name is {self.learner.name}: log-probabilities of a truncated "
                    f"distribution are not the policy's, got {self.generator.top_p}",
                )
            )
        return self

    def _check_chat_models(self, llm: LLMConfig) -> None:
        for origin, name in self.annotators.chat_models.items():
            key = ("annotators", origin, "model")
            if llm.backend == "generator":
                raise InvalidValues(Problem(key, "must be left out with llm.backend generator, which serves one model"))
            if llm.max_cost is not None and name != llm.model:
                message = (
                    f"{name} has no price of its own, and llm.max_cost would count that of {llm.model}: cap the tokens "
                    "of both with llm.max_total_tokens instead"
                )
                raise InvalidValues(Problem(key, message))

    @model_validator(mode="after")
    def _weights_can_be_handed_over(self) -> RunConfig:
        if self.generator is None or not self.learns:
            return self
        generator, learner = self.generator, self.learner
        smaller = min(generator.num_gpus, learner.num_gpus)
        shares = generator.num_replicas * generator.num_gpus + learner.num_workers * learner.num_gpus
        impossible = {"nccl": smaller < 1, "ipc": smaller == 0 or round(shares, 4) > 1}
        if impossible.get(generator.weight_transfer, False):
            needs = {"nccl": "a whole GPU for each of both", "ipc": "shares of one GPU for all of them"}
            message = (
                f"{generator.weight_transfer} needs {needs[generator.weight_transfer]}, got {generator.num_replicas} "
                f"replicas of generator.num_gpus {generator.num_gpus:g} and {learner.num_workers} workers of "
                f"learner.num_gpus {learner.num_gpus:g}: set it to auto or file, or change these"
            )
            raise InvalidValues(Problem(("generator", "weight_transfer"), message))
        return self

    @model_validator(mode="after")
    def _parts_fit_the_task(self) -> RunConfig:
        wanted = "words" if build_task(self.task).tags_words else "classes"
        own = self.selector is not self.acquisition
        place = ("strategy",) if own else ("acquisition",)
        functions: list[tuple[tuple[str, ...], Acquisition]] = [(place, self.selector)]
        if self.learns:
            functions.append((("reward", "acquisition"), self.reward_function))
        for path, function in functions:
            if function.understands not in (wanted, "any"):
                others = [name for name in registry.names("genal_ray.acquisition") if _reads(name) in (wanted, "any")]
                what = "one label for each text" if wanted == "words" else "a tag for each word"
                message = (
                    f"{function.name} reads {what}, which task.kind {self.task.kind} does not have: name one of "
                    f"{', '.join(others)}"
                )
                raise InvalidValues(Problem(path, message))
        if wanted == "words" and isinstance(self.strategy, PolicyStrategy) and self.strategy.names_labels:
            message = f"prompts of one label (condition_on_label) are for classes, not for task.kind {self.task.kind}"
            raise InvalidValues(Problem(("strategy", "condition_on_label"), message))
        return self

    @property
    def writes(self) -> bool:
        """Whether there are synthetic instances, by a generator or a chat model."""
        return self.generator is not None or isinstance(self.strategy, TeacherStrategy)

    @property
    def observes(self) -> bool:
        """Whether the student is observed on the newest labels."""
        return isinstance(self.strategy, TeacherStrategy) and self.strategy.observes

    @property
    def asks_llm(self) -> bool:
        """Whether the chat model of the section `llm` is asked for anything."""
        return isinstance(self.strategy, TeacherStrategy) or bool(self.annotators.asking_llm)

    @property
    def chat_models(self) -> dict[str, str]:
        """Names of the models that an endpoint is asked for, by the key that gives each."""
        if self.llm is None or self.llm.backend == "generator" or not self.asks_llm:
            return {}
        own = {f"annotators.{origin}.model": name for origin, name in self.annotators.chat_models.items()}
        return {"llm.model": self.llm.model_name, **own}

    @property
    def warms_up(self) -> bool:
        return isinstance(self.strategy, PolicyStrategy) and self.generator is not None and self.warmup is not None

    @property
    def learns(self) -> bool:
        prompted = isinstance(self.strategy, PolicyStrategy)
        return prompted and self.generator is not None and self.learner.name != "none"

    @property
    def selector(self) -> Acquisition:
        """What chooses the instances to be labeled."""
        return self.strategy.selector(self.acquisition) if self.writes else self.acquisition

    @property
    def reward_function(self) -> Acquisition:
        """What rewards the generator; a pointwise function whenever there is a learner."""
        return self.reward.acquisition or self.strategy.reward(self.acquisition)

    @property
    def labels_synthetic(self) -> bool:
        """Whether synthetic instances may be labeled: such a run does not end with the real pool."""
        return self.writes and self.strategy.labels_synthetic

    @property
    def functions(self) -> list[Acquisition]:
        """What chooses instances, and what rewards the generator where it learns."""
        return [self.selector, *([self.reward_function] if self.learns else [])]

    @property
    def uses_models_for_scoring(self) -> bool:
        asked = any(f.needs.student or f.needs.pretrained for f in self.functions)
        return asked or self.observes or self.data.initial_method == "kmeans"

    def fingerprint(self) -> str:
        """16 hex digits over all that decides the results: not the place, the name or the output directory, how the
        work is spread and waited for, what the chat model may spend, how much may fail, or which weights are kept."""
        left_out: dict[str, Any] = dict.fromkeys(("name", "output_dir", "keep_last", "keep_best"), True)
        left_out |= {name: part.operation for name, part in self if isinstance(part, Section)}
        left_out |= {"cluster": True, "llm": LIMITS, "guards": {"max_error_rate"}}
        decisive = self.model_dump(mode="json", exclude=left_out)
        return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:16]

    def to_yaml(self) -> str:
        """YAML that `load_config` and any other YAML reader read back as it was."""
        return dump(self.model_dump(mode="json"))


def _reads(acquisition: str) -> str:
    return registry.find("genal_ray.acquisition", Acquisition, acquisition).reads


def load_config(source: str, overrides: Sequence[str] = (), *, without: Sequence[str] = ()) -> RunConfig:
    """The configuration of a YAML file or a preset, with `dotted.key=value` overrides applied (values are YAML).

    `without` names keys that are set to null first, for commands that do without a part that the file describes.

    Raises UserError naming the file and line (or the override), the key and the nearest known key.
    """
    document = _read(source)
    for setting in [*overrides, *(f"{key}=null" for key in without)]:
        override(document, setting)
    return _check(document)


def parse_config(values: dict[str, Any], where: str) -> RunConfig:
    """A RunConfig from plain values; `where` names them in errors. Raises UserError."""
    return _check(Document(where=where, values=values))


def presets() -> dict[str, Path]:
    """Name -> file of the presets that ship."""
    folder = Path(__file__).parent / "presets"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def _read(source: str) -> Document:
    try:
        return _read_file(source)
    except OSError as error:
        raise UserError(f"configuration {source!r} cannot be read: {error.strerror or error}") from error


def _read_file(source: str) -> Document:
    shipped = presets()
    path = shipped.get(source, Path(source).expanduser())
    if path.is_dir():
        raise UserError(f"configuration {source!r} is a folder: give a YAML file in it, or a preset")
    if not path.is_file():
        near = [str(file) for file in path.parent.glob("*.y*ml")]
        raise UserError(
            f"no configuration {source!r}: neither a file nor a preset{suggestion(source, [*shipped, *near])} "
            f"(presets: {', '.join(shipped)})"
        )
    where = f"preset {source}" if source in shipped else str(path)
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        line = path.read_bytes()[: error.start].count(b"\n") + 1
        raise UserError(f"{where}, line {line}: this is not UTF-8 text: save the file as UTF-8") from error
    return read_document(text, where)


def _check(document: Document) -> RunConfig:
    try:
        return validate(RunConfig, document.values)
    except InvalidValues as error:
        lines = [f"{document.origin(problem.path)}: {problem}{_remedy(problem)}" for problem in error.problems]
        raise UserError("\n".join(lines)) from error


def _remedy(problem: Problem) -> str:
    return f"; give it in the file, or with --set {'.'.join(problem.path)}=..." if problem.missing else ""
