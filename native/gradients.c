/* What a parameter server is sent and what it then holds: integer-valued float32, so that sums are
 * exact while they stay below 2^24, whatever their order. */
#include "commbench_ops.h"

#include <errno.h>
#include <string.h>

#define CYCLE CB_GRADIENT_CYCLE
#define LARGEST ((int)(CYCLE / 2))      /* gradients are -LARGEST .. LARGEST */

/* Where in its cycle element k of a buffer stands: from its place alone, so that a shifted or a
 * swapped buffer shows. The mixer is Knuth's multiplicative hash. */
static inline uint32_t phase(uint32_t base, uint32_t k)
{
    return ((base + k) * UINT32_C(2654435761) >> 16) % CYCLE;
}

static uint32_t base_of(uint64_t seed, uint32_t buffer)
{
    return (uint32_t)cb_key(seed, 0, 0, buffer);
}

static inline uint32_t turn_of(int32_t sender, uint64_t number)
{
    return (uint32_t)((3 * (uint64_t)(uint32_t)sender + number) % CYCLE);
}

/* By phase: the gradient of this message. */
static void gradients_of(int32_t sender, uint64_t number, float by_phase[CYCLE])
{
    for (uint32_t p = 0; p < CYCLE; p++)
        by_phase[p] = (float)((int)((p + turn_of(sender, number)) % CYCLE) - LARGEST);
}

void cb_weights_of(const cb_parameters *p, uint64_t number, uint64_t stride, uint64_t steps,
                   float by_phase[CYCLE])
{
    float one[CYCLE];
    memset(by_phase, 0, CYCLE * sizeof *by_phase);
    for (uint32_t w = 0; w < p->workers; w++)
        for (uint64_t t = 0; t < CYCLE; t++) {  /* step t and all that are a multiple of a cycle on */
            uint64_t times = steps / CYCLE + (t < steps % CYCLE);
            gradients_of(p->first_worker + (int32_t)w, number + t * stride, one);
            for (uint32_t i = 0; i < CYCLE; i++)
                by_phase[i] += one[i] * (float)times;
        }
}

static void fill(const cb_iov *message, uint64_t seed, uint32_t call, const float *by_phase)
{
    for (uint32_t b = 0; b < message->n; b++) {
        float *p = message->iov[b].iov_base;
        uint32_t base = base_of(seed, call + b), n = (uint32_t)(message->iov[b].iov_len / sizeof *p);
        for (uint32_t k = 0; k < n; k++)
            p[k] = by_phase[phase(base, k)];
    }
}

int cb_verify_floats(const cb_iov *message, uint64_t seed, uint32_t call, const float *by_phase,
                     uint32_t *buffer, uint64_t *offset)
{
    for (uint32_t b = 0; b < message->n; b++) {
        const float *p = message->iov[b].iov_base;
        uint32_t base = base_of(seed, call + b), n = (uint32_t)(message->iov[b].iov_len / sizeof *p);
        for (uint32_t k = 0; k < n; k++)
            if (p[k] != by_phase[phase(base, k)]) {
                *buffer = b;
                *offset = (uint64_t)k * sizeof *p;
                return -EBADMSG;
            }
    }
    return 0;
}

void cb_fill_gradients(const cb_iov *message, uint64_t seed, int32_t sender, uint64_t number,
                       uint32_t call)
{
    float by_phase[CYCLE];
    gradients_of(sender, number, by_phase);
    fill(message, seed, call, by_phase);
}

int cb_verify_gradients(const cb_iov *message, uint64_t seed, int32_t sender, uint64_t number,
                        uint32_t call, uint32_t *buffer, uint64_t *offset)
{
    float by_phase[CYCLE];
    gradients_of(sender, number, by_phase);
    return cb_verify_floats(message, seed, call, by_phase, buffer, offset);
}
