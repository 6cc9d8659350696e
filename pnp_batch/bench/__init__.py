"""The bench: a model and a device in, what translation costs there out, each number measured.

`engine` times the numerics in this process, `whole` a whole `pnp-batch run` in another one.
"""

from pnp_batch.bench.engine import EngineBench, bench_engine
from pnp_batch.bench.whole import WholeBench, bench_whole

__all__ = ["EngineBench", "WholeBench", "bench_engine", "bench_whole"]
