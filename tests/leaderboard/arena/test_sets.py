import dataclasses
import json
import uuid
from collections import Counter
from http import HTTPStatus

import pytest

from quantarena.leaderboard.arena.engines.ksort import KSortStandings
from quantarena.leaderboard.arena.engines.protocols import Engine
from quantarena.leaderboard.arena.events import DESTROYED, INTACT, digest
from quantarena.leaderboard.arena.log import Log, LogError
from quantarena.leaderboard.arena.sets import Refused


def refused(future):
    with pytest.raises(Refused) as fault:
        future.result()
    return fault.value.status


def votes_of(desk, judge, count, make_answer, **answer):
    for _ in range(count):
        desk.answer(judge, make_answer(desk.issue(judge).result(), **answer)).result()


# ---- issuing -----------------------------------------------------------------------------------


def test_a_set_shows_k_images_of_one_prompt(open_desk, ann):
    desk = open_desk()
    issued = desk.issue(ann).result()
    assert len({placed.contestant for placed in issued.shown}) == 4
    assert {placed.path.name for placed in issued.shown} == {f"{issued.image:04d}.png"}
    assert issued.reference.path.name == f"{issued.image:04d}.png"
    tokens = [placed.token for placed in (*issued.shown, issued.reference)]
    assert len(set(tokens)) == 5
    assert all(desk.placed(token).token == token for token in tokens)
    assert desk.placed("0" * 32) is None


def test_asking_again_gives_the_same_set_so_that_nobody_picks(open_desk, ann, bob):
    desk = open_desk()
    first = desk.issue(ann).result()
    assert desk.issue(ann).result() == first
    second = desk.issue(ann, [first.id]).result()
    assert second.id != first.id
    assert desk.issue(ann).result() == first
    assert desk.issue(ann, [first.id]).result() == second
    assert refused(desk.issue(ann, [first.id, second.id])) is HTTPStatus.CONFLICT
    assert desk.issue(bob).result().id not in (first.id, second.id)


def test_open_sets_survive_a_restart(open_desk, log, ann, make_answer):
    first = open_desk().issue(ann).result()
    again = open_desk()
    assert again.issue(ann).result() == first
    assert again.placed(first.shown[0].token) == first.shown[0]
    assert again.answer(ann, make_answer(first)).result().event.set == first.id


def test_sets_whose_files_are_gone_are_not_offered_again(make_results, make_grid, tmp_path,
                                                         open_desk, ann):  # fmt: skip
    folder = tmp_path / "r"
    make_results(folder, plan=make_grid(images=4, workloads=("synthetic-shapes",)))
    first = open_desk(folder).issue(ann).result()
    folder.rename(tmp_path / "moved")
    second = open_desk(tmp_path / "moved").issue(ann).result()
    assert second.id != first.id
    assert all(placed.path.is_file() for placed in second.shown)


def test_display_order_is_random_and_every_contestant_gets_looks(open_desk, ann, make_answer):
    desk = open_desk()
    firsts, looks, orders = Counter(), Counter(), 0
    for _ in range(60):
        issued = desk.issue(ann).result()
        names = [placed.contestant for placed in issued.shown]
        firsts[names[0]] += 1
        looks.update(names)
        orders += names == sorted(names)
        desk.answer(ann, make_answer(issued)).result()
    assert orders < 15
    assert len(firsts) > 5
    every = {name for names in desk.catalogue.contestants.values() for name in names}
    assert set(looks) == every


def test_a_judge_sees_each_prompt_of_a_board_once_before_any_again(open_desk, ann, make_answer):
    desk = open_desk()
    seen = {}
    for _ in range(30):
        issued = desk.issue(ann).result()
        seen.setdefault(issued.board, []).append(issued.scene)
        desk.answer(ann, make_answer(issued)).result()
    assert {len(set(scenes[:8])) for scenes in seen.values()} == {8}
    assert min(len(scenes) for scenes in seen.values()) > 8


