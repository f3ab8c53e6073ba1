"""(a) What the device can do: matrix products at every precision, and bandwidth of its memory.

Random numbers, because a product of zeros can run faster. Bytes count what is read and what is written.
"""

import jax

from experiments.benchmarks.accelerator.harness import Part, Size, compiled, mib, timed

PRECISIONS = {  # name -> (precision of `jax.default_matmul_precision`, dtype)
    "fp32": ("float32", "float32"),
    "tf32": ("tensorfloat32", "float32"),
    "float32 as jax comes": ("default", "float32"),
    "bf16": ("default", "bfloat16"),
    "fp64": ("float32", "float64"),
}


def run(part: Part, size: Size) -> None:
    """Fill `part.shared["flops"]`, by name of the precision, and `part.shared["bandwidth"]`, each in units a second."""
    rates: dict[str, float] = {}
    part.shared["flops"] = rates
    n = size.products

    def product(x, y):
        return x @ y

    def measure(name: str, factors: tuple[jax.Array, jax.Array], precision: str, dtype: str) -> float:
        with jax.enable_x64(dtype == "float64"), jax.default_matmul_precision(precision):
            x, y = (factor.astype(dtype) for factor in factors)
            program = compiled(product, x, y)
            seconds = timed(lambda: program.call(x, y), size).median
        operations = 2.0 * x.size * x.shape[-1]
        part.row(what=name, ms=1e3 * seconds, tera_per_s=operations / seconds / 1e12, compile_s=program.seconds)
        return operations / seconds

    numbers = jax.jit(lambda key: jax.random.normal(key, (size.copied,)))(jax.random.key(0))
    square = numbers[: n * n].reshape(n, n), numbers[n * n : 2 * n * n].reshape(n, n)
    for name, (precision, dtype) in PRECISIONS.items():
        if part.fits(name):
            with part.attempt(name):
                rates[name] = measure(f"{name}, products of {n}", square, precision, dtype)
    with part.attempt("bandwidth"):
        program = compiled(lambda x: x + 1, numbers)
        seconds = timed(lambda: program.call(numbers), size).median
        part.shared["bandwidth"] = 2.0 * numbers.nbytes / seconds
        part.row(what=f"bandwidth, {mib(numbers.nbytes):.0f} MiB read and written", ms=1e3 * seconds,
                 tera_per_s=2 * numbers.nbytes / seconds / 1e12, compile_s=program.seconds)  # fmt: skip
    count, side = size.requests[-1], min(n, 128)
    small = f"{count} products of {side} side by side"
    if part.fits(small):
        with part.attempt(small):
            one = numbers[: count * side**2].reshape(count, side, side)
            measure(f"float32 as jax comes, {small}", (one, one[::-1]), *PRECISIONS["float32 as jax comes"])
