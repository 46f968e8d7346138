"""Measure or train google-research/vdm.  Runs in an environment with jax, flax, optax and chex, without our packages.

The one argument is a JSON object; the figures are printed as another.  The model and its loss are those of the
checkout's model_vdm.py, the optimizer that of its experiment.py, which itself needs TensorFlow and is not imported.
"""

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

job: dict[str, Any] = json.loads(sys.argv[1])
sys.path.insert(0, job["checkout"])

import flax  # type: ignore[import-not-found]  # noqa: E402
import jax  # type: ignore[import-not-found]  # noqa: E402
import jax.numpy as jnp  # type: ignore[import-not-found]  # noqa: E402
import model_vdm  # type: ignore[import-not-found]  # noqa: E402
import numpy as np  # noqa: E402
import optax  # type: ignore[import-not-found]  # noqa: E402

WARM_UP = 100
AVERAGE = 0.9999

sizes = job["model"]
channels, height, width = sizes["image_shape"]
model = model_vdm.VDM(
    model_vdm.VDMConfig(
        vocab_size=sizes["num_levels"],
        sample_softmax=False,
        antithetic_time_sampling=True,
        with_fourier_features=True,
        with_attention=sizes["attention_everywhere"],
        gamma_type="learnable_scalar",
        gamma_min=sizes["gamma_0"],
        gamma_max=sizes["gamma_1"],
        sm_n_timesteps=0,
        sm_n_embd=sizes["width"],
        sm_n_layer=sizes["blocks"],
        sm_pdrop=sizes["dropout"],
    )
)


def bound(params: Any, images: Any, key: Any, *, trains: bool) -> Any:
    """Return the mean bits/dim of images (B,H,W,C)."""
    sample, dropout = jax.random.split(key)
    rngs = {"sample": sample, "dropout": dropout}
    found = model.apply({"params": params}, images, jnp.zeros(len(images)), not trains, rngs=rngs)
    # Its decoder is made for three channels, and counts a single one three times.
    nats = found.loss_recon / (3 if channels == 1 else 1) + found.loss_klz + found.loss_diff
    return nats.mean() / (channels * height * width * np.log(2))


def optimizer(rate: Any) -> Any:
    """Return AdamW at a rate; biases do not decay."""

    def decays(params: Any) -> Any:
        return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key != "bias", params)

    return optax.adamw(rate, b1=0.9, b2=0.99, eps=1e-8, weight_decay=0.01, mask=decays)


@jax.jit
def step(state: Any, images: Any, key: Any) -> Any:
    """Return the state (params, averages, optimizer's, number) after a step, and its loss."""
    params, averages, moments, number = state
    rate = job["learning_rate"] * jnp.minimum(1.0, number / WARM_UP)
    key = jax.random.fold_in(key, number)
    loss, gradients = jax.value_and_grad(lambda p: bound(p, images, key, trains=True))(params)
    updates, moments = optimizer(rate).update(gradients, moments, params)
    params = optax.apply_updates(params, updates)
    averages = jax.tree_util.tree_map(lambda a, p: a + (1 - AVERAGE) * (p - a), averages, params)
    return (params, averages, moments, number + 1), loss


def begun(seed: int) -> Any:
    """Return the state before the first step."""
    first, second = jax.random.split(jax.random.PRNGKey(seed))
    empty = jnp.zeros((2, height, width, channels), "uint8")
    params = model.init({"params": first, "sample": second}, empty, jnp.zeros(2))["params"]
    return params, params, optimizer(1.0).init(params), 0


def measured(what: str) -> dict[str, float]:
    """Return the speed of training steps, evaluations or samples on random images, and the peak memory."""
    key, size = jax.random.PRNGKey(0), job["batch_size"]
    images = jax.random.randint(key, (size, height, width, channels), 0, sizes["num_levels"]).astype("uint8")
    state = begun(0)
    evaluation = jax.jit(lambda params: bound(params, images, key, trains=False))

    @jax.jit
    def drawing(params: Any) -> Any:
        steps, z = job["num_timesteps"], jax.random.normal(key, images.shape)
        given = {"conditioning": jnp.zeros(size), "rng": key, "method": model.sample}
        z = jax.lax.fori_loop(0, steps, lambda i, z: model.apply({"params": params}, i, steps, z, **given), z)
        return model.apply({"params": params}, z, method=model.generate_x)

    def once() -> None:
        nonlocal state
        if what == "train":
            state, loss = step(state, images, key)
            float(loss)
        else:
            jax.block_until_ready((evaluation if what == "evaluate" else drawing)(state[0]))

    for _ in range(3):
        once()
    begin, processor, count = time.perf_counter(), time.process_time(), 0
    while count < 3 or time.perf_counter() - begin < job["seconds"]:
        once()
        count += 1
    seconds, processor = time.perf_counter() - begin, time.process_time() - processor
    figures = {
        "images_per_second": size * count / seconds,
        "images_per_processor_second": size * count / processor,
        "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10,
    }
    if what == "train":  # all operations, not only those of matrix products and convolutions
        figures["step_tflop"] = step.lower(state, images, key).compile().cost_analysis()["flops"] / 1e12
    return figures


def train() -> dict[str, Any]:
    """Train for some minutes, without those of compilation, and save the points of the curve meanwhile."""
    images = np.load(job["images"], mmap_mode="r").transpose(0, 2, 3, 1)
    rng, size, key = np.random.default_rng(job["seed"]), job["batch_size"], jax.random.PRNGKey(1 + job["seed"])
    state, out, rows, seconds = begun(job["seed"]), Path(job["out"]), [], 0.0
    jax.block_until_ready(step(state, images[:size], key))
    out.mkdir(exist_ok=True)
    for point in range(1, job["points"] + 1):
        begin = time.perf_counter() - seconds
        while (seconds := time.perf_counter() - begin) < 60 * job["minutes"] * point / job["points"]:
            chosen = np.sort(rng.choice(len(images), size, replace=False))
            state, loss = step(state, images[chosen], key)
            float(loss)
        folder = out / str(point - 1)
        folder.mkdir()
        kept = jax.device_get({"params": state[0], "ema_params": state[1]})
        (folder / "checkpoint.flax").write_bytes(flax.serialization.msgpack_serialize(kept))
        rows.append({"minutes": seconds / 60, "steps": int(state[3])})
        (out / "points.json").write_text(json.dumps(rows))
    return {"points": rows}


print(json.dumps(train() if job["what"] == "minutes" else measured(job["what"])))
