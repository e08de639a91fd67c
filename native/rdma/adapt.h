/*
 * Which way a message goes: eager or by rendezvous, learnt from the round trips of its size. Part of
 * engine.c, for ar-grpc; the rdma channel has a fixed threshold.
 *
 * Sizes of one power of two are a class. A class first tries both ways, then takes the faster one and
 * looks at the other again from time to time, more and more rarely while that is confirmed.
 */
#ifndef COMMBENCH_RDMA_ADAPT_H
#define COMMBENCH_RDMA_ADAPT_H

#include <stdbool.h>
#include <stdint.h>

enum way { EAGER, RENDEZVOUS };
enum { SIZE_CLASSES = 65, TRIES = 8, LOOK_AGAIN = 64, LOOK_SELDOM = 4096 };

typedef struct size_class {
    double ns[2];               /* by way: of a round trip, exponentially weighted */
    uint32_t seen[2];
    uint32_t since, patience;   /* messages since the other way was tried, and until it is again */
} size_class;

typedef struct adapter {
    uint64_t from;              /* bytes: longer ones take the rendezvous while nothing is known */
    size_class at[SIZE_CLASSES];
} adapter;

static inline uint32_t class_of(uint64_t nbytes)
{
    return nbytes ? 64u - (uint32_t)__builtin_clzll(nbytes) : 0;
}

static inline enum way preferred(const adapter *a, uint64_t nbytes)
{
    const size_class *k = &a->at[class_of(nbytes)];
    if (k->seen[EAGER] >= TRIES && k->seen[RENDEZVOUS] >= TRIES)
        return k->ns[RENDEZVOUS] < k->ns[EAGER] ? RENDEZVOUS : EAGER;
    return nbytes > a->from ? RENDEZVOUS : EAGER;
}

/* The way of the next message; `most`: bytes that a frame can hold. */
static inline enum way choose(adapter *a, uint64_t nbytes, uint64_t most)
{
    size_class *k = &a->at[class_of(nbytes)];
    enum way better = preferred(a, nbytes), other = better == EAGER ? RENDEZVOUS : EAGER;
    if (nbytes > most || nbytes == 0)
        return nbytes ? RENDEZVOUS : EAGER;
    if (k->seen[better] < TRIES)
        return better;
    if (k->seen[other] < TRIES)
        return other;
    if (k->patience == 0)
        k->patience = LOOK_AGAIN;
    if (++k->since < k->patience)
        return better;
    k->since = 0;
    if (k->patience < LOOK_SELDOM)
        k->patience *= 2;
    return other;
}

/* One round trip. A sample that is far off (the scheduler) counts as four times the usual. */
static inline void learn(adapter *a, uint64_t nbytes, enum way went, double ns)
{
    size_class *k = &a->at[class_of(nbytes)];
    enum way before = preferred(a, nbytes);
    double *mean = &k->ns[went];
    if (k->seen[went]++ == 0)
        *mean = ns;
    else
        *mean += ((ns < 4 * *mean ? ns : 4 * *mean) - *mean) / 8;
    if (preferred(a, nbytes) != before)
        k->patience = LOOK_AGAIN;
}

/* Bytes from which on the rendezvous is the better way, as far as that is known. */
static inline uint64_t threshold(const adapter *a)
{
    for (uint32_t i = 1; i < SIZE_CLASSES; i++) {
        uint64_t least = UINT64_C(1) << (i - 1);
        if (preferred(a, least) == RENDEZVOUS)
            return least;
    }
    return UINT64_MAX;
}

#endif