def test_no_judge_compares_the_same_images_twice(open_desk, ann, make_answer):
    desk = open_desk()
    asked = []
    for _ in range(80):
        issued = desk.issue(ann).result()
        asked.append((issued.scene, frozenset(p.contestant for p in issued.shown)))
        desk.answer(ann, make_answer(issued)).result()
    assert len(set(asked)) == 80


def test_boards_get_equal_looks_for_each_contestant(open_desk, ann, make_answer):
    desk = open_desk()
    votes_of(desk, ann, 16, make_answer)
    looks = desk.memory.board_looks
    rates = [looks[board] / len(names) for board, names in desk.catalogue.contestants.items()]
    assert max(rates) - min(rates) <= 1 / 5


def test_the_choice_can_be_made_again_from_the_log(open_desk, ann, make_answer, tmp_path):
    def names(path):
        with Log(path) as log:
            desk = open_desk(log=log)
            sets = []
            for _ in range(8):
                issued = desk.issue(ann).result()
                sets.append((issued.scene, [p.contestant for p in issued.shown]))
                desk.answer(ann, make_answer(issued)).result()
            return sets

    assert names(tmp_path / "one.sqlite") == names(tmp_path / "two.sqlite")


def test_any_engine_can_choose(open_desk, ann):
    class Last:
        name = "last-1"

        def next_set(self, past, contestants, *, size, seed):
            return tuple(contestants[-size:])

    desk = open_desk(engine=Engine(Last(), KSortStandings()), size=3)
    issued = desk.issue(ann).result()
    scene = next(scene for scene in desk.catalogue.scenes if scene.key == issued.scene)
    assert issued.matchmaker.name == "last-1"
    assert {placed.contestant for placed in issued.shown} == set(sorted(scene.files)[-3:])


# ---- answers -----------------------------------------------------------------------------------


def test_an_answer_is_an_event_with_all_that_the_ranking_needs(open_desk, ann, make_answer, log):
    desk = open_desk(page="p1")
    issued = desk.issue(ann).result()
    receipt = desk.answer(ann, make_answer(issued, [[3], [1, 0], [2]], dwell_ms=1)).result()
    (event,) = log.events()
    assert receipt.event == event
    assert event.tiers == ((3,), (0, 1), (2,))
    assert [one.contestant for one in event.shown] == [p.contestant for p in issued.shown]
    assert event.prompt_sha256 == digest(issued.prompt)
    assert (event.judge, event.page, event.set) == (ann.id, "p1", issued.id)
    assert desk.memory.votes[event.board] == [event.vote()]


def test_a_double_submit_counts_once_and_gets_the_same_receipt(open_desk, ann, make_answer, log):
    desk = open_desk()
    answer = make_answer(desk.issue(ann).result())
    first, second = desk.answer(ann, answer).result(), desk.answer(ann, answer).result()
    assert (first.duplicate, second.duplicate) == (False, True)
    assert first.event == second.event
    assert len(log.events()) == 1


def test_the_same_id_with_another_answer_is_a_conflict(open_desk, ann, make_answer, log):
    desk = open_desk()
    issued = desk.issue(ann).result()
    answer = make_answer(issued)
    desk.answer(ann, answer).result()
    other = dataclasses.replace(answer, tiers=((0, 1, 2, 3),))
    assert refused(desk.answer(ann, other)) is HTTPStatus.CONFLICT
    again = dataclasses.replace(answer, id=str(uuid.uuid4()))
    assert refused(desk.answer(ann, again)) is HTTPStatus.CONFLICT
    following = dataclasses.replace(answer, set=desk.issue(ann).result().id)
    assert refused(desk.answer(ann, following)) is HTTPStatus.CONFLICT
    assert len(log.events()) == 1


def test_sets_of_others_and_sets_of_nobody_are_refused(open_desk, ann, bob, make_answer, log):
    desk = open_desk()
    issued = desk.issue(ann).result()
    assert refused(desk.answer(bob, make_answer(issued))) is HTTPStatus.FORBIDDEN
    forged = dataclasses.replace(issued, id="f" * 32)
    assert refused(desk.answer(ann, make_answer(forged))) is HTTPStatus.NOT_FOUND
    assert log.events() == []
    assert desk.answer(ann, make_answer(issued)).result()


