"""validate: the discretization contract, as expectations over one row per image and one row per split and level.

A likelihood means something only if pixels are integers 0..K-1 of the stated K, and if no test image was trained on.
"""

import hashlib
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from flows.errors import Exit, UserError
from vdm.images import SPLITS, ImageSet, data_sha256, load_images

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

IMAGE_COLUMNS = ["split", "shape", "dtype", "num_nan", "lowest", "highest", "also_in_train"]


def validate(*, images: Path, out: Path, data_docs: Path) -> None:
    """Write the canonical `out` (JSON, no times or ids) and the Data Docs site of the same result.

    Raises ImageSetError for unreadable files and UserError (exit 4), after writing both, when the contract is broken.
    """
    image_set = load_images(images)
    results = check(image_set, data_docs)
    failed = [result for result in results if not result["success"]]
    report = {"success": not failed, "data_sha256": data_sha256(images), "expectations": results}
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(report, indent=2, sort_keys=True) + "\n")
    if failed:
        reasons = "; ".join(f"{result['meaning']}: {result['observed']}" for result in failed)
        raise UserError(f"{images}: {reasons}; see {data_docs / 'index.html'}", Exit.INVALID_DATA)
    log.info("%s: all %d expectations hold", images, len(results))


def check(image_set: ImageSet, data_docs: Path) -> list[dict[str, Any]]:
    """Run the expectations; returns their results, in order, and builds the site."""
    import great_expectations as gx
    from great_expectations.data_context.types.base import (
        DataContextConfig,
        InMemoryStoreBackendDefaults,
        ProgressBarsConfig,
    )

    context = gx.get_context(
        mode="ephemeral",
        project_config=DataContextConfig(
            store_backend_defaults=InMemoryStoreBackendDefaults(init_temp_docs_sites=False),
            data_docs_sites={"site": site_config(data_docs)},
            progress_bars=ProgressBarsConfig(globally=False),
            analytics_enabled=False,
        ),
    )
    tables = {
        "images": (image_rows(image_set), image_expectations(image_set)),
        "histogram": (histogram_rows(image_set), histogram_expectations(image_set)),
    }
    results: list[dict[str, Any]] = []
    source = context.data_sources.add_pandas("pandas")
    for name, (table, expectations) in tables.items():
        batch = source.add_dataframe_asset(name).add_batch_definition_whole_dataframe("whole")
        suite = context.suites.add(gx.ExpectationSuite(name=name, expectations=expectations))
        definition = context.validation_definitions.add(gx.ValidationDefinition(name=name, data=batch, suite=suite))
        checkpoint = context.checkpoints.add(gx.Checkpoint(name=name, validation_definitions=[definition]))
        (result,) = checkpoint.run(batch_parameters={"dataframe": table}).run_results.values()
        results += [canonical(name, entry) for entry in result.to_json_dict()["results"]]
    context.build_data_docs()
    return results


def site_config(folder: Path) -> dict[str, Any]:
    """A Data Docs site in `folder`."""
    return {
        "class_name": "SiteBuilder",
        "site_index_builder": {"class_name": "DefaultSiteIndexBuilder"},
        "store_backend": {"class_name": "TupleFilesystemStoreBackend", "base_directory": str(folder.absolute())},
    }


def image_expectations(image_set: ImageSet) -> list[Any]:
    """What every image must be; the row count too, since an empty table passes every row-wise expectation."""
    from great_expectations import expectations as gxe

    highest, shape = image_set.num_levels - 1, "x".join(map(str, image_set.image_shape))
    num_images = image_set.description["num_train"] + image_set.description["num_test"]
    return [
        gxe.ExpectTableRowCountToEqual(value=num_images, **meaning("number of images")),
        gxe.ExpectColumnDistinctValuesToEqualSet(column="split", value_set=list(SPLITS), **meaning("no empty split")),
        gxe.ExpectColumnValuesToBeInSet(column="shape", value_set=[shape], **meaning("shape of every image")),
        gxe.ExpectColumnValuesToBeInSet(column="dtype", value_set=["uint8"], **meaning("pixels are uint8 integers")),
        gxe.ExpectColumnValuesToBeInSet(column="num_nan", value_set=[0], **meaning("no pixel is NaN")),
        gxe.ExpectColumnValuesToBeBetween(column="lowest", min_value=0, **meaning("no level below 0")),
        gxe.ExpectColumnValuesToBeBetween(column="highest", max_value=highest, **meaning(f"no level above {highest}")),
        gxe.ExpectColumnValuesToBeInSet(
            column="also_in_train", value_set=[False], **meaning("no test image is a training image too")
        ),
    ]


