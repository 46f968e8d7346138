"""Serve a bucket of S3 with pictures, by moto."""

import subprocess
import sys
from io import BytesIO
from pathlib import Path

import httpx
from pictures import noise
from PIL import Image
from plant import PORTS, is_free, wait_until
from project import Sandbox


class Bucket:
    """A bucket of a new S3 server."""

    def __init__(self, folder: Path) -> None:
        port = next(port for port in PORTS if is_free(port))
        self.url = f"http://127.0.0.1:{port}"
        with (folder / "moto.log").open("w") as log:
            command = [sys.executable, "-m", "moto.server", "--host", "127.0.0.1", "--port", str(port)]
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        wait_until(lambda: not is_free(port), 60, folder / "moto.log")
        assert httpx.put(f"{self.url}/bucket").status_code == httpx.codes.OK

    def put(self, seeds: range) -> None:
        """Add a picture of 8x8 pixels for each seed."""
        with httpx.Client() as client:
            for seed in seeds:
                file = BytesIO()
                Image.fromarray(noise(8, 8, seed=seed)).save(file, "png")
                put = client.put(f"{self.url}/bucket/pictures/{seed}.png", content=file.getvalue())
                assert put.status_code == httpx.codes.OK

    def __enter__(self) -> "Bucket":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Stop the server."""
        self.process.terminate()
        self.process.wait(60)

    def be_remote(self, project: Sandbox) -> None:
        """Make the bucket the default remote of DVC, with its keys on this machine alone."""
        project.dvc("remote", "add", "--default", "--force", "storage", "s3://bucket/vdm")
        project.dvc("remote", "modify", "storage", "endpointurl", self.url)
        project.dvc("remote", "modify", "--local", "storage", "access_key_id", "key")
        project.dvc("remote", "modify", "--local", "storage", "secret_access_key", "secret")

    def import_pictures(self, project: Sandbox) -> None:
        """Import the pictures to data/pictures of a project, and make the bucket its DVC remote, too."""
        for name, path in (("storage", "vdm"), ("pictures", "pictures")):
            project.dvc("remote", "add", "--force", name, f"s3://bucket/{path}")
            project.dvc("remote", "modify", name, "endpointurl", self.url)
            project.dvc("remote", "modify", "--local", name, "access_key_id", "key")
            project.dvc("remote", "modify", "--local", name, "secret_access_key", "secret")
        project.edit("params.yaml", **{"name: digits": "name: image_folder", "data/published": "data/pictures"})
        project.dvc("import-url", "remote://pictures", "data/pictures")
        project.git("add", "--all")
        project.git("commit", "--quiet", "--message=Pictures")
