"""What narrows a request before it is answered: a `Select` for `jaxunlearn.filtered`, one file per paper."""

from jaxunlearn.filters.funu import funu as funu
