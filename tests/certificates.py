"""A certificate of its own for a server on loopback."""

import ssl
import subprocess
from pathlib import Path


def make_certificate(folder: Path, name: str) -> tuple[ssl.SSLContext, Path]:
    """A server's context for one host name, and the file that makes a client trust it; needs openssl."""
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    words = f"req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN={name} -addext subjectAltName=DNS:{name}"
    subprocess.run(
        ["openssl", *words.split(), "-keyout", str(key), "-out", str(certificate)], check=True, capture_output=True
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return context, certificate
