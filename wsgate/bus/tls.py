"""TLS to the servers of the bus."""

import os
from functools import lru_cache
from typing import Any

from wsgate.bus_address import BusAddress, BusTls
from wsgate.errors import BackendError

__all__ = ["tls_context"]


def tls_context(address: BusAddress) -> Any:
    """An `ssl.SSLContext` for an address, None where there is no TLS: TLS 1.2 or later, verified.

    Raises:
        BackendError: A file cannot be read or is not what it should be.
    """
    if address.tls is None:
        return None
    try:
        files = filter(None, (address.tls.ca_file, address.tls.certificate_file, address.tls.key_file))
        return _context(address.tls, tuple(os.stat(file).st_mtime_ns for file in files))
    except OSError as error:  # what is wrong with a certificate is one too
        raise BackendError(f"TLS files of the bus: {error}", temporary=True) from error


@lru_cache(maxsize=4)
def _context(tls: BusTls, changed_ns: tuple[int, ...]) -> Any:
    """Made once for each state of the files: the system's authorities take 10 ms to load."""
    import ssl

    context = ssl.create_default_context(cafile=tls.ca_file or None)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if tls.certificate_file:
        context.load_cert_chain(tls.certificate_file, tls.key_file or None)
    return context
