"""What the measurements say of a run that older code made, against what its documents said of it.

`golden/updates` is a run of a smoke population of PPO at two learning rates, without its training states and all but
three of its checkpoints, with the documents of the commands that came before these measurements. Intervals differ by
intent, and are left out.
"""

import gzip
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from agents import runs
from analysis import changes, masks, measures, shapes, subnetworks, tallies, weights

GOLDEN = Path(__file__).parent / "golden" / "updates"
KINDS = ["kernel", "norm", "embedding_used", "embedding_unused", "all"]


def numbers(values) -> np.ndarray:
    """Float64, NaN where the document has null."""
    return np.array(values, np.float64)


def assert_equal(new, old, rtol=1e-11, atol=1e-15):
    np.testing.assert_allclose(np.asarray(new), numbers(old), rtol=rtol, atol=atol)


SPECTRAL = {"rtol": 1e-7, "atol": 1e-7}
"""Decompositions differ by the last bits between machines, and small angles by more."""


def read(name):
    return json.loads(gzip.decompress((GOLDEN / name).read_bytes()))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return runs.open(shutil.copytree(GOLDEN, tmp_path_factory.mktemp("golden") / "run"))


@pytest.fixture(scope="module")
def old():
    return read("updates.json.gz")


@pytest.fixture(scope="module")
def updates(run, old):
    return measures.updates(run, [old["after"]], since=old["before"]).isel(checkpoint=0)


@pytest.fixture(scope="module")
def spectra(run, old):
    return measures.spectra(run, [old["after"]], since=old["before"]).isel(checkpoint=0)


def matrices(old):
    """Matrix → column of the old table → values by member."""
    table = pq.read_table(GOLDEN / "updates.parquet").to_pandas().sort_values("member", kind="stable")
    assert table["member"].nunique() == old["members"]
    return {name: part.to_dict("list") for name, part in table.groupby("matrix")}


def test_who_is_meant(run, updates, old):
    assert updates["member"].values.tolist() == list(range(old["members"]))
    assert updates["seed"].values.tolist() == [member["seed"] for member in old["population"]]
    for path in old["population"][0]["values"]:
        assert updates[path].values.tolist() == [member["values"][path] for member in old["population"]]
    assert updates.attrs["used_tokens"].split() == old["used_tokens"]
    assert (updates.attrs["since"], updates.attrs["stored_dtype"]) == (old["before"], old["stored_dtype"])
    assert updates["kind"].values.tolist() == list(old["parameters"])
    assert updates["parameters"].values.tolist() == list(old["parameters"].values())


def test_shares_of_changed_parameters(updates, old):
    for name in (*changes.DEFINITIONS, *changes.CONCENTRATIONS):
        for kind, measured in old["fractions"].items():
            if kind in KINDS and kind != "norm":
                assert_equal(updates[name].sel(kind=kind), measured[name])
        for matrix, columns in matrices(old).items():
            assert_equal(updates["by_matrix"].sel(measure=name, matrix=matrix), columns[name])
    # The old document said of the kind `norm` what was true of the matrix of that name alone.
    assert_equal(updates["by_matrix"].sel(measure="paper", matrix="norm"), old["fractions"]["norm"]["paper"])
    for name, view in (("changed_stored", "stored"), ("changed_bf16", "bf16")):
        assert_equal(updates[name].sel(kind="norm"), old["time_course"][view]["norm"]["changed"][-1])


def test_curves_over_tolerances(updates, old):
    assert_equal(updates["tolerance"], np.float32(old["curves"]["tolerances"]))
    for view in changes.VIEWS:
        for scale in changes.SCALES:
            for kind, curve in old["curves"][view][scale].items():
                if kind != "norm":
                    new = updates["curve"].sel(view=view, scale=scale, kind=kind).mean("member")
                    assert_equal(new, curve["mean"])


def test_steps_over_weights(updates, old):
    assert_equal(updates["learning_rate_sum"], old["learning_rate_sum"])
    for name in ("median_weight", "learning_rate_sum_over_median_weight"):
        for kind, values in old[name].items():
            assert_equal(updates[name].sel(kind=kind), values)


