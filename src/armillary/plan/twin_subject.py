"""The twin as the subject of an experiment: one run is one simulation."""

from __future__ import annotations

from armillary.core.config import SchedulerConfig
from armillary.deployment import Deployment, EngineSettings, ReplicaSettings, checked
from armillary.errors import ArmillaryError, Code
from armillary.measure.slo import Slo
from armillary.measure.synthesis import synthesise
from armillary.plan.experiment import CostChoice, Experiment, Response, settle
from armillary.plan.factors import Point
from armillary.plan.figures import figures
from armillary.twin.cost import CostModel, IdealCost
from armillary.twin.fleet import simulate_fleet
from armillary.twin.member import ReplicaPlan
from armillary.twin.simulate import simulate
from armillary.twin.work import StepWork


def twin_response(experiment: Experiment) -> Response:
    """What the twin says of a point. Points and seeds determine it to the last bit."""
    slo = experiment.service_level()

    def measure(point: Point, seed: int) -> dict[str, float]:
        deployment, spec = settle(experiment, point)
        workload = synthesise(spec.model_copy(update={"seed": seed}))
        if deployment.fleet is None:
            plan = replica_plan(deployment, ReplicaSettings(), experiment.cost, seed)
            alone = simulate(plan.config, workload, plan.cost)
            return figures(alone.requests, alone.duration_s, slo)
        fleet = simulate_fleet(
            deployment.fleet,
            lambda group: replica_plan(deployment, group, experiment.cost, seed),
            workload,
            late=lambda ttft, tpot: _late(slo, ttft, tpot),
            seed=seed,
        )
        return figures(fleet.requests, fleet.duration_s, slo)

    return measure


def replica_plan(deployment: Deployment, group: ReplicaSettings, choice: CostChoice, seed: int) -> ReplicaPlan:
    """One replica of a kind: what its scheduler is told and what predicts its steps."""
    settings = deployment.engine_of(deployment.model)
    if group.engine is not None:
        own = group.engine.model_dump(exclude_unset=True)
        settings = checked(EngineSettings, {**settings.model_dump(exclude_unset=True), **own}, as_flags=False)
    hardware = choice.hardware if group.hardware == "here" else group.hardware
    if hardware is None:
        if choice.step_s is None:
            raise _wrong(
                "cost must say what predicts a step: `hardware: NAME`, or `step_s: SECONDS` with `per_sequence_s`, "
                "given neither",
                "cost",
            )
        cost: CostModel = IdealCost(
            choice.step_s, choice.per_sequence_s, between=choice.between_s, exponential=choice.exponential, seed=seed
        )
        return ReplicaPlan(_config(settings, None, None), cost)
    from armillary.models.locate import locate_config
    from armillary.models.spec import ModelSpec
    from armillary.twin.analytic import AnalyticCost, Parallel
    from armillary.twin.hardware import find_hardware
    from armillary.twin.shapes import shape_of

    spec = locate_config(deployment.model.path)
    if not isinstance(spec, ModelSpec):
        raise _wrong(f"models must hold one that generates, given {deployment.model.path!r}", "models")
    shape = shape_of(spec)
    analytic = AnalyticCost(
        shape,
        find_hardware(hardware),
        Parallel(group.tensor_parallel, group.pipeline_parallel, group.expert_parallel),
        dtype=None if settings.dtype == "auto" else settings.dtype,
        kv_dtype=None if settings.kv_dtype == "auto" else settings.kv_dtype,
    )
    work = StepWork(sequences=16, tokens=16, rows=16, context=16 * 512, pairs=16 * 512)
    return ReplicaPlan(
        _config(settings, analytic.kv_tokens, spec.max_context),
        analytic,
        speed=1 / analytic.step_s(work),
        kv_bytes=round(shape.kv_bytes_per_token(analytic.kv_dtype)),
    )


def _config(settings: EngineSettings, kv_tokens: int | None, longest: int | None) -> SchedulerConfig:
    """What the scheduler is told; `kv_tokens` fit beside the weights, where that is known."""
    running, steps = settings.max_running, settings.max_step_tokens
    if steps < running:
        # As the real engine's plan has it: the one that was not set gives way.
        running, steps = (steps, steps) if "max_running" not in settings.model_fields_set else (running, running)
    blocks = settings.kv_blocks
    if blocks is None:
        if kv_tokens is None:
            raise _wrong("engine.kv_blocks must be set where the cost model knows no memory, given none", "kv_blocks")
        useful = running * -(-(settings.max_context or longest or kv_tokens) // settings.block_size)
        blocks = max(1, min(kv_tokens // settings.block_size, useful))
    context = min(settings.max_context or longest or blocks * settings.block_size, blocks * settings.block_size)
    try:
        return SchedulerConfig(
            num_blocks=blocks,
            max_context=context,
            block_size=settings.block_size,
            max_step_tokens=steps,
            max_chunk_tokens=settings.max_chunk_tokens,
            max_running=running,
            max_waiting=settings.max_waiting,
            max_waiting_tokens=settings.max_waiting_tokens,
            order=settings.order,
            starvation_s=settings.starvation_s,
            prefix_cache=settings.prefix_cache,
        )
    except ValueError as error:
        raise _wrong(f"the engine's settings must fit together, so: {error}", "engine") from None


def _late(slo: Slo, ttft: float, tpot: float) -> bool:
    values = {"ttft": ttft, "tpot": tpot}
    return any(values.get(goal.metric, 0.0) > goal.limit_s for goal in slo.objectives)


def _wrong(message: str, param: str) -> ArmillaryError:
    return ArmillaryError(Code.INVALID_REQUEST, message, param=param)
