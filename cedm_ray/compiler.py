"""How torch.compile is asked, wherever it is: shapes fixed, no block sizes tried out, nothing said."""

import contextlib
import warnings
from collections.abc import Iterator


def reason(error: Exception) -> str:
    """Why compiling failed, in a line: messages of compilers go on for pages."""
    # What torch raises itself says in its first line only which compiler it was.
    error = getattr(error, "inner_exception", error)
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


@contextlib.contextmanager
def compiling(variants: int) -> Iterator[None]:
    """What is run for the first time inside the block is compiled so.

    variants: shapes of one function, at least 1, that torch compiles before it gives up; the limit stays raised.
    """
    # Here, because they take seconds to import and most processes never compile.
    from torch._dynamo import config as dynamo
    from torch._inductor import config as inductor

    dynamo.recompile_limit = max(dynamo.recompile_limit, variants)
    # Without trying out block sizes: what lies between matrix products is bound by memory whatever they are.
    with warnings.catch_warnings(), inductor.patch({"triton.autotune_pointwise": False}):
        # The compiler looks at gradients of what has none, and torch warns of that; it is nobody's concern.
        warnings.simplefilter("ignore")
        yield
