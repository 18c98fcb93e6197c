"""A projection, not a measurement: 1 B items x 128, row-wise on 16 to 64 H100, by torchrec's planner and counted FLOPs.

    make bench-step_projection

The planner's enumerator says what a shard holds and what its look-ups, updates and all-to-alls take on a topology; the
dense part is FLOPs over the share of the peak that such models reach. What is assumed stands in ``ASSUMED``, and is
printed along.
"""

from __future__ import annotations

import json
import logging
from typing import Any

from torch import device, nn
from torchrec import EmbeddingCollection, EmbeddingConfig
from torchrec.distributed.embedding import EmbeddingCollectionSharder
from torchrec.distributed.planner import Topology
from torchrec.distributed.planner.enumerators import EmbeddingEnumerator
from torchrec.distributed.planner.types import ParameterConstraints

from benchmarks.scale.step_terms import terms

ASSUMED = {
    "items": 1_000_000_000, "dim": 128, "users_a_gpu": 1_024, "events_a_user": 50, "candidates": 8_192,
    "hbm_bytes": 80 * 2**30, "hbm_bytes_per_s": 3.35e12, "nvlink_bytes_per_s": 450e9, "network_bytes_per_s": 50e9,
    "gpus_a_host": 8, "flops_per_s": 989e12, "share_of_flops": 0.25,
}  # fmt: skip
GPUS = (16, 32, 64)


def projections() -> list[dict[str, Any]]:
    """One row a number of GPUs: GiB a GPU, ms of each part of a step, events a second of all."""
    logging.getLogger("torchrec").setLevel(logging.ERROR)
    return [_projection(gpus, ASSUMED) for gpus in GPUS]


def _projection(gpus: int, given: dict[str, Any]) -> dict[str, Any]:
    shard = _shard(gpus, given)
    events = given["users_a_gpu"] * given["events_a_user"]
    point = {"items": given["items"], "events": events, "candidates": given["candidates"], "ranks": 1}
    counted = terms({**point, "dim": given["dim"]})
    flops = counted["encoder_flops"] + counted["head_flops"]
    dense_ms = 1e3 * flops / (given["flops_per_s"] * given["share_of_flops"])
    table_ms = shard.perf.fwd_compute + shard.perf.bwd_compute
    # every GPU exchanges the same bytes with all others; the planner counts them at the speed of the network
    comms_ms, ids_ms = shard.perf.fwd_comms + shard.perf.bwd_comms, shard.perf.input_dist_comms
    optimizer_gib = given["items"] / gpus * 4 / 2**30  # row-wise Adagrad: one number a row
    step_ms = dense_ms + table_ms + comms_ms  # ids of the next batch travel meanwhile, as the pipeline has it
    return {
        "gpus": gpus,
        "table_and_optimizer_gib_a_gpu": round(shard.storage.hbm / 2**30 + optimizer_gib, 1),
        "dense_ms": round(dense_ms, 2), "table_ms": round(table_ms, 2), "rows_sent_ms": round(comms_ms, 2),
        "ids_sent_ms": round(ids_ms, 2), "step_ms": round(step_ms, 1),
        "events_per_second": round(gpus * events / step_ms * 1e3),
        "minutes_for_10_billion_events": round(1e10 / (gpus * events / step_ms * 1e3) / 60, 2),
    }  # fmt: skip


def _shard(gpus: int, given: dict[str, Any]) -> Any:
    """The planner's estimate of one shard of the item table."""
    names = ["event", "target", "negative"]
    table = EmbeddingConfig(name="item", num_embeddings=given["items"], embedding_dim=given["dim"], feature_names=names)
    model = nn.Module()
    model.tables = EmbeddingCollection(tables=[table], device=device("meta"))
    topology = Topology(
        gpus, "cuda", hbm_cap=given["hbm_bytes"], local_world_size=given["gpus_a_host"],
        hbm_mem_bw=given["hbm_bytes_per_s"] / 1e3, intra_host_bw=given["nvlink_bytes_per_s"] / 1e3,
        inter_host_bw=given["network_bytes_per_s"] / 1e3,
    )  # fmt: skip  # torchrec counts bytes a millisecond
    per_user = [given["events_a_user"]] * 2 + [given["candidates"] / given["users_a_gpu"]]
    limits = {"item": ParameterConstraints(["row_wise"], ["fused"], pooling_factors=[float(n) for n in per_user])}
    enumerator = EmbeddingEnumerator(topology, batch_size=given["users_a_gpu"], constraints=limits)
    (option,) = enumerator.enumerate(model, [EmbeddingCollectionSharder()])
    return option.shards[0]


if __name__ == "__main__":
    print(json.dumps(ASSUMED))
    for line in projections():
        print(json.dumps(line))
