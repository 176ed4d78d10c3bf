"""What passes between processes that train together."""

import pytest
import torch

from sjepa.core.errors import ToldByMain, UserError
from sjepa.core.ranks import ALONE
from tests.support.processes import in_processes


def exchange(ranks):
    rank = ranks.rank
    sums, counts = torch.full((2, 2), float(rank)), torch.tensor([rank, 1])
    ranks.add_up(sums, counts)
    rows = torch.arange(rank).float()[:, None] + 10 * rank  # as many as the rank's number
    told = []

    def work():
        told.append(rank)
        if len(told) == 1 and rank == 0:
            raise UserError("told by main")
        return rank

    try:
        ranks.main_first(work)
    except (UserError, ToldByMain) as error:
        told.append(type(error).__name__)
    told.append(ranks.main_first(lambda: rank))
    return {
        "sums": sums.tolist(), "counts": counts.tolist(), "rows": ranks.rows(rows).tolist(), "most": ranks.rows(rows, most=2).tolist(),
        "none": ranks.rows(rows[:0]).shape, "stack": ranks.stack(torch.tensor([rank, torch.inf])).tolist(), "each": ranks.each(f"r{rank}"),
        "main": ranks.from_main(f"r{rank}"), "any": ranks.any(rank == 1), "nobody": ranks.any(False), "told": told, "is_main": ranks.is_main,
    }  # fmt: skip


@pytest.mark.slow
def test_three_processes_share_what_they_have(tmp_path):
    answers = in_processes(3, tmp_path, exchange)
    told = [answer.pop("told") for answer in answers]
    assert [answer.pop("is_main") for answer in answers] == [True, False, False]
    assert answers[0] == answers[1] == answers[2]
    infinity = float("inf")
    assert answers[0] == {
        "sums": [[3.0, 3.0], [3.0, 3.0]], "counts": [3, 3], "rows": [[10.0], [20.0], [21.0]], "most": [[10.0], [20.0]], "none": (0, 1),
        "stack": [[0.0, infinity], [1.0, infinity], [2.0, infinity]], "each": ["r0", "r1", "r2"], "main": "r0", "any": True, "nobody": False,
    }  # fmt: skip
    # the others never begin what failed in the main process, and what went well there they do
    # themselves
    assert told == [[0, "UserError", 0], ["ToldByMain", 1], ["ToldByMain", 2]]


def test_one_process_alone_keeps_what_it_has():
    ranks, tensor = ALONE, torch.arange(3)
    ranks.add_up(tensor)
    assert tensor.tolist() == [0, 1, 2]
    assert ranks.rows(tensor, most=2).tolist() == [0, 1]
    assert ranks.stack(tensor).tolist() == [[0, 1, 2]]
    assert (ranks.each("a"), ranks.from_main("a"), ranks.any(True), ranks.main_first(lambda: 7)) == (
        ["a"],
        "a",
        True,
        7,
    )
    with pytest.raises(UserError, match=r"^x$"):
        ranks.main_first(lambda: (_ for _ in ()).throw(UserError("x")))
