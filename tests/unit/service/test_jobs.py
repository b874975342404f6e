"""The transition table."""

from service.jobs.states import LIVE_STATES, TERMINAL_STATES, TRANSITIONS, JobState, may_become


def test_terminal_states_never_change() -> None:
    assert {state for state in JobState if not TRANSITIONS[state]} == TERMINAL_STATES


def test_every_live_state_can_be_cancelled_and_can_fail() -> None:
    for state in LIVE_STATES - {JobState.CANCELLING}:
        assert may_become(state, JobState.CANCELLED) or may_become(state, JobState.CANCELLING)
        assert may_become(state, JobState.FAILED)


def test_every_state_is_reached_from_queued() -> None:
    reached = {JobState.QUEUED}
    while more := {new for state in reached for new in TRANSITIONS[state]} - reached:
        reached |= more
    assert reached == set(JobState)
