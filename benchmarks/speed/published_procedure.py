"""A literal implementation of the published classification procedure, as a baseline for speed.

Images are classified one at a time. Each order encodes the image again. Batches of 125 classes run
the whole sequence [class, p1, t1, ..., pn, tn] through every layer. Logits are computed at all
positions, their softmax in float32, and the log-probabilities of the tokens are summed.
"""

import torch
from torch.nn import functional as F

CLASS_BATCH = 125


def sequence_rope(prior, orders):
    """Return the rotations of [class, p1, t1, ...]; the class token's are 0.

    The result is complex, (batch, 1 + 2n, head_dim / 2).
    """
    positions = torch.view_as_complex(prior.rope)[orders].repeat_interleave(2, 1)
    return torch.cat([torch.zeros_like(positions[:, :1]), positions], 1)


def rotate(x, rope):
    """Rotate x (batch, length, n_head, head_dim)."""
    pairs = torch.view_as_complex(x.float().reshape(*x.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * rope.unsqueeze(2)).flatten(3).type_as(x)


def rms_norm(x, weight):
    x32 = x.float()
    return (x32 * torch.rsqrt(x32.pow(2).mean(-1, keepdim=True) + 1e-5)).type_as(x) * weight


def forward(prior, tokens, orders, labels):
    """Return logits at all positions for tokens (batch, n), given in reading order."""
    batch, heads = len(tokens), prior.n_head
    rope = sequence_rope(prior, orders)
    instruction = prior.pos_instruct_embeddings.view(1, 1, heads, -1).expand(*tokens.shape, -1, -1)
    instruction = rotate(instruction, rope[:, 1::2]).flatten(2)
    read = torch.stack([instruction, prior.tok_embeddings(tokens)], 2).flatten(1, 2)
    x = torch.cat([prior.class_table[labels].unsqueeze(1), read], 1)
    mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).tril()
    for block in prior.blocks:
        y = rms_norm(x, block.attention_norm.weight)
        q, k, v = F.linear(y, block.attention.wqkv.weight).chunk(3, -1)
        q, k, v = (a.view(batch, x.shape[1], heads, -1) for a in (q, k, v))
        q, k, v = (a.transpose(1, 2) for a in (rotate(q, rope), rotate(k, rope), v))
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        x = x + F.linear(y.transpose(1, 2).reshape(x.shape), block.attention.wo.weight)
        y = rms_norm(x, block.ffn_norm.weight)
        ffn = block.feed_forward
        y = F.silu(F.linear(y, ffn.w1.weight)) * F.linear(y, ffn.w3.weight)
        x = x + F.linear(y, ffn.w2.weight)
    return F.linear(rms_norm(x, prior.norm.weight), prior.output.weight).float()


@torch.inference_mode()
def log_likelihoods(prior, encode, images, orders, labels, autocast=None):
    """Return log p(tokens | class, order), (n_images, n_orders, n_classes).

    `encode` returns the tokens (n,) of one image. `autocast` is the dtype of matrix products.
    """
    device = prior.output.weight.device
    out = torch.empty(len(images), len(orders), len(labels), dtype=torch.float64)
    with torch.autocast(device.type, dtype=autocast, enabled=autocast is not None):
        for i, image in enumerate(images):
            for k, order in enumerate(torch.as_tensor(orders, device=device)):
                tokens = torch.as_tensor(encode(image), device=device)[order]
                for c in range(0, len(labels), CLASS_BATCH):
                    label = torch.as_tensor(labels[c : c + CLASS_BATCH], device=device)
                    batch = tokens.expand(len(label), -1), order.expand(len(label), -1)
                    log_prob = forward(prior, *batch, label).log_softmax(-1)
                    log_prob = log_prob[:, 1::2].gather(-1, batch[0].unsqueeze(-1)).squeeze(-1)
                    out[i, k, c : c + len(label)] = log_prob.double().sum(-1).cpu()
    return out.numpy()