def test_what_has_become_of_the_parameters(run, updates, old):
    course = old["time_course"]
    whole = set(course["checkpoints"]) <= set(run.checkpoints())
    for view in changes.VIEWS:
        for kind, states in course[view].items():
            new = updates["course"].sel(view=view, kind=kind)
            assert_equal(new.sel(state="changed"), states["changed"][-1])
            assert_equal(new.sum("state"), np.ones(old["members"]))
            for state in changes.STATES if whole else ():
                assert_equal(new.sel(state=state), states[state][-1])


def test_shapes_and_places(spectra, old):
    assert spectra["kind"].values.tolist() == [kind for kind in KINDS if kind in old["shape"]]
    for name in spectra["measure"].values:
        for kind in spectra["kind"].values:
            assert_equal(spectra[name].sel(kind=kind), old["shape"][kind][name], **SPECTRAL)
        for matrix in spectra["matrix"].values:
            columns = matrices(old)[matrix]
            assert_equal(spectra["by_matrix"].sel(measure=name, matrix=matrix), columns[name], **SPECTRAL)
    assert {*shapes.MEASURES, "baseline"} < set(spectra["measure"].values)


def test_overlaps_at_every_point_of_the_grid(run, old):
    new = measures.overlaps(run, [old["after"]], since=old["before"]).isel(checkpoint=0)
    for group in old["groups"]:
        here = new.isel(member=group["members"])
        above = np.triu_indices(len(group["members"]), 1)
        for mask in masks.MASKS:
            for kind, said in group["overlaps"][mask].items():
                at = here.sel(mask=mask, kind=kind)
                assert_equal(at["excess"].mean("member"), said["excess"]["mean"])
                assert_equal(at["pairs"].isel(other=group["members"]).values[above], said["pairs"])
                for compared in ("seen", *tallies.CHANCES):
                    means = said[compared]
                    for share in ("o1", "o2"):
                        old_mean = means[share]["mean"] if compared == "seen" else means[share]
                        assert_equal(at["shares"].sel(compared=compared, share=share).mean("member"), old_mean)
                    old_mean = means["jaccard"]["mean"] if compared == "seen" else means["jaccard"]
                    assert_equal(at[compared].mean("member"), old_mean)


def test_stages_and_what_they_have_in_common(run, old):
    for stage in old["stages"]:
        options = {"since": stage["before"], "checkpoints": [stage["after"]]}
        updates, spectra = (x(run, **options).isel(checkpoint=0) for x in (measures.updates, measures.spectra))
        for kind, measured in stage["fractions"].items():
            for name, values in measured.items():
                if kind != "norm":
                    assert_equal(updates[name].sel(kind=kind), values)
        for kind, measured in stage["shape"].items():
            for name, values in measured.items():
                assert_equal(spectra[name].sel(kind=kind), values, **SPECTRAL)
        assert_equal(updates["learning_rate_sum"], stage["learning_rate_sum"])
    for both in old["between_stages"]:
        since, checkpoint = both["second"]
        new = measures.overlaps(run, [checkpoint], since=since, against="..".join(both["first"])).isel(checkpoint=0)
        for mask, of_kinds in both["overlaps"].items():
            for kind, said in of_kinds.items():
                at = new.sel(mask=mask, kind=kind)
                assert_equal(at["seen"], said["pairs"])
                assert_equal(at["excess"].mean("member"), said["excess"]["mean"])
                for compared in ("seen", *tallies.CHANCES):
                    for mine, theirs in (("o1", "o2"), ("o2", "o1")):  # the earlier stage came first
                        mean = said[compared][theirs]
                        mean = mean["mean"] if compared == "seen" else mean
                        assert_equal(at["shares"].sel(compared=compared, share=mine).mean("member"), mean)


def test_masks_that_are_trained_alone(run, old):
    """What does not depend on how a machine rounds: which parameters the masks hold, and how near they began."""
    said = read("subnetwork.json.gz")
    options = said["options"]
    start, full = (weights.split(run.parameters(name)) for name in ("pretrain", "rl"))
    chosen = subnetworks.learned(start, full, options["definition"], options["density"])
    for name, mask in subnetworks.arms(start, chosen, options["draws"], options["seed"]):
        new = subnetworks.agreement(mask, start, full, full)
        for key in ("density", "start_bf16", "start_1e-5", "start_1e-4"):
            assert_equal(new[key].mean(), said["agreement"][key][name])
