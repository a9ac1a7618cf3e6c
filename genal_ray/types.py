"""What flows through a round: frozen records that may cross processes.

    Prompt -> Completion -> Candidate (parsed, guarded) -> Instance -> Scores -> LabeledInstance -> StudentFit
                  |                                                       |
                  +------------------------ Rollout <---------------------+   -> PolicyUpdate
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

import numpy as np
import numpy.typing as npt

Text = str | tuple[str, str]
"""What a student reads: one text, or a pair."""

FloatArray = npt.NDArray[np.float32]

Label = int | tuple[int, ...]
"""A class, as an index into the label names; or the tags of a text's words (`genal_ray.entities`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Instance:
    """A text that may be labeled."""

    id: str
    """Unique in a run: `r-000012` for row 12 of the training split, `s-0003-0007` for completion 7 of round 3."""
    text: str
    text_pair: str | None = None
    origin: Literal["real", "synthetic"] = "real"
    round: int = 0
    """The round that brought it into the pool; 0 for real instances."""

    @property
    def student_input(self) -> Text:
        return self.text if self.text_pair is None else (self.text, self.text_pair)


@dataclass(frozen=True, slots=True, kw_only=True)
class LabeledInstance:
    """An instance and the label that was paid for it."""

    instance: Instance
    label: Label
    annotator: str
    """Name of the annotator that gave the label, as in the ledger."""
    round: int
    """The round that bought the label; 0 for the initial labeled set."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """What a student says of an instance."""

    label: Label
    confidence: float
    """Probability of the label; of tags, the geometric mean over the words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """A request for one completion."""

    id: str
    text: str
    example_ids: tuple[str, ...]
    """Ids of the in-context examples, in their order in the text."""
    seed: int
    """Sampling seed of this request, in [0, 2**63)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """What the generator wrote for a prompt."""

    prompt_id: str
    text: str
    prompt_token_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    """Response tokens, the end-of-sequence token included when it was sampled."""
    logprobs: tuple[float, ...]
    """log pi(token | context) in nats, after temperature; one per response token."""
    finish_reason: str
    """`stop` when the model ended by itself, `length` when it was cut off."""
    policy_version: int
    """Version of the policy that wrote it; 0 is the pretrained one, and what a chat model wrote."""
    tag: str = ""
    """What a chat model was asked for, such as `hard`."""
    label: Label | None = None
    """That came with the text, where that is the label it gets."""


class Fate(StrEnum):
    """What became of a completion; only KEPT ones enter the pool."""

    KEPT = "kept"
    COPIED = "copied"
    DUPLICATE = "duplicate"
    NEAR_DUPLICATE = "near_duplicate"
    EMPTY = "empty"
    TRUNCATED = "truncated"
    UNPARSEABLE = "unparseable"
    UNLABELED = "unlabeled"
    """Written with its label, which does not go with the text."""
    UNSCORABLE = "unscorable"
    """It crashes scorers, or its score is not finite; known once the round is scored."""


class Repeat(StrEnum):
    """What a text repeats, whatever is done about it."""

    COPY = "copy"
    """A text of the real pool."""
    DUPLICATE = "duplicate"
    """A synthetic text of the pool, labeled or not, or an earlier one of the round."""
    NEAR_DUPLICATE = "near_duplicate"
    """Nearly one of either."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A completion after parsing and guarding."""

    completion: Completion
    fate: Fate
    instance: Instance | None = None
    """Set exactly when the fate is KEPT."""
    repeats: Repeat | None = None
    penalized: bool = False
    """Whether it earns the floor reward although it was kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """Acquisition scores of a set of instances under one student; those that could not be scored are in `failed`."""

    ids: tuple[str, ...]
    values: FloatArray
    """float32 [n], higher is more worth a label; finite."""
    student_version: int
    """-1 when no student was asked."""
    failed: Mapping[str, str] = field(default_factory=dict)
    """Instance id -> why there is no score: scorers crash on the text, or what they say of it is not finite."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """`score/*` figures: instances/s, neighbour distances, ..."""
    neighbours: Neighbourhood | None = None
    """Kept for the reader of a run; nothing is decided by it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Neighbourhood:
    """A few nearest labeled instances of n instances, nearest first."""

    labeled_ids: tuple[str, ...]
    rows: npt.NDArray[np.int64]
    """[n, m], positions in `labeled_ids`."""
    distances: FloatArray
    """float32 [n, m]"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What became of the instances that were chosen for labeling."""

    ids: tuple[str, ...]
    """Those that an annotator answered about, with a label or by passing; best first."""
    failed: Mapping[str, str] = field(default_factory=dict)
    """Instance id -> why there was no answer; nothing was paid, and they may be asked about once more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """What the learner needs of one completion."""

    completion: Completion
    reward: float
    """Shaped reward of the whole sequence (clipped, standardised, or the floor)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StudentFit:
    """A trained student."""

    version: int
    """The round that trained it; 0 is the student of the initial labeled set."""
    path: str
    """Plain Hugging Face folder: model, tokenizer, config with label names."""
    metrics: Mapping[str, float]
    """`al/*` figures of `genal_ray.evaluation` on the evaluation split, and `student/*`."""
    stop_predictions: tuple[int, ...] = ()
    """Label indices for the stop set, or tags of all its words; empty where a run has none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyUpdate:
    """A generator policy after learning."""

    version: int
    path: str
    """Folder with the policy as a plain Hugging Face model, which a restarted generator replica loads; empty for the
    pretrained policy that a round went back to, when it is read from the run directory."""
    metrics: Mapping[str, float]
    """`rl/*` figures."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundReport:
    """One object of metrics.jsonl."""

    round: int
    metrics: Mapping[str, float]
