from foundry.spec.lifecycle import TRANSITIONS, Status


def test_every_status_reaches_an_end() -> None:
    for start in Status:
        seen, frontier = {start}, [start]
        while frontier:
            for following in TRANSITIONS[frontier.pop()] - seen:
                seen.add(following)
                frontier.append(following)
        assert any(status.is_terminal for status in seen), start


def test_terminal_statuses_are_those_that_nothing_follows() -> None:
    assert {s for s in Status if s.is_terminal} == {Status.SUCCEEDED, Status.FAILED, Status.CANCELLED}
