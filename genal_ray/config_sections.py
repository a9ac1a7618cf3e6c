"""The sections of a configuration: frozen, bounded, and refused when a key is unknown."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    SerializeAsAny,
    model_validator,
)

from genal_ray import registry
from genal_ray.acquisition import Acquisition
from genal_ray.annotators import Annotator
from genal_ray.errors import UserError
from genal_ray.paths import absolute, is_data_file
from genal_ray.strategies import Strategy
from genal_ray.tasks import build_task
from genal_ray.text import is_name
from genal_ray.validation import InvalidValues, Problem


def _size(value: Any) -> int | float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
        raise ValueError(f"expected a share such as 0.1 or a count such as 67, got {value!r}")
    return value


def _part(value: Any) -> int | float:
    size = _size(value)
    if isinstance(size, float) and size > 1:
        raise ValueError(f"a share is at most 1.0; write a count as a whole number, got {value!r}")
    return size


Size = Annotated[int | float, PlainValidator(_size)]
"""A count (int), or a share (float) of what the field names: `67`, `0.001`; a share may be above 1."""

Part = Annotated[int | float, PlainValidator(_part)]
"""A count (int), or a share (float, at most 1.0) of what the field names."""

Location = Annotated[str, AfterValidator(absolute)]
"""A hub name, or a path, made absolute because actors run in other directories."""


def _gpus(value: float) -> float:
    if value > 1 and value != int(value):
        raise ValueError(f"expected 0, a share below 1, or a whole number of GPUs, got {value:g}")
    return value


Gpus = Annotated[float, Field(ge=0), AfterValidator(_gpus)]
"""As Ray gives them out."""

Dtype = Literal["auto", "float32", "bfloat16"]


def _plugin(package: str, base: type[registry.P], default: str | None = None) -> BeforeValidator:
    """Builds a plug-in of `package`; hyper-parameters without a name are those of `default`."""

    def build(value: Any) -> registry.P:
        if default is not None and isinstance(value, dict) and "name" not in value:
            value = {"name": default, **value}
        return registry.build(f"genal_ray.{package}", base, value)

    return BeforeValidator(build)


RealAnnotator = Annotated[SerializeAsAny[Annotator], _plugin("annotators", Annotator, "hidden")]
SyntheticAnnotator = Annotated[SerializeAsAny[Annotator], _plugin("annotators", Annotator)]
AnyStrategy = Annotated[SerializeAsAny[Strategy], _plugin("strategies", Strategy, "signal")]
AnyAcquisition = Annotated[SerializeAsAny[Acquisition], _plugin("acquisition", Acquisition, "signal")]


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)

    operation: ClassVar[frozenset[str]] = frozenset()
    """Keys that decide where, by how many and in which portions the work is done, and how long it is waited for. They
    may change while a run is stopped: results stay the same but for rounding, and for what a worker or device draws."""


class TaskConfig(Section):
    """What is classified, in words that the generator understands."""

    kind: str = Field("single_text", description="single_text, text_pair, ner, or package.module:Class")
    domain: str = Field(min_length=1, description="what the texts are, in the plural: 'movie reviews'")
    labels: tuple[str, ...] | None = Field(
        None,
        min_length=1,
        description="label names (entity types) in order; default: the training split's, sorted, with the evaluation "
        "split's where training rows have none",
    )
    instruction: str | None = Field(None, description="replaces the first line of the prompt; {domain} is filled in")
    num_examples: int = Field(3, ge=1, le=64, description="in-context examples per prompt (p)")
    options: dict[str, Any] = Field(
        default_factory=dict, description="further fields of the kind, such as first_name of text_pair"
    )

    @model_validator(mode="after")
    def _kind_is_known(self) -> Self:
        try:
            build_task(self)
        except InvalidValues as error:
            raise InvalidValues(*(replace(p, path=("options", *p.path)) for p in error.problems)) from error
        except UserError as error:
            raise InvalidValues(Problem(("kind",), str(error))) from error
        if self.labels is not None and len(self.labels) < 2 and not build_task(self).tags_words:
            raise InvalidValues(Problem(("labels",), f"expected at least two classes, got {self.labels[0]}"))
        odd = [name for name in self.labels or () if not is_name(name)]
        if odd:
            raise InvalidValues(Problem(("labels",), f"a name is one line of text and not empty, got {odd[0]!r}"))
        if self.labels is not None and len(set(self.labels)) < len(self.labels):
            names = ", ".join(self.labels)
            raise InvalidValues(Problem(("labels",), f"every name may stand there once, got {names}"))
        return self


class DataConfig(Section):
    """Where real instances come from: a `datasets` hub name, or local JSON lines, CSV or Parquet files."""

    source: Location | None = Field(
        None, description="hub name or local folder; null when train and evaluation are files of their own"
    )
    subset: str | None = Field(None, description="configuration on the hub, such as 'sst2' of 'nyu-mll/glue'")
    revision: str | None = Field(None, description="commit or tag of the hub data set; default: the newest")
    train: str = Field("train", description="split name, or file (.jsonl, .csv, .parquet, .conll, plain or .gz)")
    evaluation: str = Field("test", description="split name, or file")
    text_column: str = Field("text", description="of the kind ner: a list of words")
    text_pair_column: str | None = None
    label_column: str = Field("label", description="of the kind ner: a list of tags, one for each word")
    label_names: dict[str, str] | None = Field(None, description="raw label value -> label name")
    pool_size: Part = Field(1.0, description="the real pool: share of the training split, or count")
    initial_labeled: Part = Field(0.1, description="initial labeled set: share of the pool, or count")
    initial_method: Literal["random", "stratified", "balanced", "kmeans"] = Field(
        "random",
        description="stratified: labels spread as in the pool, which a real cold start does not know; balanced: as "
        "many of each label, k-shot with k times their number; kmeans: one text from each cluster of the pool's "
        "pretrained encodings, without labels",
    )
    evaluation_size: Part = Field(1.0, description="share or count of the evaluation split")

    @model_validator(mode="before")
    @classmethod
    def _files_are_absolute(cls, values: Any) -> Any:
        if not isinstance(values, dict) or values.get("source") is not None:
            return values
        files = {k: absolute(values[k]) for k in ("train", "evaluation") if isinstance(values.get(k), str)}
        return {**values, **files}

    @model_validator(mode="after")
    def _source_is_known(self) -> Self:
        if self.source is None and not (is_data_file(self.train) and is_data_file(self.evaluation)):
            description = "missing (hub name or local folder); data.train and data.evaluation may be files instead"
            raise InvalidValues(Problem(("source",), description, missing=True))
        return self


class BudgetConfig(Section):
    """Labels to buy, the initial labeled set included."""

    per_round: Size = Field(0.1, description="share of the pool, or count")
    total: Size = Field(2.0, description="share of the pool, or count")
    max_rounds: int | None = Field(
        None, ge=0, description="rounds after the initial one, whatever they buy; 0: that one alone"
    )


class SelectionConfig(Section):
    """How real and synthetic candidates share a round's labels."""

    mix: Literal["score", "fixed", "linear", "adaptive"] = Field(
        "score",
        description="score: the best, whatever their origin (the paper); fixed: synthetic_share; linear: from "
        "synthetic_share to final_synthetic_share as the budget is spent; adaptive: synthetic_share times the part of "
        "the round's completions that is usable, so that real instances are taken while the generator copies",
    )
    synthetic_share: float = Field(0.5, ge=0, le=1)
    final_synthetic_share: float = Field(1.0, ge=0, le=1)