def test_an_expired_set_is_gone_and_another_is_issued(open_desk, ann, make_answer, clock, log):
    desk = open_desk(expires=3600)
    issued = desk.issue(ann).result()
    clock.now += 3601
    assert refused(desk.answer(ann, make_answer(issued))) is HTTPStatus.GONE
    assert desk.issue(ann).result().id != issued.id
    assert log.events() == []


def test_an_answer_that_was_taken_in_time_is_known_after_the_set_expired(
    open_desk, ann, make_answer, clock
):
    desk = open_desk(expires=3600)
    answer = make_answer(desk.issue(ann).result())
    desk.answer(ann, answer).result()
    clock.now += 3601
    assert desk.answer(ann, answer).result().duplicate


@pytest.mark.parametrize(
    ("mode", "tiers"),
    [("rank", [[0]]), ("rank", [[0, 1, 2, 3, 4]]), ("bad", [[0], [1, 2, 3]]), ("skip", [[0]])],
)
def test_answers_that_do_not_fit_are_refused(open_desk, ann, make_answer, log, mode, tiers):
    desk = open_desk()
    issued = desk.issue(ann).result()
    answer = make_answer(issued, tuple(map(tuple, tiers)), mode=mode)
    assert refused(desk.answer(ann, answer)) is HTTPStatus.UNPROCESSABLE_ENTITY
    assert log.events() == []


def test_skips_and_all_bad(open_desk, ann, make_answer, log):
    desk = open_desk()
    votes_of(desk, ann, 1, make_answer, tiers=(), mode="skip")
    votes_of(desk, ann, 1, make_answer, tiers=((0, 1, 2, 3),), mode="bad")
    skip, bad = log.events()
    assert desk.memory.votes.get(skip.board, []) in ([], [bad.vote()])
    assert desk.memory.votes[bad.board] == [bad.vote()]


def test_dwell_is_no_longer_than_the_server_saw(open_desk, ann, make_answer, clock, log):
    desk = open_desk()
    issued = desk.issue(ann).result()
    clock.now += 5
    desk.answer(ann, make_answer(issued, dwell_ms=10**12)).result()
    assert 4900 < log.events()[0].dwell_ms < 6000


def test_the_next_set_comes_with_the_receipt(open_desk, ann, make_answer):
    desk = open_desk()
    first = desk.issue(ann).result()
    second = desk.issue(ann, [first.id]).result()
    receipt = desk.answer(ann, make_answer(first), [second.id]).result()
    assert receipt.following.id not in (first.id, second.id)
    # A page that lost the receipt asks again, and is told the same set.
    assert desk.issue(ann, [second.id]).result() == receipt.following


def test_an_engine_that_breaks_loses_no_vote(open_desk, ann, make_answer, log):
    desk = open_desk()
    issued = desk.issue(ann).result()

    def broken(*args, **kwargs):
        raise ZeroDivisionError

    desk._dealer.deal = broken
    receipt = desk.answer(ann, make_answer(issued), []).result()
    assert receipt.following is None
    assert log.events() == [receipt.event]


def test_a_commit_that_fails_leaves_no_trace_in_memory(open_desk, ann, make_answer, log):
    desk = open_desk()
    issued = desk.issue(ann).result()
    answer = make_answer(issued)

    def spoil(db):
        desk._answer(db, ann, answer)
        db.execute("ROLLBACK")

    with pytest.raises(LogError):
        log.transact(spoil).result()
    assert log.events() == []
    assert desk.issue(ann).result() == issued
    assert desk.memory.votes[issued.board] == []
    assert not desk.answer(ann, answer).result().duplicate


