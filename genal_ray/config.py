"""RunConfig: everything that decides a run, frozen, checked, and refused when a key is unknown.

    YAML file or preset  ->  --set key=value overrides  ->  RunConfig  ->  config.yaml of the run directory

Nothing heavy is imported here: a configuration is checked in well under a second.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializeAsAny,
    ValidationError,
    model_validator,
)

from genal_ray import registry
from genal_ray.acquisition import Acquisition
from genal_ray.annotators import Annotator
from genal_ray.errors import UserError
from genal_ray.strategies import Strategy

Size = Annotated[int | float, Field(gt=0)]
"""A count (int), or a share (float) of what the field names: `0.001`, `67`."""

Dtype = Literal["auto", "float32", "bfloat16"]


def _plugin(package: str, base: type[registry.P], value: Any) -> registry.P | None:
    return None if value is None else registry.build(f"genal_ray.{package}", base, value)


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


class TaskConfig(Section):
    """What is classified, in words that the generator understands."""

    kind: str = Field("single_text", description="single_text, text_pair, or package.module:Class")
    domain: str = Field(description="what the texts are, in the plural: 'movie reviews'")
    labels: tuple[str, ...] | None = Field(None, description="label names in order; default: those of the training split, sorted")
    instruction: str | None = Field(None, description="replaces the first line of the prompt; {domain} is filled in")
    num_examples: int = Field(3, ge=1, le=64, description="in-context examples per prompt (p)")


class DataConfig(Section):
    """Where real instances come from: a `datasets` hub name, or local JSON lines, CSV or Parquet files, plain or .gz."""

    source: str | None = Field(None, description="hub name or local folder; null when train and evaluation are files of their own")
    subset: str | None = Field(None, description="configuration name on the hub, such as 'sst2' of 'nyu-mll/glue'")
    train: str = Field("train", description="split name, or file below source")
    evaluation: str = Field("test", description="split name, or file below source")
    text_column: str = "text"
    text_pair_column: str | None = None
    label_column: str = "label"
    label_names: dict[str, str] | None = Field(None, description="raw label value -> label name, for data with integer labels")
    pool_size: Size = Field(1.0, description="the real pool: share of the training split, or count")
    initial_labeled: Size = Field(0.1, description="initial labeled set: share of the pool, or count")
    initial_method: Literal["random", "stratified"] = "random"
    evaluation_size: Size = Field(1.0, description="share or count of the evaluation split")


class BudgetConfig(Section):
    """Labels to buy, the initial labeled set included."""

    per_round: Size = Field(0.1, description="share of the pool, or count")
    total: Size = Field(2.0, description="share of the pool, or count")
    max_rounds: int | None = Field(None, ge=1)


class RewardConfig(Section):
    """From acquisition scores to PPO rewards (the raw score is heavy-tailed and drifts with the student)."""

    clip_quantile: float = Field(0.95, gt=0.5, le=1.0, description="scores above this quantile of the batch are clipped to it")
    standardize: bool = True
    floor: float = Field(-2.0, description="reward of completions that never reach the pool, after standardising")


class GeneratorConfig(Section):
    """The vLLM engine behind Ray Serve."""

    model: str = Field(description="hub name or local folder of a causal language model")
    revision: str | None = None
    trust_remote_code: bool = False
    num_replicas: int = Field(1, ge=1)
    tensor_parallel_size: int = Field(1, ge=1)
    dtype: Dtype = "auto"
    max_model_len: int = Field(1024, ge=16, description="context in tokens, prompt and completion together")
    max_tokens: int = Field(64, ge=1, description="longest completion in tokens")
    temperature: float = Field(1.0, gt=0)
    top_p: float = Field(1.0, gt=0, le=1)
    max_num_seqs: int = Field(256, ge=1, description="sequences that the engine decodes at once")
    prompts_per_request: int = Field(64, ge=1, description="prompts per Serve call")
    gpu_memory_utilization: float = Field(0.85, gt=0, lt=1)
    kv_cache_gib: float = Field(1.0, gt=0, description="key-value cache on CPU, GiB")
    weight_transfer: Literal["auto", "file", "nccl", "ipc"] = Field("auto", description="auto: file on CPU, nccl on GPU")
    num_cpus: float = Field(1, ge=0, description="logical CPUs per replica")
    num_gpus: float = Field(0, ge=0, description="GPUs per replica; tensor_parallel_size of them on GPU nodes")
    threads: int = Field(1, ge=1)
    timeout_s: float = Field(600, gt=0, description="for one request, and for one weight hand-over")
    start_timeout_s: float = Field(600, gt=0)
    engine: dict[str, Any] = Field(default_factory=dict, description="further vLLM AsyncEngineArgs")


class StudentConfig(Section):
    """The classifier, and how it is trained each round."""

    model: str = Field(description="hub name or local folder of an encoder or sequence classifier; 'minilm' is the one that ships")
    revision: str | None = None
    trust_remote_code: bool = False
    num_workers: int = Field(1, ge=1, description="data-parallel training workers")
    warm_start: bool = Field(False, description="start from the last round's student instead of the pretrained weights")
    epochs: float = Field(3, gt=0)
    min_steps: int = Field(200, ge=1, description="at least this many optimiser steps, however small the labeled set")
    batch_size: int = Field(16, ge=1, description="over all workers")
    learning_rate: float = Field(5e-5, gt=0)
    weight_decay: float = Field(0.01, ge=0)
    warmup_ratio: float = Field(0.1, ge=0, le=1)
    max_grad_norm: float = Field(1.0, gt=0)
    max_length: int = Field(128, ge=4, description="tokens")
    dtype: Dtype = "auto"
    num_cpus: float = Field(1, ge=0, description="per worker")
    num_gpus: float = Field(0, ge=0, description="per worker")
    threads: int = Field(1, ge=1, description="per worker")
    max_failures: int = Field(3, ge=0, description="worker crashes that are survived in one run")
    timeout_s: float = Field(3600, gt=0, description="for one fit")


class ScorerConfig(Section):
    """The pool of scorer actors."""

    num_actors: int = Field(1, ge=1)
    encoding: Literal["cls", "mean", "pooler"] = Field("cls", description="the student's encoding of a text (Phi)")
    normalize: bool = Field(False, description="L2-normalise encodings")
    dtype: Dtype = "auto"
    piece_size: int = Field(512, ge=1, description="candidates per piece of work")
    max_batch_tokens: int = Field(4096, ge=16, description="tokens in one forward pass, padding included")
    num_cpus: float = Field(1, ge=0, description="per actor")
    num_gpus: float = Field(0, ge=0, description="per actor")
    threads: int = Field(1, ge=1, description="per actor")
    timeout_s: float = Field(600, gt=0, description="for one piece")


class LoraConfig(Section):
    rank: int = Field(16, ge=1)
    alpha: float = Field(32, gt=0)
    dropout: float = Field(0.0, ge=0, lt=1)
    target_modules: tuple[str, ...] | Literal["all-linear"] = "all-linear"


class KLConfig(Section):
    """Penalty for leaving the pretrained policy: beta * KL(pi || pi_pretrained) per token."""

    coefficient: float = Field(0.05, ge=0, description="beta")
    adaptive: bool = False
    target: float = Field(6.0, gt=0, description="nats per sequence, for the adaptive controller")
    horizon: int = Field(10_000, ge=1, description="sequences, for the adaptive controller")
    estimator: Literal["k1", "k2", "k3"] = "k1"


class LearnerConfig(Section):
    """PPO on the generator."""

    name: Literal["ppo", "none"] = "ppo"
    num_workers: int = Field(1, ge=1)
    zero_stage: Literal[0, 1, 2, 3] = 0
    offload_optimizer: bool = False
    offload_parameters: bool = False
    dtype: Dtype = "float32"
    lora: LoraConfig | None = None
    learning_rate: float = Field(1e-6, gt=0)
    value_learning_rate: float = Field(1e-4, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    epochs: int = Field(4, ge=1, description="passes over the rollouts")
    batch_size: int = Field(16, ge=1, description="sequences per optimiser step, over all workers")
    micro_batch_size: int = Field(16, ge=1, description="sequences per forward pass of one worker")
    clip_range: float = Field(0.2, gt=0)
    value_clip_range: float = Field(0.2, gt=0)
    value_coefficient: float = Field(0.5, ge=0)
    entropy_coefficient: float = Field(0.0, ge=0)
    gamma: float = Field(1.0, gt=0, le=1)
    gae_lambda: float = Field(0.95, ge=0, le=1)
    max_grad_norm: float = Field(1.0, gt=0)
    importance_cap: float = Field(2.0, ge=1, description="truncation of pi_learner / pi_generator")
    critic_warmup_rounds: int = Field(0, ge=0, description="first updates that train the value head only")
    gradient_checkpointing: bool = False
    kl: KLConfig = KLConfig()
    num_cpus: float = Field(1, ge=0, description="per worker")
    num_gpus: float = Field(0, ge=0, description="per worker")
    threads: int = Field(1, ge=1, description="per worker")
    timeout_s: float = Field(3600, gt=0, description="for one update")


class AnnotatorsConfig(Section):
    """Who labels what."""

    real: Annotated[SerializeAsAny[Annotator], BeforeValidator(lambda v: _plugin("annotators", Annotator, v))] = Field(
        default="hidden"  # type: ignore[assignment]
    )
    synthetic: Annotated[
        SerializeAsAny[Annotator], BeforeValidator(lambda v: _plugin("annotators", Annotator, v))
    ] | None = Field(None, description="required when synthetic instances are generated")


class ClusterConfig(Section):
    """Where it runs."""

    address: str | None = Field(None, description="Ray cluster to join; default: start a private one on this machine")
    num_cpus: int | None = Field(None, ge=1, description="logical CPUs of a private cluster; default: what the run asks for")
    object_store_gib: float = Field(0.5, gt=0.07, description="shared memory of a private cluster, GiB")
    resource_wait_s: float = Field(60, gt=0, description="how long to wait for resources of a joined cluster")
    dashboard_port: int | None = Field(None, ge=1024, lt=65536, description="Ray dashboard of a private cluster; default: none")
    temp_dir: str | None = Field(None, description="short path for Ray's session files of a private cluster")


class RunConfig(Section):
    """One run."""

    name: str = Field("run", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    seed: int = Field(0, ge=0, lt=2**31)
    output_dir: str | None = Field(None, description="default: runs/<name>")
    keep_last: int = Field(2, ge=1, description="rounds whose student and policy weights are kept")
    task: TaskConfig
    data: DataConfig
    budget: BudgetConfig = BudgetConfig()
    strategy: Annotated[SerializeAsAny[Strategy], BeforeValidator(lambda v: _plugin("strategies", Strategy, v))] = Field(
        default="signal"  # type: ignore[assignment]
    )
    acquisition: Annotated[
        SerializeAsAny[Acquisition], BeforeValidator(lambda v: _plugin("acquisition", Acquisition, v))
    ] = Field(default="signal")  # type: ignore[assignment]
    reward: RewardConfig = RewardConfig()
    annotators: AnnotatorsConfig = Field(default_factory=AnnotatorsConfig)
    generator: GeneratorConfig | None = Field(None, description="null: no synthetic instances, a pool method")
    student: StudentConfig
    scorer: ScorerConfig = ScorerConfig()
    learner: LearnerConfig = LearnerConfig()
    cluster: ClusterConfig = ClusterConfig()

    @model_validator(mode="after")
    def _parts_fit_together(self) -> RunConfig:
        if self.generator is None:
            return self
        if self.annotators.synthetic is None:
            raise ValueError(
                "annotators.synthetic is missing: a generator writes instances that somebody must label; "
                "train a classifier for it with `genal-ray train-annotator`"
            )
        if self.generator.max_tokens >= self.generator.max_model_len:
            raise ValueError(
                f"generator.max_tokens ({self.generator.max_tokens}) must be below generator.max_model_len "
                f"({self.generator.max_model_len}): prompt and completion share the context"
            )
        if self.learner.name == "ppo" and self.generator.top_p < 1:
            raise ValueError(
                "generator.top_p must be 1 while learner.name is ppo: log-probabilities of a truncated distribution "
                "are not the policy's"
            )
        return self

    @property
    def learns(self) -> bool:
        return self.generator is not None and self.learner.name == "ppo"

    def fingerprint(self) -> str:
        """16 hex digits over all that decides the results: not the place, the name or the output directory."""
        decisive = self.model_dump(mode="json", exclude={"name", "output_dir", "keep_last", "cluster"})
        return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:16]

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def load_config(source: str, overrides: list[str] | tuple[str, ...] = ()) -> RunConfig:
    """The configuration of a YAML file or a preset, with `dotted.key=value` overrides applied (values are YAML).

    Raises UserError naming the file, the key and the nearest known key.
    """
    where, values = _read(source)
    for override in overrides:
        _override(values, override)
    return parse_config(values, where)


def parse_config(values: dict[str, Any], where: str) -> RunConfig:
    """A RunConfig from plain values; `where` names them in errors."""
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        raise UserError(f"{where}:\n" + "\n".join(f"  {line}" for line in _explain(error, values))) from error


def presets() -> dict[str, Path]:
    """Name -> file of the presets that ship."""
    folder = Path(__file__).parent / "presets"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def _read(source: str) -> tuple[str, dict[str, Any]]:
    shipped = presets()
    path = shipped.get(source, Path(source))
    where = f"preset {source}" if source in shipped else str(path)
    if not path.is_file():
        near = difflib.get_close_matches(source, shipped, n=1)
        hint = f"; did you mean the preset {near[0]!r}?" if near else ""
        raise UserError(
            f"no configuration {source!r}: neither a file nor a preset{hint} (presets: {', '.join(shipped)})"
        )
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{where} is not YAML: {error}") from error
    if not isinstance(values, dict):
        raise UserError(f"{where}: expected a mapping of sections such as 'task:' and 'data:', got {type(values).__name__}")
    return where, values


def _override(values: dict[str, Any], override: str) -> None:
    key, sep, raw = override.partition("=")
    if not sep or not key.strip():
        raise UserError(f"--set {override!r}: expected key=value, such as generator.max_tokens=48")
    *parents, last = key.strip().split(".")
    node = values
    for parent in parents:
        child = node.get(parent)
        if child is None:
            child = node[parent] = {}
        elif isinstance(child, str):
            child = node[parent] = {"name": child}  # a plug-in given by its bare name
        elif not isinstance(child, dict):
            raise UserError(f"--set {override!r}: {parent!r} is a value, not a section")
        node = child
    try:
        node[last] = yaml.safe_load(raw)
    except yaml.YAMLError as error:
        raise UserError(f"--set {override!r}: {raw!r} is not a YAML value: {error}") from error
    if isinstance(node[last], str):  # YAML 1.1 reads 5e-5 as a string
        try:
            node[last] = float(node[last]) if any(c in node[last] for c in "eE.") else node[last]
        except ValueError:
            pass


def _explain(error: ValidationError, values: dict[str, Any]) -> list[str]:
    lines = []
    for item in error.errors():
        location = ".".join(str(part) for part in item["loc"]) or "configuration"
        if item["type"] == "extra_forbidden":
            near = difflib.get_close_matches(str(item["loc"][-1]), _known_keys(item["loc"][:-1]), n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            lines.append(f"unknown key {location!r}{hint}")
        elif item["type"] == "missing":
            lines.append(f"{location} is missing")
        else:
            message = item["msg"].removeprefix("Value error, ")
            given = "" if isinstance(item["input"], dict) else f", got {item['input']!r}"
            lines.append(f"{location}: {message}{given}")
    return lines


def _known_keys(location: tuple[int | str, ...]) -> list[str]:
    """Field names of the section at `location`, so that a misspelt key can be answered with the right one."""
    section: type[BaseModel] = RunConfig
    for part in location:
        inner = section.model_fields.get(str(part))
        found = [] if inner is None else [t for t in _types(inner.annotation) if issubclass(t, BaseModel)]
        if not found:
            return []
        section = found[0]
    return list(section.model_fields)


def _types(annotation: Any) -> list[type]:
    if isinstance(annotation, type):
        return [annotation]
    return [t for arg in getattr(annotation, "__args__", ()) for t in _types(arg)]
