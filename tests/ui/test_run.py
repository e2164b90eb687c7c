"""The batch job against a real gateway: one that dies, is full, refuses, or asks for a key."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.gateway.served_app import served_app
from tests.ui.mortal_gateway import mortal_gateway
from ui.errors import Busy, Failed, GatewayAway, NotAllowed, TextRefused
from ui.gateway import Gateway
from ui.run import BYTES_AT_ONCE, REQUESTS_AT_ONCE, TEXTS_AT_ONCE, Run
from ui.settings import Settings

pytestmark = pytest.mark.anyio

WORDS = ["좋다", "싫다", "재미", "지루", "최고", "최악", "감동", "실망"]  # the tiny model is sure of each


def texts_of(count: int) -> list[str]:
    return [f"{WORDS[place % len(WORDS)]} 영화" for place in range(count)]


def expected(place: int) -> str:
    return ("positive", "negative")[place % 2]


@asynccontextmanager
async def run_of(url: str, texts: list[str], **settings: object) -> AsyncIterator[Run]:
    async with Gateway(Settings(gateway_url=url, **settings)) as gateway:
        yield Run(gateway, texts, asyncio.Semaphore(REQUESTS_AT_ONCE))


async def until(condition, seconds: float = 20) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)


def assert_all_answered(run: Run) -> None:
    assert run.state == "done"
    assert sorted(run.answers) == list(range(run.total))
    assert {place: answer.prediction for place, (answer, _) in run.answers.items()} == {
        place: expected(place) for place in range(run.total)
    }


async def test_every_text_gets_its_own_answer_and_the_remaining_time_is_told(shared_app) -> None:
    async with run_of(shared_app.url, texts_of(3000)) as run:
        work = asyncio.create_task(run.work())
        await until(lambda: run.seconds_left is not None)
        assert 0 < run.seconds_left < 60
        await work
    assert_all_answered(run)
    assert {version for _, version in run.answers.values()} == {"1"}


async def test_a_gateway_killed_in_the_middle_and_started_again_loses_and_doubles_nothing(
    shared_repository, shared_triton
) -> None:
    with mortal_gateway(shared_repository, shared_triton.grpc_port) as gateway:
        async with run_of(gateway.url, texts_of(20_000)) as run:
            work = asyncio.create_task(run.work())
            await until(lambda: run.done > 2000)
            gateway.kill()
            await until(lambda: isinstance(run.waiting_for, GatewayAway))
            assert 2000 < run.done < run.total
            assert run.state == "running"
            assert run.seconds_left is None
            await asyncio.to_thread(gateway.start)
            await work
    assert_all_answered(run)
    assert not run.refused


async def test_a_refused_text_is_set_aside_and_the_rest_is_answered(shared_app) -> None:
    texts = texts_of(2 * TEXTS_AT_ONCE)
    texts[3], texts[TEXTS_AT_ONCE - 1], texts[300], texts[301] = "\u200b", "좋" * 20_001, "   ", "\t"
    async with run_of(shared_app.url, texts) as run:
        await run.work()
    assert run.state == "done"
    assert {place: error.code for place, error in run.refused.items()} == {
        3: "empty_text",
        TEXTS_AT_ONCE - 1: "payload_too_large",
        300: "empty_text",
        301: "empty_text",
    }
    assert len(run.answers) == len(texts) - 4
    assert all(run.answers[place][0].prediction == expected(place) for place in run.answers)
    assert all(isinstance(error, TextRefused) for error in run.refused.values())


async def test_requests_stay_within_what_a_request_may_hold(shared_app) -> None:
    texts = ["좋다 " * 6000] * 60  # 2.5 MB together
    assert sum(len(text.encode()) for text in texts) > 5 * BYTES_AT_ONCE
    async with run_of(shared_app.url, texts) as run:
        await run.work()
    assert run.done == len(run.answers) == 60


async def test_a_gateway_with_narrower_limits_gets_smaller_requests(shared_repository, shared_triton) -> None:
    with served_app(shared_repository, shared_triton.grpc_port, max_texts=50, max_body_bytes=3000) as gateway:
        async with run_of(gateway.url, texts_of(TEXTS_AT_ONCE)) as run:
            await run.work()
    assert_all_answered(run)


async def test_a_full_gateway_is_asked_again_when_it_said(shared_repository, shared_triton) -> None:
    with served_app(shared_repository, shared_triton.grpc_port, max_texts=256, max_in_flight=800) as gateway:
        async with run_of(gateway.url, texts_of(20_000)) as run, run_of(gateway.url, texts_of(20_000)) as other:
            work = [asyncio.create_task(each.work()) for each in (run, other)]  # four requests, three are let in
            await until(lambda: isinstance(run.waiting_for or other.waiting_for, Busy))
            await asyncio.gather(*work)
    assert_all_answered(run)
    assert_all_answered(other)


async def test_runs_that_share_a_lane_take_turns(shared_app) -> None:
    lane = asyncio.Semaphore(REQUESTS_AT_ONCE)
    async with Gateway(Settings(gateway_url=shared_app.url)) as gateway:
        long, short = (Run(gateway, texts_of(count), lane) for count in (20_000, 1000))
        first = asyncio.create_task(long.work())
        await until(lambda: long.done)
        await short.work()
        assert long.state == "running"
        assert not short.waiting_for
        assert not long.waiting_for
        await first
    assert_all_answered(long)
    assert_all_answered(short)


async def test_a_pause_holds_and_going_on_completes(shared_app) -> None:
    async with run_of(shared_app.url, texts_of(20_000)) as run:
        work = asyncio.create_task(run.work())
        await until(lambda: run.done)
        run.pause()
        await asyncio.sleep(0.3)  # what was on its way
        held = run.done
        await asyncio.sleep(0.3)
        assert run.state == "paused"
        assert run.done == held < run.total
        run.resume()
        await work
    assert_all_answered(run)


@pytest.mark.parametrize("paused", [False, True])
async def test_a_stop_is_heard_at_once_and_the_work_can_go_on_later(shared_app, paused: bool) -> None:
    async with run_of(shared_app.url, texts_of(20_000)) as run:
        work = asyncio.create_task(run.work())
        await until(lambda: run.done)
        if paused:
            run.pause()
        run.stop()
        async with asyncio.timeout(1):
            await work
        assert run.state == "stopped"
        assert 0 < run.done < run.total
        await run.work()
    assert_all_answered(run)


async def test_a_missing_key_stops_the_run_and_loses_no_text(shared_repository, shared_triton) -> None:
    with served_app(shared_repository, shared_triton.grpc_port, api_key="open sesame please") as gateway:
        async with run_of(gateway.url, texts_of(600)) as run:
            with pytest.raises(NotAllowed):
                await run.work()
            assert run.state == "stopped"
            assert not run.refused
        async with run_of(gateway.url, texts_of(600), api_key="open sesame please") as run:
            await run.work()
    assert_all_answered(run)


async def test_an_address_that_is_no_gateway_stops_the_run(shared_page) -> None:
    async with run_of(shared_page, texts_of(40)) as run:
        with pytest.raises(Failed):
            await run.work()
        assert run.state == "stopped"
        assert run.done == 0


async def test_half_a_character_is_asked_as_a_question_mark(shared_app):
    async with Gateway(Settings(gateway_url=shared_app.url)) as gateway:
        (alone,) = (await gateway.predict("영화 \ud83d 좋다")).predictions
        (whole,) = (await gateway.predict_batch(["영화 ? 좋다"])).predictions
    assert alone.probabilities == pytest.approx(whole.probabilities, abs=1e-3)
