"""The interval of logged steps, and when it widens."""

import pytest

from builder.stats.budget import Budget


def run(budget, steps, seconds, wall_of_a_step, extra=0.0):
    """Books logged steps as the callback does: each is weighed one logged step later."""
    said, clock = [], (0.0, 0.0, 0.0)
    for step in range(1, steps + 1):
        if budget.is_due(step):
            more = extra if budget.steps % 10 == 0 else 0.0
            said.append(budget.weigh(step, *clock))
            budget.book(seconds + more)
            clock = (seconds, more, wall_of_a_step)
    return [words for words in said if words]


def test_multiples_of_the_interval_are_due():
    budget = Budget(5, None, 10)
    assert [step for step in range(1, 16) if budget.is_due(step)] == [5, 10, 15]


def test_the_interval_stays_where_logging_is_cheap():
    budget = Budget(50, 0.02, 10)
    assert run(budget, 5000, seconds=0.05, wall_of_a_step=0.1) == []
    assert (budget.every, budget.steps) == (50, 100)
    assert budget.account(505.0)["share"] == pytest.approx(0.05 * 100 / 505, abs=1e-5)


def test_the_interval_doubles_until_logging_keeps_its_share_and_says_so_once():
    budget = Budget(10, 0.02, 10)
    said = run(budget, 2000, seconds=0.05, wall_of_a_step=0.05)
    assert budget.every == 80, "0.05 s of 80 steps of 0.05 s are 1.2 %, of 40 steps 2.4 %"
    assert [interval for _, interval in budget.history] == [10, 20, 40, 80]
    assert len(said) == 1
    assert "max_overhead (2.0%)" in said[0] and "every 20 steps" in said[0]


def test_the_first_logged_step_sets_things_up_and_is_not_held_against_the_budget():
    budget = Budget(10, 0.02, 10)
    budget.weigh(10, 0.0, 0.0, 0.0)
    assert budget.weigh(20, 5.0, 0.0, 0.1) == "" and budget.every == 10
    assert budget.weigh(30, 0.001, 0.0, 0.1) == "" and budget.every == 10


def test_slower_measures_count_by_how_often_they_come():
    budget = Budget(10, 0.02, 10)
    assert run(budget, 1000, seconds=0.001, wall_of_a_step=0.1, extra=0.1) == []
    assert budget.every == 10, "0.1 s of 100 steps of 0.1 s"
    run(budget, 1000, seconds=0.001, wall_of_a_step=0.1, extra=5.0)
    assert budget.every > 10


def test_without_a_budget_nothing_widens():
    budget = Budget(1, None, 10)
    assert run(budget, 100, seconds=1.0, wall_of_a_step=0.001) == []
    assert budget.every == 1


def test_the_account_lists_what_was_spent_and_from_where_on_each_interval_held():
    budget = Budget(2, None, 10)
    budget.book(0.25)
    budget.book(0.5)
    account = {"steps_logged": 2, "seconds": 0.75, "fit_seconds": 75.0, "share": 0.01, "every_n_steps": [[0, 2]]}
    assert budget.account(75.0) == account
    assert Budget(2, None, 10).account(0.0)["share"] == 0.0


def test_the_account_of_a_fit_that_goes_on_adds_up_with_the_one_before_it():
    first, second = Budget(2, None, 10), Budget(2, None, 10)
    first.history.append([10, 4])
    first.history.append([30, 8])
    first.book(0.5)
    second.begin(20)  # a checkpoint at step 20: the interval of step 30 on was taken back
    second.book(0.25)
    account = {"steps_logged": 2, "seconds": 0.75, "fit_seconds": 75.0, "share": 0.01}
    assert second.account(25.0, first.account(50.0)) == account | {"every_n_steps": [[0, 2], [10, 4], [20, 2]]}
    second.begin(10)
    assert second.account(25.0, first.account(50.0))["every_n_steps"] == [[0, 2]]


@pytest.mark.parametrize(
    ("done", "steps", "within", "last"),
    [(0, 1, False, 0), (4, 1, True, 5), (3, 2, True, 5), (5, 4, False, 5), (9, 12, True, 20)],
)
def test_a_batch_of_several_steps_is_due_where_one_of_them_is(done, steps, within, last):
    budget = Budget(5, None, 10)
    assert budget.is_due_within(done, steps) is within
    assert budget.last_due(done + steps) == last
