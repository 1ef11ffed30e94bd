"""What TensorBoard's HParams page shows of a trial: what it was trained with, how it ended, and its last measurements.

The page's measurements are the last values of the trial's own curves, so that they need no copy of themselves, and no
run beside the trial's.
"""

import time
from collections.abc import Sequence

from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams import metadata
from tensorboard.plugins.hparams.api_pb2 import (
    STATUS_FAILURE,
    STATUS_SUCCESS,
    DataType,
    Experiment,
    HParamInfo,
    MetricInfo,
    MetricName,
)
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionEndInfo, SessionStartInfo

from cedm_ray.features.extractors import distance_name
from cedm_ray.search.goals import Proposal, task_of
from cedm_ray.search.results import TrialStatus, trial_name
from cedm_ray.search.settings import shown
from cedm_ray.search.space import SearchSpace
from cedm_ray.search.study import Study
from cedm_ray.search.trial import training_seed

START_TAG, END_TAG = metadata.SESSION_START_INFO_TAG, metadata.SESSION_END_INFO_TAG

_TYPES = {bool: "DATA_TYPE_BOOL", str: "DATA_TYPE_STRING", int: "DATA_TYPE_FLOAT64", float: "DATA_TYPE_FLOAT64"}


def hyperparameters(study: Study, space: SearchSpace, trial: str) -> dict[str, bool | float | str]:
    """What a trial is trained with, by the names of the columns; one without clusters has neither C nor anything of
    TEMI."""
    proposals = study.proposals()
    task = task_of(trial, proposals)
    num_clusters = task.num_clusters
    space = space.changed(task.changes) if task.changes else space
    found: dict[str, bool | float | str] = {}
    if num_clusters is not None:
        found["C"] = num_clusters
        fit = study.fits().get(task.fit.name)
        if fit is not None:
            found |= {"clusters used": fit.num_used, "r_C": fit.num_used / num_clusters}
        found |= {"gamma": space.clustering.gamma, "extractor": space.features.extractor}
    training, network = space.training, space.network
    return (
        found
        | {
            "seed": training_seed(space, task.seed),
            "learning rate": training.learning_rate,
            "batch size": training.batch_size,
            "EMA half-life kimg": training.ema_halflife_kimg,
            "dropout": network.dropout,
            "label dropout": network.label_dropout,
            "augmentation": space.augmentation.probability,
            "guidance": space.sampling.guidance,
            "budget kimg": space.rungs.rungs_kimg[-1],
        }
        | _searched(proposals, task.proposal)
    )


def _searched(proposals: Sequence[Proposal], number: int) -> dict[str, bool | float | str]:
    """The settings that are searched besides C, by path, as that proposal has them; none where there is none such."""
    settings = proposals[number - 1].settings if 0 < number <= len(proposals) else ()
    return {path: value if type(value) in _TYPES else shown(value) for path, value in settings}


def session_start(study: Study, space: SearchSpace, trial: str) -> list[Summary.Value]:
    """The columns of the page and this trial's values in them.

    The columns are those of a conditional trial for every trial: TensorBoard takes them from whichever run it meets
    first.
    """
    columns = {"C": 0, "clusters used": 0, "r_C": 0.0} | hyperparameters(study, space, trial_name(2))
    columns |= _searched(study.proposals(), 1)
    experiment = Experiment(
        hparam_infos=[HParamInfo(name=name, type=DataType.Value(_TYPES[type(v)])) for name, v in columns.items()],
        metric_infos=[
            _metric("rung/distance", distance_name(space.evaluation.detector, space.evaluation.weights)),
            _metric("rung/loss", "loss"),
            _metric("rung/kimg", "trained kimg"),
        ],
        time_created_secs=time.time(),
    )
    started = SessionStartInfo(group_name=trial, start_time_secs=time.time())
    for name, value in hyperparameters(study, space, trial).items():
        if isinstance(value, bool):
            started.hparams[name].bool_value = value
        elif isinstance(value, str):
            started.hparams[name].string_value = value
        else:
            started.hparams[name].number_value = value
    return [
        _value(metadata.EXPERIMENT_TAG, HParamsPluginData(experiment=experiment)),
        _value(START_TAG, HParamsPluginData(session_start_info=started)),
    ]


def session_end(status: TrialStatus) -> list[Summary.Value]:
    """How a trial ended: one that a rung stopped did nothing wrong."""
    status_shown = STATUS_SUCCESS if status in ("completed", "stopped") else STATUS_FAILURE
    ended = SessionEndInfo(status=status_shown, end_time_secs=time.time())
    return [_value(END_TAG, HParamsPluginData(session_end_info=ended))]


def _metric(tag: str, name: str) -> MetricInfo:
    return MetricInfo(name=MetricName(tag=tag), display_name=name)


def _value(tag: str, data: HParamsPluginData) -> Summary.Value:
    return Summary.Value(tag=tag, metadata=metadata.create_summary_metadata(data), tensor=metadata.NULL_TENSOR)
