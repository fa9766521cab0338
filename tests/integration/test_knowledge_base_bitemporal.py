"""What is stored in two times and three layers is what a model of a few lines says it is."""

import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from knowledge_base.adapters.postgres_concepts import PostgresConcepts
from knowledge_base.adapters.postgres_facts import PostgresFacts
from knowledge_base.adapters.postgres_memory import PostgresMemory
from knowledge_base.domain.concepts import NewConcept, NewRelationship
from knowledge_base.domain.facts import FactQuery, NewFact
from knowledge_base.domain.story_time import ALWAYS, AsOf, Layer, Period
from knowledge_base.domain.text import SHARED_WORLD
from knowledge_base.ports import RequestKey
from knowledge_base.testing import RunningKnowledgeBase, serve_knowledge_base

YEAR_1200 = datetime(1200, 1, 1, tzinfo=UTC)
FIRST_DAYS, LAST_DAY = 5, 6
RECORDED = datetime(2026, 1, 1, tzinfo=UTC)
FAR = datetime(9000, 1, 1, tzinfo=UTC)

AS_MANY_AS_FIT = settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture
async def running(knowledge_base_database: str) -> AsyncIterator[RunningKnowledgeBase]:
    async with serve_knowledge_base(knowledge_base_database) as running:
        yield running


def day(number: int) -> datetime:
    return YEAR_1200 + timedelta(days=number)


@st.composite
def periods(draw: st.DrawFn) -> Period:
    first = draw(st.integers(0, FIRST_DAYS))
    last = draw(st.integers(first + 1, LAST_DAY))
    return Period(
        draw(st.sampled_from([day(first), None])), draw(st.sampled_from([day(last), None]))
    )


def holds(period: Period, moment: datetime) -> bool:
    begun = period.valid_from is None or period.valid_from <= moment
    return begun and (period.valid_until is None or moment < period.valid_until)


@dataclass(frozen=True)
class Said:
    """Something a layer said at a moment about a time of the story; None takes it back."""

    layer: int
    key: str
    period: Period
    recorded: datetime
    value: object


@dataclass
class Model:
    """What was said, in order. Of all that covers a moment, a layer means what it said last."""

    said: list[Said] = field(default_factory=list)

    def layer_at(self, layer: int, key: str, valid: datetime, recorded: datetime) -> object:
        covering = [
            each.value
            for each in self.said
            if (each.layer, each.key) == (layer, key)
            and each.recorded <= recorded
            and holds(each.period, valid)
        ]
        return covering[-1] if covering else None

    def seen_at(self, key: str, valid: datetime, recorded: datetime) -> object:
        """The narrowest layer's value; layers are numbered from the widest, 0."""
        for layer in (2, 1, 0):
            value = self.layer_at(layer, key, valid, recorded)
            if value is not None:
                return value
        return None

    def moments(self) -> list[datetime]:
        """When something was recorded, and just before."""
        times = {each.recorded for each in self.said}
        return sorted(times | {time - timedelta(microseconds=1) for time in times} | {FAR})


async def make_layers(running: RunningKnowledgeBase) -> tuple[Layer, Layer, Layer]:
    world = uuid.uuid4()
    key = RequestKey(uuid.uuid4(), bytes(32), RECORDED)
    await PostgresMemory(running.database).create_world(key, world, str(world), "")
    return Layer(SHARED_WORLD), Layer(world), Layer(world, "player-7")


class Writer:
    """Gives each request a time; the clock of every third writer is behind."""

    def __init__(self) -> None:
        self._count = 0

    def key(self) -> RequestKey:
        self._count += 1
        behind = timedelta(seconds=5) if self._count % 3 == 0 else timedelta()
        now = RECORDED + timedelta(seconds=self._count) - behind
        return RequestKey(uuid.uuid4(), bytes(32), now)


# Most is said in one layer, so that periods of one meet.
layer_numbers = st.sampled_from([1, 1, 1, 0, 2])
writes = st.lists(st.tuples(layer_numbers, periods()), min_size=1, max_size=6)
# One day before all that is said, and one after.
DAYS = [day(number) for number in range(-1, LAST_DAY + 2)]


