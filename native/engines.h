/* The engines that are built into _native, each made by its own bind_*.cpp. */
#ifndef COMMBENCH_ENGINES_H
#define COMMBENCH_ENGINES_H

#include "commbench_ops.h"

#include <stdbool.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Loopback: one process asks itself. fault: "", "flip", "swap", "short", "few", "repeat"; it strikes the
 * message number fault_at (from 0, over all messages of the engine's life). */
cb_engine *cb_loopback_open(const char *fault, uint64_t fault_at);
void cb_loopback_close(cb_engine *engine);

/* A handler that answers late and out of order; see handlers.c. */
enum { CB_REVERSE_DEPTH = 8 };
typedef struct cb_reverse_state {
    cb_incoming kept[CB_REVERSE_DEPTH];
    uint32_t count;
    int ready;
} cb_reverse_state;
cb_handler cb_reverse(cb_reverse_state *state);

/* Adds pushed gradients into weights and answers with these; see accumulate.c. The handler has no ops
 * when there was no memory. */
typedef struct cb_accumulate {
    const cb_parameters *p;
    uint64_t *pushes, *tickets; /* by worker; by order of arrival in this step */
    uint32_t pushed, pulled;    /* of the step that is being gathered */
    uint64_t turn;              /* calls that are complete */
    uint64_t elements;          /* added in all */
} cb_accumulate;
cb_handler cb_accumulator(cb_accumulate *a, const cb_parameters *p);
void cb_accumulator_free(cb_accumulate *a);
/* Are the weights what `steps` steps of all workers make of zeros? 0, or -EBADMSG and where not. */
int cb_check_weights(const cb_parameters *p, uint64_t seed, uint64_t number, bool every,
                     uint64_t steps, uint32_t *call, uint32_t *buffer, uint64_t *offset);

/* Stream sockets, connected in Python, which owns them: ask[r] carries our requests to rank r,
 * serve[r] those of rank r to us; -1: none. They block, with SO_RCVTIMEO and SO_SNDTIMEO of
 * 100 ms. spin: look again and again instead of sleeping. NULL: out of memory or descriptors. */
cb_engine *cb_tcp_open(uint32_t size, const int *ask, const int *serve, int spin);
void cb_tcp_close(cb_engine *engine);

#ifdef __cplusplus
}
#endif
#endif
