"""google-research/vdm, the paper's own code in JAX, trained as configs/cifar10.py says, in float32 on one device.

It runs by the Python of an environment of its own, in benchmarks/peers/google_jax.py, which imports nothing of ours.
"""

import json
import subprocess
from pathlib import Path
from typing import Any, ClassVar

from flows.exchange.importing import import_checkpoint

SCRIPT = Path(__file__).with_name("google_jax.py")


class Google:
    repository = "google-research/vdm"
    mark = "model_vdm.py"
    needs: ClassVar[tuple[str, ...]] = ()
    learning_rates = (2e-4, 1e-3)
    batch_size = 128

    @staticmethod
    def run(python: Path, what: str, **job: Any) -> dict[str, Any]:
        """Run a job in JAX and return its figures."""
        command = [python, SCRIPT, json.dumps({"what": what, **job}, default=str)]
        return json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)  # type: ignore[no-any-return]

    @staticmethod
    def import_points(out: Path, points: int, image_size: tuple[int, int]) -> None:
        """Turn the checkpoints of a curve into model folders of ours, of the averaged and of the last weights."""
        for number in range(points):
            file = out / str(number) / "checkpoint.flax"
            for name, averaged in {"averaged": True, "last": False}.items():
                sizes: dict[str, Any] = {"image_size": image_size, "num_levels": 256}
                import_checkpoint(file, "google-vdm", out=file.with_name(name), averaged=averaged, **sizes)


PEER = Google
