/* Message content: a function of the spec and the message number, cheap and position-dependent. */
#include "commbench_ops.h"

#include <errno.h>
#include <string.h>

#define STEP UINT64_C(0x9E3779B97F4A7C15)

/* The finalizer of splitmix64 (Steele, Lea, Flood, OOPSLA'14). */
static uint64_t mix(uint64_t x)
{
    x = (x ^ (x >> 30)) * UINT64_C(0xBF58476D1CE4E5B9);
    x = (x ^ (x >> 27)) * UINT64_C(0x94D049BB133111EB);
    return x ^ (x >> 31);
}

uint64_t cb_key(uint64_t seed, int32_t sender, uint64_t number, uint32_t buffer)
{
    uint64_t x = mix(seed + STEP);
    x = mix(x ^ ((uint64_t)(uint32_t)sender << 32 | buffer));
    return mix(x + number * STEP);
}

void cb_fill(const cb_iov *message, uint64_t seed, int32_t sender, uint64_t number)
{
    for (uint32_t b = 0; b < message->n; b++) {
        uint64_t word = cb_key(seed, sender, number, b);
        char *p = message->iov[b].iov_base;
        size_t left = message->iov[b].iov_len;
        for (; left >= 8; left -= 8, p += 8, word += STEP)
            memcpy(p, &word, 8);
        if (left > 0)           /* an empty buffer may have no address */
            memcpy(p, &word, left);
    }
}

int cb_verify(const cb_iov *message, uint64_t seed, int32_t sender, uint64_t number,
              uint32_t *buffer, uint64_t *offset)
{
    uint64_t rest = message->nbytes;
    for (uint32_t b = 0; b < message->n && rest > 0; b++) {
        uint64_t word = cb_key(seed, sender, number, b), got;
        const char *base = message->iov[b].iov_base, *p = base;
        size_t left = message->iov[b].iov_len < rest ? message->iov[b].iov_len : rest;
        rest -= left;
        for (; left > 0; word += STEP) {
            size_t part = left < 8 ? left : 8;
            got = word;
            memcpy(&got, p, part);
            if (got != word) {
                *buffer = b;
                *offset = (uint64_t)(p - base) + (uint64_t)__builtin_ctzll(got ^ word) / 8;
                return -EBADMSG;
            }
            p += part;
            left -= part;
        }
    }
    return 0;
}
