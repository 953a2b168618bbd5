"""How far a student's distribution is from its teacher's, with the gradient in closed form.

Each function takes teacher and student over the same outcomes and returns the divergence of each token [C] and its
gradient by the student's logits [C, V] (those after the temperature). It may overwrite both of its arguments but for
the student's logits. With p the teacher, q the student, z the student's logits and f any of them,
df / dz_i = q_i (df/dq_i - sum_j q_j df/dq_j).

C: tokens of a chunk, V: outcomes.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from foundry.engine.products import Softmax
from foundry.spec.stages import Jsd, Loss

Divergence = Callable[[Softmax, Softmax], tuple[Tensor, Tensor]]


def forward_kl(teacher: Softmax, student: Softmax) -> tuple[Tensor, Tensor]:
    """KL(p || q) = sum p (log p - log q); the gradient is q - p. The student covers all that the teacher may say."""
    # sum p (z_p - z_q) - log sum exp z_p + log sum exp z_q
    distance_C = teacher.logits_TV.sub_(student.logits_TV).mul_(teacher.probabilities_TV).sum(dim=1)
    loss_C = distance_C - teacher.log_sum_T + student.log_sum_T
    return loss_C, student.probabilities_TV.sub_(teacher.probabilities_TV)


def reverse_kl(teacher: Softmax, student: Softmax) -> tuple[Tensor, Tensor]:
    """KL(q || p) = sum q (log q - log p); the gradient is q (log q - log p - KL). The student says the likeliest."""
    # The log sums are the same for all outcomes of a token, so the gradient does without them.
    ratio_CV = torch.sub(student.logits_TV, teacher.logits_TV, out=teacher.logits_TV)
    mean_C1 = (ratio_CV * student.probabilities_TV).sum(dim=1, keepdim=True)
    loss_C = mean_C1.squeeze(1) - student.log_sum_T + teacher.log_sum_T
    return loss_C, ratio_CV.sub_(mean_C1).mul_(student.probabilities_TV)


def jsd(teacher: Softmax, student: Softmax, *, beta: float) -> tuple[Tensor, Tensor]:
    """Generalised Jensen-Shannon: beta KL(p || m) + (1 - beta) KL(q || m) with m = beta p + (1 - beta) q.

    As in GKD (2306.13649, eq. 1). The gradient is (1 - beta) q (log(q / m) - KL(q || m)). Divided by beta it goes to
    the forward KL as beta goes to 0, and divided by 1 - beta to the reverse KL as beta goes to 1.
    """
    p_CV, q_CV = teacher.probabilities_TV, student.probabilities_TV
    tiny = torch.finfo(q_CV.dtype).tiny
    log_m_CV = torch.lerp(q_CV, p_CV, beta).clamp_min_(tiny).log_()
    # Where p is 0 its logit is finite, and 0 times a finite number is the 0 that it ought to be.
    log_p_CV = teacher.logits_TV.sub_(teacher.log_sum_T[:, None])
    of_teacher_C = p_CV.mul_(log_p_CV.sub_(log_m_CV)).sum(dim=1)
    ratio_CV = torch.sub(student.logits_TV, student.log_sum_T[:, None], out=log_p_CV).sub_(log_m_CV)
    of_student_C1 = (ratio_CV * q_CV).sum(dim=1, keepdim=True)
    loss_C = beta * of_teacher_C + (1 - beta) * of_student_C1.squeeze(1)
    return loss_C, ratio_CV.sub_(of_student_C1).mul_(q_CV).mul_(1 - beta)


def divergence_of(loss: Loss) -> Divergence:
    """The function that a spec's word stands for."""
    if isinstance(loss, Jsd):
        return partial(jsd, beta=loss.beta)
    return {"forward_kl": forward_kl, "reverse_kl": reverse_kl}[loss]
