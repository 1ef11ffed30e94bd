"""The HParams page as the plugin itself makes it from the files: one row a trial, with its columns and its end."""

import shutil

import pytest
from tensorboard.backend.event_processing import data_provider, plugin_event_multiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins import base_plugin
from tensorboard.plugins.hparams import api_pb2, backend_context, list_session_groups

from cedm_ray.search.results import UNCONDITIONAL
from cedm_ray.search.study import Study
from cedm_ray.watching.curves import complete_curves
from cedm_ray.watching.hyperparameters import hyperparameters, session_end


def rows(folder) -> dict[str, dict]:
    """What the page shows, by the trial's name."""
    multiplexer = plugin_event_multiplexer.EventMultiplexer()
    multiplexer.AddRunsFromDirectory(str(folder))
    multiplexer.Reload()
    provider = data_provider.MultiplexerDataProvider(multiplexer, str(folder))
    context = backend_context.Context(base_plugin.TBContext(data_provider=provider))
    metadata = context.hparams_metadata(RequestContext(), "")
    experiment = context.experiment_from_metadata(
        RequestContext(), "", True, metadata, context.hparams_from_data_provider(RequestContext(), "", limit=None)
    )
    request = api_pb2.ListSessionGroupsRequest(
        start_index=0,
        slice_size=100,
        allowed_statuses=[api_pb2.STATUS_SUCCESS, api_pb2.STATUS_FAILURE, api_pb2.STATUS_UNKNOWN],
        include_metrics=True,
    )
    found = list_session_groups.Handler(RequestContext(), context, "", request).run()
    names = {info.name.tag: info.display_name for info in experiment.metric_infos}
    return {
        group.name: {
            "status": group.sessions[0].status,
            "columns": {name: value.number_value or value.string_value for name, value in group.hparams.items()},
            "metrics": {names[m.name.tag]: m.value for m in group.metric_values},
        }
        for group in found.session_groups
    }


def test_every_trial_is_a_row_with_its_columns_and_its_last_distance(done, tiny_space):
    complete_curves(done, tiny_space)
    found = rows(done.path / "tensorboard")
    assert sorted(found) == done.trials()
    for name in done.trials():
        report = done.reports(name)[-1]
        assert found[name]["metrics"]["FD[pixels]"] == pytest.approx(report.distance, rel=1e-6)
        assert found[name]["status"] == api_pb2.STATUS_SUCCESS
        if name != UNCONDITIONAL:
            fit = done.fits()[f"{name}-r0"]
            columns = found[name]["columns"]
            assert columns["C"] == fit.num_clusters
            assert columns["r_C"] == pytest.approx(fit.num_used / fit.num_clusters)
            assert columns["extractor"] == "pixels"
    assert "C" not in found[UNCONDITIONAL]["columns"]
    assert found[UNCONDITIONAL]["columns"]["batch size"] == 64


def test_a_trial_that_failed_is_a_failed_row(done, tiny_space):
    shutil.rmtree(done.path / "tensorboard", ignore_errors=True)
    done.write_failure(UNCONDITIONAL, "its process died")
    complete_curves(done, tiny_space)
    assert rows(done.path / "tensorboard")[UNCONDITIONAL]["status"] == api_pb2.STATUS_FAILURE


def test_a_c_without_a_fit_has_no_utilization(fresh, tiny_space):
    assert "r_C" not in hyperparameters(fresh, tiny_space, "c00077")
    assert hyperparameters(fresh, tiny_space, "c00004")["clusters used"] == fresh.fits()["c00004-r0"].num_used


@pytest.mark.parametrize("status", ["completed", "stopped", "diverged", "collapsed", "failed"])
def test_only_what_went_wrong_is_a_failure(status):
    (value,) = session_end(status)
    data = backend_context.metadata.parse_session_end_info_plugin_data(value.metadata.plugin_data.content)
    good = status in ("completed", "stopped")
    assert data.status == (api_pb2.STATUS_SUCCESS if good else api_pb2.STATUS_FAILURE)


def test_a_proposal_is_a_row_with_its_own_settings(proposed, proposing_space, tmp_path):
    shutil.copytree(proposed.path, tmp_path / "study")
    study = Study(tmp_path / "study")
    complete_curves(study, proposing_space)
    found = rows(study.path / "tensorboard")
    for one in study.proposals():
        values, columns = dict(one.settings), found[one.task.trial]["columns"]
        # Nought is shown as nothing by `rows`.
        assert columns["guidance"] == columns["sampling.guidance"] == (values["sampling.guidance"] or "")
        assert columns["gamma"] == columns["clustering.gamma"] == values["clustering.gamma"]
        assert columns["clusters used"] == study.fits()[one.task.fit.name].num_used
    assert "sampling.guidance" not in found[UNCONDITIONAL]["columns"]
