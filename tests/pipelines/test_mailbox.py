"""What workers tell arrives in order, once, and is stored when a worker was told so."""

import threading
import time

import pytest
import ray

from pipelines.lineage import Seen
from pipelines.mailbox import MAX_ATTEMPTS, Follower, Mailbox, Message, Post

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]


class Books:
    """Keeps messages; `flush` marks those that are stored."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.stored = 0
        self.lock = threading.Lock()

    def handle(self, message: Message) -> None:
        if message.content == "bad":
            raise OSError("disk full")
        self.messages.append(message)

    def flush(self) -> None:
        with self.lock:
            self.stored = len(self.messages)


@pytest.fixture
def mailbox():
    actor = Mailbox.remote()
    yield actor
    ray.kill(actor)


def post_of(mailbox, rank: int = 0) -> Post:
    return Post(mailbox, ray.get(mailbox.current.remote()).number, rank)


def test_messages_arrive_in_order_and_deliver_waits_until_they_are_stored(mailbox):
    ray.get(mailbox.begin.remote(3))
    books, post = Books(), post_of(mailbox)
    with Follower(mailbox, books):
        for number in range(50):
            post.put("note", str(number))
        post.deliver()
        assert books.stored == 51
        assert books.messages[0] == Message("begin", 3)
        assert [m.content for m in books.messages[1:]] == [str(number) for number in range(50)]
        post.put("note", "last")
    assert books.messages[-1].content == "last"
    assert books.stored == len(books.messages)
    assert 0 < post.seconds < 5


def test_deliver_costs_milliseconds_not_a_poll(mailbox):
    books, post = Books(), post_of(mailbox)
    with Follower(mailbox, books):
        time.sleep(0.1)
        took = []
        for _ in range(5):
            began = time.perf_counter()
            post.put("note", "x")
            post.deliver()
            took.append(time.perf_counter() - began)
    assert min(took) < 0.3


def test_a_message_that_cannot_be_stored_does_not_stop_the_others(mailbox):
    books, post = Books(), post_of(mailbox)
    with Follower(mailbox, books) as follower:
        for text in ("a", "bad", "b"):
            post.put("note", text)
        post.deliver()
    assert [m.content for m in books.messages] == ["a", "b"]
    assert isinstance(follower.error, OSError)


def test_what_an_earlier_group_still_says_is_dropped(mailbox):
    ray.get(mailbox.begin.remote(0))
    old = post_of(mailbox)
    ray.get(mailbox.begin.remote(0))
    books = Books()
    with Follower(mailbox, books):
        old.put("note", "from the dead")
        old.deliver()
    assert [m.kind for m in books.messages] == ["begin", "begin"]


def attempt(mailbox, step: int, furthest: int) -> str | None:
    """A group that begins at `step`, gets as far as `furthest` and is lost; why it would not have begun."""
    ray.get(mailbox.begin.remote(step))
    post = post_of(mailbox, 1)
    post.put("images", Seen(1, furthest, []))
    post.failed(ValueError(f"at {furthest}\nand more"))
    return ray.get(mailbox.current.remote()).fatal


def test_a_training_that_gets_nowhere_is_given_up(mailbox):
    assert [attempt(mailbox, 20, 40) for _ in range(MAX_ATTEMPTS)] == [None] * MAX_ATTEMPTS
    fatal = attempt(mailbox, 20, 40)
    assert fatal == "the workers failed 5 times in a row after step 40; the last time: worker 1: ValueError: at 40"


def test_machines_that_vanish_here_and_there_are_no_reason_to_give_up(mailbox):
    for number in range(3 * MAX_ATTEMPTS):
        assert attempt(mailbox, 20, 20 + 20 * (number % 4)) is None


def test_progress_starts_the_count_anew(mailbox):
    for _ in range(3):
        assert [attempt(mailbox, 20, 40) for _ in range(MAX_ATTEMPTS - 1)] == [None] * (MAX_ATTEMPTS - 1)
        assert attempt(mailbox, 40, 60) is None


def test_all_workers_of_a_group_get_one_verdict(mailbox):
    ray.get(mailbox.begin.remote(0))
    assert ray.get(mailbox.current.remote()).fatal is None
    post_of(mailbox).fatal("an image")
    assert ray.get(mailbox.current.remote()).fatal is None  # a slower one of the same group
    assert ray.get(mailbox.ended.remote()) == "an image"
    ray.get(mailbox.begin.remote(0))
    assert ray.get(mailbox.current.remote()).fatal == "an image"


def test_the_worker_that_knows_the_reason_is_believed(mailbox):
    post_of(mailbox, 0).fatal("some gradient", certain=False)
    post_of(mailbox, 1).fatal("image 7")
    post_of(mailbox, 2).fatal("image 8")
    assert ray.get(mailbox.ended.remote()) == "image 7"