class RewardConfig(Section):
    """From acquisition scores to rewards (the raw score is heavy-tailed and drifts with the student)."""

    acquisition: AnyAcquisition | None = Field(
        None, description="pointwise function whose score is the reward; null: the one that selects"
    )
    timing: Literal["pre", "post"] = Field(
        "pre",
        description="the student that scores: pre, the one before the round's labels, so that student and generator "
        "learn side by side; post, the one retrained on them, against the labeled set of before",
    )
    transform: Literal["none", "rank"] = Field(
        "none",
        description="rank: a score counts by its rank in the batch, in [0, 1]; where a confident student gives most "
        "texts a score near 0, their order still teaches",
    )
    clip_quantile: float = Field(
        0.95, gt=0.5, le=1.0, description="scores above this quantile of the batch are clipped to it"
    )
    standardize: bool = True
    floor: float = Field(-2.0, description="reward of completions that never reach the pool, after standardising")


class GeneratorConfig(Section):
    """The vLLM engine behind Ray Serve."""

    operation: ClassVar[frozenset[str]] = frozenset(
        {
            "num_replicas",
            "tensor_parallel_size",
            "max_num_seqs",
            "prompts_per_request",
            "gpu_memory_utilization",
            "kv_cache_gib",
            "weight_transfer",
            "num_cpus",
            "num_gpus",
            "threads",
            "timeout_s",
            "start_timeout_s",
        }
    )

    model: Location = Field(description="hub name or local folder of a causal language model")
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
    gpu_memory_utilization: float = Field(
        0.85, gt=0, lt=1, description="share of a GPU's memory that is to be free at the start, and is then taken"
    )
    kv_cache_gib: float = Field(1.0, gt=0, description="key-value cache on CPU and on a GPU that is shared, GiB")
    weight_transfer: Literal["auto", "file", "nccl", "ipc"] = Field(
        "auto", description="auto: nccl where generator and learner have whole GPUs, else file"
    )
    num_cpus: float = Field(1, ge=0, description="logical CPUs per replica")
    num_gpus: Gpus = Field(0, description="GPUs per replica; tensor_parallel_size of them on GPU nodes")
    threads: int = Field(1, ge=1)
    timeout_s: float = Field(600, gt=0, description="for one request, and for one weight hand-over")
    start_timeout_s: float = Field(600, gt=0)
    engine: dict[str, Any] = Field(default_factory=dict, description="further vLLM AsyncEngineArgs")


