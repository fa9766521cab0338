"""What the model servers of the three tiers can do, from first principles and measured anchors.

One decode step of a continuous batch reads the weights once and every sequence's KV cache:

    step = base + per_sequence x running + per_kv_token x context tokens

and a step that also computes prompts takes `uncached tokens / prefill_tokens_per_second` longer;
`prefill_chunk_tokens` bounds how many one step takes on. This is
the usual roofline account of decoding (memory bound) and prefill (compute bound), e.g. Pope et
al., "Efficiently Scaling Transformer Inference", 2022.

Anchors and derivations:

- A10G: 24 GB, 600 GB/s, 70 TFLOP/s dense FP16 (NVIDIA's figures for AWS's variant). L4 is not used
  by a default profile.
- Gold, 3B in FP16 (6.4 GB) on g5.xlarge. Measured anchor: about 9 ms per token at low concurrency;
  the product's target is at most 16 ms at the server's capacity. KV per token: 28 layers x 8 KV
  heads x 128 x 2 (K, V) x 2 bytes = 114,688 bytes, read at 80 % of 600 GB/s: 0.24 us per token and
  step. 24 GB x 0.9 - weights - 1.5 GB activations leaves about 119,000 tokens. Prefill: 6.4 GFLOP
  per token at 60 % of 70 TFLOP/s: 6,500 tokens/s.
- Silver, 7B in FP16 (14.5 GB) on g5.2xlarge, same GPU: base 14.5 GB / 600 GB/s = 24 ms + 2 ms;
  KV 32 layers x 8 x 128 x 2 x 2 = 131,072 bytes: 0.27 us, 42,000 tokens; prefill 2,900 tokens/s.
- Bronze, 8B in 4 bits (4.7 GB) on the 8 physical cores of c5.4xlarge: base 4.7 GB at about
  70 GB/s; compute bound beyond that, 12 ms more per sequence; prefill 16 GFLOP per token at
  0.75 TFLOP/s: 47 tokens/s. Answers take seconds, as its tier promises. An estimate, unmeasured.

The per-sequence cost (sampling, scheduling) of 0.04 ms is an assumption.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from fleetsim.cold_start import ColdStartProfile, baked

__all__ = ["BRONZE", "GOLD", "PROFILES", "SILVER", "ModelServerProfile"]


@dataclass(frozen=True, slots=True)
class ModelServerProfile:
    """One kind of model server: what it serves, on what, and how fast.

    Raises ValueError when the KV cache could not hold one request of full length, which would
    let a single request deadlock the server.
    """

    tier: str
    model_name: str
    instance_type: str
    weights_gb: float
    max_model_len_tokens: int
    max_running_sequences: int
    kv_cache_blocks: int
    step_base_seconds: float
    step_per_sequence_seconds: float
    step_per_kv_token_seconds: float
    prefill_tokens_per_second: float
    prefill_chunk_tokens: int
    cold_start: ColdStartProfile
    kv_block_tokens: int = 16
    target_time_per_token_seconds: float = 0.016

    def __post_init__(self) -> None:
        if self.kv_cache_capacity_tokens < self.max_model_len_tokens:
            raise ValueError("the KV cache must hold at least one request of full length")

    @property
    def kv_cache_capacity_tokens(self) -> int:
        """How many tokens of context the KV cache holds."""
        return self.kv_cache_blocks * self.kv_block_tokens

    def step_seconds(self, running: int, context_tokens: float) -> float:
        """Return how long one engine step without a prefill takes with this batch."""
        return (
            self.step_base_seconds
            + self.step_per_sequence_seconds * running
            + self.step_per_kv_token_seconds * context_tokens
        )

    def sustainable_requests_per_second(
        self, *, uncached_prompt_tokens: float, context_tokens: float, output_tokens: float
    ) -> float:
        """Return the arrival rate at which the mean time per token meets the target.

        `context_tokens` is the mean context of a running sequence. Little's law gives the batch,
        prefill takes its share of the time; solved by bisection, and 0 when even one request
        misses the target.
        """
        prefill_seconds = uncached_prompt_tokens / self.prefill_tokens_per_second

        def time_per_token(rate: float) -> float:
            running = rate * output_tokens * self.target_time_per_token_seconds
            if running > self.max_running_sequences:
                return float("inf")
            busy = rate * prefill_seconds
            step = self.step_seconds(1, 0) + (running - 1) * self.step_per_sequence_seconds
            step += running * context_tokens * self.step_per_kv_token_seconds
            return step / (1 - busy) if busy < 1 else float("inf")

        low, high = (
            0.0,
            self.max_running_sequences / (output_tokens * self.target_time_per_token_seconds),
        )
        for _ in range(60):
            middle = (low + high) / 2
            if time_per_token(middle) <= self.target_time_per_token_seconds:
                low = middle
            else:
                high = middle
        return low


GOLD = ModelServerProfile(
    tier="gold",
    model_name="gamekeeper-gold-3b",
    instance_type="g5.xlarge",
    weights_gb=6.4,
    max_model_len_tokens=8192,
    max_running_sequences=64,
    kv_cache_blocks=7437,
    step_base_seconds=0.0088,
    step_per_sequence_seconds=0.00004,
    step_per_kv_token_seconds=0.00000024,
    prefill_tokens_per_second=6500.0,
    prefill_chunk_tokens=2048,
    cold_start=baked(6.4),
    target_time_per_token_seconds=0.016,
)

SILVER = ModelServerProfile(
    tier="silver",
    model_name="gamekeeper-silver-7b",
    instance_type="g5.2xlarge",
    weights_gb=14.5,
    max_model_len_tokens=8192,
    max_running_sequences=48,
    kv_cache_blocks=2625,
    step_base_seconds=0.026,
    step_per_sequence_seconds=0.00004,
    step_per_kv_token_seconds=0.00000027,
    prefill_tokens_per_second=2900.0,
    prefill_chunk_tokens=2048,
    cold_start=baked(14.5),
    target_time_per_token_seconds=0.045,
)

BRONZE = ModelServerProfile(
    tier="bronze",
    model_name="gamekeeper-bronze-8b-int4",
    instance_type="c5.4xlarge",
    weights_gb=4.7,
    max_model_len_tokens=4096,
    max_running_sequences=8,
    kv_cache_blocks=4096,
    step_base_seconds=0.067,
    step_per_sequence_seconds=0.012,
    step_per_kv_token_seconds=0.0000019,
    prefill_tokens_per_second=47.0,
    prefill_chunk_tokens=512,
    cold_start=baked(4.7),
    target_time_per_token_seconds=0.25,
)

PROFILES: Mapping[str, ModelServerProfile] = MappingProxyType(
    {profile.tier: profile for profile in (GOLD, SILVER, BRONZE)}
)
"""The default profile of each tier, by tier name."""
