"""evaluate: any generator's images, or a study's model, held against a reference by any number of measures.

A model is measured on several disjoint sets of seeds, and the scatter over the sets is the error of its numbers. What
was measured of a study's model is kept in the study as a record, so that the same question is answered from there.

Shapes: n generated images of a set, N reference images, D feature width.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from cedm_ray.config import digest
from cedm_ray.errors import ConfigurationError
from cedm_ray.evaluation.gathering import BATCH, MAX_ROWS, FileImages, Keep, Network, Runner, gather
from cedm_ray.evaluation.references import Moments, all_features, training_features
from cedm_ray.evaluation.requests import Plan, Request, check_opened, model_digest, settle
from cedm_ray.evaluation.scores import Measure, Score, free_of_count, names, read_measurement
from cedm_ray.evaluation.values import Material, difference, is_collapsed, values
from cedm_ray.features.extractors import Extractor
from cedm_ray.metrics.frechet import frechet_reference
from cedm_ray.metrics.measurement import Measurement
from cedm_ray.metrics.measurement import difference as difference_of
from cedm_ray.search.clustering_head import ClusteringHead, check_extractor, open_head
from cedm_ray.search.results import Show


def evaluate(
    request: Request, *, cache: Path, run: Runner, show: Show, against: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Do what is asked for, or find it among the study's records. Returns plain values, see `_tell`.

    cache: the user's folder for statistics of references outside a study. run: does the work, here or on a cluster.
    against: an earlier result that the new one is to be compared with; where it cannot be, that is said before any
    work, as by `compare`.
    Raises ConfigurationError for a request that contradicts itself, InputDataError for images that cannot be used.
    """
    plan = settle(request, cache=cache, show=show)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    opened = {network: plan.open(network, device) for network in plan.keeps}
    check_opened(plan, opened)
    head = _head(plan, opened)
    measurements = _measurements(plan, opened, head)
    if against is not None:
        compare({"scores": [one.to_json() for of_measure in measurements for one in of_measure]}, against)
    key = plan.key(opened)
    if plan.model is not None and (known := plan.home.study.evaluation(plan.name, key)) is not None:
        return known
    material = _gather(plan, opened, head, run, show)
    told = _tell(plan, _scores(plan, opened, measurements, material), material)
    if plan.model is not None:
        plan.home.study.write_evaluation(plan.name, key, told)
    return told