def check_group(num_workers: int, num_gpus: float) -> None:
    """Raises InvalidValues for workers that Ray may put on one GPU: NCCL, over which they meet, connects none such."""
    if num_workers > 1 and 0 < num_gpus < 1:
        message = f"must be 0 or 1 with {num_workers} workers, got {num_gpus:g}: NCCL needs a GPU for each"
        raise InvalidValues(Problem(("num_gpus",), message))


class StudentConfig(Section):
    """The classifier, and how it is trained each round."""

    operation: ClassVar[frozenset[str]] = frozenset(
        {"num_workers", "num_cpus", "num_gpus", "threads", "max_failures", "timeout_s"}
    )

    model: Location = Field(
        description="hub name or local folder of an encoder or sequence classifier; 'minilm' is the one that ships"
    )
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
    num_gpus: float = Field(0, ge=0, le=1, description="per worker")
    threads: int = Field(1, ge=1, description="per worker")
    max_failures: int = Field(3, ge=0, description="worker crashes that are survived in one run")
    timeout_s: float = Field(3600, gt=0, description="for one fit")

    @model_validator(mode="after")
    def _workers_can_meet(self) -> Self:
        check_group(self.num_workers, self.num_gpus)
        return self


class ScorerConfig(Section):
    """The pool of scorer actors."""

    operation: ClassVar[frozenset[str]] = frozenset(
        {"num_actors", "piece_size", "max_batch_tokens", "num_cpus", "num_gpus", "threads", "timeout_s"}
    )

    num_actors: int = Field(1, ge=1)
    encoding: Literal["cls", "mean", "pooler"] = Field("cls", description="the student's encoding of a text (Phi)")
    normalize: bool = Field(False, description="L2-normalise encodings")
    dtype: Dtype = "auto"
    piece_size: int = Field(512, ge=1, description="candidates per piece of work")
    max_batch_tokens: int = Field(4096, ge=16, description="tokens in one forward pass, padding included")
    num_cpus: float = Field(1, ge=0, description="per actor")
    num_gpus: float = Field(0, ge=0, le=1, description="per actor")
    threads: int = Field(1, ge=1, description="per actor")
    timeout_s: float = Field(600, gt=0, description="for one piece")


class AnnotatorsConfig(Section):
    """Who labels what."""

    real: RealAnnotator = Field(  # type: ignore[assignment]
        default="hidden", description="labels real instances; with any but hidden, training rows may have no label"
    )
    synthetic: SyntheticAnnotator | None = Field(
        None, description="labels synthetic instances; required when a generator writes them"
    )

    @property
    def asking_llm(self) -> tuple[str, ...]:
        """Names of the annotators that ask the chat model."""
        return tuple(a.name for a in (self.real, self.synthetic) if a is not None and a.asks_llm)

    @property
    def chat_models(self) -> dict[str, str]:
        """Chat models of their own, by `real` and `synthetic`."""
        both = {"real": self.real, "synthetic": self.synthetic}
        return {origin: a.chat_model for origin, a in both.items() if a is not None and a.chat_model is not None}


class ClusterConfig(Section):
    """Where it runs."""

    address: str | None = Field(None, description="Ray cluster to join; default: start a private one on this machine")
    num_cpus: int | None = Field(
        None, ge=1, description="logical CPUs of a private cluster; default: what the run asks for"
    )
    object_store_gib: float = Field(0.5, gt=0.07, description="shared memory of a private cluster, GiB")
    resource_wait_s: float = Field(60, gt=0, description="how long to wait for resources of a joined cluster")
    heartbeat_s: float = Field(
        60, ge=1, description="a process that is silent for so long hangs: its stack is kept, and it is replaced"
    )
    max_restarts: int = Field(
        3, ge=0, description="times that a run whose driver, or whose private cluster, is lost goes on by itself"
    )
    grace_s: float = Field(
        25, gt=0, description="after SIGTERM (Slurm, Kubernetes, spot machines): to end the stages in progress"
    )
    dashboard_port: int | None = Field(
        None, ge=1024, lt=65536, description="Ray dashboard of a private cluster; default: none"
    )
    temp_dir: str | None = Field(None, description="short path for Ray's session files of a private cluster")