def test_votes_of_another_process_are_noticed(open_desk, ann, bob, make_answer, log):
    desk = open_desk()
    with Log(log.path) as other:
        votes_of(open_desk(log=other), bob, 3, make_answer)
    votes_of(desk, ann, 1, make_answer)
    assert sum(map(len, desk.memory.votes.values())) == 4


def test_a_void_is_noticed(open_desk, ann, make_answer, make_void, log):
    desk = open_desk()
    votes_of(desk, ann, 3, make_answer)
    log.append([make_void(log.events()[1])])
    desk.issue(ann).result()
    assert sum(map(len, desk.memory.votes.values())) == 2
    assert desk.memory.revision == 4


# ---- checks and repetitions --------------------------------------------------------------------


def test_gold_sets_do_not_count_and_name_their_images(open_desk, ann, make_answer):
    desk = open_desk(gold=0.5)
    kinds = Counter()
    for _ in range(60):
        issued = desk.issue(ann).result()
        kinds[issued.purpose] += 1
        names = [placed.contestant for placed in issued.shown]
        assert len(names) == 4
        if issued.purpose == "gold-order":
            treated = {p.contestant: p.treatment for p in issued.shown}
            assert (treated[INTACT], treated[DESTROYED]) == ("", "destroy")
            assert len(set(names)) == 4
        elif issued.purpose == "gold-tie":
            assert len(set(names)) == 3
        desk.answer(ann, make_answer(issued)).result()
    assert kinds["gold-order"] > 5
    assert kinds["gold-tie"] > 5
    assert sum(map(len, desk.memory.votes.values())) == kinds["rank"]


def test_repeats_are_old_sets_of_the_same_judge_asked_once_more(open_desk, ann, bob, make_answer):
    desk = open_desk(repeats=0.5)
    first = {}
    repeated = Counter()
    for number in range(60):
        judge = (ann, bob)[number % 2]
        issued = desk.issue(judge).result()
        content = (judge.id, issued.scene, *sorted(p.contestant for p in issued.shown))
        if issued.purpose == "repeat":
            repeated[content] += 1
            assert number // 2 - first[content] > 5
        else:
            assert content not in first
            first[content] = number // 2
        desk.answer(judge, make_answer(issued)).result()
    assert len(repeated) > 8
    assert set(repeated.values()) == {1}
    assert sum(map(len, desk.memory.votes.values())) == 60 - len(repeated)


@pytest.mark.parametrize("size", [2, 3, 8])
def test_every_size(open_desk, ann, make_answer, size):
    desk = open_desk(size=size, gold=0.4)
    for _ in range(25):
        issued = desk.issue(ann).result()
        assert 2 <= len(issued.shown) <= size
        desk.answer(ann, make_answer(issued)).result()


@pytest.mark.parametrize("size", [2, 3, 4])
def test_without_full_precision_there_is_nothing_to_spoil(
    open_desk, ann, make_answer, make_results, make_grid, tmp_path, size
):
    folder = tmp_path / "r"
    make_results(folder, plan=make_grid(images=4, workloads=("synthetic-shapes",)))
    for path in (folder / "rows").glob("*.json"):
        if json.loads(path.read_text())["cell"]["method"] == "fp":
            path.unlink()
    desk = open_desk(folder, task="preference", reference=False, size=size, gold=0.5)
    purposes = set()
    for _ in range(25):
        issued = desk.issue(ann).result()
        purposes.add(issued.purpose)
        assert len(issued.shown) == size
        assert issued.reference is None
        desk.answer(ann, make_answer(issued)).result()
    assert purposes == {"rank", "gold-tie"}


def test_a_voter_learns_nothing_from_a_set(open_desk, ann):
    from quantarena.leaderboard.arena.web.app import set_view

    desk = open_desk()
    issued = desk.issue(ann).result()
    text = json.dumps(set_view(issued))
    for placed in (*issued.shown, issued.reference):
        assert placed.contestant == "fp" or placed.contestant not in text
        assert placed.path.parent.name not in text
        assert placed.sha256 not in text
    assert issued.purpose not in text.replace('"rank"', "")