def compare(told: Mapping[str, Any], earlier: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What was measured less what was measured earlier, for every metric that both have; each as plain values of
    `MeasuredDifference` with the metric's name.

    told, earlier: results of `evaluate`. The number of images may differ only where a metric does not depend on it, as
    kernel distances and extrapolated ones do not. Raises ConfigurationError, saying what differs, where two numbers of
    one name do not compare, and where no name is in both.
    """
    try:
        before = {score["metric"]: read_measurement(score) for score in earlier["scores"]}
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ConfigurationError(f"what is compared with is no result of cedm-ray evaluate --json: {error}") from None
    found = []
    for score in told["scores"]:
        if score["metric"] in before:
            try:
                now, then = read_measurement(score), before[score["metric"]]
                one = difference_of(now, then, any_count=free_of_count(score["metric"]))
            except ValueError as error:
                mend = "measure both with the same --detector, --num and --reference"
                raise ConfigurationError(f"{score['metric']}: {error}", mend=mend) from None
            found.append({"metric": score["metric"], **dataclasses.asdict(one)})
    if not found:
        raise ConfigurationError(f"no metric is in both; the earlier ones are: {', '.join(before)}")
    return found


def _head(plan: Plan, opened: dict[Network, Extractor]) -> ClusteringHead | None:
    """The head that msp is about, None where it is not asked for. Raises as `open_head`, and IntegrityError where the
    extractor is not the one that it was fitted on."""
    head = None
    for network in _networks(plan, "msp"):
        head = open_head(plan.home.study, plan.model.meaning.num_clusters, fit=plan.model.meaning.fit)
        check_extractor(head, plan.home.images, opened[network])
    return head


def _gather(
    plan: Plan, opened: dict[Network, Extractor], head: ClusteringHead | None, run: Runner, show: Show
) -> Material:
    """Put all images through their networks: the reference first, which may be on disk already."""
    material = Material(head=head)
    for network, keep in _reference_keeps(plan).items():
        if isinstance(plan.reference, Moments):
            material.factors[network] = plan.reference.factor(opened[network])
            continue
        summary = plan.reference.summary(network, opened[network], keep, run, show)
        if summary.statistics is not None:
            material.factors[network] = frechet_reference(summary.statistics)
        material.rows[network] = summary.rows
    by_kind = {kind: _networks(plan, kind) for kind in ("unconditional", "auroc", "copies", "frechet")}
    for network in by_kind["auroc"] | by_kind["copies"]:
        material.training[network] = _training_features(plan, network, opened[network], run, show)
    material.sets = _sets(plan, "samples", plan.subject, plan.keeps, run, show)
    if plan.unconditional is not None:
        subject = plan.images_of(plan.unconditional, plan.unconditional.meaning.trial)
        keeps = {network: Keep(statistics=True) for network in by_kind["unconditional"]}
        material.unconditional = _sets(plan, "unconditional", subject, keeps, run, show)
    if plan.versus is not None:
        keeps = {network: Keep(blocks=True) for network in by_kind["frechet"]}
        subject = plan.images_of(plan.versus, plan.request.versus)
        material.versus = _sets(plan, plan.versus.meaning.trial, subject, keeps, run, show)
    if plan.test is not None:
        keeps = {network: Keep(rows=MAX_ROWS) for network in by_kind["auroc"] | by_kind["copies"]}
        subject = FileImages(path=str(Path(plan.request.test).expanduser().absolute()), batch_size=BATCH)
        (found,) = gather(plan.work("test images", subject, keeps, num=len(plan.test)), run, show)
        material.test = {network: summary.rows for network, summary in zip(keeps, found, strict=True)}
    return material


def _sets(plan: Plan, task: str, subject, keeps: dict[Network, Keep], run: Runner, show: Show) -> list[dict]:
    work = plan.work(task, subject, keeps, num=plan.num, sets=plan.sets)
    return [dict(zip(keeps, found, strict=True)) for found in gather(work, run, show)]


def _networks(plan: Plan, kind: str) -> set[Network]:
    return {plan.networks[measure.word] for measure in plan.measures if measure.kind == kind}


def _reference_keeps(plan: Plan) -> dict[Network, Keep]:
    """What is kept of the reference, by network."""
    found: dict[Network, Keep] = {}
    for measure in plan.measures:
        if measure.of_reference != Keep():
            network = plan.networks[measure.word]
            found[network] = found.get(network, Keep()) | measure.of_reference
    return found


def _training_features(plan: Plan, network: Network, extractor: Extractor, run: Runner, show: Show):
    """The features of all reference images, float32 [N, D]: those of a study are kept there."""
    if plan.reference.image_set is None:
        return all_features(plan.reference, network, run, show)
    return training_features(plan.reference, extractor, show)


def _measurements(plan: Plan, opened: dict[Network, Extractor], head: ClusteringHead | None) -> list[list[Measurement]]:
    """Of each measure its measurements as they will be, with zeros for the values that are not known yet."""
    return [
        [
            Measurement(
                metric=name,
                detector=opened[plan.networks[measure.word]].key,
                num_samples=plan.num,
                reference=_compared_with(plan, measure, name, head),
                values=(0.0,) * plan.sets,
                seeds=plan.seeds,
            )
            for name in names(measure, plan.networks[measure.word], with_test=plan.test is not None)
        ]
        for measure in plan.measures
    ]


def _compared_with(plan: Plan, measure: Measure, name: str, head: ClusteringHead | None) -> str:
    """The digest of all that a number depends on besides the images, their detector and their count."""
    if measure.kind == "inception":
        return ""
    if measure.kind == "unconditional":
        return model_digest(plan.unconditional)
    if measure.kind == "msp":
        meaning = plan.model.meaning
        # Left out where it says nothing, so that what was measured before keeps its digest.
        other = {} if meaning.fit is None else {"fit": meaning.fit}
        return digest({"features": head.features_key, "clusters": meaning.num_clusters} | other)
    if measure.kind == "auroc" or name.startswith("memorized test"):
        return digest({"training": plan.reference.digest, "test": plan.test.fingerprint})
    return plan.reference.digest


def _scores(
    plan: Plan, opened: dict[Network, Extractor], measurements: list[list[Measurement]], material: Material
) -> list[Score]:
    scores = []
    for measure, expected in zip(plan.measures, measurements, strict=True):
        network = plan.networks[measure.word]
        for measurement, column in zip(expected, values(measure, network, material), strict=True):
            errors = tuple(error for _, error in column)
            scores.append(
                Score(
                    measurement=dataclasses.replace(measurement, values=tuple(value for value, _ in column)),
                    network=opened[network].name,
                    errors=None if None in errors else errors,
                    images=min(plan.num, measure.keep.rows or plan.num),
                )
            )
    return scores


def _tell(plan: Plan, scores: list[Score], material: Material) -> dict[str, Any]:
    """The result in plain values.

    name, num_clusters, images_seen, sampling: of the model, the last three None for files. num_samples: images of each
    set. seeds: of each set, [first, end), as in the scores. scores: see `Score.to_json`. differences: of each Fréchet
    distance to that of the model beside it, with the ends of its interval; below 0 where this model is better.
    collapsed: whether the images are all alike, None where no network could judge it. reference: None where nothing
    was compared with any.
    """
    alike = [found for network in plan.keeps if (found := is_collapsed(network, material)) is not None]
    meaning = plan.model.meaning if plan.model is not None else None
    return {
        "name": plan.name,
        "num_clusters": meaning.num_clusters if meaning else None,
        "images_seen": plan.model.images_seen if meaning else None,
        "sampling": meaning.sampling.model_dump(mode="json") if meaning else None,
        "num_samples": plan.num,
        "seeds": None if plan.seeds is None else [[own.start, own.stop] for own in plan.seeds],
        "reference": None
        if (to := plan.reference) is None
        else {"name": to.name, "digest": to.digest, "images": to.count},
        "scores": [score.to_json() for score in scores],
        "differences": _differences(plan, material),
        "collapsed": any(alike) if alike else None,
    }


def _differences(plan: Plan, material: Material) -> list[dict[str, Any]]:
    if plan.versus is None:
        return []
    found = []
    for measure in plan.measures:
        if measure.kind == "frechet":
            network = plan.networks[measure.word]
            (name,) = names(measure, network)
            one = difference(network, material)
            about = {"metric": name, "versus": plan.request.versus, "versus_images_seen": plan.versus.images_seen}
            about |= {"resolved": one.resolved}
            found.append(about | {name: getattr(one, name) for name in ("value", "low", "high", "level")})
    return found