def histogram_expectations(image_set: ImageSet) -> list[Any]:
    """What the levels of each split must add up to."""
    from great_expectations import expectations as gxe

    return [
        gxe.ExpectTableRowCountToEqual(value=2 * image_set.num_levels, **meaning("one row per split and level")),
        gxe.ExpectColumnValuesToBeBetween(column="count", min_value=0, **meaning("counts of levels")),
        gxe.ExpectColumnSumToBeBetween(
            column="count",
            min_value=image_set.train.size + image_set.test.size,
            max_value=image_set.train.size + image_set.test.size,
            **meaning("every pixel has one of the levels"),
        ),
    ]


def meaning(text: str) -> dict[str, Any]:
    """Words for an expectation, shown in the site and in error messages."""
    return {"meta": {"meaning": text}, "notes": text}


def image_rows(image_set: ImageSet) -> "pd.DataFrame":
    """One row per image: split, shape, dtype, num_nan, lowest, highest, also_in_train."""
    import pandas as pd

    tables = []
    in_train: set[bytes] = set()
    for split in SPLITS:
        for chunk in chunks(getattr(image_set, split)):
            flat = chunk.reshape(len(chunk), -1)
            # Images of no pixels have no extremes; their shape is what breaks the contract.
            lowest, highest = (flat.min(axis=1), flat.max(axis=1)) if flat.size else np.zeros((2, len(flat)))
            digests = [hashlib.sha256(image).digest() for image in np.ascontiguousarray(flat)]
            tables.append(
                pd.DataFrame(
                    {
                        "split": split,
                        "shape": "x".join(map(str, chunk.shape[1:])),
                        "dtype": str(chunk.dtype),
                        "num_nan": np.isnan(flat).sum(axis=1),
                        "lowest": lowest.astype(float),
                        "highest": highest.astype(float),
                        "also_in_train": [split == "test" and digest in in_train for digest in digests],
                    }
                )
            )
            if split == "train":
                in_train.update(digests)
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=IMAGE_COLUMNS)


def histogram_rows(image_set: ImageSet) -> "pd.DataFrame":
    """One row per split and level: how many pixels of the split have the level."""
    import pandas as pd

    levels = np.arange(image_set.num_levels)
    edges = np.append(levels, levels[-1] + 1) - 0.5
    tables = []
    for split in SPLITS:
        counts = np.zeros(len(levels), dtype=np.int64)
        for chunk in chunks(getattr(image_set, split)):
            counts += np.histogram(chunk, bins=edges)[0]
        tables.append(pd.DataFrame({"split": split, "level": levels, "count": counts}))
    return pd.concat(tables, ignore_index=True)


def chunks(images: np.ndarray, size: int = 2000) -> Iterator[np.ndarray]:
    """The images, `size` at a time: the whole set need not fit into memory."""
    for first in range(0, len(images), size):
        yield images[first : first + size]


def canonical(table: str, entry: dict[str, Any]) -> dict[str, Any]:
    """One expectation's result without times, ids or paths: the same data give the same bytes."""
    config = entry["expectation_config"]
    if entry["exception_info"].get("raised_exception"):
        raise RuntimeError(f"{config['type']} could not be checked: {entry['exception_info']['exception_message']}")
    return {
        "table": table,
        "expectation": config["type"],
        "arguments": {key: value for key, value in config["kwargs"].items() if key != "batch_id"},
        "meaning": config["meta"]["meaning"],
        "success": entry["success"],
        "observed": observed(entry["result"]),
    }


def observed(result: dict[str, Any]) -> Any:
    """What was found: a value, or how many rows broke the expectation, with examples."""
    if result.get("observed_value") is not None:
        return result["observed_value"]
    if result.get("missing_count") and "element_count" not in result:
        return f"no {', '.join(map(str, result['partial_missing_list']))}"
    if not result["unexpected_count"]:
        return "as expected"
    examples = ", ".join(sorted({str(value) for value in result["partial_unexpected_list"]})[:5])
    return f"{result['unexpected_count']} of {result['element_count']} rows, such as {examples}"
