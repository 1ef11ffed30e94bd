"""Eq. 1 of the paper in closed form, on tiles of logits that are worked on in place.

Shapes: G heads, T rows of a tile (whole pairs: row 2b is an anchor, row 2b + 1 its partner), C clusters.

The loss of head i, with student and teacher probabilities S and T, the teacher's marginal p_i and the pair weight w,
over both views a and the other view a' of each of B pairs b:

    L_i = -1/(2B) sum_(a, b) w(b) log sum_c (S_i^a(b, c) T_i^a'(b, c))^gamma / p_i(c)

With the logits s and t (divided by their temperatures, the highest of each row subtracted) and the sums Z_s, Z_t of
their exponentials, the logarithm is that of sum_c exp(gamma (s + t) - log p_i), less gamma (log Z_s + log Z_t). Nothing
underflows, and its gradient with respect to s is gamma (softmax of that exponent - S). A softmax's highest value is
one over its sum of exponentials, so log Z costs no pass of its own over the exponentials.
"""

import torch


def teacher_tile(logits: torch.Tensor, scratch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What a tile of the teacher's logits [G, T, C] adds to a step: (log Z [G, T], sum of its probabilities over the
    rows [G, C], how far each pair is put into one cluster [G, T / 2], in [0, 1]).

    logits: loses the highest of each row. scratch: [G, T, C], written over.
    """
    logits.sub_(logits.amax(dim=-1, keepdim=True))
    probabilities = torch.softmax(logits, dim=-1, out=scratch)
    log_total = probabilities.amax(dim=-1).log_().neg_()
    mass = probabilities.sum(dim=1)
    agreement = probabilities[:, 0::2].mul_(probabilities[:, 1::2]).sum(dim=-1)
    return log_total, mass, agreement


def updated_marginal(marginal: torch.Tensor, mass: torch.Tensor, rows: int, momentum: float) -> torch.Tensor:
    """The marginal p [G, C] after it has seen the teacher's probabilities of `rows` rows, whose sum is `mass`."""
    return torch.lerp(mass / rows, marginal, momentum)


def negative_log(marginal: torch.Tensor) -> torch.Tensor:
    """-log p, [G, C]."""
    # A cluster that has died decays towards 0 and must not become the logarithm of 0.
    return marginal.clamp_min(torch.finfo(marginal.dtype).tiny).log_().neg_()


def student_tile(
    logits: torch.Tensor, partner_logits: torch.Tensor, bias: torch.Tensor, scratch: torch.Tensor, gamma: float
) -> torch.Tensor:
    """log sum_c exp(gamma (s + t) - log p) - gamma log Z_s of each row, [G, T].

    logits: the student's, [G, T, C]; become S - softmax(gamma (s + t) - log p), which is the gradient of the loss with
    respect to them, less the factor gamma w / (2B). partner_logits: the teacher's of each row's partner, as
    `teacher_tile` leaves them; written over. bias: -log p, [G, C]. scratch: [G, T, C], written over.
    """
    logits.sub_(logits.amax(dim=-1, keepdim=True))
    exponent = torch.add(bias.unsqueeze(1), partner_logits, alpha=gamma, out=partner_logits).add_(logits, alpha=gamma)
    highest = exponent.amax(dim=-1)
    joint = torch.softmax(exponent, dim=-1, out=scratch)
    log_joint = highest.sub_(joint.amax(dim=-1).log_())
    student = torch.softmax(logits, dim=-1, out=partner_logits)
    log_joint.add_(student.amax(dim=-1).log_(), alpha=gamma)
    torch.sub(student, joint, out=logits)
    return log_joint
