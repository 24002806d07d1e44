"""Many replicas in one simulation: the router before them, failures, and how many there are.

Every replica is an unchanged engine under a clock of its own. One loop takes whatever comes next: steps of the
replica on which something may end first, a request, or something that happens to the fleet. What a replica has
finished becomes known to the router when that step ends, never before.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from heapq import heappop, heappush
from math import inf, nextafter
from random import Random

from armillary.core.prefix import block_digest
from armillary.core.request import FinishReason, Request
from armillary.core.router import Router
from armillary.core.scaling import Sight
from armillary.core.step import Event
from armillary.deployment import FleetSettings
from armillary.errors import ArmillaryError
from armillary.measure.workload import WorkItem, Workload
from armillary.twin.census import Census, Since
from armillary.twin.demand import Demand, Due, Prompts, knows_all_arrivals
from armillary.twin.fleet_result import FleetResult
from armillary.twin.garbage import uncollected
from armillary.twin.handover import Link, first_part, rest_part
from armillary.twin.member import Build, Member, State
from armillary.twin.replica import quick_digest
from armillary.twin.restarts import Restarts
from armillary.twin.scaler import scaler_of
from armillary.twin.simulate import Audience
from armillary.twin.watch import Watch

Late = Callable[[float, float], bool]
"""Whether a request is late, by its time to first token and its mean time per further token, in seconds."""


def simulate_fleet(
    settings: FleetSettings,
    build: Build,
    workload: Workload | Iterable[WorkItem],
    *,
    late: Late | None = None,
    seed: int = 0,
    until: float = inf,
    leap: bool = True,
    watch: Watch | None = None,
    since: Since = Since(),
) -> FleetResult:
    """Serve a workload with a fleet, to its end.

    Args:
        build: says what a kind of replica is.
        workload: as of `Demand`.
        late: for scaling by service level.
        seed: of failures, of routes that draw, and of how steps vary.
        until: the last moment at which a request may come and a step begin.
        leap: let replicas take steps that are provably alike in one, and stay behind the others until a request may
            have ended on them; compare prefixes by cheaper digests, and not at all before the only replica that there
            ever is. Results do not change; off is slower.
        watch: ends the simulation where it says so, with whatever had become of the requests by then.
        since: from when on it is judged, which is what `FleetResult.counts` are of.
    """
    fleet = _Fleet(settings, build, workload, late, seed, leap, watch, since)
    with uncollected(leap):
        fleet.run(until)
        return fleet.result()


class _Fleet:
    def __init__(
        self,
        settings: FleetSettings,
        build: Build,
        workload: Workload | Iterable[WorkItem],
        late: Late | None,
        seed: int,
        leap: bool,
        watch: Watch | None,
        since: Since,
    ) -> None:
        self.settings = settings
        self.build = build
        self.late = late
        self.seed = seed
        self.watch = watch
        self.now = 0.0
        self.members: list[Member] = []
        self.sizes: list[tuple[float, int]] = []
        self._restarts = Restarts()
        self._agenda: list[tuple[float, int, Callable[[], None]]] = []
        self._serial = 0
        self._steps: list[tuple[float, int]] = []
        """(when to look at it, which replica) for each that has anything to do; others than its `wakes` are void."""
        self._open: dict[str, tuple[Request, str]] = {}
        """Requests that were let in and have not ended, with their sessions."""
        self._leap = leap
        self._apart = knows_all_arrivals(workload) and all(group.role == "both" for group in settings.replicas)
        """Whether what ends on one replica brings nothing to another."""
        self._held: deque[str] = deque()
        """Open requests that wait at the door because no replica is up."""
        self._arrived = self._finished = self._late_count = 0
        first = build(settings.replicas[0])
        self.demand = Demand(workload, first.cost, settings.count)
        self.audience = Audience(self.demand.ended, watch)
        self.census = Census(since)
        if since.at > 0:
            self._at(since.at, self._count_from_now)
        config = first.config
        self.prompts = Prompts(workload, config.block_size if leap and len(settings.replicas) == 1 else 0)
        alone = leap and settings.scaling is None and settings.count == 1
        route, digest = "round_robin" if alone else settings.route, quick_digest if leap else block_digest
        self.router, self._rest_router = (
            Router(route, block_size=config.block_size, memory=config.num_blocks, seed=seed + i, digest=digest)
            for i in range(2)
        )
        """For whole requests and first parts; and for the rest of those that are done in two parts."""
        self._moving: dict[str, Member] = {}
        """Requests on the link, and who holds their blocks until they have arrived."""
        for kind, group in enumerate(settings.replicas):
            for _ in range(group.count):
                self._open_up(self._start(kind))
        self._note_size()
        self._scaler = scaler_of(settings.scaling, settings.ready_s) if settings.scaling else None
        if settings.scaling is not None:
            self._at(settings.scaling.period_s, self._look)

    # ---------------------------------------------------------------- the loop

    def run(self, until: float) -> None:
        while self.watch is None or not self.watch.missed:
            moment = min(self.demand.next_time, self._agenda[0][0] if self._agenda else inf, until)
            if self._steps and self._steps[0][0] < moment:
                self._step(moment)
                continue
            if moment == until or (not self._open and self.demand.next_time == inf):
                self._catch_up(until)
                break
            self.now = moment
            if self._agenda and self._agenda[0][0] == moment:
                heappop(self._agenda)[2]()
            else:
                self._arrive(self.demand.take())

    def _step(self, until: float) -> None:
        """Let the replica on which something may end first take its next steps."""
        wakes, index = heappop(self._steps)
        member = self.members[index]
        if wakes != member.wakes or member.state is State.FAILED or member.state is State.GONE:
            return
        member.wakes = inf
        if self._steps and not self._apart:  # what ends on another may bring it a request, but no sooner
            until = min(until, max(self._steps[0][0], nextafter(member.replica.clock.now(), inf)))
        member.step(until)
        self._queue(member)

    def _queue(self, member: Member) -> None:
        """Have a replica looked at when something may end there. Until then it may stay behind the others."""
        wakes = member.replica.next_end
        if wakes not in (member.wakes, inf):
            heappush(self._steps, (wakes, member.index))
        member.wakes = wakes

    def _catch_up(self, until: float) -> None:
        """Let those that stayed behind take every step that begins before `until`."""
        for member in self.members:
            if member.wakes < inf:
                member.advance(until)

    def _count_from_now(self) -> None:
        for member in self.members:
            if member.state in (State.UP, State.LEAVING):
                member.advance(self.now)
                self._queue(member)
        self.census.begin(self.members)

    def _at(self, moment: float, what: Callable[[], None]) -> None:
        self._serial += 1
        heappush(self._agenda, (moment, self._serial, what))

    # ---------------------------------------------------------------- requests

    def _arrive(self, due: Due) -> None:
        self._arrived += 1
        request = self.prompts.request(due)
        self._open[request.id] = (request, due.item.session or "")
        self.census.came(due.row, due.due, self.now)
        self.audience.submitted(due, -1)
        self._send(request.id)

    def _send(self, request_id: str) -> None:
        """Hand an open request to a replica, or keep it at the door while none is up."""
        request, session = self._open[request_id]
        index = self.router.send(request, session)
        if index is None:
            self._held.append(request_id)
            return
        member = self.members[index]
        two = member.role == "prefill" and request.max_tokens > 1
        if self._submit(member, first_part(request) if two else request):
            self.audience.moved(request_id, index)

    def _submit(self, member: Member, request: Request) -> bool:
        """Hand a request to a replica; False if it was refused, which ends it."""
        member.advance(self.now)
        try:
            member.replica.submit(request)
        except ArmillaryError:
            self._router(member).ended(request.id, 0)
            del self._open[request.id]
            self.census.left(self.audience.row(request.id), self.now)
            self.audience.refused(request.id, self.now)
            return False
        self._queue(member)
        return True

    def _router(self, member: Member) -> Router:
        return self._rest_router if member.role == "decode" else self.router

    def _hear(self, index: int, at: float, events: list[Event]) -> None:
        member, left = self.members[index], []
        for event in events:
            if event.finish is not None:
                if at < self.now:
                    raise RuntimeError("a request has ended too late to be told: the cost model is not steady")
                request, _ = self._open[event.request_id]
                if member.role == "prefill" and request.max_tokens > 1 and event.finish is FinishReason.LENGTH:
                    event.finish = None  # for the client it goes on
                    self._at(at, partial(self._hand_over, member, rest_part(request, event.token or 0)))
                    continue
                del self._open[event.request_id]
                row = self.audience.row(event.request_id)
                left.append((request.id, row, request.max_tokens if event.finish is FinishReason.LENGTH else 0))
                self._at(at, partial(self._ended, event.request_id, row, request.max_tokens))
        ends = self.audience.hear(member.plan.cost, at, events)
        for name, row, tokens in left:
            self.census.left(row, ends[name], tokens)

    # ---------------------------------------------------------------- requests in two parts

    def _hand_over(self, holder: Member, rest: Request) -> None:
        """The first part is done: send what it computed to whoever will go on."""
        self.router.ended(rest.id, 1)
        if rest.id not in holder.replica.engine.scheduler.held:
            self._restarts.of(rest.id)  # it was lost in the moment of its end
            self._send(rest.id)
            return
        self._moving[rest.id] = holder
        arrived = holder.link.send(rest.handed * holder.plan.kv_bytes, self.now)
        self._at(arrived, partial(self._go_on, holder, rest))

    def _go_on(self, holder: Member, rest: Request) -> None:
        """What was computed has arrived."""
        if self._moving.get(rest.id) is not holder or rest.id not in self._open:
            return
        index = self._rest_router.send(rest, self._open[rest.id][1])
        if index is None:  # nobody is up; those who have it keep it
            self._at(self.now + 1.0, partial(self._go_on, holder, rest))
            return
        del self._moving[rest.id]
        holder.advance(self.now)
        holder.replica.release(rest.id)
        self._queue(holder)
        self._submit(self.members[index], rest)

    # ---------------------------------------------------------------- replicas

    def _start(self, kind: int) -> Member:
        group = self.settings.replicas[kind]
        index = len(self.members)
        link = Link(self.settings.link)
        hear = partial(self._hear, index)
        member = Member(index, kind, group, self.build, hear, self.now, link, self._leap, self.seed)
        self.members.append(member)
        for router in (self.router, self._rest_router):
            router.close(router.add(member.plan.speed))
        return member

    def _open_up(self, member: Member) -> None:
        """It is ready: it takes requests from now on, those at the door first."""
        if member.state is not State.STARTING:
            return  # sent away before it was ready
        member.state = State.UP
        member.recover(self.now)
        self._router(member).open(member.index)
        failures = self.settings.failures
        if failures is not None:
            draw = Random(f"{self.seed}/{member.index}/{member.failures}")
            self._at(self.now + draw.expovariate(1.0 / failures.every_s), partial(self._fail, member))
        for _ in range(len(self._held)):
            self._send(self._held.popleft())

    def _fail(self, member: Member) -> None:
        """It loses all it has; others begin its requests anew."""
        if member.state not in (State.UP, State.LEAVING):
            return
        leaving = member.state is State.LEAVING
        member.advance(self.now)
        member.state = State.FAILED
        member.failures += 1
        member.wakes = inf
        lost = [request.id for request in member.replica.fail()]
        for request_id in [name for name, holder in self._moving.items() if holder is member]:
            del self._moving[request_id]
            lost.append(request_id)
        self._router(member).lose(member.index)
        if leaving:
            self._part(member)
        else:
            failures = self.settings.failures
            repair = failures.repair_s if failures is not None else 0.0
            self._at(self.now + repair, partial(self._restart, member))
        for request_id in lost:
            self._restarts.of(request_id)
            self._send(request_id)

    def _restart(self, member: Member) -> None:
        if member.state is State.FAILED:
            member.state = State.STARTING
            self._at(self.now + self.settings.ready_s, partial(self._open_up, member))

    def _leave(self, member: Member) -> None:
        """It takes no more requests, and goes when it has none."""
        self.router.close(member.index)
        if member.state is State.UP and self.router.targets[member.index].requests:
            member.state = State.LEAVING
        else:
            self._part(member)

    def _part(self, member: Member) -> None:
        member.state = State.GONE
        member.ended = self.now

    # ---------------------------------------------------------------- how many there are

    def _present(self) -> list[Member]:
        return [m for m in self.members if m.state in (State.UP, State.STARTING, State.FAILED)]

    def _look(self) -> None:
        """Ask the scaler, and do as it says."""
        scaling, scaler = self.settings.scaling, self._scaler
        if scaling is None or scaler is None:
            return
        present = self._present()
        seen = Sight(
            self.now, scaling.period_s, self._arrived, self._finished, self._late_count, len(self._open), len(present)
        )
        self._arrived = self._finished = self._late_count = 0
        wanted = scaler.wanted(seen)
        for member in self.members:
            if len(present) < wanted and member.state is State.LEAVING:
                member.state = State.UP
                self.router.open(member.index)
                present.append(member)
        for _ in range(wanted - len(present)):
            self._at(self.now + self.settings.ready_s, partial(self._open_up, self._start(0)))
        # The newest that is not ready goes first, then whoever has least to do.
        first = sorted(present, key=lambda m: (m.state is State.UP, self.router.targets[m.index].tokens, -m.index))
        for member in first[: max(0, len(present) - wanted)]:
            self._leave(member)
        self._note_size()
        self._at(self.now + scaling.period_s, self._look)

    def _note_size(self) -> None:
        size = len(self._present())
        if not self.sizes or self.sizes[-1][1] != size:
            self.sizes.append((self.now, size))

    # ---------------------------------------------------------------- in the end

    def _ended(self, request_id: str, row: int, generated: int) -> None:
        """A request's end has become known."""
        owner = self.router.owner(request_id)
        for router in (self.router, self._rest_router):
            router.ended(request_id, generated)
        self._finished += 1
        if self.late is not None:
            self._late_count += self.late(*self.audience.recorder.times(row))
        if owner is not None:
            member = self.members[owner]
            if member.state is State.LEAVING and not self.router.targets[owner].requests:
                self._part(member)

    def result(self) -> FleetResult:
        """What was found. Nothing goes on after it."""
        end = max([self.now, *(m.replica.clock.now() for m in self.members if m.replica.executor.totals.steps)])
        end = max(end, self.audience.recorder.last)
        used = tuple(m.use(end) for m in self.members)
        requests = self.audience.recorder.columns()
        counts = self.census.counts(self.members, end, int(requests.output_tokens.sum()))
        for member in self.members:
            member.replica.end()
        self.members.clear()
        self._agenda.clear()
        return FleetResult(requests, end, used, tuple(self.sizes), self._restarts.total, counts)
