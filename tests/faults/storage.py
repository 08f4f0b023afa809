"""Storage that a test may take away: a local folder, or an S3-compatible server of its own."""

from pathlib import Path


class LocalStorage:
    """Artifacts in a folder; away, its place is taken by a file, so that every access to it fails."""

    def __init__(self, root: Path):
        self.root = root
        self.url = str(root)
        self.environment: dict[str, str] = {}

    def __enter__(self) -> "LocalStorage":
        self.root.mkdir(parents=True)
        return self

    def __exit__(self, *_) -> None:
        self.fail(False)

    def fail(self, away: bool) -> None:
        """Go away, or come back."""
        aside = self.root.with_name(f"{self.root.name}.away")
        if away and not aside.exists():
            self.root.rename(aside)
            self.root.touch()
        elif not away and aside.exists():
            self.root.unlink()
            aside.rename(self.root)


class S3Storage:
    """Artifacts in a bucket; away, every request is answered with 500."""

    def __init__(self) -> None:
        from tests.s3_server import S3Server

        self._server = S3Server()

    def __enter__(self) -> "S3Storage":
        self._server.__enter__()
        self.url = self._server.url("artifacts/faults")
        self.environment = dict(self._server.environment)
        return self

    def __exit__(self, *failure) -> None:
        self._server.__exit__(*failure)

    def fail(self, away: bool) -> None:
        """Go away, or come back."""
        self._server.fail(away)
