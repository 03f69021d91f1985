"""Reference implementation of the published model: numpy, float64, one sequence at a time."""

import numpy as np


def log_likelihoods(prior, codes, orders, labels):
    """Return log p(tokens | class, order), of shape (n_images, n_orders, n_classes)."""
    w = {name: p.detach().cpu().double().numpy() for name, p in prior.state_dict().items()}
    out = np.zeros((len(codes), len(orders), len(labels)))
    for i, image in enumerate(codes):
        for k, order in enumerate(orders):
            for c, label in enumerate(labels):
                logits = sequence_logits(w, image, order, label, prior.grid, prior.n_head)
                for step, place in enumerate(order):
                    row = logits[1 + 2 * step]
                    out[i, k, c] += row[image[place]] - np.log(np.exp(row).sum())
    return out


def sequence_logits(w, image, order, label, grid, n_head):
    """Return the logits at every position of [class, p1, t1, p2, t2, ...]."""
    x = sequence_states(w, image, order, label, grid, n_head)
    return norm(x, w["norm.weight"]) @ w["output.weight"].T


def sequence_states(w, image, order, label, grid, n_head):
    """Return the residual stream at every position after the last layer."""
    dim = w["norm.weight"].size
    n_layer = 1 + max(int(name.split(".")[1]) for name in w if name.startswith("layers"))
    rotations = [np.zeros((dim // n_head, dim // n_head))]  # of the class token
    sequence = [w["cls_embedding.embedding_table.weight"][label]]
    for place in order:
        turn = rotation(place // grid[1], place % grid[1], dim // n_head)
        instruction = w["pos_instruct_embeddings"].reshape(n_head, -1) @ turn.T
        sequence += [instruction.reshape(-1), w["tok_embeddings.weight"][image[place]]]
        rotations += [turn, turn]
    x = np.array(sequence)
    for n in range(n_layer):
        layer = {k.split(".", 2)[2]: v for k, v in w.items() if k.startswith(f"layers.{n}.")}
        x = x + attention(norm(x, layer["attention_norm.weight"]), layer, rotations, n_head)
        y = norm(x, layer["ffn_norm.weight"])
        gate = y @ layer["feed_forward.w1.weight"].T
        up = y @ layer["feed_forward.w3.weight"].T
        x = x + (gate / (1 + np.exp(-gate)) * up) @ layer["feed_forward.w2.weight"].T
    return x


def attention(x, layer, rotations, n_head):
    q, k, v = np.split(x @ layer["attention.wqkv.weight"].T, 3, axis=1)
    heads = []
    for q_h, k_h, v_h in zip(*(np.split(a, n_head, axis=1) for a in (q, k, v)), strict=True):
        q_h = np.array([turn @ row for turn, row in zip(rotations, q_h, strict=True)])
        k_h = np.array([turn @ row for turn, row in zip(rotations, k_h, strict=True)])
        out = np.zeros_like(v_h)
        for s in range(len(x)):
            score = np.exp(k_h[: s + 1] @ q_h[s] / np.sqrt(q_h.shape[1]))
            out[s] = score @ v_h[: s + 1] / score.sum()
        heads.append(out)
    return np.concatenate(heads, axis=1) @ layer["attention.wo.weight"].T


def rotation(row, col, head_dim):
    """Return the matrix that rotates pairs: the first half by row, the rest by column."""
    turn = np.zeros((head_dim, head_dim))
    quarter = head_dim // 4
    for pair in range(head_dim // 2):
        place, j = (row, pair) if pair < quarter else (col, pair - quarter)
        angle = place * 10000.0 ** (-2 * j / (head_dim / 2))
        a, b = 2 * pair, 2 * pair + 1
        turn[a, a] = turn[b, b] = np.cos(angle)
        turn[a, b], turn[b, a] = -np.sin(angle), np.sin(angle)
    return turn


def norm(x, weight):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * weight