@AS_MANY_AS_FIT
@given(told=writes)
async def test_a_concept_as_of_any_two_moments_is_what_was_said_last_of_them(
    running: RunningKnowledgeBase, told: Sequence[tuple[int, Period]]
) -> None:
    store, model, writer = PostgresConcepts(running.database), Model(), Writer()
    layers, name = await make_layers(running), f"Nerrit {uuid.uuid4()}"
    for number, (layer, period) in enumerate(told):
        new = NewConcept.of(name, "character", f"Text {number}.", {}, period=period)
        put = await store.put_concept(layers[layer], writer.key(), uuid.uuid4(), new)
        model.said.append(Said(layer, name, period, put.record_time, put.description))
    for recorded in model.moments():
        for valid in [*DAYS, FAR]:
            found = await store.get_concept(layers[2], name, AsOf(valid, recorded))
            expected = model.seen_at(name, valid, recorded)
            assert (found and found.description) == expected
            if found is not None:
                assert holds(found.period, valid)
    # No moments given are the latest ones.
    latest = await store.get_concept(layers[2], name, AsOf())
    assert (latest and latest.description) == model.seen_at(name, FAR, FAR)


@AS_MANY_AS_FIT
@given(told=writes)
async def test_the_periods_of_a_history_never_overlap_and_lose_nothing(
    running: RunningKnowledgeBase, told: Sequence[tuple[int, Period]]
) -> None:
    store, writer = PostgresConcepts(running.database), Writer()
    layer, name = (await make_layers(running))[1], "Nerrit"
    for number, (_, period) in enumerate(told):
        new = NewConcept.of(name, "character", f"Text {number}.", {}, period=period)
        await store.put_concept(layer, writer.key(), uuid.uuid4(), new)
    history = await store.list_concept_versions(layer, name, None, 100)
    assert [version.concept.description for version in history] == [
        f"Text {number}." for number in reversed(range(len(told)))
    ]
    every = [believed for version in history for believed in version.periods]
    for each in every:
        # The moment at which a period begins, when it was recorded, is of that period alone.
        inside = each.valid.valid_from or YEAR_1200 - timedelta(days=100)
        sharing = [
            other
            for other in every
            if holds(other.valid, inside)
            and other.record_time <= each.record_time
            and (other.superseded_time is None or each.record_time < other.superseded_time)
        ]
        assert sharing == [each]
    # A version holds at first for as long as its writer said.
    for version in history:
        assert version.periods[0].valid == version.concept.period
        assert version.periods[0].record_time == version.concept.record_time


fact_steps = st.lists(
    st.tuples(
        layer_numbers,
        st.sampled_from(["inn", "inn", "ruin"]),
        st.booleans(),
        st.one_of(periods(), st.integers(0, LAST_DAY), st.none()),
    ),
    min_size=1,
    max_size=7,
)


