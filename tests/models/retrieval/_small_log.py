"""Small logs for the tests of retrieval models, and a step of training."""

import torch
from safetensors.torch import load, save

from models.recommend.retrieval._log import Log


def random_log(users: int = 12, items: int = 9, pairs: int = 40, seed: int = 0) -> Log:
    """Pairs at random; the last user and the last item have none."""
    draw = torch.Generator().manual_seed(seed)
    user = torch.randint(0, users - 1, (pairs,), generator=draw)
    return Log.of(user, torch.randint(0, items - 1, (pairs,), generator=draw), users, items)


def blocks(users: int = 60, items: int = 40, groups: int = 4, seed: int = 0) -> tuple[Log, Log]:
    """Each user buys 5 items of its group, of which one is held out; and one item that half of all users buy."""
    draw = torch.Generator().manual_seed(seed)
    train, held, size = [], [], items // groups
    for user in range(users):
        first = user % groups * size + 1
        bought = first + torch.randperm(size - 1, generator=draw)[:5]
        train += [(user, int(item)) for item in bought[:4]] + ([(user, 0)] if user % 2 else [])
        held.append((user, int(bought[4])))
    return tuple(Log.of(*torch.tensor(pairs).T, users, items) for pairs in (train, held))


def recall(score_UI: torch.Tensor, train: Log, held: Log, k: int = 5) -> float:
    """Share of the held-out items among each user's k best unseen ones."""
    score_UI = score_UI.clone()
    score_UI[train.user, train.item] = -torch.inf
    best = score_UI.topk(k).indices
    return (best[held.user] == held.item[:, None]).any(-1).float().mean().item()


def unlike_after_resume(make, log: Log, negatives=None) -> list[str]:
    """What three steps, a checkpoint and three more leave otherwise than six steps do.

    Args:
        make: seed -> a model.
    """
    unbroken, broken, again = make(1), make(1), make(2)  # the last with other weights and histories
    run(unbroken, log, range(6), negatives=negatives)
    _, optimizer = run(broken, log, range(3), negatives=negatives)
    again.load_state_dict(load(save(broken.state_dict())))
    resumed = torch.optim.Adam(again.parameters(), 0.01)
    resumed.load_state_dict(optimizer.state_dict())
    run(again, log, range(3, 6), optimizer=resumed, negatives=negatives)
    left, whole = again.state_dict(), unbroken.state_dict()
    return [name for name, value in whole.items() if not torch.equal(value, left[name])]


def run(model, log: Log, steps: range, batch: int = 16, rate: float = 0.01, optimizer=None, negatives=None):
    """Train on batches that follow from the step's number; returns the last loss and the optimizer."""
    optimizer = optimizer or torch.optim.Adam(model.parameters(), rate)
    for step in steps:
        draw = torch.Generator().manual_seed(step)
        place = torch.randint(0, len(log), (batch,), generator=draw)
        rows = [log.user[place], log.item[place]]
        if negatives is not None:
            rows.append(negatives.draw(rows[0], model.negatives, draw))
        optimizer.zero_grad()
        loss, _ = model(*rows)
        loss.backward()
        optimizer.step()
        model.after_step()
    return loss.item(), optimizer
