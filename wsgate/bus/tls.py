"""Make the TLS context for connections to the servers of the bus."""

import os
from functools import lru_cache
from typing import Any

from wsgate.bus_address import BusAddress, BusTls
from wsgate.errors import BackendError

__all__ = ["tls_context"]


def tls_context(address: BusAddress) -> Any:
    """Return the `ssl.SSLContext` for an address of the bus, or None when the address uses no TLS.

    The context requires TLS 1.2 or later and verifies the certificate and the name of the server. A changed
    file makes a new context.

    Raises:
        BackendError: A file of certificates or keys cannot be read, or its content is not valid.
    """
    if address.tls is None:
        return None
    try:
        files = filter(None, (address.tls.ca_file, address.tls.certificate_file, address.tls.key_file))
        return _context(address.tls, tuple(os.stat(file).st_mtime_ns for file in files))
    except OSError as error:  # ssl.SSLError, for a certificate that is not valid, is an OSError too
        raise BackendError(f"TLS files of the bus: {error}", temporary=True) from error


@lru_cache(maxsize=4)
def _context(tls: BusTls, changed_ns: tuple[int, ...]) -> Any:
    """Make a context, once for each state of the files: loading the system's authorities takes 10 ms."""
    import ssl

    context = ssl.create_default_context(cafile=tls.ca_file or None)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if tls.certificate_file:
        context.load_cert_chain(tls.certificate_file, tls.key_file or None)
    return context
