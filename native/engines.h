/* The engines that are built into _native, each made by its own bind_*.cpp. */
#ifndef COMMBENCH_ENGINES_H
#define COMMBENCH_ENGINES_H

#include "commbench_ops.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Loopback: one process asks itself. fault: "", "flip", "swap", "short", "repeat"; it strikes the
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

/* Stream sockets, connected in Python, which owns them: ask[r] carries our requests to rank r,
 * serve[r] those of rank r to us; -1: none. They block, with SO_RCVTIMEO and SO_SNDTIMEO of
 * 100 ms. spin: look again and again instead of sleeping. NULL: out of memory or descriptors. */
cb_engine *cb_tcp_open(uint32_t size, const int *ask, const int *serve, int spin);
void cb_tcp_close(cb_engine *engine);

#ifdef __cplusplus
}
#endif
#endif