@AS_MANY_AS_FIT
@given(steps=fact_steps)
async def test_facts_as_of_any_two_moments_are_what_was_asserted_and_not_retracted(
    running: RunningKnowledgeBase,
    steps: Sequence[tuple[int, str, bool, Period | int | None]],
) -> None:
    store, model, writer = PostgresFacts(running.database), Model(), Writer()
    layers, subject = await make_layers(running), f"Nerrit {uuid.uuid4()}"
    new = NewConcept.of(subject, "character", "Text.", {})
    shared = PostgresConcepts(running.database)
    await shared.put_concept(layers[0], writer.key(), uuid.uuid4(), new)
    ids: dict[tuple[int, str], uuid.UUID] = {}
    for layer, place, single, what in steps:
        if isinstance(what, Period):
            fact = NewFact(subject, "lives_in", place, False, single, what, "", None)
            (said,) = await store.assert_facts(layers[layer], writer.key(), [(uuid.uuid4(), fact)])
            assert ids.setdefault((layer, place), said.fact_id) == said.fact_id
            model.said.append(Said(layer, place, what, said.record_time, (place, single)))
        elif (layer, place) in ids:
            until = None if what is None else day(what)
            remaining = await store.retract_fact(
                layers[layer], writer.key(), ids[layer, place], until
            )
            # What is recorded then is not told; it is later than all before, and believed now.
            after = max(each.recorded for each in model.said) + timedelta(hours=1)
            model.said.append(Said(layer, place, Period(valid_from=until), after, None))
            assert all(period.superseded_time is None for period in remaining)
    for valid in [*DAYS, FAR]:
        query = FactQuery.of(subject, "lives_in", AsOf(valid))
        found = await store.list_facts(layers[2], query, None, 100)
        expected = set()
        for place in ("inn", "ruin"):
            for layer in (2, 1, 0):
                value = model.layer_at(layer, place, valid, FAR)
                narrower = [
                    (other, model.layer_at(near, other, valid, FAR))
                    for near in range(layer + 1, 3)
                    for other in ("inn", "ruin")
                ]
                if value is not None and not any(
                    against is not None and (other == place or against[1] or value[1])  # type: ignore[index]  # a place and whether it is the only one
                    for other, against in narrower
                ):
                    expected.add((place, layer))
        layer_of = {SHARED_WORLD: 0, layers[1].world_id: 1}
        assert {
            (fact.object, 2 if fact.player_id else layer_of[fact.world_id]) for fact in found
        } == expected


@AS_MANY_AS_FIT
@given(
    steps=st.lists(
        st.tuples(
            layer_numbers,
            st.sampled_from([0.25, 0.5, 1.0]),
            st.one_of(periods(), st.integers(0, LAST_DAY)),
        ),
        min_size=1,
        max_size=6,
    ),
)
async def test_relationships_as_of_any_two_moments_are_what_was_said_last_of_them(
    running: RunningKnowledgeBase,
    steps: Sequence[tuple[int, float, Period | int]],
) -> None:
    store, model, writer = PostgresConcepts(running.database), Model(), Writer()
    layers, name = await make_layers(running), f"Nerrit {uuid.uuid4()}"
    for each in (name, f"{name} 2"):
        new = NewConcept.of(each, "character", "Text.", {})
        await store.put_concept(layers[0], writer.key(), uuid.uuid4(), new)
    known: set[int] = set()
    for layer, strength, what in steps:
        if isinstance(what, Period):
            tie = NewRelationship(name, f"{name} 2", "ally_of", strength, what)
            said = await store.relate(layers[layer], writer.key(), uuid.uuid4(), tie)
            known.add(layer)
            model.said.append(Said(layer, "tie", what, said.record_time, strength))
        elif layer in known:
            await store.end_relationship(
                layers[layer],
                writer.key(),
                from_concept=name,
                to_concept=f"{name} 2",
                kind="ally_of",
                valid_until=day(what),
            )
            after = max(each.recorded for each in model.said) + timedelta(hours=1)
            model.said.append(Said(layer, "tie", Period(day(what)), after, None))
    for valid in [*DAYS, FAR]:
        found = await store.list_relationships(layers[2], name, AsOf(valid), None, 10)
        expected = model.seen_at("tie", valid, FAR)
        assert [tie.strength for tie in found] == ([] if expected is None else [expected])


async def test_a_moment_in_the_past_of_the_record_never_changes(
    running: RunningKnowledgeBase,
) -> None:
    store, writer = PostgresConcepts(running.database), Writer()
    layer = (await make_layers(running))[1]
    seen = []
    for number in range(5):
        new = NewConcept.of("Nerrit", "character", f"Text {number}.", {}, period=ALWAYS)
        put = await store.put_concept(layer, writer.key(), uuid.uuid4(), new)
        seen.append(put.record_time)
        for index, recorded in enumerate(seen):
            then = await store.get_concept(layer, "Nerrit", AsOf(None, recorded))
            assert then is not None
            assert then.description == f"Text {index}."
    assert seen == sorted(set(seen))
